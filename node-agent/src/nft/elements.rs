//! Set elements as bytes, and their way through attributes that hold at most 64 KiB.

use crate::netlink::{Attr, AttrWriter, Attrs};

use super::uapi::{DATA_VALUE, LIST_ELEM, element};

/// Bytes of elements that go into one message: an attribute's length has 16 bits, and the kernel
/// adds none of its own.
const CHUNK_BYTES: usize = 60_000;

/// An element as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawElement<'a> {
    /// Key; in a set of intervals, where one begins or the first value behind it.
    pub key: &'a [u8],
    /// Data of a map.
    pub data: Option<&'a [u8]>,
    /// The end of an interval.
    pub interval_end: bool,
}

/// An element that can be told to the kernel.
pub trait Encode {
    /// Hands the element, or both ends of an interval, to `each`.
    fn encode(&self, each: &mut dyn FnMut(RawElement<'_>));
}

impl RawElement<'_> {
    fn write(self, w: &mut AttrWriter<'_>) {
        w.nested(LIST_ELEM, |w| {
            w.nested(element::KEY, |w| {
                w.bytes(DATA_VALUE, self.key);
            });
            if let Some(data) = self.data {
                w.nested(element::DATA, |w| {
                    w.bytes(DATA_VALUE, data);
                });
            }
            if self.interval_end {
                w.be32(element::FLAGS, element::F_INTERVAL_END);
            }
        });
    }

    pub(super) fn decode(attr: Attr<'_>) -> Option<RawElement<'_>> {
        let attrs = attr.nested();
        let value = |kind| Some(attrs.clone().find(kind)?.nested().find(DATA_VALUE)?.value);
        let flags = attrs.clone().find(element::FLAGS).and_then(Attr::be32).unwrap_or_default();
        Some(RawElement {
            key: value(element::KEY)?,
            data: value(element::DATA),
            interval_end: flags & element::F_INTERVAL_END != 0,
        })
    }
}

/// Cuts elements into the bodies of as many messages as they need.
pub(super) fn chunks<E: Encode>(elements: impl IntoIterator<Item = E>) -> Vec<Vec<u8>> {
    let mut done = Vec::new();
    let mut body = Vec::new();
    for element in elements {
        // Both ends of an interval stay in one message.
        element.encode(&mut |raw| raw.write(&mut AttrWriter::new(&mut body)));
        if body.len() >= CHUNK_BYTES {
            done.push(std::mem::take(&mut body));
        }
    }
    if !body.is_empty() {
        done.push(body);
    }
    done
}

/// The elements in the answer to a dump.
pub(super) fn in_answer<'a>(attrs: &Attrs<'a>) -> impl Iterator<Item = Attr<'a>> + use<'a> {
    attrs
        .clone()
        .find(element::LIST_ELEMENTS)
        .map_or(Attrs::new(&[]), Attr::nested)
        .filter(|attr| attr.kind == LIST_ELEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Number(u32);

    impl Encode for Number {
        fn encode(&self, each: &mut dyn FnMut(RawElement<'_>)) {
            each(RawElement { key: &self.0.to_be_bytes(), data: Some(&[1, 2, 3, 4]), interval_end: false });
            each(RawElement { key: &(self.0 + 1).to_be_bytes(), data: None, interval_end: true });
        }
    }

    #[test]
    fn many_elements_go_in_pieces_that_an_attribute_can_hold_and_none_is_lost() {
        let bodies = chunks((0..100_000).map(Number));
        assert!(bodies.len() > 1);
        let mut keys = Vec::new();
        for body in bodies {
            assert!(u16::try_from(body.len() + 4).is_ok());
            for attr in Attrs::new(&body) {
                let raw = RawElement::decode(attr).unwrap();
                assert_eq!(raw.data.is_none(), raw.interval_end);
                keys.push(u32::from_be_bytes(raw.key.try_into().unwrap()));
            }
        }
        assert_eq!(keys, (0..100_000).flat_map(|n| [n, n + 1]).collect::<Vec<_>>());
    }

    #[test]
    fn no_elements_are_no_message() {
        assert!(chunks(Vec::<Number>::new()).is_empty());
    }
}
