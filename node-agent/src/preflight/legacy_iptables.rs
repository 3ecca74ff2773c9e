//! Reads what legacy iptables (ip_tables, ip6_tables) holds: chain names, policies, accepted marks.
//!
//! Only tables that the kernel lists as present are asked for: the mere question loads the module of
//! an absent one, and registers its hooks, for good.

use std::{fs, io, os::fd::AsRawFd as _, os::fd::FromRawFd as _, os::fd::OwnedFd, path::Path};

use super::conflicts::{AcceptedMark, BaseChain, ChainInfo, Hook, Registry, Ruleset, TableFamily, TableInfo};

/// The tables whose chains decide anything here.
const TABLES: [&str; 2] = ["filter", "nat"];
/// A table may change between the question for its size and the question for its entries.
const ATTEMPTS: usize = 5;
/// XT_TABLE_MAXNAMELEN
const TABLE_NAME: usize = 32;
/// `sizeof(struct ipt_getinfo)`, and of `ip6t_getinfo`.
const INFO: usize = 84;
/// `sizeof(struct ipt_get_entries)`: name, size, padding to the alignment of the counters.
const ENTRIES_HEADER: usize = 40;

/// Legacy iptables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The list of tables.
    #[error("failed to read {path}")]
    Names {
        /// Its path.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// A raw socket is needed to ask.
    #[error("failed to open a raw socket to read legacy iptables (is CAP_NET_RAW there?)")]
    Socket(#[source] io::Error),
    /// The kernel did not hand out a table.
    #[error("failed to read legacy iptables table {table} (is CAP_NET_ADMIN there?)")]
    Table {
        /// Its name.
        table: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The kernel's answer is not laid out as expected.
    #[error("failed to understand legacy iptables table {table}: its entries are not laid out as expected")]
    Layout {
        /// Its name.
        table: &'static str,
    },
}

/// Everything that matters of legacy iptables; `proc_net` is `/proc/net`.
pub fn read(proc_net: &Path) -> Result<Ruleset, LegacyError> {
    let mut ruleset = Ruleset::default();
    for (layout, list) in [(&IPV4, "ip_tables_names"), (&IPV6, "ip6_tables_names")] {
        let path = proc_net.join(list);
        let names = match fs::read_to_string(&path) {
            Ok(names) => names,
            // The module is not loaded: no table can be there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(LegacyError::Names { path: path.display().to_string(), source });
            }
        };
        for table in TABLES.into_iter().filter(|table| names.lines().any(|name| name == *table)) {
            let (info, entries) = fetch(layout, table).map_err(|failure| failure.into_error(table))?;
            let chains = parse(layout, table, &info, &entries).ok_or(LegacyError::Layout { table })?;
            ruleset.tables.push(table_info(layout, table));
            ruleset.chains.extend(chains);
        }
    }
    Ok(ruleset)
}

/// How a family lays out its entries. `struct ipt_entry` of `linux/netfilter_ipv4/ip_tables.h` and
/// `struct ip6t_entry` of `linux/netfilter_ipv6/ip6_tables.h`, 64-bit.
#[derive(Debug)]
struct Layout {
    family: TableFamily,
    domain: libc::c_int,
    /// SOL_IP or SOL_IPV6; the option numbers are the same.
    level: libc::c_int,
    /// Length of the match on addresses, interfaces and protocol: all zero if every packet matches.
    address_match: usize,
    /// Where `target_offset` is; `next_offset` follows.
    target_offset: usize,
    /// Length of the entry without matches and target.
    entry: usize,
}

const IPV4: Layout = Layout {
    family: TableFamily::Ip,
    domain: libc::AF_INET,
    level: libc::SOL_IP,
    address_match: 84,
    target_offset: 88,
    entry: 112,
};

const IPV6: Layout = Layout {
    family: TableFamily::Ip6,
    domain: libc::AF_INET6,
    level: libc::SOL_IPV6,
    address_match: 136,
    target_offset: 140,
    entry: 168,
};

fn table_info(layout: &Layout, table: &str) -> TableInfo {
    TableInfo { registry: Registry::Legacy, family: layout.family, name: table.to_owned() }
}

enum Failure {
    Socket(io::Error),
    Table(io::Error),
}

impl Failure {
    fn into_error(self, table: &'static str) -> LegacyError {
        match self {
            Self::Socket(source) => LegacyError::Socket(source),
            Self::Table(source) => LegacyError::Table { table, source },
        }
    }
}

/// The answers of IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES.
fn fetch(layout: &Layout, table: &str) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    const GET_INFO: libc::c_int = 64;
    const GET_ENTRIES: libc::c_int = 65;
    // SAFETY: plain integers in, a descriptor or -1 out.
    let fd = unsafe { libc::socket(layout.domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(Failure::Socket(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just opened, nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut attempts = 1;
    loop {
        let mut info = vec![0; INFO];
        put_name(&mut info, table);
        get(&socket, layout.level, GET_INFO, &mut info).map_err(Failure::Table)?;
        let size = u32_at(&info, INFO - 4).unwrap_or_default();
        let mut entries = vec![0; ENTRIES_HEADER + size as usize];
        put_name(&mut entries, table);
        if let Some(field) = entries.get_mut(TABLE_NAME..TABLE_NAME + 4) {
            field.copy_from_slice(&size.to_ne_bytes());
        }
        match get(&socket, layout.level, GET_ENTRIES, &mut entries) {
            Ok(()) => return Ok((info, entries)),
            // EAGAIN: its size changed since.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempts < ATTEMPTS => attempts += 1,
            Err(error) => return Err(Failure::Table(error)),
        }
    }
}

fn put_name(buffer: &mut [u8], table: &str) {
    for (to, from) in buffer.iter_mut().zip(table.as_bytes()) {
        *to = *from;
    }
}

fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes into `buffer`, which has that many.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The chains of a table; none if the bytes are not laid out as expected.
fn parse(layout: &Layout, table: &str, info: &[u8], answer: &[u8]) -> Option<Vec<ChainInfo>> {
    let entries = answer.get(ENTRIES_HEADER..)?;
    let chain = |name: String, base| ChainInfo { table: table_info(layout, table), name, base };
    let mut chains = Vec::new();
    let valid_hooks = u32_at(info, TABLE_NAME)?;
    // NF_INET_* hooks: pre routing, local in, forward, local out, post routing
    let hooks = [
        ("PREROUTING", Hook::Prerouting),
        ("INPUT", Hook::Input),
        ("FORWARD", Hook::Forward),
        ("OUTPUT", Hook::Output),
        ("POSTROUTING", Hook::Postrouting),
    ];
    for (number, (name, hook)) in hooks.into_iter().enumerate() {
        if valid_hooks & (1 << number) == 0 {
            continue;
        }
        let first = u32_at(info, TABLE_NAME + 4 + 4 * number)? as usize;
        // The underflow is the chain's last entry, its policy.
        let last = u32_at(info, TABLE_NAME + 24 + 4 * number)? as usize;
        let policy = Entry::at(layout, entries, last)?;
        let mut accepted_marks = Vec::new();
        if hook == Hook::Input {
            let rules = Entries { layout, bytes: entries, at: first }.take_while(|(at, _)| *at < last);
            accepted_marks.extend(rules.filter_map(|(_, rule)| rule.accepted_mark()));
        }
        let base = BaseChain { hook, priority: priority(table, hook), drops: policy.drops(), accepted_marks };
        chains.push(chain(name.to_owned(), Some(base)));
    }
    // Each user-defined chain begins with an entry whose target ERROR carries its name; one named
    // ERROR itself ends the table.
    let mut ended = false;
    for (_, entry) in (Entries { layout, bytes: entries, at: 0 }) {
        if let Some(name) = entry.error_name() {
            ended = name == "ERROR";
            if !ended {
                chains.push(chain(name.to_owned(), None));
            }
        }
    }
    ended.then_some(chains)
}

/// NF_IP_PRI_* of `linux/netfilter_ipv4.h`.
fn priority(table: &str, hook: Hook) -> i32 {
    match (table, hook) {
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", _) => 100,
        _ => 0,
    }
}

/// One entry: a rule, a policy, or the head of a chain.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    address_match: &'a [u8],
    matches: &'a [u8],
    target: &'a [u8],
    length: usize,
}

impl<'a> Entry<'a> {
    fn at(layout: &Layout, entries: &'a [u8], at: usize) -> Option<Self> {
        let rest = entries.get(at..)?;
        let target_offset = usize::from(u16_at(rest, layout.target_offset)?);
        let length = usize::from(u16_at(rest, layout.target_offset + 2)?);
        Some(Self {
            address_match: rest.get(..layout.address_match)?,
            matches: rest.get(layout.entry..target_offset)?,
            target: rest.get(target_offset..length)?,
            length,
        })
    }

    /// The verdict of a standard target, whose name is empty.
    fn verdict(&self) -> Option<i32> {
        let (name, _, data) = extension(self.target)?;
        let verdict = data.first_chunk().filter(|_| name.is_empty())?;
        Some(i32::from_ne_bytes(*verdict))
    }

    fn drops(&self) -> bool {
        // -NF_DROP - 1
        self.verdict() == Some(-1)
    }

    fn error_name(&self) -> Option<&'a str> {
        let (name, _, data) = extension(self.target)?;
        (name == "ERROR").then(|| text(data)).flatten()
    }

    /// The mark that this rule accepts, if it looks at nothing else.
    fn accepted_mark(&self) -> Option<AcceptedMark> {
        let size = usize::from(u16_at(self.matches, 0)?);
        let (name, revision, data) = extension(self.matches.get(..size)?)?;
        // struct xt_mark_mtinfo1: mark, mask, invert
        let (value, mask, invert) = (u32_at(data, 0)?, u32_at(data, 4)?, *data.get(8)?);
        let alone = self.matches.len() == size && self.address_match.iter().all(|byte| *byte == 0);
        // -NF_ACCEPT - 1
        let accepts = self.verdict() == Some(-2);
        (alone && accepts && name == "mark" && revision == 1 && invert == 0)
            .then_some(AcceptedMark { mask, value })
    }
}

struct Entries<'a> {
    layout: &'a Layout,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (usize, Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        // An entry is never shorter than its fixed part, so this ends.
        let entry = Entry::at(self.layout, self.bytes, at)?;
        self.at = at.checked_add(entry.length)?;
        Some((at, entry))
    }
}

