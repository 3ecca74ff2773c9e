//! Folders that stay visible where a layer is put over what holds them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Folders, taken before something covers them.
pub struct Taken(Vec<(PathBuf, OwnedFd)>);

/// Takes folders, with what is mounted below them.
pub fn take(folders: &[PathBuf]) -> Result<Taken> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let taken = folders.iter().map(|folder| {
        let tree = open_tree(CWD, folder, flags);
        Ok((folder.clone(), tree.with_context(|| format!("failed to keep {} visible", folder.display()))?))
    });
    taken.collect::<Result<_>>().map(Taken)
}

/// Puts them back into their places.
pub fn put(taken: Taken) -> Result<()> {
    for (folder, tree) in taken.0 {
        fs::create_dir_all(&folder)?;
        move_mount(tree, "", CWD, &folder, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("failed to put {} back", folder.display()))?;
    }
    Ok(())
}
