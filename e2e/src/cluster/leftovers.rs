//! What a cluster may leave behind, however it ended: found by its id, removed, and seen to be gone.
//!
//! Processes have the id in their environment, control groups in their name, the host's device in its alias; mounts
//! are below the state folder. Namespaces need no search: they end with their processes.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::MARK;
use crate::eventually;
use crate::process::output_of;

const LIMIT: Duration = Duration::from_secs(30);

/// Something left of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A process, by its id.
    Process(u32),
    /// A mount, by its place.
    Mount(PathBuf),
    /// A control group, by its folder.
    Cgroup(PathBuf),
    /// A device of this host's network.
    Device(String),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                write!(f, "process {pid} ({})", name.trim())
            }
            Self::Mount(place) => write!(f, "mount {}", place.display()),
            Self::Cgroup(folder) => write!(f, "control group {}", folder.display()),
            Self::Device(name) => write!(f, "device {name}"),
        }
    }
}

/// Removes what is left of a cluster, and returns once nothing is.
pub fn sweep(id: &str, folder: &Path) -> Result<()> {
    let swept = eventually("nothing of the cluster is left", LIMIT, || {
        let left = find(id, folder);
        left.iter().for_each(remove);
        left.is_empty()
    });
    swept.with_context(|| {
        let left = find(id, folder);
        format!("left: {}", left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    })
}

/// What is left of a cluster, in the order it can be removed in.
pub fn find(id: &str, folder: &Path) -> Vec<Leftover> {
    let processes = processes(id).into_iter().map(Leftover::Process);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // the last mounted first
    let mounts = mounts_below(&mounts, folder).into_iter().rev().map(Leftover::Mount);
    let cgroups = cgroups(id).into_iter().map(Leftover::Cgroup);
    processes.chain(mounts).chain(cgroups).chain(devices(id).into_iter().map(Leftover::Device)).collect()
}

/// Tries; whether it worked is seen in the next round.
fn remove(leftover: &Leftover) {
    match leftover {
        Leftover::Process(pid) => kill(*pid),
        Leftover::Mount(place) => drop(unmount(place, UnmountFlags::DETACH)),
        Leftover::Cgroup(folder) => remove_cgroup(folder),
        Leftover::Device(name) => drop(output_of(Command::new("ip").args(["link", "delete", name]))),
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // it may have ended meanwhile
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn processes(id: &str) -> Vec<u32> {
    let mark = format!("{MARK}={id}");
    let me = std::process::id();
    let pids =
        entries(Path::new("/proc")).into_iter().filter_map(|entry| entry.file_name()?.to_str()?.parse().ok());
    let marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(|pid| *pid != me).filter(marked).collect()
}

/// The places of the mounts below a folder, in the order they were made.
fn mounts_below(mountinfo: &str, folder: &Path) -> Vec<PathBuf> {
    let places = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    // blanks are written as \040
    let places = places.map(|place| PathBuf::from(place.replace("\\040", " ")));
    places.filter(|place| place.starts_with(folder)).collect()
}

/// A hierarchy each for cgroup v1, one for v2.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let name = format!("fairlead-{id}");
    let hierarchies = entries(root).into_iter().chain([root.to_owned()]);
    hierarchies.map(|hierarchy| hierarchy.join(&name)).filter(|group| group.is_dir()).collect()
}

/// A group goes when it has neither processes nor groups in it.
fn remove_cgroup(folder: &Path) {
    entries(folder).iter().filter(|entry| entry.is_dir()).for_each(|inner| remove_cgroup(inner));
    let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    processes.lines().filter_map(|pid| pid.parse().ok()).for_each(kill);
    let _ = fs::remove_dir(folder);
}

fn devices(id: &str) -> Vec<String> {
    let devices = entries(Path::new("/sys/class/net"));
    let ours = devices
        .iter()
        .filter(|device| fs::read_to_string(device.join("ifalias")).is_ok_and(|alias| alias.trim() == id));
    ours.filter_map(|device| Some(device.file_name()?.to_str()?.to_owned())).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Reaped;

    #[test]
    fn a_process_of_the_cluster_is_found_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let id = format!("test-{}", std::process::id());
        // its own process group, as a daemon that left its parent
        let mut command = Command::new("sleep");
        command.arg("60").env(MARK, &id);
        let mut child = Reaped(command.spawn().unwrap());
        eventually("it is found", Duration::from_secs(5), || {
            find(&id, folder.path()) == [Leftover::Process(child.0.id())]
        })
        .unwrap();
        // a zombie has no environment: gone is gone
        sweep(&id, folder.path()).unwrap();
        assert!(!child.0.wait().unwrap().success());
    }

    #[test]
    fn mounts_are_those_below_the_folder() {
        let mountinfo = "36 35 98:0 / /state rw - ext4 /dev/vda rw
37 36 0:5 / /state/a\\040b/x rw - tmpfs tmpfs rw
38 36 0:5 / /stateful rw - tmpfs tmpfs rw
";
        let found = mounts_below(mountinfo, Path::new("/state"));
        assert_eq!(found, [PathBuf::from("/state"), "/state/a b/x".into()]);
    }
}
