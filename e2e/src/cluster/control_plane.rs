//! The control plane: etcd, the API server, the controller manager and the scheduler, in the router's namespace.
//!
//! One of each; nothing they hold outlives the cluster, so etcd never waits for the disk.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Context;
use crate::ns::{Address, Process};

/// The ranges of Services; the first address of each is the Service `kubernetes`.
const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The first address of the ranges of Services.
pub const KUBERNETES_SERVICE: Address =
    Address { v4: Ipv4Addr::new(10, 96, 0, 1), v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1) };

/// The ranges of pods: a /24 and a /64 a node, for 4096 nodes.
const PODS: &str = "10.240.0.0/12,fd00:10:244::/48";

/// On two busy cores a tenth of it is usual.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// How long the API server may take to end by itself: with open watches it waits for a minute.
const API_SERVER_GRACE: Duration = Duration::from_secs(5);

/// The API server's port on the control plane's address.
pub const API_SERVER_PORT: u16 = 6443;

const API_SERVER: &str = "kube-apiserver";
const ETCD: &str = "etcd";

/// A running control plane; killed when it goes out of scope.
#[derive(Debug)]
pub struct ControlPlane {
    context: Context,
    without: &'static [&'static str],
    running: BTreeMap<&'static str, Process>,
}

impl ControlPlane {
    /// Starts everything, but for these controllers, and waits until it serves. Its programs die with the thread
    /// that calls.
    pub fn start(context: Context, without: &'static [&'static str]) -> Result<Self> {
        let mut plane = Self { context, without, running: BTreeMap::new() };
        plane.run(ETCD, &plane.etcd())?;
        plane.run(API_SERVER, &plane.api_server())?;
        plane.until_ready()?;
        // both give up when the API server is not healthy within ten seconds of their start
        plane.run("kube-controller-manager", &plane.controller_manager())?;
        plane.run("kube-scheduler", &plane.scheduler())?;
        plane.until("the namespace default has its ServiceAccount", &["get", "serviceaccount", "default"])?;
        Ok(plane)
    }

    /// Ends the API server alone; all else goes on and looks for it.
    pub fn stop_api_server(&mut self) -> Result<()> {
        let Some(mut process) = self.running.remove(API_SERVER) else {
            bail!("the API server is stopped already")
        };
        process.signal(rustix::process::Signal::TERM)?;
        process.wait(API_SERVER_GRACE).map(drop).or_else(|_| process.kill())
    }

    /// Starts the API server again, and waits until it serves.
    pub fn start_api_server(&mut self) -> Result<()> {
        if self.running.contains_key(API_SERVER) {
            bail!("the API server runs already");
        }
        self.run(API_SERVER, &self.api_server())?;
        self.until_ready()
    }

    /// Fails if a program has ended that was not stopped.
    pub fn check(&mut self) -> Result<()> {
        for (name, process) in &mut self.running {
            if !process.is_running()? {
                let log = process.log();
                let lines: Vec<_> = log.lines().rev().take(20).collect();
                let end: Vec<_> = lines.into_iter().rev().collect();
                bail!("{name} has ended; the end of its log:\n{}", end.join("\n"));
            }
        }
        Ok(())
    }

    fn run(&mut self, name: &'static str, flags: &[String]) -> Result<()> {
        let mut command = self.context.network.router.command(self.context.programs.path(name)?);
        let process =
            Process::start(name, self.context.adopt(&mut command).args(flags), &self.context.logs()?)?;
        self.running.insert(name, process);
        Ok(())
    }

    fn until_ready(&mut self) -> Result<()> {
        self.until("the API server is ready", &["get", "--raw=/readyz"])
    }

    /// Waits until a command of kubectl succeeds.
    fn until(&mut self, what: &str, arguments: &[&str]) -> Result<()> {
        let kubectl = self.context.kubectl()?;
        let start = Instant::now();
        loop {
            let Err(error) = kubectl.run(&[arguments, &["--request-timeout=5s"]].concat()) else {
                return Ok(());
            };
            self.check()?;
            if start.elapsed() > READY_LIMIT {
                return Err(error)
                    .with_context(|| format!("{what}: not so after {} s", READY_LIMIT.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn etcd(&self) -> Vec<String> {
        let clients = "http://127.0.0.1:2379";
        let peers = "http://127.0.0.1:2380";
        vec![
            flag("data-dir", self.context.folder.join(ETCD).display()),
            "--unsafe-no-fsync".to_owned(),
            flag("listen-client-urls", clients),
            flag("advertise-client-urls", clients),
            flag("listen-peer-urls", peers),
            flag("initial-advertise-peer-urls", peers),
            flag("initial-cluster", format_args!("default={peers}")),
        ]
    }

    fn api_server(&self) -> Vec<String> {
        vec![
            flag("etcd-servers", "http://127.0.0.1:2379"),
            flag("bind-address", "::"),
            flag("secure-port", API_SERVER_PORT),
            flag("advertise-address", self.context.network.subnet().control_plane().v4),
            flag("service-cluster-ip-range", SERVICES),
            flag("allow-privileged", true),
            flag("authorization-mode", "Node,RBAC"),
            flag("enable-admission-plugins", "NodeRestriction"),
            self.pki("client-ca-file", "ca.crt"),
            self.pki("tls-cert-file", "apiserver.crt"),
            self.pki("tls-private-key-file", "apiserver.key"),
            self.pki("kubelet-client-certificate", "apiserver-kubelet-client.crt"),
            self.pki("kubelet-client-key", "apiserver-kubelet-client.key"),
            flag("kubelet-preferred-address-types", "InternalIP"),
            flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            self.pki("service-account-key-file", "sa.pub"),
            self.pki("service-account-signing-key-file", "sa.key"),
            self.pki("proxy-client-cert-file", "front-proxy-client.crt"),
            self.pki("proxy-client-key-file", "front-proxy-client.key"),
            self.pki("requestheader-client-ca-file", "front-proxy-ca.crt"),
            flag("requestheader-allowed-names", "front-proxy-client"),
            flag("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            flag("requestheader-group-headers", "X-Remote-Group"),
            flag("requestheader-username-headers", "X-Remote-User"),
            // no kube-proxy here: the way to an aggregated API server is to its pods
            flag("enable-aggregator-routing", true),
        ]
    }

    fn controller_manager(&self) -> Vec<String> {
        let controllers =
            self.without.iter().fold("*".to_owned(), |all, without| format!("{all},-{without}"));
        let own = vec![
            flag("use-service-account-credentials", true),
            flag("controllers", controllers),
            self.pki("cluster-signing-cert-file", "ca.crt"),
            self.pki("cluster-signing-key-file", "ca.key"),
            self.pki("root-ca-file", "ca.crt"),
            self.pki("service-account-private-key-file", "sa.key"),
            self.pki("requestheader-client-ca-file", "front-proxy-ca.crt"),
            flag("allocate-node-cidrs", true),
            flag("cluster-cidr", PODS),
            flag("service-cluster-ip-range", SERVICES),
            // each of its controllers gets an account and a token first: seconds, at the default of 20 a second
            flag("kube-api-qps", 300),
            flag("kube-api-burst", 300),
        ];
        [self.client("kube-controller-manager"), own].concat()
    }

    fn scheduler(&self) -> Vec<String> {
        self.client("kube-scheduler")
    }

    /// What the clients of the API server among the components have in common.
    fn client(&self, name: &str) -> Vec<String> {
        let kubeconfig = format!("{name}.kubeconfig");
        let mut flags = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
            .map(|flag| self.pki(flag, &kubeconfig))
            .to_vec();
        flags.extend([flag("bind-address", "127.0.0.1"), flag("leader-elect", false)]);
        flags
    }

    fn pki(&self, name: &str, file: &str) -> String {
        flag(name, self.context.pki.file(file).display())
    }
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}
