//! What is shown, in its order.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_e2e::claims::{Claims, tell};
use fairlead_e2e::cluster::node::{Kind, Spec};
use fairlead_e2e::cluster::{Cluster, lifecycle};
use fairlead_e2e::installation::{self, Installation, NAMESPACE, service_network};
use fairlead_e2e::patiently;
use fairlead_e2e::shop::{From, Shop};
use fairlead_e2e::traffic::Protocol;

/// The nodes of the cluster.
const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// Emulated nodes take their time; what a step took is printed.
const PATIENCE: Duration = Duration::from_secs(300);
/// Requests a second of the stream that runs during a change.
const RATE: u32 = 20;

/// Brings the cluster up in `folder` and shows everything; it stays up, also after a claim that failed.
pub fn run(folder: &Path, rig: &Path) -> Result<()> {
    println!(
        "\
Fairlead on a real cluster

Three machines with Debian's kernel, kubelets and containerd, an API server and etcd: all real, on this host, with
nothing of it left after `make clean`. No kube-proxy. The first run builds Kubernetes and takes a quarter of an hour."
    );
    lifecycle::down(folder)?;
    lifecycle::prepare(&[Kind::Machine], rig)?;
    let begin = Instant::now();
    let cluster = lifecycle::up(folder, rig)?;
    cluster.add_nodes(&NODES.map(|name| Spec::new(name, Kind::Machine)))?;
    let shown = Tour { cluster: &cluster, claims: Claims::default() }.show(folder, begin);
    if shown.is_err() {
        eprintln!("\nThe cluster, for whoever looks into it:\n{}", cluster.diagnose());
    }
    how_to_use_it(&cluster)?;
    shown
}

struct Tour<'a> {
    cluster: &'a Cluster,
    claims: Claims,
}

impl<'a> Tour<'a> {
    fn show(mut self, folder: &Path, begin: Instant) -> Result<()> {
        self.nodes_are_bare(begin)?;
        self.fairlead_is_installed(folder)?;
        let shop = self.service_is_reached()?;
        self.scheduler_changes(&shop)?;
        self.bad_spec_is_refused()?;
        self.status_and_events()?;
        println!("\n{}", self.claims.table());
        Ok(())
    }

    fn nodes_are_bare(&mut self, begin: Instant) -> Result<()> {
        self.claims.step("Three real nodes, and no service proxy");
        tell(&self.cluster.kubectl(&["get", "nodes", "-o", "wide"])?);
        self.claims.check("the nodes are Ready", true, format!("all three after {}", seconds(begin)))?;
        let loaded = self.on_each("lsmod")?;
        let ip_vs = loaded.iter().filter(|modules| modules.contains("ip_vs")).count();
        self.claims.check("IPVS is not loaded yet", ip_vs == 0, format!("lsmod: on {ip_vs} of 3 nodes"))?;
        let daemons = self.cluster.kubectl(&["get", "daemonsets", "-A", "-o", "name"])?;
        self.claims.check("no kube-proxy is there", daemons.trim().is_empty(), "no DaemonSet at all")
    }

