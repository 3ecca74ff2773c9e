//! nftables over netlink: typed expressions and objects, transactions, dumps.
//!
//! Owns the wire format. Knows nothing of Services or of what is in our table, and touches no
//! table but the one that a transaction names.

mod client;
mod elements;
mod expr;
mod foreign;
mod objects;
mod rule;
mod transaction;
mod uapi;
mod userdata;

pub use client::{Client, NftError};
pub use elements::{Encode, RawElement};
pub use expr::{Cmp, CtKey, Expr, Header, MetaKey, Reg, Reject, Verdict};
pub use foreign::{AcceptedMark, Foreign, ForeignChain, accepted_mark};
pub use objects::{Base, Chain, DataType, Hook, Of, Policy, Set, Table};
pub use rule::{CT_KNOWN, CT_NEW, Field, Rule};
pub use transaction::Transaction;
pub use uapi::NFPROTO_INET;
