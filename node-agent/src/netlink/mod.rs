//! Our own netlink transport: blocking, one socket a protocol and thread.
//!
//! No crate fits: the ones there are hang or lose answers on ENOBUFS, accept interrupted dumps, or
//! build a tree of vectors for every message.

pub mod attr;
pub mod error;
pub mod genl;
pub mod message;
pub mod socket;

pub use attr::{Attr, AttrWriter, Attrs};
pub use error::{KernelError, NetlinkError};
pub use message::{Message, Requests};
pub use socket::Socket;
