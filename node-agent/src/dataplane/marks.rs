//! Firewall marks that key the virtual servers of node ports.
//!
//! A mark is `0x1f` in its top byte, the policy bit, and a number spread over the bits between. The
//! policy bit is in every one, so that rules which ask for it see these packets too. Numbers are
//! handed out from the lowest up: the kernel hashes a mark by its low 8 bits
//! (`ip_vs_svc_fwm_hashkey`).

use std::collections::BTreeMap;

use super::key::ServerKey;
use crate::model::Protocol;

/// Top byte of every mark of ours.
pub const RANGE: u32 = 0x1f00_0000;
/// The bits that `RANGE` is compared by.
pub const RANGE_MASK: u32 = 0xff00_0000;

/// The mark of a number: the number's bits step aside for the policy bit.
pub fn mark(number: u32, bit: u8) -> u32 {
    let below = (1 << bit) - 1;
    RANGE | (1 << bit) | (number & below) | ((number & !below) << 1 & !RANGE_MASK)
}

/// True for a mark that only we hand out.
pub fn is_ours(mark: u32) -> bool {
    mark & RANGE_MASK == RANGE
}

/// Which node port has which mark.
#[derive(Clone, Debug)]
pub struct Marks {
    bit: u8,
    assigned: BTreeMap<(Protocol, u16), u32>,
    /// Number of virtual servers that have a mark.
    used: BTreeMap<u32, u32>,
}

impl Marks {
    /// The marks of virtual servers that exist or soon will. Those of another policy bit are kept
    /// from being handed out again, and are not given to new servers.
    pub fn restore<'a>(bit: u8, servers: impl Iterator<Item = &'a ServerKey>) -> Self {
        let mut marks = Self { bit, assigned: BTreeMap::new(), used: BTreeMap::new() };
        for server in servers {
            if let ServerKey::NodePort { protocol, port, mark, .. } = *server {
                marks.hold(mark);
                if mark & (1 << bit) != 0 {
                    marks.assigned.insert((protocol, port), mark);
                }
            }
        }
        marks
    }

    /// The mark of a node port.
    pub fn assign(&mut self, protocol: Protocol, port: u16) -> u32 {
        if let Some(mark) = self.assigned.get(&(protocol, port)) {
            return *mark;
        }
        let free = (0..).map(|number| mark(number, self.bit)).find(|mark| !self.used.contains_key(mark));
        // There are 2^23 marks and at most 3 * 65,536 node ports.
        let free = free.unwrap_or(RANGE);
        self.used.insert(free, 0);
        self.assigned.insert((protocol, port), free);
        free
    }

    /// Counts a virtual server that is about to have the mark.
    pub fn hold(&mut self, mark: u32) {
        *self.used.entry(mark).or_default() += 1;
    }

    /// Counts one that is gone; the mark of the last is free again.
    pub fn release(&mut self, mark: u32) {
        if let Some(count) = self.used.get_mut(&mark) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.used.remove(&mark);
                self.assigned.retain(|_, assigned| *assigned != mark);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;

    #[test]
    fn every_mark_is_in_our_range_carries_the_policy_bit_and_is_unique() {
        for bit in [0, 7, 12, 23] {
            let marks: std::collections::BTreeSet<_> = (0..5000).map(|number| mark(number, bit)).collect();
            assert_eq!(marks.len(), 5000);
            assert!(marks.iter().all(|m| is_ours(*m) && m & (1 << bit) != 0));
        }
        assert_eq!(mark(1, 12), 0x1f00_1001);
        assert_eq!(mark(0x1000, 12), 0x1f00_3000);
    }

    #[test]
    fn the_lowest_free_mark_is_given_and_survives_a_restart() {
        let kept = ServerKey::NodePort {
            family: Family::V4,
            protocol: Protocol::Tcp,
            port: 30_001,
            mark: mark(1, 12),
        };
        let mut marks = Marks::restore(12, [kept].iter());
        assert_eq!(marks.assign(Protocol::Tcp, 30_000), mark(0, 12));
        assert_eq!(marks.assign(Protocol::Udp, 30_000), mark(2, 12));
        assert_eq!(marks.assign(Protocol::Tcp, 30_001), mark(1, 12));
        marks.hold(mark(0, 12));
        marks.release(mark(0, 12));
        assert_eq!(marks.assign(Protocol::Sctp, 30_009), mark(0, 12));
    }

    #[test]
    fn another_policy_bit_means_other_marks() {
        let old = ServerKey::NodePort {
            family: Family::V4,
            protocol: Protocol::Tcp,
            port: 30_001,
            mark: mark(0, 12),
        };
        let mut marks = Marks::restore(13, [old].iter());
        assert_eq!(marks.assign(Protocol::Tcp, 30_001), mark(0, 13));
    }
}
