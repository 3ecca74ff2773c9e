//! Policy routing: what brings packets for a service to this node's input hook, where IPVS is.
//!
//! ```text
//! 0      lookup local                  the kernel's
//! 98     iif lo fwmark BIT lookup main reverse-path lookups of marked packets see the real routes
//! 99     fwmark BIT lookup 26220       local default dev lo: delivered here, whatever the address
//! 32766  lookup main                   the kernel's
//! 32800  lookup 26221                  <service CIDR> dev lo: without a default route, the node's
//!                                      own clients need some route before their packet is marked
//! ```
//!
//! Owns the rules and routes with our protocol number, both families, and touches no other. Reads
//! the node's addresses besides. Sets no mark: that is nftables' part.

mod codec;
mod plan;

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU32};

use ipnet::IpNet;

use crate::{
    model::Family,
    netlink::{KernelError, NetlinkError, Requests, Socket},
};

pub use plan::plan;

/// Protocol number (`rtm_protocol`, `FRA_PROTOCOL`) of all rules and routes of ours: one that
/// neither the kernel nor iproute2's `rt_protos` names.
pub const PROTOCOL: u8 = 108;
/// Table of `local default dev lo`, beyond those that other agents are known to use.
pub const MARKED_TABLE: u32 = 26220;
/// Table of the service CIDRs.
pub const SERVICE_TABLE: u32 = 26221;
/// Preference of the rule that keeps reverse-path lookups off `MARKED_TABLE`; before its rule.
pub const REVERSE_PATH_PRIORITY: u32 = 98;
/// Preference of the rule to `MARKED_TABLE`: behind `local` (0), before `main` (32766).
pub const MARKED_PRIORITY: u32 = 99;
/// Preference of the rule to `SERVICE_TABLE`: behind `main` and `default` (32767).
pub const SERVICE_PRIORITY: u32 = 32800;

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;
const LOOPBACK: &str = "lo";
/// The same in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;

/// What should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredRoutes {
    /// The bit of the mark that says "for a service". Not zero: that rule would take all packets.
    pub mark_bit: NonZeroU32,
    /// Service CIDRs of both families.
    pub service_cidrs: Vec<IpNet>,
    /// Whether services of this cluster have IPv6 addresses.
    pub ipv6: bool,
}

/// What there is of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRoutes {
    /// Rules with our protocol number.
    pub rules: Vec<Rule>,
    /// Routes with our protocol number.
    pub routes: Vec<Route>,
    /// Families that this kernel has policy routing for.
    pub families: Vec<Family>,
}

/// A rule of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// IP family.
    pub family: Family,
    /// Preference: lower ones come first.
    pub priority: u32,
    /// Mark and mask that packets must match.
    pub mark: Option<(u32, u32)>,
    /// Interface that packets must come from.
    pub incoming: Option<String>,
    /// Table that is looked up.
    pub table: u32,
    /// Has a selector or action that we never write.
    pub altered: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}:", self.family, self.priority)?;
        if let Some(incoming) = &self.incoming {
            write!(f, " iif {incoming}")?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

/// Kind of a route of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Packets are delivered on this node.
    Local,
    /// Packets leave through the interface.
    Unicast,
    /// One that we never write (`RTN_*`, or unicast through a gateway).
    Other(u8),
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Table it is in.
    pub table: u32,
    /// What it does.
    pub kind: RouteKind,
    /// Index of its interface.
    pub interface: Option<u32>,
}

impl Route {
    /// IP family.
    pub fn family(&self) -> Family {
        Family::of(self.destination.addr())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Local => write!(f, "route local {}", self.destination)?,
            RouteKind::Unicast => write!(f, "route {}", self.destination)?,
            RouteKind::Other(kind) => write!(f, "route of type {kind} {}", self.destination)?,
        }
        match self.interface {
            Some(LOOPBACK_INDEX) => write!(f, " dev {LOOPBACK}")?,
            Some(index) => write!(f, " dev {index}")?,
            None => {}
        }
        write!(f, " table {}", self.table)
    }
}

/// A change of rules or routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteOp {
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes a rule.
    DelRule(Rule),
    /// Adds a route.
    AddRoute(Route),
    /// Deletes a route.
    DelRoute(Route),
}

impl fmt::Display for RouteOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRule(rule) => write!(f, "add {rule}"),
            Self::DelRule(rule) => write!(f, "delete {rule}"),
            Self::AddRoute(route) => write!(f, "add {route}"),
            Self::DelRoute(route) => write!(f, "delete {route}"),
        }
    }
}

/// An address of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The address.
    pub address: IpAddr,
    /// Index of its interface.
    pub index: u32,
    /// Name of its interface.
    pub interface: String,
    /// Where it is valid.
    pub scope: Scope,
}

