//! What is shown, in its order. Runs as root in the machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_e2e::eventually;
use fairlead_e2e::ns::{Address, Process, Topology, addr};
use fairlead_e2e::traffic::{Client, Conn, Protocol, Server};

use crate::agent::{Agent, VirtualServer};
use crate::manifests::{ENDPOINTS, Edit, Manifests, NETWORK};
use crate::requests::Tally;
use fairlead_e2e::claims::{Claims, tell};

/// The ClusterIPs and ports of the Service in `e2e/demo/web.yaml`.
const CLUSTER_IP: Address =
    Address { v4: Ipv4Addr::new(10, 96, 0, 10), v6: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10) };
const TCP_PORT: u16 = 80;
const UDP_PORT: u16 = 53;
const TCP_NODE_PORT: u16 = 30080;
const UDP_NODE_PORT: u16 = 30053;
/// The ports the pods serve on.
const TCP_TARGET: u16 = 8080;
const UDP_TARGET: u16 = 5353;

/// Changes made while the agent was dead are right this long after its start.
const SOON: Duration = Duration::from_secs(2);
/// How long other changes are waited for; what they took is printed.
const PATIENCE: Duration = Duration::from_secs(15);

const NETWORK_PICTURE: &str = "
  pod1 10.244.1.2 --+
                    +-- node1 192.168.50.1 --+
  pod2 10.244.1.3 --+   (the agent)          +-- router --- outside 172.16.0.2
  pod3 10.244.2.2 ----- node2 192.168.50.2 --+

";

/// Shows everything; the error of the first claim that fails, with the state of the nodes printed before it.
pub fn run(agent: &Path) -> Result<()> {
    let topology = Topology::new()?;
    let shown = Demo::prepare(&topology, agent).and_then(|mut demo| demo.show());
    if shown.is_err() {
        eprintln!("\nThe state of the nodes, for whoever looks into it:\n{}", topology.diagnose());
    }
    shown
}

struct Demo<'a> {
    topology: &'a Topology,
    manifests: Manifests,
    agent: Agent<'a>,
    claims: Claims,
    /// They answer until they are dropped.
    _servers: Vec<Server>,
}

impl<'a> Demo<'a> {
    fn prepare(topology: &'a Topology, agent: &Path) -> Result<Self> {
        let manifests = Manifests::copy_to(topology.scratch("manifests")?)?;
        let agent = Agent::new(topology, agent, manifests.folder())?;
        let mut servers = Vec::new();
        for pod in [&topology.pod1, &topology.pod2, &topology.pod3] {
            servers.push(Server::start(pod, pod.name(), Protocol::Tcp, TCP_TARGET)?);
            servers.push(Server::start(pod, pod.name(), Protocol::Udp, UDP_TARGET)?);
        }
        Ok(Self { topology, manifests, agent, claims: Claims::default(), _servers: servers })
    }

    fn show(&mut self) -> Result<()> {
        let mut agent = self.agent_starts()?;
        self.frontends_answer()?;
        self.scheduler_changes()?;
        self.endpoint_is_added()?;
        let drained = self.endpoint_drains()?;
        agent = self.agent_is_killed(agent)?;
        drop(drained);
        self.look_inside()?;
        agent.terminate(Duration::from_secs(10)).context("the agent did not end when asked to")?;
        Ok(())
    }

