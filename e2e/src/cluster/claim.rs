//! Who owns a state folder: a locked file, so that the kernel says whether the owner still lives.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::eventually;

const FILE: &str = "owner.json";

const ASKERS: Duration = Duration::from_millis(300);

/// The process that owns a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// The cluster's id.
    pub id: String,
}

/// A state folder held by this process, until the value goes or the process does.
#[derive(Debug)]
pub struct Claim {
    _file: File,
}

impl Claim {
    /// Takes a folder that no living process owns.
    pub fn take(folder: &Path, id: &str) -> Result<Self> {
        let path = folder.join(FILE);
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = opened.with_context(|| format!("failed to open {}", path.display()))?;
        // who asks whether the owner lives holds the lock for a moment
        let free = eventually("the owner has gone", ASKERS, || is_locked(&file).is_ok_and(|locked| !locked));
        if free.is_err() {
            bail!("a cluster runs in {} already: take it down first (`rig cluster down`)", folder.display());
        }
        let owner = Owner { pid: std::process::id(), id: id.to_owned() };
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(&owner)?)?;
        Ok(Self { _file: file })
    }
}

/// The last owner of a folder, and whether it lives.
pub fn owner(folder: &Path) -> Result<Option<(Owner, bool)>> {
    let path = folder.join(FILE);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to open {}", path.display())),
    };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let owner = serde_json::from_str(&text).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(Some((owner, is_locked(&file)?)))
}

/// Whether another holds the lock; takes it otherwise.
fn is_locked(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).context("failed to lock a file of the cluster's"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_living_owner() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(owner(folder.path()).unwrap(), None);
        let claim = Claim::take(folder.path(), "one").unwrap();
        let me = Owner { pid: std::process::id(), id: "one".into() };
        assert_eq!(owner(folder.path()).unwrap(), Some((me.clone(), true)));
        let error = Claim::take(folder.path(), "two").unwrap_err().to_string();
        assert!(error.contains("rig cluster down"), "{error}");
        drop(claim);
        assert_eq!(owner(folder.path()).unwrap(), Some((me, false)));
        let _claim = Claim::take(folder.path(), "two").unwrap();
        assert_eq!(owner(folder.path()).unwrap().unwrap().0.id, "two");
    }
}
