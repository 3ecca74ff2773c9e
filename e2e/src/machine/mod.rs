//! Machines with a real IPVS kernel: one command in one boot, or a machine that stays.
//!
//! ```text
//!   rig (host)                                     machine (QEMU: KVM where it boots, else TCG)
//!   image: kernel, initramfs, modules  ─────────>  initramfs: the host's root (9p, read-only) + a layer in memory
//!   session (crate::session)           <────────>  guest, over a virtio-serial port: loads modules, runs commands
//!   console log, shown when it fails   <─────────  kernel messages on a serial line
//! ```
//!
//! A machine sees every file of the host under its own path and changes none. It has the disks and the network card
//! it is given, by default none. It ends when it is told to, or with the rig, whichever comes first.
//!
//! The modules that are under test (ip_vs, its schedulers, br_netfilter) are there, but not loaded.

mod accel;
pub mod cache;
mod cpio;
pub mod guest;
mod image;
mod qemu;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::ns::Namespace;
use crate::say;
use crate::session::serve::Preparation;
use crate::session::{self, Event, Session};
use accel::Accel;
use image::Image;
use qemu::Qemu;

pub use crate::session::ExitStatus;

/// From the start of QEMU to the start of the command; TCG on a busy host takes half a minute at times.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// The name of a machine that is there for one command.
const HOSTNAME: &str = "fairlead-machine";

/// The size of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Memory; half of it at most is what the machine may write.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory_mib: 3072, cpus: 2 }
    }
}

/// What a machine is made of.
#[derive(Debug, Clone, Default)]
pub struct Hardware {
    /// Its size.
    pub options: Options,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network card, `eth0`.
    pub nic: Option<Nic>,
    /// The environment of its process on this host.
    pub env: BTreeMap<String, String>,
}

/// A disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The machine finds it as `/dev/disk/by-id`, or by its `serial` in sysfs; a word.
    pub serial: String,
    /// Its content, which stays as it is.
    pub file: PathBuf,
    /// Whether the machine may write; what it writes is gone with it.
    pub writable: bool,
}

/// A network card, on a tap device.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The namespace of the tap device.
    pub namespace: Namespace,
    /// The tap device.
    pub device: String,
    /// The card's address.
    pub mac: String,
}

/// A command for the machine.
#[derive(Debug, Clone)]
pub struct Command {
    /// The program, as a path or in PATH, and its arguments.
    pub argv: Vec<String>,
    /// Its environment; PATH and HOME are given.
    pub env: BTreeMap<String, String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// How long it may run, once started.
    pub timeout: Duration,
}

/// Machines of one kernel, to be booted.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    kernel: Kernel,
}

/// What all machines boot.
#[derive(Debug)]
struct Kernel {
    image: Image,
    accel: Accel,
    /// The rig's program.
    rig: PathBuf,
}

impl Machine {
    /// Makes sure that packages, kernel and initramfs are there, and that KVM has been tried. This is the rig's program.
    pub fn new(options: Options) -> Result<Self> {
        Self::of_program(options, Path::new("/proc/self/exe"))
    }

    /// As [`Self::new`], in a program that is not the rig's.
    pub fn of_program(options: Options, rig: &Path) -> Result<Self> {
        let mut kernel = Kernel { image: image::ensure()?, accel: Accel::Kvm, rig: rig.to_owned() };
        kernel.accel = accel::choose(&kernel.image.key, |limit| {
            let hardware = Hardware { options, ..Hardware::default() };
            cache::scratch()
                .is_ok_and(|folder| kernel.start(&hardware, folder.path(), HOSTNAME, limit).is_ok())
        })?;
        Ok(Self { options, kernel })
    }

    /// Boots a machine, with its files (the rig's program, console, what QEMU says) in `folder`.
    pub fn boot(&self, hardware: &Hardware, folder: &Path, hostname: &str) -> Result<Booted> {
        at_most_twice(|| self.kernel.start(hardware, folder, hostname, BOOT_LIMIT))
    }

    /// Boots, runs `command`, and passes on what it prints to the rig's own stdout and stderr as it comes.
    pub fn run(&self, command: &Command) -> Result<ExitStatus> {
        let begin = Instant::now();
        let folder = cache::scratch()?;
        let hardware = Hardware { options: self.options, ..Hardware::default() };
        let mut machine = self.boot(&hardware, folder.path(), HOSTNAME)?;
        say(format_args!(
            "machine up after {:.1} s ({}): {}",
            begin.elapsed().as_secs_f32(),
            self.kernel.accel,
            command.argv.join(" ")
        ));
        machine.pass_on(command).map_err(|error| machine.qemu.post_mortem(&error))
    }
}

impl Kernel {
    fn start(&self, hardware: &Hardware, folder: &Path, hostname: &str, limit: Duration) -> Result<Booted> {
        let mut qemu = Qemu::start(self, hardware, folder)?;
        let modules = Some(self.image.modules.clone());
        let preparation = Preparation { hostname: hostname.to_owned(), modules };
        let ready = qemu.session().prepare(preparation).and_then(|prepared| prepared.until_ready(limit));
        match ready {
            Ok(()) => Ok(Booted { qemu }),
            Err(error) => Err(qemu.post_mortem(&error.context("the machine did not come up"))),
        }
    }
}

/// A boot that fails is tried once more, and said: nothing of ours has run yet, and emulated kernels do hang now and
/// then before they are up.
fn at_most_twice<T>(mut boot: impl FnMut() -> Result<T>) -> Result<T> {
    boot().or_else(|error| {
        say(format_args!("{error:#}"));
        say("booting the machine once more");
        boot()
    })
}

/// A machine that is up; ends with this value.
#[derive(Debug)]
pub struct Booted {
    qemu: Qemu,
}

impl Booted {
    /// What runs commands in it.
    pub fn session(&self) -> &Session {
        self.qemu.session()
    }

    /// Ends it as a power cut does.
    pub fn end(mut self) -> Result<()> {
        self.qemu.end()
    }

    fn pass_on(&mut self, command: &Command) -> Result<ExitStatus> {
        let asked = session::Command {
            argv: command.argv.clone(),
            env: command.env.clone(),
            cwd: command.cwd.clone(),
            input: String::new(),
        };
        let running = self.session().start(&asked)?;
        let mut passed = Ok(());
        let status = running.until_exit(command.timeout, |event| {
            let now = match event {
                Event::Stdout(bytes) => pass_on(&mut io::stdout(), &bytes),
                Event::Stderr(bytes) => pass_on(&mut io::stderr(), &bytes),
                _ => Ok(()),
            };
            if passed.is_ok() {
                passed = now;
            }
        });
        passed.and(status)
    }
}

fn pass_on(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("failed to pass on the output of the machine")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_boot_that_fails_is_tried_once_more_and_not_again() {
        let mut boots = 0;
        let up = at_most_twice(|| {
            boots += 1;
            anyhow::ensure!(boots > 1, "stuck");
            Ok(boots)
        });
        assert_eq!(up.unwrap(), 2);

        let mut boots = 0;
        let error = at_most_twice::<()>(|| {
            boots += 1;
            bail!("stuck in boot {boots}")
        });
        assert_eq!(error.unwrap_err().to_string(), "stuck in boot 2");
    }
}
