//! The QEMU process: its arguments, its ends of the port and the console, and its death.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::accel::Accel;
use super::cache;
use super::image::Image;
use super::wire::{Frame, Job, PORT};
use super::{Options, Run};
use crate::process::{Reaped, die_with_parent, shown};

/// How much of the console is shown when the machine fails.
const CONSOLE_LINES: usize = 60;

const RIG: &str = "rig";
const SAID: &str = "qemu.log";
const CONSOLE: &str = "console.log";

/// A running QEMU; killed with this value, with the thread that started it, or with the rig.
pub struct Qemu {
    process: Reaped,
    /// Kept open: at its end QEMU would take the port for unplugged.
    _input: ChildStdin,
    frames: Receiver<std::io::Result<Option<Frame>>>,
    /// Holds the kernel's console, what QEMU itself had to say, and the rig's own program.
    folder: TempDir,
}

impl Qemu {
    /// Starts QEMU and gives the machine its job.
    pub fn start(image: &Image, options: Options, accel: Accel, job: &Job) -> Result<Self> {
        let folder = cache::scratch()?;
        // a copy, because cargo may replace the program while it runs
        let rig = folder.path().join(RIG);
        fs::copy("/proc/self/exe", &rig)
            .with_context(|| format!("failed to copy the rig to {}", rig.display()))?;
        let mut command = arguments(image, options, accel, folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(folder.path().join(SAID))?);
        die_with_parent(&mut command);
        let mut child = command.spawn().with_context(|| format!("failed to start `{}`", shown(&command)))?;

        // The pipe holds the job until the machine opens its port.
        let mut input = child.stdin.take().context("QEMU without a standard input")?;
        let output = child.stdout.take().context("QEMU without a standard output")?;
        let process = Reaped(child);
        let mut line = serde_json::to_vec(job)?;
        line.push(b'\n');
        input.write_all(&line).context("failed to hand the job to QEMU")?;

        let (sender, frames) = mpsc::sync_channel(16);
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            loop {
                let frame = Frame::read(&mut output);
                let last = !matches!(frame, Ok(Some(_)));
                if sender.send(frame).is_err() || last {
                    break;
                }
            }
        });
        Ok(Self { process, _input: input, frames, folder })
    }

    /// The next frame; none when `deadline` passes first, an error when QEMU ends.
    pub fn next_frame(&mut self, deadline: Instant) -> Result<Option<Frame>> {
        match self.frames.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(Some(frame))) => Ok(Some(frame)),
            Ok(Ok(None)) | Err(RecvTimeoutError::Disconnected) => {
                let status = self.process.0.wait()?;
                let said = fs::read_to_string(self.folder.path().join(SAID)).unwrap_or_default();
                bail!("QEMU ended before the command did ({status}) {}", said.trim())
            }
            Ok(Err(error)) => Err(error).context("failed to read what the machine says"),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }

    /// The last lines of the kernel's console.
    fn console(&self) -> String {
        let bytes = fs::read(self.folder.path().join(CONSOLE)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(CONSOLE_LINES)..).unwrap_or_default().join("\n")
    }
}

impl Run {
    /// `why`, with the end of the kernel's console below it.
    pub(super) fn with_console(&self, why: &str) -> String {
        format!("{why}; the end of the machine's console:\n{}\n(end of console)", self.qemu.console())
    }
}

fn arguments(image: &Image, options: Options, accel: Accel, folder: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]);
    match accel {
        Accel::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        // One thread for all processors: measured faster than one each (the rig's own tests 20 s instead of 42 s on two
        // cores), and a kernel that patches its code meets no other processor translating it. With one thread each,
        // Debian 12's QEMU 7.2 was seen to hang in a patched instruction at boot, once in some fifty.
        Accel::Tcg => command.args(["-accel", "tcg,thread=single"]),
    };
    command.args(["-smp", &options.cpus.to_string(), "-m", &options.memory_mib.to_string()]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    command.args([
        "-append",
        &format!(
            // panic=-1 with -no-reboot ends QEMU when the kernel panics
            "console=ttyS0 loglevel=5 panic=-1 net.ifnames=0 FAIRLEAD_RIG=\"{}\"",
            folder.join(RIG).display()
        ),
    ]);
    command.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on"]);
    command.arg("-serial").arg(format!("file:{}", folder.join(CONSOLE).display()));
    command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=rig,signal=off"]);
    command.args(["-device", &format!("virtserialport,chardev=rig,name={PORT}")]);
    // entropy at once: a kernel without it makes the first program that asks wait
    command.args(["-device", "virtio-rng-pci"]);
    command
}
