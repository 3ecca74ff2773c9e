//! Against the bytes that `ipvsadm` and the kernel sent each other.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::netlink::Message;

const MARK: u32 = 0x1f00_1001;

/// A captured message, from its generic netlink header on.
fn captured(file: &str, name: &str) -> Vec<u8> {
    let heading = format!("[{name}]");
    let lines = file.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    let bytes: Vec<u8> = lines
        .flat_map(|line| line.split('#').next().unwrap().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    assert!(!bytes.is_empty(), "no message {name} was captured");
    bytes
}

fn request(name: &str) -> Vec<u8> {
    captured(include_str!("testdata/requests.txt"), name)
}

fn answer(name: &str) -> Vec<u8> {
    captured(include_str!("testdata/answers.txt"), name)
}

fn encoded(op: &IpvsOp) -> Vec<u8> {
    let mut requests = Requests::new();
    encode(&mut requests, 32, op);
    only_payload(&requests)
}

fn only_payload(requests: &Requests) -> Vec<u8> {
    let messages: Vec<Message<'_>> = requests.messages().collect();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].flags, libc::NLM_F_REQUEST | libc::NLM_F_ACK);
    messages[0].payload.to_vec()
}

/// Every attribute inside the service and the destination of a message.
fn fields(payload: &[u8]) -> BTreeMap<(u16, u16), Vec<u8>> {
    let (_, attrs) = genl::split(payload).unwrap();
    attrs
        .flat_map(|outer| outer.nested().map(move |inner| ((outer.kind, inner.kind), inner.value.to_vec())))
        .collect()
}

fn tcp(address: &str) -> VirtualServerKey {
    VirtualServerKey::Address { protocol: Protocol::Tcp, address: address.parse().unwrap() }
}

fn udp(address: &str) -> VirtualServerKey {
    VirtualServerKey::Address { protocol: Protocol::Udp, address: address.parse().unwrap() }
}

fn sctp(address: &str) -> VirtualServerKey {
    VirtualServerKey::Address { protocol: Protocol::Sctp, address: address.parse().unwrap() }
}

fn fwmark(family: Family) -> VirtualServerKey {
    VirtualServerKey::Fwmark { family, mark: MARK }
}

#[rstest]
#[case("add_service_tcp", IpvsOp::AddService { key: tcp("10.96.0.10:80"), scheduler: Scheduler::Rr })]
#[case("add_service_udp_v6", IpvsOp::AddService { key: udp("[fd00:10:96::a]:53"), scheduler: Scheduler::Lc })]
#[case("add_service_sctp", IpvsOp::AddService { key: sctp("10.96.0.11:7777"), scheduler: Scheduler::Wrr })]
#[case("add_service_fwmark_v4", IpvsOp::AddService { key: fwmark(Family::V4), scheduler: Scheduler::Sed })]
#[case("add_service_fwmark_v6", IpvsOp::AddService { key: fwmark(Family::V6), scheduler: Scheduler::Nq })]
#[case("set_service", IpvsOp::SetService { key: tcp("10.96.0.10:80"), scheduler: Scheduler::Wlc })]
fn a_service_is_set_with_the_bytes_of_ipvsadm(#[case] name: &str, #[case] op: IpvsOp) {
    assert_eq!(encoded(&op), request(name));
}

// ipvsadm sends every field of its structures, needed or not; ours must be among them, and those
// that the kernel demands among ours.
#[rstest]
#[case("del_service", IpvsOp::DelService { key: tcp("10.96.0.10:80") }, &[])]
#[case("add_dest", IpvsOp::AddDest { key: tcp("10.96.0.10:80"), address: "127.0.0.1:8080".parse().unwrap(), weight: 100 }, &WHOLE_DEST)]
#[case("add_dest_v6", IpvsOp::AddDest { key: udp("[fd00:10:96::a]:53"), address: "[fd00:10:244::7]:5353".parse().unwrap(), weight: 7 }, &WHOLE_DEST)]
#[case("add_dest_fwmark_v6", IpvsOp::AddDest { key: fwmark(Family::V6), address: "[fd00:10:244::9]:8443".parse().unwrap(), weight: 1 }, &WHOLE_DEST)]
#[case("set_dest", IpvsOp::SetDest { key: tcp("10.96.0.10:80"), address: "10.244.1.7:8080".parse().unwrap(), weight: 0 }, &WHOLE_DEST)]
#[case("del_dest", IpvsOp::DelDest { key: tcp("10.96.0.10:80"), address: "10.244.1.7:8080".parse().unwrap() }, &[DEST_ATTR_ADDR, DEST_ATTR_PORT, DEST_ATTR_ADDR_FAMILY])]
fn a_request_says_nothing_that_ipvsadm_does_not(
    #[case] name: &str,
    #[case] op: IpvsOp,
    #[case] dest_fields: &[u16],
) {
    let (ours, theirs) = (encoded(&op), request(name));
    assert_eq!(ours[..genl::HEADER], theirs[..genl::HEADER]);
    let (ours, theirs) = (fields(&ours), fields(&theirs));
    for (kind, value) in &ours {
        assert_eq!(theirs.get(kind), Some(value), "attribute {kind:?}");
    }
    let mut key_fields = vec![SVC_ATTR_AF];
    match op.key() {
        VirtualServerKey::Address { .. } => {
            key_fields.extend([SVC_ATTR_PROTOCOL, SVC_ATTR_ADDR, SVC_ATTR_PORT]);
        }
        VirtualServerKey::Fwmark { .. } => key_fields.push(SVC_ATTR_FWMARK),
    }
    let needed = key_fields
        .into_iter()
        .map(|kind| (CMD_ATTR_SERVICE, kind))
        .chain(dest_fields.iter().map(|kind| (CMD_ATTR_DEST, *kind)));
    assert_eq!(ours.keys().copied().collect::<Vec<_>>(), needed.collect::<Vec<_>>());
}

const WHOLE_DEST: [u16; 7] = [
    DEST_ATTR_ADDR,
    DEST_ATTR_PORT,
    DEST_ATTR_FWD_METHOD,
    DEST_ATTR_WEIGHT,
    DEST_ATTR_U_THRESH,
    DEST_ATTR_L_THRESH,
    DEST_ATTR_ADDR_FAMILY,
];

#[test]
fn the_other_requests_have_the_bytes_of_ipvsadm() {
    let mut requests = Requests::new();
    requests.push(32, libc::NLM_F_ACK, &genl::header(command::SET_CONFIG, VERSION), |w| {
        write_timeouts(w, Timeouts { tcp: 900, tcp_fin: 120, udp: 300 });
    });
    assert_eq!(only_payload(&requests), request("set_timeouts"));

    let mut requests = Requests::new();
    requests.push(32, libc::NLM_F_ACK, &genl::header(command::GET_DEST, VERSION), |w| {
        write_key(w, &tcp("10.96.0.10:80"));
    });
    assert_eq!(only_payload(&requests), request("get_dests"));
}

#[rstest]
#[case("service_tcp", tcp("10.96.0.10:80"), "wlc")]
#[case("service_udp_v6", udp("[fd00:10:96::a]:53"), "lc")]
#[case("service_sctp", sctp("10.96.0.11:7777"), "wrr")]
#[case("service_fwmark_v4", fwmark(Family::V4), "sed")]
#[case("service_fwmark_v6", fwmark(Family::V6), "nq")]
fn a_plain_service_reads_as_it_was_set(
    #[case] name: &str,
    #[case] key: VirtualServerKey,
    #[case] scheduler: &str,
) {
    let (server, _) = read_service(&answer(name)).unwrap();
    assert_eq!((server.key, server.scheduler.as_str()), (key, scheduler));
    assert!(server.is_plain(), "{server:?}");
}

#[test]
fn services_with_persistence_and_scheduler_flags_are_read_and_not_plain() {
    let (server, _) = read_service(&answer("service_persistent_mh")).unwrap();
    // persistent, mh-fallback, mh-port
    assert_eq!((server.flags, server.timeout), (0x01 | 0x08 | 0x10, 10800));
    assert_eq!(server.netmask.to_ne_bytes(), [255, 255, 255, 0]);
    assert!(!server.is_plain());

    let (server, _) = read_service(&answer("service_persistent_v6")).unwrap();
    assert_eq!((server.flags, server.timeout, server.netmask), (0x01, 300, 64));
    assert!(!server.is_plain());
}

#[test]
fn counters_are_read_from_either_width() {
    let counted = Stats { connections: 3, packets_in: 11, packets_out: 7, bytes_in: 611, bytes_out: 388 };
    let bytes = answer("service_tcp");
    assert_eq!(read_service(&bytes).unwrap().1, counted);

    // as a kernel before 4.1 sends it: STATS64 taken for an attribute nobody knows
    let mut old = bytes.clone();
    let header = [0x7c, 0, 0x0c, 0];
    let at = old.windows(4).position(|window| window == header).unwrap();
    old[at + 2] = 0x3e;
    assert_eq!(read_service(&old).unwrap().1, counted);
}

fn dest(address: &str, weight: u32) -> RealServer {
    RealServer {
        address: address.parse().unwrap(),
        weight,
        forward: Forward::Masquerade,
        active_connections: 0,
        inactive_connections: 0,
        persistent_connections: 0,
    }
}

#[test]
fn destinations_read_as_they_were_set() {
    let read = |family, name| read_dest(family, &answer(name)).unwrap();
    assert_eq!(
        read(Family::V4, "dest_with_connections"),
        RealServer { active_connections: 2, inactive_connections: 1, ..dest("127.0.0.1:8080", 100) }
    );
    assert_eq!(read(Family::V4, "dest_drained"), dest("10.244.1.7:8080", 0));
    assert_eq!(read(Family::V6, "dest_v6"), dest("[fd00:10:244::7]:5353", 7));
    for (name, address) in [("dest_tunnel_ipip", "10.244.1.8:80"), ("dest_tunnel_gue", "10.244.1.9:80")] {
        let tunnel = RealServer { forward: Forward::Other(2), ..dest(address, 3) };
        assert_eq!(read(Family::V4, name), tunnel);
    }
}

#[test]
fn settings_are_read() {
    let timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
    assert_eq!(read_timeouts(&answer("timeouts")), Some(timeouts));
    let version = read_version(&answer("info")).unwrap();
    assert_eq!((version.to_string().as_str(), version.connection_table_size), ("1.2.1", 4096));
}

#[test]
fn an_answer_of_another_kind_is_not_taken_for_what_was_asked() {
    assert_eq!(read_service(&answer("dest_v6")), None);
    assert_eq!(read_dest(Family::V4, &answer("service_tcp")), None);
    assert_eq!(read_timeouts(&answer("info")), None);
    assert_eq!(read_version(&answer("timeouts")), None);
}

const ANSWERS: [&str; 14] = [
    "service_tcp",
    "service_udp_v6",
    "service_sctp",
    "service_persistent_mh",
    "service_persistent_v6",
    "service_fwmark_v4",
    "service_fwmark_v6",
    "dest_with_connections",
    "dest_drained",
    "dest_v6",
    "dest_tunnel_ipip",
    "dest_tunnel_gue",
    "timeouts",
    "info",
];

fn read_all_ways(bytes: &[u8]) {
    let _ = read_service(bytes);
    let _ = read_dest(Family::V4, bytes);
    let _ = read_dest(Family::V6, bytes);
    let _ = read_timeouts(bytes);
    let _ = read_version(bytes);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        read_all_ways(&bytes);
    }

    #[test]
    fn no_damage_to_an_answer_makes_the_reader_panic(
        name in proptest::sample::select(&ANSWERS[..]),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = answer(name);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        read_all_ways(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        read_all_ways(&bytes);
    }

    #[test]
    fn a_request_reads_back_as_the_operation_that_it_was_made_of(
        key in any_key(),
        address in any::<(IpAddr, u16)>().prop_map(SocketAddr::from),
        weight in any::<u32>(),
        scheduler in proptest::sample::select(&Scheduler::ALL[..]),
    ) {
        let (server, _) = read_service(&encoded(&IpvsOp::AddService { key, scheduler })).unwrap();
        prop_assert!(server.is_plain());
        prop_assert_eq!((server.key, server.scheduler.as_str()), (key, scheduler.as_str()));

        let bytes = encoded(&IpvsOp::AddDest { key, address, weight });
        let fields = fields(&bytes);
        let field = |kind| fields.get(&(CMD_ATTR_DEST, kind)).unwrap().as_slice();
        prop_assert_eq!(field(DEST_ATTR_WEIGHT), weight.to_ne_bytes());
        prop_assert_eq!(field(DEST_ATTR_PORT), address.port().to_be_bytes());
        let attr = Attr { kind: DEST_ATTR_ADDR, value: field(DEST_ATTR_ADDR) };
        prop_assert_eq!(read_address(Family::of(address.ip()), attr), Some(address.ip()));
    }
}

fn any_key() -> impl Strategy<Value = VirtualServerKey> {
    let protocol = proptest::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let family = proptest::sample::select(Family::ALL.to_vec());
    prop_oneof![
        (protocol, any::<(IpAddr, u16)>()).prop_map(|(protocol, address)| {
            VirtualServerKey::Address { protocol, address: SocketAddr::from(address) }
        }),
        (family, any::<u32>()).prop_map(|(family, mark)| VirtualServerKey::Fwmark { family, mark }),
    ]
}
