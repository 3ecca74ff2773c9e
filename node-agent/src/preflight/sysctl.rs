//! Sets the sysctls that IPVS needs, and verifies them.

use std::{
    env, fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{Host, chain};

/// Names the folder that is the host's `/proc/sys/net`, where that itself is read-only: in a container.
pub const PROC_SYS_NET: &str = "FAIRLEAD_PROC_SYS_NET";
const DEFAULT_NET: &str = "/proc/sys/net";

/// Where the sysctls of the network are. All our names begin with `net/`, and no other is touched.
#[derive(Clone, Debug)]
pub struct SysctlRoot {
    net: PathBuf,
}

impl Default for SysctlRoot {
    fn default() -> Self {
        let named = env::var_os(PROC_SYS_NET).filter(|path| !path.is_empty());
        Self { net: named.map_or_else(|| DEFAULT_NET.into(), PathBuf::from) }
    }
}

impl SysctlRoot {
    /// The sysctls whose names are rooted in this folder, as in `/proc/sys`.
    pub fn at(root: &Path) -> Self {
        Self { net: root.join("net") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.net.join(name.strip_prefix("net/").unwrap_or(name))
    }

    fn get(&self, name: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.path(name))?.trim().to_owned())
    }

    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        // Never created: a name that does not exist is a sysctl that the kernel does not have.
        fs::OpenOptions::new().write(true).open(self.path(name))?.write_all(value.as_bytes())
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Idle time after which connection tracking forgets an established TCP connection, in seconds;
    /// none while nf_conntrack is not loaded.
    pub fn conntrack_established_timeout(&self) -> Option<u32> {
        self.get("net/netfilter/nf_conntrack_tcp_timeout_established").ok()?.parse().ok()
    }
}

/// How much depends on a sysctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it Services do not work, or break connections.
    Required,
    /// Without it something works less well.
    BestEffort,
}

/// A sysctl as it should be.
#[derive(Clone, Copy, Debug)]
struct Setting {
    name: &'static str,
    wanted: &'static str,
    why: &'static str,
    need: Need,
}

const fn setting(name: &'static str, wanted: &'static str, need: Need, why: &'static str) -> Setting {
    Setting { name, wanted, why, need }
}

const IPVS: [Setting; 6] = [
    setting(
        "net/ipv4/vs/conntrack",
        "1",
        Need::Required,
        "masquerading and the recognition of known connections need connection tracking of IPVS traffic",
    ),
    setting(
        "net/ipv4/vs/expire_nodest_conn",
        "1",
        Need::Required,
        "otherwise clients of a removed UDP backend are sent to it for good",
    ),
    setting(
        "net/ipv4/vs/expire_quiescent_template",
        "1",
        Need::BestEffort,
        "otherwise session affinity goes on feeding backends that drain",
    ),
    setting(
        "net/ipv4/vs/conn_reuse_mode",
        "1",
        Need::BestEffort,
        "otherwise a client that reuses a source port stays with the backend it had, even a removed one",
    ),
    setting(
        "net/ipv4/vs/snat_reroute",
        "1",
        Need::BestEffort,
        "replies must be routed by the address they are given, which policy routing may decide on",
    ),
    setting(
        "net/ipv4/vs/cache_bypass",
        "0",
        Need::BestEffort,
        "packets to a Service without backends must not be sent on to the address of the Service",
    ),
];

const IPV4_FORWARDING: Setting =
    setting("net/ipv4/ip_forward", "1", Need::Required, "packets to pods are forwarded by this node");

const IPV6_FORWARDING: Setting = setting(
    "net/ipv6/conf/all/forwarding",
    "1",
    Need::Required,
    "packets to pods are forwarded by this node",
);

const BRIDGE_WHY: &str = "replies between two pods on one bridge must pass netfilter to be translated back";
const BRIDGE: [Setting; 2] = [
    setting("net/bridge/bridge-nf-call-iptables", "1", Need::BestEffort, BRIDGE_WHY),
    setting("net/bridge/bridge-nf-call-ip6tables", "1", Need::BestEffort, BRIDGE_WHY),
];

const ACCEPT_RA_WHY: &str = "a node that forwards would lose the default route that its router advertises";

/// What was done about a sysctl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It had the wanted value.
    Already,
    /// It has it now.
    From(String),
}

