//! Decides, from what others have in netfilter, whether this node can be ours.
//!
//! Pure: a picture of all tables and chains in, conflicts out. nftables (iptables-nft included) and
//! legacy iptables are two registries of the kernel; a node may use both at once.
//!
//! Approximations, to the side of trying: a firewall is known by a dropping policy or by its name, not by
//! what its rules amount to; an accepting rule counts wherever it stands in its chain.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

pub use crate::nft::{AcceptedMark, Hook};

/// Which registry of the kernel a table is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Registry {
    /// nftables, and so iptables-nft.
    Nftables,
    /// ip_tables and ip6_tables: iptables-legacy.
    Legacy,
}

/// Address family of a table, of those that see packets to Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableFamily {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
}

impl TableFamily {
    /// The family of an `NFPROTO_*` number (`include/uapi/linux/netfilter.h`).
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            10 => Some(Self::Ip6),
            _ => None,
        }
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        })
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableInfo {
    /// Its registry.
    pub registry: Registry,
    /// Its family.
    pub family: TableFamily,
    /// Its name.
    pub name: String,
}

impl fmt::Display for TableInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.registry, self.family) {
            (Registry::Nftables, family) => write!(f, "nftables table {family} {}", self.name),
            (Registry::Legacy, TableFamily::Ip6) => write!(f, "ip6tables-legacy table {}", self.name),
            (Registry::Legacy, _) => write!(f, "iptables-legacy table {}", self.name),
        }
    }
}

impl AcceptedMark {
    /// Whether every packet that has the bits of `mark` set is accepted, whatever its other bits.
    fn covers(self, mark: u32) -> bool {
        self.mask & !mark == 0 && self.value == mark & self.mask
    }
}

/// What a base chain has beside its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Its hook.
    pub hook: Hook,
    /// Its priority: smaller sees packets earlier.
    pub priority: i32,
    /// Its policy is to drop.
    pub drops: bool,
    /// For the input hook: the marks that it accepts.
    pub accepted_marks: Vec<AcceptedMark>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its table.
    pub table: TableInfo,
    /// Its name.
    pub name: String,
    /// Its place, if it is a base chain.
    pub base: Option<BaseChain>,
}

/// Everything that others have in netfilter. Our own table is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Tables.
    pub tables: Vec<TableInfo>,
    /// Chains.
    pub chains: Vec<ChainInfo>,
}

impl Ruleset {
    /// Adds what another registry has.
    pub fn extend(&mut self, other: Self) {
        let Self { tables, chains } = other;
        self.tables.extend(tables);
        self.chains.extend(chains);
    }
}

/// Why a node cannot be ours, or not without being told to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Somebody answers on a port of kube-proxy.
    #[error(
        "another program answers on {address}, a port of kube-proxy ({answer}): stop it, and run `kube-proxy --cleanup` if it was kube-proxy"
    )]
    KubeProxyAnswers {
        /// Where.
        address: SocketAddr,
        /// What it said.
        answer: String,
    },
    /// Rules of kube-proxy are there, whether it runs or not.
    #[error(
        "kube-proxy's rules are on this node ({found}) and would rewrite packets to Services first: stop kube-proxy and run `kube-proxy --cleanup`"
    )]
    KubeProxyRules {
        /// What was found.
        found: String,
    },
    /// A NetworkPolicy engine filters where packets that IPVS takes never pass.
    #[error(
        "{engine} enforces NetworkPolicies where it cannot judge packets that IPVS delivers ({found}), so policies on traffic to Services would not hold: set proxy.ipvs.policyEngine to Ignore, or run with --force, to accept that"
    )]
    PolicyEngine {
        /// Its name.
        engine: &'static str,
        /// What was found.
        found: String,
    },
    /// The host's firewall drops packets to Services when they reach input.
    #[error(
        "the host's firewall drops packets to Services ({found}): {remedy}; make it permanent in the firewall's own configuration"
    )]
    HostFirewall {
        /// What was found.
        found: String,
        /// The rule to add.
        remedy: String,
    },
}

impl Conflict {
    /// One word, of a closed list.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::KubeProxyAnswers { .. } | Self::KubeProxyRules { .. } => "KubeProxyConflict",
            Self::PolicyEngine { .. } => "PolicyEngine",
            Self::HostFirewall { .. } => "HostFirewall",
        }
    }

    /// Whether the user may have the node programmed all the same. Two proxies on one node is no choice.
    pub fn can_be_forced(&self) -> bool {
        !matches!(self, Self::KubeProxyAnswers { .. } | Self::KubeProxyRules { .. })
    }
}

