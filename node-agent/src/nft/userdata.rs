//! What the kernel keeps for user space without reading it: comments and byte orders, in the format
//! of libnftnl (type, length, value, one byte each for the first two), so that `nft list` shows them.

use crate::netlink::AttrWriter;

/// Where a comment stands, by kind of object.
#[derive(Clone, Copy, Debug)]
pub(super) enum CommentOf {
    Rule = 0,
    Set = 7,
}

const SET_KEY_BYTE_ORDER: u8 = 0;
const SET_DATA_BYTE_ORDER: u8 = 1;
pub(super) const HOST_ORDER: u32 = 1;
pub(super) const NETWORK_ORDER: u32 = 2;
/// Longest comment that `nft` itself writes.
const COMMENT_MAX: usize = 128;

/// Collects entries.
#[derive(Debug, Default)]
pub(super) struct UserData(Vec<u8>);

impl UserData {
    pub fn comment(mut self, of: CommentOf, text: Option<&str>) -> Self {
        let Some(text) = text else { return self };
        let end = (0..=text.len().min(COMMENT_MAX)).rev().find(|at| text.is_char_boundary(*at));
        let mut value = text.get(..end.unwrap_or_default()).unwrap_or_default().as_bytes().to_vec();
        value.push(0);
        self.entry(of as u8, &value);
        self
    }

    pub fn byte_orders(mut self, key: Option<u32>, data: Option<u32>) -> Self {
        for (kind, order) in [(SET_KEY_BYTE_ORDER, key), (SET_DATA_BYTE_ORDER, data)] {
            if let Some(order) = order {
                self.entry(kind, &order.to_ne_bytes());
            }
        }
        self
    }

    fn entry(&mut self, kind: u8, value: &[u8]) {
        if let Ok(length) = u8::try_from(value.len()) {
            self.0.extend_from_slice(&[kind, length]);
            self.0.extend_from_slice(value);
        }
    }

    pub fn write(self, w: &mut AttrWriter<'_>, kind: u16) {
        if !self.0.is_empty() {
            w.bytes(kind, &self.0);
        }
    }
}

/// The comment in userdata, whoever wrote it.
pub(super) fn comment(of: CommentOf, mut bytes: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = bytes {
        let (value, behind) = rest.split_at_checked(usize::from(*length))?;
        if *kind == of as u8 {
            let text = value.split(|byte| *byte == 0).next()?;
            return String::from_utf8(text.to_vec()).ok();
        }
        bytes = behind;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_among_other_entries() {
        // byte order of the keys (host), then a comment of a set
        let bytes = [0, 4, 1, 0, 0, 0, 7, 3, b'h', b'i', 0];
        assert_eq!(comment(CommentOf::Set, &bytes).as_deref(), Some("hi"));
        assert_eq!(comment(CommentOf::Set, &bytes[..9]), None);
    }

    #[test]
    fn a_long_comment_is_cut_between_characters() {
        let data = UserData::default().comment(CommentOf::Rule, Some(&"ä".repeat(100)));
        assert_eq!(comment(CommentOf::Rule, &data.0), Some("ä".repeat(64)));
    }
}
