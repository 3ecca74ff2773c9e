//! Netlink attributes: type, length, value, padded to four bytes (`include/uapi/linux/netlink.h`).

/// Set on an attribute that holds attributes.
pub const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Writes attributes at the end of a message.
#[derive(Debug)]
pub struct AttrWriter<'a> {
    buf: &'a mut Vec<u8>,
}

impl<'a> AttrWriter<'a> {
    /// A writer that appends to `buf`, whose length must be a multiple of four.
    pub fn new(buf: &'a mut Vec<u8>) -> Self {
        debug_assert_eq!(buf.len() % 4, 0);
        Self { buf }
    }

    /// Raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // A single attribute never nears 64 KiB but by a bug; cut rather than corrupt what follows.
        let length = u16::try_from(value.len() + HEADER).unwrap_or(u16::MAX);
        let value = value.get(..usize::from(length) - HEADER).unwrap_or(value);
        self.buf.extend_from_slice(&length.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
        self
    }

    /// A NUL-terminated string.
    pub fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An integer in the byte order of the host.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// An integer in the byte order of the host.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// An integer in network byte order, as nftables wants all of them.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An integer in network byte order.
    pub fn be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An attribute that holds those which `fill` writes.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut AttrWriter<'_>)) -> &mut Self {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0; HEADER]);
        fill(&mut AttrWriter { buf: self.buf });
        let length = u16::try_from(self.buf.len() - start).unwrap_or(u16::MAX);
        if let Some(header) = self.buf.get_mut(start..start + HEADER) {
            let (len, tag) = header.split_at_mut(2);
            len.copy_from_slice(&length.to_ne_bytes());
            tag.copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        }
        self
    }

    fn pad(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }
}

/// One attribute of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Type without the nested and byte order flags.
    pub kind: u16,
    /// Value without padding.
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The attributes inside this one.
    pub fn nested(self) -> Attrs<'a> {
        Attrs::new(self.value)
    }

    /// The value as an integer in the byte order of the host.
    pub fn u16(self) -> Option<u16> {
        Some(u16::from_ne_bytes(self.value.try_into().ok()?))
    }

    /// The value as an integer in the byte order of the host.
    pub fn u32(self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.value.try_into().ok()?))
    }

    /// The value as an integer in the byte order of the host.
    pub fn u64(self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.value.try_into().ok()?))
    }

    /// The value as an integer in network byte order.
    pub fn be16(self) -> Option<u16> {
        Some(u16::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as an integer in network byte order.
    pub fn be32(self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as an integer in network byte order.
    pub fn be64(self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a string, up to its first NUL.
    pub fn str(self) -> Option<&'a str> {
        let end = self.value.iter().position(|b| *b == 0).unwrap_or(self.value.len());
        std::str::from_utf8(self.value.get(..end)?).ok()
    }
}

/// Reads attributes one after the other; ends at the first that is cut short.
#[derive(Clone, Debug)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// The attributes in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first attribute of a type.
    pub fn find(mut self, kind: u16) -> Option<Attr<'a>> {
        self.by_ref().find(|attr| attr.kind == kind)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let (length, rest) = self.rest.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = self.rest.get(HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attr { kind: u16::from_ne_bytes(*kind) & NLA_TYPE_MASK, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut buf = Vec::new();
        AttrWriter::new(&mut buf).u16(1, 7).string(2, "rr").nested(3, |w| {
            w.be32(4, 0x0102_0304);
        });
        let attrs: Vec<_> = Attrs::new(&buf).collect();
        assert_eq!(attrs[0].u16(), Some(7));
        assert_eq!(attrs[1].str(), Some("rr"));
        assert_eq!(attrs[2].nested().find(4).unwrap().be32(), Some(0x0102_0304));
        assert_eq!(buf.len() % 4, 0);
    }

    #[test]
    fn an_attribute_cut_short_ends_the_message() {
        // length says 8, six bytes are there
        assert_eq!(Attrs::new(&[8, 0, 1, 0, 0xff, 0xff]).count(), 0);
        // length below its own header
        assert_eq!(Attrs::new(&[3, 0, 1, 0]).count(), 0);
    }
}
