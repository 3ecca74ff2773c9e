//! Generic netlink: families found by name, and the header of their messages
//! (`include/uapi/linux/genetlink.h`).

use super::{Attrs, KernelError, NetlinkError, Socket};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// `sizeof(struct genlmsghdr)`.
pub const HEADER: usize = 4;

/// `struct genlmsghdr`: what a message asks for, and in which version of its family.
pub fn header(command: u8, version: u8) -> [u8; HEADER] {
    [command, version, 0, 0]
}

/// The command of a received message, and its attributes.
pub fn split(payload: &[u8]) -> Option<(u8, Attrs<'_>)> {
    let ([command, ..], rest) = payload.split_first_chunk::<HEADER>()?;
    Some((*command, Attrs::new(rest)))
}

/// The message type of a family's requests.
pub fn family_id(socket: &mut Socket, name: &'static str) -> Result<u16, NetlinkError> {
    let mut id = None;
    let answer = socket.get(
        GENL_ID_CTRL,
        &header(CTRL_CMD_GETFAMILY, 1),
        |w| {
            w.string(CTRL_ATTR_FAMILY_NAME, name);
        },
        |message| {
            id = split(message.payload)
                .and_then(|(_, attrs)| attrs.find(CTRL_ATTR_FAMILY_ID))
                .and_then(super::Attr::u16);
        },
    );
    match answer {
        Err(NetlinkError::Kernel(KernelError { errno: libc::ENOENT, .. })) => {
            Err(NetlinkError::NoFamily { name })
        }
        Err(error) => Err(error),
        Ok(()) => id.ok_or(NetlinkError::NoFamily { name }),
    }
}
