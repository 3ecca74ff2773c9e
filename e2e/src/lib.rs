//! The test rig of Fairlead: everything that is needed to see real packets go through a real kernel.
//!
//! ```text
//!   rig test ──> suite ──> machine (QEMU, Debian's kernel, the host's files) ──> test binary, as root
//!                                                                                  │
//!                                       ns (two nodes, pods, router, client) <─────┤
//!                                       traffic (servers and clients in them) <────┘
//! ```
//!
//! * [`cluster`] is a real Kubernetes cluster of such machines and namespaces.
//! * [`installation`] is the product on such a cluster, as a user installs it; [`shop`] what it serves there.
//! * [`simulation`] is the operator on a control plane whose nodes are simulated.
//! * [`claims`] is what a demo claims, checked.
//! * [`agent`] is the agent under test, with its manifests.
//! * [`machine`] boots a kernel that has IPVS and runs one command in it.
//! * [`ns`] gives each test its own network of namespaces.
//! * [`traffic`] holds the servers and clients that run in those namespaces.
//! * [`session`] runs commands in a place that the rig has made.
//! * [`suite`] builds the guest tests and runs them, in the machine or on this host.
//! * [`packages`] installs the Debian packages that all this stands on.
//!
//! The rig drives the programs of the product from outside; it never links their logic.

pub mod agent;
pub mod claims;
pub mod cluster;
pub mod installation;
pub mod machine;
pub mod ns;
pub mod packages;
pub mod process;
pub mod session;
pub mod shop;
pub mod simulation;
pub mod suite;
pub mod traffic;

use std::time::{Duration, Instant};

/// Waits until `condition` holds, and says what was waited for when it does not within `limit`.
pub fn eventually(what: &str, limit: Duration, condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    look_every(Duration::from_millis(20), what, limit, condition)
}

/// The same for a condition that costs a process, such as kubectl: what is waited for needs the processor more.
pub fn patiently(what: &str, limit: Duration, condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    look_every(Duration::from_secs(2), what, limit, condition)
}

fn look_every(
    pause: Duration,
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            anyhow::bail!("{what}: not so after {:.1} s", limit.as_secs_f32());
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Prints one line of the rig's own, apart from what the programs it runs print.
pub fn say(line: impl std::fmt::Display) {
    eprintln!("rig: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eventually_names_what_did_not_happen() {
        let error = eventually("the agent is ready", Duration::from_millis(30), || false).unwrap_err();
        assert_eq!(error.to_string(), "the agent is ready: not so after 0.0 s");
    }

    #[test]
    fn eventually_waits_for_the_condition() {
        let mut calls = 0;
        eventually("third time", Duration::from_secs(5), || {
            calls += 1;
            calls == 3
        })
        .unwrap();
        assert_eq!(calls, 3);
    }
}
