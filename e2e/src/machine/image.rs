//! The kernel of the machine: Debian's package made into a kernel, its modules and a small initramfs.
//!
//! Nothing is installed on the host: packages are downloaded and unpacked into the cache. What comes out is keyed by
//! the versions of the packages and by what this file makes of them, so a new kernel or a changed recipe is a new entry.

use std::fs;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{cache, cpio::Archive};
use crate::process::output_of;
use crate::{packages, say};

const META_PACKAGE: &str = "linux-image-amd64";
/// Static, so that it runs in an initramfs without libraries.
const BUSYBOX: &str = "busybox-static";

/// Raised when what is made of the inputs changes.
const RECIPE: u32 = 1;

const INIT: &str = include_str!("initramfs-init");

/// What the initramfs needs to reach the host's files and the rig; modprobe adds what these depend on.
const BOOT_MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console"];

/// The parts of the module tree that are kept: networks, file systems and virtual devices. The rest (graphics,
/// sound, network cards) is nine tenths of it.
const KEPT_MODULES: &[&str] = &[
    "arch",
    "block",
    "crypto",
    "fs",
    "lib",
    "mm",
    "net",
    "virt",
    "drivers/block",
    "drivers/char",
    "drivers/net",
    "drivers/virtio",
];
const DROPPED_MODULES: &[&str] = &["drivers/net/ethernet", "drivers/net/wireless"];

/// A kernel that can be booted.
#[derive(Debug, Clone)]
pub struct Image {
    /// Names the image and all that went into it.
    pub key: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// Its modules, to be seen as `/lib/modules/<release>`.
    pub modules: PathBuf,
}

/// The image of the newest kernel apt offers, from the cache or made now.
pub fn ensure() -> Result<Image> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the machine is made for x86_64; on this host use `rig test --host` with a kernel that has ip_vs"
        );
    }
    packages::ensure(&[packages::MACHINE])?;
    let described = packages::describe(&[META_PACKAGE, BUSYBOX])?;
    let kernel = kernel_package(&described)?;
    let busybox = Package { name: BUSYBOX.into(), version: field(&described, BUSYBOX, "Version")?.into() };
    let key = key(&kernel, &busybox);
    let place = cache::entry(&cache::folder()?.join("machine"), &key, |dir| {
        say(format_args!("making the machine's kernel from {} {} (once)", kernel.name, kernel.version));
        build(dir, &kernel, &busybox)
    })?;
    let release = kernel.name.trim_start_matches("linux-image-");
    Ok(Image {
        key,
        kernel: place.join("kernel"),
        initramfs: place.join("initramfs"),
        modules: place.join("usr/lib/modules").join(release),
    })
}

/// A Debian package in the version apt would install.
#[derive(Debug)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    /// Downloads the package and unpacks it into `to`.
    fn unpack(&self, to: &Path) -> Result<()> {
        let download = tempfile::tempdir_in(to.parent().context("no folder beside the unpacked one")?)?;
        let wanted = format!("{}={}", self.name, self.version);
        output_of(Command::new("apt-get").args(["download", "-q", &wanted]).current_dir(&download))?;
        let mut files = fs::read_dir(&download)?.filter_map(Result::ok).map(|entry| entry.path());
        let file = files.find(|file| file.extension().is_some_and(|end| end == "deb"));
        let file = file.with_context(|| format!("apt-get downloaded no package for {wanted}"))?;
        output_of(Command::new("dpkg-deb").arg("--extract").arg(file).arg(to)).map(drop)
    }
}

/// The kernel the meta package stands for, by name and version: `Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)`.
fn kernel_package(described: &str) -> Result<Package> {
    let depends = field(described, META_PACKAGE, "Depends")?;
    let words: Vec<_> =
        depends.split([' ', '(', ')', '=', ',', '|']).filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        [name, version, ..] if name.starts_with("linux-image-") => {
            Ok(Package { name: (*name).to_owned(), version: (*version).to_owned() })
        }
        _ => bail!("{META_PACKAGE} depends on no kernel of a version: {depends}"),
    }
}

/// A field of a package in the listing of `apt-cache show`.
fn field<'a>(described: &'a str, package: &str, field: &str) -> Result<&'a str> {
    let lines = |stanza: &'a str| stanza.lines().filter_map(|line| line.split_once(": "));
    let stanza =
        described.split("\n\n").find(|stanza| lines(stanza).any(|line| line == ("Package", package)));
    let found = stanza.and_then(|stanza| lines(stanza).find(|(name, _)| *name == field));
    let (_, value) =
        found.with_context(|| format!("apt describes no {package}: the machine needs Debian's packages"))?;
    Ok(value.trim())
}

