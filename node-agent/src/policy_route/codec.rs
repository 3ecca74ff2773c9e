//! The messages of NETLINK_ROUTE, through netlink-packet-route.
//!
//! Of others' rules, routes and links only fixed headers are read: they may carry attributes that
//! the codec does not know, and must not make our reading fail.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, Emitable, Parseable};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage, AddressScope},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage},
};

use super::{NodeAddress, PROTOCOL, Route, RouteKind, RouteOp, Rule, Scope};
use crate::{
    model::Family,
    netlink::{Attrs, Requests},
};

const FRA_PROTOCOL: u16 = 21;
const RULE_HEADER: usize = 12;
const LINK_HEADER: usize = 16;
const IFLA_IFNAME: u16 = 3;

const ADD: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// Appends a change to a batch.
pub(super) fn encode(requests: &mut Requests, op: &RouteOp) {
    let (kind, flags, bytes) = match op {
        RouteOp::AddRule(rule) => (libc::RTM_NEWRULE, ADD, emit(&rule_message(rule))),
        RouteOp::DelRule(rule) => (libc::RTM_DELRULE, libc::NLM_F_ACK, emit(&rule_message(rule))),
        RouteOp::AddRoute(route) => {
            // The scope says how far away the destination is: a local address is on the host, one
            // without a gateway on the link (`ip route` does the same).
            let scope = if route.kind == RouteKind::Local { RouteScope::Host } else { RouteScope::Link };
            (libc::RTM_NEWROUTE, ADD, emit(&route_message(route, scope)))
        }
        RouteOp::DelRoute(route) => {
            // Nowhere stands for any scope.
            (libc::RTM_DELROUTE, libc::NLM_F_ACK, emit(&route_message(route, RouteScope::NoWhere)))
        }
    };
    requests.push(kind, flags, &bytes, |_| {});
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    // Only ever deleted, and then by whatever it does.
    message.header.action = if rule.altered { RuleAction::Unspec } else { RuleAction::ToTable };
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    if let Some((mark, mask)) = rule.mark {
        message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    if let Some(incoming) = &rule.incoming {
        message.attributes.push(RuleAttribute::Iifname(incoming.clone()));
    }
    message
}

fn route_message(route: &Route, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: address_family(route.family()),
        destination_prefix_length: route.destination.prefix_len(),
        protocol: RouteProtocol::from(PROTOCOL),
        scope,
        kind: match route.kind {
            RouteKind::Local => RouteType::Local,
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Other(kind) => RouteType::from(kind),
        },
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(route.destination.network())),
        RouteAttribute::Table(route.table),
    ];
    message.attributes.extend(route.interface.map(RouteAttribute::Oif));
    message
}

/// Header of a dump of rules.
pub(super) fn rule_query(family: Family) -> Vec<u8> {
    emit(&RuleHeader { family: address_family(family), ..RuleHeader::default() })
}

/// Header and attributes of a dump of routes, of a protocol, of a table (0 for all of them).
pub(super) fn route_query(family: Family, protocol: Option<u8>, table: u32) -> Vec<u8> {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.protocol = RouteProtocol::from(protocol.unwrap_or_default());
    if table != 0 {
        message.attributes.push(RouteAttribute::Table(table));
    }
    emit(&message)
}

/// Header of a dump of addresses.
pub(super) fn address_query() -> Vec<u8> {
    emit(&AddressMessage::default())
}

