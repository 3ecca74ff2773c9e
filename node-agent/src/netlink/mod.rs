//! Our own netlink transport, blocking, one socket a protocol and thread.

pub mod attr;
