//! The chains of the table and their rules: a fixed number, whatever Services there are.
//!
//! README.md of the dataplane says why each hook and priority is what it is.

use super::{mark::PolicyBit, sets::SetName, structure::Parameters};
use crate::{
    model::{Family, Protocol},
    nft::{Base, CT_KNOWN, CT_NEW, Chain, Field, Hook, Policy, Rule},
};

/// Number of the connection label that says "IPVS carries this".
pub const LABEL_CARRIED: u8 = 101;
/// Number of the connection label that says "masquerade this".
pub const LABEL_MASQUERADE: u8 = 102;

const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const REJECT_UNSERVED: &str = "reject-unserved";
const REFUSE: &str = "refuse";
const UNTAKEN: &str = "untaken";

/// All chains with their rules, in the order in which they are made.
pub(super) fn chains(parameters: Parameters) -> Vec<(Chain, Vec<Rule>)> {
    let bit = parameters.bit;
    let base = |name: &str, hook, priority, rules| (base_chain(name, "filter", hook, priority), rules);
    let jump = || Rule::new("only new connections are rejected").ct_state(CT_NEW).jump(REJECT_UNSERVED);
    let ours = || Rule::new("marked for IPVS").mark_has(bit.mask()).accept();
    vec![
        (Chain { name: REFUSE.to_owned(), base: None }, refuse()),
        (Chain { name: REJECT_UNSERVED.to_owned(), base: None }, reject_unserved()),
        (Chain { name: UNTAKEN.to_owned(), base: None }, untaken(bit)),
        base("classify", Hook::Prerouting, -150, classify(bit)),
        base("input-reject", Hook::Input, -110, vec![ours(), jump()]),
        base("forward-reject", Hook::Forward, -110, vec![jump()]),
        base("output-reject", Hook::Output, -110, vec![jump()]),
        base("input-before-ipvs", Hook::Input, 97, input_before_ipvs(parameters)),
        base("input-after-ipvs", Hook::Input, 102, input_after_ipvs(bit)),
        base("output-first", Hook::Output, -400, clear_mark(bit)),
        base("output-before-ipvs", Hook::Output, -99, output_before_ipvs(parameters)),
        base("output-after-ipvs", Hook::Output, -90, output_after_ipvs(bit)),
        (base_chain("output-local-backend", "route", Hook::Output, -89), output_local_backend(bit)),
        base("forward-mss", Hook::Forward, 50, forward_mss()),
        (base_chain("postrouting", "nat", Hook::Postrouting, 100), masquerade()),
    ]
}

fn base_chain(name: &str, kind: &str, hook: Hook, priority: i32) -> Chain {
    let base = Base { kind: kind.to_owned(), hook, priority, policy: Policy::Accept };
    Chain { name: name.to_owned(), base: Some(base) }
}

fn frontend(family: Family) -> [Field; 3] {
    [Field::Destination(family), Field::Protocol, Field::DestinationPort]
}

const PORT: [Field; 2] = [Field::Protocol, Field::DestinationPort];

/// New packets of Services get the policy bit, known connections without another look.
fn classify(bit: PolicyBit) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new("answers belong to a connection of somebody").ct_reply().accept(),
        Rule::new("carried by NAT of netfilter").ct_translated().accept(),
        Rule::new("carried by IPVS: stays there")
            .ct_state(CT_KNOWN)
            .ct_label(LABEL_CARRIED)
            .add_mark(bit.mask())
            .accept(),
    ];
    for family in Family::ALL {
        for (set, what) in [
            (SetName::ClusterIps(family), "ClusterIP"),
            (SetName::ExternalIps(family), "externalIP or LoadBalancer IP"),
        ] {
            let rule = Rule::new(what).family(family).found_in(&frontend(family), set.to_string());
            rules.push(rule.add_mark(bit.mask()).accept());
        }
        let rule = to_node_port(Rule::new("NodePort").family(family), family, SetName::NodePorts(family));
        rules.push(rule.add_mark(bit.mask()).accept());
    }
    rules
}

fn to_node_port(rule: Rule, family: Family, ports: SetName) -> Rule {
    rule.found_in(&[Field::Destination(family)], SetName::NodeAddresses(family).to_string())
        .found_in(&PORT, ports.to_string())
}

/// IPVS forgets the conntrack entry together with its own (`ip_vs_conn_drop_conntrack`): when the
/// last backend goes for good, packets of its connections look new, and TCP would take no notice of
/// an ICMP error in the middle of a connection.
fn refuse() -> Vec<Rule> {
    vec![
        Rule::new("of a connection that was").tcp_flags_lack(TCP_SYN).counter().reset(),
        Rule::new("nobody serves this").counter().reject(),
    ]
}

/// Frontends that nobody serves answer at once.
fn reject_unserved() -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let rule = |comment: &str| Rule::new(comment).family(family);
        let none = SetName::NoEndpoints(family).to_string();
        rules.push(rule("no endpoints").found_in(&frontend(family), none).jump(REFUSE));
        let none = SetName::NoEndpointNodePorts(family);
        rules.push(to_node_port(rule("NodePort without endpoints"), family, none).jump(REFUSE));
        rules.push(
            rule("no port of this ClusterIP")
                .found_in(&[Field::Destination(family)], SetName::ClusterAddresses(family).to_string())
                .not_in(&frontend(family), SetName::ClusterIps(family).to_string())
                .jump(REFUSE),
        );
    }
    rules
}