    fn agent_starts(&mut self) -> Result<Process> {
        let claims = &mut self.claims;
        claims.step("Two nodes, three pods, and the agent");
        tell(NETWORK_PICTURE.trim_matches('\n'));
        tell("Each pod serves HTTP on port 8080 and UDP on port 5353, in IPv4 and IPv6.");
        tell("The Service demo/web has pod1 and pod3 as its endpoints (e2e/demo/*.yaml).");
        tell("$ fairlead-node-agent run --manifests e2e/demo");
        let vip = tcp(CLUSTER_IP.v4.into());
        let before = self.outside().limit(Duration::from_millis(300)).ask(Protocol::Tcp, vip);
        self.claims.check(
            "without the agent nobody answers",
            before.server().is_none(),
            before.to_string(),
        )?;
        let mut agent = self.agent.start()?;
        let took = self.agent.wait_ready(&mut agent)?;
        self.claims.check(
            "the agent is ready",
            true,
            format!("{} says so after {}", "/readyz", seconds(took)),
        )?;
        let devices = self.topology.node1.output("ip -oneline address")?;
        let on_device = CLUSTER_IP.both().iter().any(|ip| devices.contains(&format!(" {ip}/")));
        self.claims.check(
            "no device has the ClusterIPs",
            !on_device,
            "`ip address` on node1 lists neither",
        )?;
        Ok(agent)
    }

    fn frontends_answer(&mut self) -> Result<()> {
        for (index, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let [cluster_ip, node] =
                [CLUSTER_IP, addr::NODE1].map(|address| address.both().get(index).copied());
            let (cluster_ip, node) = cluster_ip.zip(node).context("an address family too many")?;
            self.claims.step(&format!("ClusterIP, {family}: from a pod, from the node, from outside"));
            self.reach(&format!("ClusterIP, {family}, TCP"), Protocol::Tcp, tcp(cluster_ip))?;
            self.reach(
                &format!("ClusterIP, {family}, UDP"),
                Protocol::Udp,
                SocketAddr::new(cluster_ip, UDP_PORT),
            )?;
            self.claims.step(&format!("NodePort, {family}: a port of the node itself"));
            self.reach(
                &format!("NodePort, {family}, TCP"),
                Protocol::Tcp,
                SocketAddr::new(node, TCP_NODE_PORT),
            )?;
            self.reach(
                &format!("NodePort, {family}, UDP"),
                Protocol::Udp,
                SocketAddr::new(node, UDP_NODE_PORT),
            )?;
        }
        Ok(())
    }

    /// Asks a frontend of pod1 and pod3 from everywhere.
    fn reach(&mut self, claim: &str, protocol: Protocol, to: SocketAddr) -> Result<()> {
        const EACH: u32 = 6;
        let topology = self.topology;
        let mut right = true;
        for (place, namespace) in
            [("pod1", &topology.pod1), ("node1", &topology.node1), ("outside", &topology.client)]
        {
            let tally = Tally::of(EACH, &Client::in_ns(namespace), protocol, to);
            tell(&format!("{place:<7} -> {protocol} {to}: {tally}; they saw {}", tally.sources()));
            right &= tally.is_from(&["pod1", "pod3"]);
        }
        let fact = if right { "18 of 18 requests answered, by pod1 and pod3" } else { "see the lines above" };
        self.claims.check(claim, right, fact)
    }

    fn scheduler_changes(&mut self) -> Result<()> {
        self.claims.step("The scheduler is changed, with a connection open");
        let vip = tcp(CLUSTER_IP.v4.into());
        let mut open = self.connection(vip, None)?;
        let scheduled = VirtualServer::connections(&self.topology.node1, vip)?;
        self.edit(NETWORK, &[Edit::Replace("scheduler: rr", "scheduler: sh")])?;
        let took = self.scheduler_becomes(vip, "sh")?;
        tell(&VirtualServer::tcp(&self.topology.node1, vip)?.text);
        self.claims.check(
            "the scheduler is changed in place",
            took <= SOON,
            format!("rr -> sh after {}", seconds(took)),
        )?;
        let now = VirtualServer::connections(&self.topology.node1, vip)?;
        // The kernel adds them up every 2 s (before 6.2), so the newest may still be missing; a new server starts at 0.
        let fact = format!("{scheduled} connections counted before, {now} after");
        self.claims.check("the counters are kept", scheduled > 0 && now >= scheduled, fact)?;
        open.still_answers(&mut self.claims, "the open connection is kept")?;
        let tally = Tally::of(8, &self.outside(), Protocol::Tcp, vip);
        let one = tally.servers().len() == 1 && tally.failed() == 0;
        self.claims.check("source hashing sends a client to one pod", one, tally.to_string())?;
        self.edit(NETWORK, &[Edit::Replace("scheduler: sh", "scheduler: rr")])?;
        self.scheduler_becomes(vip, "rr")?;
        let tally = Tally::of(6, &self.outside(), Protocol::Tcp, vip);
        self.claims.check(
            "round robin takes turns again",
            tally.is_from(&["pod1", "pod3"]),
            tally.to_string(),
        )
    }