fn key(kernel: &Package, busybox: &Package) -> String {
    let recipe =
        format!("{RECIPE}{INIT}{BOOT_MODULES:?}{KEPT_MODULES:?}{DROPPED_MODULES:?}{}", busybox.version);
    let version = kernel.version.replace(|c: char| !c.is_ascii_alphanumeric() && !"+.~-".contains(c), "_");
    format!("{}_{version}-{:08x}", kernel.name, crc32fast::hash(recipe.as_bytes()))
}

fn build(dir: &Path, kernel: &Package, busybox: &Package) -> Result<()> {
    let unpacked = tempfile::tempdir_in(dir.parent().context("no folder beside the entry")?)?;
    let release = kernel.name.trim_start_matches("linux-image-");
    let [kernel_root, busybox_root] = ["kernel", "busybox"].map(|name| unpacked.path().join(name));
    kernel.unpack(&kernel_root)?;
    busybox.unpack(&busybox_root)?;

    let compressed = kernel_root.join("boot").join(format!("vmlinuz-{release}"));
    let compressed = fs::read(compressed).context("failed to find the kernel in its package")?;
    fs::write(dir.join("kernel"), unpacked_kernel(compressed)?)?;
    let modules = first_of(&[&kernel_root], &["usr/lib/modules", "lib/modules"])?.join(release);
    keep_modules(&modules, &dir.join("usr/lib/modules").join(release))?;
    // kmod looks for modules below lib before Debian 13 and below usr/lib after
    std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
    output_of(Command::new(program("depmod")?).arg("-b").arg(dir).arg(release))?;

    let mut archive = Archive::new(Vec::new());
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        archive.folder(folder)?;
    }
    archive.file("init", INIT.as_bytes())?;
    archive
        .file("bin/busybox", &fs::read(first_of(&[&busybox_root], &["usr/bin/busybox", "bin/busybox"])?)?)?;
    for (n, module) in boot_modules(dir, release)?.iter().enumerate() {
        let name =
            module.file_name().map(|name| name.to_string_lossy().replace(".xz", "")).unwrap_or_default();
        archive.file(&format!("modules/{n:02}-{name}"), &uncompressed(module)?)?;
    }
    fs::write(dir.join("initramfs"), archive.finish()?).context("failed to write the initramfs")
}

/// The kernel without its compression, if that is xz: QEMU starts it through the PVH entry (CONFIG_PVH, Debian has it),
/// which saves the machine from decompressing itself, half of its start under TCG. Any other kernel is left as it is.
fn unpacked_kernel(image: Vec<u8>) -> Result<Vec<u8>> {
    // Documentation/arch/x86/boot.rst: setup_sects, payload_offset
    let setup_sectors = usize::from(*image.get(0x1f1).context("the kernel is too short")?);
    let offset = image.get(0x248..0x24c).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let offset = usize::try_from(offset.context("the kernel is too short")?)?;
    match image.get((setup_sectors + 1) * 512 + offset..) {
        Some(payload) if payload.starts_with(b"\xfd7zXZ\0") => unxz(payload),
        _ => Ok(image),
    }
}

fn program(name: &str) -> Result<PathBuf> {
    packages::find(name).with_context(|| format!("failed to find {name}"))
}

fn first_of(roots: &[&Path], below: &[&str]) -> Result<PathBuf> {
    let mut places = roots.iter().flat_map(|root| below.iter().map(|path| root.join(path)));
    places
        .find(|place| place.exists())
        .with_context(|| format!("the package holds none of {}", below.join(", ")))
}

/// Moves the kept parts of the module tree, and the lists depmod reads.
fn keep_modules(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::rename(from.join(list), to.join(list)).with_context(|| format!("failed to keep {list}"))?;
    }
    for dropped in DROPPED_MODULES {
        fs::remove_dir_all(from.join("kernel").join(dropped))
            .with_context(|| format!("failed to drop {dropped}"))?;
    }
    for kept in KEPT_MODULES {
        let place = to.join("kernel").join(kept);
        fs::create_dir_all(place.parent().unwrap_or(to))?;
        fs::rename(from.join("kernel").join(kept), place)
            .with_context(|| format!("failed to keep {kept}"))?;
    }
    Ok(())
}