/// Packets of others that IPVS is about to see.
fn input_before_ipvs(parameters: Parameters) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new("not for IPVS").mark_lacks(parameters.bit.mask()).accept(),
        Rule::new("known from now on").add_ct_label(LABEL_CARRIED),
    ];
    rules.extend(before_ipvs(parameters));
    rules
}

/// Decides whether the connection is masqueraded, while its destination is still the frontend, and
/// keys the virtual servers of NodePorts. IPVS looks for a fwmark first: an external IP that the
/// node itself has keeps its key of address and port.
fn before_ipvs(parameters: Parameters) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        let rule = |comment: &str| Rule::new(comment).family(family);
        if parameters.knows_local_pods(family) {
            rules.push(
                Rule::new("to a ClusterIP, not from a pod of this node")
                    .ct_state(CT_NEW)
                    .family(family)
                    .not_in(&[Field::Source(family)], SetName::LocalPods(family).to_string())
                    .found_in(&frontend(family), SetName::ClusterIps(family).to_string())
                    .add_ct_label(LABEL_MASQUERADE)
                    .accept(),
            );
        }
        rules.push(
            rule("keyed by address")
                .found_in(&frontend(family), SetName::ExternalIps(family).to_string())
                .add_ct_label(LABEL_MASQUERADE)
                .accept(),
        );
        rules.push(
            to_node_port(rule("NodePort: keyed by fwmark"), family, SetName::NodePorts(family))
                .add_ct_label(LABEL_MASQUERADE)
                .write_mark_from(&PORT, SetName::NodePortMarks.to_string()),
        );
    }
    rules
}

/// What this node itself sends.
fn output_before_ipvs(parameters: Parameters) -> Vec<Rule> {
    let mut rules = vec![Rule::new("answers belong to a connection of somebody").ct_reply().accept()];
    rules.extend(before_ipvs(parameters));
    rules
}

/// An answer to packets that IPVS should have taken: nobody else can give one.
fn untaken(bit: PolicyBit) -> Vec<Rule> {
    let rule = |protocol: Protocol| Rule::new("no backend took it").protocol(protocol.number()).counter();
    vec![
        Rule::new("with fwmark_reflect the answer copies the mark")
            .mark_has(bit.mask())
            .clear_mark(bit.mask()),
        rule(Protocol::Tcp).reset(),
        rule(Protocol::Udp).discard(),
        rule(Protocol::Sctp).discard(),
    ]
}

/// Packets that IPVS did not take, and those it handed to this node itself.
fn input_after_ipvs(bit: PolicyBit) -> Vec<Rule> {
    let mut rules =
        vec![Rule::new("not taken by IPVS").mark_has(bit.mask()).to_foreign_address().jump(UNTAKEN)];
    rules.extend(clear_mark(bit));
    rules
}

/// The same for what this node itself sends. What IPVS took has another destination by now, so that
/// no mark is needed to tell.
fn output_after_ipvs(bit: PolicyBit) -> Vec<Rule> {
    let of = |family| {
        let rule = || Rule::new("not taken by IPVS").family(family);
        let frontends = |set: SetName| rule().found_in(&frontend(family), set.to_string());
        let cluster = SetName::ClusterAddresses(family).to_string();
        [
            rule().found_in(&[Field::Destination(family)], cluster),
            frontends(SetName::ExternalIps(family)),
            frontends(SetName::NoEndpoints(family)),
        ]
        .map(|rule| rule.to_foreign_address().jump(UNTAKEN))
    };
    let mut rules = vec![clear_id(bit)];
    rules.extend(Family::ALL.into_iter().flat_map(of));
    rules
}

/// IPVS leaves the route alone when a backend is on this node itself, and the packet would go out
/// to the wire with the node's own address (`__ip_vs_get_out_rt`: "preserve old route"). A chain of
/// type route looks for a route again when the mark has changed; it is cleared in input.
fn output_local_backend(bit: PolicyBit) -> Vec<Rule> {
    vec![Rule::new("backend on this node").routed_out().to_own_address().add_mark(bit.mask())]
}

fn clear_id(bit: PolicyBit) -> Rule {
    Rule::new("fwmark of a NodePort").mark_is(bit.id_mask(), bit.id_value()).write_mark(0)
}

fn clear_mark(bit: PolicyBit) -> Vec<Rule> {
    vec![clear_id(bit), Rule::new("bits of others stay").mark_has(bit.mask()).clear_mark(bit.mask())]
}

/// Only the MSS tells both ends of a smaller MTU: the kernel cannot answer for a virtual IPv4 address.
fn forward_mss() -> Vec<Rule> {
    vec![Rule::new("fits both routes").ct_label(LABEL_CARRIED).tcp_flags(TCP_SYN | TCP_RST).clamp_mss()]
}

/// Where the answer would miss this node, or the client would not know it for its own.
fn masquerade() -> Vec<Rule> {
    let hairpin = |family| {
        let both = [Field::Source(family), Field::Destination(family)];
        let rule = Rule::new("back to its client").family(family);
        rule.found_in(&both, SetName::Hairpin(family).to_string()).masquerade()
    };
    let mut rules: Vec<Rule> = Family::ALL.map(hairpin).into();
    // To a backend on this node itself the answer finds its way, and a client of this node would
    // lose it (6.1: masqueraded packets of the node over lo time out behind a virtual IP).
    rules.push(Rule::new("from elsewhere").ct_label(LABEL_MASQUERADE).to_foreign_address().masquerade());
    rules
}
