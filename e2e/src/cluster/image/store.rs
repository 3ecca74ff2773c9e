//! containerd's content with the images unpacked, made once on this host: no node imports anything.
//!
//! ```text
//!   archives ──> containerd, in namespaces of its own, on a tmpfs ──> cache: folder `root`   (namespace nodes copy it)
//!                                                                            disk   `disk`   (machine nodes attach it)
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::archive::Image;
use crate::cluster::node::config;
use crate::cluster::programs::Programs;
use crate::machine::cache;
use crate::process::{Reaped, die_with_parent, output_of};
use crate::{eventually, packages, say};

/// Raised when what is made of the inputs changes.
const RECIPE: u32 = 1;

/// What a machine node may write beside the images, in its containers and volumes; the file has holes for it.
const ROOM: u64 = 4 << 30;

/// The namespace of kubelet's images in containerd.
const NAMESPACE: &str = "k8s.io";

const LIMIT: Duration = Duration::from_secs(60);

/// The content, in both shapes.
#[derive(Debug, Clone)]
pub struct Store {
    /// containerd's root folder.
    pub root: PathBuf,
    /// An ext4 file system with the folders `containerd`, which is `root`, and those of [`DISK_FOLDERS`].
    pub disk: PathBuf,
}

/// The folders of the disk beside `containerd`, empty.
pub const DISK_FOLDERS: &[&str] = &["kubelet", "log"];

/// The disk of the programs of a node: a machine reads it ten times as fast as the host's files.
pub fn programs_disk(programs: &Programs) -> Result<PathBuf> {
    let files = programs.node_files()?;
    let key = key("programs", &files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>());
    let place = cache::entry(&cache::folder()?.join("disks"), &key, |dir| {
        let folder = dir.join("root");
        fs::create_dir(&folder)?;
        for file in &files {
            let name = file.file_name().context("a program without a name")?;
            fs::copy(file, folder.join(name))
                .with_context(|| format!("failed to copy {}", file.display()))?;
        }
        disk(&folder, &dir.join("disk"), 32 << 20)?;
        Ok(fs::remove_dir_all(folder)?)
    })?;
    Ok(place.join("disk"))
}

/// The content that holds `images`, among them `sandbox`, which holds a pod's namespaces. `rig` is the rig's program.
pub fn ensure(programs: &Programs, images: &[&Image], sandbox: &Image, rig: &Path) -> Result<Store> {
    let containerd = programs.path("containerd")?;
    let mut inputs: Vec<_> = images.iter().map(|image| image.reference.clone()).collect();
    inputs.push(containerd.display().to_string());
    let place = cache::entry(&cache::folder()?.join("disks"), &key("images", &inputs), |dir| {
        say(format_args!("unpacking {} images (once)", images.len()));
        let import = Import {
            to: dir.join("disk-root"),
            containerd,
            ctr: programs.path("ctr")?,
            cni: programs.node_folder()?.to_owned(),
            sandbox: sandbox.reference.clone(),
            archives: images.iter().map(|image| image.archive.clone()).collect(),
            names: images.iter().flat_map(|image| [image.tag.clone(), image.reference.clone()]).collect(),
        };
        import.in_namespaces(rig)?;
        for folder in DISK_FOLDERS {
            fs::create_dir(import.to.join(folder))?;
        }
        disk(&import.to, &dir.join("disk"), ROOM)?;
        fs::rename(import.to.join("containerd"), dir.join("root"))?;
        Ok(fs::remove_dir_all(import.to)?)
    })?;
    Ok(Store { root: place.join("root"), disk: place.join("disk") })
}

fn key(kind: &str, inputs: &[String]) -> String {
    format!("{kind}-{:08x}", crc32fast::hash(format!("{RECIPE}{inputs:?}").as_bytes()))
}

/// Makes an ext4 file system of `folder`, with `room` bytes free.
fn disk(folder: &Path, file: &Path, room: u64) -> Result<()> {
    packages::ensure(&[&[("mkfs.ext4", "e2fsprogs")]])?;
    let used: u64 = output_of(Command::new("du").args(["-sk", "--"]).arg(folder))?
        .split_whitespace()
        .next()
        .and_then(|blocks| blocks.parse().ok())
        .context("failed to read what du printed")?;
    // a tenth for the file system's own
    let blocks = used + used / 10 + room / 1024;
    let mkfs = packages::find("mkfs.ext4").context("failed to find mkfs.ext4")?;
    // a journal is for crashes, and the disk of a machine outlives none
    output_of(
        Command::new(mkfs)
            .args(["-q", "-F", "-m", "0", "-N", "65536", "-O", "^has_journal", "-E", "nodiscard"])
            .arg("-d")
            .arg(folder)
            .arg(file)
            .arg(format!("{blocks}k")),
    )
    .map(drop)
}

