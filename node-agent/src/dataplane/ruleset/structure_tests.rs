use rstest::rstest;

use super::*;
use crate::nft::{Base, Expr, Hook};

fn structure() -> Structure {
    Structure::new(Parameters { bit: PolicyBit::new(12).unwrap(), local_pods: [true, true] })
}

fn as_present(structure: &Structure) -> Present {
    Present {
        flags: 0,
        sets: structure.sets.clone(),
        chains: structure.chains.iter().map(|(chain, _)| chain.clone()).collect(),
        rules: structure
            .chains
            .iter()
            .flat_map(|(chain, rules)| rules.iter().map(|rule| (chain.name.clone(), rule.clone())))
            .collect(),
    }
}

fn rules_of<'a>(present: &'a mut Present, chain: &str) -> impl Iterator<Item = &'a mut Rule> {
    present.rules.iter_mut().filter(move |(name, _)| name == chain).map(|(_, rule)| rule)
}

#[test]
fn the_table_as_made_has_no_difference() {
    assert_eq!(structure().compare(&as_present(&structure())), []);
}

#[test]
fn the_order_of_chains_and_sets_does_not_matter() {
    let mut present = as_present(&structure());
    present.sets.reverse();
    present.chains.reverse();
    present.rules.sort_by(|(a, _), (b, _)| b.cmp(a));
    assert_eq!(structure().compare(&present), []);
}

#[rstest]
#[case::rule_deleted(|p: &mut Present| { p.rules.remove(0); })]
#[case::rule_added(|p: &mut Present| p.rules.push(("classify".into(), Rule::new("mine").discard())))]
#[case::rules_reordered(|p: &mut Present| p.rules.swap(0, 1))]
#[case::rule_changed_under_its_comment(|p: &mut Present| {
    let rule = rules_of(p, "classify").next().unwrap();
    *rule = Rule { exprs: vec![Expr::Counter], comment: rule.comment.clone() };
})]
#[case::comment_changed(|p: &mut Present| rules_of(p, "untaken").next().unwrap().comment = None)]
#[case::chain_deleted(|p: &mut Present| { p.chains.pop(); })]
#[case::chain_added(|p: &mut Present| p.chains.push(Chain { name: "mine".into(), base: None }))]
#[case::chain_moved(|p: &mut Present| {
    let chain = p.chains.iter_mut().find(|c| c.name == "classify").unwrap();
    let Some(Base { hook: Hook::Prerouting, priority, .. }) = &mut chain.base else { panic!("{chain:?}") };
    *priority = -151;
})]
#[case::set_deleted(|p: &mut Present| { p.sets.pop(); })]
#[case::set_added(|p: &mut Present| p.sets.push(Set::new("mine", &[], "")))]
#[case::set_of_another_type(|p: &mut Present| p.sets[0].key_len += 4)]
#[case::table_dormant(|p: &mut Present| p.flags = 1)]
fn every_change_by_hand_is_one_difference(#[case] change: fn(&mut Present)) {
    let mut present = as_present(&structure());
    change(&mut present);
    let differences = structure().compare(&present);
    assert_eq!(differences.len(), 1, "{differences:?}");
}

#[test]
fn rules_look_only_into_sets_that_exist_and_jump_only_to_chains_that_exist() {
    let structure = structure();
    for (chain, rules) in &structure.chains {
        for expr in rules.iter().flat_map(|rule| &rule.exprs) {
            match expr {
                Expr::Lookup { set, dreg, .. } => {
                    let found = structure.sets.iter().find(|known| known.name == *set);
                    let found = found.unwrap_or_else(|| panic!("{}: no set {set}", chain.name));
                    // Kernel 6.1 refuses a map where a set is looked up.
                    assert_eq!(dreg.is_some(), found.data.is_some(), "{}: {set}", chain.name);
                }
                Expr::Verdict(crate::nft::Verdict::Jump(to)) => {
                    assert!(structure.chains.iter().any(|(known, _)| known.name == *to), "no chain {to}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn without_known_pods_of_a_family_no_client_of_a_cluster_ip_is_masqueraded() {
    let parameters = Parameters { bit: PolicyBit::new(12).unwrap(), local_pods: [true, false] };
    let structure = Structure::new(parameters);
    let looks_into = |name: &str| {
        let rules = structure.chains.iter().flat_map(|(_, rules)| rules);
        rules.flat_map(|rule| &rule.exprs).any(|e| matches!(e, Expr::Lookup { set, .. } if set == name))
    };
    assert!(looks_into("local-pods-4"));
    assert!(!looks_into("local-pods-6"));
}

#[test]
fn another_policy_bit_is_another_structure() {
    let other = Structure::new(Parameters { bit: PolicyBit::new(13).unwrap(), local_pods: [true, true] });
    assert!(!other.compare(&as_present(&structure())).is_empty());
}

#[test]
fn a_set_is_read_when_its_type_is_right_whatever_is_said_of_it() {
    let name = SetName::ClusterIps(Family::V4);
    let with = |change: fn(&mut Set)| {
        let mut present = as_present(&structure());
        change(present.sets.iter_mut().find(|set| set.name == name.to_string()).unwrap());
        Structure::has_set(&present, name)
    };
    assert!(with(|set| set.comment = Some("of another version".into())));
    assert!(!with(|set| set.key_len += 4));
    assert!(!Structure::has_set(&Present::default(), name));
}
