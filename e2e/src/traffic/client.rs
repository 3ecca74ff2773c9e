//! Clients: one request, or a connection that is kept and asked again later.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::stream::RequestStream;
use super::{Outcome, Place, Protocol, socket};
use crate::ns::Namespace;

/// Long enough for a retransmitted SYN (after 1 s) on a busy machine.
const LIMIT: Duration = Duration::from_secs(4);

/// A transfer that ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    /// The bytes that came through.
    pub bytes: usize,
    /// What stopped it.
    pub outcome: Outcome,
}

/// A place to send requests from.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
    limit: Duration,
    source: Option<SocketAddr>,
}

impl Client {
    /// A client in a namespace.
    pub fn in_ns(namespace: &Namespace) -> Self {
        Self::at(Place::Namespace(namespace.clone()))
    }

    /// A client where this process is.
    pub fn here() -> Self {
        Self::at(Place::Here)
    }

    fn at(place: Place) -> Self {
        Self { place, limit: LIMIT, source: None }
    }

    /// How long each step (connect, send, receive) may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The address and port to ask from; port 0 leaves the port to the kernel.
    #[must_use]
    pub fn source(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Asks `who` on a new connection.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr) -> Outcome {
        match self.connect(protocol, to) {
            Ok(mut conn) => conn.ask(),
            Err(outcome) => outcome,
        }
    }

    /// Opens a connection to be kept; over UDP, a socket whose packets belong to one flow.
    pub fn connect(&self, protocol: Protocol, to: SocketAddr) -> Result<Conn, Outcome> {
        let opened = self.place.run(|| match protocol {
            Protocol::Udp => socket::datagram(self.source, to, self.limit).map(Conn::Datagram),
            Protocol::Tcp | Protocol::Sctp => {
                socket::stream(protocol, self.source, to, self.limit).map(Conn::Stream)
            }
        });
        match opened {
            Ok(result) => result.map_err(|error| Outcome::from_error(&error)),
            Err(error) => Err(Outcome::Other(format!("{error:#}"))),
        }
    }

    /// Asks `per_second` times a second, each time on a new connection, until stopped.
    pub fn requests(&self, protocol: Protocol, to: SocketAddr, per_second: u32) -> RequestStream {
        RequestStream::of_requests(self.clone(), protocol, to, per_second)
    }

    /// Asks `per_second` times a second, all on one connection, until that breaks or the stream is stopped.
    pub fn hold(&self, protocol: Protocol, to: SocketAddr, per_second: u32) -> RequestStream {
        RequestStream::on_one_connection(self.clone(), protocol, to, per_second)
    }
}

/// A connection that is open.
#[derive(Debug)]
pub enum Conn {
    /// TCP or SCTP.
    Stream(TcpStream),
    /// UDP.
    Datagram(UdpSocket),
}

impl Conn {
    /// Asks `who`.
    pub fn ask(&mut self) -> Outcome {
        match self.send(b"who\n").and_then(|()| self.line()) {
            Ok(line) => Outcome::from_answer(&line),
            Err(error) => Outcome::from_error(&error),
        }
    }

    /// Has the server send `bytes` bytes; over UDP in one datagram.
    pub fn download(&mut self, bytes: usize) -> Result<(), Interrupted> {
        let mut got = 0;
        let mut buffer = vec![0; 65_536];
        let interrupted =
            |bytes, error: &io::Error| Interrupted { bytes, outcome: Outcome::from_error(error) };
        self.send(format!("big {bytes}\n").as_bytes()).map_err(|error| interrupted(0, &error))?;
        while got < bytes {
            match self.receive(&mut buffer) {
                Ok(0) => return Err(Interrupted { bytes: got, outcome: Outcome::Reset }),
                Ok(read) => got += read,
                Err(error) => return Err(interrupted(got, &error)),
            }
        }
        Ok(())
    }

    /// Sends `bytes` bytes and has the server confirm them; over UDP in one datagram of that size.
    pub fn upload(&mut self, bytes: usize) -> Result<(), Interrupted> {
        let mut message = format!("upload {bytes}\n").into_bytes();
        match self {
            Self::Stream(_) => message.extend(vec![b'u'; bytes]),
            Self::Datagram(_) => message.resize(bytes.max(message.len()), b'u'),
        }
        let confirmed = match self.send(&message).and_then(|()| self.line()) {
            Ok(line) => {
                line.trim().strip_prefix("got ").and_then(|count| count.parse().ok()).unwrap_or_default()
            }
            Err(error) => return Err(Interrupted { bytes: 0, outcome: Outcome::from_error(&error) }),
        };
        if confirmed == bytes {
            return Ok(());
        }
        Err(Interrupted { bytes: confirmed, outcome: Outcome::Other("another count was confirmed".into()) })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => socket::send(stream, bytes),
            Self::Datagram(socket) => socket.send(bytes).map(drop),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.read(buffer),
            Self::Datagram(socket) => socket.recv(buffer),
        }
    }

    /// One line; what follows it was not asked for and would be lost.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut buffer = [0; 512];
        while line.last() != Some(&b'\n') {
            let read = self.receive(&mut buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            line.extend(buffer.iter().take(read));
        }
        String::from_utf8(line).map_err(io::Error::other)
    }
}
