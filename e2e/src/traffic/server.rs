//! A server in a namespace: answers until it goes out of scope, then all its connections are cut.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{Place, Protocol, socket};
use crate::ns::Namespace;

/// The largest datagram that fits in an IPv4 packet.
const MAX_DATAGRAM: usize = 65_507;

/// A running server.
#[derive(Debug)]
pub struct Server {
    name: String,
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves on a port of every address of the namespace, in both families.
    ///
    /// Where a host has several addresses (a node), UDP answers may leave from another one than was asked, and SCTP
    /// announces them all: name the addresses with [`Server::at`] there.
    pub fn start(namespace: &Namespace, name: &str, protocol: Protocol, port: u16) -> Result<Self> {
        Self::at(namespace, name, protocol, &everywhere(port))
    }

    /// Serves on a port of every address where this process is.
    pub fn here(name: &str, protocol: Protocol, port: u16) -> Result<Self> {
        Self::serve(&Place::Here, name, protocol, &everywhere(port))
    }

    /// Serves at the given addresses. The name is what it answers with; it holds no blank.
    pub fn at(
        namespace: &Namespace,
        name: &str,
        protocol: Protocol,
        addresses: &[SocketAddr],
    ) -> Result<Self> {
        Self::serve(&Place::Namespace(namespace.clone()), name, protocol, addresses)
    }

    fn serve(place: &Place, name: &str, protocol: Protocol, addresses: &[SocketAddr]) -> Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut server = Self { name: name.to_owned(), stop, threads: Vec::new() };
        for address in addresses {
            let failed = || format!("failed to serve {protocol} at {address} {place}");
            let (name, stop) = (server.name.clone(), Arc::clone(&server.stop));
            server.threads.push(if protocol == Protocol::Udp {
                let socket = place.run(|| socket::datagram_listener(*address))?.with_context(failed)?;
                thread::spawn(move || serve_datagrams(&socket, &name, &stop))
            } else {
                let listener = place.run(|| socket::listener(protocol, *address))?.with_context(failed)?;
                thread::spawn(move || serve_connections(&listener, &name, &stop))
            });
        }
        Ok(server)
    }

    /// The name it answers with.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // the event is never read: it stays for every thread that waits for it
        if rustix::io::write(&self.stop, &1u64.to_ne_bytes()).is_ok() {
            for thread in self.threads.drain(..) {
                // a server thread that panicked has said so already
                let _ = thread.join();
            }
        }
    }
}

/// A port of all addresses of both families.
fn everywhere(port: u16) -> [SocketAddr; 2] {
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].map(|ip| SocketAddr::new(ip, port))
}

/// Waits until there is something to read; false when the server is to stop.
fn readable(socket: impl AsFd, stop: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => return fds.get(1).is_some_and(|stop| stop.revents().is_empty()),
        }
    }
}

fn serve_connections(listener: &TcpListener, name: &str, stop: &OwnedFd) {
    thread::scope(|scope| {
        while readable(listener, stop) {
            // a client that has gone again before it was accepted is no fault of the server
            let Ok((connection, _)) = listener.accept() else { continue };
            scope.spawn(move || serve_connection(&connection, name, stop));
        }
    });
}

/// Serves until the client closes, the connection breaks, or the server stops.
fn serve_connection(connection: &TcpStream, name: &str, stop: &OwnedFd) -> io::Result<()> {
    let who = format!("{name} {}\n", seen(connection.peer_addr()?));
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    while !reader.buffer().is_empty() || readable(connection, stop) {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            break;
        }
        match Request::parse(&line) {
            Request::Who => socket::send(connection, who.as_bytes())?,
            Request::Big(bytes) => socket::send(connection, &vec![b'x'; bytes])?,
            Request::Upload(bytes) => {
                let wanted = u64::try_from(bytes).map_err(io::Error::other)?;
                let got = io::copy(&mut (&mut reader).take(wanted), &mut io::sink())?;
                socket::send(connection, format!("got {got}\n").as_bytes())?;
            }
            Request::Http => {
                while line.trim_end() != "" {
                    line.clear();
                    if reader.read_line(&mut line)? == 0 {
                        break;
                    }
                }
                let length = who.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
                );
                socket::send(connection, &[head.as_bytes(), who.as_bytes()].concat())?;
            }
            Request::Unknown => socket::send(connection, b"what?\n")?,
        }
    }
    Ok(())
}

fn serve_datagrams(socket: &UdpSocket, name: &str, stop: &OwnedFd) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while readable(socket, stop) {
        // an error here is the ICMP answer to an earlier reply
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        let answer = match Request::parse(text.lines().next().unwrap_or_default()) {
            Request::Who => format!("{name} {}\n", seen(peer)).into_bytes(),
            Request::Big(bytes) => vec![b'x'; bytes.min(MAX_DATAGRAM)],
            Request::Upload(_) => format!("got {length}\n").into_bytes(),
            Request::Http | Request::Unknown => b"what?\n".to_vec(),
        };
        // the peer may be gone; a lost answer is for the client to notice
        let _ = socket.send_to(&answer, peer);
    }
}

fn seen(peer: SocketAddr) -> String {
    format!("{} {}", peer.ip(), peer.port())
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Who,
    Big(usize),
    Upload(usize),
    Http,
    Unknown,
}

impl Request {
    fn parse(line: &str) -> Self {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().map(str::parse)) {
            (Some("who"), None) => Self::Who,
            (Some("big"), Some(Ok(bytes))) => Self::Big(bytes),
            (Some("upload"), Some(Ok(bytes))) => Self::Upload(bytes),
            (Some("GET"), Some(_)) => Self::Http,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(Request::parse("who\n"), Request::Who);
        assert_eq!(Request::parse("big 20\n"), Request::Big(20));
        assert_eq!(Request::parse("upload 7"), Request::Upload(7));
        assert_eq!(Request::parse("GET / HTTP/1.1\r\n"), Request::Http);
        assert_eq!(Request::parse("big much"), Request::Unknown);
        assert_eq!(Request::parse(""), Request::Unknown);
    }
}
