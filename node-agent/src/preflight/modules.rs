//! Loads the kernel modules of IPVS, and those of our nftables table.
//!
//! The one place where the agent starts another program: modprobe knows dependencies, compression,
//! signatures and the administrator's `/etc/modprobe.d`, and finit_module(2) knows none of them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use fairlead_crds::Scheduler;

/// Buckets of the connection table are fixed when ip_vs is loaded: 2^12 unless told otherwise, which
/// makes every packet of a node with 100,000 connections walk 25 of them. 2^16 costs 8 bytes each,
/// 512 KiB in all. Kernels before 6.5 take 8 to 20, so this is good for all.
const CONN_TAB_BITS: &str = "conn_tab_bits=16";

/// What our table is made of, each with what it depends on. The kernel loads these by itself when a rule
/// asks for them, where it can: some hosts do not let it.
const TABLE: [&str; 6] =
    ["nf_tables", "nft_ct", "nft_fib_inet", "nft_reject_inet", "nft_masq", "nft_chain_nat"];

/// How a module came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It was loaded or built in.
    Already,
    /// It was loaded just now.
    Loaded,
}

/// A module that is needed and not there.
#[derive(Debug, thiserror::Error)]
pub enum ModuleProblem {
    /// No modprobe.
    #[error(
        "kernel module {module} is not loaded and modprobe cannot be run: install kmod, or load it on the host"
    )]
    NoModprobe {
        /// Name of the module.
        module: String,
        /// Cause.
        source: io::Error,
    },
    /// modprobe failed.
    #[error("failed to load kernel module {module}: {hint} (modprobe says: {stderr})")]
    Refused {
        /// Name of the module.
        module: String,
        /// What modprobe said.
        stderr: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// modprobe is content, but the module is not there.
    #[error("modprobe {module} succeeded but the module is not loaded: load it on the host")]
    NotThere {
        /// Name of the module.
        module: String,
    },
}

/// What came of loading the modules of IPVS; empty where all is well.
#[derive(Debug)]
pub struct Modules {
    /// IPVS itself.
    pub ip_vs: Option<ModuleProblem>,
    /// Lets bridged packets pass netfilter; needed where pods sit on a Linux bridge.
    pub br_netfilter: Option<ModuleProblem>,
    /// The schedulers that cannot be had.
    pub schedulers: BTreeMap<Scheduler, ModuleProblem>,
}

/// Finds and loads modules.
#[derive(Clone, Debug)]
pub struct Loader {
    sys_module: PathBuf,
    proc_net: PathBuf,
    lib_modules: PathBuf,
    modprobe: PathBuf,
}

impl Loader {
    /// The loader of this host, whose kernel is of this release.
    pub fn of_host(release: &str) -> Self {
        Self {
            sys_module: "/sys/module".into(),
            proc_net: "/proc/net".into(),
            lib_modules: Path::new("/lib/modules").join(release),
            modprobe: "modprobe".into(),
        }
    }

    /// Loads IPVS, its schedulers and br_netfilter where they are missing.
    pub fn ensure_ipvs(&self) -> Modules {
        let mut modules = Modules {
            // Before its schedulers: as their dependency it would be loaded without our option.
            ip_vs: self.ensure("ip_vs").err(),
            br_netfilter: self.ensure("br_netfilter").err(),
            schedulers: BTreeMap::new(),
        };
        if modules.ip_vs.is_none() {
            for scheduler in Scheduler::ALL {
                if let Err(problem) = self.ensure(&format!("ip_vs_{scheduler}")) {
                    modules.schedulers.insert(scheduler, problem);
                }
            }
        }
        modules
    }

    /// Loads everything that any mode needs, and goes on where something is missing. For a container
    /// that may load modules, ahead of one that may not.
    pub fn load_all(&self) -> Vec<(String, Result<Presence, ModuleProblem>)> {
        let schedulers = Scheduler::ALL.iter().map(|scheduler| format!("ip_vs_{scheduler}"));
        // Before its schedulers: as their dependency it would be loaded without our option.
        let names = ["ip_vs", "br_netfilter"].into_iter().chain(TABLE).map(str::to_owned).chain(schedulers);
        names.map(|name| (name.clone(), self.ensure(&name))).collect()
    }

