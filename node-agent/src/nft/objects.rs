//! Tables, chains, sets and rules as values, to and from the kernel's attributes.

use crate::netlink::{Attr, AttrWriter, Attrs};

use super::{
    expr,
    rule::Rule,
    uapi::{chain, rule, set, table},
    userdata::{self, CommentOf, NETWORK_ORDER, UserData},
};

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Address family, `NFPROTO_*`.
    pub family: u8,
    /// Name.
    pub name: String,
    /// Dormant (1), owned by a process (2), and so on; 0 for an ordinary one.
    pub flags: u32,
}

/// Where a base chain sits (`enum nf_inet_hooks`; the names hold for ip, ip6 and inet tables).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Every packet that comes in, before routing.
    Prerouting,
    /// Packets for this node.
    Input,
    /// Packets on their way through.
    Forward,
    /// Packets that this node sends.
    Output,
    /// Every packet that goes out.
    Postrouting,
    /// Another, by its number.
    Other(u32),
}

impl Hook {
    const NAMED: [Self; 5] = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> Self {
        Self::NAMED.into_iter().find(|hook| hook.number() == number).unwrap_or(Self::Other(number))
    }
}

/// What happens at the end of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The packet goes on.
    Accept,
    /// It is dropped.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Where.
    pub hook: Hook,
    /// Lower comes first.
    pub priority: i32,
    /// At its end.
    pub policy: Policy,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Its place, if it is a base chain.
    pub base: Option<Base>,
}

/// Something of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Of<T> {
    /// Address family of the table, `NFPROTO_*`.
    pub family: u8,
    /// Name of the table.
    pub table: String,
    /// The thing.
    pub item: T,
}

/// Type of a part of a key, or of the data of a map. The numbers are `nft`'s (`enum datatypes`):
/// the kernel keeps them for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// IPv4 address.
    Ipv4 = 7,
    /// IPv6 address.
    Ipv6 = 8,
    /// Transport protocol.
    Protocol = 12,
    /// Port.
    Port = 13,
    /// Packet mark.
    Mark = 19,
}

impl DataType {
    /// Bytes it takes, padded to a register as in a concatenation.
    fn padded_len(self) -> u32 {
        if matches!(self, Self::Ipv6) { 16 } else { 4 }
    }
}

/// A set, or a map when it has data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Type of its keys: up to five types of six bits, as `nft` packs them.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// Type and length of the data of a map.
    pub data: Option<(u32, u32)>,
    /// `NFT_SET_*`, without the one that says map.
    pub flags: u32,
    /// What it is for.
    pub comment: Option<String>,
}

impl Set {
    /// A set of keys made of `fields`.
    pub fn new(name: impl Into<String>, fields: &[DataType], comment: impl Into<String>) -> Self {
        const BITS_PER_TYPE: u32 = 6;
        Self {
            name: name.into(),
            key_type: fields.iter().fold(0, |all, field| all << BITS_PER_TYPE | *field as u32),
            key_len: fields.iter().map(|field| field.padded_len()).sum(),
            data: None,
            flags: 0,
            comment: Some(comment.into()),
        }
    }

    /// Makes it a map.
    #[must_use]
    pub fn to(mut self, data: DataType) -> Self {
        self.data = Some((data as u32, data.padded_len()));
        self
    }

    /// Makes it a set of intervals.
    #[must_use]
    pub fn of_intervals(mut self) -> Self {
        self.flags |= set::F_INTERVAL;
        self
    }

    pub(super) fn encode(&self, w: &mut AttrWriter<'_>, table: &str, id: u32) {
        let map = if self.data.is_some() { set::F_MAP } else { 0 };
        w.string(set::TABLE, table).string(set::NAME, &self.name);
        w.be32(set::FLAGS, self.flags | map).be32(set::KEY_TYPE, self.key_type);
        w.be32(set::KEY_LEN, self.key_len);
        if let Some((kind, len)) = self.data {
            w.be32(set::DATA_TYPE, kind).be32(set::DATA_LEN, len);
        }
        // The kernel insists on an id, used to refer to the set inside the transaction.
        w.be32(set::ID, id);
        UserData::default()
            .byte_orders(Some(NETWORK_ORDER), self.data.map(|_| userdata::HOST_ORDER))
            .comment(CommentOf::Set, self.comment.as_deref())
            .write(w, set::USERDATA);
    }

