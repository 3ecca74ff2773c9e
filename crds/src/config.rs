//! What a revision holds: every value decided, nothing left to a default.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything a node agent is configured by. Unknown fields are refused: an agent that is older
/// than its config keeps the last one it understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeAgentConfig {
    /// How Services are programmed.
    pub proxy: ProxyConfig,
}

/// The service proxy of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyConfig {
    /// The dataplane that carries Services.
    pub mode: ProxyMode,
    /// Number of the packet mark bit that says "deliver to IPVS", 0 to 23.
    #[schemars(with = "i32")]
    pub mark_bit: u8,
    /// Settings of the IPVS dataplane.
    pub ipvs: IpvsConfig,
}

/// Settings of the IPVS dataplane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpvsConfig {
    /// Scheduler of virtual servers whose Service names none.
    pub scheduler: Scheduler,
    /// Connection timeouts of the kernel, one set for the whole network namespace.
    pub timeouts: IpvsTimeouts,
    /// How long a removed TCP backend keeps its connections, counted from the moment its endpoint
    /// has left every EndpointSlice.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
    /// What to do where a NetworkPolicy engine filters in the forward path, which IPVS bypasses.
    pub policy_engine: PolicyEngine,
}

/// IPVS connection timeouts (`ipvsadm --set`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpvsTimeouts {
    /// Idle time of an established TCP connection.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub tcp: Duration,
    /// Time after a FIN.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub tcp_fin: Duration,
    /// Idle time of a UDP flow.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub udp: Duration,
}

// The enums below have no description in the schema: it would hide that of the field they stand in,
// which is what `kubectl explain` is asked for.

/// The dataplane that carries Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum ProxyMode {
    /// Virtual servers of the kernel's IPVS, classified by nftables.
    IPVS,
    /// Fairlead programs no Service: another proxy does.
    None,
}

/// What to do about a NetworkPolicy engine that IPVS would bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum PolicyEngine {
    /// Leave the node alone and say why.
    Refuse,
    /// Program it all the same: policies on traffic to Services do not hold.
    Ignore,
}

/// The schedulers of the kernel, by the kernel's names (`net/netfilter/ipvs/ip_vs_*.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(description = "")]
pub enum Scheduler {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Locality-based least connections.
    Lblc,
    /// Locality-based least connections with replication.
    Lblcr,
    /// Destination hashing.
    Dh,
    /// Source hashing.
    Sh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Weighted failover.
    Fo,
    /// Weighted overflow.
    Ovf,
    /// Maglev hashing.
    Mh,
}

impl Scheduler {
    /// All of them, in the order of the kernel's documentation.
    pub const ALL: [Self; 13] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Lblc,
        Self::Lblcr,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Mh,
    ];

    /// The kernel's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Dh => "dh",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Mh => "mh",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that no scheduler of the kernel has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown IPVS scheduler {0:?}: use one of rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh")]
pub struct UnknownScheduler(pub String);

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|s| s.as_str() == name).ok_or_else(|| UnknownScheduler(name.to_owned()))
    }
}

impl Default for NodeAgentConfig {
    /// The rendering of `spec: {}`.
    fn default() -> Self {
        Self {
            proxy: ProxyConfig {
                mode: ProxyMode::IPVS,
                mark_bit: 12,
                ipvs: IpvsConfig {
                    scheduler: Scheduler::Rr,
                    timeouts: IpvsTimeouts {
                        tcp: Duration::from_secs(24 * 3600),
                        tcp_fin: Duration::from_secs(120),
                        udp: Duration::from_secs(300),
                    },
                    drain_timeout: Duration::from_secs(60),
                    policy_engine: PolicyEngine::Refuse,
                },
            },
        }
    }
}