    /// Loads a module unless it is loaded or built in.
    pub fn ensure(&self, module: &str) -> Result<Presence, ModuleProblem> {
        if self.is_there(module) {
            return Ok(Presence::Already);
        }
        let mut command = Command::new(&self.modprobe);
        command.arg(module);
        if module == "ip_vs" && !self.admin_sets("ip_vs", "conn_tab_bits=") {
            command.arg(CONN_TAB_BITS);
        }
        let output = command
            .output()
            .map_err(|source| ModuleProblem::NoModprobe { module: module.to_owned(), source })?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let hint = self.hint(&stderr);
            return Err(ModuleProblem::Refused { module: module.to_owned(), stderr, hint });
        }
        if !self.is_there(module) {
            return Err(ModuleProblem::NotThere { module: module.to_owned() });
        }
        Ok(Presence::Loaded)
    }

    fn is_there(&self, module: &str) -> bool {
        // A built-in module has a folder in /sys/module only if it has parameters or a version.
        self.sys_module.join(module).exists()
            || self.is_built_in(module)
            // In a container without the host's /lib/modules.
            || module == "ip_vs" && self.proc_net.join("ip_vs").exists()
    }

    fn is_built_in(&self, module: &str) -> bool {
        let file = format!("/{module}.ko");
        fs::read_to_string(self.lib_modules.join("modules.builtin"))
            .is_ok_and(|list| list.lines().any(|line| line.ends_with(&file)))
    }

    /// Whether `/etc/modprobe.d` sets an option, which one on the command line would override.
    fn admin_sets(&self, module: &str, option: &str) -> bool {
        let Ok(output) = Command::new(&self.modprobe).args(["--show-depends", module]).output() else {
            return false;
        };
        // A line a module: `insmod /path/ip_vs.ko.xz conn_tab_bits=20`; dependencies come first.
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().last().is_some_and(|line| line.split(' ').any(|word| word.starts_with(option)))
    }

    fn hint(&self, stderr: &str) -> &'static str {
        if stderr.contains("Operation not permitted") {
            "load it on the host, or give the agent CAP_SYS_MODULE"
        } else if stderr.contains("Key was rejected") || stderr.contains("Required key not available") {
            "Secure Boot refuses its signature, install the distribution's signed module"
        } else if !self.lib_modules.is_dir() {
            "the running kernel's folder in /lib/modules is not here, mount the host's /lib/modules, or reboot after a kernel update"
        } else if stderr.contains("not found in directory") {
            "the kernel package does not contain it, install the distribution's package of extra modules"
        } else {
            "see the kernel log (dmesg)"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;
    use tempfile::TempDir;

    use super::*;

    /// A host whose modprobe is a script: `$ROOT` is the folder of the test, `$1` the first argument.
    struct FakeHost {
        root: TempDir,
        loader: Loader,
    }

    impl FakeHost {
        fn with_modprobe(script: &str) -> Self {
            let root = TempDir::new().unwrap();
            let loader = Loader {
                sys_module: root.path().join("sys"),
                proc_net: root.path().join("net"),
                lib_modules: root.path().join("lib"),
                modprobe: root.path().join("modprobe"),
            };
            fs::create_dir(&loader.sys_module).unwrap();
            fs::create_dir(&loader.lib_modules).unwrap();
            let script = format!("#!/bin/sh\nROOT={}\n{script}\n", root.path().display());
            fs::write(&loader.modprobe, script).unwrap();
            fs::set_permissions(&loader.modprobe, fs::Permissions::from_mode(0o755)).unwrap();
            Self { root, loader }
        }

        /// A modprobe that loads everything and writes down its arguments.
        fn that_loads() -> Self {
            Self::with_modprobe(
                "echo \"$@\" >> $ROOT/calls\n\
                 [ $1 = --show-depends ] && cat $ROOT/depends 2>/dev/null || mkdir -p $ROOT/sys/$1",
            )
        }

        fn calls(&self) -> String {
            fs::read_to_string(self.root.path().join("calls")).unwrap_or_default()
        }
    }

    #[test]
    fn what_is_loaded_or_built_in_is_left_alone() {
        let host = FakeHost::that_loads();
        fs::create_dir(host.loader.sys_module.join("ip_vs")).unwrap();
        fs::write(
            host.loader.lib_modules.join("modules.builtin"),
            "kernel/net/bridge/br_netfilter.ko\nkernel/net/netfilter/ipvs/ip_vs_rr.ko\n",
        )
        .unwrap();
        for module in ["ip_vs", "br_netfilter", "ip_vs_rr"] {
            host.loader.ensure(module).unwrap();
        }
        assert_eq!(host.calls(), "");
    }

    #[test]
    fn without_modprobe_what_is_there_is_enough() {
        let mut host = FakeHost::that_loads();
        host.loader.modprobe = host.root.path().join("none");
        assert!(matches!(host.loader.ensure("ip_vs"), Err(ModuleProblem::NoModprobe { .. })));
        fs::create_dir(&host.loader.proc_net).unwrap();
        fs::write(host.loader.proc_net.join("ip_vs"), "").unwrap();
        fs::create_dir(host.loader.sys_module.join("br_netfilter")).unwrap();
        let modules = host.loader.ensure_ipvs();
        assert!(modules.ip_vs.is_none() && modules.br_netfilter.is_none());
    }

    #[test]
    fn all_modules_are_loaded_and_one_that_is_missing_holds_up_no_other() {
        let host = FakeHost::with_modprobe(
            "[ $1 = nft_fib_inet ] && { echo 'not found in directory /lib/x' >&2; exit 1; }\n\
             [ $1 = --show-depends ] || mkdir -p $ROOT/sys/$1",
        );
        fs::create_dir(host.loader.sys_module.join("nf_tables")).unwrap();
        let loaded = host.loader.load_all();
        let of = |name: &str| &loaded.iter().find(|(module, _)| module == name).unwrap().1;
        assert!(matches!(of("ip_vs"), Ok(Presence::Loaded)));
        assert!(matches!(of("nf_tables"), Ok(Presence::Already)));
        assert!(matches!(of("nft_fib_inet"), Err(ModuleProblem::Refused { .. })));
        assert!(matches!(of("ip_vs_mh"), Ok(Presence::Loaded)));
        assert_eq!(loaded.len(), 2 + TABLE.len() + Scheduler::ALL.len());
    }

    #[test]
    fn everything_missing_is_loaded_ip_vs_first_and_with_a_larger_table() {
        let host = FakeHost::that_loads();
        let modules = host.loader.ensure_ipvs();
        assert!(modules.ip_vs.is_none() && modules.br_netfilter.is_none());
        assert!(modules.schedulers.is_empty());
        let calls = host.calls();
        let calls: Vec<_> = calls.lines().collect();
        assert_eq!(calls[..3], ["--show-depends ip_vs", "ip_vs conn_tab_bits=16", "br_netfilter"]);
        assert_eq!(calls.len(), 3 + Scheduler::ALL.len());
    }

    #[test]
    fn the_administrators_table_size_is_kept() {
        let host = FakeHost::that_loads();
        fs::write(
            host.root.path().join("depends"),
            "insmod /lib/nf_conntrack.ko \ninsmod /lib/ip_vs.ko conn_tab_bits=20 \n",
        )
        .unwrap();
        host.loader.ensure("ip_vs").unwrap();
        assert_eq!(host.calls().lines().last(), Some("ip_vs"));
    }

    #[test]
    fn a_scheduler_that_is_missing_leaves_the_others() {
        let host = FakeHost::with_modprobe(
            "[ $1 = ip_vs_mh ] && { echo 'modprobe: FATAL: Module ip_vs_mh not found in directory /lib/x' >&2; exit 1; }\n\
             mkdir -p $ROOT/sys/$1",
        );
        let modules = host.loader.ensure_ipvs();
        assert_eq!(modules.schedulers.keys().collect::<Vec<_>>(), [&Scheduler::Mh]);
        let problem = modules.schedulers[&Scheduler::Mh].to_string();
        assert!(problem.contains("package of extra modules"), "{problem}");
        assert!(problem.contains("FATAL: Module ip_vs_mh not found"), "{problem}");
    }

    #[rstest]
    #[case("could not insert 'ip_vs': Operation not permitted", "CAP_SYS_MODULE")]
    #[case("could not insert 'ip_vs': Key was rejected by service", "Secure Boot")]
    #[case("Module ip_vs not found in directory /lib/modules/6.1", "package of extra modules")]
    #[case("could not insert 'ip_vs': Cannot allocate memory", "dmesg")]
    fn a_refusal_says_what_to_do(#[case] stderr: &str, #[case] hint: &str) {
        let host = FakeHost::with_modprobe(&format!("echo \"modprobe: ERROR: {stderr}\" >&2; exit 1"));
        let problem = host.loader.ensure("ip_vs").unwrap_err().to_string();
        assert!(problem.contains(hint) && problem.contains(stderr), "{problem}");
    }

    #[test]
    fn a_container_without_the_hosts_modules_is_told_to_mount_them() {
        let host = FakeHost::with_modprobe("echo 'ip_vs not found in directory' >&2; exit 1");
        fs::remove_dir(&host.loader.lib_modules).unwrap();
        let problem = host.loader.ensure("ip_vs").unwrap_err().to_string();
        assert!(problem.contains("mount the host's /lib/modules"), "{problem}");
    }

    #[test]
    fn success_is_not_believed_but_looked_up() {
        let host = FakeHost::with_modprobe("exit 0");
        assert!(matches!(host.loader.ensure("ip_vs"), Err(ModuleProblem::NotThere { .. })));
    }

    #[test]
    fn no_modprobe_is_said() {
        let host = FakeHost::with_modprobe("");
        fs::remove_file(&host.loader.modprobe).unwrap();
        let problem = host.loader.ensure("ip_vs").unwrap_err();
        assert!(problem.to_string().contains("install kmod"), "{problem}");
    }
}