    pub(super) fn decode(attrs: &Attrs<'_>) -> Option<Of<Self>> {
        let be32 = |kind| attrs.clone().find(kind).and_then(Attr::be32);
        let flags = be32(set::FLAGS).unwrap_or_default();
        let data = (flags & set::F_MAP != 0)
            .then(|| (be32(set::DATA_TYPE).unwrap_or_default(), be32(set::DATA_LEN).unwrap_or_default()));
        let userdata = attrs.clone().find(set::USERDATA).map_or(&[][..], |attr| attr.value);
        Some(Of {
            family: 0,
            table: string(attrs, set::TABLE)?,
            item: Self {
                name: string(attrs, set::NAME)?,
                key_type: be32(set::KEY_TYPE).unwrap_or_default(),
                key_len: be32(set::KEY_LEN)?,
                data,
                flags: flags & !set::F_MAP,
                comment: userdata::comment(CommentOf::Set, userdata),
            },
        })
    }
}

impl Table {
    pub(super) fn encode_name(w: &mut AttrWriter<'_>, name: &str, comment: Option<&str>) {
        w.string(table::NAME, name);
        // a table's comment has the same place as a rule's
        UserData::default().comment(CommentOf::Rule, comment).write(w, table::USERDATA);
    }

    pub(super) fn decode(family: u8, attrs: &Attrs<'_>) -> Option<Self> {
        let flags = attrs.clone().find(table::FLAGS).and_then(Attr::be32).unwrap_or_default();
        Some(Self { family, name: string(attrs, table::NAME)?, flags })
    }
}

impl Chain {
    pub(super) fn encode(&self, w: &mut AttrWriter<'_>, table: &str) {
        w.string(chain::TABLE, table).string(chain::NAME, &self.name);
        let Some(base) = &self.base else { return };
        w.nested(chain::HOOK, |w| {
            w.be32(chain::HOOK_NUM, base.hook.number());
            w.be32(chain::HOOK_PRIORITY, base.priority.cast_unsigned());
        });
        w.be32(chain::POLICY, u32::from(base.policy == Policy::Accept)).string(chain::TYPE, &base.kind);
    }

    pub(super) fn decode(family: u8, attrs: &Attrs<'_>) -> Option<Of<Self>> {
        let base = attrs.clone().find(chain::HOOK).and_then(|hook| {
            let hook = hook.nested();
            let be32 = |kind| hook.clone().find(kind).and_then(Attr::be32);
            let drops = attrs.clone().find(chain::POLICY).and_then(Attr::be32) == Some(0);
            Some(Base {
                kind: string(attrs, chain::TYPE)?,
                hook: Hook::from_number(be32(chain::HOOK_NUM)?),
                priority: be32(chain::HOOK_PRIORITY)?.cast_signed(),
                policy: if drops { Policy::Drop } else { Policy::Accept },
            })
        });
        let item = Self { name: string(attrs, chain::NAME)?, base };
        Some(Of { family, table: string(attrs, chain::TABLE)?, item })
    }
}

impl Rule {
    pub(super) fn encode(&self, w: &mut AttrWriter<'_>, table: &str, chain: &str) {
        w.string(rule::TABLE, table).string(rule::CHAIN, chain);
        expr::encode_list(w, rule::EXPRESSIONS, &self.exprs);
        UserData::default().comment(CommentOf::Rule, self.comment.as_deref()).write(w, rule::USERDATA);
    }

    /// A rule and the name of its chain.
    pub(super) fn decode(attrs: &Attrs<'_>) -> Option<(String, Self)> {
        let userdata = attrs.clone().find(rule::USERDATA).map_or(&[][..], |attr| attr.value);
        Some((
            string(attrs, rule::CHAIN)?,
            Self {
                exprs: attrs.clone().find(rule::EXPRESSIONS).map(expr::decode_list).unwrap_or_default(),
                comment: userdata::comment(CommentOf::Rule, userdata),
            },
        ))
    }
}

fn string(attrs: &Attrs<'_>, kind: u16) -> Option<String> {
    attrs.clone().find(kind)?.str().map(str::to_owned)
}