/// `struct ifinfomsg` for one interface, or for all of them (0).
pub(super) fn link_query(index: u32) -> [u8; LINK_HEADER] {
    let [a, b, c, d] = index.to_ne_bytes();
    [0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// A rule, if it is ours.
pub(super) fn read_rule(family: Family, payload: &[u8]) -> Option<Result<Rule, DecodeError>> {
    let protocol = Attrs::new(payload.get(RULE_HEADER..)?).find(FRA_PROTOCOL)?;
    (protocol.value == [PROTOCOL])
        .then(|| RuleMessage::parse(payload).map(|message| rule_of(family, &message)))
}

fn rule_of(family: Family, message: &RuleMessage) -> Rule {
    // Exhaustive, so that a field we never write is seen.
    let RuleHeader { family: _, dst_len, src_len, tos, table, action, flags } = &message.header;
    let mut rule = Rule {
        family,
        priority: 0,
        mark: None,
        incoming: None,
        table: u32::from(*table),
        altered: *dst_len != 0
            || *src_len != 0
            || *tos != 0
            || *action != RuleAction::ToTable
            || flags.contains(RuleFlags::Invert),
    };
    let (mut value, mut mask) = (0, 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(bits) => value = *bits,
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Iifname(name) => rule.incoming = Some(name.clone()),
            // Always there; all ones when not used.
            RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX)
            | RuleAttribute::L3MDev(false)
            | RuleAttribute::Protocol(_) => {}
            _ => rule.altered = true,
        }
    }
    if mask != 0 {
        rule.mark = Some((value, mask));
    }
    rule
}

/// A route, if it is ours.
pub(super) fn read_route(family: Family, payload: &[u8]) -> Option<Result<Route, DecodeError>> {
    let header = RouteHeader::parse(payload).ok()?;
    let ours =
        header.protocol == RouteProtocol::from(PROTOCOL) && header.address_family == address_family(family);
    ours.then(|| RouteMessage::parse(payload).and_then(|message| route_of(family, &message)))
}

fn route_of(family: Family, message: &RouteMessage) -> Result<Route, DecodeError> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut interface = None;
    let mut address = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    let mut kind = match header.kind {
        RouteType::Local => RouteKind::Local,
        RouteType::Unicast => RouteKind::Unicast,
        other => RouteKind::Other(u8::from(other)),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(value)) => address = (*value).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(value)) => address = (*value).into(),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => {
                kind = RouteKind::Other(u8::from(header.kind));
            }
            _ => {}
        }
    }
    let destination = IpNet::new(address, header.destination_prefix_length)
        .map_err(|error| DecodeError::from(error.to_string()))?;
    Ok(Route { destination, table, kind, interface })
}

/// Whether a route of a dump is a default route that leads out of the node.
pub(super) fn is_default_of(family: Family, table: u32, payload: &[u8]) -> bool {
    RouteHeader::parse(payload).is_ok_and(|header| {
        header.address_family == address_family(family)
            && header.destination_prefix_length == 0
            && header.kind == RouteType::Unicast
            && u32::from(header.table) == table
    })
}

/// An address, if it is an IP address; its interface is not named yet.
pub(super) fn read_address(payload: &[u8]) -> Result<Option<NodeAddress>, DecodeError> {
    let message = AddressMessage::parse(payload)?;
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return Ok(None);
    }
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            // On a link between two points, this is the other end.
            AddressAttribute::Address(address) => peer = Some(*address),
            _ => {}
        }
    }
    Ok(local.or(peer).map(|address| NodeAddress {
        address,
        index: message.header.index,
        interface: String::new(),
        scope: match message.header.scope {
            AddressScope::Universe => Scope::Global,
            AddressScope::Link => Scope::Link,
            AddressScope::Host => Scope::Host,
            other => Scope::Other(u8::from(other)),
        },
    }))
}

/// An interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
}

/// `struct ifinfomsg` and the name. Read by hand: the codec for links covers every driver's
/// attributes, and one of them unknown to it must not hide an address.
pub(super) fn read_link(payload: &[u8]) -> Option<Link> {
    let (header, rest) = payload.split_first_chunk::<LINK_HEADER>()?;
    let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let up = u32::try_from(libc::IFF_UP).is_ok_and(|bit| flags & bit != 0);
    let name = Attrs::new(rest).find(IFLA_IFNAME)?.str()?.to_owned();
    Some(Link { index: u32::from_ne_bytes([i0, i1, i2, i3]), name, up })
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}
