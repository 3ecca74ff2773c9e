//! The QEMU process: its arguments, its ends of the port and the console, and its death.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::accel::Accel;
use super::{Hardware, Kernel, Nic, Options};
use crate::process::Kept;
use crate::session::Session;

/// The name of the port over which the rig speaks with the machine, as it is found under /sys/class/virtio-ports.
pub const PORT: &str = "fairlead.rig";

/// How much of the console is shown when the machine fails.
const CONSOLE_LINES: usize = 60;

/// The program of the rig, for the machine.
const RIG: &str = "rig";

const QEMU: &str = "qemu-system-x86_64";

/// A running QEMU; killed with this value, or with the rig.
#[derive(Debug)]
pub struct Qemu {
    process: Kept,
    session: Session,
    files: Files,
}

/// The files of a machine.
#[derive(Debug, Clone)]
struct Files {
    rig: PathBuf,
    /// The kernel's console.
    console: PathBuf,
    /// What QEMU itself has to say.
    said: PathBuf,
}

impl Qemu {
    /// Starts QEMU, with the machine's files in `folder`.
    pub fn start(kernel: &Kernel, hardware: &Hardware, folder: &Path) -> Result<Self> {
        let files = Files {
            rig: folder.join(RIG),
            console: folder.join("console.log"),
            said: folder.join("qemu.log"),
        };
        // a copy, because cargo may replace the program while it runs
        if !files.rig.exists() {
            fs::copy(&kernel.rig, &files.rig)
                .with_context(|| format!("failed to copy the rig to {}", files.rig.display()))?;
        }
        let mut command = match &hardware.nic {
            Some(Nic { namespace, .. }) => namespace.command(QEMU),
            None => Command::new(QEMU),
        };
        arguments(&mut command, kernel, hardware.options, &files);
        devices(&mut command, hardware);
        command.envs(&hardware.env);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&files.said)?);
        // The pipe holds what is sent until the machine opens its port.
        let (process, input, output) = Kept::spawn(command)?;
        let input = input.context("QEMU without a standard input")?;
        let output = output.context("QEMU without a standard output")?;
        Ok(Self { process, session: Session::open(input, output), files })
    }

    /// The session with the machine.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Ends QEMU as a power cut does.
    pub fn end(&mut self) -> Result<()> {
        self.process.end().map(drop)
    }

    /// `why`, with how QEMU ended, what it said and the end of the kernel's console below it; ends QEMU.
    pub fn post_mortem(&mut self, why: &anyhow::Error) -> anyhow::Error {
        let status = self.process.end().map(|status| format!("QEMU ended, {status}")).unwrap_or_default();
        let said = fs::read_to_string(&self.files.said).unwrap_or_default();
        anyhow::anyhow!(
            "{why:#}; {status} {}; the end of the machine's console:\n{}\n(end of console)",
            said.trim(),
            self.console()
        )
    }

    /// The last lines of the kernel's console.
    fn console(&self) -> String {
        let bytes = fs::read(&self.files.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(CONSOLE_LINES)..).unwrap_or_default().join("\n")
    }
}

fn arguments(command: &mut Command, kernel: &Kernel, options: Options, files: &Files) {
    let Kernel { image, accel, .. } = kernel;
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
            files.rig.display()
        ),
    ]);
    command.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on"]);
    command.arg("-serial").arg(format!("file:{}", files.console.display()));
    command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=rig,signal=off"]);
    command.args(["-device", &format!("virtserialport,chardev=rig,name={PORT}")]);
    // entropy at once: a kernel without it makes the first program that asks wait
    command.args(["-device", "virtio-rng-pci"]);
}

fn devices(command: &mut Command, hardware: &Hardware) {
    for disk in &hardware.disks {
        // What the machine writes goes to a file without a name, which ends with QEMU. It needs no flushing: it
        // outlives no crash of this host.
        let writes = if disk.writable { "snapshot=on,cache=unsafe" } else { "readonly=on" };
        let serial = &disk.serial;
        command.arg("-drive").arg(format!(
            "if=none,id={serial},format=raw,{writes},file={}",
            disk.file.display().to_string().replace(',', ",,")
        ));
        command.args(["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
    }
    if let Some(Nic { device, mac, .. }) = &hardware.nic {
        command.args(["-netdev", &format!("tap,id=net,ifname={device},script=no,downscript=no")]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net,mac={mac}")]);
    }
}
