//! Reading the kernel: at start, after a failure, and every now and then to find what others did.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    kernel::{Found, Kernel, KernelFailure},
    key::ServerKey,
    lifecycle::orphans,
    mirror::{Mirror, Server},
    reconciler::Reconciler,
};
use crate::ipvs::{IpvsOp, VirtualServerKey};

impl<K: Kernel> Reconciler<K> {
    /// Compares the kernel with what we left there; what differs is repaired by the next round.
    pub fn audit(&mut self) -> Result<(), KernelFailure> {
        for what in self.ensure_base()? {
            *self.totals.repairs.entry(what).or_default() += 1;
            tracing::warn!(what, "repaired what was changed behind our back");
        }
        self.resync()
    }

    /// Reads the kernel into the mirror, and makes due whatever is not as the mirror had it.
    pub(super) fn resync(&mut self) -> Result<(), KernelFailure> {
        let before = std::mem::take(&mut self.mirror);
        if let Err(failure) = self.read() {
            self.mirror = before;
            return Err(failure);
        }
        let ours: Vec<_> = self.owners.iter().map(|(key, name)| (*key, name.clone())).collect();
        let differing = |key: &ServerKey, now: &Mirror| before.servers.get(key) != now.servers.get(key);
        for (key, name) in ours {
            if differing(&key, &self.mirror) {
                *self.totals.repairs.entry("virtual-server").or_default() += 1;
                tracing::warn!(virtual_server = %key, service_port = %name, "repairing a virtual server that was changed behind our back");
                self.table.touch(&name);
            }
        }
        let missing: Vec<_> =
            self.claims.iter().filter(|e| !self.mirror.elements.contains(*e)).copied().collect();
        // Before everything wanted has been programmed once, leftovers may still be wanted.
        let extra = if self.pruned { self.unclaimed() } else { Vec::new() };
        let unexpected = missing.iter().filter(|e| before.elements.contains(e)).count()
            + extra.iter().filter(|e| !before.elements.contains(e)).count();
        if unexpected > 0 {
            *self.totals.repairs.entry("element").or_default() += unexpected as u64;
            tracing::warn!(elements = unexpected, "repairing set elements that were changed behind our back");
        }
        self.stale = false;
        self.change_elements(&extra, &missing)
    }

    /// Compares rules and routes alone: what links and addresses that come and go may take with them.
    pub fn check_routes(&mut self) -> Result<(), KernelFailure> {
        let changed = self.kernel.ensure_routes(&self.settings.base).inspect_err(|failure| {
            *self.totals.failures.entry(failure.label()).or_default() += 1;
        })?;
        if changed {
            *self.totals.repairs.entry("route").or_default() += 1;
            tracing::warn!("repaired rules or routes that were changed behind our back");
        }
        Ok(())
    }

    /// Settings, policy routes, and the structure of our table; tells what had to be changed.
    pub(super) fn ensure_base(&mut self) -> Result<Vec<&'static str>, KernelFailure> {
        let mut elements: BTreeSet<_> = self.claims.iter().copied().collect();
        if !self.pruned {
            let stale_marks: BTreeSet<_> = self.superseded_marks(elements.iter()).into_iter().collect();
            elements.extend(self.mirror.elements.iter().filter(|element| !stale_marks.contains(element)));
        }
        let changed = self.kernel.ensure_base(&self.settings.base, &elements).inspect_err(|failure| {
            *self.totals.failures.entry(failure.label()).or_default() += 1;
        })?;
        self.stale |= !changed.is_empty();
        Ok(changed)
    }

    /// Reads the kernel into the mirror: the servers that are ours, wanted, or draining.
    pub(super) fn read(&mut self) -> Result<(), KernelFailure> {
        let Found { servers, elements } = self.kernel.read().inspect_err(|failure| {
            *self.totals.failures.entry(failure.label()).or_default() += 1;
        })?;
        let recorded = self.record.contents().servers.iter();
        let known: BTreeMap<VirtualServerKey, ServerKey> =
            recorded.chain(self.owners.keys()).map(|key| (key.kernel(), *key)).collect();
        let keys: BTreeSet<_> = known.keys().copied().collect();
        // Not before pruning: until then elements may still lead to them.
        let servers_now = servers.iter().map(|server| &server.key);
        let orphans = if self.pruned { orphans(servers_now, &keys) } else { Vec::new() };
        for key in orphans {
            tracing::warn!(virtual_server = %key, "removing a virtual server of our range that the record does not know");
            let verdicts = self.kernel.change_servers(&[IpvsOp::DelService { key }])?;
            self.totals.pruned += verdicts.iter().filter(|verdict| verdict.is_ok()).count() as u64;
        }
        let mut mirror = HashMap::with_capacity(servers.len());
        for server in servers {
            let key = match (known.get(&server.key), server.key) {
                (Some(key), _) => *key,
                // Kept in mind because a row may want it: then it is adopted, not made twice.
                (None, VirtualServerKey::Address { protocol, address }) => {
                    ServerKey::Address { protocol, address }
                }
                (None, VirtualServerKey::Fwmark { .. }) => continue,
            };
            let backends = server.backends.into_iter().collect();
            mirror.insert(key, Server { scheduler: server.scheduler, backends });
        }
        self.mirror = Mirror { servers: mirror, elements: elements.into_iter().collect() };
        Ok(())
    }
}
