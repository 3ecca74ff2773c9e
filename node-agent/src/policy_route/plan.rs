//! Which changes lead from what there is to what should be. Pure.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    DesiredRoutes, LOOPBACK, LOOPBACK_INDEX, MAIN_TABLE, MARKED_PRIORITY, MARKED_TABLE, ObservedRoutes,
    REVERSE_PATH_PRIORITY, Route, RouteKind, RouteOp, Rule, SERVICE_PRIORITY, SERVICE_TABLE,
};
use crate::model::Family;

/// The changes, in an order that leaves no gap: what is new comes first, routes before the rules
/// that lead to them; then what is old goes, rules before their routes.
pub fn plan(desired: &DesiredRoutes, observed: &ObservedRoutes) -> Vec<RouteOp> {
    let families = observed.families.iter().copied();
    let families = families.filter(|family| desired.ipv6 || *family == Family::V4);
    let (mut routes, mut rules) = (Vec::new(), Vec::new());
    for family in families {
        routes.extend(wanted_routes(desired, family));
        rules.extend(wanted_rules(desired, family));
    }
    let mut ops = Vec::new();
    for route in routes.iter().filter(|route| !observed.routes.contains(route)) {
        // Only one route of a table may lead to a destination: a wrong one makes room first.
        ops.extend(
            observed.routes.iter().filter(|old| in_place_of(old, route)).cloned().map(RouteOp::DelRoute),
        );
        ops.push(RouteOp::AddRoute(route.clone()));
    }
    ops.extend(rules.iter().filter(|rule| !observed.rules.contains(rule)).cloned().map(RouteOp::AddRule));
    let left_over = ObservedRoutes {
        rules: observed.rules.iter().filter(|rule| !rules.contains(rule)).cloned().collect(),
        routes: observed
            .routes
            .iter()
            .filter(|old| !routes.iter().any(|route| *old == route || in_place_of(old, route)))
            .cloned()
            .collect(),
        families: Vec::new(),
    };
    ops.extend(removal(&left_over));
    ops
}

/// The changes that remove all of `observed`: rules, the last first, then routes.
pub(super) fn removal(observed: &ObservedRoutes) -> Vec<RouteOp> {
    let mut rules = observed.rules.clone();
    rules.sort_by(|a, b| b.priority.cmp(&a.priority).then(a.cmp(b)));
    let rules = rules.into_iter().map(RouteOp::DelRule);
    rules.chain(observed.routes.iter().cloned().map(RouteOp::DelRoute)).collect()
}

fn in_place_of(old: &Route, new: &Route) -> bool {
    old != new && (old.destination, old.table) == (new.destination, new.table)
}

fn wanted_routes(desired: &DesiredRoutes, family: Family) -> Vec<Route> {
    let marked = Route {
        destination: match family {
            Family::V4 => IpNet::V4(Ipv4Net::default()),
            Family::V6 => IpNet::V6(Ipv6Net::default()),
        },
        table: MARKED_TABLE,
        kind: RouteKind::Local,
        interface: Some(LOOPBACK_INDEX),
    };
    let services = service_cidrs(desired, family).into_iter().map(|destination| Route {
        destination,
        table: SERVICE_TABLE,
        kind: RouteKind::Unicast,
        interface: Some(LOOPBACK_INDEX),
    });
    std::iter::once(marked).chain(services).collect()
}

fn wanted_rules(desired: &DesiredRoutes, family: Family) -> Vec<Rule> {
    let bit = desired.mark_bit.get();
    let rule = |priority, table| Rule {
        family,
        priority,
        mark: Some((bit, bit)),
        incoming: None,
        table,
        altered: false,
    };
    let mut rules = vec![
        Rule { incoming: Some(LOOPBACK.to_owned()), ..rule(REVERSE_PATH_PRIORITY, MAIN_TABLE) },
        rule(MARKED_PRIORITY, MARKED_TABLE),
    ];
    if !service_cidrs(desired, family).is_empty() {
        rules.push(Rule { mark: None, ..rule(SERVICE_PRIORITY, SERVICE_TABLE) });
    }
    rules
}