    fn fairlead_is_installed(&mut self, folder: &Path) -> Result<()> {
        self.claims.step("Fairlead, installed by its manifests, and one ServiceNetwork");
        let installation = Installation::prepare(self.cluster, &folder.join("install"))?;
        tell("$ kubectl apply --server-side -k manifests/crds");
        tell("$ $EDITOR manifests/install/kustomization.yaml   # the API servers, and the image by digest");
        tell("$ kubectl apply --server-side -k manifests/install");
        tell("$ kubectl apply -f manifests/examples/servicenetwork.yaml   # spec: {}");
        let begin = Instant::now();
        installation.apply()?;
        self.cluster.apply(&service_network("{}"))?;
        installation::wait_ready(self.cluster, 3, PATIENCE)?;
        self.claims.check(
            "the ServiceNetwork is Ready",
            true,
            format!("on 3 of 3 nodes, {} after the first command", seconds(begin)),
        )?;
        tell(&self.cluster.kubectl(&["get", "servicenetworks,servicenetworknodes"])?);
        tell(&self.cluster.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "wide"])?);
        Ok(())
    }

    fn service_is_reached(&mut self) -> Result<Shop<'a>> {
        self.claims.step("A Deployment, exposed as ClusterIP and NodePort");
        let shop = Shop::open(self.cluster)?;
        tell(&self.cluster.kubectl(&["-n", "shop", "get", "service,endpointslices", "-o", "wide"])?);
        shop.wait_until_open()?;
        for (from, words) in [(From::Pod, "a pod"), (From::Node, "the node itself")] {
            for node in NODES {
                let mut targets = shop.cluster_ip_ports();
                targets.extend(shop.node_ports(node)?);
                let mut servers = BTreeSet::new();
                for (protocol, to) in &targets {
                    let outcome = shop.ask_from(node, from, *protocol, *to)?;
                    let server = outcome.server().map(ToOwned::to_owned);
                    let fact = format!("{protocol} {to} answers {outcome}");
                    servers.insert(server.with_context(|| format!("{node}, {words}: {fact}"))?);
                }
                self.claims.check(
                    &format!("{node}: {words} reaches ClusterIP and NodePort"),
                    true,
                    format!("{} of {} answered, TCP and UDP, IPv4 and IPv6", targets.len(), targets.len()),
                )?;
            }
        }
        let (mut asked, client) = (0, shop.outside()?);
        for node in NODES {
            for (protocol, to) in shop.node_ports(node)? {
                let outcome = client.ask(protocol, to);
                self.require(outcome.server().is_some(), &format!("outside, {protocol} {to}: {outcome}"))?;
                asked += 1;
            }
        }
        self.claims.check(
            "NodePorts answer a client outside",
            true,
            format!("{asked} of {asked}, all nodes"),
        )?;
        let devices = self.on_each("ip -oneline address")?;
        let held =
            shop.cluster_ips.iter().filter(|ip| devices.iter().any(|d| d.contains(&format!(" {ip}/"))));
        self.claims.check("no device has the ClusterIPs", held.count() == 0, "`ip address` on every node")?;
        Ok(shop)
    }

    fn scheduler_changes(&mut self, shop: &Shop<'_>) -> Result<()> {
        self.claims.step("The scheduler is changed by editing the ServiceNetwork");
        let to = shop.node_ports("node1")?.first().context("a Service without a node port")?.1;
        let client = shop.outside()?;
        let requests = client.requests(Protocol::Tcp, to, RATE);
        let held = client.hold(Protocol::Tcp, to, RATE);
        let before = self.schedulers()?;
        tell(
            "$ kubectl patch servicenetwork cluster --type merge -p '{spec: {proxy: {ipvs: {scheduler: mh}}}}'",
        );
        let begin = Instant::now();
        self.cluster.apply(&service_network("{proxy: {ipvs: {scheduler: mh}}}"))?;
        patiently("ipvsadm shows mh on every node", PATIENCE, || {
            self.schedulers().is_ok_and(|seen| seen == BTreeSet::from(["mh".to_owned()]))
        })?;
        let took = seconds(begin);
        installation::wait_ready(self.cluster, 3, PATIENCE)?;
        tell("node1$ ipvsadm -Ln");
        tell(&self.cluster.output_on("node1", "ipvsadm -Ln")?);
        self.claims.check(
            "every virtual server of every node has it",
            before == BTreeSet::from(["rr".to_owned()]),
            format!("`ipvsadm -Ln`: rr before, mh after {took}"),
        )?;
        let (requests, held) = (requests.stop(), held.stop());
        self.claims.check(
            "no request was lost meanwhile",
            requests.failures.is_empty(),
            requests.to_string(),
        )?;
        self.claims.check("a held connection went on", held.failures.is_empty(), held.to_string())
    }

    fn bad_spec_is_refused(&mut self) -> Result<()> {
        self.claims.step("A mistake is refused with a sentence");
        tell("$ kubectl patch servicenetwork cluster --type merge -p '{spec: {proxy: {markBit: 14}}}'");
        let refused = self.cluster.apply(&service_network("{proxy: {markBit: 14}}"));
        let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        let sentence =
            said.lines().find(|line| line.contains("markBit")).unwrap_or_default().trim().to_owned();
        self.claims.check("the API server refuses it", sentence.contains("must be 0 to 7"), sentence)
    }

    fn status_and_events(&mut self) -> Result<()> {
        self.claims.step("Status and Events");
        tell(&self.cluster.kubectl(&["get", "servicenetwork", "cluster", "-o", "wide"])?);
        tell(&self.cluster.kubectl(&["get", "servicenetwork", "cluster", "-o", "yaml"])?);
        let events = self.cluster.kubectl(&[
            "get",
            "events",
            "-A",
            "--field-selector",
            "involvedObject.kind=ServiceNetwork",
        ])?;
        tell(&events);
        let count = events.lines().skip(1).count();
        self.claims.check(
            "Events tell of the transitions",
            count > 0,
            format!("{count} on the ServiceNetwork"),
        )
    }

    /// Something that is checked many times, and told once.
    fn require(&mut self, holds: bool, fact: &str) -> Result<()> {
        if holds { Ok(()) } else { self.claims.check("every frontend answers", false, fact) }
    }

    fn on_each(&self, command: &str) -> Result<Vec<String>> {
        NODES.iter().map(|node| self.cluster.output_on(node, command)).collect()
    }

    /// The schedulers of all virtual servers of all nodes.
    fn schedulers(&self) -> Result<BTreeSet<String>> {
        let listings = self.on_each("ipvsadm -Sn")?;
        let words = listings.iter().flat_map(|listing| listing.lines()).filter(|line| line.starts_with("-A"));
        let scheduler =
            |line: &str| line.split(" -s ").nth(1)?.split_whitespace().next().map(ToOwned::to_owned);
        Ok(words.filter_map(scheduler).collect())
    }
}

fn how_to_use_it(cluster: &Cluster) -> Result<()> {
    let described = cluster.describe()?;
    println!("\nThe cluster is up. Use it:\n");
    println!("    export KUBECONFIG={}", described.kubeconfig.display());
    println!("    alias kubectl={}", described.kubectl.display());
    println!("    kubectl get servicenetworks,servicenetworknodes -o wide");
    println!("    kubectl -n {NAMESPACE} logs daemonset/fairlead-node-agent");
    println!("    target/debug/rig cluster node run node1 -- ipvsadm -Ln");
    println!("    curl http://{}:30080/    # a node port, from this host", first_node(cluster)?);
    println!("\nTake it down:\n\n    make clean");
    Ok(())
}

fn first_node(cluster: &Cluster) -> Result<String> {
    let described = cluster.describe()?;
    let node = described.nodes.values().next().context("a cluster without nodes")?;
    Ok(node.place.address().v4.to_string())
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f32())
}