/// What is imported where, by what.
#[derive(Debug, Serialize, Deserialize)]
pub struct Import {
    /// Its folder `containerd` is made.
    to: PathBuf,
    containerd: PathBuf,
    ctr: PathBuf,
    cni: PathBuf,
    sandbox: String,
    archives: Vec<PathBuf>,
    names: Vec<String>,
}

impl Import {
    /// Runs [`Self::inside`] in mount and process namespaces, which end with all that containerd has started there.
    fn in_namespaces(&self, rig: &Path) -> Result<()> {
        fs::create_dir(&self.to)?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]).arg(rig);
        unshare.args(["inside", "import"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = die_with_parent(&mut unshare).spawn().context("failed to start unshare")?;
        let input = child.stdin.take().context("a child without a standard input")?;
        serde_json::to_writer(input, self)?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("failed to unpack images: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Imports everything into a new content of containerd's, and copies that to its place.
    pub fn inside(&self) -> Result<()> {
        if !rustix::process::getpid().is_init() {
            bail!("this is a step of the rig's own, not a command for a host");
        }
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        // containerd wants a file system that takes overlays, which a container's own does not
        for folder in ["/run", "/var/lib"] {
            mount("tmpfs", folder, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
                .with_context(|| format!("failed to mount {folder}"))?;
        }
        let file = Path::new("/run/containerd.toml");
        fs::write(file, config::containerd(&self.sandbox, &self.cni))?;
        let log = fs::File::create("/run/containerd.log")?;
        let mut command = Command::new(&self.containerd);
        command.arg("--config").arg(file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut containerd = Reaped(die_with_parent(&mut command).spawn()?);
        let imported = self.import();
        if imported.is_err() {
            eprintln!("{}", fs::read_to_string("/run/containerd.log").unwrap_or_default());
        }
        imported?;
        kill_process(Pid::from_child(&containerd.0), Signal::TERM)?;
        let status = containerd.0.wait()?;
        if !status.success() {
            bail!("containerd ended with {status}");
        }
        output_of(Command::new("cp").args(["-a", config::ROOT]).arg(self.to.join("containerd"))).map(drop)
    }

    fn import(&self) -> Result<()> {
        eventually("containerd answers", LIMIT, || output_of(self.ctr().arg("version")).is_ok())?;
        for archive in &self.archives {
            output_of(
                self.ctr().args(["images", "import", "--local", "--snapshotter", "overlayfs"]).arg(archive),
            )?;
        }
        // kubelet's part of containerd takes images up as it learns of them
        let start = Instant::now();
        let known = || {
            let listing = output_of(self.ctr().args(["images", "list"]))?;
            let missing: Vec<_> = self.names.iter().filter(|name| !is_managed(&listing, name)).collect();
            if missing.is_empty() { Ok(()) } else { bail!("missing are {missing:?} in\n{listing}") }
        };
        loop {
            match known() {
                Err(error) if start.elapsed() > LIMIT => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new(&self.ctr);
        command.args(["--address", config::SOCKET, "--namespace", NAMESPACE]);
        command
    }
}

/// Whether kubelet's part of containerd has taken up the image of that name.
fn is_managed(listing: &str, name: &str) -> bool {
    let lines = listing.lines().filter(|line| line.split_whitespace().next() == Some(name));
    lines.into_iter().any(|line| line.contains("io.cri-containerd.image=managed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_there_when_kubelets_part_has_taken_it_up() {
        let listing = "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
                       a:dev x sha256:1 1 MB linux/amd64 io.cri-containerd.image=managed\n\
                       b:dev x sha256:2 1 MB linux/amd64 -\n";
        assert!(is_managed(listing, "a:dev"));
        assert!(!is_managed(listing, "b:dev"));
        assert!(!is_managed(listing, "a"));
    }

    #[test]
    fn the_key_follows_each_input() {
        let inputs = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_ne!(key("images", &inputs(&["a", "b"])), key("images", &inputs(&["ab"])));
        assert_ne!(key("images", &inputs(&["a"])), key("programs", &inputs(&["a"])));
    }
}