    fn scheduler_becomes(&self, vip: SocketAddr, scheduler: &str) -> Result<Duration> {
        let start = Instant::now();
        eventually(&format!("the scheduler is {scheduler}"), PATIENCE, || {
            VirtualServer::tcp(&self.topology.node1, vip).is_ok_and(|server| server.scheduler == scheduler)
        })?;
        Ok(start.elapsed())
    }

    fn endpoint_is_added(&mut self) -> Result<()> {
        self.claims.step("An endpoint is added: pod2");
        self.edit(
            ENDPOINTS,
            &[
                Edit::AddBehind("10.244.1.2", "- {addresses: [10.244.1.3], nodeName: node1}"),
                Edit::AddBehind("fd00:244:1::2", "- {addresses: [\"fd00:244:1::3\"], nodeName: node1}"),
            ],
        )?;
        let took = self.watch_for("pod2", None)?;
        self.claims.check(
            "it gets requests",
            took <= SOON,
            format!("in both families after {}", seconds(took)),
        )?;
        self.answered_by(&["pod1", "pod2", "pod3"], "all three take turns")
    }

    /// Returns the connection, still open.
    fn endpoint_drains(&mut self) -> Result<Open> {
        self.claims.step("An endpoint is removed while a connection to it is open: pod1");
        let vip = tcp(CLUSTER_IP.v4.into());
        let mut open = self.connection(vip, Some("pod1"))?;
        self.edit(ENDPOINTS, &[Edit::Remove("10.244.1.2"), Edit::Remove("fd00:244:1::2")])?;
        let backend = SocketAddr::new(addr::POD1.v4.into(), TCP_TARGET);
        let start = Instant::now();
        eventually("pod1 has weight 0", PATIENCE, || {
            VirtualServer::tcp(&self.topology.node1, vip)
                .is_ok_and(|server| server.weight(backend) == Some(0))
        })?;
        let took = start.elapsed();
        tell(&VirtualServer::tcp(&self.topology.node1, vip)?.text);
        self.claims.check("it drains", true, format!("weight 0 after {}", seconds(took)))?;
        open.still_answers(&mut self.claims, "the open connection goes on")?;
        let bytes = 1_000_000;
        let downloaded = open.conn.download(bytes);
        let fact = match &downloaded {
            Ok(()) => format!("{bytes} bytes came through it"),
            Err(interrupted) => format!("{} of {bytes} bytes: {}", interrupted.bytes, interrupted.outcome),
        };
        self.claims.check("a download over it is whole", downloaded.is_ok(), fact)?;
        self.answered_by(&["pod2", "pod3"], "it gets no new connection")?;
        Ok(open)
    }