/// Name, revision and data of `struct xt_entry_match` or `xt_entry_target`: size, 29 bytes of name,
/// revision, data.
fn extension(bytes: &[u8]) -> Option<(&str, u8, &[u8])> {
    Some((text(bytes.get(2..31)?)?, *bytes.get(31)?, bytes.get(32..)?))
}

fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(bytes.get(..end)?).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::preflight::conflicts::{Conflict, find};

    /// The answer of this name in the captured file.
    fn captured(name: &str) -> Vec<u8> {
        let line = include_str!("testdata/legacy_iptables.txt")
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap();
        let digits: Vec<_> = line.chars().map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn chains(layout: &Layout, table: &str, name: &str) -> Vec<ChainInfo> {
        let (info, entries) = (captured(&format!("{name} info")), captured(&format!("{name} entries")));
        parse(layout, table, &info, &entries).unwrap()
    }

    fn names(chains: &[ChainInfo]) -> Vec<&str> {
        chains.iter().map(|chain| chain.name.as_str()).collect()
    }

    #[test]
    fn chains_policies_and_accepted_marks_of_ipv4_are_read() {
        let chains = chains(&IPV4, "filter", "v4filter");
        assert_eq!(names(&chains), ["INPUT", "FORWARD", "OUTPUT", "KUBE-ROUTER-FORWARD"]);
        let drops: Vec<_> = chains.iter().filter_map(|c| Some(c.base.as_ref()?.drops)).collect();
        assert_eq!(drops, [true, false, false]);
        // The rule that also asks for TCP accepts no mark alone.
        let marks = &chains[0].base.as_ref().unwrap().accepted_marks;
        assert_eq!(marks[..], [AcceptedMark { mask: 0x1000, value: 0x1000 }]);
        assert_eq!(chains[3].base, None);
    }

    #[test]
    fn chains_policies_and_accepted_marks_of_ipv6_are_read() {
        let chains = chains(&IPV6, "filter", "v6filter");
        assert_eq!(names(&chains), ["INPUT", "FORWARD", "OUTPUT", "cali-FORWARD"]);
        let input = chains[0].base.as_ref().unwrap();
        assert!(input.drops);
        // The inverted rule accepts the mark's absence.
        assert_eq!(input.accepted_marks[..], [AcceptedMark { mask: 0x1000, value: 0x1000 }]);
    }

    #[test]
    fn nat_has_its_own_hooks_and_priorities() {
        let chains = chains(&IPV4, "nat", "v4nat");
        assert_eq!(names(&chains), ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING", "KUBE-SERVICES"]);
        let priorities: Vec<_> = chains.iter().filter_map(|c| Some(c.base.as_ref()?.priority)).collect();
        assert_eq!(priorities, [-100, 100, -100, 100]);
    }

    #[test]
    fn what_is_read_leads_to_the_conflicts() {
        let mut ruleset = Ruleset::default();
        ruleset.chains.extend(chains(&IPV4, "filter", "v4filter"));
        ruleset.chains.extend(chains(&IPV4, "nat", "v4nat"));
        let reasons = |mark| find(&ruleset, mark).iter().map(Conflict::reason).collect::<Vec<_>>();
        assert_eq!(reasons(0x1000), ["KubeProxyConflict", "PolicyEngine"]);
        assert_eq!(reasons(0x2000), ["KubeProxyConflict", "PolicyEngine", "HostFirewall"]);
    }

    #[test]
    fn a_host_without_legacy_iptables_has_an_empty_ruleset() {
        let proc_net = tempfile::TempDir::new().unwrap();
        assert_eq!(read(proc_net.path()).unwrap(), Ruleset::default());
        // Loaded, and no table in use: nothing is asked, or its table would be made.
        for list in ["ip_tables_names", "ip6_tables_names"] {
            fs::write(proc_net.path().join(list), "raw\nmangle\n").unwrap();
        }
        assert_eq!(read(proc_net.path()).unwrap(), Ruleset::default());
    }

    #[test]
    fn an_answer_cut_short_is_refused_at_any_length() {
        let (info, entries) = (captured("v4filter info"), captured("v4filter entries"));
        for length in 0..entries.len() {
            assert_eq!(parse(&IPV4, "filter", &info, &entries[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            info in proptest::collection::vec(any::<u8>(), 0..100),
            entries in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let _ = parse(&IPV4, "filter", &info, &entries);
            let _ = parse(&IPV6, "filter", &info, &entries);
        }

        #[test]
        fn no_corruption_of_a_real_table_makes_it_panic(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
            in_info in any::<bool>(),
        ) {
            let (mut info, mut entries) = (captured("v6filter info"), captured("v6filter entries"));
            let bytes = if in_info { &mut info } else { &mut entries };
            for (index, value) in flips {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            let _ = parse(&IPV6, "filter", &info, &entries);
        }
    }
}