/// A sysctl that does not have the wanted value.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The kernel has no such sysctl.
    #[error(
        "sysctl {name} does not exist: load the kernel module it belongs to, or use a kernel that has it"
    )]
    Missing {
        /// Name.
        name: String,
    },
    /// It cannot be read.
    #[error("failed to read sysctl {name}")]
    Read {
        /// Name.
        name: String,
        /// Cause.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("failed to set sysctl {name} to {wanted}: {hint}")]
    Write {
        /// Name.
        name: String,
        /// Wanted value.
        wanted: &'static str,
        /// What to do about it.
        hint: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The kernel, or somebody else, did not keep the value.
    #[error("sysctl {name} was set to {wanted} but is {found}: find out what sets it, or set it on the host")]
    NotKept {
        /// Name.
        name: String,
        /// Wanted value.
        wanted: &'static str,
        /// Value found.
        found: String,
    },
    /// Forwarding would have cost the node its default route.
    #[error(
        "IPv6 forwarding was not switched on: {interface} would lose its default route, set net.ipv6.conf.{interface}.accept_ra=2 first"
    )]
    WouldLoseRoute {
        /// Interface whose router advertises the default route.
        interface: String,
    },
}

/// A sysctl and what came of it.
#[derive(Debug)]
pub struct SysctlOutcome {
    /// Name, with slashes.
    pub name: String,
    /// Wanted value.
    pub wanted: &'static str,
    /// Why it is wanted.
    pub why: &'static str,
    /// How much depends on it.
    pub need: Need,
    /// What was done.
    pub result: Result<Change, SysctlError>,
}

/// All sysctls and what came of them.
#[derive(Debug)]
pub struct Sysctls {
    /// One a sysctl, in the order in which they were set.
    pub outcomes: Vec<SysctlOutcome>,
    /// The host speaks IPv6.
    pub ipv6: bool,
}

impl Sysctls {
    /// Those that had another value and have the wanted one now.
    pub fn changed(&self) -> impl Iterator<Item = &SysctlOutcome> {
        self.outcomes.iter().filter(|outcome| matches!(outcome.result, Ok(Change::From(_))))
    }

    /// What keeps Services from working, one sentence a sysctl; empty when nothing does.
    pub fn refusals(&self) -> impl Iterator<Item = String> {
        self.failures(Need::Required)
    }

    /// What makes Services work less well, one sentence a sysctl.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        self.failures(Need::BestEffort)
    }

    fn failures(&self, need: Need) -> impl Iterator<Item = String> {
        let failed = move |outcome: &SysctlOutcome| {
            let error = outcome.result.as_ref().err().filter(|_| outcome.need == need)?;
            Some(format!("{} (wanted because {})", chain(error), outcome.why))
        };
        self.outcomes.iter().filter_map(failed)
    }
}

/// Sets what is not as it should be, and reads back everything.
pub fn apply(host: &Host) -> Sysctls {
    let root = &host.sysctl;
    let ipv6 = serves_ipv6(host);
    let mut outcomes: Vec<_> = IPVS.iter().map(|setting| set(root, setting)).collect();
    outcomes.push(set(root, &IPV4_FORWARDING));
    if ipv6 {
        forward_ipv6(host, &mut outcomes);
    }
    // Only there while br_netfilter is loaded, and only of use then.
    outcomes.extend(BRIDGE.iter().filter(|setting| root.has(setting.name)).map(|s| set(root, s)));
    Sysctls { outcomes, ipv6 }
}

/// As [`apply`] on this host, for a loop that keeps it so: whether anything had to be changed, or what
/// keeps Services from working.
pub fn ensure() -> Result<bool, String> {
    let sysctls = apply(&Host::default());
    let refusals: Vec<_> = sysctls.refusals().collect();
    if refusals.is_empty() { Ok(sysctls.changed().next().is_some()) } else { Err(refusals.join("; ")) }
}

/// [`SysctlRoot::conntrack_established_timeout`] of this host.
pub fn conntrack_established_timeout() -> Option<u32> {
    SysctlRoot::default().conntrack_established_timeout()
}

