use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

/// A host made of files: an IPv6 default route from a router on eth0, nothing set yet.
struct FakeHost {
    _root: TempDir,
    host: Host,
}

impl FakeHost {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let host =
            Host { sysctl: SysctlRoot::at(&root.path().join("sys")), proc_net: root.path().join("net") };
        fs::create_dir(&host.proc_net).unwrap();
        let fake = Self { _root: root, host };
        for setting in IPVS.iter().chain([&IPV4_FORWARDING, &IPV6_FORWARDING]) {
            fake.sysctl(setting.name, if setting.wanted == "0" { "1" } else { "0" });
        }
        fake.sysctl("net/ipv6/conf/eth0/accept_ra", "1");
        fake.sysctl("net/ipv6/conf/eth1/accept_ra", "1");
        fake.sysctl("net/ipv6/conf/all/disable_ipv6", "0");
        fs::write(fake.host.proc_net.join("if_inet6"), "00000000000000000000000000000001 01 80 10 80 lo\n")
            .unwrap();
        fs::write(fake.host.proc_net.join("ipv6_route"), ROUTES).unwrap();
        fake
    }

    fn sysctl(&self, name: &str, value: &str) {
        let path = self.host.sysctl.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    fn value(&self, name: &str) -> String {
        self.host.sysctl.get(name).unwrap()
    }

    /// Makes a sysctl refuse to be written, to root too: a read-only file of the kernel's own.
    fn frozen(&self, name: &str, value: &str) {
        // says whether file capabilities are on, which they are on every distribution
        const READS_1: &str = "/sys/kernel/fscaps";
        let path = self.host.sysctl.path(name);
        fs::remove_file(&path).unwrap();
        let file = if value == "1" { READS_1 } else { "/proc/sys/kernel/ostype" };
        symlink(file, path).unwrap();
    }
}

/// As on a node: eth0 has a default route from its router, eth1 a static one, and both an on-link
/// prefix, of which eth1's came from an advertisement.
const ROUTES: &str = "\
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
20010db8000100000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00040001     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000002 00000400 00000001 00000000 00000003     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

fn failed(sysctls: &Sysctls) -> Vec<&str> {
    sysctls.outcomes.iter().filter(|o| o.result.is_err()).map(|o| o.name.as_str()).collect()
}

#[test]
fn everything_is_set_and_a_second_time_nothing_is_changed() {
    let fake = FakeHost::new();
    let first = apply(&fake.host);
    assert!(first.ipv6);
    assert_eq!(failed(&first), [""; 0]);
    assert!(first.outcomes.iter().all(|o| matches!(o.result, Ok(Change::From(_)))));
    for outcome in &first.outcomes {
        assert_eq!(fake.value(&outcome.name), outcome.wanted);
    }
    let second = apply(&fake.host);
    assert!(second.outcomes.iter().all(|o| matches!(o.result, Ok(Change::Already))), "{second:?}");
}

#[test]
fn accept_ra_is_raised_before_forwarding_and_only_where_a_router_supplies_the_route() {
    let fake = FakeHost::new();
    let sysctls = apply(&fake.host);
    let names: Vec<_> = sysctls.outcomes.iter().map(|o| o.name.as_str()).collect();
    let at = |name: &str| names.iter().position(|n| *n == name);
    assert!(at("net/ipv6/conf/eth0/accept_ra").unwrap() < at(IPV6_FORWARDING.name).unwrap());
    assert_eq!(fake.value("net/ipv6/conf/eth0/accept_ra"), "2");
    assert_eq!(fake.value("net/ipv6/conf/eth1/accept_ra"), "1");
}

#[test]
fn an_interface_whose_advertisements_a_daemon_takes_is_left_alone() {
    let fake = FakeHost::new();
    fake.sysctl("net/ipv6/conf/eth0/accept_ra", "0");
    assert_eq!(failed(&apply(&fake.host)), [""; 0]);
    assert_eq!(fake.value("net/ipv6/conf/eth0/accept_ra"), "0");
}

