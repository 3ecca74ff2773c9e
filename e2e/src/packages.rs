//! The Debian packages the rig stands on: looked for by their programs (libraries: by their pkg-config files),
//! installed with apt when missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::output_of;
use crate::say;

/// A program, or a library as `NAME.pc`, and the Debian package that brings it.
type Program = (&'static str, &'static str);

/// What builds and boots the machine.
pub const MACHINE: &[Program] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    // kernels and modules of some releases come compressed
    ("xz", "xz-utils"),
];

/// What the tests call on the node under test; the machine sees the host's files, so they are installed here.
pub const TOOLS: &[Program] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ipvsadm", "ipvsadm"),
    ("conntrack", "conntrack"),
    ("modprobe", "kmod"),
];

/// What go calls when it builds the programs of a cluster.
pub const BUILD_GO: &[Program] = &[("gcc", "gcc")];

/// What runc is linked with.
pub const BUILD_RUNC: &[Program] = &[("pkg-config", "pkg-config"), ("libseccomp.pc", "libseccomp-dev")];

/// Installs what is missing of `wanted`, and says so.
pub fn ensure(wanted: &[&[Program]]) -> Result<()> {
    let missing = missing_of(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        bail!(
            "missing here: {}; the rig installs Debian packages with apt-get, which this host lacks",
            missing.join(", ")
        );
    }
    let root = rustix::process::geteuid().is_root();
    say(format_args!(
        "missing here: {}; installing with {}apt-get",
        missing.join(", "),
        if root { "" } else { "sudo (it may ask for your password) " }
    ));
    describe(&missing)?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
    install.extend(&missing);
    apt(root, &install)
}

/// What apt says of packages, in the versions it would install; fetches its lists first if it knows them not yet, as
/// in a fresh container image.
pub fn describe(packages: &[&str]) -> Result<String> {
    // one call: a container image without apt's binary cache spends a second on each
    let show = || output_of(Command::new("apt-cache").args(["show", "--no-all-versions"]).args(packages));
    show().or_else(|_| {
        say(format_args!("apt does not know {} yet: updating its lists", packages.join(", ")));
        apt(rustix::process::geteuid().is_root(), &["update", "-q"])?;
        show()
    })
}

/// Where a program is, in PATH or in the administrator's folders that a user's PATH may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(admin).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

/// The packages that are missing of `wanted`.
pub fn missing_of(wanted: &[&[Program]]) -> Vec<&'static str> {
    missing(wanted, |wanted| match wanted.strip_suffix(".pc") {
        Some(library) => has_library(library),
        None => find(wanted).is_some(),
    })
}

/// Whether a library's headers are there, which is when pkg-config knows it.
fn has_library(name: &str) -> bool {
    find("pkg-config")
        .is_some_and(|program| output_of(Command::new(program).args(["--exists", name])).is_ok())
}

fn is_executable(file: &Path) -> bool {
    rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
}

fn missing(wanted: &[&[Program]], present: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> = wanted
        .iter()
        .copied()
        .flatten()
        .filter(|(program, _)| !present(program))
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt(root: bool, args: &[&str]) -> Result<()> {
    let mut command = Command::new(if root { "env" } else { "sudo" });
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args);
    let shown = crate::process::shown(&command);
    say(format_args!("{shown}"));
    // apt's own progress is the rig's: stdout is left to the programs under test
    command.stdout(std::io::stderr());
    let status = command.status().with_context(|| format!("failed to start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_once_however_many_of_its_programs_are_missing() {
        assert_eq!(
            missing(&[MACHINE, TOOLS], |program| !matches!(program, "depmod" | "modprobe" | "nft")),
            ["kmod", "nftables"]
        );
    }

    #[test]
    fn nothing_is_missing_when_every_program_is_there() {
        assert!(missing(&[MACHINE, TOOLS], |_| true).is_empty());
    }

    #[test]
    fn a_library_without_headers_is_missing() {
        assert_eq!(missing_of(&[&[("no-such-library-of-fairlead.pc", "libnone-dev")]]), ["libnone-dev"]);
    }

    #[test]
    fn programs_are_found_outside_a_users_path() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-of-fairlead").is_none());
    }
}
