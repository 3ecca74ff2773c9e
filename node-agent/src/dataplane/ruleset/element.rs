//! Elements of the sets, typed, to and from the kernel's bytes.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{TABLE, sets::SetName};
use crate::{
    model::{Family, Protocol},
    nft::{Client, Encode, NftError, RawElement},
};

/// One element of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// A ClusterIP with endpoints.
    ClusterIp {
        /// Protocol.
        protocol: Protocol,
        /// Address and port.
        address: SocketAddr,
    },
    /// An externalIP or LoadBalancer IP with endpoints.
    ExternalIp {
        /// Protocol.
        protocol: Protocol,
        /// Address and port.
        address: SocketAddr,
    },
    /// A NodePort with endpoints of a family.
    NodePort {
        /// Family of the clients.
        family: Family,
        /// Protocol.
        protocol: Protocol,
        /// The node port.
        port: u16,
    },
    /// The mark of a NodePort's virtual servers, the same for both families.
    NodePortMark {
        /// Protocol.
        protocol: Protocol,
        /// The node port.
        port: u16,
        /// An id of the policy bit in use.
        mark: u32,
    },
    /// A ClusterIP, externalIP or LoadBalancer IP without endpoints.
    NoEndpoints {
        /// Protocol.
        protocol: Protocol,
        /// Address and port.
        address: SocketAddr,
    },
    /// A NodePort without endpoints of a family.
    NoEndpointNodePort {
        /// Family of the clients.
        family: Family,
        /// Protocol.
        protocol: Protocol,
        /// The node port.
        port: u16,
    },
    /// A ClusterIP, with or without endpoints: its other ports are rejected.
    ClusterAddress(IpAddr),
    /// A backend on this node, which may be its own client.
    Hairpin(IpAddr),
    /// An address at which NodePorts answer.
    NodeAddress(IpAddr),
    /// A range of pods of this node. Those of one family must not overlap.
    LocalPods(IpNet),
}

impl Element {
    /// The set it belongs to.
    pub fn set(&self) -> SetName {
        match *self {
            Self::ClusterIp { address, .. } => SetName::ClusterIps(Family::of(address.ip())),
            Self::ExternalIp { address, .. } => SetName::ExternalIps(Family::of(address.ip())),
            Self::NoEndpoints { address, .. } => SetName::NoEndpoints(Family::of(address.ip())),
            Self::NodePort { family, .. } => SetName::NodePorts(family),
            Self::NodePortMark { .. } => SetName::NodePortMarks,
            Self::NoEndpointNodePort { family, .. } => SetName::NoEndpointNodePorts(family),
            Self::ClusterAddress(address) => SetName::ClusterAddresses(Family::of(address)),
            Self::Hairpin(address) => SetName::Hairpin(Family::of(address)),
            Self::NodeAddress(address) => SetName::NodeAddresses(Family::of(address)),
            Self::LocalPods(net) => SetName::LocalPods(Family::of(net.network())),
        }
    }

    /// True for an element that gets packets rejected.
    pub fn is_rejection(&self) -> bool {
        matches!(self, Self::NoEndpoints { .. } | Self::NoEndpointNodePort { .. })
    }