/// The conflicts of a node whose packets to Services carry `mark` (one bit) when they reach input.
pub fn find(ruleset: &Ruleset, mark: u32) -> Vec<Conflict> {
    let mut conflicts: Vec<_> = kube_proxy_rules(ruleset).into_iter().collect();
    conflicts.extend(policy_engines(ruleset));
    conflicts.extend(host_firewalls(ruleset, mark));
    conflicts
}

fn kube_proxy_rules(ruleset: &Ruleset) -> Option<Conflict> {
    // The kubelet makes chains in nat too, but never this one: KUBE-SERVICES is kube-proxy's in the
    // iptables and ipvs modes (pkg/proxy/iptables/proxier.go), table kube-proxy its nftables mode's.
    let mut found: Vec<_> = ruleset
        .chains
        .iter()
        .filter(|chain| chain.table.name == "nat" && chain.name == "KUBE-SERVICES")
        .map(describe)
        .collect();
    let tables = ruleset.tables.iter().filter(|table| table.name == "kube-proxy");
    found.extend(tables.map(ToString::to_string));
    (!found.is_empty()).then(|| Conflict::KubeProxyRules { found: found.join(", ") })
}

/// The engine that a chain belongs to, if it filters where IPVS bypasses or misleads it.
///
/// Antrea (in Open vSwitch) and Cilium (in eBPF) filter at the pod's interface and are not among them.
fn engine(chain: &ChainInfo) -> Option<&'static str> {
    let name = chain.name.as_str();
    let hook = chain.base.as_ref().map(|base| base.hook);
    match chain.table.name.as_str() {
        // felix/rules/rule_defs.go: prefix "cali-"; in nftables mode one table `calico` a family
        "calico" if hook == Some(Hook::Forward) => Some("Calico (Felix)"),
        // kube-network-policies and kindnet: since its pull request 54 the former filters in
        // postrouting because forward misses IPVS; kindnet in prerouting, where a packet still
        // has the address of the Service
        "kube-network-policies" | "kindnet-network-policies"
            if matches!(hook, Some(Hook::Forward | Hook::Prerouting)) =>
        {
            Some("kube-network-policies")
        }
        _ if name == "cali-FORWARD" => Some("Calico (Felix)"),
        // kube-router pkg/controllers/netpol; k3s embeds it
        _ if name == "KUBE-ROUTER-FORWARD" || name.starts_with("KUBE-POD-FW-") => Some("kube-router"),
        // weave npc/constants.go; weaveworks/weave issue 3452 tells of the bypass
        _ if name == "WEAVE-NPC" => Some("Weave Net (weave-npc)"),
        // azure-container-networking npm, jumped to from FORWARD
        _ if name == "AZURE-NPM" => Some("Azure NPM"),
        _ => None,
    }
}

fn policy_engines(ruleset: &Ruleset) -> impl Iterator<Item = Conflict> {
    let mut engines: BTreeMap<&'static str, &ChainInfo> = BTreeMap::new();
    for chain in &ruleset.chains {
        if let Some(engine) = engine(chain) {
            engines.entry(engine).or_insert(chain);
        }
    }
    engines.into_iter().map(|(engine, chain)| Conflict::PolicyEngine { engine, found: describe(chain) })
}

fn host_firewalls(ruleset: &Ruleset, mark: u32) -> Vec<Conflict> {
    /// IPVS takes packets at this priority of input at the latest (`net/netfilter/ipvs/ip_vs_core.c`,
    /// NF_IP_PRI_NAT_SRC - 1): what comes behind sees none of them.
    const IPVS: i32 = 99;
    let blocks = |chain: &&ChainInfo| {
        chain.base.as_ref().is_some_and(|base| {
            let firewall = base.drops || is_firewalld(&chain.table);
            let accepted = base.accepted_marks.iter().any(|accepted| accepted.covers(mark));
            base.hook == Hook::Input && base.priority <= IPVS && firewall && !accepted
        })
    };
    let conflict = |chain: &ChainInfo| {
        let policy = if is_firewalld(&chain.table) { "firewalld" } else { "policy drop" };
        Conflict::HostFirewall {
            found: format!("{}, {policy}", describe(chain)),
            remedy: remedy(chain, mark),
        }
    };
    ruleset.chains.iter().filter(blocks).map(conflict).collect()
}

/// firewalld's chains accept by policy and reject in their last rule.
fn is_firewalld(table: &TableInfo) -> bool {
    table.registry == Registry::Nftables && table.name == "firewalld"
}

