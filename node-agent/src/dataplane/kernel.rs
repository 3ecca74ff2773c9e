//! The boundary to the kernel: all that the reconciler asks of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::ruleset::{Element, PolicyBit};
use crate::{
    ipvs::{IpvsOp, VirtualServerKey},
    netlink::{KernelError, NetlinkError},
};

/// Reading or changing the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelFailure {
    /// IPVS.
    #[error("failed to {action} in IPVS")]
    Ipvs {
        /// What was attempted.
        action: &'static str,
        /// Cause.
        source: NetlinkError,
    },
    /// The nftables table.
    #[error("failed to {action} in nftables")]
    Nft {
        /// What was attempted.
        action: &'static str,
        /// Cause.
        source: crate::nft::NftError,
    },
    /// Rules and routes.
    #[error("failed to {action} of policy routing")]
    Routes {
        /// What was attempted.
        action: &'static str,
        /// Cause.
        source: crate::policy_route::PolicyRouteError,
    },
    /// A setting of the kernel.
    #[error("{0}")]
    Setting(String),
}

impl KernelFailure {
    /// The failure with its causes, in one line.
    pub fn chain(&self) -> String {
        crate::error::chain(self)
    }

    /// Label of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Ipvs { .. } => "ipvs",
            Self::Nft { .. } => "nftables",
            Self::Routes { .. } => "routes",
            Self::Setting(_) => "settings",
        }
    }
}

/// What does not depend on any one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The policy bit of the mark.
    pub bit: PolicyBit,
    /// The host speaks IPv6; without it IPv6 frontends are left out.
    pub ipv6: bool,
    /// IPVS timeouts in seconds: TCP, TCP after FIN, UDP.
    pub timeouts: (u32, u32, u32),
    /// Addresses at which node ports answer.
    pub node_addresses: Vec<IpAddr>,
    /// Pods of this node: their connections to cluster IPs keep their source.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of cluster IPs, reachable also without a default route.
    pub service_cidrs: Vec<IpNet>,
}

impl Base {
    /// Elements of our table that belong to the node itself.
    pub fn elements(&self) -> Vec<Element> {
        let addresses = self.node_addresses.iter().map(|address| Element::NodeAddress(*address));
        // The kernel refuses ranges that overlap.
        addresses.chain(IpNet::aggregate(&self.pod_cidrs).into_iter().map(Element::LocalPods)).collect()
    }
}

/// A virtual server that was found in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundServer {
    /// Its key.
    pub key: VirtualServerKey,
    /// Its scheduler.
    pub scheduler: String,
    /// Its real servers with their weights.
    pub backends: Vec<(SocketAddr, u32)>,
}

impl std::fmt::Display for FoundServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.key, self.scheduler)?;
        for (address, weight) in &self.backends {
            write!(f, " {address} weight {weight}")?;
        }
        Ok(())
    }
}

/// What was read from the kernel.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// All virtual servers, foreign ones too.
    pub servers: Vec<FoundServer>,
    /// Elements of our table.
    pub elements: BTreeSet<Element>,
}

/// The kernel, or a test's stand-in for one error path.
pub trait Kernel {
    /// Sees to settings, policy routes and our table (with `elements` if it must be made anew).
    /// Returns what had to be mended, one word each.
    fn ensure_base(
        &mut self,
        base: &Base,
        elements: &BTreeSet<Element>,
    ) -> Result<Vec<&'static str>, KernelFailure>;

    /// Sees to policy routes alone; true when something had to be changed.
    fn ensure_routes(&mut self, base: &Base) -> Result<bool, KernelFailure>;

    /// Removes our policy routes and our table.
    fn remove_base(&mut self) -> Result<(), KernelFailure>;

    /// Reads what is there.
    fn read(&mut self) -> Result<Found, KernelFailure>;

    /// Carries out operations in order, with a verdict each.
    fn change_servers(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, KernelFailure>;

    /// Removes and adds set elements, all or none.
    fn change_elements(&mut self, remove: &[Element], add: &[Element]) -> Result<(), KernelFailure>;

    /// Connections (active and inactive) of each real server of a virtual server.
    fn connections(&mut self, key: &VirtualServerKey) -> Result<Vec<(SocketAddr, u64)>, KernelFailure>;
}
