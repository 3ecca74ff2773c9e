//! A machine with a real IPVS kernel, started to run one command as root.
//!
//! ```text
//!   rig (host)                                     machine (QEMU: KVM where it boots, else TCG)
//!   image: kernel, initramfs, modules  ─────────>  initramfs: the host's root (9p, read-only) + a layer in memory
//!   job: argv, env, cwd                ─────────>  guest: loads modules, runs the command
//!   stdout, stderr, exit code          <─────────  virtio-serial port
//!   console log, shown when it fails   <─────────  kernel messages on a serial line
//! ```
//!
//! The machine sees every file of the host under its own path and changes none. It has no network. It ends with its
//! command, with its time limit, or with the rig, whichever comes first.
//!
//! The modules that are under test (ip_vs, its schedulers, br_netfilter) are there, but not loaded.

mod accel;
pub mod cache;
mod cpio;
pub mod guest;
mod image;
mod qemu;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::say;
use accel::Accel;
use image::Image;
use qemu::Qemu;
use wire::{Frame, Job};

/// From the start of QEMU to the start of the command; TCG on a busy host takes half a minute at times.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

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

/// How a command in the machine ended: its exit code, or 128 + n for signal n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(pub i32);

impl ExitStatus {
    /// Whether the command ended with 0.
    pub fn success(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            code @ 129.. => write!(f, "signal {}", code - 128),
            code => write!(f, "exit code {code}"),
        }
    }
}

/// A machine that can be booted, once for each command.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    image: Image,
}

impl Machine {
    /// Makes sure that packages, kernel and initramfs are there.
    pub fn new(options: Options) -> Result<Self> {
        Ok(Self { options, image: image::ensure()? })
    }

    /// Boots, runs `command`, and passes on what it prints to the rig's own stdout and stderr as it comes.
    pub fn run(&self, command: &Command) -> Result<ExitStatus> {
        let accel = accel::choose(&self.image.key, |limit| self.boots_with_kvm(limit))?;
        let start = Instant::now();
        let mut run = at_most_twice(|| {
            let mut run = Run::start(&self.image, self.options, accel, command)?;
            run.until_ready(BOOT_LIMIT).map(|()| run)
        })?;
        say(format_args!(
            "machine up after {:.1} s ({accel}): {}",
            start.elapsed().as_secs_f32(),
            command.argv.join(" ")
        ));
        run.until_exit(command.timeout)
    }

    fn boots_with_kvm(&self, limit: Duration) -> bool {
        let nothing =
            Command { argv: vec!["true".into()], env: BTreeMap::new(), cwd: "/".into(), timeout: limit };
        let booted = Run::start(&self.image, self.options, Accel::Kvm, &nothing)
            .and_then(|mut run| run.until_ready(limit));
        booted.is_ok()
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

/// One boot of the machine.
struct Run {
    qemu: Qemu,
}

impl Run {
    fn start(image: &Image, options: Options, accel: Accel, command: &Command) -> Result<Self> {
        let job = Job {
            argv: command.argv.clone(),
            env: command.env.clone(),
            cwd: command.cwd.clone(),
            modules: image.modules.clone(),
        };
        Ok(Self { qemu: Qemu::start(image, options, accel, &job)? })
    }

    fn until_ready(&mut self, limit: Duration) -> Result<()> {
        match self.qemu.next_frame(Instant::now() + limit) {
            Ok(Some(Frame::Ready)) => Ok(()),
            Ok(Some(Frame::Failed(why))) => bail!(self.with_console(&why)),
            Ok(Some(other)) => bail!(self.with_console(&format!("the machine began with {other:?}"))),
            Ok(None) => {
                bail!(self.with_console(&format!("the machine was not up after {} s", limit.as_secs())))
            }
            Err(error) => Err(error.context(self.with_console("the machine did not come up"))),
        }
    }

    fn until_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.qemu.next_frame(deadline) {
                Ok(Some(Frame::Stdout(bytes))) => pass_on(&mut io::stdout(), &bytes)?,
                Ok(Some(Frame::Stderr(bytes))) => pass_on(&mut io::stderr(), &bytes)?,
                Ok(Some(Frame::Exit(code))) => return Ok(ExitStatus(code)),
                Ok(Some(Frame::Failed(why))) => bail!(self.with_console(&why)),
                Ok(Some(Frame::Ready)) => bail!(self.with_console("the machine started twice")),
                Ok(None) => {
                    bail!(self.with_console(&format!("the command still ran after {} s", limit.as_secs())))
                }
                Err(error) => return Err(error.context(self.with_console("the machine died"))),
            }
        }
    }
}

fn pass_on(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("failed to pass on the output of the machine")
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn an_exit_status_tells_a_signal_from_a_code() {
        assert_eq!(ExitStatus(3).to_string(), "exit code 3");
        assert_eq!(ExitStatus(128 + 9).to_string(), "signal 9");
        assert!(ExitStatus(0).success());
    }
}
