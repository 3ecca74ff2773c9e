//! The messages of IPVS: values to attributes and back (`include/uapi/linux/ip_vs.h`,
//! `net/netfilter/ipvs/ip_vs_ctl.c`).
//!
//! Reading never fails on what others have put into the kernel: attributes that we do not know are
//! passed over, and a message that is no object of ours to describe is `None`.

use std::net::{IpAddr, SocketAddr};

use fairlead_crds::Scheduler;

use super::{Forward, IpvsOp, RealServer, Stats, Timeouts, Version, VirtualServer, VirtualServerKey};
use crate::{
    model::{Family, Protocol},
    netlink::{Attr, AttrWriter, Requests, genl},
};

pub(super) const VERSION: u8 = 1;

/// `IPVS_CMD_*`.
pub(super) mod command {
    pub const NEW_SERVICE: u8 = 1;
    pub const SET_SERVICE: u8 = 2;
    pub const DEL_SERVICE: u8 = 3;
    pub const GET_SERVICE: u8 = 4;
    pub const NEW_DEST: u8 = 5;
    pub const SET_DEST: u8 = 6;
    pub const DEL_DEST: u8 = 7;
    pub const GET_DEST: u8 = 8;
    pub const SET_CONFIG: u8 = 12;
    pub const GET_CONFIG: u8 = 13;
    pub const SET_INFO: u8 = 14;
    pub const GET_INFO: u8 = 15;
}

const CMD_ATTR_SERVICE: u16 = 1;
const CMD_ATTR_DEST: u16 = 2;
const CMD_ATTR_TIMEOUT_TCP: u16 = 4;
const CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const CMD_ATTR_TIMEOUT_UDP: u16 = 6;

const SVC_ATTR_AF: u16 = 1;
const SVC_ATTR_PROTOCOL: u16 = 2;
const SVC_ATTR_ADDR: u16 = 3;
const SVC_ATTR_PORT: u16 = 4;
const SVC_ATTR_FWMARK: u16 = 5;
const SVC_ATTR_SCHED_NAME: u16 = 6;
const SVC_ATTR_FLAGS: u16 = 7;
const SVC_ATTR_TIMEOUT: u16 = 8;
const SVC_ATTR_NETMASK: u16 = 9;
const SVC_ATTR_STATS: u16 = 10;
const SVC_ATTR_STATS64: u16 = 12;

const DEST_ATTR_ADDR: u16 = 1;
const DEST_ATTR_PORT: u16 = 2;
const DEST_ATTR_FWD_METHOD: u16 = 3;
const DEST_ATTR_WEIGHT: u16 = 4;
const DEST_ATTR_U_THRESH: u16 = 5;
const DEST_ATTR_L_THRESH: u16 = 6;
const DEST_ATTR_ACTIVE_CONNS: u16 = 7;
const DEST_ATTR_INACT_CONNS: u16 = 8;
const DEST_ATTR_PERSIST_CONNS: u16 = 9;
const DEST_ATTR_ADDR_FAMILY: u16 = 11;

const STATS_ATTR_CONNS: u16 = 1;
const STATS_ATTR_INPKTS: u16 = 2;
const STATS_ATTR_OUTPKTS: u16 = 3;
const STATS_ATTR_INBYTES: u16 = 4;
const STATS_ATTR_OUTBYTES: u16 = 5;

const INFO_ATTR_VERSION: u16 = 1;
const INFO_ATTR_CONN_TAB_SIZE: u16 = 2;

const IP_VS_SVC_F_HASHED: u32 = 2;
const IP_VS_CONN_F_FWD_MASK: u32 = 7;
const IP_VS_CONN_F_MASQ: u32 = 0;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Appends an operation to a batch for the family `kind`.
pub(super) fn encode(requests: &mut Requests, kind: u16, op: &IpvsOp) {
    let command = match op {
        IpvsOp::AddService { .. } => command::NEW_SERVICE,
        IpvsOp::SetService { .. } => command::SET_SERVICE,
        IpvsOp::DelService { .. } => command::DEL_SERVICE,
        IpvsOp::AddDest { .. } => command::NEW_DEST,
        IpvsOp::SetDest { .. } => command::SET_DEST,
        IpvsOp::DelDest { .. } => command::DEL_DEST,
    };
    requests.push(kind, libc::NLM_F_ACK, &genl::header(command, VERSION), |w| match op {
        IpvsOp::AddService { key, scheduler } | IpvsOp::SetService { key, scheduler } => {
            write_service(w, key, *scheduler);
        }
        IpvsOp::DelService { key } => write_key(w, key),
        IpvsOp::AddDest { key, address, weight } | IpvsOp::SetDest { key, address, weight } => {
            write_key(w, key);
            write_dest(w, *address, Some(*weight));
        }
        IpvsOp::DelDest { key, address } => {
            write_key(w, key);
            write_dest(w, *address, None);
        }
    });
}

