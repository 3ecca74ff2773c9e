//! Network namespaces for one test: pods, nodes, a router and a client outside, as real as the kernel makes them.
//!
//! A namespace here has no name in /run/netns: it is a file descriptor, so it cannot outlive the test, whatever
//! happens to it. Everything that IPVS, nftables, conntrack and the sysctls hold is per namespace, so tests in
//! one machine run beside each other. What is shared by all is what is loaded: modules, and their parameters.

pub(crate) mod diagnose;
mod process;
mod topology;

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::{eventually, packages, process::before_exec, process::output_of};

pub use process::Process;
pub use topology::{Address, PodLinks, Topology, TopologyBuilder, addr};

const LOOPBACK_UP: &str = "link set lo up";

/// A network namespace. Clones are the same one; it ends with the last clone, process or socket in it.
#[derive(Clone)]
pub struct Namespace {
    name: String,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes a namespace with nothing but its loopback device, which is up. The name is for messages only.
    pub fn new(name: &str) -> Result<Self> {
        let namespace = Self::unwired(name)?;
        namespace.ip(&[LOOPBACK_UP])?;
        Ok(namespace)
    }

    /// Makes a namespace in which nothing is up yet.
    fn unwired(name: &str) -> Result<Self> {
        let made =
            thread::scope(|scope| scope.spawn(unshared).join().map_err(|_| anyhow!("the thread died"))?);
        let fd = made.with_context(|| format!("failed to make the network namespace {name}"))?;
        let namespace = Self { name: name.to_owned(), fd: Arc::new(fd) };
        // Duplicate address detection keeps an address unusable for a second or two.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        Ok(namespace)
    }

    /// The namespace behind a path, such as [`Self::path`] of another process.
    pub fn open(name: &str, path: &str) -> Result<Self> {
        let file =
            File::open(path).with_context(|| format!("failed to open the namespace {name} at {path}"))?;
        Ok(Self { name: name.to_owned(), fd: Arc::new(file.into()) })
    }

    /// The namespace's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number of the namespace, as in `/proc/<pid>/ns/net`.
    pub fn inode(&self) -> Result<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_ino)
    }

    /// Runs `work` in the namespace, on a thread of its own that ends with it. Sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<_, rustix::io::Errno>(work())
            });
            inside.join()
        });
        match entered {
            Ok(result) => result.with_context(|| format!("failed to enter the namespace {}", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command that will run in the namespace; its files are the host's.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        // a user's PATH may lack the folders of ip, nft and ipvsadm
        let found = program.to_str().and_then(packages::find).unwrap_or_else(|| program.to_owned());
        let mut command = Command::new(found);
        let fd = Arc::clone(&self.fd);
        before_exec(&mut command, move || {
            Ok(move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?)
        });
        command
    }

    /// Runs a command line (words separated by blanks) to its end and returns what it printed.
    pub fn output(&self, command_line: &str) -> Result<String> {
        let mut words = command_line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        output_of(self.command(program).args(words)).with_context(|| format!("in {}", self.name))
    }

    /// Runs lines of the `ip` program as one batch.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> Result<()> {
        self.feed(self.command("ip").args(["-batch", "-"]), &join(lines))
    }

    /// Loads an nftables ruleset.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.feed(self.command("nft").args(["-f", "-"]), ruleset)
    }

    /// Writes a sysctl of the namespace, named by its path below /proc/sys.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let written = self.run(|| fs::write(Path::new("/proc/sys").join(name), value))?;
        written.with_context(|| format!("failed to set {name} to {value} in {}", self.name))
    }

    /// Reads a sysctl of the namespace, named by its path below /proc/sys.
    pub fn read_sysctl(&self, name: &str) -> Result<String> {
        let read = self.run(|| fs::read_to_string(Path::new("/proc/sys").join(name)))?;
        Ok(read.with_context(|| format!("failed to read {name} in {}", self.name))?.trim().to_owned())
    }

    /// The namespace as `ip link ... netns` takes it: a path.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    fn feed(&self, command: &mut Command, input: &str) -> Result<()> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        // a program that ends early says more with its own words than the broken pipe does
        let _ = child.stdin.take().context("a child without a standard input")?.write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} refused in {}: {}\n{input}", command.get_program().display(), self.name, said.trim());
        }
        Ok(())
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.name)
    }
}

fn unshared() -> Result<OwnedFd> {
    // SAFETY: only the network namespace of this thread changes; no file descriptor or file system state that
    // other threads share is touched (CLONE_FILES and CLONE_FS are what makes unshare unsafe).
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("unshare failed; the rig needs root")?;
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn join<S: AsRef<str>>(lines: &[S]) -> String {
    lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect()
}

/// Fails, with what to run instead, where the tests of real IPVS cannot run.
pub fn require_ipvs_kernel() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this test needs root in a kernel with IPVS: run `make test`, which boots one");
    }
    // A dry run: that ip_vs is not loaded yet is what the agent's own loading is tested on.
    let modprobe =
        packages::find("modprobe").context("modprobe is missing: run `make test`, which installs kmod")?;
    let loadable = Command::new(modprobe).args(["--dry-run", "--quiet", "ip_vs"]).status()?.success();
    if !loadable && !Path::new("/proc/net/ip_vs").exists() {
        bail!("this kernel has no ip_vs: run `make test`, which boots one that has");
    }
    Ok(())
}

/// Kills what runs in the namespaces, and waits until it is gone.
pub(crate) fn end_processes(namespaces: &[&Namespace]) -> Result<()> {
    let inodes: Vec<_> = namespaces.iter().filter_map(|namespace| namespace.inode().ok()).collect();
    eventually("processes in the namespaces are killed", Duration::from_secs(10), || {
        let left = processes_in(&inodes);
        for pid in &left {
            // it may have ended meanwhile
            let _ = kill_process(*pid, Signal::KILL);
        }
        left.is_empty()
    })
}

/// The processes that are in one of the namespaces, this one left out.
fn processes_in(inodes: &[u64]) -> Vec<rustix::process::Pid> {
    let me = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid: &u32| *pid != me);
    let inside = pids.filter(|pid| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|metadata| inodes.contains(&metadata.ino()))
    });
    inside.filter_map(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)).collect()
}
