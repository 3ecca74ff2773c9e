//! What the kernel holds of ours, as far as we know: read at start and at each audit, and brought
//! up to date by every operation that the kernel said yes to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

use super::{expand::WantedServer, key::ServerKey, ruleset::Element};
use crate::ipvs::IpvsOp;

/// One virtual server in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// The kernel's name of its scheduler.
    pub scheduler: String,
    /// Weight of each real server.
    pub backends: BTreeMap<SocketAddr, u32>,
}

/// Weight of a backend that takes new connections.
pub const IN_USE: u32 = 1;
/// Weight of one that only keeps those it has.
pub const DRAINING: u32 = 0;

/// The kernel's state.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// Virtual servers.
    pub servers: HashMap<ServerKey, Server>,
    /// Elements of our table's sets.
    pub elements: HashSet<Element>,
}

impl Mirror {
    /// True when new connections to a virtual server find a backend.
    pub fn serves(&self, key: &ServerKey) -> bool {
        self.servers.get(key).is_some_and(|server| server.backends.values().any(|weight| *weight > 0))
    }

    /// Notes an operation that the kernel carried out.
    pub fn note(&mut self, key: ServerKey, op: &IpvsOp) {
        match op {
            IpvsOp::AddService { scheduler, .. } => {
                let server = Server { scheduler: scheduler.to_string(), backends: BTreeMap::new() };
                self.servers.insert(key, server);
            }
            IpvsOp::SetService { scheduler, .. } => {
                if let Some(server) = self.servers.get_mut(&key) {
                    server.scheduler = scheduler.to_string();
                }
            }
            IpvsOp::DelService { .. } => {
                self.servers.remove(&key);
            }
            IpvsOp::AddDest { address, weight, .. } | IpvsOp::SetDest { address, weight, .. } => {
                if let Some(server) = self.servers.get_mut(&key) {
                    server.backends.insert(*address, *weight);
                }
            }
            IpvsOp::DelDest { address, .. } => {
                if let Some(server) = self.servers.get_mut(&key) {
                    server.backends.remove(address);
                }
            }
        }
    }

    /// The operations that make a virtual server and put its backends in use, in order.
    pub fn make(&self, key: &ServerKey, wanted: &WantedServer) -> Vec<IpvsOp> {
        let (kernel, scheduler) = (key.kernel(), wanted.scheduler);
        let present = self.servers.get(key);
        let mut ops = Vec::new();
        match present {
            None => ops.push(IpvsOp::AddService { key: kernel, scheduler }),
            Some(server) if server.scheduler != scheduler.as_str() => {
                ops.push(IpvsOp::SetService { key: kernel, scheduler });
            }
            Some(_) => {}
        }
        for address in wanted.backends.iter().copied() {
            match present.and_then(|server| server.backends.get(&address)) {
                None => ops.push(IpvsOp::AddDest { key: kernel, address, weight: IN_USE }),
                Some(&IN_USE) => {}
                Some(_) => ops.push(IpvsOp::SetDest { key: kernel, address, weight: IN_USE }),
            }
        }
        ops
    }

    /// True when one of the wanted backends takes new connections.
    pub fn has_in_use(&self, key: &ServerKey, wanted: &WantedServer) -> bool {
        let Some(server) = self.servers.get(key) else { return false };
        wanted.backends.iter().any(|address| server.backends.get(address) == Some(&IN_USE))
    }

    /// The backends of a virtual server that are not wanted.
    pub fn unwanted(&self, key: &ServerKey, wanted: &WantedServer) -> Vec<(SocketAddr, u32)> {
        let Some(server) = self.servers.get(key) else { return Vec::new() };
        let extra =
            server.backends.iter().filter(|(address, _)| wanted.backends.binary_search(address).is_err());
        extra.map(|(address, weight)| (*address, *weight)).collect()
    }
}

/// How many rows (and the node itself) claim an element. Rows share some: the ports of one Service
/// its cluster IP, a pod behind two Services its hairpin entry.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    counts: HashMap<Element, u32>,
}