/// The attributes of a message that name a virtual server.
pub(super) fn write_key(w: &mut AttrWriter<'_>, key: &VirtualServerKey) {
    w.nested(CMD_ATTR_SERVICE, |w| write_key_attributes(w, key));
}

fn write_service(w: &mut AttrWriter<'_>, key: &VirtualServerKey, scheduler: Scheduler) {
    // All flags are in the mask: what we do not set is taken away.
    const NO_FLAGS: [u8; 8] = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    w.nested(CMD_ATTR_SERVICE, |w| {
        write_key_attributes(w, key);
        w.string(SVC_ATTR_SCHED_NAME, scheduler.as_str())
            .bytes(SVC_ATTR_FLAGS, &NO_FLAGS)
            .u32(SVC_ATTR_TIMEOUT, 0)
            .u32(SVC_ATTR_NETMASK, host_mask(key.family()));
    });
}

fn write_key_attributes(w: &mut AttrWriter<'_>, key: &VirtualServerKey) {
    w.u16(SVC_ATTR_AF, address_family(key.family()));
    match key {
        VirtualServerKey::Address { protocol, address } => {
            w.u16(SVC_ATTR_PROTOCOL, u16::from(protocol.number()))
                .bytes(SVC_ATTR_ADDR, &address_bytes(address.ip()))
                .be16(SVC_ATTR_PORT, address.port());
        }
        VirtualServerKey::Fwmark { mark, .. } => {
            w.u32(SVC_ATTR_FWMARK, *mark);
        }
    }
}

fn write_dest(w: &mut AttrWriter<'_>, address: SocketAddr, weight: Option<u32>) {
    w.nested(CMD_ATTR_DEST, |w| {
        w.u16(DEST_ATTR_ADDR_FAMILY, address_family(Family::of(address.ip())))
            .bytes(DEST_ATTR_ADDR, &address_bytes(address.ip()))
            .be16(DEST_ATTR_PORT, address.port());
        if let Some(weight) = weight {
            w.u32(DEST_ATTR_FWD_METHOD, IP_VS_CONN_F_MASQ)
                .u32(DEST_ATTR_WEIGHT, weight)
                .u32(DEST_ATTR_U_THRESH, 0)
                .u32(DEST_ATTR_L_THRESH, 0);
        }
    });
}

/// The attributes that set the timeouts.
pub(super) fn write_timeouts(w: &mut AttrWriter<'_>, timeouts: Timeouts) {
    w.u32(CMD_ATTR_TIMEOUT_TCP, timeouts.tcp)
        .u32(CMD_ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin)
        .u32(CMD_ATTR_TIMEOUT_UDP, timeouts.udp);
}

/// A virtual server with its counters.
pub(super) fn read_service(payload: &[u8]) -> Option<(VirtualServer, Stats)> {
    let service = object(payload, command::NEW_SERVICE, CMD_ATTR_SERVICE)?;
    let field = |kind| service.get(kind);
    let family = read_family(field(SVC_ATTR_AF)?)?;
    let key = match field(SVC_ATTR_FWMARK) {
        Some(mark) => VirtualServerKey::Fwmark { family, mark: mark.u32()? },
        None => VirtualServerKey::Address {
            protocol: Protocol::from_number(field(SVC_ATTR_PROTOCOL)?.u16()?)?,
            address: SocketAddr::new(
                read_address(family, field(SVC_ATTR_ADDR)?)?,
                field(SVC_ATTR_PORT)?.be16()?,
            ),
        },
    };
    let flags = field(SVC_ATTR_FLAGS)?.value.first_chunk::<4>().copied()?;
    let server = VirtualServer {
        key,
        scheduler: field(SVC_ATTR_SCHED_NAME)?.str()?.to_owned(),
        flags: u32::from_ne_bytes(flags) & !IP_VS_SVC_F_HASHED,
        timeout: field(SVC_ATTR_TIMEOUT)?.u32()?,
        netmask: field(SVC_ATTR_NETMASK)?.u32()?,
    };
    // Counters of 64 bits came with Linux 4.1; those before wrap.
    let stats = field(SVC_ATTR_STATS64).or_else(|| field(SVC_ATTR_STATS));
    Some((server, stats.map(read_stats).unwrap_or_default()))
}

