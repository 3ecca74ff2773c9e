//! What is slow to make and lives outside the tree, keyed by its inputs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The folder of everything cached: `$FAIRLEAD_CACHE`, else `fairlead` in the user's cache folder.
pub fn folder() -> Result<PathBuf> {
    let from = |name: &str, below: &str| {
        std::env::var_os(name).filter(|value| !value.is_empty()).map(|value| PathBuf::from(value).join(below))
    };
    from("FAIRLEAD_CACHE", "")
        .or_else(|| from("XDG_CACHE_HOME", "fairlead"))
        .or_else(|| from("HOME", ".cache/fairlead"))
        .context("failed to choose a cache folder: set FAIRLEAD_CACHE, XDG_CACHE_HOME or HOME")
}

/// The entry `key`, made by `build` when it is not there yet.
///
/// `build` fills a folder of its own beside the entry, renamed into place at the end: an entry is whole or absent,
/// and of two builders at once the first one's is kept.
pub fn entry(folder: &Path, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let place = folder.join(key);
    if place.is_dir() {
        return Ok(place);
    }
    fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let staging = tempfile::Builder::new()
        .prefix(".building-")
        .tempdir_in(folder)
        .with_context(|| format!("failed to create a folder in {}", folder.display()))?;
    let content = staging.path().join("entry");
    fs::create_dir(&content)?;
    build(&content)?;
    match fs::rename(&content, &place) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
        result => result.with_context(|| format!("failed to put {} into place", place.display()))?,
    }
    Ok(place)
}

/// A folder for this process, gone with the value. What killed processes have left behind is swept first.
pub fn scratch() -> Result<TempDir> {
    let folder = folder()?.join("run");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    sweep(&folder, |pid| Path::new("/proc").join(pid).exists());
    let prefix = format!("{}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(&folder);
    made.with_context(|| format!("failed to create a folder in {}", folder.display()))
}

fn sweep(folder: &Path, lives: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        if name.to_str().and_then(|name| name.split_once('-')).is_some_and(|(pid, _)| !lives(pid)) {
            // another rig may be sweeping too
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Replaces a small file as a whole.
pub fn write_file(file: &Path, content: &str) -> Result<()> {
    let folder = file.parent().context("a cache file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let mut staged = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut staged, content.as_bytes())?;
    staged.persist(file).with_context(|| format!("failed to write {}", file.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_built_once() {
        let folder = tempfile::tempdir().unwrap();
        let build = |dir: &Path| Ok(fs::write(dir.join("vmlinuz"), "kernel")?);
        let place = entry(folder.path(), "a-1", build).unwrap();
        assert_eq!(fs::read_to_string(place.join("vmlinuz")).unwrap(), "kernel");
        entry(folder.path(), "a-1", |_| panic!("built twice")).unwrap();
    }

    #[test]
    fn a_failed_build_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let build = |dir: &Path| {
            fs::write(dir.join("vmlinuz"), "half")?;
            anyhow::bail!("interrupted")
        };
        entry(folder.path(), "a-1", build).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn of_two_builders_the_first_ones_entry_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let place = entry(folder.path(), "a-1", |dir| {
            entry(folder.path(), "a-1", |dir| Ok(fs::write(dir.join("by"), "first")?))?;
            Ok(fs::write(dir.join("by"), "second")?)
        });
        assert_eq!(fs::read_to_string(place.unwrap().join("by")).unwrap(), "first");
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["100-a", "200-b"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        sweep(folder.path(), |pid| pid == "200");
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["200-b"]);
    }
}
