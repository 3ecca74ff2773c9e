//! Rules, written as a sentence: each method appends the expressions that `nft` makes of the same words.

use crate::model::Family;

use super::{
    expr::{
        Cmp, CtKey, Expr, FIB_ADDRESS_TYPE, FIB_DESTINATION, Header, MetaKey, NAT_FULLY_RANDOM, RT_TCP_MSS,
        Reg, Reject, Verdict,
    },
    uapi::{NFPROTO_IPV4, NFPROTO_IPV6},
};

/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
pub const CT_NEW: u32 = 8;
/// Established or related.
pub const CT_KNOWN: u32 = 2 | 4;
/// `IPS_DST_NAT`.
const CT_STATUS_DNAT: u32 = 0x20;
/// `RTN_LOCAL`.
const RTN_LOCAL: u32 = 2;
/// `LOOPBACK_IFINDEX`, the same in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;
const TCP: u8 = 6;
const TCP_OPTION_MSS: u8 = 2;

/// A part of the key of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Source address.
    Source(Family),
    /// Destination address.
    Destination(Family),
    /// Transport protocol.
    Protocol,
    /// Destination port.
    DestinationPort,
}

impl Field {
    fn load(self, dreg: Reg) -> Expr {
        let network = |offset, len| Expr::Payload { base: Header::Network, offset, len, dreg };
        match self {
            Self::Source(Family::V4) => network(12, 4),
            Self::Source(Family::V6) => network(8, 16),
            Self::Destination(Family::V4) => network(16, 4),
            Self::Destination(Family::V6) => network(24, 16),
            Self::Protocol => Expr::Meta { key: MetaKey::L4Proto, dreg },
            Self::DestinationPort => Expr::Payload { base: Header::Transport, offset: 2, len: 2, dreg },
        }
    }

    /// Registers of 32 bits that the field takes.
    fn words(self) -> u8 {
        match self {
            Self::Source(Family::V6) | Self::Destination(Family::V6) => 4,
            _ => 1,
        }
    }
}

/// A rule: its expressions and the comment that `nft list` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub exprs: Vec<Expr>,
    /// Why.
    pub comment: Option<String>,
}

impl Rule {
    /// An empty rule that says why it is there (at most 128 characters, as in `nft`).
    pub fn new(comment: impl Into<String>) -> Self {
        Self { exprs: Vec::new(), comment: Some(comment.into()) }
    }

    fn with(mut self, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.exprs.extend(exprs);
        self
    }

    fn equals(self, load: Expr, op: Cmp, data: &[u8]) -> Self {
        self.with([load, Expr::Cmp { sreg: Reg::FIRST, op, data: data.to_vec() }])
    }

    fn any_bit(self, load: Expr, bits: u32) -> Self {
        self.masked(load, bits, Cmp::Neq, 0)
    }

    fn masked(self, load: Expr, mask: u32, op: Cmp, value: u32) -> Self {
        self.with([
            load,
            and_xor(mask, 0),
            Expr::Cmp { sreg: Reg::FIRST, op, data: value.to_ne_bytes().to_vec() },
        ])
    }

