//! What can go wrong on a netlink socket, and what an errno of the kernel usually means here.

use std::{fmt, io};

/// The transport failed: what the kernel did with the requests under way is unknown.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket. Needs CAP_NET_ADMIN for its buffer sizes too.
    #[error("failed to open a netlink socket (is CAP_NET_ADMIN there?)")]
    Open(#[source] io::Error),
    /// The kernel took no bytes.
    #[error("failed to send {bytes} bytes of netlink requests")]
    Send {
        /// Length of the batch.
        bytes: usize,
        /// Cause.
        source: io::Error,
    },
    /// No answer could be read.
    #[error("failed to receive a netlink answer")]
    Receive(#[source] io::Error),
    /// ENOBUFS: answers or events were lost.
    #[error("netlink answers were lost (receive buffer overrun)")]
    Overrun,
    /// The kernel did not answer in time.
    #[error("the kernel did not answer a netlink request in time")]
    TimedOut,
    /// A message longer than the buffer, or shorter than its header.
    #[error("a netlink message of {length} bytes was cut short")]
    Truncated {
        /// Length of the message.
        length: usize,
    },
    /// The table never held still long enough to be read.
    #[error("a netlink dump was interrupted {0} times in a row")]
    DumpInterrupted(usize),
    /// The module that speaks this generic netlink family is not there.
    #[error("the kernel has no generic netlink family {name}: load its module")]
    NoFamily {
        /// Name of the family.
        name: &'static str,
    },
    /// The request itself was refused.
    #[error("the kernel refused a netlink request: {0}")]
    Kernel(#[source] KernelError),
}

impl NetlinkError {
    /// The errno of a refused request.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel(error) => Some(error.errno),
            _ => None,
        }
    }
}

/// A request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    /// Positive errno.
    pub errno: i32,
    /// The kernel's own words (extended acknowledgement), where it has some.
    pub message: Option<String>,
}

impl std::error::Error for KernelError {}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if let Some(hint) = hint(self.errno) {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

fn hint(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EPERM | libc::EACCES => Some("CAP_NET_ADMIN is missing"),
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT => {
            Some("the kernel lacks this feature or its module is not loaded")
        }
        libc::ENOMEM | libc::ENFILE | libc::ENOSPC => {
            Some("the kernel is out of memory or the table is full")
        }
        _ => None,
    }
}
