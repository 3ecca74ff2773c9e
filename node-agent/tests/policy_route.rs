//! Policy routing on a real kernel, each test in a network namespace of its own, checked with
//! iproute2. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail the test")]

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use fairlead_node_agent::{
    model::Family,
    netlink::Socket,
    policy_route::{
        DesiredRoutes, MARKED_TABLE, PROTOCOL, PolicyRouteError, PolicyRoutes, SERVICE_TABLE, Scope, plan,
        watch_groups,
    },
};
use serde_json::Value;

const CIDRS: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];

/// Moves this thread, and what it starts, into a new network namespace.
fn fresh_namespace() {
    // SAFETY: the namespace of this thread alone changes, file descriptors stay.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .expect("a network namespace of its own (root?)");
}

fn with_loopback() -> PolicyRoutes {
    fresh_namespace();
    ip("link set lo up");
    PolicyRoutes::open().unwrap()
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ip_json(arguments: &str) -> Vec<Value> {
    let text = ip(&format!("-j {arguments}"));
    if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
}

fn desired(bit: u32, cidrs: &[&str], ipv6: bool) -> DesiredRoutes {
    DesiredRoutes {
        mark_bit: bit.try_into().unwrap(),
        service_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        ipv6,
    }
}

fn reconcile(routes: &mut PolicyRoutes, desired: &DesiredRoutes) {
    let ops = plan(desired, &routes.observe().unwrap());
    routes.apply(&ops).unwrap();
    assert_eq!(plan(desired, &routes.observe().unwrap()), [], "something is left to do");
}

/// `priority: selectors -> table` of the rules of a family with our protocol number, or of others.
fn rules(family: &str, ours: bool) -> Vec<String> {
    let rules = ip_json(&format!("-{family} -d rule show"));
    let of_interest = rules.iter().filter(|rule| (rule["protocol"] == *PROTOCOL.to_string()) == ours);
    of_interest
        .map(|rule| {
            let field = |name: &str| rule[name].as_str().unwrap_or("-").to_owned();
            let (iif, mark) = (field("iif"), field("fwmark"));
            format!("{}: {iif} {mark}/{} -> {}", rule["priority"], field("fwmask"), field("table"))
        })
        .collect()
}

/// Everything in all tables of both families but for our own routes.
fn foreign_routes() -> BTreeSet<String> {
    let all = ["4", "6"].map(|family| ip_json(&format!("-{family} route show table all")));
    let foreign = all.iter().flatten().filter(|route| route["protocol"] != *PROTOCOL.to_string());
    foreign.map(Value::to_string).collect()
}

fn routes_of(family: &str, table: u32) -> Vec<String> {
    ip(&format!("-{family} -d route show table {table} proto {PROTOCOL}"))
        .lines()
        .map(|line| line.split_whitespace().take(4).collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn rules_and_routes_of_both_families_stand_as_iproute2_shows_them() {
    let mut routes = with_loopback();
    reconcile(&mut routes, &desired(0x1000, &CIDRS, true));
    for family in ["4", "6"] {
        assert_eq!(
            rules(family, true),
            [
                "98: lo 0x1000/0x1000 -> main".to_owned(),
                format!("99: - 0x1000/0x1000 -> {MARKED_TABLE}"),
                format!("32800: - -/- -> {SERVICE_TABLE}"),
            ]
        );
        assert_eq!(routes_of(family, MARKED_TABLE), ["local default dev lo"]);
    }
    assert_eq!(routes_of("4", SERVICE_TABLE), ["unicast 10.96.0.0/12 dev lo"]);
    assert_eq!(routes_of("6", SERVICE_TABLE), ["unicast fd00:10:96::/112 dev lo"]);
}

#[test]
fn a_packet_with_the_bit_is_delivered_here_whatever_else_its_mark_says() {
    let mut routes = with_loopback();
    ip("link add v0 type veth peer name v1");
    ip("addr add 192.168.9.1/24 dev v0");
    ip("link set v0 up");
    ip("link set v1 up");
    ip("route add default via 192.168.9.254");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    reconcile(&mut routes, &desired(0x1000, &CIDRS, false));
    let route = |mark: &str| ip(&format!("route get 10.96.0.10 from 192.168.9.7 iif v0 mark {mark}"));
    assert!(route("0x1000").starts_with("local 10.96.0.10"), "{}", route("0x1000"));
    assert!(route("0x5000").starts_with("local 10.96.0.10"), "{}", route("0x5000"));
    assert!(route("0x4000").contains("via 192.168.9.254"), "{}", route("0x4000"));
    // the lookup of a reverse path: as if the node itself were to answer
    let reverse = ip("route get 192.168.9.7 mark 0x1000");
    assert!(reverse.contains("dev v0"), "{reverse}");
}

#[test]
fn a_node_without_a_default_route_reaches_service_addresses_with_its_own_source() {
    let mut routes = with_loopback();
    ip("link add v0 type veth peer name v1");
    ip("addr add 192.168.9.1/24 dev v0");
    ip("addr add fd99::1/64 dev v0 nodad");
    ip("link set v0 up");
    ip("link set v1 up");
    let source_towards = |from: &str, to: &str| -> std::io::Result<String> {
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip().to_string())
    };
    let v4 = || source_towards("0.0.0.0:0", "10.96.0.10:53");
    let v6 = || source_towards("[::]:0", "[fd00:10:96::a]:53");
    assert!(!routes.has_default_route(Family::V4).unwrap());
    assert!(!routes.has_default_route(Family::V6).unwrap());
    assert!(v4().is_err() && v6().is_err(), "unreachable before");

    reconcile(&mut routes, &desired(0x1000, &CIDRS, true));
    assert_eq!(v4().unwrap(), "192.168.9.1");
    assert_eq!(v6().unwrap(), "fd99::1");
    assert!(!routes.has_default_route(Family::V4).unwrap(), "ours is no default route");

    ip("route add default via 192.168.9.254");
    ip("-6 route add default via fd99::fe dev v0");
    assert!(routes.has_default_route(Family::V4).unwrap());
    assert!(routes.has_default_route(Family::V6).unwrap());
}

#[test]
fn two_mark_bits_in_sequence_leave_only_the_second() {
    let mut routes = with_loopback();
    reconcile(&mut routes, &desired(0x1000, &CIDRS, true));
    reconcile(&mut routes, &desired(0x2000, &CIDRS, true));
    for family in ["4", "6"] {
        let rules = rules(family, true);
        assert_eq!(rules.len(), 3, "{rules:?}");
        assert!(rules.iter().all(|rule| !rule.contains("0x1000")), "{rules:?}");
    }
}

#[test]
fn cleanup_takes_ours_and_nothing_else() {
    let mut routes = with_loopback();
    for family in ["-4", "-6"] {
        // the same rules and the same tables, in the name of others
        ip(&format!("{family} rule add pref 98 iif lo fwmark 0x1000/0x1000 lookup main protocol static"));
        ip(&format!("{family} rule add pref 99 fwmark 0x1000/0x1000 lookup {MARKED_TABLE}"));
        ip(&format!("{family} rule add pref 32800 lookup {SERVICE_TABLE} protocol 109"));
    }
    ip(&format!("route add 10.0.0.0/8 dev lo table {SERVICE_TABLE} proto static"));
    ip(&format!("-6 route add fd00:10::/48 dev lo table {SERVICE_TABLE} proto 109"));
    let before = (rules("4", false), rules("6", false), foreign_routes());

    reconcile(&mut routes, &desired(0x1000, &CIDRS, true));
    assert_eq!((rules("4", true).len(), rules("6", true).len()), (3, 3));
    routes.cleanup().unwrap();

    assert_eq!((rules("4", false), rules("6", false), foreign_routes()), before);
    assert_eq!((rules("4", true).len(), rules("6", true).len()), (0, 0));
    let observed = routes.observe().unwrap();
    assert!(observed.rules.is_empty() && observed.routes.is_empty(), "{observed:?}");
    routes.cleanup().unwrap();
}

#[test]
fn what_others_delete_or_alter_is_repaired() {
    let mut routes = with_loopback();
    let wanted = desired(0x1000, &CIDRS, true);
    reconcile(&mut routes, &wanted);
    ip("rule del pref 99");
    ip(&format!("-6 route flush table {MARKED_TABLE}"));
    ip(&format!("route change unicast default dev lo table {MARKED_TABLE} proto {PROTOCOL}"));
    ip("-6 rule del pref 98");
    ip(&format!(
        "-6 rule add pref 98 iif lo fwmark 0x1000/0x1000 ipproto tcp lookup main protocol {PROTOCOL}"
    ));
    reconcile(&mut routes, &wanted);
    assert_eq!(routes_of("4", MARKED_TABLE), ["local default dev lo"]);
    assert_eq!(routes_of("6", MARKED_TABLE), ["local default dev lo"]);
    assert_eq!((rules("4", true).len(), rules("6", true).len()), (3, 3));
    assert!(!ip("-6 rule show").contains("ipproto"));
}

#[test]
fn adding_what_is_there_and_deleting_what_is_gone_is_no_error() {
    let mut routes = with_loopback();
    let wanted = desired(0x1000, &CIDRS, true);
    let nothing = routes.observe().unwrap();
    let additions = plan(&wanted, &nothing);
    routes.apply(&additions).unwrap();
    routes.apply(&additions).unwrap();
    assert_eq!((rules("4", true).len(), rules("6", true).len()), (3, 3));

    let everything = routes.observe().unwrap();
    let none = desired(0x1000, &[], false);
    let removals = plan(&none, &everything);
    routes.apply(&removals).unwrap();
    routes.apply(&removals).unwrap();
}

#[test]
fn a_foreign_route_in_the_place_of_ours_is_reported_and_left() {
    let mut routes = with_loopback();
    ip(&format!("route add blackhole 10.96.0.0/12 table {SERVICE_TABLE} proto static"));
    let ops = plan(&desired(0x1000, &CIDRS, false), &routes.observe().unwrap());
    let error = routes.apply(&ops).unwrap_err();
    let PolicyRouteError::Refused(refused) = &error else { panic!("{error}") };
    assert_eq!(refused.len(), 1);
    assert!(error.to_string().contains("add route 10.96.0.0/12 dev lo table 26221"), "{error}");
    assert!(ip(&format!("route show table {SERVICE_TABLE}")).contains("blackhole"));
    assert_eq!(rules("4", true).len(), 3, "the other changes were made");
}

#[test]
fn a_loopback_that_is_down_is_named_as_the_cause() {
    fresh_namespace();
    let mut routes = PolicyRoutes::open().unwrap();
    let ops = plan(&desired(0x1000, &CIDRS, true), &routes.observe().unwrap());
    let error = routes.apply(&ops).unwrap_err();
    assert!(matches!(error, PolicyRouteError::LoopbackDown), "{error}");
    assert!(error.to_string().contains("ip link set lo up"));
    assert_eq!(rules("4", true).len(), 0);
}

#[test]
fn addresses_are_the_nodes_own_with_scope_and_interface() {
    let mut routes = with_loopback();
    ip("link add v0 type veth peer name v1");
    ip("addr add 192.168.9.1/24 dev v0 label v0:label");
    ip("addr add 10.9.9.1 peer 10.9.9.2 dev v0");
    ip("addr add 169.254.7.7/16 scope link dev v0");
    ip("addr add fd99::1/64 dev v0 nodad");
    let mut addresses: Vec<_> = routes
        .addresses()
        .unwrap()
        .into_iter()
        .map(|found| (found.interface, found.address.to_string(), found.scope))
        .collect();
    addresses.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let expected = [
        ("lo", "127.0.0.1", Scope::Host),
        ("lo", "::1", Scope::Host),
        ("v0", "10.9.9.1", Scope::Global),
        ("v0", "169.254.7.7", Scope::Link),
        ("v0", "192.168.9.1", Scope::Global),
        ("v0", "fd99::1", Scope::Global),
    ]
    .map(|(interface, address, scope)| (interface.to_owned(), address.to_owned(), scope));
    assert_eq!(addresses, expected);
}

#[test]
fn ten_thousand_foreign_routes_and_rules_do_not_slow_our_reading() {
    let mut routes = with_loopback();
    let batch: Vec<_> =
        (0..10_000).map(|n| format!("route add 172.16.{}.{} dev lo\n", n / 256, n % 256)).collect();
    let file = std::env::temp_dir().join(format!("fairlead-routes-{}", std::process::id()));
    std::fs::write(&file, batch.concat()).unwrap();
    ip(&format!("-batch {}", file.display()));
    std::fs::remove_file(&file).unwrap();
    reconcile(&mut routes, &desired(0x1000, &CIDRS, true));
    let start = Instant::now();
    let observed = routes.observe().unwrap();
    let elapsed = start.elapsed();
    println!("observed ours among 10,000 routes in {elapsed:?}");
    assert_eq!((observed.rules.len(), observed.routes.len()), (6, 4));
    assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
}

#[test]
fn every_kind_of_drift_is_an_event_of_the_watched_groups() {
    let _routes = with_loopback();
    for change in [
        "link add v0 type veth peer name v1",
        "link set v0 up",
        "addr add 192.168.9.1/24 dev v0",
        "-6 addr add fd99::1/64 dev v0 nodad",
        "route add 10.0.0.0/8 dev v0",
        "-6 route add fd00::/16 dev lo",
        "rule add pref 99 lookup 5",
        "-6 rule add pref 99 lookup 5",
    ] {
        // its own socket each, so that no late event of the change before is taken for this one's
        let mut events = Socket::with_groups(0, &watch_groups()).unwrap();
        events.set_receive_timeout(Duration::from_secs(5)).unwrap();
        ip(change);
        let (sender, receiver) = mpsc::channel();
        events.events(|message| sender.send(message.kind).unwrap()).unwrap();
        drop(sender);
        assert!(receiver.iter().count() > 0, "no event for: ip {change}");
    }
}
