//! KVM or TCG: KVM only where it has truly booted this kernel.
//!
//! /dev/kvm may exist and yet not boot an unmodified kernel (a nested or restricted hypervisor: the guest spins at its
//! first instructions). So it is tried once, with a time limit, and the verdict is kept for this boot of the host.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::cache;
use crate::say;

/// A working KVM boots in two or three seconds.
const TRIAL: Duration = Duration::from_secs(12);

/// How the machine's processors are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's own, through /dev/kvm.
    Kvm,
    /// Translated by QEMU.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// Chooses for the image `key`; `boots` tries KVM within a time limit. `FAIRLEAD_ACCEL` decides instead when it is set.
pub fn choose(key: &str, boots: impl FnOnce(Duration) -> bool) -> Result<Accel> {
    if let Some(wanted) = std::env::var_os("FAIRLEAD_ACCEL") {
        return parse(&wanted.to_string_lossy());
    }
    if rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err() {
        return Ok(Accel::Tcg);
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    tried(&cache::folder()?.join("machine/kvm"), &format!("{} {key}", boot_id.trim()), boots)
}

fn parse(wanted: &str) -> Result<Accel> {
    match wanted {
        "kvm" => Ok(Accel::Kvm),
        "tcg" => Ok(Accel::Tcg),
        other => {
            bail!("FAIRLEAD_ACCEL is {other:?}: set it to kvm or tcg, or unset it to have the rig choose")
        }
    }
}

/// The verdict of an earlier trial under the same `condition`, else of one made now.
fn tried(record: &Path, condition: &str, boots: impl FnOnce(Duration) -> bool) -> Result<Accel> {
    if let Some(verdict) =
        fs::read_to_string(record).ok().and_then(|text| Some(text.strip_prefix(condition)?.to_owned()))
    {
        return parse(verdict.trim());
    }
    say(format_args!(
        "/dev/kvm is here: trying it for at most {} s (once a boot of this host)",
        TRIAL.as_secs()
    ));
    let accel = if boots(TRIAL) { Accel::Kvm } else { Accel::Tcg };
    if accel == Accel::Tcg {
        say("KVM did not boot the machine: using TCG, which is slower and just as right");
    }
    cache::write_file(record, &format!("{condition} {accel}\n"))?;
    Ok(accel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_does_not_boot_is_tried_once() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("machine/kvm");
        assert_eq!(tried(&record, "boot-1 image-1", |_| false).unwrap(), Accel::Tcg);
        assert_eq!(tried(&record, "boot-1 image-1", |_| panic!("tried again")).unwrap(), Accel::Tcg);
    }

    #[test]
    fn a_new_boot_or_a_new_kernel_is_a_new_trial() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("kvm");
        tried(&record, "boot-1 image-1", |_| false).unwrap();
        assert_eq!(tried(&record, "boot-2 image-1", |_| true).unwrap(), Accel::Kvm);
        assert_eq!(tried(&record, "boot-2 image-2", |_| false).unwrap(), Accel::Tcg);
    }

    #[test]
    fn an_unknown_wish_says_what_is_possible() {
        let error = parse("hvf").unwrap_err().to_string();
        assert!(error.contains("kvm or tcg"), "{error}");
    }
}
