//! Control groups of nodes, in whichever version the host has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// The hierarchies of version 1 that kubelet and runc use; a kernel may lack some.
const HIERARCHIES: &[&str] =
    &["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids", "systemd"];

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

/// Removes the control groups of that path, once nothing runs in them.
pub fn remove(path: &str) -> Result<()> {
    let relative = path.trim_start_matches('/');
    let mut hierarchies = vec![PathBuf::from(ROOT)];
    hierarchies.extend(HIERARCHIES.iter().map(|name| Path::new(ROOT).join(name)));
    for folder in hierarchies.iter().map(|root| root.join(relative)).filter(|folder| folder.is_dir()) {
        remove_tree(&folder).with_context(|| format!("failed to remove {}", folder.display()))?;
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(folder)?)
}
