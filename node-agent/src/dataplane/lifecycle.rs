//! The ends of things: drains that are over, leftovers of an earlier run, and taking all of it down.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    kernel::{Kernel, KernelFailure},
    key::ServerKey,
    marks,
    reconciler::{Reconciler, must_drain, rejections},
    ruleset::Element,
};
use crate::{
    ipvs::{IpvsOp, VirtualServerKey},
    state::record::{Entry, since_boot},
};

impl<K: Kernel> Reconciler<K> {
    /// True while `check_drains` has something to look at.
    pub fn is_draining(&self) -> bool {
        !self.drains.is_empty() || !self.retiring.is_empty()
    }

    /// Number of draining backends.
    pub fn draining(&self) -> usize {
        self.drains.len()
    }

    /// Ends the drains whose time is up or whose last connection is gone, and removes retired
    /// virtual servers that have no backend left.
    pub fn check_drains(&mut self) -> Result<(), KernelFailure> {
        if !self.may_remove || self.stale {
            return Ok(());
        }
        let now = since_boot();
        let mut ops = Vec::new();
        let mut result = Ok(());
        for (key, backends) in self.drains.timed() {
            let in_use: BTreeMap<SocketAddr, u64> = match self.kernel.connections(&key.kernel()) {
                Ok(connections) => connections.into_iter().collect(),
                Err(failure) => {
                    result = Err(failure);
                    continue;
                }
            };
            for (address, deadline) in backends {
                // A backend that the kernel no longer lists has no connections either.
                if now >= deadline || in_use.get(&address).copied().unwrap_or(0) == 0 {
                    ops.push((usize::MAX, key, IpvsOp::DelDest { key: key.kernel(), address }));
                }
            }
        }
        let over: Vec<_> = ops.iter().map(|(_, key, op)| (*key, *op)).collect();
        self.carry_out(ops, &mut []);
        let mut entries = Vec::new();
        for (key, op) in over {
            if let IpvsOp::DelDest { address, .. } = op
                && !self.mirror.servers.get(&key).is_some_and(|s| s.backends.contains_key(&address))
                && self.drains.end(key, address)
            {
                entries.push(Entry::DrainOver(key, address));
            }
        }
        self.journal(&entries);
        self.remove_drained().and(result)
    }

    /// Removes retired servers without backends, and their rejections.
    fn remove_drained(&mut self) -> Result<(), KernelFailure> {
        let drained: BTreeSet<_> =
            self.retiring.keys().copied().filter(|key| !must_drain(&self.mirror, key)).collect();
        let ops = drained
            .iter()
            .filter(|key| self.mirror.servers.contains_key(key))
            .map(|key| (usize::MAX, *key, IpvsOp::DelService { key: key.kernel() }))
            .collect();
        self.carry_out(ops, &mut []);
        let gone: BTreeSet<_> =
            drained.into_iter().filter(|key| !self.mirror.servers.contains_key(key)).collect();
        let rejections: Vec<_> =
            gone.iter().filter_map(|key| self.retiring.get(key)).flatten().copied().collect();
        let free: Vec<_> = self
            .claims
            .release(&rejections)
            .into_iter()
            .filter(|element| self.mirror.elements.contains(element))
            .collect();
        let entries = self.forget(gone);
        self.journal(&entries);
        self.change_elements(&free, &[])
    }

    /// Removes what an earlier run left and nobody wants: once, after the first full pass over a
    /// synced table. Only what the record names, what our table holds, and marks of our range.
    pub(super) fn prune(&mut self) {
        let leftovers: Vec<_> =
            self.record.contents().servers.iter().copied().filter(|key| !self.is_wanted(key)).collect();
        let mut gone = BTreeSet::new();
        let mut add = Vec::new();
        for key in leftovers {
            self.totals.pruned += 1;
            if self.mirror.servers.contains_key(&key) {
                let rejections = rejections(&self.owners, &key);
                self.claims.add(&rejections);
                add.extend(&rejections);
                self.retiring.insert(key, rejections);
            } else {
                gone.insert(key);
            }
        }
        let entries = self.forget(gone);
        self.journal(&entries);
        let remove = self.unclaimed();
        self.totals.pruned += remove.len() as u64;
        add.retain(|element| !self.mirror.elements.contains(element));
        if self.change_elements(&remove, &add).is_ok() {
            self.retire(&mut []);
            self.pruned = true;
        }
    }

    /// Elements of our table that nobody claims.
    pub(super) fn unclaimed(&self) -> Vec<Element> {
        self.mirror.elements.iter().filter(|element| !self.claims.contains(element)).copied().collect()
    }

    fn is_wanted(&self, key: &ServerKey) -> bool {
        self.owners.contains_key(key) || self.retiring.contains_key(key)
    }
}

/// Virtual servers of our range of marks that the record does not know: the record was lost.
pub(super) fn orphans<'a>(
    found: impl Iterator<Item = &'a VirtualServerKey>,
    known: &BTreeSet<VirtualServerKey>,
) -> Vec<VirtualServerKey> {
    let ours = |key: &&VirtualServerKey| {
        matches!(key, VirtualServerKey::Fwmark { mark, .. } if marks::is_ours(*mark)) && !known.contains(*key)
    };
    found.filter(ours).copied().collect()
}
