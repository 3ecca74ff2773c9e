//! The programs of a cluster: Kubernetes' own, and a node's container runtime, built from our two Go modules.
//!
//! Everything comes through the Go module proxy and is checked by `go.sum`. What is built is cached, keyed by all that
//! goes into it. With `KUBEBUILDER_ASSETS` set, its etcd, kube-apiserver and kubectl are used instead of ours.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::machine::cache;
use crate::process::{die_with_parent, output_of, shown};
use crate::{packages, say};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs");

/// The binary of the module `kubernetes`, and the names it answers to.
const KUBERNETES: &str = "kubernetes";
const KUBERNETES_PROGRAMS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

/// What the environment variable names has these, by the convention of controller-runtime's envtest.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
const ASSET_PROGRAMS: &[&str] = &["etcd", "kube-apiserver", "kubectl"];

const RUNC: &str = "github.com/opencontainers/runc";

/// Raised when what is made of the inputs changes.
const RECIPE: u32 = 1;

/// Programs that can be started.
#[derive(Debug, Clone)]
pub struct Programs {
    assets: Option<PathBuf>,
    kubernetes: PathBuf,
    node: Option<PathBuf>,
}

impl Programs {
    /// Where a program is.
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        let mut places = self.folders().into_iter().map(|folder| folder.join(program));
        places
            .find(|place| place.is_file())
            .with_context(|| format!("no program of the cluster is called {program}"))
    }

    /// The folders of all programs, as they belong at the front of PATH: containerd looks there for its shim and runc.
    pub fn folders(&self) -> Vec<PathBuf> {
        [&self.assets, &Some(self.kubernetes.clone()), &self.node].into_iter().flatten().cloned().collect()
    }

    /// The programs that a node runs: kubelet, and all of its folder.
    pub fn node_files(&self) -> Result<Vec<PathBuf>> {
        let folder = self.node_folder()?;
        let entries = fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))?;
        let mut files = vec![self.path("kubelet")?];
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
        files.sort();
        Ok(files)
    }

    /// The folder of containerd, its shim, ctr, runc and the CNI plugins.
    pub fn node_folder(&self) -> Result<&Path> {
        self.node.as_deref().context("the programs of a node are not built here: use programs::ensure")
    }
}

/// The programs of a control plane and of nodes, from the cache or built now.
pub fn ensure() -> Result<Programs> {
    let programs = control_plane()?;
    let module = Module::read("node", &["-tags seccomp"])?;
    let node = module.entry(build_node)?;
    Ok(Programs { node: Some(node), ..programs })
}

/// The programs of a control plane alone.
pub fn control_plane() -> Result<Programs> {
    let assets = std::env::var_os(ASSETS).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(assets) = &assets {
        check_assets(assets)?;
    }
    let version = kubernetes_version(&fs::read_to_string(Path::new(FOLDER).join("kubernetes/go.mod"))?)?;
    let flags = version_flags(&version)?;
    let module = Module::read("kubernetes", &[&flags])?;
    let kubernetes = module.entry(|module, dir| build_kubernetes(module, dir, &version, &flags))?;
    Ok(Programs { assets, kubernetes, node: None })
}

fn check_assets(folder: &Path) -> Result<()> {
    let missing: Vec<_> =
        ASSET_PROGRAMS.iter().filter(|name| !folder.join(name).is_file()).copied().collect();
    if !missing.is_empty() {
        bail!(
            "{ASSETS} is {}, which lacks {}: point it at a folder that has them, or unset it to use our own",
            folder.display(),
            missing.join(", ")
        );
    }
    Ok(())
}

/// A Go module of ours, and what its programs are built from.
struct Module {
    folder: PathBuf,
    key: String,
    go: PathBuf,
}

impl Module {
    fn read(name: &str, flags: &[&str]) -> Result<Self> {
        let folder = Path::new(FOLDER).join(name);
        let go = packages::find("go").context(
            "go is missing: the cluster's programs are built with it; install the Go release that \
             e2e/programs/kubernetes/go.mod names from https://go.dev/dl and put its bin folder into PATH",
        )?;
        let mut inputs = format!("{RECIPE}{flags:?}");
        inputs += &output_of(Command::new(&go).arg("version").current_dir(&folder))?;
        for file in ["go.mod", "go.sum", "main.go"] {
            match fs::read_to_string(folder.join(file)) {
                Ok(text) => inputs += &text,
                // a module of tools has no program of its own
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && file == "main.go" => {}
                Err(error) => return Err(error).with_context(|| format!("failed to read {file} of {name}")),
            }
        }
        Ok(Self { folder, key: format!("{name}-{:08x}", crc32fast::hash(inputs.as_bytes())), go })
    }

    fn entry(&self, build: impl FnOnce(&Self, &Path) -> Result<()>) -> Result<PathBuf> {
        let start = Instant::now();
        cache::entry(&cache::folder()?.join("programs"), &self.key, |dir| {
            build(self, dir)?;
            say(format_args!("{} built in {:.0} s", self.key, start.elapsed().as_secs_f32()));
            Ok(())
        })
    }

