//! The kernel of this network namespace: IPVS, nftables, policy routes and settings, each through
//! its own client, behind the one boundary that the reconciler knows.

use std::{collections::BTreeSet, net::SocketAddr, num::NonZeroU32};

use super::{
    kernel::{Base, Found, FoundServer, Kernel, KernelFailure},
    ruleset::{self, Element, Parameters, Structure},
};
use crate::{
    ipvs::{self, IpvsOp, Timeouts, VirtualServerKey},
    model::Family,
    netlink::{KernelError, NetlinkError},
    nft::{self, NftError},
    policy_route::{self, DesiredRoutes, PolicyRouteError, PolicyRoutes},
    preflight::sysctl,
};

/// See the module. Blocks while the kernel works; belongs to one thread.
#[derive(Debug)]
pub struct LinuxKernel {
    ipvs: ipvs::Client,
    nft: nft::Client,
    routes: PolicyRoutes,
    structure: Structure,
    /// What was read of our table, and at which generation of nftables. Reading large sets is slow (the
    /// kernel's dump of a hash set is quadratic), and most audits find that nothing has changed.
    read: Option<(u32, ruleset::Found)>,
}

impl LinuxKernel {
    /// Opens the network namespace of this thread. `ip_vs` must be loaded.
    pub fn open(base: &Base) -> Result<Self, KernelFailure> {
        Ok(Self {
            ipvs: ipvs::Client::open().map_err(in_ipvs("open a socket"))?,
            nft: nft::Client::open().map_err(in_nft("open a socket"))?,
            routes: PolicyRoutes::open().map_err(in_routes("open a socket"))?,
            structure: structure(base),
            read: None,
        })
    }

    /// The port of the socket through which the table is changed.
    pub fn nft_port(&self) -> Result<u32, KernelFailure> {
        self.nft.port().map_err(in_nft("name the socket"))
    }

    /// Our table, read again only if anything in nftables has changed since the last time.
    fn read_table(&mut self) -> Result<ruleset::Found, NftError> {
        let generation = self.nft.generation()?;
        if let Some((of, found)) = &self.read
            && *of == generation
        {
            return Ok(found.clone());
        }
        let found = ruleset::read(&mut self.nft, &self.structure)?;
        self.read = (self.nft.generation()? == generation).then(|| (generation, found.clone()));
        Ok(found)
    }

    fn ensure_timeouts(&mut self, base: &Base) -> Result<bool, KernelFailure> {
        let (tcp, tcp_fin, udp) = base.timeouts;
        // IPVS would forget a connection that conntrack still knows, and its next packet would hang.
        let tcp = tcp.max(sysctl::conntrack_established_timeout().unwrap_or(0));
        let wanted = Timeouts { tcp, tcp_fin, udp };
        if self.ipvs.timeouts().map_err(in_ipvs("read the timeouts"))? == wanted {
            return Ok(false);
        }
        self.ipvs.set_timeouts(wanted).map_err(in_ipvs("set the timeouts"))?;
        Ok(true)
    }

    fn ensure_table(&mut self, base: &Base, elements: &BTreeSet<Element>) -> Result<bool, KernelFailure> {
        let structure = structure(base);
        if structure != self.structure {
            self.structure = structure;
            self.read = None;
        }
        match self.read_table().map_err(in_nft("read our table"))? {
            ruleset::Found::Intact(_) => Ok(false),
            ruleset::Found::Broken { differences, .. } => {
                for difference in differences {
                    tracing::info!(%difference, "installing table inet fairlead anew");
                }
                let install = ruleset::install(&self.structure, elements);
                self.nft.commit(install).map_err(in_nft("install our table"))?;
                Ok(true)
            }
        }
    }
}

