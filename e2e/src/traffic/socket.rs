//! Sockets of the three protocols, made in the namespace of the calling thread.
//!
//! A one-to-one SCTP socket behaves like a TCP one in all that is used here, so the standard library's TCP types
//! carry both.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_ipv6_v6only, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with};

use super::Protocol;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// An SCTP message is sent whole or not at all, and has to fit the send buffer.
const CHUNK: usize = 8 * 1024;

/// Sends `bytes` in messages SCTP can take.
pub fn send(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    bytes.chunks(CHUNK).try_for_each(|chunk| stream.write_all(chunk))
}

/// A listening TCP or SCTP socket.
pub fn listener(protocol: Protocol, at: SocketAddr) -> io::Result<TcpListener> {
    let fd = bound(protocol, at)?;
    listen(&fd, BACKLOG)?;
    Ok(fd.into())
}

/// A UDP socket for a server.
pub fn datagram_listener(at: SocketAddr) -> io::Result<UdpSocket> {
    Ok(bound(Protocol::Udp, at)?.into())
}

/// A connection to `to`, all of whose operations take `limit` at most.
pub fn stream(
    protocol: Protocol,
    from: Option<SocketAddr>,
    to: SocketAddr,
    limit: Duration,
) -> io::Result<TcpStream> {
    Ok(connected(protocol, from, to, limit)?.into())
}

/// A UDP socket that takes answers from `to` only, and learns of ICMP errors.
pub fn datagram(from: Option<SocketAddr>, to: SocketAddr, limit: Duration) -> io::Result<UdpSocket> {
    Ok(connected(Protocol::Udp, from, to, limit)?.into())
}

fn connected(
    protocol: Protocol,
    from: Option<SocketAddr>,
    to: SocketAddr,
    limit: Duration,
) -> io::Result<OwnedFd> {
    let fd = match from {
        Some(from) => bound(protocol, from)?,
        None => socket(protocol, to)?,
    };
    set_socket_timeout(&fd, Timeout::Recv, Some(limit))?;
    set_socket_timeout(&fd, Timeout::Send, Some(limit))?;
    connect(&fd, &to)?;
    Ok(fd)
}

fn bound(protocol: Protocol, at: SocketAddr) -> io::Result<OwnedFd> {
    let fd = socket(protocol, at)?;
    set_socket_reuseaddr(&fd, true)?;
    if at.is_ipv6() {
        // one socket a family: an SCTP one for both would announce the addresses of both to its peer
        set_ipv6_v6only(&fd, true)?;
    }
    bind(&fd, &at)?;
    Ok(fd)
}

fn socket(protocol: Protocol, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?)
}
