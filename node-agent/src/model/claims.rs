//! Which service port has an address that several ask for.
//!
//! A port with a claim that somebody else holds gets nothing at all, and waits for what it asked
//! for. Who holds an address keeps it; among newcomers the smaller name comes first. Only a
//! cluster IP takes an address away: nobody may divert it by naming it as an external IP
//! (CVE-2020-8554).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use super::{Family, Frontend, Protocol, Refusal, ServicePort, ServicePortName};

/// What the kernel tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Address(Protocol, SocketAddr),
    NodePort(Protocol, Family, u16),
}

/// One key that a service port needs, and the frontend that it needs it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    key: Key,
    frontend: Frontend,
}

impl Claim {
    #[cfg(test)]
    pub fn frontend(&self) -> Frontend {
        self.frontend
    }

    #[cfg(test)]
    pub fn collides(&self, other: &Self) -> bool {
        self.key == other.key
    }

    fn takes_precedence(self) -> bool {
        matches!(self.frontend, Frontend::ClusterIP(_))
    }
}

/// The claims of a service port on a node with these addresses. A NodePort also is an address and
/// port of each of them, which another Service may name as an external IP.
pub(super) fn of(port: &ServicePort, node: &[IpAddr]) -> Vec<Claim> {
    let protocol = port.name.protocol;
    let mut claims = Vec::with_capacity(port.frontends.len());
    for frontend in &port.frontends {
        let frontend = *frontend;
        match frontend {
            Frontend::ClusterIP(address)
            | Frontend::ExternalIP(address)
            | Frontend::LoadBalancerIP(address) => {
                claims.push(Claim { key: Key::Address(protocol, address), frontend });
            }
            Frontend::NodePort(family, number) => {
                claims.push(Claim { key: Key::NodePort(protocol, family, number), frontend });
                claims.extend(
                    node.iter().filter(|ip| Family::of(**ip) == family).map(|ip| Claim {
                        key: Key::Address(protocol, SocketAddr::new(*ip, number)),
                        frontend,
                    }),
                );
            }
        }
    }
    claims
}

/// How often a refused port is looked at again while others change hands.
const RETRIES: u32 = 3;

/// All claims of all service ports, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Claims {
    wanted: HashMap<ServicePortName, Vec<Claim>>,
    held: HashMap<Key, (ServicePortName, Claim)>,
    /// Ports that got nothing, by each key they ask for.
    waiting: HashMap<Key, BTreeSet<ServicePortName>>,
    refused: HashMap<ServicePortName, Refusal>,
}

impl Claims {
    /// Why the port has nothing, if so.
    pub fn refusal(&self, port: &ServicePortName) -> Option<&Refusal> {
        self.refused.get(port)
    }

    /// Takes in the new claims of ports (none for a port that is gone) and decides anew. Returns
    /// the ports for which the answer may be another one now.
    pub fn settle(&mut self, changed: BTreeMap<ServicePortName, Vec<Claim>>) -> BTreeSet<ServicePortName> {
        let mut undecided = BTreeSet::new();
        for (port, claims) in changed {
            let old = self.wanted.remove(&port).unwrap_or_default();
            if old != claims {
                // What it goes on asking for it goes on holding, until the decision.
                for claim in old.iter().filter(|old| claims.iter().all(|new| new.key != old.key)) {
                    self.stop_waiting(&port, claim.key);
                    self.release(&port, claim.key, &mut undecided);
                }
                self.weaken(&port, &claims, &mut undecided);
                undecided.insert(port.clone());
            }
            if !claims.is_empty() {
                self.wanted.insert(port, claims);
            }
        }

        let mut touched = BTreeSet::new();
        let mut retries: BTreeMap<ServicePortName, u32> = BTreeMap::new();
        while let Some(port) = undecided.pop_first() {
            // Services whose external IPs are each other's ClusterIPs, in a ring, could take them from
            // each other for ever: who was refused that often stays so until something changes.
            if self.refused.contains_key(&port) {
                let count = retries.entry(port.clone()).or_default();
                *count += 1;
                if *count > RETRIES {
                    continue;
                }
            }
            self.decide(&port, &mut undecided);
            touched.insert(port);
        }
        touched
    }

    /// Gives the port all that it asks for, or nothing.
    fn decide(&mut self, port: &ServicePortName, undecided: &mut BTreeSet<ServicePortName>) {
        let claims = self.wanted.get(port).cloned().unwrap_or_default();
        let rival = claims.iter().find_map(|claim| {
            let (holder, held) = self.held.get(&claim.key)?;
            let yields = claim.takes_precedence() && !held.takes_precedence();
            (holder != port && !yields)
                .then(|| Refusal::Conflict { frontend: claim.frontend, holder: holder.clone() })
        });
        if let Some(refusal) = rival {
            for claim in claims {
                self.release(port, claim.key, undecided);
                self.waiting.entry(claim.key).or_default().insert(port.clone());
            }
            self.refused.insert(port.clone(), refusal);
            return;
        }
        for claim in claims {
            self.stop_waiting(port, claim.key);
            if let Some((loser, _)) = self.held.insert(claim.key, (port.clone(), claim))
                && loser != *port
            {
                undecided.insert(loser);
                // They are told whom they wait for.
                undecided.extend(self.waiting.get(&claim.key).into_iter().flatten().cloned());
            }
        }
        self.refused.remove(port);
    }

    /// A claim that the port holds and still makes may have lost its precedence.
    fn weaken(
        &mut self,
        port: &ServicePortName,
        claims: &[Claim],
        undecided: &mut BTreeSet<ServicePortName>,
    ) {
        for claim in claims {
            if let Some((holder, held)) = self.held.get_mut(&claim.key)
                && holder == port
                && *held != *claim
            {
                *held = *claim;
                undecided.extend(self.waiting.get(&claim.key).into_iter().flatten().cloned());
            }
        }
    }

    /// Frees a key if the port holds it, and lets those who wait for it try.
    fn release(&mut self, port: &ServicePortName, key: Key, undecided: &mut BTreeSet<ServicePortName>) {
        if self.held.get(&key).is_some_and(|(holder, _)| holder == port) {
            self.held.remove(&key);
            undecided.extend(self.waiting.get(&key).into_iter().flatten().cloned());
        }
    }

    fn stop_waiting(&mut self, port: &ServicePortName, key: Key) {
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.remove(port);
            if waiting.is_empty() {
                self.waiting.remove(&key);
            }
        }
    }
}
