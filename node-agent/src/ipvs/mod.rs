//! IPVS: virtual servers and their real servers, over generic netlink.
//!
//! ```text
//! IpvsOp -> codec -> client (netlink) -> kernel -> client -> codec -> VirtualServer, RealServer
//! ```
//!
//! Owns the bytes and the socket. Decides nothing: which virtual servers there should be, and which
//! are ours, is the business of the dataplane. Destinations are always reached by masquerading.

mod client;
mod codec;

use std::{fmt, net::SocketAddr};

use fairlead_crds::Scheduler;

use crate::{
    model::{Family, Protocol},
    netlink::KernelError,
};

pub use client::Client;

/// What the kernel finds a virtual server by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VirtualServerKey {
    /// Packets to an address and port.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// Address and port.
        address: SocketAddr,
    },
    /// Packets of a family with a firewall mark, whatever their protocol and port.
    Fwmark {
        /// IP family.
        family: Family,
        /// The whole mark.
        mark: u32,
    },
}

impl VirtualServerKey {
    /// IP family of its clients.
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(address.ip()),
            Self::Fwmark { family, .. } => *family,
        }
    }
}

impl fmt::Display for VirtualServerKey {
    /// As `ipvsadm -Ln` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, address } => write!(f, "{protocol} {address}"),
            Self::Fwmark { family: Family::V4, mark } => write!(f, "FWM {mark}"),
            Self::Fwmark { family: Family::V6, mark } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// A virtual server as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// What it is found by.
    pub key: VirtualServerKey,
    /// Name of its scheduler; servers of others may use one that we do not know.
    pub scheduler: String,
    /// `IP_VS_SVC_F_*` but for `HASHED`, which the kernel sets on all of them.
    pub flags: u32,
    /// Seconds that a client stays with its real server, where the persistent flag is set.
    pub timeout: u32,
    /// Which clients persistence counts as one: IPv4 mask (as stored in the packet) or IPv6 prefix
    /// length.
    pub netmask: u32,
}

impl VirtualServer {
    /// True when it is set as our operations set it: by a scheduler without options, and without
    /// persistence.
    pub fn is_plain(&self) -> bool {
        self.flags == 0 && self.timeout == 0 && self.netmask == codec::host_mask(self.key.family())
    }
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Destination NAT, the only method of ours.
    Masquerade,
    /// Another method of the kernel (`IP_VS_CONN_F_FWD_MASK`): local node, tunnel, direct routing.
    Other(u32),
}

/// A real server (destination) of a virtual server as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Address and port.
    pub address: SocketAddr,
    /// Weight; 0 takes no new connections.
    pub weight: u32,
    /// How packets reach it.
    pub forward: Forward,
    /// Established connections.
    pub active_connections: u32,
    /// Connections that begin or end, and those of UDP.
    pub inactive_connections: u32,
    /// Clients bound to it by persistence.
    pub persistent_connections: u32,
}

/// Counters since a virtual server was made.
///
/// The kernel brings them up to date every two seconds, and before Linux 6.2 not at all while
/// `net.ipv4.vs.run_estimation` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

impl Stats {
    /// The sum of the counters of two virtual servers.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            packets_in: self.packets_in + other.packets_in,
            packets_out: self.packets_out + other.packets_out,
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
        }
    }
}

/// How long a silent connection is remembered, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// What the kernel's IPVS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major, minor, patch; 1.2.1 for as long as most can remember.
    pub version: [u8; 3],
    /// Buckets of the connection table, fixed when the module is loaded.
    pub connection_table_size: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.version;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// A change of the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvsOp {
    /// Makes a virtual server, without persistence. EEXIST when it is there.
    AddService {
        /// What it is found by.
        key: VirtualServerKey,
        /// How it picks a real server.
        scheduler: Scheduler,
    },
    /// Sets the scheduler in place and takes persistence away. Connections, real servers and
    /// counters stay.
    SetService {
        /// What it is found by.
        key: VirtualServerKey,
        /// How it picks a real server.
        scheduler: Scheduler,
    },
    /// Removes a virtual server with its real servers.
    DelService {
        /// What it is found by.
        key: VirtualServerKey,
    },
    /// Gives a virtual server a real server. EEXIST when it is there.
    AddDest {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        address: SocketAddr,
        /// Its weight.
        weight: u32,
    },
    /// Sets the weight of a real server in place, and its method to masquerading.
    SetDest {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        address: SocketAddr,
        /// Its weight.
        weight: u32,
    },
    /// Takes a real server away.
    DelDest {
        /// The virtual server.
        key: VirtualServerKey,
        /// The real server.
        address: SocketAddr,
    },
}

impl IpvsOp {
    /// The virtual server that it changes.
    pub fn key(&self) -> &VirtualServerKey {
        match self {
            Self::AddService { key, .. }
            | Self::SetService { key, .. }
            | Self::DelService { key }
            | Self::AddDest { key, .. }
            | Self::SetDest { key, .. }
            | Self::DelDest { key, .. } => key,
        }
    }
}

impl fmt::Display for IpvsOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService { key, scheduler } => write!(f, "add virtual server {key} {scheduler}"),
            Self::SetService { key, scheduler } => write!(f, "set virtual server {key} to {scheduler}"),
            Self::DelService { key } => write!(f, "delete virtual server {key}"),
            Self::AddDest { key, address, weight } => {
                write!(f, "add real server {address} weight {weight} to {key}")
            }
            Self::SetDest { key, address, weight } => {
                write!(f, "set real server {address} of {key} to weight {weight}")
            }
            Self::DelDest { key, address } => write!(f, "delete real server {address} of {key}"),
        }
    }
}

/// True when a removal, or a change in place, failed since its object is not there: ESRCH stands
/// for the virtual server, ENOENT for the real server (`ip_vs_genl_set_cmd`).
pub fn is_gone(error: &KernelError) -> bool {
    matches!(error.errno, libc::ESRCH | libc::ENOENT)
}

/// True when an addition failed since its object is there already.
pub fn is_present(error: &KernelError) -> bool {
    error.errno == libc::EEXIST
}