impl Kernel for LinuxKernel {
    fn ensure_base(
        &mut self,
        base: &Base,
        elements: &BTreeSet<Element>,
    ) -> Result<Vec<&'static str>, KernelFailure> {
        let mut mended = Vec::new();
        if sysctl::ensure().map_err(KernelFailure::Setting)? {
            mended.push("sysctl");
        }
        if self.ensure_timeouts(base)? {
            mended.push("timeouts");
        }
        if self.ensure_routes(base)? {
            mended.push("route");
        }
        if self.ensure_table(base, elements)? {
            mended.push("table");
        }
        Ok(mended)
    }

    fn ensure_routes(&mut self, base: &Base) -> Result<bool, KernelFailure> {
        let desired = DesiredRoutes {
            mark_bit: NonZeroU32::new(base.bit.mask()).unwrap_or(NonZeroU32::MIN),
            service_cidrs: base.service_cidrs.clone(),
            ipv6: base.ipv6,
        };
        let observed = self.routes.observe().map_err(in_routes("read the rules and routes"))?;
        let ops = policy_route::plan(&desired, &observed);
        self.routes.apply(&ops).map_err(in_routes("change the rules and routes"))?;
        Ok(!ops.is_empty())
    }

    fn remove_base(&mut self) -> Result<(), KernelFailure> {
        self.nft.commit(ruleset::remove()).map_err(in_nft("remove our table"))?;
        self.routes.cleanup().map_err(in_routes("remove our rules and routes"))
    }

    fn read(&mut self) -> Result<Found, KernelFailure> {
        let table = self.ipvs.dump().map_err(in_ipvs("read the virtual servers"))?;
        let servers = table.into_iter().map(|(server, _, backends)| FoundServer {
            key: server.key,
            // Told apart from the plain one, so that it is set anew.
            scheduler: if server.is_plain() {
                server.scheduler
            } else {
                format!("{} with persistence or flags", server.scheduler)
            },
            backends: backends.iter().map(|backend| (backend.address, weight(backend))).collect(),
        });
        let elements = match self.read_table().map_err(in_nft("read our table"))? {
            ruleset::Found::Intact(elements) | ruleset::Found::Broken { elements, .. } => elements,
        };
        Ok(Found { servers: servers.collect(), elements })
    }

    fn change_servers(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, KernelFailure> {
        self.ipvs.apply(ops).map_err(in_ipvs("change virtual servers"))
    }

    fn change_elements(&mut self, remove: &[Element], add: &[Element]) -> Result<(), KernelFailure> {
        self.nft.commit(ruleset::change(remove, add)).map_err(in_nft("change set elements"))
    }

    fn connections(&mut self, key: &VirtualServerKey) -> Result<Vec<(SocketAddr, u64)>, KernelFailure> {
        let backends = self.ipvs.dests(key).map_err(in_ipvs("read real servers"))?;
        let total =
            |b: &ipvs::RealServer| u64::from(b.active_connections) + u64::from(b.inactive_connections);
        Ok(backends.iter().map(|backend| (backend.address, total(backend))).collect())
    }
}

/// The weight of a real server; one that is not masqueraded gets none that we ever set, so that it
/// is set anew.
fn weight(backend: &ipvs::RealServer) -> u32 {
    if backend.forward == ipvs::Forward::Masquerade { backend.weight } else { u32::MAX }
}

fn structure(base: &Base) -> Structure {
    let knows = |family| base.pod_cidrs.iter().any(|cidr| Family::of(cidr.addr()) == family);
    Structure::new(Parameters { bit: base.bit, local_pods: [knows(Family::V4), knows(Family::V6)] })
}

fn in_ipvs(action: &'static str) -> impl FnOnce(NetlinkError) -> KernelFailure {
    move |source| KernelFailure::Ipvs { action, source }
}

fn in_nft(action: &'static str) -> impl FnOnce(NftError) -> KernelFailure {
    move |source| KernelFailure::Nft { action, source }
}

fn in_routes(action: &'static str) -> impl FnOnce(PolicyRouteError) -> KernelFailure {
    move |source| KernelFailure::Routes { action, source }
}
