//! The IPVS client on a real kernel, each test in a network namespace of its own, checked with
//! `ipvsadm`. Needs root and the module `ip_vs` with its schedulers.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, BorrowedFd},
    process::Command,
    time::{Duration, Instant},
};

use fairlead_crds::Scheduler;
use fairlead_node_agent::{
    ipvs::{
        Client, Forward, IpvsOp, RealServer, Stats, Timeouts, VirtualServer, VirtualServerKey, is_gone,
        is_present,
    },
    model::{Family, Protocol},
    netlink::{NetlinkError, Socket},
};

const GENERIC_NETLINK: i32 = 16;
const MARK: u32 = 520_097_793;

fn namespace() -> Client {
    // SAFETY: the namespace of this thread alone changes, file descriptors stay.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .expect("a network namespace of its own (root?)");
    run("ip link set lo up");
    Client::open().expect("the kernel's IPVS (modprobe ip_vs)")
}

fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `ipvsadm` would need to make the table again.
fn saved() -> BTreeSet<String> {
    run("ipvsadm -S -n").lines().map(|line| line.trim().to_owned()).collect()
}

fn lines(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|line| (*line).to_owned()).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn key(protocol: Protocol, text: &str) -> VirtualServerKey {
    VirtualServerKey::Address { protocol, address: address(text) }
}

fn fwmark(family: Family) -> VirtualServerKey {
    VirtualServerKey::Fwmark { family, mark: MARK }
}

fn apply(client: &mut Client, ops: &[IpvsOp]) {
    for (op, verdict) in ops.iter().zip(client.apply(ops).unwrap()) {
        assert_eq!(verdict, Ok(()), "{op}");
    }
}

/// All kinds of key with a backend of its family each, and the words of `ipvsadm` for both.
fn all_kinds() -> Vec<(VirtualServerKey, SocketAddr, &'static str, &'static str)> {
    let (v4, v6) = (address("10.244.1.7:8080"), address("[fd00:10:244::7]:8080"));
    let (r4, r6) = ("10.244.1.7:8080", "[fd00:10:244::7]:8080");
    vec![
        (key(Protocol::Tcp, "10.96.0.10:80"), v4, "-t 10.96.0.10:80", r4),
        (key(Protocol::Udp, "10.96.0.10:80"), v4, "-u 10.96.0.10:80", r4),
        (key(Protocol::Sctp, "10.96.0.10:80"), v4, "--sctp-service 10.96.0.10:80", r4),
        (key(Protocol::Tcp, "[fd00:10:96::a]:80"), v6, "-t [fd00:10:96::a]:80", r6),
        (key(Protocol::Udp, "[fd00:10:96::a]:80"), v6, "-u [fd00:10:96::a]:80", r6),
        (key(Protocol::Sctp, "[fd00:10:96::a]:80"), v6, "--sctp-service [fd00:10:96::a]:80", r6),
        (fwmark(Family::V4), v4, "-f 520097793", r4),
        (fwmark(Family::V6), v6, "-f 520097793 -6", r6),
    ]
}

#[test]
fn every_operation_works_for_every_kind_of_key_as_ipvsadm_sees_it() {
    let mut client = namespace();
    for (key, backend, service, real) in all_kinds() {
        let other = SocketAddr::new(backend.ip(), 9090);
        let second = real.replace("8080", "9090");
        apply(
            &mut client,
            &[
                IpvsOp::AddService { key, scheduler: Scheduler::Rr },
                IpvsOp::AddDest { key, address: backend, weight: 100 },
                IpvsOp::AddDest { key, address: other, weight: 1 },
            ],
        );
        let add = format!("-A {service} -s");
        let dest = |real: &str, weight| format!("-a {service} -r {real} -m -w {weight}");
        assert_eq!(saved(), [format!("{add} rr"), dest(real, 100), dest(&second, 1)].into());

        apply(
            &mut client,
            &[
                IpvsOp::SetService { key, scheduler: Scheduler::Mh },
                IpvsOp::SetDest { key, address: backend, weight: 0 },
                IpvsOp::DelDest { key, address: other },
            ],
        );
        assert_eq!(saved(), [format!("{add} mh"), dest(real, 0)].into());

        let [(server, _, dests)] = client.dump().unwrap().try_into().unwrap();
        assert_eq!((server.key, server.scheduler.as_str()), (key, "mh"));
        assert!(server.is_plain());
        assert_eq!(dests, client.dests(&key).unwrap());
        let [dest] = dests.try_into().unwrap();
        assert_eq!((dest.address, dest.weight, dest.forward), (backend, 0, Forward::Masquerade));

        apply(&mut client, &[IpvsOp::DelService { key }]);
        assert_eq!(saved(), BTreeSet::new());
        assert_eq!(client.dests(&key).unwrap(), []);
    }
}

