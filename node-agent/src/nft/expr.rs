//! The expressions that rules are made of, typed, to and from the kernel's attributes.
//!
//! Covers what our own table needs and what must be understood of others. An expression that is
//! not known decodes to `Expr::Other`: it never matches one of ours and never fails a dump.

use crate::netlink::{Attr, AttrWriter, Attrs};

use super::uapi::{DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME, LIST_ELEM, VERDICT_CHAIN, VERDICT_CODE};

/// A register, counted in words of 32 bits (0 to 15).
///
/// The kernel names the first word of each four by the old 128-bit numbers (`nft_dump_register`);
/// we write them the same way, so that what is dumped equals what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    /// The first register.
    pub const FIRST: Self = Self(0);

    /// The register that lies `words` behind this one.
    #[must_use]
    pub fn after(self, words: u8) -> Self {
        Self(self.0.saturating_add(words))
    }

    fn number(self) -> u32 {
        let word = u32::from(self.0);
        if word % 4 == 0 { 1 + word / 4 } else { 8 + word }
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            1..=4 => u8::try_from((number - 1) * 4).ok().map(Self),
            8..=23 => u8::try_from(number - 8).ok().map(Self),
            _ => None,
        }
    }
}

/// Packet metadata (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// The packet mark.
    Mark,
    /// Index of the device that it leaves by.
    OutputDevice,
    /// Family of a packet in an `inet` table.
    NfProto,
    /// Transport protocol.
    L4Proto,
    /// A key we do not use, by its number.
    Other(u32),
}

impl MetaKey {
    fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::OutputDevice => 5,
            Self::NfProto => 15,
            Self::L4Proto => 16,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> Self {
        [Self::Mark, Self::OutputDevice, Self::NfProto, Self::L4Proto]
            .into_iter()
            .find(|key| key.number() == number)
            .unwrap_or(Self::Other(number))
    }
}

/// A fact of the packet's connection (`enum nft_ct_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// New, established, related.
    State,
    /// Original or reply.
    Direction,
    /// Translated, confirmed, and so on.
    Status,
    /// 128 labels.
    Labels,
    /// A key we do not use, by its number.
    Other(u32),
}

impl CtKey {
    fn number(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Direction => 1,
            Self::Status => 2,
            Self::Labels => 13,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> Self {
        [Self::State, Self::Direction, Self::Status, Self::Labels]
            .into_iter()
            .find(|key| key.number() == number)
            .unwrap_or(Self::Other(number))
    }
}

/// What a comparison asks (`enum nft_cmp_ops`; orderings are `Other`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// An ordering, by its number.
    Other(u32),
}

impl Cmp {
    fn number(self) -> u32 {
        match self {
            Self::Eq => 0,
            Self::Neq => 1,
            Self::Other(number) => number,
        }
    }
}

/// Where a header field is counted from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// IP or IPv6.
    Network,
    /// TCP, UDP, SCTP.
    Transport,
    /// Another, by its number.
    Other(u32),
}

impl Header {
    fn number(self) -> u32 {
        match self {
            Self::Network => 1,
            Self::Transport => 2,
            Self::Other(number) => number,
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next base chain.
    Accept,
    /// Gone.
    Drop,
    /// Back to the calling chain; in a base chain, its policy.
    Return,
    /// Through another chain and back.
    Jump(String),
    /// Another one, by its code.
    Other(i32),
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Return => -5,
            Self::Other(code) => *code,
        }
    }
}

