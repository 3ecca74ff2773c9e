//! The inside of a node, before its programs start: file systems, network, control groups, files.
//!
//! It runs as root in the node, a machine or the namespaces of one, as `rig inside prepare`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde::{Deserialize, Serialize};

use super::{cgroup, config, visible};
use crate::process::output_of;

/// Loaded on any host that runs pods with a network on a virtual card and containers on a disk. What the agent loads
/// is not among them, as in [`crate::machine::guest`].
const MODULES: &[&str] = &["virtio_net", "virtio_blk", "ext4", "overlay", "veth", "bridge"];

/// Where a machine has its disks.
const DISK: &str = "/run/rig/disk";
/// Where a machine has the programs of a node.
pub const PROGRAMS: &str = "/run/rig/programs";

/// The serial of the disk of images and containers.
pub const CONTENT_SERIAL: &str = "content";
/// The serial of the disk of programs.
pub const PROGRAMS_SERIAL: &str = "programs";

/// The folders of a namespace node that are its own; it sees what the host has in them, and changes none of it.
const OWN_FOLDERS: &[&str] = &["/etc", "/opt", "/run", "/var"];

/// What kubelet sets for the whole kernel, a machine's or the host's: a namespace node believes it has.
const KERNEL_SETTINGS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// What makes a place a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Preparation {
    /// What the kind of the node needs.
    pub kind: Kind,
    /// Files, by their paths.
    pub files: BTreeMap<PathBuf, String>,
}

/// What the kinds need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Kind {
    /// A machine with disks and a card.
    Machine {
        /// Its addresses, with their prefix lengths.
        addresses: Vec<String>,
        /// Its router, in each family.
        gateways: Vec<IpAddr>,
    },
    /// Namespaces on the host's kernel.
    Namespace {
        /// containerd's content, to be copied.
        content: PathBuf,
        /// A folder on which the node's own file system is mounted.
        scratch: PathBuf,
        /// Folders that stay as they are on the host.
        visible: Vec<PathBuf>,
        /// The control group of its pods.
        cgroup: String,
    },
}

impl Preparation {
    /// Makes this place a node.
    pub fn run(&self) -> Result<()> {
        match &self.kind {
            Kind::Machine { addresses, gateways } => machine(addresses, gateways)?,
            Kind::Namespace { content, scratch, visible, cgroup } => {
                namespace(content, scratch, visible)?;
                cgroup::make(cgroup)?;
            }
        }
        for (file, content) in &self.files {
            let folder = file.parent().context("a file without a folder")?;
            // /etc/resolv.conf is a link into a folder that may not be here
            let _ = fs::remove_file(file);
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(file, content))
                .with_context(|| format!("failed to write {}", file.display()))?;
        }
        fs::create_dir_all(config::CNI_FOLDER)?;
        // what pods mount, and what is mounted for them, is seen on both sides
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)
            .context("failed to share mounts with pods")
    }
}

fn machine(addresses: &[String], gateways: &[IpAddr]) -> Result<()> {
    output_of(Command::new("modprobe").arg("-a").args(MODULES))?;
    let mut lines = vec!["link set eth0 up".to_owned()];
    lines.extend(addresses.iter().map(|address| {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        format!("addr add {address} dev eth0{nodad}")
    }));
    lines.extend(gateways.iter().map(|gateway| format!("route add default via {gateway}")));
    ip(&lines)?;
    for sysctl in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys").join(sysctl), "1")
            .with_context(|| format!("failed to set {sysctl}"))?;
    }
    mount_disk(CONTENT_SERIAL, DISK, MountFlags::NOATIME)?;
    mount_disk(PROGRAMS_SERIAL, PROGRAMS, MountFlags::RDONLY)?;
    for (from, to) in [("containerd", config::ROOT), ("kubelet", config::KUBELET_ROOT), ("log", "/var/log")] {
        fs::create_dir_all(to)?;
        mount_bind(Path::new(DISK).join(from), to).with_context(|| format!("failed to bind {to}"))?;
    }
    cgroup::enable(Path::new("/sys/fs/cgroup"))
}

fn ip(lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("a child without a standard input")?;
    std::io::Write::write_all(&mut input, lines.join("\n").as_bytes())?;
    drop(input);
    if !child.wait()?.success() {
        bail!("ip refused {lines:?}");
    }
    Ok(())
}

fn mount_disk(serial: &str, to: &str, flags: MountFlags) -> Result<()> {
    let mut disks = fs::read_dir("/sys/block").context("failed to list disks")?.filter_map(Result::ok);
    let disk = disks
        .find(|disk| fs::read_to_string(disk.path().join("serial")).is_ok_and(|found| found.trim() == serial))
        .with_context(|| format!("no disk has the serial {serial}"))?;
    fs::create_dir_all(to)?;
    // the tables of a new file system are zero: the kernel need not spend its time on writing that
    mount(Path::new("/dev").join(disk.file_name()), to, "ext4", flags, Some(c"noinit_itable"))
        .with_context(|| format!("failed to mount the disk {serial}"))
}

fn namespace(content: &Path, scratch: &Path, keep: &[PathBuf]) -> Result<()> {
    let kept = visible::take(keep)?;
    mount("tmpfs", scratch, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
        .with_context(|| format!("failed to mount {}", scratch.display()))?;
    let own = visible::take(&[scratch.to_owned()])?;
    for folder in OWN_FOLDERS {
        let base = scratch.join(folder.trim_start_matches('/'));
        let [upper, work] = ["upper", "work"].map(|name| base.join(name));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={folder},upperdir={},workdir={}", upper.display(), work.display());
        let options = std::ffi::CString::new(options)?;
        mount("overlay", *folder, "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .with_context(|| format!("failed to put a layer over {folder}"))?;
    }
    visible::put(kept)?;
    visible::put(own)?;
    // containers are overlays themselves, and those cannot stand on one
    for (name, to) in [("containerd", config::ROOT), ("kubelet", config::KUBELET_ROOT)] {
        let from = scratch.join(name);
        fs::create_dir_all(to)?;
        if name == "containerd" {
            output_of(Command::new("cp").arg("-a").args([content, &from]))?;
        } else {
            fs::create_dir(&from)?;
        }
        mount_bind(&from, to).with_context(|| format!("failed to bind {to}"))?;
    }
    for (name, value) in KERNEL_SETTINGS {
        let shown = scratch.join(name.replace('/', "."));
        fs::write(&shown, format!("{value}\n"))?;
        let setting = Path::new("/proc/sys").join(name);
        // a kernel without keys has no such setting, and kubelet asks for none
        if setting.exists() {
            mount_bind(&shown, &setting).with_context(|| format!("failed to cover {name}"))?;
        }
    }
    Ok(())
}