/// The files of the boot modules and of what they depend on, in the order they are loaded.
fn boot_modules(dir: &Path, release: &str) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for module in BOOT_MODULES {
        let mut command = Command::new(program("modprobe")?);
        command.arg("-d").arg(dir).args(["-S", release, "--ignore-install", "--show-depends", module]);
        for file in insmod_files(&output_of(&mut command)?) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The files `modprobe --show-depends` would insert; what is built in needs no file.
fn insmod_files(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .map(|file| PathBuf::from(file.trim_end()))
        .collect()
}

/// The content of a module; busybox inserts no compressed ones.
fn uncompressed(module: &Path) -> Result<Vec<u8>> {
    let content = fs::read(module).with_context(|| format!("failed to read {}", module.display()))?;
    if module.extension().is_some_and(|end| end == "xz") { unxz(&content) } else { Ok(content) }
}

/// Decompresses one xz stream, whatever follows it.
fn unxz(content: &[u8]) -> Result<Vec<u8>> {
    let mut file = tempfile::tempfile()?;
    file.write_all(content).and_then(|()| file.rewind())?;
    let mut xz = Command::new("xz");
    let output = xz.args(["--decompress", "--stdout", "--single-stream"]).stdin(file).output()?;
    if !output.status.success() {
        bail!("xz failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIBED: &str = "Package: linux-image-amd64\nVersion: 6.1.192-2\n\
        Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n\nPackage: busybox-static\nVersion: 1:1.35.0-4\n\n";

    #[test]
    fn the_concrete_kernel_is_read_from_apts_answer() {
        let kernel = kernel_package(DESCRIBED).unwrap();
        assert_eq!(
            (kernel.name.as_str(), kernel.version.as_str()),
            ("linux-image-6.1.0-56-amd64", "6.1.192-2")
        );
        assert_eq!(field(DESCRIBED, BUSYBOX, "Version").unwrap(), "1:1.35.0-4");
    }

    #[test]
    fn a_host_without_debians_kernel_is_told_so() {
        let error = kernel_package("Package: busybox-static\nVersion: 1\n").unwrap_err().to_string();
        assert!(error.contains("needs Debian's packages"), "{error}");
    }

    #[test]
    fn a_kernel_compressed_with_xz_is_unpacked_and_another_is_left_as_it_is() {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x248] = 8;
        let packed = Command::new("sh").args(["-c", "printf vmlinux | xz"]).output().unwrap().stdout;
        let xz = [&image[..], &[0; 8], &packed, b"size"].concat();
        assert_eq!(unpacked_kernel(xz).unwrap(), b"vmlinux");
        let zstd = [&image[..], &[0; 8], b"\x28\xb5\x2f\xfd", b"size"].concat();
        assert_eq!(unpacked_kernel(zstd.clone()).unwrap(), zstd);
        assert!(unpacked_kernel(vec![0; 100]).is_err());
    }

    #[test]
    fn the_key_follows_each_input() {
        let package = |name: &str, version: &str| Package { name: name.into(), version: version.into() };
        let busybox = package(BUSYBOX, "1:1.35.0-4");
        let one = key(&package("linux-image-6.1.0-56-amd64", "6.1.192-2"), &busybox);
        assert!(one.starts_with("linux-image-6.1.0-56-amd64_6.1.192-2-"), "{one}");
        assert_ne!(one, key(&package("linux-image-6.1.0-56-amd64", "6.1.193-1"), &busybox));
        let newer_busybox = package(BUSYBOX, "1:1.37.0-1");
        assert_ne!(one, key(&package("linux-image-6.1.0-56-amd64", "6.1.192-2"), &newer_busybox));
    }

    #[test]
    fn built_in_modules_need_no_file() {
        let listing = "insmod /c/lib/modules/6/kernel/net/9p/9pnet.ko \nbuiltin virtio\n";
        assert_eq!(insmod_files(listing), [PathBuf::from("/c/lib/modules/6/kernel/net/9p/9pnet.ko")]);
    }

    #[test]
    fn compressed_modules_are_decompressed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("9p.ko");
        fs::write(&file, "module").unwrap();
        assert_eq!(uncompressed(&file).unwrap(), b"module");
        assert!(Command::new("xz").arg(&file).status().unwrap().success());
        assert_eq!(uncompressed(&dir.path().join("9p.ko.xz")).unwrap(), b"module");
    }
}
