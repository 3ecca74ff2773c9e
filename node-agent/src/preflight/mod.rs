//! Makes a node fit for IPVS, or says why it is not: kernel version, modules, sysctls, and what others
//! have that would get in the way.
//!
//! Owns no kernel object: it loads modules and sets sysctls, and never takes either back. Never
//! removes anything of kube-proxy, of a policy engine or of a firewall; that is for the user to do.
//!
//! ```text
//! prepare:   kernel version -> modules -> sysctls            -> refusals, warnings, families
//! conflicts: who answers on kube-proxy's ports, nft dump, legacy iptables -> conflicts
//! ```

pub mod conflicts;
mod foreign;
pub mod kernel_version;
pub mod kube_proxy;
pub mod legacy_iptables;
pub mod modules;
pub mod sysctl;

use std::{io, path::PathBuf};

use fairlead_crds::Scheduler;
use serde::Serialize;

use crate::error::chain;

use self::{
    modules::{Loader, ModuleProblem, Modules},
    sysctl::{SysctlOutcome, SysctlRoot, Sysctls},
};

/// Something that keeps a node, or a part of its Services, from working.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// One word, of a closed list.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
}

/// Where the host's files are. In a container `/proc/sys/net` is mounted from the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Root of sysctl names, `/proc/sys`.
    pub sysctl: SysctlRoot,
    /// `/proc/net`.
    pub proc_net: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { sysctl: SysctlRoot::default(), proc_net: "/proc/net".into() }
    }
}

/// What came of preparing a node.
#[derive(Debug)]
pub struct Prepared {
    /// Why the node cannot be programmed. Empty: it can.
    pub refusals: Vec<Problem>,
    /// What does not work fully, worth a log line.
    pub warnings: Vec<Problem>,
    /// The host speaks IPv6; without, only IPv4 frontends are programmed.
    pub ipv6: bool,
    /// Every sysctl with what was done about it.
    pub sysctls: Vec<SysctlOutcome>,
    modules: Option<Modules>,
}

impl Prepared {
    /// Why service ports with this scheduler cannot be programmed; none when they can.
    ///
    /// To be read as a hint beside the kernel's own refusal: the kernel may load a scheduler itself.
    pub fn scheduler_problem(&self, scheduler: Scheduler) -> Option<String> {
        let problem = self.modules.as_ref()?.schedulers.get(&scheduler)?;
        Some(chain(problem))
    }
}

/// Loads what must be loaded and sets what must be set. Idempotent.
pub fn prepare(host: &Host) -> io::Result<Prepared> {
    let release = kernel_version::release()?;
    if let Err(too_old) = kernel_version::check(&release) {
        let refusal = Problem { reason: "UnsupportedKernel", message: too_old.to_string() };
        return Ok(Prepared {
            refusals: vec![refusal],
            warnings: Vec::new(),
            ipv6: sysctl::serves_ipv6(host),
            sysctls: Vec::new(),
            modules: None,
        });
    }
    let modules = Loader::of_host(&release).ensure_ipvs();
    let sysctls = sysctl::apply(host);
    Ok(judge(modules, sysctls))
}

fn judge(modules: Modules, sysctls: Sysctls) -> Prepared {
    let mut refusals = Vec::new();
    let mut warnings = Vec::new();
    let module = |problem: &ModuleProblem| Problem { reason: "MissingKernelModule", message: chain(problem) };
    refusals.extend(modules.ip_vs.as_ref().map(module));
    // Only pods on a bridge need it, and only the schedulers in use matter.
    warnings.extend(modules.br_netfilter.as_ref().map(module));
    warnings.extend(modules.schedulers.values().map(module));
    let sysctl = |message| Problem { reason: "SysctlNotSet", message };
    refusals.extend(sysctls.refusals().map(sysctl));
    warnings.extend(sysctls.warnings().map(sysctl));
    Prepared { refusals, warnings, ipv6: sysctls.ipv6, sysctls: sysctls.outcomes, modules: Some(modules) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        sysctl::{Change, Need, SysctlError},
        *,
    };

    fn missing(module: &str) -> ModuleProblem {
        ModuleProblem::Refused { module: module.into(), stderr: "not found".into(), hint: "install it" }
    }

    fn outcome(need: Need, result: Result<Change, SysctlError>) -> SysctlOutcome {
        SysctlOutcome { name: "net/x".into(), wanted: "1", why: "of a test", need, result }
    }

    #[test]
    fn a_missing_scheduler_is_a_problem_only_of_the_ports_that_use_it() {
        let schedulers = BTreeMap::from([(Scheduler::Mh, missing("ip_vs_mh"))]);
        let modules = Modules { ip_vs: None, br_netfilter: None, schedulers };
        let prepared = judge(modules, Sysctls { outcomes: Vec::new(), ipv6: true });
        assert_eq!(prepared.refusals, []);
        assert_eq!(prepared.warnings.len(), 1);
        assert!(prepared.scheduler_problem(Scheduler::Mh).unwrap().contains("ip_vs_mh"));
        assert_eq!(prepared.scheduler_problem(Scheduler::Rr), None);
    }

    #[test]
    fn only_what_is_required_refuses_the_node() {
        let not_kept = || Err(SysctlError::NotKept { name: "net/x".into(), wanted: "1", found: "0".into() });
        let modules =
            Modules { ip_vs: Some(missing("ip_vs")), br_netfilter: None, schedulers: BTreeMap::new() };
        let outcomes = vec![
            outcome(Need::Required, Ok(Change::Already)),
            outcome(Need::Required, not_kept()),
            outcome(Need::BestEffort, not_kept()),
        ];
        let prepared = judge(modules, Sysctls { outcomes, ipv6: false });
        let reasons: Vec<_> = prepared.refusals.iter().map(|p| p.reason).collect();
        assert_eq!(reasons, ["MissingKernelModule", "SysctlNotSet"]);
        assert_eq!(prepared.warnings.len(), 1);
        assert!(prepared.warnings[0].message.ends_with("(wanted because of a test)"));
    }
}