fn remedy(chain: &ChainInfo, mark: u32) -> String {
    let ChainInfo { table, name, .. } = chain;
    let rule = match (table.registry, table.family) {
        (Registry::Legacy, TableFamily::Ip6) => {
            format!("`ip6tables-legacy -I {name} -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT`")
        }
        (Registry::Legacy, _) => {
            format!("`iptables-legacy -I {name} -m mark --mark {mark:#x}/{mark:#x} -j ACCEPT`")
        }
        (Registry::Nftables, family) => format!(
            "`nft insert rule {family} {} {name} meta mark and {mark:#x} == {mark:#x} accept`",
            table.name
        ),
    };
    if is_firewalld(table) {
        // Since firewalld 2.1 (firewalld.conf: NftablesTableOwner) nobody else may add rules to it.
        return format!(
            "set NftablesTableOwner=no in /etc/firewalld/firewalld.conf where firewalld has that setting, restart it, and add {rule} after each of its reloads"
        );
    }
    format!("add {rule}")
}

fn describe(chain: &ChainInfo) -> String {
    format!("chain {} of {}", chain.name, chain.table)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MARK: u32 = 0x1000;

    fn chain(registry: Registry, family: TableFamily, table: &str, name: &str) -> ChainInfo {
        let table = TableInfo { registry, family, name: table.into() };
        ChainInfo { table, name: name.into(), base: None }
    }

    fn nft(family: TableFamily, table: &str, name: &str) -> ChainInfo {
        chain(Registry::Nftables, family, table, name)
    }

    fn based(mut chain: ChainInfo, hook: Hook, priority: i32, drops: bool) -> ChainInfo {
        chain.base = Some(BaseChain { hook, priority, drops, accepted_marks: Vec::new() });
        chain
    }

    fn accepting(mut chain: ChainInfo, mask: u32, value: u32) -> ChainInfo {
        chain.base.as_mut().unwrap().accepted_marks.push(AcceptedMark { mask, value });
        chain
    }

    fn conflicts(chains: impl IntoIterator<Item = ChainInfo>) -> Vec<Conflict> {
        let chains: Vec<_> = chains.into_iter().collect();
        let tables = chains.iter().map(|chain| chain.table.clone()).collect();
        find(&Ruleset { tables, chains }, MARK)
    }

    #[test]
    fn an_ordinary_node_has_no_conflict() {
        let found = conflicts([
            nft(TableFamily::Ip, "nat", "DOCKER"),
            nft(TableFamily::Ip, "mangle", "KUBE-IPTABLES-HINT"),
            nft(TableFamily::Ip, "filter", "KUBE-FIREWALL"),
            based(nft(TableFamily::Ip, "filter", "FORWARD"), Hook::Forward, 0, true),
            based(nft(TableFamily::Inet, "filter", "input"), Hook::Input, 0, false),
        ]);
        assert_eq!(found, []);
    }

    #[test]
    fn rules_of_kube_proxy_in_any_mode_and_registry_are_one_conflict_that_cannot_be_forced() {
        let found = conflicts([
            nft(TableFamily::Ip, "nat", "KUBE-SERVICES"),
            chain(Registry::Legacy, TableFamily::Ip6, "nat", "KUBE-SERVICES"),
            nft(TableFamily::Ip6, "kube-proxy", "services"),
            // what kube-proxy leaves in filter decides nothing
            nft(TableFamily::Ip, "filter", "KUBE-SERVICES"),
        ]);
        let found_text = "chain KUBE-SERVICES of nftables table ip nat, \
             chain KUBE-SERVICES of ip6tables-legacy table nat, nftables table ip6 kube-proxy";
        assert_eq!(found, [Conflict::KubeProxyRules { found: found_text.into() }]);
        assert_eq!(found[0].reason(), "KubeProxyConflict");
        assert!(!found[0].can_be_forced());
        assert!(found[0].to_string().contains("run `kube-proxy --cleanup`"));
    }

    #[rstest]
    #[case(nft(TableFamily::Ip, "filter", "cali-FORWARD"), "Calico (Felix)")]
    #[case(chain(Registry::Legacy, TableFamily::Ip6, "filter", "cali-FORWARD"), "Calico (Felix)")]
    #[case(
        based(nft(TableFamily::Ip, "calico", "filter-FORWARD"), Hook::Forward, 0, false),
        "Calico (Felix)"
    )]
    #[case(nft(TableFamily::Ip, "filter", "KUBE-ROUTER-FORWARD"), "kube-router")]
    #[case(nft(TableFamily::Ip, "filter", "KUBE-POD-FW-4NQZ5MN5URT3RHBX"), "kube-router")]
    #[case(nft(TableFamily::Ip, "filter", "WEAVE-NPC"), "Weave Net (weave-npc)")]
    #[case(nft(TableFamily::Ip, "filter", "AZURE-NPM"), "Azure NPM")]
    #[case(
        based(nft(TableFamily::Inet, "kindnet-network-policies", "prerouting"), Hook::Prerouting, -95, false),
        "kube-network-policies"
    )]
    fn an_engine_that_ipvs_bypasses_is_known_by_its_chains(#[case] chain: ChainInfo, #[case] name: &str) {
        let found = conflicts([chain.clone(), chain]);
        assert!(
            matches!(&found[..], [Conflict::PolicyEngine { engine, .. }] if *engine == name),
            "{found:?}"
        );
        assert_eq!(found[0].reason(), "PolicyEngine");
        assert!(found[0].can_be_forced());
    }

    #[test]
    fn an_engine_that_filters_behind_ipvs_is_no_conflict() {
        let chain = nft(TableFamily::Inet, "kube-network-policies", "postrouting");
        assert_eq!(conflicts([based(chain, Hook::Postrouting, 95, false)]), []);
    }

    #[rstest]
    #[case(
        nft(TableFamily::Inet, "filter", "input"),
        "add `nft insert rule inet filter input meta mark and 0x1000 == 0x1000 accept`"
    )]
    #[case(
        chain(Registry::Legacy, TableFamily::Ip, "filter", "INPUT"),
        "add `iptables-legacy -I INPUT -m mark --mark 0x1000/0x1000 -j ACCEPT`"
    )]
    #[case(
        chain(Registry::Legacy, TableFamily::Ip6, "filter", "INPUT"),
        "add `ip6tables-legacy -I INPUT -m mark --mark 0x1000/0x1000 -j ACCEPT`"
    )]
    fn a_firewall_that_drops_is_answered_with_the_rule_to_add(#[case] chain: ChainInfo, #[case] rule: &str) {
        let found = conflicts([based(chain, Hook::Input, 0, true)]);
        assert!(matches!(&found[..], [Conflict::HostFirewall { remedy, .. }] if remedy == rule), "{found:?}");
        assert_eq!(found[0].reason(), "HostFirewall");
        assert!(found[0].can_be_forced());
    }

    #[rstest]
    #[case::our_bit(MARK, MARK, true)]
    #[case::everything(0, 0, true)]
    // the other bits of a packet's mark belong to others: a comparison that includes them may fail
    #[case::the_whole_mark(u32::MAX, MARK, false)]
    #[case::two_bits(0x3000, MARK, false)]
    #[case::another_bit(0x2000, 0x2000, false)]
    #[case::our_bit_unset(MARK, 0, false)]
    fn a_firewall_that_lets_our_bit_in_is_fine(#[case] mask: u32, #[case] value: u32, #[case] fine: bool) {
        let chain = based(nft(TableFamily::Inet, "filter", "input"), Hook::Input, 0, true);
        assert_eq!(conflicts([accepting(chain, mask, value)]).is_empty(), fine);
    }

    #[test]
    fn each_dropping_chain_must_let_our_bit_in() {
        let v4 = based(nft(TableFamily::Ip, "filter", "INPUT"), Hook::Input, 0, true);
        let v6 = based(nft(TableFamily::Ip6, "filter", "INPUT"), Hook::Input, 0, true);
        assert_eq!(conflicts([accepting(v4, MARK, MARK), v6]).len(), 1);
    }

    #[test]
    fn a_chain_behind_ipvs_sees_none_of_its_packets() {
        let behind = |priority| based(nft(TableFamily::Inet, "late", "input"), Hook::Input, priority, true);
        assert_eq!(conflicts([behind(100)]), []);
        assert_eq!(conflicts([behind(99)]).len(), 1);
    }

    #[test]
    fn firewalld_rejects_although_its_policy_accepts() {
        let chain = nft(TableFamily::Inet, "firewalld", "filter_INPUT");
        let found = conflicts([based(chain.clone(), Hook::Input, 10, false)]);
        let text = found[0].to_string();
        assert!(text.contains("NftablesTableOwner=no"), "{text}");
        assert!(text.contains("nft insert rule inet firewalld filter_INPUT"), "{text}");
        let accepted = accepting(based(chain, Hook::Input, 10, false), MARK, MARK);
        assert_eq!(conflicts([accepted]), []);
    }

    #[test]
    fn families_have_the_kernels_numbers() {
        let families = [1, 2, 10, 7].map(TableFamily::from_number);
        assert_eq!(families, [Some(TableFamily::Inet), Some(TableFamily::Ip), Some(TableFamily::Ip6), None]);
    }
}