#[test]
fn forwarding_is_not_switched_on_at_the_price_of_the_default_route() {
    let fake = FakeHost::new();
    fake.frozen("net/ipv6/conf/eth0/accept_ra", "1");
    let sysctls = apply(&fake.host);
    assert_eq!(failed(&sysctls), ["net/ipv6/conf/eth0/accept_ra", IPV6_FORWARDING.name]);
    assert_eq!(fake.value(IPV6_FORWARDING.name), "0");
    let refusal = sysctls.outcomes.last().unwrap();
    assert_eq!(refusal.need, Need::Required);
    let text = refusal.result.as_ref().unwrap_err().to_string();
    assert!(text.contains("set net.ipv6.conf.eth0.accept_ra=2 first"), "{text}");
}

#[test]
fn a_sysctl_that_the_kernel_lacks_is_said_to_be_missing_and_is_not_created() {
    let fake = FakeHost::new();
    let name = "net/ipv4/vs/conntrack";
    fs::remove_file(fake.host.sysctl.path(name)).unwrap();
    let sysctls = apply(&fake.host);
    assert_eq!(failed(&sysctls), [name]);
    assert!(matches!(sysctls.outcomes[0].result, Err(SysctlError::Missing { .. })));
    assert_eq!(sysctls.outcomes[0].need, Need::Required);
    assert!(!fake.host.sysctl.has(name));
}

#[test]
fn a_sysctl_that_cannot_be_written_says_so() {
    let fake = FakeHost::new();
    fake.frozen("net/ipv4/ip_forward", "something else");
    let sysctls = apply(&fake.host);
    assert_eq!(failed(&sysctls), ["net/ipv4/ip_forward"]);
    let failure = sysctls.outcomes.iter().find(|o| o.result.is_err()).unwrap();
    let error = failure.result.as_ref().unwrap_err();
    assert!(matches!(error, SysctlError::Write { .. }), "{error:?}");
    assert!(error.to_string().starts_with("failed to set sysctl net/ipv4/ip_forward to 1: "), "{error}");
}

#[test]
fn a_value_that_is_not_kept_is_noticed() {
    let fake = FakeHost::new();
    let path = fake.host.sysctl.path("net/ipv4/ip_forward");
    fs::remove_file(&path).unwrap();
    // Takes every write and reads as empty, as a sysctl that ignores the value would.
    symlink("/dev/null", path).unwrap();
    let sysctls = apply(&fake.host);
    assert_eq!(failed(&sysctls), ["net/ipv4/ip_forward"]);
    let failure = sysctls.outcomes.iter().find(|o| o.result.is_err()).unwrap();
    assert!(matches!(failure.result, Err(SysctlError::NotKept { .. })));
}

#[test]
fn a_host_without_ipv6_is_a_fact_and_no_error() {
    let fake = FakeHost::new();
    fs::remove_file(fake.host.proc_net.join("if_inet6")).unwrap();
    fs::remove_dir_all(fake.host.sysctl.path("net/ipv6")).unwrap();
    let sysctls = apply(&fake.host);
    assert!(!sysctls.ipv6);
    assert_eq!(failed(&sysctls), [""; 0]);
}

#[test]
fn ipv6_switched_off_everywhere_is_no_ipv6_and_no_address_yet_is() {
    let fake = FakeHost::new();
    fs::write(fake.host.proc_net.join("if_inet6"), "").unwrap();
    assert!(serves_ipv6(&fake.host));
    fake.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    assert!(!serves_ipv6(&fake.host));
}

#[test]
fn bridged_packets_are_seen_to_when_br_netfilter_is_loaded() {
    let fake = FakeHost::new();
    for setting in &BRIDGE {
        fake.sysctl(setting.name, "0");
    }
    apply(&fake.host);
    for setting in &BRIDGE {
        assert_eq!(fake.value(setting.name), "1");
    }
}

#[test]
fn the_timeout_of_connection_tracking_is_read_where_it_is_loaded() {
    let fake = FakeHost::new();
    assert_eq!(fake.host.sysctl.conntrack_established_timeout(), None);
    fake.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", "432000");
    assert_eq!(fake.host.sysctl.conntrack_established_timeout(), Some(432_000));
}

#[test]
fn a_read_only_mount_has_its_own_hint() {
    let error = io::Error::from_raw_os_error(libc::EROFS);
    assert!(hint(&error, Path::new("/proc/sys/net")).contains("mount the host's /proc/sys/net"));
    assert!(hint(&error, Path::new("/host/proc/sys/net")).contains("mount it writable"));
    let error = io::Error::from_raw_os_error(libc::EPERM);
    assert!(hint(&error, Path::new("/proc/sys/net")).contains("CAP_NET_ADMIN"));
}
