//! Servers and clients, within the process of the test and in namespaces it made, or in pods as the program `traffic`:
//! plain threads and blocking sockets.
//!
//! The protocol is a line each way, the same over TCP, UDP (a datagram is a line) and SCTP:
//!
//! ```text
//!   who          ->  <name of the server> <address it saw> <port it saw>
//!   big <n>      ->  n bytes
//!   upload <n>   ->  (n bytes follow; in a datagram they are its padding)  got <n>
//!   GET / ...    ->  an HTTP/1.1 answer with the line of `who`, so that curl can ask too
//! ```

mod client;
mod server;
mod socket;
mod stream;

use std::fmt;
use std::io;
use std::net::IpAddr;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::ns::Namespace;

pub use client::{Client, Conn, Interrupted};
pub use server::Server;
pub use stream::{Failure, Report, RequestStream};

/// Where sockets are made.
#[derive(Debug, Clone)]
enum Place {
    /// In a namespace.
    Namespace(Namespace),
    /// Where this process is.
    Here,
}

impl Place {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        match self {
            Self::Namespace(namespace) => namespace.run(work),
            Self::Here => Ok(work()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(namespace) => write!(f, "in {}", namespace.name()),
            Self::Here => f.write_str("here"),
        }
    }
}

/// A transport a Service port may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, one-to-one style.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Outcome {
    /// A server answered.
    Answer {
        /// Its name.
        server: String,
        /// The address it saw the request come from.
        saw_source: IpAddr,
    },
    /// Refused: a reset or an abort to the first packet, or ICMP port unreachable.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// The connection was there and was cut, or ended where an answer was due.
    Reset,
    /// ICMP said that the host, the network or the way there is closed.
    Unreachable,
    /// Anything else, as the kernel put it.
    Other(String),
}

impl Outcome {
    /// The name of the server that answered.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Answer { server, .. } => Some(server),
            _ => None,
        }
    }

    /// The address the server saw.
    pub fn saw_source(&self) -> Option<IpAddr> {
        match self {
            Self::Answer { saw_source, .. } => Some(*saw_source),
            _ => None,
        }
    }

    /// Reads the answer to `who`.
    fn from_answer(line: &str) -> Self {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().map(str::parse)) {
            (Some(server), Some(Ok(saw_source))) => Self::Answer { server: server.to_owned(), saw_source },
            _ => Self::Other(format!("an answer that is none: {line:?}")),
        }
    }

    fn from_error(error: &io::Error) -> Self {
        let Some(errno) = error.raw_os_error().map(Errno::from_raw_os_error) else {
            return match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
                io::ErrorKind::UnexpectedEof => Self::Reset,
                _ => Self::Other(error.to_string()),
            };
        };
        match errno {
            Errno::CONNREFUSED => Self::Refused,
            // a blocking socket with a time limit says EAGAIN, and EINPROGRESS when it was connecting
            Errno::TIMEDOUT | Errno::AGAIN | Errno::INPROGRESS => Self::TimedOut,
            Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED => Self::Reset,
            // IPv6 "administratively prohibited" is EACCES
            Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ACCESS => Self::Unreachable,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { server, saw_source } => write!(f, "{server} saw {saw_source}"),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Reset => f.write_str("reset"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Other(error) => f.write_str(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_server_and_the_address_it_saw() {
        let outcome = Outcome::from_answer("pod1 fd00:16::2 40312\n");
        assert_eq!(outcome.server(), Some("pod1"));
        assert_eq!(outcome.saw_source().unwrap().to_string(), "fd00:16::2");
    }

    #[test]
    fn half_an_answer_is_not_an_answer() {
        assert!(matches!(Outcome::from_answer("pod1"), Outcome::Other(_)));
        assert!(matches!(Outcome::from_answer("pod1 nowhere"), Outcome::Other(_)));
    }

    #[test]
    fn errors_of_the_kernel_have_plain_names() {
        let outcome = |errno: Errno| Outcome::from_error(&errno.into());
        assert_eq!(outcome(Errno::CONNREFUSED), Outcome::Refused);
        assert_eq!(outcome(Errno::INPROGRESS), Outcome::TimedOut);
        assert_eq!(outcome(Errno::AGAIN), Outcome::TimedOut);
        assert_eq!(outcome(Errno::CONNRESET), Outcome::Reset);
        assert_eq!(outcome(Errno::HOSTUNREACH), Outcome::Unreachable);
        assert_eq!(outcome(Errno::ACCESS), Outcome::Unreachable);
        assert!(matches!(outcome(Errno::NOMEM), Outcome::Other(_)));
    }
}