    /// The element of a set that is not one of intervals; none for what we would never write.
    fn decode(set: SetName, raw: RawElement<'_>) -> Option<Self> {
        let mut key = Reader(raw.key);
        let element = match set {
            SetName::ClusterIps(family) => {
                let (protocol, address) = key.frontend(family)?;
                Self::ClusterIp { protocol, address }
            }
            SetName::ExternalIps(family) => {
                let (protocol, address) = key.frontend(family)?;
                Self::ExternalIp { protocol, address }
            }
            SetName::NoEndpoints(family) => {
                let (protocol, address) = key.frontend(family)?;
                Self::NoEndpoints { protocol, address }
            }
            SetName::NodePorts(family) => {
                Self::NodePort { family, protocol: key.protocol()?, port: key.port()? }
            }
            SetName::NoEndpointNodePorts(family) => {
                Self::NoEndpointNodePort { family, protocol: key.protocol()?, port: key.port()? }
            }
            SetName::NodePortMarks => {
                let mark = u32::from_ne_bytes(raw.data?.try_into().ok()?);
                Self::NodePortMark { protocol: key.protocol()?, port: key.port()?, mark }
            }
            SetName::NodeAddresses(family) => Self::NodeAddress(key.address(family)?),
            SetName::ClusterAddresses(family) => Self::ClusterAddress(key.address(family)?),
            SetName::Hairpin(family) => {
                let address = key.address(family)?;
                (key.address(family)? == address).then_some(Self::Hairpin(address))?
            }
            SetName::LocalPods(_) => return None,
        };
        key.0.is_empty().then_some(element)
    }
}

/// The elements of a set, as far as they could be ours.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub elements: BTreeSet<Element>,
    /// True when there are none besides.
    pub all_ours: bool,
}

/// Reads the elements of a set.
pub(super) fn read_all(client: &mut Client, set: SetName) -> Result<Read, NftError> {
    let name = set.to_string();
    if let SetName::LocalPods(family) = set {
        let ends = client.elements(TABLE, &name, |raw| End::read(family, raw))?;
        let paired = ends.into_iter().collect::<Option<_>>().and_then(|ends| pair(&ends));
        return Ok(paired.map_or_else(Read::default, |elements| Read { elements, all_ours: true }));
    }
    let read = client.elements(TABLE, &name, |raw| Element::decode(set, raw))?;
    Ok(Read { all_ours: !read.contains(&None), elements: read.into_iter().flatten().collect() })
}

/// An end of an interval: where it begins, or the first address behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Begin(IpAddr),
    Behind(IpAddr),
}

impl End {
    fn read(family: Family, raw: RawElement<'_>) -> Option<Self> {
        let mut key = Reader(raw.key);
        let address = key.address(family)?;
        let end = if raw.interval_end { Self::Behind(address) } else { Self::Begin(address) };
        key.0.is_empty().then_some(end)
    }
}

/// Pairs beginnings with ends: the kernel knows each as an element of its own.
fn pair(ends: &BTreeSet<End>) -> Option<BTreeSet<Element>> {
    let mut elements = BTreeSet::new();
    for end in ends {
        let End::Begin(begin) = *end else { continue };
        // An interval without end goes up to the highest address. An end without beginning is what
        // `nft` writes at zero to say that nothing lies below; it changes nothing.
        let behind = ends.iter().find_map(|end| match end {
            End::Behind(behind) if *behind > begin => Some(*behind),
            _ => None,
        });
        elements.insert(Element::LocalPods(net_between(begin, behind)?));
    }
    Some(elements)
}

/// The network from `begin` to the address before `behind`.
fn net_between(begin: IpAddr, behind: Option<IpAddr>) -> Option<IpNet> {
    let net: IpNet = match begin {
        IpAddr::V4(begin) => {
            let from = u32::from(begin);
            let last = match behind {
                Some(IpAddr::V4(behind)) => u32::from(behind).checked_sub(1)?,
                Some(IpAddr::V6(_)) => return None,
                None => u32::MAX,
            };
            Ipv4Net::new(begin, u8::try_from((from ^ last).leading_zeros()).ok()?).ok()?.into()
        }
        IpAddr::V6(begin) => {
            let from = u128::from(begin);
            let last = match behind {
                Some(IpAddr::V6(behind)) => u128::from(behind).checked_sub(1)?,
                Some(IpAddr::V4(_)) => return None,
                None => u128::MAX,
            };
            Ipv6Net::new(begin, u8::try_from((from ^ last).leading_zeros()).ok()?).ok()?.into()
        }
    };
    // An interval that is no network is not ours.
    let same = net.network() == begin && behind_of(&net) == behind;
    same.then_some(net)
}

