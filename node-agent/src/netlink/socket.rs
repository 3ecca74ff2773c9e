//! The transport: sends batches and dumps, and matches every answer with its request.
//!
//! Nothing is left to chance: each request is acknowledged (nftables transactions by a barrier
//! behind them, see `transaction`), a dump that the kernel marks as interrupted is read again, a
//! lost answer (ENOBUFS) or one cut short is an error that makes the caller read the kernel anew.

#![expect(clippy::cast_possible_truncation, reason = "sizes and constants of kernel structures are small")]

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{
    attr::{AttrWriter, Attrs},
    error::{KernelError, NetlinkError},
    message::{HEADER, Message, Messages, Requests},
};

/// Receive buffer of the kernel, and longest batch that is sent in one piece.
const SOCKET_BUFFER: libc::c_int = 16 << 20;
/// Longest single answer: dumps come in pieces of at most 32 KiB (`netlink_dump`).
const RECEIVE_BUFFER: usize = 256 << 10;
/// Requests sent before their acknowledgements are read. An acknowledgement costs the receive
/// buffer about 1 KiB (skb truesize), so a chunk uses a small part of even an unforced buffer.
const CHUNK: usize = 128;
/// The kernel answers while the request is being sent; a longer silence is a lost answer.
const ANSWER_TIMEOUT_S: libc::time_t = 20;
/// How often a dump is started again after the table changed under it.
const DUMP_ATTEMPTS: usize = 8;

