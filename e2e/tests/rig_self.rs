//! The rig, tried on the kernel that the tests of the agent run on.
//!
//! Run by `rig test`: these need root and a kernel with ip_vs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fairlead_e2e::cluster::node::cgroup;
use fairlead_e2e::eventually;
use fairlead_e2e::ns::{Address, Namespace, PodLinks, Topology, addr};
use fairlead_e2e::process::output_of;
use fairlead_e2e::traffic::{Client, Outcome, Protocol, Server};

const PORT: u16 = 8080;

/// Asks from one place to another over both families and every protocol.
fn assert_reaches(from: &Namespace, source: Address, to: Address, server: &str) {
    for protocol in Protocol::ALL {
        for (source, to) in source.both().into_iter().zip(to.both()) {
            let outcome = Client::in_ns(from).ask(protocol, SocketAddr::new(to, PORT));
            let expected = Outcome::Answer { server: server.to_owned(), saw_source: source };
            assert_eq!(outcome, expected, "{protocol} from {} to {to}", from.name());
        }
    }
}

fn serve(namespace: &Namespace) -> anyhow::Result<Vec<Server>> {
    let start = |protocol| Server::start(namespace, namespace.name(), protocol, PORT);
    Protocol::ALL.into_iter().map(start).collect()
}

#[test]
fn ip_vs_and_its_schedulers_load_and_balance() {
    let topology = Topology::new().unwrap();
    output_of(Command::new("modprobe").args(["-a", "ip_vs", "ip_vs_rr", "ip_vs_mh"])).unwrap();
    topology.node1.output("ipvsadm -A -t 10.96.0.10:80 -s rr").unwrap();
    topology.node1.output("ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.2:8080 -m").unwrap();
    let listing = topology.node1.output("ipvsadm -Ln").unwrap();
    assert!(listing.contains("10.96.0.10:80 rr") && listing.contains("10.244.1.2:8080"), "{listing}");
    assert!(
        !topology.node2.output("ipvsadm -Ln").unwrap().contains("10.96.0.10"),
        "IPVS is not per namespace"
    );
}

#[test]
fn namespaces_do_not_see_each_other() {
    let [one, two] = ["one", "two"].map(|name| Namespace::new(name).unwrap());
    let _server = Server::start(&one, "one", Protocol::Tcp, PORT).unwrap();
    let localhost = SocketAddr::new("127.0.0.1".parse().unwrap(), PORT);
    assert_eq!(Client::in_ns(&one).ask(Protocol::Tcp, localhost).server(), Some("one"));
    assert_eq!(Client::in_ns(&two).ask(Protocol::Tcp, localhost), Outcome::Refused);

    one.sysctl("net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(one.read_sysctl("net/ipv4/ip_forward").unwrap(), "1");
    assert_eq!(two.read_sysctl("net/ipv4/ip_forward").unwrap(), "0");

    one.nft("add table inet mine").unwrap();
    assert!(!two.output("nft list tables").unwrap().contains("mine"));
    assert_ne!(one.inode().unwrap(), two.inode().unwrap());
}

#[test]
fn pods_nodes_and_the_client_outside_reach_each_other_in_every_protocol_and_family() {
    for links in [PodLinks::Routed, PodLinks::Bridged] {
        let topology = Topology::builder().pod_links(links).build().unwrap();
        let _servers: Vec<_> =
            [&topology.pod1, &topology.pod2, &topology.pod3].map(|pod| serve(pod).unwrap()).into();
        // beside it, on the other node and back, from outside, from the node
        assert_reaches(&topology.pod1, addr::POD1, addr::POD2, "pod2");
        assert_reaches(&topology.pod1, addr::POD1, addr::POD3, "pod3");
        assert_reaches(&topology.pod3, addr::POD3, addr::POD2, "pod2");
        assert_reaches(&topology.client, addr::CLIENT, addr::POD1, "pod1");
        assert_reaches(&topology.node1, addr::GATEWAY1, addr::POD1, "pod1");
    }
}

#[test]
fn what_no_route_is_known_for_goes_from_outside_to_node1() {
    let topology = Topology::new().unwrap();
    let vip = SocketAddr::new("203.0.113.7".parse().unwrap(), PORT);
    topology.node1.ip(&["addr add 203.0.113.7/32 dev lo"]).unwrap();
    let _server = Server::at(&topology.node1, "node1", Protocol::Tcp, &[vip]).unwrap();
    assert_eq!(Client::in_ns(&topology.client).ask(Protocol::Tcp, vip).server(), Some("node1"));
}

#[test]
fn clients_tell_a_refusal_from_silence_and_from_a_closed_way() {
    let topology = Topology::new().unwrap();
    let client = Client::in_ns(&topology.pod1).limit(Duration::from_millis(500));
    for address in addr::POD2.both() {
        let to = SocketAddr::new(address, PORT);
        for protocol in Protocol::ALL {
            assert_eq!(client.ask(protocol, to), Outcome::Refused, "{protocol} to {to}");
        }
    }
    topology
        .pod2
        .nft(
            "table inet closed {
                 chain input {
                     type filter hook input priority 0;
                     th dport 1 drop
                     th dport 2 reject with icmpx type admin-prohibited
                 }
             }",
        )
        .unwrap();
    for address in addr::POD2.both() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let dropped = client.ask(protocol, SocketAddr::new(address, 1));
            assert_eq!(dropped, Outcome::TimedOut, "{protocol} to {address}");
            // the answer to a first SYN comes while connect() still holds the socket, and counts from the second on
            let patient = Client::in_ns(&topology.pod1);
            let rejected = patient.ask(protocol, SocketAddr::new(address, 2));
            assert_eq!(rejected, Outcome::Unreachable, "{protocol} to {address}");
        }
    }
}