    fn agent_is_killed(&mut self, agent: Process) -> Result<Process> {
        self.claims
            .step("The agent is killed under a stream of requests; the endpoints change while it is dead");
        let mut open = self.connection(tcp(CLUSTER_IP.v4.into()), Some("pod2"))?;
        let streams = [
            (self.outside(), CLUSTER_IP.v4.into()),
            (Client::in_ns(&self.topology.pod2), CLUSTER_IP.v6.into()),
        ]
        .map(|(client, ip)| client.requests(Protocol::Tcp, tcp(ip), 25));
        let sent = || streams.iter().map(|stream| stream.so_far().sent).sum::<u64>();
        std::thread::sleep(Duration::from_secs(1));
        let pid = agent.pid();
        agent.kill()?;
        let (killed, sent_before) = (Instant::now(), sent());
        tell(&format!("$ kill -9 {pid}"));
        self.claims.check(
            "the agent is dead",
            !self.agent.answers(),
            "its port 10249 refuses connections",
        )?;
        self.edit(
            ENDPOINTS,
            &[
                Edit::Remove("10.244.2.2"),
                Edit::AddBehind("10.244.1.3", "- {addresses: [10.244.1.2], nodeName: node1}"),
                Edit::Remove("fd00:244:2::2"),
                Edit::AddBehind("fd00:244:1::3", "- {addresses: [\"fd00:244:1::2\"], nodeName: node1}"),
            ],
        )?;
        std::thread::sleep(Duration::from_secs(2));
        let sent_dead = sent() - sent_before;
        let fact = format!("{sent_dead} requests sent in {}", seconds(killed.elapsed()));
        self.claims.check("requests go on meanwhile", sent_dead > 0, fact)?;

        tell("$ fairlead-node-agent run --manifests e2e/demo");
        let mut agent = self.agent.start()?;
        let took = self.watch_for("pod1", Some("pod3"))?;
        let fact = format!("pod3 out and pod1 in, {} after the agent's start", seconds(took));
        self.claims.check("both changes are right within 2 s", took <= SOON, fact)?;
        self.answered_by(&["pod1", "pod2"], "and stay right")?;
        self.agent.wait_ready(&mut agent)?;
        std::thread::sleep(Duration::from_secs(1));
        let reports = streams.map(fairlead_e2e::traffic::RequestStream::stop);
        for (family, report) in ["IPv4 from outside", "IPv6 from pod2  "].iter().zip(&reports) {
            tell(&format!("{family}: {report}"));
        }
        let (sent, answered) =
            reports.iter().fold((0, 0), |(sent, ok), report| (sent + report.sent, ok + report.ok));
        let fact = format!("{sent} sent, {answered} answered, {} lost", sent - answered);
        self.claims.check("no request is lost", sent == answered, fact)?;
        open.still_answers(&mut self.claims, "a connection opened before is kept")?;
        Ok(agent)
    }

