//! The IPVS of this network namespace.

use std::{collections::HashSet, hash::Hash};

use super::{
    IpvsOp, RealServer, Stats, Timeouts, Version, VirtualServer, VirtualServerKey,
    codec::{self, command},
};
use crate::netlink::{KernelError, NetlinkError, Requests, Socket, genl};

const FAMILY: &str = "IPVS";

/// Reads and changes IPVS. Blocks while the kernel works; belongs to one thread.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    kind: u16,
}

impl Client {
    /// Opens a client in the network namespace of this thread. The module `ip_vs` must be loaded.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::on(Socket::open(libc::NETLINK_GENERIC)?)
    }

    /// A client on a generic netlink socket made elsewhere.
    pub fn on(mut socket: Socket) -> Result<Self, NetlinkError> {
        let kind = genl::family_id(&mut socket, FAMILY)?;
        Ok(Self { socket, kind })
    }

    /// Sends operations in order; returns the kernel's verdict on each. One refused does not stop
    /// those behind it. After an error of the transport what was done is unknown: `dump` again.
    pub fn apply(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, NetlinkError> {
        let mut requests = Requests::new();
        for op in ops {
            codec::encode(&mut requests, self.kind, op);
        }
        self.socket.transact(&mut requests)
    }

    /// All virtual servers with their real servers, those of others included, in no order.
    ///
    /// IPVS does not mark a dump that its table changed under (it never sets `NLM_F_DUMP_INTR`):
    /// another's change in these milliseconds may hide a virtual server or its real servers. So
    /// what is missing here may still be there, and the operation that adds it fails with EEXIST.
    pub fn dump(&mut self) -> Result<Vec<(VirtualServer, Stats, Vec<RealServer>)>, NetlinkError> {
        let services = self.stats()?;
        let mut table = Vec::with_capacity(services.len());
        for (server, stats) in services {
            let dests = self.dests(&server.key)?;
            table.push((server, stats, dests));
        }
        Ok(table)
    }

    /// All virtual servers with their counters, without their real servers.
    pub fn stats(&mut self) -> Result<Vec<(VirtualServer, Stats)>, NetlinkError> {
        let services = self.socket.dump(
            self.kind,
            &genl::header(command::GET_SERVICE, codec::VERSION),
            |_| {},
            Vec::new,
            |services, message| services.extend(codec::read_service(message.payload)),
        )?;
        Ok(distinct(services, |(server, _): &(VirtualServer, Stats)| server.key))
    }

    /// The real servers of a virtual server; none when it is not there.
    pub fn dests(&mut self, key: &VirtualServerKey) -> Result<Vec<RealServer>, NetlinkError> {
        let family = key.family();
        let dests = self.socket.dump(
            self.kind,
            &genl::header(command::GET_DEST, codec::VERSION),
            |w| codec::write_key(w, key),
            Vec::new,
            |dests, message| dests.extend(codec::read_dest(family, message.payload)),
        )?;
        Ok(distinct(dests, |dest: &RealServer| dest.address))
    }

    /// How long silent connections are remembered.
    pub fn timeouts(&mut self) -> Result<Timeouts, NetlinkError> {
        self.get(command::GET_CONFIG, codec::read_timeouts)
    }

    /// Sets how long silent connections are remembered. A 0 leaves that one as it is.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), NetlinkError> {
        let mut requests = Requests::new();
        requests.push(self.kind, libc::NLM_F_ACK, &genl::header(command::SET_CONFIG, codec::VERSION), |w| {
            codec::write_timeouts(w, timeouts);
        });
        self.socket
            .transact(&mut requests)?
            .into_iter()
            .collect::<Result<(), _>>()
            .map_err(NetlinkError::Kernel)
    }

    /// Version and size of its connection table.
    pub fn version(&mut self) -> Result<Version, NetlinkError> {
        self.get(command::GET_INFO, codec::read_version)
    }

    fn get<T>(&mut self, command: u8, read: impl Fn(&[u8]) -> Option<T>) -> Result<T, NetlinkError> {
        let mut answer = None;
        let header = genl::header(command, codec::VERSION);
        self.socket.get(
            self.kind,
            &header,
            |_| {},
            |message| {
                answer = read(message.payload);
            },
        )?;
        answer.ok_or(NetlinkError::Kernel(KernelError {
            errno: libc::EBADMSG,
            message: Some("unreadable answer".to_owned()),
        }))
    }
}

/// Drops what a dump told twice: a change between two of its pieces shifts the place where it
/// goes on.
fn distinct<T, K: Hash + Eq>(mut items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut seen = HashSet::with_capacity(items.len());
    items.retain(|item| seen.insert(key(item)));
    items
}