/// A real server of a virtual server of `family`.
pub(super) fn read_dest(family: Family, payload: &[u8]) -> Option<RealServer> {
    let dest = object(payload, command::NEW_DEST, CMD_ATTR_DEST)?;
    let field = |kind| dest.get(kind);
    let number = |kind| field(kind).and_then(Attr::u32);
    // Tunnels may lead through the other family.
    let family = field(DEST_ATTR_ADDR_FAMILY).and_then(read_family).unwrap_or(family);
    Some(RealServer {
        address: SocketAddr::new(
            read_address(family, field(DEST_ATTR_ADDR)?)?,
            field(DEST_ATTR_PORT)?.be16()?,
        ),
        weight: number(DEST_ATTR_WEIGHT)?,
        forward: match number(DEST_ATTR_FWD_METHOD)? & IP_VS_CONN_F_FWD_MASK {
            IP_VS_CONN_F_MASQ => Forward::Masquerade,
            other => Forward::Other(other),
        },
        active_connections: number(DEST_ATTR_ACTIVE_CONNS)?,
        inactive_connections: number(DEST_ATTR_INACT_CONNS)?,
        persistent_connections: number(DEST_ATTR_PERSIST_CONNS)?,
    })
}

/// The answer to `GET_CONFIG`.
pub(super) fn read_timeouts(payload: &[u8]) -> Option<Timeouts> {
    let (command::SET_CONFIG, attrs) = genl::split(payload)? else { return None };
    let seconds = |kind| attrs.clone().find(kind).and_then(Attr::u32);
    Some(Timeouts {
        tcp: seconds(CMD_ATTR_TIMEOUT_TCP)?,
        tcp_fin: seconds(CMD_ATTR_TIMEOUT_TCP_FIN)?,
        // Left out by a kernel without the protocol.
        udp: seconds(CMD_ATTR_TIMEOUT_UDP).unwrap_or_default(),
    })
}

/// The answer to `GET_INFO`.
pub(super) fn read_version(payload: &[u8]) -> Option<Version> {
    let (command::SET_INFO, attrs) = genl::split(payload)? else { return None };
    let number = |kind| attrs.clone().find(kind).and_then(Attr::u32);
    let [_, major, minor, patch] = number(INFO_ATTR_VERSION)?.to_be_bytes();
    Some(Version { version: [major, minor, patch], connection_table_size: number(INFO_ATTR_CONN_TAB_SIZE)? })
}

/// The netmask that makes every client address one of its own.
pub(super) fn host_mask(family: Family) -> u32 {
    match family {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    }
}

/// The attributes of one nest by their type: found at once, as a dump has a dozen for each of many
/// thousand objects.
struct Fields<'a>([Option<Attr<'a>>; 16]);

impl<'a> Fields<'a> {
    fn of(nest: Attr<'a>) -> Self {
        let mut fields = [None; 16];
        for attr in nest.nested() {
            if let Some(slot @ None) = fields.get_mut(usize::from(attr.kind)) {
                *slot = Some(attr);
            }
        }
        Self(fields)
    }

    fn get(&self, kind: u16) -> Option<Attr<'a>> {
        self.0.get(usize::from(kind)).copied().flatten()
    }
}

fn object(payload: &[u8], wanted: u8, kind: u16) -> Option<Fields<'_>> {
    let (command, attrs) = genl::split(payload)?;
    if command != wanted {
        return None;
    }
    attrs.find(kind).map(Fields::of)
}

/// The attributes of either width: `STATS` has counts of 32 bits, `STATS64` of 64.
fn read_stats(attr: Attr<'_>) -> Stats {
    let stats = Fields::of(attr);
    let count = |kind| {
        let attr = stats.get(kind)?;
        attr.u64().or_else(|| attr.u32().map(u64::from))
    };
    Stats {
        connections: count(STATS_ATTR_CONNS).unwrap_or_default(),
        packets_in: count(STATS_ATTR_INPKTS).unwrap_or_default(),
        packets_out: count(STATS_ATTR_OUTPKTS).unwrap_or_default(),
        bytes_in: count(STATS_ATTR_INBYTES).unwrap_or_default(),
        bytes_out: count(STATS_ATTR_OUTBYTES).unwrap_or_default(),
    }
}

fn address_family(family: Family) -> u16 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn read_family(attr: Attr<'_>) -> Option<Family> {
    match attr.u16()? {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// `union nf_inet_addr`: 16 bytes whatever the family.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn read_address(family: Family, attr: Attr<'_>) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(IpAddr::from(*attr.value.first_chunk::<4>()?)),
        Family::V6 => Some(IpAddr::from(*attr.value.first_chunk::<16>()?)),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
