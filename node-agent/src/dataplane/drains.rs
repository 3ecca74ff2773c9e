//! Backends that keep their connections but take no new ones.
//!
//! A drain without a deadline belongs to an endpoint that is still in a slice (not ready, or
//! terminating). The deadline is set when the endpoint has left every slice, and not moved again.

use std::{collections::BTreeMap, net::SocketAddr};

use super::key::ServerKey;
use crate::state::record::Entry;

/// All drains, with their deadlines in seconds since boot.
#[derive(Clone, Debug, Default)]
pub struct Drains {
    deadlines: BTreeMap<(ServerKey, SocketAddr), Option<u64>>,
}

impl Drains {
    /// The drains of an earlier run.
    pub fn restore(deadlines: &BTreeMap<(ServerKey, SocketAddr), u64>) -> Self {
        Self { deadlines: deadlines.iter().map(|(drain, deadline)| (*drain, Some(*deadline))).collect() }
    }

    /// Sets a backend to drain, with a deadline once its endpoint has left every slice. One that runs
    /// is not moved; one of an endpoint that came back to a slice is taken back. Returns what the
    /// record must know.
    pub fn set(&mut self, key: ServerKey, backend: SocketAddr, deadline: Option<u64>) -> Option<Entry> {
        let present = self.deadlines.entry((key, backend)).or_default();
        match (*present, deadline) {
            (None, Some(at)) => {
                *present = deadline;
                Some(Entry::Drain(key, backend, at))
            }
            (Some(_), None) => {
                *present = None;
                Some(Entry::DrainOver(key, backend))
            }
            _ => None,
        }
    }

    /// Ends a drain; true when it had a deadline, which the record then has too.
    pub fn end(&mut self, key: ServerKey, backend: SocketAddr) -> bool {
        self.deadlines.remove(&(key, backend)).flatten().is_some()
    }

    /// Ends all drains of a virtual server.
    pub fn end_all(&mut self, key: ServerKey) {
        let lowest = SocketAddr::from(([0, 0, 0, 0], 0));
        let range = self.deadlines.range((key, lowest)..).take_while(|((server, _), _)| *server == key);
        for drain in range.map(|(drain, _)| *drain).collect::<Vec<_>>() {
            self.deadlines.remove(&drain);
        }
    }

    /// Drains whose timer runs, by virtual server.
    pub fn timed(&self) -> BTreeMap<ServerKey, Vec<(SocketAddr, u64)>> {
        let mut timed: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for ((key, backend), deadline) in &self.deadlines {
            if let Some(deadline) = deadline {
                timed.entry(*key).or_default().push((*backend, *deadline));
            }
        }
        timed
    }

    /// Number of draining backends.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// True when nothing drains.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn the_timer_starts_when_the_endpoint_has_left_every_slice_and_is_not_moved() {
        let key = ServerKey::Address { protocol: Protocol::Tcp, address: ([10, 96, 0, 10], 80).into() };
        let backend = ([10, 244, 1, 2], 8080).into();
        let mut drains = Drains::default();
        assert_eq!(drains.set(key, backend, None), None);
        assert!(drains.timed().is_empty());
        assert_eq!(drains.set(key, backend, Some(100)), Some(Entry::Drain(key, backend, 100)));
        assert_eq!(drains.set(key, backend, Some(200)), None);
        assert_eq!(drains.timed()[&key], [(backend, 100)]);
        // back in a slice, and gone again
        assert_eq!(drains.set(key, backend, None), Some(Entry::DrainOver(key, backend)));
        assert_eq!(drains.set(key, backend, Some(300)), Some(Entry::Drain(key, backend, 300)));
        assert!(drains.end(key, backend));
        assert!(drains.is_empty());
    }
}