impl Claims {
    /// Claims elements.
    pub fn add(&mut self, elements: &[Element]) {
        for element in elements {
            *self.counts.entry(*element).or_default() += 1;
        }
    }

    /// Gives claims back; returns the elements that nobody claims any more.
    pub fn release(&mut self, elements: &[Element]) -> BTreeSet<Element> {
        let mut free = BTreeSet::new();
        for element in elements {
            if let Some(count) = self.counts.get_mut(element) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(element);
                    free.insert(*element);
                }
            }
        }
        free
    }

    /// True when somebody claims the element.
    pub fn contains(&self, element: &Element) -> bool {
        self.counts.contains_key(element)
    }

    /// All that is claimed.
    pub fn iter(&self) -> impl Iterator<Item = &Element> {
        self.counts.keys()
    }

    /// Number of different elements.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// True when nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use fairlead_crds::Scheduler;

    use super::*;
    use crate::model::Protocol;

    fn key() -> ServerKey {
        ServerKey::Address { protocol: Protocol::Tcp, address: ([10, 96, 0, 10], 80).into() }
    }

    fn backend(host: u8) -> SocketAddr {
        ([10, 244, 1, host], 8080).into()
    }

    fn wanted(scheduler: Scheduler, hosts: &[u8]) -> WantedServer {
        WantedServer { scheduler, backends: hosts.iter().map(|h| backend(*h)).collect(), elements: vec![] }
    }

    fn carry_out(mirror: &mut Mirror, wanted: &WantedServer) -> Vec<IpvsOp> {
        let ops = mirror.make(&key(), wanted);
        for op in &ops {
            mirror.note(key(), op);
        }
        ops
    }

    #[test]
    fn a_server_is_made_with_its_backends_and_then_left_alone() {
        let mut mirror = Mirror::default();
        let wanted = wanted(Scheduler::Rr, &[2, 3]);
        let ops = carry_out(&mut mirror, &wanted);
        assert!(matches!(
            ops[..],
            [IpvsOp::AddService { .. }, IpvsOp::AddDest { .. }, IpvsOp::AddDest { .. }]
        ));
        assert!(mirror.serves(&key()));
        assert_eq!(mirror.make(&key(), &wanted), []);
    }

    #[test]
    fn a_scheduler_changes_in_place() {
        let mut mirror = Mirror::default();
        carry_out(&mut mirror, &wanted(Scheduler::Rr, &[2]));
        let ops = carry_out(&mut mirror, &wanted(Scheduler::Mh, &[2]));
        assert_eq!(ops, [IpvsOp::SetService { key: key().kernel(), scheduler: Scheduler::Mh }]);
    }

    #[test]
    fn a_draining_backend_that_comes_back_gets_its_weight_again() {
        let mut mirror = Mirror::default();
        carry_out(&mut mirror, &wanted(Scheduler::Rr, &[2]));
        mirror.note(key(), &IpvsOp::SetDest { key: key().kernel(), address: backend(2), weight: DRAINING });
        assert!(!mirror.serves(&key()));
        let ops = carry_out(&mut mirror, &wanted(Scheduler::Rr, &[2]));
        assert_eq!(ops, [IpvsOp::SetDest { key: key().kernel(), address: backend(2), weight: IN_USE }]);
    }

    #[test]
    fn what_is_not_wanted_is_told_with_its_weight() {
        let mut mirror = Mirror::default();
        carry_out(&mut mirror, &wanted(Scheduler::Rr, &[2, 3]));
        assert_eq!(mirror.unwanted(&key(), &wanted(Scheduler::Rr, &[3])), [(backend(2), IN_USE)]);
    }

    #[test]
    fn a_shared_element_is_free_when_its_last_claim_goes() {
        let shared = Element::ClusterAddress([10, 96, 0, 10].into());
        let mut claims = Claims::default();
        claims.add(&[shared]);
        claims.add(&[shared]);
        assert!(claims.release(&[shared]).is_empty());
        assert_eq!(claims.release(&[shared]), BTreeSet::from([shared]));
    }
}