    /// Packets of one family.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        let number = match family {
            Family::V4 => NFPROTO_IPV4,
            Family::V6 => NFPROTO_IPV6,
        };
        self.equals(meta(MetaKey::NfProto), Cmp::Eq, &[number])
    }

    /// Packets of one transport protocol.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.equals(meta(MetaKey::L4Proto), Cmp::Eq, &[number])
    }

    /// TCP packets with any of these flags.
    #[must_use]
    pub fn tcp_flags(self, flags: u8) -> Self {
        self.tcp_flags_compared(flags, Cmp::Neq)
    }

    /// TCP packets with none of these flags.
    #[must_use]
    pub fn tcp_flags_lack(self, flags: u8) -> Self {
        self.tcp_flags_compared(flags, Cmp::Eq)
    }

    fn tcp_flags_compared(self, flags: u8, op: Cmp) -> Self {
        let load = Expr::Payload { base: Header::Transport, offset: 13, len: 1, dreg: Reg::FIRST };
        let mask = Expr::Bitwise { sreg: Reg::FIRST, dreg: Reg::FIRST, mask: vec![flags], xor: vec![0] };
        self.protocol(TCP).with([load, mask, Expr::Cmp { sreg: Reg::FIRST, op, data: vec![0] }])
    }

    /// Packets whose mark, masked, is a value.
    #[must_use]
    pub fn mark_is(self, mask: u32, value: u32) -> Self {
        self.masked(meta(MetaKey::Mark), mask, Cmp::Eq, value)
    }

    /// Packets whose mark has none of these bits.
    #[must_use]
    pub fn mark_lacks(self, bits: u32) -> Self {
        self.mark_is(bits, 0)
    }

    /// Packets whose mark has this bit.
    #[must_use]
    pub fn mark_has(self, bit: u32) -> Self {
        self.any_bit(meta(MetaKey::Mark), bit)
    }

    /// Connections in any of these states.
    #[must_use]
    pub fn ct_state(self, states: u32) -> Self {
        self.any_bit(ct(CtKey::State), states)
    }

    /// Packets that answer.
    #[must_use]
    pub fn ct_reply(self) -> Self {
        self.equals(ct(CtKey::Direction), Cmp::Eq, &[1])
    }

    /// Connections whose destination was translated by netfilter's own NAT.
    #[must_use]
    pub fn ct_translated(self) -> Self {
        self.any_bit(ct(CtKey::Status), CT_STATUS_DNAT)
    }

    /// Connections with a label.
    #[must_use]
    pub fn ct_label(self, label: u8) -> Self {
        let mask = label_bits(label);
        let none = vec![0; mask.len()];
        let bits = Expr::Bitwise { sreg: Reg::FIRST, dreg: Reg::FIRST, mask, xor: none.clone() };
        self.with([ct(CtKey::Labels), bits, Expr::Cmp { sreg: Reg::FIRST, op: Cmp::Neq, data: none }])
    }

    /// Packets whose fields are in a set.
    #[must_use]
    pub fn found_in(self, fields: &[Field], set: impl Into<String>) -> Self {
        self.lookup(fields, set.into(), None, false)
    }

    /// Packets whose fields are not in a set.
    #[must_use]
    pub fn not_in(self, fields: &[Field], set: impl Into<String>) -> Self {
        self.lookup(fields, set.into(), None, true)
    }

    fn lookup(mut self, fields: &[Field], set: String, dreg: Option<Reg>, inverted: bool) -> Self {
        let mut reg = Reg::FIRST;
        for field in fields {
            self.exprs.push(field.load(reg));
            reg = reg.after(field.words());
        }
        self.with([Expr::Lookup { set, sreg: Reg::FIRST, dreg, inverted }])
    }

    /// Packets to an address that this node does not have.
    #[must_use]
    pub fn to_foreign_address(self) -> Self {
        self.address_type(Cmp::Neq)
    }

    /// Packets to an address of this node.
    #[must_use]
    pub fn to_own_address(self) -> Self {
        self.address_type(Cmp::Eq)
    }

    fn address_type(self, op: Cmp) -> Self {
        let load = Expr::Fib { flags: FIB_DESTINATION, result: FIB_ADDRESS_TYPE, dreg: Reg::FIRST };
        self.equals(load, op, &RTN_LOCAL.to_ne_bytes())
    }

    /// Packets on their way to another device than `lo`.
    #[must_use]
    pub fn routed_out(self) -> Self {
        self.equals(meta(MetaKey::OutputDevice), Cmp::Neq, &LOOPBACK_IFINDEX.to_ne_bytes())
    }

    /// Adds a bit to the mark.
    #[must_use]
    pub fn add_mark(self, bit: u32) -> Self {
        self.with([meta(MetaKey::Mark), and_xor(!bit, bit), set_mark()])
    }

    /// Takes a bit from the mark.
    #[must_use]
    pub fn clear_mark(self, bit: u32) -> Self {
        self.with([meta(MetaKey::Mark), and_xor(!bit, 0), set_mark()])
    }

    /// Writes the whole mark.
    #[must_use]
    pub fn write_mark(self, mark: u32) -> Self {
        self.with([Expr::Immediate { dreg: Reg::FIRST, data: mark.to_ne_bytes().to_vec() }, set_mark()])
    }

    /// Writes the whole mark with what a map says of the fields, where it says something.
    #[must_use]
    pub fn write_mark_from(self, fields: &[Field], map: impl Into<String>) -> Self {
        self.lookup(fields, map.into(), Some(Reg::FIRST), false).with([set_mark()])
    }

    /// Adds a label to the connection.
    #[must_use]
    pub fn add_ct_label(self, label: u8) -> Self {
        self.with([
            Expr::Immediate { dreg: Reg::FIRST, data: label_bits(label) },
            Expr::CtSet { key: CtKey::Labels, sreg: Reg::FIRST },
        ])
    }

    /// Lowers the MSS option of TCP to what fits the routes of both directions.
    #[must_use]
    pub fn clamp_mss(self) -> Self {
        let reg = Reg::FIRST;
        self.with([
            Expr::Rt { key: RT_TCP_MSS, dreg: reg },
            Expr::HostToNetwork { reg, len: 2 },
            Expr::TcpOptionSet { kind: TCP_OPTION_MSS, offset: 2, len: 2, sreg: reg },
        ])
    }

    /// Counts packets and bytes.
    #[must_use]
    pub fn counter(self) -> Self {
        self.with([Expr::Counter])
    }

    /// Takes the address of the outgoing device, with a port that cannot be guessed.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.with([Expr::Masquerade { flags: NAT_FULLY_RANDOM }])
    }

    /// Answers "port unreachable".
    #[must_use]
    pub fn reject(self) -> Self {
        self.with([Expr::Reject(Reject::PortUnreachable)])
    }

    /// Answers with a TCP reset.
    #[must_use]
    pub fn reset(self) -> Self {
        self.with([Expr::Reject(Reject::TcpReset)])
    }

    /// Ends this base chain.
    #[must_use]
    pub fn accept(self) -> Self {
        self.with([Expr::Verdict(Verdict::Accept)])
    }

    /// Drops the packet.
    #[must_use]
    pub fn discard(self) -> Self {
        self.with([Expr::Verdict(Verdict::Drop)])
    }

    /// Goes through another chain.
    #[must_use]
    pub fn jump(self, chain: impl Into<String>) -> Self {
        self.with([Expr::Verdict(Verdict::Jump(chain.into()))])
    }
}

fn meta(key: MetaKey) -> Expr {
    Expr::Meta { key, dreg: Reg::FIRST }
}

fn ct(key: CtKey) -> Expr {
    Expr::Ct { key, direction: None, dreg: Reg::FIRST }
}

fn set_mark() -> Expr {
    Expr::MetaSet { key: MetaKey::Mark, sreg: Reg::FIRST }
}

fn and_xor(mask: u32, xor: u32) -> Expr {
    let (mask, xor) = (mask.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec());
    Expr::Bitwise { sreg: Reg::FIRST, dreg: Reg::FIRST, mask, xor }
}

/// Labels are a bitmap of two `unsigned long` of 64 bits.
fn label_bits(label: u8) -> Vec<u8> {
    let bit = 1u64 << (label % 64);
    let words = if label < 64 { [bit, 0] } else { [0, bit] };
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}
