//! The record of what is ours in the kernel.
//!
//! An IPVS virtual server carries no owner, so the agent writes down each one before it makes it,
//! and removes only what is written here. Beside them stand the deadlines of draining backends, which
//! must survive a restart.
//!
//! The file is a journal: a line an entry, `<crc32> <json>`, appended, and synced where it claims a
//! virtual server; it is written anew when most of its lines are history. A line that was cut short
//! by a crash is ignored. The first line names the boot: after a reboot the kernel is empty and the
//! record starts over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{StateError, replace};
use crate::{dataplane::key::ServerKey, error::chain};

pub(super) const FILE: &str = "record";
pub(super) const LOCK: &str = "lock";
const VERSION: u32 = 1;
/// The journal is compacted when it has this many lines more than twice what is alive.
const SLACK: usize = 1024;

/// One fact, as it is journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A virtual server is about to be made.
    Server(ServerKey),
    /// It is gone, and its drains with it.
    ServerGone(ServerKey),
    /// A backend drains until this time, in seconds since boot.
    Drain(ServerKey, SocketAddr, u64),
    /// It does so no longer.
    DrainOver(ServerKey, SocketAddr),
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    boot: String,
}

/// What the journal says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Virtual servers that are ours.
    pub servers: BTreeSet<ServerKey>,
    /// Deadlines of draining backends, in seconds since boot.
    pub drains: BTreeMap<(ServerKey, SocketAddr), u64>,
}

impl Contents {
    fn apply(&mut self, entry: &Entry) {
        match *entry {
            Entry::Server(key) => {
                self.servers.insert(key);
            }
            Entry::ServerGone(key) => {
                self.servers.remove(&key);
                self.drains.retain(|(server, _), _| *server != key);
            }
            Entry::Drain(key, backend, deadline) => {
                self.drains.insert((key, backend), deadline);
            }
            Entry::DrainOver(key, backend) => {
                self.drains.remove(&(key, backend));
            }
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let servers = self.servers.iter().map(|key| Entry::Server(*key));
        let drains = self.drains.iter().map(|((key, backend), at)| Entry::Drain(*key, *backend, *at));
        servers.chain(drains)
    }

    fn len(&self) -> usize {
        self.servers.len() + self.drains.len()
    }
}

/// The record, in memory and on disk.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    boot: String,
    contents: Contents,
    journal: File,
    lines: usize,
    /// The last line may have been written in part.
    torn: bool,
    /// Held as long as the record is: two agents on one record would undo each other.
    _lock: File,
    /// Lines of the file that carried no valid checksum when it was opened.
    pub damaged_lines: usize,
}

impl Record {
    /// Opens the record in a state directory, which is made if it is not there.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join(FILE);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| StateError::Write { path: directory.to_owned(), source })?;
        let lock = lock(directory)?;
        let boot = boot_id()?;
        let (contents, damaged_lines) = load(&path, &boot)?;
        let (journal, lines) = write_anew(&path, &boot, &contents)?;
        Ok(Self { path, boot, contents, journal, lines, damaged_lines, torn: false, _lock: lock })
    }

    /// Reads the record without taking it over, for verbs that change nothing.
    pub fn read(directory: &Path) -> Result<Contents, StateError> {
        Ok(load(&directory.join(FILE), &boot_id()?)?.0)
    }

    /// What is ours.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Adds entries. They outlive the agent once this returns; a virtual server that is about to be
    /// made is on disk as well.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), StateError> {
        if entries.is_empty() {
            return Ok(());
        }
        let failed = |source| StateError::Write { path: self.path.clone(), source };
        // Behind a line that could not be written whole, begin a new one.
        let mut text = String::from(if self.torn { "\n" } else { "" });
        for entry in entries {
            push_line(&mut text, entry).map_err(failed)?;
        }
        self.torn = true;
        self.journal.write_all(text.as_bytes()).map_err(failed)?;
        self.torn = false;
        // A drain needs no fsync, which would stand in the way of every endpoint that changes: what
        // is written outlives the agent, and the end of the machine is the end of its connections.
        if entries.iter().any(|entry| matches!(entry, Entry::Server(_))) {
            self.journal.sync_data().map_err(failed)?;
        }
        for entry in entries {
            self.contents.apply(entry);
        }
        self.lines += entries.len();
        if self.lines > 2 * self.contents.len() + SLACK {
            // The entries are durable already; a longer journal does no harm.
            match write_anew(&self.path, &self.boot, &self.contents) {
                Ok(anew) => (self.journal, self.lines) = anew,
                Err(error) => tracing::warn!(error = chain(&error), "failed to compact the record"),
            }
        }
        Ok(())
    }
}

