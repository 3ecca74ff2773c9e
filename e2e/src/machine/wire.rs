//! What travels between the rig and the first process of the machine, over one virtio-serial port.
//!
//! The rig sends a [`Job`] as one line of JSON. The machine answers with frames: what the command prints as it
//! prints it, and how it ended. The kernel's own messages go to a serial console apart, so the two never mix.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The name of the port, as the machine finds it under /sys/class/virtio-ports.
pub const PORT: &str = "fairlead.rig";

/// Output is sent in frames of at most this many bytes.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// One command to run as root in the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its whole environment, but for PATH and HOME.
    pub env: BTreeMap<String, String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// The folder of the kernel's modules, to be bound to its place under /lib/modules.
    pub modules: PathBuf,
}

/// What the machine says.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The command is about to start.
    Ready,
    /// The command wrote to its standard output.
    Stdout(Vec<u8>),
    /// The command wrote to its standard error.
    Stderr(Vec<u8>),
    /// The command ended with this code, 128 + n for signal n.
    Exit(i32),
    /// The machine could not be made ready or the command not be started.
    Failed(String),
}

impl Frame {
    /// Writes the frame as kind, length and payload.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let code;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Ready => (b'R', &[]),
            Self::Stdout(bytes) => (b'O', bytes),
            Self::Stderr(bytes) => (b'E', bytes),
            Self::Exit(status) => {
                code = status.to_be_bytes();
                (b'X', &code)
            }
            Self::Failed(text) => (b'F', text.as_bytes()),
        };
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        // one write a frame: a virtio-serial port takes a buffer a write
        let mut frame = Vec::with_capacity(5 + payload.len());
        frame.push(kind);
        frame.extend(length.to_be_bytes());
        frame.extend(payload);
        out.write_all(&frame)
    }

    /// Reads the next frame; none at the end of the stream.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
        if length > 2 * MAX_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        let unfit = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        Ok(Some(match kind {
            [b'R'] => Self::Ready,
            [b'O'] => Self::Stdout(payload),
            [b'E'] => Self::Stderr(payload),
            [b'X'] => {
                Self::Exit(i32::from_be_bytes(payload.try_into().map_err(|_| unfit("a short exit code"))?))
            }
            [b'F'] => Self::Failed(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err(unfit("an unknown frame")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let frames = [
            Frame::Ready,
            Frame::Stdout(b"test result: ok\n".to_vec()),
            Frame::Stderr(vec![0, 255, 10]),
            Frame::Failed("no such file".into()),
            Frame::Exit(-7),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut from).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_cut_frame_is_an_error_and_not_the_end() {
        let mut bytes = Vec::new();
        Frame::Exit(0).write(&mut bytes).unwrap();
        bytes.pop();
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn noise_on_the_port_is_told_from_frames() {
        let noise = b"\x1b[?7l\x1b[2J".as_slice();
        assert_eq!(Frame::read(&mut { noise }).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
