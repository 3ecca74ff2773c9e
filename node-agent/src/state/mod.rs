//! What the agent remembers over a restart, in its state directory: the record of the kernel
//! objects it made (`record`), and the objects it last followed (`snapshot`).

pub mod record;
pub mod snapshot;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A file of the state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading failed.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Writing failed.
    #[error("failed to write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another agent uses the directory.
    #[error("{path} is locked: an agent is running with this state directory; stop it first")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The content does not carry the checksum it was written with.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
}

/// Removes the files of a state directory, and the directory if nothing else is in it.
pub fn remove(directory: &Path) -> Result<(), StateError> {
    for name in [record::FILE, snapshot::FILE, record::LOCK] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::Write { path, source });
            }
            _ => {}
        }
    }
    // A directory that holds something of somebody else stays.
    let _ = fs::remove_dir(directory);
    Ok(())
}

/// Puts `content` in the place of the file at `path`, whole or not at all, also over a power cut.
fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let failed = |source| StateError::Write { path: path.to_owned(), source };
    let next = path.with_extension("next");
    // What a cluster is made of is nobody else's to read, and a link in the way is not followed.
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&next)
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&next, path).map_err(failed)?;
    // The rename itself is durable once the directory is.
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed)
}
