//! Our nftables table on a real kernel, as Debian's `nft` sees it. Each test has its own network
//! namespace. Needs root, no ip_vs.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may fail them")]

use std::{collections::BTreeSet, process::Command};

use fairlead_node_agent::{
    dataplane::ruleset::{self, Difference, Element, Found, Parameters, PolicyBit, Structure, TABLE},
    model::{Family, Protocol},
    nft::{AcceptedMark, Client, Hook, NftError, Policy},
};

/// Runs a test on a thread of its own, in a network namespace of its own.
fn in_namespace(test: impl FnOnce(&mut Client) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: only the network namespace of this thread changes, no file table or memory.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .expect("a network namespace needs root");
        test(&mut Client::open().unwrap());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `nft` in the namespace of this thread.
fn nft(command: &str) -> String {
    nft_with(&[], command)
}

fn nft_with(options: &[&str], command: &str) -> String {
    let output = Command::new("nft").args(options).arg(command).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn structure() -> Structure {
    Structure::new(Parameters { bit: PolicyBit::new(12).unwrap(), local_pods: [true, true] })
}

/// At least one element of each set.
fn elements() -> BTreeSet<Element> {
    let mark = PolicyBit::new(12).unwrap().id(1).unwrap();
    let mut elements = BTreeSet::from([
        Element::NodePortMark { protocol: Protocol::Tcp, port: 30_080, mark },
        Element::LocalPods("10.244.1.0/24".parse().unwrap()),
        Element::LocalPods("10.244.2.0/24".parse().unwrap()),
        Element::LocalPods("fd00:244:1::/64".parse().unwrap()),
        Element::LocalPods("ff00::/8".parse().unwrap()),
    ]);
    for (family, address) in [(Family::V4, "192.0.2.10:80"), (Family::V6, "[2001:db8::10]:80")] {
        let address: std::net::SocketAddr = address.parse().unwrap();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            elements.extend([
                Element::ClusterIp { protocol, address },
                Element::ExternalIp { protocol, address },
                Element::NoEndpoints { protocol, address },
                Element::NodePort { family, protocol, port: 30_080 },
                Element::NoEndpointNodePort { family, protocol, port: 30_081 },
            ]);
        }
        let ip = address.ip();
        elements.extend([Element::ClusterAddress(ip), Element::Hairpin(ip), Element::NodeAddress(ip)]);
    }
    elements
}

fn install(client: &mut Client) {
    client.commit(ruleset::install(&structure(), &elements())).unwrap();
}

fn differences(client: &mut Client) -> Vec<Difference> {
    match ruleset::read(client, &structure()).unwrap() {
        Found::Intact(_) => Vec::new(),
        Found::Broken { differences, .. } => differences,
    }
}

#[test]
fn the_table_is_intact_and_complete_right_after_it_was_made() {
    in_namespace(|client| {
        assert_eq!(differences(client), [Difference::NoTable]);
        install(client);
        assert_eq!(ruleset::read(client, &structure()).unwrap(), Found::Intact(elements()));
    });
}

#[test]
fn nft_shows_it_as_a_person_would_write_it() {
    in_namespace(|client| {
        install(client);
        let listing = nft("list table inet fairlead");
        for line in [
            "type ipv4_addr . inet_proto . inet_service",
            "10.244.1.0/24, 10.244.2.0/24",
            "2001:db8::10 . sctp . 80",
            "tcp . 30080 : 0x1f001001",
            "type filter hook prerouting priority mangle; policy accept;",
            "ct direction reply accept comment \"answers belong to a connection of somebody\"",
            "ct state established,related ct label 101 meta mark set meta mark | 0x00001000 accept",
            "ip6 daddr . meta l4proto . th dport @cluster-ips-6 meta mark set meta mark | 0x00001000 accept",
            "ip daddr @node-addresses-4 meta l4proto . th dport @node-ports-4 ct label set 102 meta mark set meta l4proto . th dport map @node-port-marks",
            "ct label 101 tcp flags syn,rst tcp option maxseg size set rt mtu",
            "ct label 102 fib daddr type != local masquerade fully-random",
            "reject with tcp reset comment \"no backend took it\"",
            "type route hook output priority -89; policy accept;",
        ] {
            assert!(listing.contains(line), "`{line}` is not in\n{listing}");
        }
    });
}

#[test]
fn a_ruleset_saved_and_loaded_again_by_nft_is_still_ours() {
    in_namespace(|client| {
        install(client);
        let saved = nft("list ruleset");
        nft("flush ruleset");
        assert_eq!(differences(client), [Difference::NoTable]);
        nft(&saved);
        assert_eq!(ruleset::read(client, &structure()).unwrap(), Found::Intact(elements()));
    });
}

#[test]
fn changes_by_hand_are_noticed_and_mended() {
    let changes = [
        "add rule inet fairlead classify accept",
        "insert rule inet fairlead classify accept",
        "flush chain inet fairlead untaken",
        "delete chain inet fairlead forward-mss",
        "add chain inet fairlead mine",
        "add set inet fairlead mine { type mark; }",
        "add table inet fairlead { flags dormant; }",
        "add element inet fairlead cluster-ips-4 { 192.0.2.10 . icmp . 80 }",
    ];
    in_namespace(move |client| {
        for change in changes {
            install(client);
            assert_eq!(differences(client), [], "before {change}");
            nft(change);
            assert_eq!(differences(client).len(), 1, "{change}");
        }
        install(client);
        assert_eq!(differences(client), []);
    });
}

#[test]
fn the_elements_of_a_damaged_table_are_read_for_the_next() {
    in_namespace(|client| {
        install(client);
        nft("flush chain inet fairlead classify");
        nft("add element inet fairlead cluster-ips-4 { 192.0.2.10 . icmp . 80 }");
        let found = ruleset::read(client, &structure()).unwrap();
        let Found::Broken { differences, elements: read } = found else { panic!("{found:?}") };
        assert_eq!(differences.len(), 2, "{differences:?}");
        assert_eq!(read, elements());
    });
}

#[test]
fn a_rule_replaced_under_its_own_comment_is_noticed() {
    in_namespace(|client| {
        install(client);
        let listing = nft_with(&["-a"], "list chain inet fairlead output-first");
        let handle = listing.lines().find(|line| line.contains("fwmark of a NodePort")).unwrap();
        let handle = handle.rsplit(' ').next().unwrap();
        nft(&format!(
            "replace rule inet fairlead output-first handle {handle} meta mark 1 counter comment \"fwmark of a NodePort\""
        ));
        let rule = Difference::Rules { chain: "output-first".into(), rule: "fwmark of a NodePort".into() };
        assert_eq!(differences(client), [rule]);
    });
}

#[test]
fn elements_change_together_or_not_at_all() {
    in_namespace(|client| {
        install(client);
        let present = *elements().first().unwrap();
        let new = Element::ClusterAddress([192, 0, 2, 99].into());
        let absent = Element::ClusterAddress([192, 0, 2, 98].into());
        client.commit(ruleset::change([&present], [&new, &new])).unwrap();
        let mut expected = elements();
        expected.remove(&present);
        expected.insert(new);
        assert_eq!(ruleset::read(client, &structure()).unwrap(), Found::Intact(expected.clone()));

        let error = client.commit(ruleset::change([&absent], [&present])).unwrap_err();
        assert!(error.is_not_found(), "{error}");
        let NftError::Refused { operation, .. } = error else { panic!("{error}") };
        assert_eq!(operation, "delete elements of set cluster-addresses-4");
        assert_eq!(ruleset::read(client, &structure()).unwrap(), Found::Intact(expected));
    });
}

#[test]
fn ranges_of_pods_are_exchanged_in_one_transaction() {
    in_namespace(|client| {
        install(client);
        let [old, wider] = ["10.244.1.0/24", "10.244.0.0/23"].map(|n| Element::LocalPods(n.parse().unwrap()));
        client.commit(ruleset::change([&old], [&wider])).unwrap();
        assert!(nft("list set inet fairlead local-pods-4").contains("10.244.0.0/23, 10.244.2.0/24"));
    });
}

#[test]
fn many_elements_are_written_and_read_while_the_kernel_still_grows_the_set() {
    in_namespace(|client| {
        let address = |n: u32| std::net::Ipv4Addr::from(0x0a60_0000 + n).into();
        let many: BTreeSet<Element> = (0..20_000).map(|n| Element::ClusterAddress(address(n))).collect();
        client.commit(ruleset::install(&structure(), &many)).unwrap();
        assert_eq!(ruleset::read(client, &structure()).unwrap(), Found::Intact(many));
    });
}

#[test]
fn nothing_but_our_table_is_touched() {
    in_namespace(|client| {
        nft(
            "add table inet other; add chain inet other c { type filter hook input priority 0; policy drop; }",
        );
        nft("add rule inet other c meta mark and 0x1000 == 0x1000 counter accept");
        nft("add table ip fairlead; add chain ip fairlead c");
        let others = || nft("list table inet other") + &nft("list table ip fairlead");
        let before = others();
        install(client);
        install(client);
        assert_eq!(others(), before);

        let foreign = client.foreign(&[TABLE]).unwrap();
        let names: Vec<_> = foreign.tables.iter().map(|t| (t.family, t.name.as_str())).collect();
        assert_eq!(names, [(1, "other"), (2, "fairlead")]);
        let [input, _] = &foreign.chains[..] else { panic!("{foreign:?}") };
        let base = input.base.as_ref().unwrap();
        assert_eq!((base.hook, base.priority, base.policy), (Hook::Input, 0, Policy::Drop));
        assert_eq!(input.accepted_marks, [AcceptedMark { mask: 0x1000, value: 0x1000 }]);

        client.commit(ruleset::remove()).unwrap();
        assert_eq!(others(), before);
        assert_eq!(differences(client), [Difference::NoTable]);
        // Removing what is not there is no error.
        client.commit(ruleset::remove()).unwrap();
    });
}

#[test]
fn every_transaction_is_a_new_generation() {
    in_namespace(|client| {
        let before = client.generation().unwrap();
        install(client);
        let after = client.generation().unwrap();
        assert_ne!(before, after);
        assert_eq!(client.generation().unwrap(), after);
        client.commit(ruleset::change([], [])).unwrap();
        assert_eq!(client.generation().unwrap(), after, "an empty change is none");
    });
}