/// A netlink socket of one protocol.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    received: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a netlink protocol in the network namespace of this thread.
    pub fn open(protocol: libc::c_int) -> Result<Self, NetlinkError> {
        Self::with_groups(protocol, &[])
    }

    /// Opens a socket that receives the events of multicast groups.
    pub fn with_groups(protocol: libc::c_int, groups: &[u32]) -> Result<Self, NetlinkError> {
        // SAFETY: a plain system call; the descriptor is owned by nobody else.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(NetlinkError::Open(io::Error::last_os_error()));
        }
        // SAFETY: `fd` was just opened and is valid.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self { fd, sequence: 0, received: vec![0; RECEIVE_BUFFER] };
        socket.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SOCKET_BUFFER).map_err(NetlinkError::Open)?;
        socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &SOCKET_BUFFER).map_err(NetlinkError::Open)?;
        let timeout = libc::timeval { tv_sec: ANSWER_TIMEOUT_S, tv_usec: 0 };
        socket.option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout).map_err(NetlinkError::Open)?;
        let on: libc::c_int = 1;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, &on).map_err(NetlinkError::Open)?;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &on).map_err(NetlinkError::Open)?;
        if protocol == libc::NETLINK_ROUTE {
            // Dumps filtered by the kernel, and requests with unknown fields refused (4.20).
            socket
                .option(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, &on)
                .map_err(NetlinkError::Open)?;
        }
        // SAFETY: sockaddr_nl is plain data, all zero is a valid value of it.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // SAFETY: the address is a sockaddr_nl of the length given.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as u32,
            )
        };
        if bound < 0 {
            return Err(NetlinkError::Open(io::Error::last_os_error()));
        }
        for group in groups {
            socket
                .option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
                .map_err(NetlinkError::Open)?;
        }
        Ok(socket)
    }

    /// The port that the kernel gave this socket: events that it caused carry it.
    pub fn port(&self) -> Result<u32, NetlinkError> {
        // SAFETY: sockaddr_nl is plain data, all zero is a valid value of it.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the address is a sockaddr_nl of the length given.
        let result =
            unsafe { libc::getsockname(self.fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        if result < 0 { Err(NetlinkError::Open(io::Error::last_os_error())) } else { Ok(address.nl_pid) }
    }

    /// Sends requests and returns the kernel's verdict on each, in their order.
    pub fn transact(
        &mut self,
        requests: &mut Requests,
    ) -> Result<Vec<Result<(), KernelError>>, NetlinkError> {
        let mut verdicts = Vec::with_capacity(requests.len());
        let mut next = 0;
        while next < requests.len() {
            let last = (next + CHUNK).min(requests.len());
            let first_sequence = self.stamp(requests, next, last);
            let from = requests.starts.get(next).copied().unwrap_or_default();
            self.send(requests.buf.get(from..requests.end_of(last - 1)).unwrap_or_default())?;
            let mut chunk: Vec<Option<Result<(), KernelError>>> = vec![None; last - next];
            let mut open = chunk.len();
            while open > 0 {
                self.receive(|message| {
                    let index = message.sequence.wrapping_sub(first_sequence) as usize;
                    // Answers to requests given up earlier may still be queued: not ours.
                    if message.kind == libc::NLMSG_ERROR as u16
                        && let Some(slot @ None) = chunk.get_mut(index)
                    {
                        *slot = Some(verdict(&message));
                        open -= 1;
                    }
                    Ok(())
                })?;
            }
            verdicts.extend(chunk.into_iter().flatten());
            next = last;
        }
        Ok(verdicts)
    }

    /// Sends requests that the kernel must take as one (an nftables batch), then `barrier`, whose
    /// acknowledgement says that every error of the batch has arrived. Returns the errors, each
    /// with the index of its request.
    ///
    /// No request of the batch asks for an acknowledgement: those of a large batch would overflow
    /// the receive buffer, and kernels differ in whether they acknowledge its first message.
    pub fn transaction(
        &mut self,
        batch: &mut Requests,
        barrier: &mut Requests,
    ) -> Result<Vec<(usize, KernelError)>, NetlinkError> {
        let count = batch.len();
        let first_sequence = self.stamp(batch, 0, count);
        self.send(&batch.buf)?;
        let barrier_sequence = self.stamp(barrier, 0, barrier.len());
        self.send(&barrier.buf)?;
        let mut errors = Vec::new();
        let mut passed = false;
        while !passed {
            self.receive(|message| {
                if message.kind != libc::NLMSG_ERROR as u16 {
                    return Ok(());
                }
                let index = message.sequence.wrapping_sub(first_sequence) as usize;
                if message.sequence == barrier_sequence {
                    passed = true;
                } else if index < count
                    && let Err(error) = verdict(&message)
                {
                    errors.push((index, error));
                }
                Ok(())
            })?;
        }
        Ok(errors)
    }

    /// Sends one request and hands every message of its answer to `each`. A dump that changed
    /// under way is started again: `begin` is called first each time and must forget what it has.
    pub fn dump<S>(
        &mut self,
        kind: u16,
        family_header: &[u8],
        fill: impl Fn(&mut AttrWriter<'_>),
        begin: impl Fn() -> S,
        mut each: impl FnMut(&mut S, Message<'_>),
    ) -> Result<S, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut state = begin();
            let complete =
                self.query(kind, libc::NLM_F_DUMP, family_header, &fill, |m| each(&mut state, m))?;
            if complete {
                return Ok(state);
            }
        }
        Err(NetlinkError::DumpInterrupted(DUMP_ATTEMPTS))
    }

    /// Sends one request for one object and hands its answer to `each`.
    pub fn get(
        &mut self,
        kind: u16,
        family_header: &[u8],
        fill: impl Fn(&mut AttrWriter<'_>),
        each: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.query(kind, libc::NLM_F_ACK, family_header, &fill, each).map(|_complete| ())
    }

    /// Waits for events, at most the receive timeout; hands each to `each`.
    /// `NetlinkError::Overrun` means that some were lost: read the kernel anew.
    pub fn events(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<(), NetlinkError> {
        match self.receive(|message| {
            each(message);
            Ok(())
        }) {
            Err(NetlinkError::TimedOut) => Ok(()),
            other => other,
        }
    }

    /// Sets how long `events` waits.
    pub fn set_receive_timeout(&self, timeout: std::time::Duration) -> Result<(), NetlinkError> {
        let timeout = libc::timeval {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_usec: libc::suseconds_t::from(timeout.subsec_micros()),
        };
        self.option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout).map_err(NetlinkError::Open)
    }

    /// True when the answer is complete, false when the kernel marked it as interrupted.
    fn query(
        &mut self,
        kind: u16,
        flags: i32,
        family_header: &[u8],
        fill: &impl Fn(&mut AttrWriter<'_>),
        mut each: impl FnMut(Message<'_>),
    ) -> Result<bool, NetlinkError> {
        let mut request = Requests::new();
        request.push(kind, flags, family_header, fill);
        let sequence = self.stamp(&mut request, 0, 1);
        self.send(&request.buf)?;
        let mut interrupted = false;
        let mut done = false;
        while !done {
            self.receive(|message| {
                if message.sequence != sequence {
                    return Ok(());
                }
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => {
                        done = true;
                        done_verdict(&message).map_err(NetlinkError::Kernel)
                    }
                    libc::NLMSG_ERROR => {
                        done = true;
                        verdict(&message).map_err(NetlinkError::Kernel)
                    }
                    _ => {
                        each(message);
                        Ok(())
                    }
                }
            })?;
        }
        Ok(!interrupted)
    }

    fn stamp(&mut self, requests: &mut Requests, from: usize, to: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        for index in from..to {
            self.sequence = self.sequence.wrapping_add(1);
            if let Some(start) = requests.starts.get(index).copied() {
                requests.stamp(start, self.sequence);
            }
        }
        first
    }

    fn option<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the value outlives the call and its size is given.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const *value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            // SAFETY: the buffer is valid for its length.
            let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(NetlinkError::Send { bytes: bytes.len(), source: error });
            }
        }
    }

    fn receive(
        &mut self,
        mut each: impl FnMut(Message<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let length = loop {
            // SAFETY: the buffer is valid for its length. MSG_TRUNC makes the kernel tell the real
            // length of a message that did not fit.
            let length = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    self.received.as_mut_ptr().cast(),
                    self.received.len(),
                    libc::MSG_TRUNC,
                )
            };
            if let Ok(length) = usize::try_from(length) {
                break length;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENOBUFS) => return Err(NetlinkError::Overrun),
                Some(libc::EAGAIN) => return Err(NetlinkError::TimedOut),
                _ => return Err(NetlinkError::Receive(error)),
            }
        };
        let bytes = self.received.get(..length).ok_or(NetlinkError::Truncated { length })?;
        if length < HEADER {
            return Err(NetlinkError::Truncated { length });
        }
        for message in Messages::new(bytes) {
            if message.kind != libc::NLMSG_NOOP as u16 {
                each(message)?;
            }
        }
        Ok(())
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// `struct nlmsgerr`: errno, then the header of the request (its payload is left out by
/// NETLINK_CAP_ACK), then extended acknowledgement attributes.
fn verdict(message: &Message<'_>) -> Result<(), KernelError> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let Some((errno, rest)) = message.payload.split_first_chunk::<4>() else {
        return Err(KernelError { errno: libc::EBADMSG, message: None });
    };
    let errno = -i32::from_ne_bytes(*errno);
    if errno == 0 {
        return Ok(());
    }
    let text = Attrs::new(rest.get(HEADER..).unwrap_or_default())
        .find(NLMSGERR_ATTR_MSG)
        .and_then(super::attr::Attr::str)
        .map(str::to_owned);
    Err(KernelError { errno, message: text })
}

/// The end of a dump carries an errno too (`netlink_dump_done`).
fn done_verdict(message: &Message<'_>) -> Result<(), KernelError> {
    match message.payload.first_chunk::<4>().map(|bytes| -i32::from_ne_bytes(*bytes)) {
        Some(errno) if errno > 0 => Err(KernelError { errno, message: None }),
        _ => Ok(()),
    }
}