/// How a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// ICMP or ICMPv6 "port unreachable": the client sees "connection refused".
    PortUnreachable,
    /// A TCP reset.
    TcpReset,
    /// Another answer: type and code.
    Other(u32, u8),
}

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads metadata.
    Meta {
        /// What.
        key: MetaKey,
        /// Where to.
        dreg: Reg,
    },
    /// Writes metadata.
    MetaSet {
        /// What.
        key: MetaKey,
        /// Where from.
        sreg: Reg,
    },
    /// Loads a header field.
    Payload {
        /// Which header.
        base: Header,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads a fact of the connection.
    Ct {
        /// What.
        key: CtKey,
        /// Of which direction (0 original, 1 reply), for keys that have one.
        direction: Option<u8>,
        /// Where to.
        dreg: Reg,
    },
    /// Writes a fact of the connection; labels are only ever added.
    CtSet {
        /// What.
        key: CtKey,
        /// Where from.
        sreg: Reg,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// Where from.
        sreg: Reg,
        /// Where to.
        dreg: Reg,
        /// What stays.
        mask: Vec<u8>,
        /// What flips, of the same length.
        xor: Vec<u8>,
    },
    /// Goes on when the comparison holds.
    Cmp {
        /// Left side.
        sreg: Reg,
        /// How.
        op: Cmp,
        /// Right side.
        data: Vec<u8>,
    },
    /// Goes on when the key is in a set; for a map, loads its data.
    Lookup {
        /// Name of the set.
        set: String,
        /// The key.
        sreg: Reg,
        /// Where the data of a map goes.
        dreg: Option<Reg>,
        /// Goes on when it is not in the set.
        inverted: bool,
    },
    /// Loads what the routing table says.
    Fib {
        /// Which fields of the packet are looked up.
        flags: u32,
        /// What is asked.
        result: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads a value.
    Immediate {
        /// Where to.
        dreg: Reg,
        /// The value.
        data: Vec<u8>,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// Counts.
    Counter,
    /// Refuses.
    Reject(Reject),
    /// Takes the address of the device that the packet leaves by.
    Masquerade {
        /// `NF_NAT_RANGE_*`.
        flags: u32,
    },
    /// Loads a fact of the packet's route.
    Rt {
        /// `enum nft_rt_keys`.
        key: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Host to network order, in place of `len` bytes.
    HostToNetwork {
        /// Where from and to.
        reg: Reg,
        /// Bytes.
        len: u32,
    },
    /// Writes part of a TCP option.
    TcpOptionSet {
        /// Kind of the option.
        kind: u8,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
        /// Where from.
        sreg: Reg,
    },
    /// The `mark` match of iptables-nft.
    XtMark {
        /// Value.
        mark: u32,
        /// Bits that are compared.
        mask: u32,
        /// Matches when they differ.
        invert: bool,
    },
    /// One we do not know, by its name.
    Other(String),
}

/// `NFT_FIB_RESULT_ADDRTYPE`.
pub const FIB_ADDRESS_TYPE: u32 = 3;
/// `NFTA_FIB_F_DADDR`.
pub const FIB_DESTINATION: u32 = 2;
/// `NFT_RT_TCPMSS`.
pub const RT_TCP_MSS: u32 = 3;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
pub const NAT_FULLY_RANDOM: u32 = 16;

const BYTEORDER_HTON: u32 = 1;
const EXTHDR_TCP_OPTION: u32 = 1;
const LOOKUP_INVERTED: u32 = 1;

fn data(writer: &mut AttrWriter<'_>, kind: u16, value: &[u8]) {
    writer.nested(kind, |w| {
        w.bytes(DATA_VALUE, value);
    });
}

/// Writes expressions as the value of `kind`.
pub(super) fn encode_list(writer: &mut AttrWriter<'_>, kind: u16, exprs: &[Expr]) {
    writer.nested(kind, |list| {
        for expr in exprs {
            list.nested(LIST_ELEM, |w| {
                w.string(EXPR_NAME, expr.name());
                w.nested(EXPR_DATA, |w| expr.encode(w));
            });
        }
    });
}

/// Reads a list of expressions.
pub(super) fn decode_list(list: Attr<'_>) -> Vec<Expr> {
    list.nested().filter(|attr| attr.kind == LIST_ELEM).map(|attr| Expr::decode(attr.nested())).collect()
}

impl Expr {
    fn name(&self) -> &str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Fib { .. } => "fib",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Counter => "counter",
            Self::Reject(_) => "reject",
            Self::Masquerade { .. } => "masq",
            Self::Rt { .. } => "rt",
            Self::HostToNetwork { .. } => "byteorder",
            Self::TcpOptionSet { .. } => "exthdr",
            Self::XtMark { .. } => "match",
            Self::Other(name) => name,
        }
    }

    fn encode(&self, w: &mut AttrWriter<'_>) {
        match self {
            Self::Meta { key, dreg } => w.be32(1, dreg.number()).be32(2, key.number()),
            Self::MetaSet { key, sreg } => w.be32(2, key.number()).be32(3, sreg.number()),
            Self::Payload { base, offset, len, dreg } => {
                w.be32(1, dreg.number()).be32(2, base.number()).be32(3, *offset).be32(4, *len)
            }
            Self::Ct { key, direction, dreg } => {
                w.be32(1, dreg.number()).be32(2, key.number());
                match direction {
                    Some(direction) => w.bytes(3, &[*direction]),
                    None => w,
                }
            }
            Self::CtSet { key, sreg } => w.be32(2, key.number()).be32(4, sreg.number()),
            Self::Bitwise { sreg, dreg, mask, xor } => {
                let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                w.be32(1, sreg.number()).be32(2, dreg.number()).be32(3, len);
                data(w, 4, mask);
                data(w, 5, xor);
                w
            }
            Self::Cmp { sreg, op, data: value } => {
                w.be32(1, sreg.number()).be32(2, op.number());
                data(w, 3, value);
                w
            }
            Self::Lookup { set, sreg, dreg, inverted } => {
                w.string(1, set).be32(2, sreg.number());
                if let Some(dreg) = dreg {
                    w.be32(3, dreg.number());
                }
                w.be32(5, if *inverted { LOOKUP_INVERTED } else { 0 })
            }
            Self::Fib { flags, result, dreg } => w.be32(1, dreg.number()).be32(2, *result).be32(3, *flags),
            Self::Immediate { dreg, data: value } => {
                w.be32(1, dreg.number());
                data(w, 2, value);
                w
            }
            Self::Verdict(verdict) => encode_verdict(w, verdict),
            Self::Reject(reject) => match reject {
                Reject::PortUnreachable => w.be32(1, 2).bytes(2, &[1]),
                Reject::TcpReset => w.be32(1, 1),
                Reject::Other(kind, code) => w.be32(1, *kind).bytes(2, &[*code]),
            },
            Self::Masquerade { flags } => w.be32(1, *flags),
            Self::Rt { key, dreg } => w.be32(1, dreg.number()).be32(2, *key),
            Self::HostToNetwork { reg, len } => w
                .be32(1, reg.number())
                .be32(2, reg.number())
                .be32(3, BYTEORDER_HTON)
                .be32(4, *len)
                .be32(5, *len),
            Self::TcpOptionSet { kind, offset, len, sreg } => w
                .bytes(2, &[*kind])
                .be32(3, *offset)
                .be32(4, *len)
                .be32(6, EXTHDR_TCP_OPTION)
                .be32(7, sreg.number()),
            // Counters start at zero; matches of iptables are only read.
            Self::Counter | Self::XtMark { .. } | Self::Other(_) => w,
        };
    }

    fn decode(attrs: Attrs<'_>) -> Self {
        let name = attrs.clone().find(EXPR_NAME).and_then(Attr::str).unwrap_or_default();
        let fields = Fields(attrs.find(EXPR_DATA).map_or(Attrs::new(&[]), Attr::nested));
        Self::decode_known(name, &fields).unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    fn decode_known(name: &str, f: &Fields<'_>) -> Option<Self> {
        Some(match name {
            "meta" => {
                let key = MetaKey::from_number(f.be32(2)?);
                match f.reg(3) {
                    Some(sreg) => Self::MetaSet { key, sreg },
                    None => Self::Meta { key, dreg: f.reg(1)? },
                }
            }
            "payload" => decode_payload(f)?,
            "ct" => {
                let key = CtKey::from_number(f.be32(2)?);
                match f.reg(4) {
                    Some(sreg) => Self::CtSet { key, sreg },
                    None => Self::Ct { key, direction: f.byte(3), dreg: f.reg(1)? },
                }
            }
            "bitwise" => {
                // Shifts and, since 6.12, two-register operations name an operation other than 0.
                if f.be32(6).is_some_and(|operation| operation != 0) {
                    return None;
                }
                Self::Bitwise { sreg: f.reg(1)?, dreg: f.reg(2)?, mask: f.data(4)?, xor: f.data(5)? }
            }
            "cmp" => {
                let op = match f.be32(2)? {
                    0 => Cmp::Eq,
                    1 => Cmp::Neq,
                    other => Cmp::Other(other),
                };
                Self::Cmp { sreg: f.reg(1)?, op, data: f.data(3)? }
            }
            "lookup" => Self::Lookup {
                set: f.str(1)?,
                sreg: f.reg(2)?,
                dreg: f.reg(3),
                inverted: f.be32(5).unwrap_or_default() & LOOKUP_INVERTED != 0,
            },
            "fib" => Self::Fib { dreg: f.reg(1)?, result: f.be32(2)?, flags: f.be32(3)? },
            "immediate" => match decode_verdict(f) {
                Some(verdict) => Self::Verdict(verdict),
                None => Self::Immediate { dreg: f.reg(1)?, data: f.data(2)? },
            },
            "counter" => Self::Counter,
            "reject" => Self::Reject(match (f.be32(1)?, f.byte(2).unwrap_or_default()) {
                (2, 1) => Reject::PortUnreachable,
                (1, _) => Reject::TcpReset,
                (kind, code) => Reject::Other(kind, code),
            }),
            // with a range of ports it is another expression
            "masq" if f.be32(2).is_none() => Self::Masquerade { flags: f.be32(1).unwrap_or_default() },
            "rt" => Self::Rt { dreg: f.reg(1)?, key: f.be32(2)? },
            "byteorder" => decode_byteorder(f)?,
            "exthdr" if f.be32(6) == Some(EXTHDR_TCP_OPTION) => {
                Self::TcpOptionSet { kind: f.byte(2)?, offset: f.be32(3)?, len: f.be32(4)?, sreg: f.reg(7)? }
            }
            "match" => decode_xt_mark(f)?,
            _ => return None,
        })
    }
}

fn encode_verdict<'a, 'b>(w: &'a mut AttrWriter<'b>, verdict: &Verdict) -> &'a mut AttrWriter<'b> {
    const VERDICT_REGISTER: u32 = 0;
    w.be32(1, VERDICT_REGISTER).nested(2, |w| {
        w.nested(DATA_VERDICT, |w| {
            w.bytes(VERDICT_CODE, &verdict.code().to_be_bytes());
            if let Verdict::Jump(chain) = verdict {
                w.string(VERDICT_CHAIN, chain);
            }
        });
    })
}

fn decode_verdict(f: &Fields<'_>) -> Option<Verdict> {
    let attrs = f.attr(2)?.nested().find(DATA_VERDICT)?.nested();
    let code = attrs.clone().find(VERDICT_CODE)?.be32()?.cast_signed();
    let chain = attrs.find(VERDICT_CHAIN).and_then(Attr::str);
    Some(match (code, chain) {
        (0, _) => Verdict::Drop,
        (1, _) => Verdict::Accept,
        (-3, Some(chain)) => Verdict::Jump(chain.to_owned()),
        (-5, _) => Verdict::Return,
        _ => Verdict::Other(code),
    })
}

fn decode_payload(f: &Fields<'_>) -> Option<Expr> {
    let base = match f.be32(2)? {
        1 => Header::Network,
        2 => Header::Transport,
        other => Header::Other(other),
    };
    Some(Expr::Payload { base, offset: f.be32(3)?, len: f.be32(4)?, dreg: f.reg(1)? })
}

fn decode_byteorder(f: &Fields<'_>) -> Option<Expr> {
    let (reg, len) = (f.reg(1)?, f.be32(4)?);
    let ours = f.reg(2)? == reg && f.be32(3)? == BYTEORDER_HTON && f.be32(5)? == len;
    ours.then_some(Expr::HostToNetwork { reg, len })
}

/// `struct xt_mark_mtinfo1` of an iptables-nft rule.
fn decode_xt_mark(f: &Fields<'_>) -> Option<Expr> {
    let info = f.attr(3)?.value;
    let word = |at: usize| info.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if f.str(1)? != "mark" || f.be32(2)? != 1 {
        return None;
    }
    Some(Expr::XtMark { mark: word(0)?, mask: word(4)?, invert: *info.get(8)? != 0 })
}

/// The attributes inside one expression.
struct Fields<'a>(Attrs<'a>);

impl<'a> Fields<'a> {
    fn attr(&self, kind: u16) -> Option<Attr<'a>> {
        self.0.clone().find(kind)
    }

    fn be32(&self, kind: u16) -> Option<u32> {
        self.attr(kind)?.be32()
    }

    fn byte(&self, kind: u16) -> Option<u8> {
        self.attr(kind)?.value.first().copied()
    }

    fn reg(&self, kind: u16) -> Option<Reg> {
        Reg::from_number(self.be32(kind)?)
    }

    fn str(&self, kind: u16) -> Option<String> {
        self.attr(kind)?.str().map(str::to_owned)
    }

    fn data(&self, kind: u16) -> Option<Vec<u8>> {
        Some(self.attr(kind)?.nested().find(DATA_VALUE)?.value.to_vec())
    }
}

#[cfg(test)]
#[path = "expr_tests.rs"]
mod tests;
