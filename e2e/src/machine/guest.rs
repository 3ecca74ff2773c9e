//! The first process of the machine: makes it a host like any other, runs the job, says how it ended.
//!
//! It loads what a distribution's host has loaded. It does not load ip_vs, its schedulers or br_netfilter: those the
//! agent loads, and that is under test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot, sethostname};

use super::wire::{Frame, Job, MAX_PAYLOAD, PORT};
use crate::process::output_of;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

/// How long output may still come from children that outlive the command.
const LINGER: Duration = Duration::from_secs(2);

/// Runs as process 1; never returns.
pub fn main() -> ! {
    match prepare() {
        Ok((port, job)) => serve(&Arc::new(Mutex::new(port)), &job),
        // nobody can be told over a port that is not there: the console must do
        Err(error) => eprintln!("rig: the machine is not fit for the job: {error:#}"),
    }
    // The rig ends QEMU when it has read the last frame; this is for a rig that is gone.
    thread::sleep(Duration::from_secs(10));
    let _ = reboot(RebootCommand::PowerOff);
    std::process::exit(1)
}

fn prepare() -> Result<(File, Job)> {
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
    let mut port = open_port()?;
    let job = read_job(&mut port)?;
    Ok((port, job))
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

fn read_job(port: &mut File) -> Result<Job> {
    let mut line = String::new();
    BufReader::new(port).read_line(&mut line).context("failed to read the job")?;
    serde_json::from_str(&line).context("failed to understand the job")
}

fn serve(port: &Arc<Mutex<File>>, job: &Job) {
    let frame = match become_a_host(job).and_then(|()| run(port, job)) {
        Ok(code) => Frame::Exit(code),
        Err(error) => Frame::Failed(format!("{error:#}")),
    };
    if let Err(error) = send(port, &frame) {
        eprintln!("rig: failed to say how the job ended ({frame:?}): {error}");
    }
}

fn become_a_host(job: &Job) -> Result<()> {
    sethostname(b"fairlead-machine").context("failed to set the host name")?;
    let release = job.modules.file_name().context("the folder of modules has no name")?;
    let place = PathBuf::from("/lib/modules").join(release);
    fs::create_dir_all(&place)
        .and_then(|()| Ok(mount_bind(&job.modules, &place)?))
        .with_context(|| format!("failed to bind {} to {}", job.modules.display(), place.display()))?;
    output_of(Command::new("modprobe").arg("-a").args(MODULES).env("PATH", PATH))?;
    output_of(Command::new("ip").args(["link", "set", "lo", "up"]).env("PATH", PATH)).map(drop)
}

fn run(port: &Arc<Mutex<File>>, job: &Job) -> Result<i32> {
    let [program, args @ ..] = job.argv.as_slice() else { bail!("an empty command") };
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .envs(&job.env)
        .current_dir(&job.cwd);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    send(port, &Frame::Ready)?;
    let mut child =
        command.spawn().with_context(|| format!("failed to start {program} in {}", job.cwd.display()))?;
    let relays = [
        child.stdout.take().map(|from| relay(from, port, Frame::Stdout)),
        child.stderr.take().map(|from| relay(from, port, Frame::Stderr)),
    ];
    let code = wait_for(&child)?;
    let deadline = Instant::now() + LINGER;
    while relays.iter().flatten().any(|relay| !relay.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(code)
}

fn relay(
    mut from: impl Read + Send + 'static,
    port: &Arc<Mutex<File>>,
    frame: fn(Vec<u8>) -> Frame,
) -> JoinHandle<()> {
    let port = Arc::clone(port);
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_PAYLOAD];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let bytes = buffer.get(..read).unwrap_or_default().to_vec();
            if send(&port, &frame(bytes)).is_err() {
                break;
            }
        }
    })
}

fn send(port: &Mutex<File>, frame: &Frame) -> std::io::Result<()> {
    frame.write(&mut *port.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Reaps whatever ends, as process 1 has to, until the job's own process does.
fn wait_for(child: &Child) -> Result<i32> {
    let job = Pid::from_child(child);
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("failed to wait for the command")?
        else {
            continue;
        };
        if pid == job {
            let status = std::process::ExitStatus::from_raw(status.as_raw());
            return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()));
        }
    }
}