    fn look_inside(&mut self) -> Result<()> {
        self.claims.step("The dataplane, by other eyes than the agent's");
        // The snapshot that inspect reads follows a change by a second.
        let mut inspected = self.agent.inspect();
        let start = Instant::now();
        while inspected.is_err() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(200));
            inspected = self.agent.inspect();
        }
        let inspected = inspected?;
        self.claims.check(
            "inspect finds no difference",
            true,
            "the kernel has what the manifests ask for",
        )?;
        let metrics = self.agent.metrics()?;
        let chosen: Vec<_> = metrics.lines().filter(|line| is_shown(line)).collect();
        let restored = value(&metrics, "fairlead_restored_objects").unwrap_or_default();
        let fact = format!("{restored} kernel objects were taken over, not made again");
        self.claims.check("the restart was a take-over", restored > 0.0, fact)?;
        let listing = self.topology.node1.output("ipvsadm -Ln")?;

        println!("\nWhat was claimed, and what was measured\n\n{}", self.claims.table());
        for (command, printed) in [
            ("ipvsadm -Ln", listing.as_str()),
            ("fairlead-node-agent inspect", inspected.as_str()),
            ("curl -s http://127.0.0.1:10249/metrics    # a few of them", &chosen.join("\n")),
        ] {
            println!("node1 $ {command}\n{}\n", printed.trim_end());
        }
        Ok(())
    }

    /// Asks both families until `new` answers in both and, from then on, `old` in neither: how long that took.
    /// Goes on a little after that, so that an `old` that comes back is seen.
    fn watch_for(&self, new: &str, old: Option<&str>) -> Result<Duration> {
        let (start, outside) = (Instant::now(), self.outside());
        let mut waiting: BTreeSet<IpAddr> = CLUSTER_IP.both().into();
        let mut right_at = Duration::ZERO;
        let mut seen_last = Duration::ZERO;
        let settled = |right_at: Duration| start.elapsed() > right_at + Duration::from_secs(1);
        while !(waiting.is_empty() && settled(right_at.max(seen_last))) && start.elapsed() < PATIENCE {
            for ip in CLUSTER_IP.both() {
                let outcome = outside.ask(Protocol::Tcp, tcp(ip));
                let Some(server) = outcome.server() else { bail!("a request to {ip} was {outcome}") };
                if server == new && waiting.remove(&ip) {
                    right_at = start.elapsed();
                }
                if Some(server) == old {
                    seen_last = start.elapsed();
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if !waiting.is_empty() || !settled(seen_last) {
            bail!("{new} got no requests, or others went on to get them, for {}", seconds(start.elapsed()));
        }
        Ok(right_at.max(seen_last))
    }

    /// Claims that the Service is answered by `pods` and no other, in both families.
    fn answered_by(&mut self, pods: &[&str], claim: &str) -> Result<()> {
        let tallies = CLUSTER_IP.both().map(|ip| Tally::of(12, &self.outside(), Protocol::Tcp, tcp(ip)));
        let [v4, v6] = &tallies;
        let right = tallies.iter().all(|tally| tally.is_from(pods));
        self.claims.check(claim, right, format!("IPv4: {v4}; IPv6: {v6}"))
    }

    /// Opens a connection from outside, to `wanted` if it is to be a certain pod.
    fn connection(&self, to: SocketAddr, wanted: Option<&str>) -> Result<Open> {
        for _ in 0..9 {
            let conn = self.outside().connect(Protocol::Tcp, to);
            let mut conn = conn.map_err(|outcome| anyhow::anyhow!("a connection to {to}: {outcome}"))?;
            let outcome = conn.ask();
            let server =
                outcome.server().with_context(|| format!("a request to {to}: {outcome}"))?.to_owned();
            if wanted.is_none_or(|wanted| wanted == server) {
                tell(&format!("a connection from outside to {to} is open; {server} has it"));
                return Ok(Open { conn, server });
            }
        }
        bail!("none of nine connections went to {}", wanted.unwrap_or_default())
    }

    fn edit(&self, file: &str, edits: &[Edit<'_>]) -> Result<()> {
        tell(&self.manifests.edit(file, edits)?);
        Ok(())
    }

    fn outside(&self) -> Client {
        Client::in_ns(&self.topology.client)
    }
}

/// A connection that is kept open, and who has it.
struct Open {
    conn: Conn,
    server: String,
}

impl Open {
    fn still_answers(&mut self, claims: &mut Claims, claim: &str) -> Result<()> {
        let outcome = self.conn.ask();
        claims.check(claim, outcome.server() == Some(&self.server), format!("asked over it again: {outcome}"))
    }
}

fn tcp(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, TCP_PORT)
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f32())
}

/// A few metrics that say what has happened here.
fn is_shown(line: &str) -> bool {
    const NAMES: [&str; 8] = [
        "fairlead_service_ports",
        "fairlead_restored_objects",
        "fairlead_pruned_objects",
        "fairlead_kernel_operations",
        "fairlead_repairs",
        "fairlead_ipvs_connections",
        "kubeproxy_sync_proxy_rules_duration_seconds_sum",
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
    ];
    NAMES.iter().any(|name| line.starts_with(name))
}

/// The value of a metric without labels.
fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_a_metric_is_found_by_its_whole_name() {
        let metrics = "fairlead_restored_objects_x 3\nfairlead_restored_objects 12\n";
        assert_eq!(value(metrics, "fairlead_restored_objects"), Some(12.0));
        assert_eq!(value(metrics, "fairlead_restored"), None);
    }
}
