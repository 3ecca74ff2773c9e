//! The packet mark: one policy bit, and whole marks that key the virtual servers of NodePorts.
//!
//! An id is `0x1f` in the top byte, the policy bit, and a number in the bits that are left. The
//! policy bit is in every id, so that a packet with an id is a packet with the bit.

/// Top byte of every id.
pub const ID_PREFIX: u32 = 0x1f00_0000;
const ID_PREFIX_MASK: u32 = 0xff00_0000;
/// Highest policy bit: above it lies the prefix of ids.
pub const BIT_MAX: u8 = 23;

/// The policy bit of the mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyBit(u8);

impl PolicyBit {
    /// The bit of a number from 0 to 23.
    pub fn new(number: u8) -> Option<Self> {
        (number <= BIT_MAX).then_some(Self(number))
    }

    /// The bit as a mask.
    pub fn mask(self) -> u32 {
        1 << self.0
    }

    /// Bits by which an id is told from other marks.
    pub fn id_mask(self) -> u32 {
        ID_PREFIX_MASK | self.mask()
    }

    /// What those bits are in an id.
    pub fn id_value(self) -> u32 {
        ID_PREFIX | self.mask()
    }

    /// The id of a number below 2^23: its bits at and above the policy bit step aside. Numbers
    /// that follow each other differ in their low bits, by which the kernel hashes
    /// (`ip_vs_svc_fwm_hashkey`).
    pub fn id(self, number: u32) -> Option<u32> {
        let below = self.mask() - 1;
        let spread = (number & below) | (number & !below) << 1;
        (number < 1 << BIT_MAX).then_some(self.id_value() | spread)
    }

    /// The number of an id, none for a mark that is no id.
    pub fn number(self, mark: u32) -> Option<u32> {
        let below = self.mask() - 1;
        let spread = mark & !self.id_mask();
        (mark & self.id_mask() == self.id_value()).then_some((spread & below) | (spread & !below) >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_the_prefix_and_the_bit_and_skip_it() {
        let bit = PolicyBit::new(12).unwrap();
        assert_eq!(bit.id(0), Some(0x1f00_1000));
        assert_eq!(bit.id(1), Some(0x1f00_1001));
        assert_eq!(bit.id(0xfff), Some(0x1f00_1fff));
        assert_eq!(bit.id(0x1000), Some(0x1f00_3000));
        assert_eq!(bit.id((1 << 23) - 1), Some(0x1fff_ffff));
        assert_eq!(bit.id(1 << 23), None);
    }

    #[test]
    fn numbers_come_back_from_ids_whatever_the_bit() {
        for bit in (0..=BIT_MAX).filter_map(PolicyBit::new) {
            for number in [0, 1, 255, 0x0fff, 0x1000, 0x1001, 0x0055_5555, (1 << 23) - 1] {
                let id = bit.id(number).unwrap();
                assert_eq!(id & bit.mask(), bit.mask());
                assert_eq!(bit.number(id), Some(number), "bit {bit:?} number {number:#x}");
            }
        }
    }

    #[test]
    fn marks_of_others_are_no_ids() {
        let bit = PolicyBit::new(12).unwrap();
        for mark in [0, 0x1000, 0x1f00_0000, 0xff00_1000, 0x0f00_1001] {
            assert_eq!(bit.number(mark), None);
        }
        assert_eq!(PolicyBit::new(24), None);
    }
}