/// Where an address is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On the link of its interface.
    Link,
    /// On this node.
    Host,
    /// A scope defined by the administrator.
    Other(u8),
}

/// What can go wrong with rules, routes and addresses.
#[derive(Debug, thiserror::Error)]
pub enum PolicyRouteError {
    /// The netlink transport failed, or a read was refused.
    #[error("failed to {action}")]
    Netlink {
        /// What was attempted.
        action: &'static str,
        /// Cause.
        source: NetlinkError,
    },
    /// A rule or route with our protocol number that cannot be read.
    #[error("failed to read {what} from the kernel")]
    Unreadable {
        /// What it is.
        what: &'static str,
        /// Cause.
        source: netlink_packet_core::DecodeError,
    },
    /// Routes through a loopback interface that is down are neither taken nor kept.
    #[error("the loopback interface is down: set it up (`ip link set lo up`)")]
    LoopbackDown,
    /// The kernel took the other changes, but not these.
    #[error("failed to {}", list(.0))]
    Refused(Vec<(RouteOp, KernelError)>),
}

fn list(refused: &[(RouteOp, KernelError)]) -> String {
    refused.iter().map(|(op, error)| format!("{op}: {error}")).collect::<Vec<_>>().join("; failed to ")
}

/// Multicast groups of NETLINK_ROUTE whose events may mean that what we read here has changed.
pub fn watch_groups() -> [u32; 7] {
    [
        libc::RTNLGRP_LINK,
        libc::RTNLGRP_IPV4_IFADDR,
        libc::RTNLGRP_IPV4_ROUTE,
        libc::RTNLGRP_IPV4_RULE,
        libc::RTNLGRP_IPV6_IFADDR,
        libc::RTNLGRP_IPV6_ROUTE,
        // libc lacks RTNLGRP_IPV6_RULE
        19,
    ]
}

/// Reads and changes the policy routing of this network namespace. Blocks while the kernel works;
/// belongs to one thread.
#[derive(Debug)]
pub struct PolicyRoutes {
    socket: Socket,
}

impl PolicyRoutes {
    /// Opens the network namespace of this thread.
    pub fn open() -> Result<Self, PolicyRouteError> {
        let socket = Socket::open(libc::NETLINK_ROUTE).map_err(failed("open a route socket"))?;
        Ok(Self { socket })
    }

    /// Reads the rules and routes of ours.
    pub fn observe(&mut self) -> Result<ObservedRoutes, PolicyRouteError> {
        let mut observed = ObservedRoutes::default();
        for family in Family::ALL {
            let Some(rules) = self.rules(family)? else { continue };
            observed.families.push(family);
            observed.rules.extend(rules);
            observed.routes.extend(self.routes(family)?);
        }
        Ok(observed)
    }

    /// Applies changes in order, all of them even if some are refused. Adding what is there and
    /// deleting what is gone is no error.
    pub fn apply(&mut self, ops: &[RouteOp]) -> Result<(), PolicyRouteError> {
        if ops.iter().any(|op| matches!(op, RouteOp::AddRoute(_))) && !self.loopback_is_up()? {
            return Err(PolicyRouteError::LoopbackDown);
        }
        let mut requests = Requests::new();
        for op in ops {
            codec::encode(&mut requests, op);
        }
        let verdicts = self.socket.transact(&mut requests).map_err(failed("change rules and routes"))?;
        let mut refused = Vec::new();
        for (op, verdict) in ops.iter().zip(verdicts) {
            match (op, verdict) {
                (_, Ok(())) => {}
                (RouteOp::DelRule(_) | RouteOp::DelRoute(_), Err(error)) if is_gone(&error) => {}
                (_, Err(error)) => refused.push((op.clone(), error)),
            }
        }
        self.forgive_what_is_there(&mut refused)?;
        if refused.is_empty() { Ok(()) } else { Err(PolicyRouteError::Refused(refused)) }
    }

    /// Deletes all rules and routes of ours.
    pub fn cleanup(&mut self) -> Result<(), PolicyRouteError> {
        let observed = self.observe()?;
        self.apply(&plan::removal(&observed))
    }

    /// All addresses of this node.
    pub fn addresses(&mut self) -> Result<Vec<NodeAddress>, PolicyRouteError> {
        let names = self.interface_names()?;
        let read = self
            .socket
            .dump(
                libc::RTM_GETADDR,
                &codec::address_query(),
                |_| {},
                || Ok(Vec::new()),
                |addresses, message| collect(addresses, codec::read_address(message.payload).transpose()),
            )
            .map_err(failed("read the addresses of this node"))?;
        let mut addresses = read.map_err(unreadable("an address"))?;
        for address in &mut addresses {
            if let Some(name) = names.get(&address.index) {
                address.interface.clone_from(name);
            }
        }
        Ok(addresses)
    }

