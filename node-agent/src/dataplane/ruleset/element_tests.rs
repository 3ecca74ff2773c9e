use proptest::prelude::*;

use super::*;

fn elements() -> impl Strategy<Value = Element> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    (0..9u8, protocol, family, any::<IpAddr>(), any::<u16>(), any::<u32>()).prop_map(
        |(kind, protocol, family, ip, port, mark)| {
            let address = SocketAddr::new(ip, port);
            match kind {
                0 => Element::ClusterIp { protocol, address },
                1 => Element::ExternalIp { protocol, address },
                2 => Element::NoEndpoints { protocol, address },
                3 => Element::NodePort { family, protocol, port },
                4 => Element::NoEndpointNodePort { family, protocol, port },
                5 => Element::NodePortMark { protocol, port, mark },
                6 => Element::ClusterAddress(ip),
                7 => Element::Hairpin(ip),
                _ => Element::NodeAddress(ip),
            }
        },
    )
}

fn key_of(element: &Element) -> Vec<u8> {
    let mut key = Vec::new();
    element.encode(&mut |raw| key = raw.key.to_vec());
    key
}

fn decoded(set: SetName, key: &[u8], data: Option<&[u8]>) -> Option<Element> {
    Element::decode(set, RawElement { key, data, interval_end: false })
}

#[test]
fn keys_are_padded_to_registers_and_in_network_order() {
    let element = Element::ClusterIp { protocol: Protocol::Tcp, address: "10.96.0.10:80".parse().unwrap() };
    assert_eq!(key_of(&element), [10, 96, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0]);
    let element = Element::NodePort { family: Family::V6, protocol: Protocol::Sctp, port: 30_080 };
    assert_eq!(key_of(&element), [132, 0, 0, 0, 0x75, 0x80, 0, 0]);
}

#[test]
fn what_we_never_write_is_not_read_as_ours() {
    let v4 = SetName::ClusterIps(Family::V4);
    // ICMP
    assert_eq!(decoded(v4, &[10, 96, 0, 10, 1, 0, 0, 0, 0, 80, 0, 0], None), None);
    // cut short, too long
    assert_eq!(decoded(v4, &[10, 96, 0, 10, 6, 0, 0, 0], None), None);
    assert_eq!(decoded(v4, &[10, 96, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0, 0, 0, 0, 0], None), None);
    // two addresses
    assert_eq!(decoded(SetName::Hairpin(Family::V4), &[10, 244, 1, 2, 10, 244, 1, 3], None), None);
    // a map without data
    assert_eq!(decoded(SetName::NodePortMarks, &[6, 0, 0, 0, 0, 80, 0, 0], None), None);
}

fn ends_of(nets: &[&str]) -> (BTreeSet<Element>, BTreeSet<End>) {
    let elements: BTreeSet<_> = nets.iter().map(|net| Element::LocalPods(net.parse().unwrap())).collect();
    let mut ends = BTreeSet::new();
    for element in &elements {
        let SetName::LocalPods(family) = element.set() else { panic!("{element}") };
        element.encode(&mut |raw| {
            ends.insert(End::read(family, raw).unwrap());
        });
    }
    (elements, ends)
}

#[rstest::rstest]
#[case::one(&["10.244.1.0/24"])]
#[case::neighbours(&["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/23"])]
#[case::everything(&["0.0.0.0/0"])]
#[case::single_addresses(&["10.244.1.1/32", "10.244.1.2/32"])]
#[case::up_to_the_end(&["10.244.1.0/24", "255.255.255.0/24"])]
#[case::v6(&["fd00:244:1::/64", "fd00:244:2::/64", "ff00::/8"])]
fn intervals_come_back_as_networks(#[case] nets: &[&str]) {
    let (elements, ends) = ends_of(nets);
    assert_eq!(pair(&ends), Some(elements));
}

#[test]
fn the_end_that_nft_writes_at_zero_changes_nothing() {
    let (elements, mut ends) = ends_of(&["10.244.1.0/24"]);
    ends.insert(End::Behind(Ipv4Addr::UNSPECIFIED.into()));
    assert_eq!(pair(&ends), Some(elements));
}

#[test]
fn a_range_that_is_no_network_is_not_ours() {
    let ends = [End::Begin([10, 0, 0, 1].into()), End::Behind([10, 0, 0, 4].into())];
    assert_eq!(pair(&BTreeSet::from(ends)), None);
}

proptest! {
    #[test]
    fn elements_read_back_as_written(element in elements()) {
        let mut read = None;
        (&element).encode(&mut |raw| read = Element::decode(element.set(), raw));
        prop_assert_eq!(read, Some(element));
    }

    #[test]
    fn random_keys_are_read_without_panic(key in proptest::collection::vec(any::<u8>(), 0..40), end: bool) {
        for set in SetName::all() {
            let raw = RawElement { key: &key, data: Some(&key), interval_end: end };
            let _ = Element::decode(set, raw);
            let ends: Option<BTreeSet<End>> = Family::ALL.iter().map(|f| End::read(*f, raw)).collect();
            let _ = ends.map(|ends| pair(&ends));
        }
    }
}
