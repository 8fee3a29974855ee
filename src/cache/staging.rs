//! Temporary folders in the tool's own state, for files that are not finished and for what is about to be deleted. They are
//! on the same file system as the rest of the cache where possible, so that one rename moves their content into place.

use std::fs;
use std::path::{Path, PathBuf};

use super::inside::{self, ensure_dir, open_dir};
use super::layout::Layout;
use crate::error::Result;
use crate::platform::Folder;

/// A temporary folder; removed on drop.
#[derive(Debug)]
pub struct Staging {
    root: PathBuf,
    path: PathBuf,
}

impl Staging {
    /// Creates an empty folder under the tool's state.
    ///
    /// # Errors
    /// If the cache is not writable.
    pub fn new(layout: &Layout) -> Result<Staging> {
        let staging = Staging::without_folder(layout);
        ensure_dir(layout.root(), &staging.path)?;
        Ok(staging)
    }

    /// Returns a place for one file or folder. It needs no space, but the tool's staging folder has to exist already.
    pub fn without_folder(layout: &Layout) -> Staging {
        Staging { root: layout.root().to_path_buf(), path: layout.new_staged() }
    }

    /// Opens it.
    ///
    /// # Errors
    /// If it is no longer there.
    pub fn folder(&self) -> Result<Folder> {
        open_dir(&self.root, &self.path)
    }

    /// Returns its location.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder and its content on disk.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove(&self.root, &self.path);
    }
}

/// Removes a staging folder, or what was moved to its place where there was no room for one. Best effort.
pub(super) fn remove(root: &Path, path: &Path) {
    if inside::delete_tree(root, path).is_err() {
        let _ = inside::remove_file(root, path);
    }
}

/// Returns whether the folder exists in which things are staged.
pub(super) fn exists(layout: &Layout) -> bool {
    fs::symlink_metadata(layout.staging()).is_ok_and(|meta| meta.is_dir())
}

/// Makes sure that deletions can move things out of the way even when the disk is full. Best effort.
pub fn prepare(layout: &Layout) {
    let _ = ensure_dir(layout.root(), &layout.staging());
}
