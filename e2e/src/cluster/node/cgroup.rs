//! Control groups of nodes, in whichever version the host has.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::eventually;

const ROOT: &str = "/sys/fs/cgroup";

/// The hierarchies of version 1 that kubelet and runc use; a kernel may lack some.
const HIERARCHIES: &[&str] = &[
    "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids", "systemd",
    "unified",
];

/// How long killed processes may take to be gone.
const LIMIT: Duration = Duration::from_secs(20);

/// What version 2 passes on to groups below.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "io", "memory", "pids"];

/// Makes a control group, by its path below the mounts, fit for groups of pods below it.
pub fn make(path: &str) -> Result<()> {
    let relative = path.trim_start_matches('/');
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        let mut folder = PathBuf::from(ROOT);
        for part in Path::new(relative) {
            enable(&folder)?;
            folder.push(part);
            create(&folder)?;
        }
        return enable(&folder);
    }
    for hierarchy in HIERARCHIES {
        let root = Path::new(ROOT).join(hierarchy);
        if !root.is_dir() {
            continue;
        }
        let mut folder = root.clone();
        for part in Path::new(relative) {
            folder.push(part);
            create(&folder)?;
            inherit(&folder, &["cpuset.cpus", "cpuset.mems"])?;
        }
    }
    Ok(())
}

/// Passes on to groups below what there is of [`CONTROLLERS`] (version 2).
pub fn enable(folder: &Path) -> Result<()> {
    let available = fs::read_to_string(folder.join("cgroup.controllers"))
        .with_context(|| format!("failed to read the controllers of {}", folder.display()))?;
    let wanted = CONTROLLERS.iter().filter(|name| available.split_whitespace().any(|found| found == **name));
    for controller in wanted {
        fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}")).with_context(|| {
            format!(
                "failed to pass the controller {controller} on below {}: a group that does so has no processes of its \
                 own, move them to one beside it",
                folder.display()
            )
        })?;
    }
    Ok(())
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("failed to make the control group {}", folder.display()))
}

/// A new group of version 1 has no processors and no memory until it is told.
fn inherit(folder: &Path, files: &[&str]) -> Result<()> {
    let parent = folder.parent().context("a control group without a parent")?;
    for file in files.iter().filter(|file| folder.join(file).exists()) {
        let value = fs::read_to_string(parent.join(file))?;
        fs::write(folder.join(file), value.trim())
            .with_context(|| format!("failed to set {file} of {}", folder.display()))?;
    }
    Ok(())
}

/// Removes the control groups of that path; what runs in them has been killed, and takes a moment to be gone.
pub fn remove(path: &str) -> Result<()> {
    let relative = path.trim_start_matches('/');
    let mut failure = None;
    let removed = eventually("the control groups are removed", LIMIT, || {
        let result = folders(relative).iter().try_for_each(|folder| remove_tree(folder));
        failure = result.err();
        failure.is_none()
    });
    removed.or_else(|error| Err(failure.map_or(anyhow!("nothing was tried"), Into::into)).context(error))
}

/// The group of that path in each hierarchy where it is.
fn folders(relative: &str) -> Vec<PathBuf> {
    let hierarchies =
        fs::read_dir(ROOT).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let groups = hierarchies.chain([PathBuf::from(ROOT)]).map(|root| root.join(relative));
    groups.filter(|folder| folder.is_dir()).collect()
}

fn remove_tree(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
