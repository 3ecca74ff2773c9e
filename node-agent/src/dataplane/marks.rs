//! Which node port has which firewall mark: the key of its virtual servers. The lowest free one is
//! given, and kept as long as a virtual server has it.

use std::collections::BTreeMap;

use super::{
    key::ServerKey,
    ruleset::{ID_PREFIX, PolicyBit},
};
use crate::model::Protocol;

/// True for a mark that only we hand out, whatever the policy bit was then.
pub fn is_ours(mark: u32) -> bool {
    mark & 0xff00_0000 == ID_PREFIX
}

/// Which node port has which mark.
#[derive(Clone, Debug)]
pub struct Marks {
    bit: PolicyBit,
    assigned: BTreeMap<(Protocol, u16), u32>,
    /// Number of virtual servers that have a mark.
    used: BTreeMap<u32, u32>,
}

impl Marks {
    /// The marks of virtual servers that exist or soon will. Those of another policy bit are kept
    /// from being handed out again, and are not given to new servers.
    pub fn restore<'a>(bit: PolicyBit, servers: impl Iterator<Item = &'a ServerKey>) -> Self {
        let mut marks = Self { bit, assigned: BTreeMap::new(), used: BTreeMap::new() };
        for server in servers {
            if let ServerKey::NodePort { protocol, port, mark, .. } = *server {
                marks.hold(mark);
                if bit.number(mark).is_some() {
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
        let mut ids = (0..).map_while(|number| self.bit.id(number));
        // There are 2^23 ids and at most 3 * 65,536 node ports.
        let free = ids.find(|id| !self.used.contains_key(id)).unwrap_or(ID_PREFIX);
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

    fn bit(number: u8) -> PolicyBit {
        PolicyBit::new(number).unwrap()
    }

    fn mark(number: u32, of: u8) -> u32 {
        bit(of).id(number).unwrap()
    }

    #[test]
    fn the_lowest_free_mark_is_given_and_survives_a_restart() {
        let kept = ServerKey::NodePort {
            family: Family::V4,
            protocol: Protocol::Tcp,
            port: 30_001,
            mark: mark(1, 12),
        };
        let mut marks = Marks::restore(bit(12), [kept].iter());
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
        let mut marks = Marks::restore(bit(13), [old].iter());
        assert_eq!(marks.assign(Protocol::Tcp, 30_001), mark(0, 13));
    }
}