#[test]
fn every_scheduler_is_set_in_place_and_connections_and_counters_stay() {
    let mut client = namespace();
    run("ip addr add 10.96.0.10/32 dev lo");
    let listener = TcpListener::bind("127.0.0.1:8080").unwrap();
    let service = key(Protocol::Tcp, "10.96.0.10:80");
    let backend = address("127.0.0.1:8080");
    apply(
        &mut client,
        &[
            IpvsOp::AddService { key: service, scheduler: Scheduler::Rr },
            IpvsOp::AddDest { key: service, address: backend, weight: 1 },
        ],
    );
    let mut connection = TcpStream::connect("10.96.0.10:80").unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let mut say = |byte: u8| {
        connection.write_all(&[byte]).unwrap();
        let mut heard = [0];
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [byte]);
    };
    say(1);
    let before = wait_for_counters(&mut client);
    assert_eq!(before.connections, 1);

    for scheduler in Scheduler::ALL {
        apply(&mut client, &[IpvsOp::SetService { key: service, scheduler }]);
        say(2);
        let [(server, stats, dests)] = client.dump().unwrap().try_into().unwrap();
        assert_eq!(server.scheduler, scheduler.as_str());
        assert!(stats.connections == 1 && stats.packets_in >= before.packets_in, "{scheduler}: {stats:?}");
        assert_eq!(dests[0].active_connections, 1, "{scheduler}");
    }
}

/// The kernel adds its counters up every two seconds.
fn wait_for_counters(client: &mut Client) -> Stats {
    let start = Instant::now();
    loop {
        let [(_, stats)] = client.stats().unwrap().try_into().unwrap();
        if stats.connections > 0 {
            return stats;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "no counters");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn setting_a_service_takes_the_persistence_and_the_flags_of_others_away() {
    let mut client = namespace();
    run("ipvsadm -A -t 10.96.0.12:443 -s mh -b mh-fallback,mh-port -p 10800 -M 255.255.255.0");
    run("ipvsadm -A -t [fd00:10:96::c]:443 -s rr -p 300 -M 64");
    let keys = [key(Protocol::Tcp, "10.96.0.12:443"), key(Protocol::Tcp, "[fd00:10:96::c]:443")];
    assert!(client.stats().unwrap().iter().all(|(server, _)| !server.is_plain()));
    apply(&mut client, &keys.map(|key| IpvsOp::SetService { key, scheduler: Scheduler::Mh }));
    assert_eq!(saved(), lines(&["-A -t 10.96.0.12:443 -s mh", "-A -t [fd00:10:96::c]:443 -s mh"]));
    assert!(client.stats().unwrap().iter().all(|(server, _)| server.is_plain()));
}

#[test]
fn refusals_are_told_apart() {
    let mut client = namespace();
    let (service, backend) = (key(Protocol::Tcp, "10.96.0.10:80"), address("10.244.1.7:8080"));
    let absent = key(Protocol::Udp, "10.96.0.10:80");
    let add = IpvsOp::AddService { key: service, scheduler: Scheduler::Rr };
    let add_dest = IpvsOp::AddDest { key: service, address: backend, weight: 1 };
    let del_dest = IpvsOp::DelDest { key: service, address: backend };
    let verdicts = client
        .apply(&[
            add,
            add,
            add_dest,
            add_dest,
            del_dest,
            del_dest,
            IpvsOp::SetDest { key: service, address: backend, weight: 1 },
            IpvsOp::SetService { key: absent, scheduler: Scheduler::Rr },
            IpvsOp::AddDest { key: absent, address: backend, weight: 1 },
            IpvsOp::DelDest { key: absent, address: backend },
            IpvsOp::DelService { key: absent },
            IpvsOp::AddDest { key: service, address: address("[fd00:10:244::7]:8080"), weight: 1 },
        ])
        .unwrap();
    let words: Vec<_> = verdicts
        .into_iter()
        .map(|verdict| match verdict {
            Ok(()) => "done".to_owned(),
            Err(error) if is_present(&error) => "present".to_owned(),
            Err(error) if is_gone(&error) => "gone".to_owned(),
            Err(error) => error.to_string(),
        })
        .collect();
    assert_eq!(
        words[..11],
        ["done", "present", "done", "present", "done", "gone", "gone", "gone", "gone", "gone", "gone"]
    );
    // masquerading does not lead from one family to the other
    assert!(words[11].contains("Invalid argument"), "{}", words[11]);
}

#[test]
fn twenty_thousand_operations_are_answered_in_order() {
    let mut client = namespace();
    let service = key(Protocol::Tcp, "10.96.0.10:80");
    let backend = |n: usize| -> SocketAddr {
        let n = u32::try_from(n).unwrap();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + n % 2000)), 8080)
    };
    let mut ops = vec![IpvsOp::AddService { key: service, scheduler: Scheduler::Rr }];
    // The first 2,000 add, all that follow change; now and then one that must fail.
    for n in 0..20_000 {
        ops.push(match n {
            _ if n % 97 == 96 => IpvsOp::DelDest { key: service, address: address("10.1.1.1:1") },
            _ if n % 89 == 88 => IpvsOp::AddService { key: service, scheduler: Scheduler::Rr },
            _ if n < 2000 => IpvsOp::AddDest { key: service, address: backend(n), weight: 1 },
            _ => IpvsOp::SetDest { key: service, address: backend(n), weight: 2 },
        });
    }
    let start = Instant::now();
    let verdicts = client.apply(&ops).unwrap();
    println!("{} operations in {:?}", ops.len(), start.elapsed());
    assert_eq!(verdicts.len(), ops.len());
    let mut there = BTreeSet::new();
    for (index, (op, verdict)) in ops.iter().zip(&verdicts).enumerate() {
        let fits = match op {
            IpvsOp::AddService { .. } if index == 0 => verdict.is_ok(),
            IpvsOp::AddService { .. } => verdict.as_ref().is_err_and(is_present),
            IpvsOp::AddDest { address, .. } => {
                there.insert(*address);
                verdict.is_ok()
            }
            IpvsOp::SetDest { address, .. } if there.contains(address) => verdict.is_ok(),
            _ => verdict.as_ref().is_err_and(is_gone),
        };
        assert!(fits, "operation {index}, {op}: {verdict:?}");
    }
    let dests = client.dests(&service).unwrap();
    assert_eq!(dests.iter().map(|dest| dest.address).collect::<BTreeSet<_>>(), there);
}

