//! The first process of the machine: makes it a host like any other, then runs what the rig asks for.
//!
//! It loads what a distribution's host has loaded. It does not load ip_vs, its schedulers or br_netfilter: those the
//! agent loads, and that is under test.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::system::{RebootCommand, reboot, sethostname};

use super::qemu::PORT;
use crate::process::output_of;
use crate::session::serve::{self, PATH, Preparation};

/// Loaded on any host that container runtimes and CNI plugins have run on. The kernel itself loads what else the
/// tests use when they use it.
const MODULES: &[&str] = &[
    "nf_tables",
    "nft_ct",
    "nft_masq",
    "nft_reject_inet",
    "nft_fib_inet",
    "nf_conntrack_netlink",
    "veth",
    "bridge",
];

/// Runs as process 1; never returns.
pub fn main() -> ! {
    if let Err(error) = reap() {
        // nobody can be told over a port that is not there: the console must do
        eprintln!("rig: the machine is not fit for anything: {error:#}");
    }
    // The rig ends QEMU when it wants nothing more; this is for a rig that is gone.
    thread::sleep(Duration::from_secs(10));
    let _ = reboot(RebootCommand::PowerOff);
    std::process::exit(1)
}

fn reap() -> Result<()> {
    if !rustix::process::getpid().is_init() {
        bail!("guest-init is the first process of the rig's machine, not a command for a host");
    }
    for (source, target, data) in [
        ("proc", "/proc", None),
        ("sysfs", "/sys", None),
        ("devtmpfs", "/dev", None),
        ("devpts", "/dev/pts", None),
        ("tmpfs", "/dev/shm", None),
        ("tmpfs", "/run", Some(c"mode=0755")),
        ("cgroup2", "/sys/fs/cgroup", None),
    ] {
        // devtmpfs is one for all mounts: its folders are made once, and survive from the initramfs
        if target.starts_with("/dev/") {
            fs::create_dir_all(target)?;
        }
        mount(source, target, source, MountFlags::NOSUID, data)
            .with_context(|| format!("failed to mount {target}"))?;
    }
    let server =
        Command::new("/proc/self/exe").arg("guest-serve").spawn().context("failed to start the server")?;
    let status = serve::reap_until_end(&server)?;
    bail!("the server ended ({status})")
}

/// Serves the rig, beside process 1.
pub fn serve() -> Result<()> {
    let port = open_port()?;
    let requests = BufReader::new(port.try_clone()?);
    serve::serve(requests, port, |preparation| become_a_host(&preparation))
}

fn open_port() -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("failed to list virtio-serial ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
            let device = Path::new("/dev").join(entry.file_name());
            let opened = File::options().read(true).write(true).open(&device);
            return opened.with_context(|| format!("failed to open {}", device.display()));
        }
    }
    bail!("no virtio-serial port is called {PORT}")
}

fn become_a_host(preparation: &Preparation) -> Result<()> {
    sethostname(preparation.hostname.as_bytes()).context("failed to set the host name")?;
    let modules = preparation.modules.as_ref().context("a machine without modules")?;
    let release = modules.file_name().context("the folder of modules has no name")?;
    let place = PathBuf::from("/lib/modules").join(release);
    fs::create_dir_all(&place)
        .and_then(|()| Ok(mount_bind(modules, &place)?))
        .with_context(|| format!("failed to bind {} to {}", modules.display(), place.display()))?;
    output_of(Command::new("modprobe").arg("-a").args(MODULES).env("PATH", PATH))?;
    output_of(Command::new("ip").args(["link", "set", "lo", "up"]).env("PATH", PATH)).map(drop)
}