/// Without duplicates, and without host bits: the kernel refuses a route that has some.
fn service_cidrs(desired: &DesiredRoutes, family: Family) -> BTreeSet<IpNet> {
    let cidrs = desired.service_cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family);
    cidrs.map(IpNet::trunc).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn desired(bit: u32, cidrs: &[&str], ipv6: bool) -> DesiredRoutes {
        DesiredRoutes {
            mark_bit: bit.try_into().unwrap(),
            service_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ipv6,
        }
    }

    fn nothing() -> ObservedRoutes {
        ObservedRoutes { families: Family::ALL.to_vec(), ..ObservedRoutes::default() }
    }

    fn after(mut observed: ObservedRoutes, ops: &[RouteOp]) -> ObservedRoutes {
        for op in ops.iter().cloned() {
            match op {
                RouteOp::AddRule(rule) => observed.rules.push(rule),
                RouteOp::DelRule(rule) => observed.rules.retain(|old| *old != rule),
                RouteOp::AddRoute(route) => {
                    assert!(!observed.routes.iter().any(|old| in_place_of(old, &route)), "EEXIST");
                    observed.routes.push(route);
                }
                RouteOp::DelRoute(route) => observed.routes.retain(|old| *old != route),
            }
        }
        observed
    }

    fn words(ops: &[RouteOp]) -> Vec<String> {
        ops.iter().map(ToString::to_string).collect()
    }

    const BOTH: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];

    #[test]
    fn routes_come_before_the_rules_that_lead_to_them() {
        let ops = plan(&desired(0x1000, &["10.96.0.0/12"], false), &nothing());
        assert_eq!(
            words(&ops),
            [
                "add route local 0.0.0.0/0 dev lo table 26220",
                "add route 10.96.0.0/12 dev lo table 26221",
                "add IPv4 rule 98: iif lo fwmark 0x1000/0x1000 lookup 254",
                "add IPv4 rule 99: fwmark 0x1000/0x1000 lookup 26220",
                "add IPv4 rule 32800: lookup 26221",
            ]
        );
    }

    #[test]
    fn ipv6_gets_the_same() {
        let ops = words(&plan(&desired(0x1000, &BOTH, true), &nothing()));
        let (v6, v4): (Vec<_>, Vec<_>) = ops.iter().partition(|op| op.contains("IPv6") || op.contains("::/"));
        let as_v4: Vec<_> = v6
            .iter()
            .map(|op| {
                op.replace("IPv6", "IPv4")
                    .replace("fd00:10:96::/112", "10.96.0.0/12")
                    .replace("::/0", "0.0.0.0/0")
            })
            .collect();
        assert_eq!(as_v4, v4.into_iter().cloned().collect::<Vec<_>>());
    }

    #[rstest]
    #[case::v4(desired(0x1000, &["10.96.0.0/12"], false))]
    #[case::both(desired(0x1000, &BOTH, true))]
    #[case::no_cidr(desired(0x1000, &[], true))]
    #[case::a_cidr_with_host_bits_and_twice(desired(0x1000, &["10.96.0.1/12", "10.96.0.0/12"], false))]
    fn nothing_is_left_to_do_afterwards(#[case] desired: DesiredRoutes) {
        let observed = after(nothing(), &plan(&desired, &nothing()));
        assert_eq!(words(&plan(&desired, &observed)), [""; 0]);
        let gone = after(observed.clone(), &removal(&observed));
        assert_eq!(gone, nothing());
    }

    #[test]
    fn without_cidrs_nothing_is_looked_up_behind_main() {
        let ops = words(&plan(&desired(0x1000, &[], false), &nothing()));
        assert!(ops.iter().all(|op| !op.contains("26221")), "{ops:?}");
    }

    #[test]
    fn another_mark_bit_is_in_force_before_the_old_one_goes() {
        let observed = after(nothing(), &plan(&desired(0x1000, &BOTH, false), &nothing()));
        assert_eq!(
            words(&plan(&desired(0x2000, &BOTH, false), &observed)),
            [
                "add IPv4 rule 98: iif lo fwmark 0x2000/0x2000 lookup 254",
                "add IPv4 rule 99: fwmark 0x2000/0x2000 lookup 26220",
                "delete IPv4 rule 99: fwmark 0x1000/0x1000 lookup 26220",
                "delete IPv4 rule 98: iif lo fwmark 0x1000/0x1000 lookup 254",
            ]
        );
    }

    #[test]
    fn a_service_cidr_that_moves_is_routed_before_the_old_one_goes() {
        let observed = after(nothing(), &plan(&desired(0x1000, &["10.96.0.0/12"], false), &nothing()));
        assert_eq!(
            words(&plan(&desired(0x1000, &["10.112.0.0/16"], false), &observed)),
            ["add route 10.112.0.0/16 dev lo table 26221", "delete route 10.96.0.0/12 dev lo table 26221",]
        );
    }

    #[test]
    fn a_wrong_route_makes_room_for_the_right_one() {
        let wanted = desired(0x1000, &["10.96.0.0/12"], false);
        let mut observed = after(nothing(), &plan(&wanted, &nothing()));
        observed.routes[0].kind = RouteKind::Unicast;
        assert_eq!(
            words(&plan(&wanted, &observed)),
            ["delete route 0.0.0.0/0 dev lo table 26220", "add route local 0.0.0.0/0 dev lo table 26220",]
        );
    }

    #[test]
    fn a_rule_with_more_selectors_than_ours_does_not_count() {
        let wanted = desired(0x1000, &[], false);
        let mut observed = after(nothing(), &plan(&wanted, &nothing()));
        observed.rules[1].altered = true;
        let rule = "IPv4 rule 99: fwmark 0x1000/0x1000 lookup 26220";
        assert_eq!(words(&plan(&wanted, &observed)), [format!("add {rule}"), format!("delete {rule}")]);
    }

    #[test]
    fn a_family_that_the_kernel_lacks_is_left_alone() {
        let no_ipv6 = ObservedRoutes { families: vec![Family::V4], ..ObservedRoutes::default() };
        let ops = plan(&desired(0x1000, &BOTH, true), &no_ipv6);
        assert_eq!(ops, plan(&desired(0x1000, &BOTH, false), &nothing()));
    }

    #[test]
    fn ipv6_goes_when_it_is_no_longer_wanted() {
        let observed = after(nothing(), &plan(&desired(0x1000, &BOTH, true), &nothing()));
        let wanted = desired(0x1000, &BOTH, false);
        let left = after(observed.clone(), &plan(&wanted, &observed));
        assert!(left.rules.iter().all(|rule| rule.family == Family::V4));
        assert!(left.routes.iter().all(|route| route.family() == Family::V4));
        assert_eq!(plan(&wanted, &left), []);
    }
}
