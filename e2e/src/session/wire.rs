//! What travels between the rig and a place it has made, over one stream each way.
//!
//! The rig sends requests, a line of JSON each. The place answers with frames that name the command they are about:
//! what it prints as it prints it, and how it ended.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Output is sent in frames of at most this many bytes.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// The number of the place itself, where commands have theirs.
pub const PLACE: u32 = 0;

/// What the rig asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Makes the place fit for commands; comes first, answered by [`Event::Ready`].
    Prepare {
        /// The name the place gets as a host.
        hostname: String,
        /// The folder of the kernel's modules, to be bound to its place under /lib/modules.
        modules: Option<PathBuf>,
    },
    /// Starts a command.
    Run {
        /// Names the command in what follows.
        id: u32,
        /// What to run.
        command: Command,
    },
    /// Kills a command and what it has started.
    Kill {
        /// The command's number.
        id: u32,
    },
}

/// A command to run as root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program, as a path or in PATH, and its arguments.
    pub argv: Vec<String>,
    /// Its environment; PATH and HOME are given.
    pub env: BTreeMap<String, String>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Its standard input.
    pub input: String,
}

impl Command {
    /// A command without input, in the root folder.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), cwd: "/".into(), ..Self::default() }
    }
}

/// What a place says of a command, or of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The command's number, or [`PLACE`].
    pub id: u32,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The place can run commands.
    Ready,
    /// The command wrote to its standard output.
    Stdout(Vec<u8>),
    /// The command wrote to its standard error.
    Stderr(Vec<u8>),
    /// The command ended with this code, 128 + n for signal n.
    Exit(i32),
    /// The place could not be made ready, or the command not be started.
    Failed(String),
}

impl Frame {
    /// Writes the frame as kind, number, length and payload.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let code;
        let (kind, payload): (u8, &[u8]) = match &self.event {
            Event::Ready => (b'R', &[]),
            Event::Stdout(bytes) => (b'O', bytes),
            Event::Stderr(bytes) => (b'E', bytes),
            Event::Exit(status) => {
                code = status.to_be_bytes();
                (b'X', &code)
            }
            Event::Failed(text) => (b'F', text.as_bytes()),
        };
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        // one write a frame: a virtio-serial port takes a buffer a write
        let mut frame = Vec::with_capacity(9 + payload.len());
        frame.push(kind);
        frame.extend(self.id.to_be_bytes());
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
        let id = number(from)?;
        let length = usize::try_from(number(from)?).map_err(io::Error::other)?;
        if length > 2 * MAX_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        let unfit = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let event = match kind {
            [b'R'] => Event::Ready,
            [b'O'] => Event::Stdout(payload),
            [b'E'] => Event::Stderr(payload),
            [b'X'] => {
                Event::Exit(i32::from_be_bytes(payload.try_into().map_err(|_| unfit("a short exit code"))?))
            }
            [b'F'] => Event::Failed(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err(unfit("an unknown frame")),
        };
        Ok(Some(Self { id, event }))
    }
}

fn number(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let events = [
            Event::Ready,
            Event::Stdout(b"test result: ok\n".to_vec()),
            Event::Stderr(vec![0, 255, 10]),
            Event::Failed("no such file".into()),
            Event::Exit(-7),
        ];
        let frames: Vec<_> = (7..).zip(events).map(|(id, event)| Frame { id, event }).collect();
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
        Frame { id: 1, event: Event::Exit(0) }.write(&mut bytes).unwrap();
        bytes.pop();
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn noise_on_the_stream_is_told_from_frames() {
        let noise = b"\x1b[?7l\x1b[2J\x1b[0m".as_slice();
        assert_eq!(Frame::read(&mut { noise }).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