    /// Whether the main table has a default route of a family.
    pub fn has_default_route(&mut self, family: Family) -> Result<bool, PolicyRouteError> {
        let answer = self.socket.dump(
            libc::RTM_GETROUTE,
            &codec::route_query(family, None, MAIN_TABLE),
            |_| {},
            || false,
            |found, message| *found |= codec::is_default_of(family, MAIN_TABLE, message.payload),
        );
        match answer {
            Ok(found) => Ok(found),
            // A namespace that never had an IPv4 route has no main table.
            Err(error) if error.errno() == Some(libc::ENOENT) || lacks_family(&error) => Ok(false),
            Err(error) => Err(failed("read the default routes")(error)),
        }
    }

    fn rules(&mut self, family: Family) -> Result<Option<Vec<Rule>>, PolicyRouteError> {
        let answer = self.socket.dump(
            libc::RTM_GETRULE,
            &codec::rule_query(family),
            |_| {},
            || Ok(Vec::new()),
            |rules, message| collect(rules, codec::read_rule(family, message.payload)),
        );
        match answer {
            Ok(rules) => Ok(Some(rules.map_err(unreadable("a rule"))?)),
            Err(error) if lacks_family(&error) => Ok(None),
            Err(error) => Err(failed("read the rules")(error)),
        }
    }

    fn routes(&mut self, family: Family) -> Result<Vec<Route>, PolicyRouteError> {
        let routes = self
            .socket
            .dump(
                libc::RTM_GETROUTE,
                &codec::route_query(family, Some(PROTOCOL), 0),
                |_| {},
                || Ok(Vec::new()),
                |routes, message| collect(routes, codec::read_route(family, message.payload)),
            )
            .map_err(failed("read the routes"))?;
        routes.map_err(unreadable("a route"))
    }

    fn interface_names(&mut self) -> Result<BTreeMap<u32, String>, PolicyRouteError> {
        self.socket
            .dump(
                libc::RTM_GETLINK,
                &codec::link_query(0),
                |_| {},
                BTreeMap::new,
                |names, message| {
                    if let Some(link) = codec::read_link(message.payload) {
                        names.insert(link.index, link.name);
                    }
                },
            )
            .map_err(failed("read the interfaces"))
    }

    fn loopback_is_up(&mut self) -> Result<bool, PolicyRouteError> {
        let mut up = false;
        self.socket
            .get(
                libc::RTM_GETLINK,
                &codec::link_query(LOOPBACK_INDEX),
                |_| {},
                |message| {
                    up = codec::read_link(message.payload).is_some_and(|link| link.up);
                },
            )
            .map_err(failed("read the loopback interface"))?;
        Ok(up)
    }

    /// EEXIST says that something is in the place of what was to be added: fine if it is the same.
    fn forgive_what_is_there(
        &mut self,
        refused: &mut Vec<(RouteOp, KernelError)>,
    ) -> Result<(), PolicyRouteError> {
        if !refused.iter().any(|(_, error)| error.errno == libc::EEXIST) {
            return Ok(());
        }
        let observed = self.observe()?;
        refused.retain(|(op, error)| {
            let there = match op {
                RouteOp::AddRule(rule) => observed.rules.contains(rule),
                RouteOp::AddRoute(route) => observed.routes.contains(route),
                RouteOp::DelRule(_) | RouteOp::DelRoute(_) => false,
            };
            error.errno != libc::EEXIST || !there
        });
        Ok(())
    }
}

/// Deleting a rule that is gone says ENOENT, a route ESRCH.
fn is_gone(error: &KernelError) -> bool {
    matches!(error.errno, libc::ENOENT | libc::ESRCH)
}

fn lacks_family(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn collect<T, E>(items: &mut Result<Vec<T>, E>, item: Option<Result<T, E>>) {
    match (items.as_mut(), item) {
        (Ok(list), Some(Ok(item))) => list.push(item),
        (Ok(_), Some(Err(error))) => *items = Err(error),
        (Err(_), _) | (_, None) => {}
    }
}

fn failed(action: &'static str) -> impl FnOnce(NetlinkError) -> PolicyRouteError {
    move |source| PolicyRouteError::Netlink { action, source }
}

fn unreadable(what: &'static str) -> impl FnOnce(netlink_packet_core::DecodeError) -> PolicyRouteError {
    move |source| PolicyRouteError::Unreadable { what, source }
}