/// Whether the host speaks IPv6: not with `ipv6.disable=1`, not with a kernel without it, and not when
/// it is switched off on every interface.
pub fn serves_ipv6(host: &Host) -> bool {
    match fs::read_to_string(host.proc_net.join("if_inet6")) {
        Err(_) => false,
        Ok(addresses) if !addresses.trim().is_empty() => true,
        // No address yet, as in a fresh network namespace, or none ever.
        Ok(_) => host.sysctl.get("net/ipv6/conf/all/disable_ipv6").is_ok_and(|value| value == "0"),
    }
}

fn forward_ipv6(host: &Host, outcomes: &mut Vec<SysctlOutcome>) {
    let root = &host.sysctl;
    let mut would_lose = None;
    if root.get(IPV6_FORWARDING.name).is_ok_and(|value| value != IPV6_FORWARDING.wanted) {
        // The moment forwarding is on, the kernel drops routes that came from router advertisements
        // and takes no new ones, but where accept_ra is 2 (net/ipv6/route.c rt6_purge_dflt_routers).
        let routes = fs::read_to_string(host.proc_net.join("ipv6_route")).unwrap_or_default();
        for interface in advertised_default_routes(&routes) {
            let name = format!("net/ipv6/conf/{interface}/accept_ra");
            // 0: the interface takes no advertisements from the kernel's hands, a daemon does.
            if root.get(&name).is_ok_and(|value| value == "1") {
                let result = set_and_verify(root, &name, "2");
                if result.is_err() {
                    would_lose = Some(interface.to_owned());
                }
                let need = Need::BestEffort;
                outcomes.push(SysctlOutcome { name, wanted: "2", why: ACCEPT_RA_WHY, need, result });
            }
        }
    }
    outcomes.push(match would_lose {
        None => set(root, &IPV6_FORWARDING),
        Some(interface) => outcome(&IPV6_FORWARDING, Err(SysctlError::WouldLoseRoute { interface })),
    });
}

/// The interfaces of `/proc/net/ipv6_route` whose default route a router advertised.
fn advertised_default_routes(routes: &str) -> Vec<&str> {
    // include/uapi/linux/ipv6_route.h
    const RTF_DEFAULT: u32 = 0x0001_0000;
    const RTF_ADDRCONF: u32 = 0x0004_0000;
    const ADVERTISED: u32 = RTF_DEFAULT | RTF_ADDRCONF;
    let mut interfaces: Vec<_> = routes
        .lines()
        .filter_map(|line| {
            // destination, its length, source, its length, next hop, metric, references, uses, flags, device
            let mut fields = line.split_whitespace();
            let flags = u32::from_str_radix(fields.nth(8)?, 16).ok()?;
            (flags & ADVERTISED == ADVERTISED).then_some(fields.next()?)
        })
        .collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    interfaces
}

fn set(root: &SysctlRoot, setting: &Setting) -> SysctlOutcome {
    outcome(setting, set_and_verify(root, setting.name, setting.wanted))
}

fn outcome(setting: &Setting, result: Result<Change, SysctlError>) -> SysctlOutcome {
    let &Setting { name, wanted, why, need } = setting;
    SysctlOutcome { name: name.to_owned(), wanted, why, need, result }
}

fn set_and_verify(root: &SysctlRoot, name: &str, wanted: &'static str) -> Result<Change, SysctlError> {
    let read = || {
        root.get(name).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SysctlError::Missing { name: name.to_owned() },
            _ => SysctlError::Read { name: name.to_owned(), source },
        })
    };
    let before = read()?;
    if before == wanted {
        return Ok(Change::Already);
    }
    root.set(name, wanted).map_err(|source| SysctlError::Write {
        name: name.to_owned(),
        wanted,
        hint: hint(&source, &root.net),
        source,
    })?;
    match read()? {
        found if found == wanted => Ok(Change::From(before)),
        found => Err(SysctlError::NotKept { name: name.to_owned(), wanted, found }),
    }
}

fn hint(error: &io::Error, net: &Path) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem if net == Path::new(DEFAULT_NET) => {
            "/proc/sys is read-only here, mount the host's /proc/sys/net into the container and name the folder in FAIRLEAD_PROC_SYS_NET"
        }
        io::ErrorKind::ReadOnlyFilesystem => "its mount is read-only, mount it writable",
        io::ErrorKind::PermissionDenied => "give the agent CAP_NET_ADMIN, or set it on the host",
        _ => "set it on the host",
    }
}

#[cfg(test)]
#[path = "sysctl_tests.rs"]
mod tests;
