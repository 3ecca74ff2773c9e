//! What is slow to make and lives outside the tree, keyed by its inputs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
}