#[test]
fn a_kept_connection_is_cut_with_its_server() {
    let topology = Topology::new().unwrap();
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        let server = Server::start(&topology.pod3, "pod3", protocol, PORT).unwrap();
        let to = SocketAddr::new(addr::POD3.v4.into(), PORT);
        let mut conn = Client::in_ns(&topology.pod1).connect(protocol, to).unwrap();
        assert_eq!(conn.ask().server(), Some("pod3"));
        assert_eq!(conn.download(3_000_000), Ok(()), "{protocol}");
        assert_eq!(conn.upload(300_000), Ok(()), "{protocol}");
        assert_eq!(conn.ask().server(), Some("pod3"));
        drop(server);
        assert_eq!(conn.ask(), Outcome::Reset, "{protocol}");
    }
}

#[test]
fn datagrams_larger_than_a_packet_go_both_ways() {
    let topology = Topology::new().unwrap();
    let _server = Server::start(&topology.pod3, "pod3", Protocol::Udp, PORT).unwrap();
    for address in addr::POD3.both() {
        let mut flow =
            Client::in_ns(&topology.pod1).connect(Protocol::Udp, SocketAddr::new(address, PORT)).unwrap();
        assert_eq!(flow.upload(4000), Ok(()), "to {address}");
        assert_eq!(flow.download(4000), Ok(()), "from {address}");
    }
}

#[test]
fn a_stream_of_requests_records_what_is_lost() {
    let topology = Topology::new().unwrap();
    let server = Server::start(&topology.pod2, "pod2", Protocol::Tcp, PORT).unwrap();
    let to = SocketAddr::new(addr::POD2.v4.into(), PORT);
    let stream = Client::in_ns(&topology.pod1).requests(Protocol::Tcp, to, 50);
    eventually("ten requests are answered", Duration::from_secs(20), || stream.so_far().ok >= 10).unwrap();
    assert_eq!(stream.so_far().failures, []);
    drop(server);
    eventually("a request fails", Duration::from_secs(20), || !stream.so_far().failures.is_empty()).unwrap();
    let report = stream.stop();
    assert_eq!(report.sent, report.ok + u64::try_from(report.failures.len()).unwrap());
    assert_eq!(report.by_server.get("pod2"), Some(&report.ok));
    let lost = report.failures.last().unwrap();
    assert!(matches!(lost.outcome, Outcome::Refused | Outcome::Reset), "{report}");
}

#[test]
fn a_failure_shows_the_state_of_the_nodes_and_the_logs_of_their_programs() {
    let topology = Topology::new().unwrap();
    topology.node1.nft("add table inet evidence").unwrap();
    topology.node2.output("ip rule add pref 77 lookup 777").unwrap();
    let mut program =
        topology.start("agent", topology.node1.command("sh").args(["-c", "echo could not; exit 3"])).unwrap();
    assert_eq!(program.wait(Duration::from_secs(20)).unwrap().code(), Some(3));
    let report = topology.diagnose();
    for evidence in ["node1 # nft list ruleset", "table inet evidence", "77:", "agent.log", "could not"] {
        assert!(report.contains(evidence), "no {evidence:?} in:\n{report}");
    }
    assert!(!report.contains("failed to start"), "a tool is missing:\n{report}");
}

#[test]
fn nothing_is_left_of_a_topology() {
    let topology = Topology::new().unwrap();
    let held = topology.start("held", topology.node1.command("sleep").arg("1000")).unwrap();
    // a daemon that left its parent, as a program under test may leave one behind
    let pid_file = tempfile::NamedTempFile::new().unwrap();
    let leave =
        format!("setsid sh -c 'echo $$ >{}; exec sleep 1000' >/dev/null 2>&1 &", pid_file.path().display());
    output_of(topology.pod1.command("sh").args(["-c", &leave])).unwrap();
    let mut stray = String::new();
    eventually("the daemon runs", Duration::from_secs(20), || {
        stray = std::fs::read_to_string(pid_file.path()).unwrap().trim().to_owned();
        !stray.is_empty()
    })
    .unwrap();
    let stray = format!("/proc/{stray}/ns/net");
    assert!(Path::new(&stray).exists());
    // the far end of this link vanishes with the namespace it is in, once the kernel has taken that down
    let witness = Namespace::new("witness").unwrap();
    witness.ip(&[format!("link add far type veth peer name near netns {}", topology.node1.path())]).unwrap();
    let pid = held.pid();
    drop(held);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    drop(topology);
    assert!(!Path::new(&stray).exists());
    eventually("the namespace of node1 is gone", Duration::from_secs(20), || {
        !witness.output("ip link").unwrap().contains("far")
    })
    .unwrap();
}

#[test]
fn a_nodes_control_group_can_hold_those_of_its_pods_and_is_removed_with_them() {
    let root = Path::new("/sys/fs/cgroup/fairlead-self");
    cgroup::make("/fairlead-self/node1").unwrap();
    let pods = root.join("node1/kubepods/pod1");
    std::fs::create_dir_all(&pods).unwrap();
    let controllers = std::fs::read_to_string(root.join("node1/kubepods/cgroup.controllers")).unwrap();
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        assert!(controllers.contains(controller), "{controller} is not passed on: {controllers}");
    }
    // what was killed may still be there for a moment
    let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(pods.join("cgroup.procs"), sleep.id().to_string()).unwrap();
    let reaped = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        sleep.kill().and_then(|()| sleep.wait())
    });
    cgroup::remove("/fairlead-self/node1").unwrap();
    reaped.join().unwrap().unwrap();
    assert!(root.exists() && !root.join("node1").exists());
    cgroup::remove("/fairlead-self").unwrap();
    assert!(!root.exists());
}