/// The first address behind a network, none behind the last of all.
fn behind_of(net: &IpNet) -> Option<IpAddr> {
    match net.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

impl Encode for &Element {
    fn encode(&self, each: &mut dyn FnMut(RawElement<'_>)) {
        let mut key = Writer::default();
        let mut data = None;
        match **self {
            Element::ClusterIp { protocol, address }
            | Element::ExternalIp { protocol, address }
            | Element::NoEndpoints { protocol, address } => {
                key.address(address.ip()).protocol(protocol).port(address.port());
            }
            Element::NodePort { protocol, port, .. } | Element::NoEndpointNodePort { protocol, port, .. } => {
                key.protocol(protocol).port(port);
            }
            Element::NodePortMark { protocol, port, mark } => {
                key.protocol(protocol).port(port);
                data = Some(mark.to_ne_bytes());
            }
            Element::ClusterAddress(address) | Element::NodeAddress(address) => {
                key.address(address);
            }
            Element::Hairpin(address) => {
                key.address(address).address(address);
            }
            Element::LocalPods(net) => {
                key.address(net.network());
            }
        }
        each(RawElement { key: key.bytes(), data: data.as_ref().map(|d| &d[..]), interval_end: false });
        // In this order: the kernel takes an end that comes first for an overlap.
        if let Element::LocalPods(net) = self
            && let Some(behind) = behind_of(net)
        {
            let mut end = Writer::default();
            end.address(behind);
            each(RawElement { key: end.bytes(), data: None, interval_end: true });
        }
    }
}

/// Longest key: two IPv6 addresses.
const KEY_MAX: usize = 32;

/// Writes the parts of a key, each padded to a register of 32 bits.
#[derive(Default)]
struct Writer {
    key: [u8; KEY_MAX],
    length: usize,
}

impl Writer {
    fn part(&mut self, bytes: &[u8]) -> &mut Self {
        let end = self.length + bytes.len();
        if let Some(place) = self.key.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
            self.length = end.next_multiple_of(4);
        }
        self
    }

    fn address(&mut self, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.part(&address.octets()),
            IpAddr::V6(address) => self.part(&address.octets()),
        }
    }

    fn protocol(&mut self, protocol: Protocol) -> &mut Self {
        self.part(&[protocol.number()])
    }

    fn port(&mut self, port: u16) -> &mut Self {
        self.part(&port.to_be_bytes())
    }

    fn bytes(&self) -> &[u8] {
        self.key.get(..self.length).unwrap_or_default()
    }
}

/// Reads the parts of a key.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn part<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*part)
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::V4 => Ipv4Addr::from(self.part::<4>()?).into(),
            Family::V6 => Ipv6Addr::from(self.part::<16>()?).into(),
        })
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.part::<4>()?;
        Protocol::from_number(u16::from(number))
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.part::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn frontend(&mut self, family: Family) -> Option<(Protocol, SocketAddr)> {
        let address = self.address(family)?;
        let protocol = self.protocol()?;
        Some((protocol, SocketAddr::new(address, self.port()?)))
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.set();
        match self {
            Self::ClusterIp { protocol, address }
            | Self::ExternalIp { protocol, address }
            | Self::NoEndpoints { protocol, address } => write!(f, "{set} {protocol} {address}"),
            Self::NodePort { protocol, port, .. } | Self::NoEndpointNodePort { protocol, port, .. } => {
                write!(f, "{set} {protocol} {port}")
            }
            Self::NodePortMark { protocol, port, mark } => write!(f, "{set} {protocol} {port}: {mark:#x}"),
            Self::ClusterAddress(address) | Self::Hairpin(address) | Self::NodeAddress(address) => {
                write!(f, "{set} {address}")
            }
            Self::LocalPods(net) => write!(f, "{set} {net}"),
        }
    }
}

#[cfg(test)]
#[path = "element_tests.rs"]
mod tests;