#[test]
fn what_others_made_is_read_and_left() {
    let mut client = namespace();
    for line in [
        "-A --sctp-service 10.96.0.11:7777 -s wrr",
        "-A -f 17 -s sed",
        "-a -f 17 -r 10.244.1.9:80 -i -w 3 --tun-type gue --tun-port 6080 --tun-nocsum",
        "-a -f 17 -r 10.244.1.8:80 -i -w 3",
        "-A -f 17 -6 -s nq",
        "-a -f 17 -6 -r [fd00:10:244::9]:8443 -m -w 1",
        "-A -t 10.96.0.12:443 -s mh -b mh-fallback,mh-port -p 10800 -M 255.255.255.0",
        "-A -t [fd00:10:96::c]:443 -s sh -p 300 -M 64",
        "-A -u 10.96.0.13:0 -s rr -p 60 -o",
        "-A -t 10.96.0.14:21 -s wlc",
        "-a -t 10.96.0.14:21 -r 10.244.1.9:21 -g -w 65535 -x 10 -y 5",
        "-a -t 10.96.0.14:21 -r [fd00:10:244::9]:21 -i -w 1",
    ] {
        run(&format!("ipvsadm {line}"));
    }
    let before = saved();
    let own = key(Protocol::Tcp, "10.96.0.10:80");
    apply(&mut client, &[IpvsOp::AddService { key: own, scheduler: Scheduler::Rr }]);

    let table: BTreeMap<VirtualServerKey, (VirtualServer, Vec<RealServer>)> =
        client.dump().unwrap().into_iter().map(|(server, _, dests)| (server.key, (server, dests))).collect();
    assert_eq!(table.len(), 8);
    let scheduler = |key: &VirtualServerKey| table[key].0.scheduler.as_str();
    assert_eq!(scheduler(&key(Protocol::Sctp, "10.96.0.11:7777")), "wrr");
    assert_eq!(scheduler(&VirtualServerKey::Fwmark { family: Family::V6, mark: 17 }), "nq");
    let plain = |key: &VirtualServerKey| table[key].0.is_plain();
    assert!(!plain(&key(Protocol::Tcp, "10.96.0.12:443")));
    assert!(!plain(&key(Protocol::Tcp, "[fd00:10:96::c]:443")));
    assert!(!plain(&key(Protocol::Udp, "10.96.0.13:0")));
    let tunnels = &table[&VirtualServerKey::Fwmark { family: Family::V4, mark: 17 }].1;
    assert!(
        tunnels.len() == 2 && tunnels.iter().all(|dest| dest.forward == Forward::Other(2)),
        "{tunnels:?}"
    );
    let mixed = &table[&key(Protocol::Tcp, "10.96.0.14:21")].1;
    let mixed: BTreeSet<_> = mixed.iter().map(|dest| dest.address).collect();
    assert_eq!(mixed, [address("10.244.1.9:21"), address("[fd00:10:244::9]:21")].into());

    apply(&mut client, &[IpvsOp::DelService { key: own }]);
    assert_eq!(saved(), before);
}