fn push_line(text: &mut String, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(value)?;
    writeln!(text, "{:08x} {json}", crc32fast::hash(json.as_bytes())).map_err(io::Error::other)
}

fn write_anew(path: &Path, boot: &str, contents: &Contents) -> Result<(File, usize), StateError> {
    let failed = |source| StateError::Write { path: path.to_owned(), source };
    let mut text = String::new();
    push_line(&mut text, &Header { version: VERSION, boot: boot.to_owned() }).map_err(failed)?;
    for entry in contents.entries() {
        push_line(&mut text, &entry).map_err(failed)?;
    }
    replace(path, text.as_bytes())?;
    let journal = OpenOptions::new().append(true).open(path).map_err(failed)?;
    Ok((journal, contents.len()))
}

fn load(path: &Path, boot: &str) -> Result<(Contents, usize), StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Contents::default(), 0)),
        Err(source) => return Err(StateError::Read { path: path.to_owned(), source }),
    };
    let mut lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let mut contents = Contents::default();
    match lines.next().and_then(checked::<Header>) {
        Some(header) if header.boot != boot => return Ok((contents, 0)),
        Some(header) if header.version != VERSION => {
            return Err(StateError::Damaged {
                path: path.to_owned(),
                problem: format!("it has version {}, this agent knows version {VERSION}", header.version),
            });
        }
        _ => {}
    }
    let mut damaged = 0;
    for line in lines {
        match checked::<Entry>(line) {
            Some(entry) => contents.apply(&entry),
            None => damaged += 1,
        }
    }
    Ok((contents, damaged))
}

/// The value of a line whose checksum holds.
fn checked<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Option<T> {
    let (sum, json) = line.split_at_checked(9)?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?.trim_end(), 16).ok()?;
    (crc32fast::hash(json) == sum).then(|| serde_json::from_slice(json).ok())?
}

fn lock(directory: &Path) -> Result<File, StateError> {
    let path = directory.join(LOCK);
    let failed = |source| StateError::Write { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StateError::Locked { path }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn boot_id() -> Result<String, StateError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path)
        .map(|id| id.trim().to_owned())
        .map_err(|source| StateError::Read { path: path.to_owned(), source })
}

/// Seconds since boot, sleep included: the clock of drain deadlines.
pub fn since_boot() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec outlives the call. CLOCK_BOOTTIME exists on every Linux we support.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn key(port: u16) -> ServerKey {
        ServerKey::Address { protocol: Protocol::Tcp, address: SocketAddr::from(([10, 96, 0, 1], port)) }
    }

    fn backend(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 1, host], 8080))
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::open(dir.path()).unwrap();
        record
            .append(&[
                Entry::Server(key(80)),
                Entry::Server(key(81)),
                Entry::Drain(key(80), backend(2), 99),
                Entry::Drain(key(81), backend(3), 99),
            ])
            .unwrap();
        record.append(&[Entry::ServerGone(key(81))]).unwrap();
        let expected = record.contents().clone();
        assert_eq!(expected.servers, BTreeSet::from([key(80)]));
        assert_eq!(expected.drains, BTreeMap::from([((key(80), backend(2)), 99)]));
        drop(record);
        assert_eq!(Record::open(dir.path()).unwrap().contents(), &expected);
        assert_eq!(Record::read(dir.path()).unwrap(), expected);
    }

    #[test]
    fn a_second_agent_is_told_to_stay_away() {
        let dir = tempfile::tempdir().unwrap();
        let first = Record::open(dir.path()).unwrap();
        assert!(matches!(Record::open(dir.path()), Err(StateError::Locked { .. })));
        drop(first);
        Record::open(dir.path()).unwrap();
    }

    #[test]
    fn a_line_cut_short_by_a_crash_loses_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        Record::open(dir.path()).unwrap().append(&[Entry::Server(key(80)), Entry::Server(key(81))]).unwrap();
        let path = dir.path().join("record");
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        let record = Record::open(dir.path()).unwrap();
        assert_eq!(record.contents().servers, BTreeSet::from([key(80)]));
        assert_eq!(record.damaged_lines, 1);
    }

    #[test]
    fn a_reboot_starts_the_record_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut contents = Contents::default();
        contents.apply(&Entry::Server(key(80)));
        write_anew(&dir.path().join("record"), "another boot", &contents).unwrap();
        assert_eq!(Record::open(dir.path()).unwrap().contents(), &Contents::default());
    }

    #[test]
    fn history_is_dropped_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::open(dir.path()).unwrap();
        for _ in 0..SLACK {
            record.append(&[Entry::Server(key(80)), Entry::ServerGone(key(80))]).unwrap();
        }
        let lines = fs::read_to_string(dir.path().join("record")).unwrap().lines().count();
        assert!(lines <= SLACK + 3, "{lines} lines for an empty record");
    }
}