    fn build(&self, to: &Path, cgo: bool, args: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.go);
        command.current_dir(&self.folder).env("CGO_ENABLED", if cgo { "1" } else { "0" });
        command.args(["build", "-trimpath", "-o"]).arg(to).args(args);
        // go says what it downloads: the rig's stdout is left to the programs under test
        command.stdin(Stdio::null()).stdout(std::io::stderr());
        // a rig that is ended leaves no build behind
        let status = die_with_parent(&mut command)
            .status()
            .with_context(|| format!("failed to start `{}`", shown(&command)))?;
        if !status.success() {
            bail!("`{}` failed ({status}) in {}", shown(&command), self.folder.display());
        }
        Ok(())
    }
}

fn build_kubernetes(module: &Module, dir: &Path, version: &str, flags: &str) -> Result<()> {
    packages::ensure(&[packages::BUILD_GO])?;
    say(format_args!("building the programs of Kubernetes {version} (once, some minutes)"));
    module.build(&dir.join(KUBERNETES), true, &["-ldflags", flags, "."])?;
    for name in KUBERNETES_PROGRAMS {
        symlink(KUBERNETES, dir.join(name))?;
    }
    Ok(())
}

fn build_node(module: &Module, dir: &Path) -> Result<()> {
    packages::ensure(&[packages::BUILD_GO, packages::BUILD_RUNC])?;
    say("building containerd, runc and the CNI plugins (once, a minute)");
    let tools = output_of(Command::new(&module.go).args(["list", "tool"]).current_dir(&module.folder))?;
    let mut to = dir.as_os_str().to_owned();
    to.push("/"); // several programs go into a folder
    let static_tools = tools.lines().filter(|tool| *tool != RUNC);
    module.build(
        Path::new(&to),
        false,
        &["-ldflags", "-s -w"].into_iter().chain(static_tools).collect::<Vec<_>>(),
    )?;
    // runc enters namespaces in C, and without libseccomp refuses the profile that containerd gives each container
    module.build(&dir.join("runc"), true, &["-ldflags", "-s -w", "-tags", "seccomp", RUNC])
}

/// The version go.mod requires of Kubernetes, as `v1.36.2`.
fn kubernetes_version(go_mod: &str) -> Result<String> {
    let mut lines = go_mod.lines().map(|line| line.trim().trim_start_matches("require "));
    let version = lines.find_map(|line| line.strip_prefix("k8s.io/kubernetes "));
    Ok(version.context("go.mod requires no k8s.io/kubernetes")?.trim().to_owned())
}

/// Linker flags that tell the programs their version: built as a dependency they call themselves v0.0.0, which the
/// API server then shows as the version of nodes.
fn version_flags(version: &str) -> Result<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) =
        numbers.next().zip(numbers.next()).with_context(|| format!("{version} is no version"))?;
    let of_package = |package: &str| {
        format!(
            " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        )
    };
    let packages = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
    Ok(format!("-s -w{}", packages.map(of_package).concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_go_mod_requires() {
        let go_mod = "module x\nrequire (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.36.2\n)\n";
        assert_eq!(kubernetes_version(go_mod).unwrap(), "v1.36.2");
        assert_eq!(kubernetes_version("require k8s.io/kubernetes v1.37.0\n").unwrap(), "v1.37.0");
        assert!(kubernetes_version("module x\n").is_err());
        let ours = fs::read_to_string(Path::new(FOLDER).join("kubernetes/go.mod")).unwrap();
        assert!(kubernetes_version(&ours).unwrap().starts_with("v1."));
    }

    #[test]
    fn the_programs_are_told_their_version() {
        let flags = version_flags("v1.36.2").unwrap();
        for part in [
            "-X k8s.io/component-base/version.gitVersion=v1.36.2 ",
            "-X k8s.io/client-go/pkg/version.gitMajor=1 ",
            "-X k8s.io/client-go/pkg/version.gitMinor=36",
        ] {
            assert!(flags.contains(part), "{flags}");
        }
    }

    #[test]
    fn assets_that_lack_a_program_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["etcd", "kubectl"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let error = check_assets(folder.path()).unwrap_err().to_string();
        assert!(error.contains("kube-apiserver") && !error.contains("etcd,"), "{error}");
        fs::write(folder.path().join("kube-apiserver"), "").unwrap();
        check_assets(folder.path()).unwrap();
    }

    #[test]
    fn assets_come_before_our_own_programs() {
        let [assets, ours] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (folder, name) in [(&assets, "kubectl"), (&ours, "kubectl"), (&ours, "kubelet")] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let programs =
            Programs { assets: Some(assets.path().into()), kubernetes: ours.path().into(), node: None };
        assert_eq!(programs.path("kubectl").unwrap(), assets.path().join("kubectl"));
        assert_eq!(programs.path("kubelet").unwrap(), ours.path().join("kubelet"));
        assert!(programs.path("containerd").unwrap_err().to_string().contains("containerd"));
    }
}
