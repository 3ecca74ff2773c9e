//! Which kernels can carry the dataplane.

use std::{fs, io};

/// The oldest kernel whose nftables and IPVS do what the dataplane asks of them.
const OLDEST: (u32, u32) = (5, 13);

/// A kernel that cannot carry the dataplane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedKernel {
    /// Below 5.13.
    #[error("kernel {0} is too old: IPVS mode needs Linux 5.13 or newer, update the node's kernel")]
    TooOld(String),
    /// Not a version.
    #[error("the kernel calls itself {0:?}, which is no version: IPVS mode needs Linux 5.13 or newer")]
    Unreadable(String),
}

/// The release of the running kernel, as `uname -r` prints it.
pub fn release() -> io::Result<String> {
    // What uname(2) answers, and the same in every container.
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// Refuses a kernel that is too old.
pub fn check(release: &str) -> Result<(), UnsupportedKernel> {
    match parse(release) {
        None => Err(UnsupportedKernel::Unreadable(release.to_owned())),
        Some(version) if version < OLDEST => Err(UnsupportedKernel::TooOld(release.to_owned())),
        Some(_) => Ok(()),
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("6.1.0-56-amd64", true)]
    #[case("5.13.0", true)]
    #[case("5.13-rc1", true)]
    #[case("10.0", true)]
    #[case("5.12.19", false)]
    #[case("4.18.0-553.el8_10.x86_64", false)]
    #[case("6", false)]
    #[case("next", false)]
    fn kernels_from_5_13_on_are_taken(#[case] release: &str, #[case] taken: bool) {
        assert_eq!(check(release).is_ok(), taken);
    }

    #[test]
    fn the_refusal_says_what_to_do() {
        let refusal = check("4.19.0").unwrap_err().to_string();
        assert_eq!(
            refusal,
            "kernel 4.19.0 is too old: IPVS mode needs Linux 5.13 or newer, update the node's kernel"
        );
    }

    #[test]
    fn the_running_kernel_has_a_release() {
        assert!(parse(&release().unwrap()).is_some());
    }
}