fn fill(client: &mut Client, services: u32, backends: u16) -> Vec<IpvsOp> {
    let mut ops = Vec::new();
    for n in 0..services {
        let vip = IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + n));
        let key = VirtualServerKey::Address { protocol: Protocol::Tcp, address: SocketAddr::new(vip, 80) };
        ops.push(IpvsOp::AddService { key, scheduler: Scheduler::Rr });
        ops.extend((0..backends).map(|port| {
            let pod = IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + n));
            IpvsOp::AddDest { key, address: SocketAddr::new(pod, 8000 + port), weight: 1 }
        }));
    }
    let start = Instant::now();
    apply(client, &ops);
    println!("{services} services x {backends}: {} operations in {:?}", ops.len(), start.elapsed());
    ops
}

#[test]
fn two_thousand_services_are_dumped_whole() {
    let mut client = namespace();
    fill(&mut client, 2000, 5);
    let start = Instant::now();
    let table = client.dump().unwrap();
    let whole = start.elapsed();
    let start = Instant::now();
    assert_eq!(client.stats().unwrap().len(), 2000);
    println!("dump in {whole:?}, its services alone in {:?}", start.elapsed());
    assert_eq!(table.len(), 2000);
    for (server, _, dests) in &table {
        let VirtualServerKey::Address { address, .. } = server.key else { panic!("{}", server.key) };
        let IpAddr::V4(vip) = address.ip() else { panic!("{address}") };
        let pod = Ipv4Addr::from_bits(vip.to_bits() - 0x0a60_0000 + 0x0af4_0000);
        let expected: BTreeSet<_> = (8000..8005).map(|port| SocketAddr::new(IpAddr::V4(pod), port)).collect();
        assert_eq!(dests.iter().map(|dest| dest.address).collect::<BTreeSet<_>>(), expected);
    }
    assert!(whole < Duration::from_secs(30), "{whole:?}");
}

#[test]
fn lost_answers_are_an_error_and_never_taken_for_others() {
    drop(namespace());
    let socket = Socket::open(GENERIC_NETLINK).unwrap();
    let descriptor = socket.as_raw_fd();
    let mut client = Client::on(socket).unwrap();
    let service = key(Protocol::Tcp, "10.96.0.10:80");
    apply(&mut client, &[IpvsOp::AddService { key: service, scheduler: Scheduler::Rr }]);

    // SAFETY: the client, which owns the descriptor, lives until the end of the test.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    // the least that the kernel grants: two or three acknowledgements
    rustix::net::sockopt::set_socket_recv_buffer_size(borrowed, 1).unwrap();
    let dests: Vec<_> = (0..1000)
        .map(|port| IpvsOp::AddDest {
            key: service,
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 1, 7)), 8000 + port),
            weight: 1,
        })
        .collect();
    let error = client.apply(&dests).unwrap_err();
    assert!(matches!(error, NetlinkError::Overrun), "{error}");

    rustix::net::sockopt::set_socket_recv_buffer_size(borrowed, 1 << 20).unwrap();
    // Answers to the lost batch may still be queued: neither a verdict nor a dump may take them up.
    let sent = client.dests(&service).unwrap().len();
    assert!(sent > 0 && sent < 1000, "one chunk of the batch was done: {sent}");
    let absent = address("10.1.1.1:1");
    let verdicts = client
        .apply(&[
            IpvsOp::DelDest { key: service, address: absent },
            IpvsOp::AddDest { key: service, address: absent, weight: 1 },
        ])
        .unwrap();
    assert!(verdicts[0].as_ref().is_err_and(is_gone), "{verdicts:?}");
    assert!(verdicts[1].is_ok(), "{verdicts:?}");
    assert_eq!(client.dests(&service).unwrap().len(), sent + 1);
}

#[test]
fn timeouts_and_version_agree_with_ipvsadm() {
    let mut client = namespace();
    let timeouts = Timeouts { tcp: 86_400, tcp_fin: 121, udp: 301 };
    client.set_timeouts(timeouts).unwrap();
    assert_eq!(client.timeouts().unwrap(), timeouts);
    assert!(run("ipvsadm -l --timeout").contains("86400 121 301"));
    client.set_timeouts(Timeouts { tcp: 0, tcp_fin: 0, udp: 302 }).unwrap();
    assert_eq!(client.timeouts().unwrap(), Timeouts { udp: 302, ..timeouts });
    assert!(client.set_timeouts(Timeouts { tcp: u32::MAX, ..timeouts }).is_err());

    let version = client.version().unwrap();
    let (size, shown) = (version.connection_table_size, run("ipvsadm -L -n"));
    assert!(shown.starts_with(&format!("IP Virtual Server version {version} (size={size})")), "{shown}");
}
