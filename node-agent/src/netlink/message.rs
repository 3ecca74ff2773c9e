//! Netlink messages: a batch of requests to send, and the messages found in what was received
//! (`include/uapi/linux/netlink.h`).

use super::attr::AttrWriter;

/// `sizeof(struct nlmsghdr)`.
pub(super) const HEADER: usize = 16;

/// Requests to be sent together, in order.
#[derive(Debug, Default)]
pub struct Requests {
    pub(super) buf: Vec<u8>,
    pub(super) starts: Vec<usize>,
}

impl Requests {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a request: its type, its flags besides `NLM_F_REQUEST`, the header of its family,
    /// and its attributes.
    pub fn push(
        &mut self,
        kind: u16,
        flags: i32,
        family_header: &[u8],
        fill: impl FnOnce(&mut AttrWriter<'_>),
    ) {
        let start = self.buf.len();
        self.starts.push(start);
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        // The flags of struct nlmsghdr are 16 bits wide; libc types its constants wider.
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(u16::MAX);
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 8]);
        self.buf.extend_from_slice(family_header);
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
        fill(&mut AttrWriter::new(&mut self.buf));
        let length = u32::try_from(self.buf.len() - start).unwrap_or(u32::MAX);
        if let Some(field) = self.buf.get_mut(start..start + 4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Size of the whole batch in bytes.
    pub fn bytes(&self) -> usize {
        self.buf.len()
    }

    /// Forgets the requests and keeps the memory.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.starts.clear();
    }

    /// The requests as the kernel will read them.
    pub fn messages(&self) -> Messages<'_> {
        Messages::new(&self.buf)
    }

    /// Where the request after `index` starts.
    pub(super) fn end_of(&self, index: usize) -> usize {
        self.starts.get(index + 1).copied().unwrap_or(self.buf.len())
    }

    /// Writes the sequence number of the request at `start`.
    pub(super) fn stamp(&mut self, start: usize, sequence: u32) {
        if let Some(field) = self.buf.get_mut(start + 8..start + 12) {
            field.copy_from_slice(&sequence.to_ne_bytes());
        }
    }
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Type.
    pub kind: u16,
    /// Flags.
    pub flags: i32,
    /// Sequence number of the request it answers, 0 for an event.
    pub sequence: u32,
    /// Port of the socket whose request it answers or, for an event, whose request caused it.
    pub port: u32,
    /// What follows the netlink header.
    pub payload: &'a [u8],
}

/// The messages in a received buffer; ends at the first that is cut short.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// The messages in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.rest.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.rest.get(HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: i32::from(u16::from_ne_bytes([f0, f1])),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_framed_one_behind_the_other() {
        let mut requests = Requests::new();
        requests.push(20, libc::NLM_F_ACK, &[1, 2, 3, 4], |w| {
            w.u16(1, 9);
        });
        requests.push(21, 0, &[], |_| {});
        requests.stamp(0, 77);
        let messages: Vec<_> = Messages::new(&requests.buf).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].kind, messages[0].sequence), (20, 77));
        assert_eq!(messages[0].flags, libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        assert_eq!(messages[0].payload, [1, 2, 3, 4, 6, 0, 1, 0, 9, 0, 0, 0]);
        assert_eq!(messages[1].payload, [0u8; 0]);
    }

    #[test]
    fn a_message_cut_short_ends_the_buffer() {
        let mut requests = Requests::new();
        requests.push(20, 0, &[1, 2, 3, 4], |_| {});
        assert_eq!(Messages::new(&requests.buf[..requests.buf.len() - 1]).count(), 0);
    }
}
