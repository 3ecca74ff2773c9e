//! A node on the host's kernel: network, mount, process, host name and IPC namespaces.
//!
//! ```text
//!   rig ── spawns, in new namespaces ──> rig inside enter ── spawns, as their process 1 ──> rig inside init
//!                                                                                             └─ rig inside serve
//! ```
//!
//! Each dies with the one before it, and with process 1 all that runs in the node.

use std::io::stdin;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::system::sethostname;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::ns::Namespace;
use crate::process::{Kept, before_exec, die_with_parent};
use crate::session::{Session, serve};

const SELF: &str = "/proc/self/exe";

/// Namespaces in which a node runs; they end with this value.
#[derive(Debug)]
pub struct Body {
    process: Kept,
    session: Session,
}

impl Body {
    /// Makes the namespaces, around the network's. `mark` is an environment variable of all their
    /// processes, `rig` the rig's program.
    pub fn start(rig: &Path, network: &Namespace, mark: (&str, &str), stderr: Stdio) -> Result<Self> {
        let mut command = network.command(rig);
        before_exec(&mut command, || {
            let flags =
                UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWPID;
            // SAFETY: this process has one thread and is about to become another program; it keeps its files.
            Ok(unsafe { unshare_unsafe(flags) }?)
        });
        command.args(["inside", "enter"]).env(mark.0, mark.1);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let (process, input, output) = Kept::spawn(command)?;
        let session = Session::open(
            input.context("a child without a standard input")?,
            output.context("a child without a standard output")?,
        );
        Ok(Self { process, session })
    }

    /// What runs commands in them.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Kills everything in them.
    pub fn end(&mut self) -> Result<()> {
        self.process.end().map(drop)
    }
}

/// `rig inside enter`: its child is the first in the new process namespace, as it itself is not.
pub fn enter() -> Result<ExitCode> {
    let status = die_with_parent(Command::new(SELF).args(["inside", "init"])).status()?;
    bail!("the node's first process ended ({status})")
}

/// `rig inside init`: process 1 of a node.
pub fn init() -> Result<ExitCode> {
    if !rustix::process::getpid().is_init() {
        bail!("this is the first process of a node of the rig's, not a command for a host");
    }
    // what is mounted on the host later is seen here, and not the other way around
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("failed to keep mounts from the host")?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .context("failed to mount /proc")?;
    let server =
        Command::new(SELF).args(["inside", "serve"]).spawn().context("failed to start the server")?;
    let status = serve::reap_until_end(&server)?;
    bail!("the server ended ({status})")
}

/// `rig inside serve`: runs what the rig asks for.
pub fn serve() -> Result<ExitCode> {
    let frames = std::fs::File::options().write(true).open("/proc/self/fd/1")?;
    serve::serve(stdin().lock(), frames, |preparation| {
        sethostname(preparation.hostname.as_bytes()).context("failed to set the host name")
    })?;
    Ok(ExitCode::SUCCESS)
}
