//! Deletes files and folders, never through a link, and counts the bytes that this frees.
//!
//! A folder is first renamed into the tool's own state, so that other programs see all of it or none of it, even after an
//! interruption. The next `prune` removes anything an interruption leaves there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::inside;
use super::layout::Layout;
use super::staging::{self, Staging};
use crate::error::Cause;
use crate::platform;

/// Returns whether every parent of `path` below `root` is a real folder, so that nothing is reached through a link.
pub fn is_inside(root: &Path, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(root) else { return false };
    let Some(parents) = inside.parent() else { return false };
    let mut folder = root.to_path_buf();
    parents.components().all(|part| {
        folder.push(part);
        fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir())
    })
}

/// Deletes one file or link below `root`, and returns the number of bytes freed, which is 0 while the file has other hard
/// links. A missing file is not an error.
///
/// # Errors
/// If it cannot be deleted, or is a folder.
pub fn delete_file(root: &Path, path: &Path) -> io::Result<u64> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let last = platform::inode(path, &meta).is_none_or(|inode| inode.links <= 1);
    inside::remove_file(root, path)?;
    Ok(if meta.is_file() && last { meta.len() } else { 0 })
}

/// A file or folder that was moved out of the cache by one rename, and that is deleted on drop.
#[derive(Debug)]
pub struct StagedRemoval {
    root: PathBuf,
    from: PathBuf,
    path: PathBuf,
    staging: Staging,
}

impl StagedRemoval {
    /// Moves a file or folder out of the cache; `None` if a rename cannot do that: to another file system, from a lower
    /// layer of an overlay, or where even a new name needs space and there is none, as on btrfs.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn move_out(layout: &Layout, from: &Path) -> io::Result<Option<StagedRemoval>> {
        let (staging, path) = match Staging::new(layout) {
            Ok(staging) => {
                let path = staging.path().join("removed");
                (staging, path)
            }
            // On a full disk, there is no room for a folder, but still for another name.
            Err(error) if error.cause == Cause::DiskFull => {
                if !staging::exists(layout) {
                    return Ok(None);
                }
                let staging = Staging::without_folder(layout);
                let path = staging.path().to_path_buf();
                (staging, path)
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        match platform::patiently(|| inside::rename(layout.root(), from, &path)) {
            Ok(()) => {
                let root = layout.root().to_path_buf();
                Ok(Some(StagedRemoval { root, from: from.to_path_buf(), path, staging }))
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(None),
            Err(error) if Cause::of_io(&error) == Cause::DiskFull => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns its current location.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes the folder, and returns the number of bytes freed.
    ///
    /// # Errors
    /// If something in it cannot be deleted. It stays out of the cache then.
    pub fn delete(self) -> io::Result<u64> {
        inside::delete_tree(&self.root, &self.path)
    }

    /// Moves it back, merging it with anything that was created in its place meanwhile.
    ///
    /// # Errors
    /// If some of it cannot be moved back. That part stays where it is.
    pub fn put_back(self) -> io::Result<()> {
        merge_into(&self.root, &self.path, &self.from).inspect_err(|_| self.staging.keep())
    }
}

/// Moves a file or folder, except for entries that already exist at `to`: newer entries win.
fn merge_into(root: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return inside::rename(root, from, to),
        there => there?,
    };
    match (fs::symlink_metadata(from)?.is_dir(), there.is_dir()) {
        (true, true) => fs::read_dir(from)?.try_for_each(|entry| {
            let name = entry?.file_name();
            merge_into(root, &from.join(&name), &to.join(&name))
        }),
        (false, false) => Ok(()),
        _ => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Deletes a folder atomically if the file system allows it, and returns the number of bytes freed.
///
/// # Errors
/// If the folder, or something in it, cannot be deleted.
pub fn delete_folder(layout: &Layout, path: &Path) -> io::Result<u64> {
    match StagedRemoval::move_out(layout, path) {
        Ok(Some(removal)) => removal.delete(),
        Ok(None) => inside::delete_tree(layout.root(), path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn bytes_are_freed_with_the_last_hard_link() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, b"12345").unwrap();
        fs::hard_link(&one, &two).unwrap();
        assert_eq!(delete_file(dir.path(), &one).unwrap(), 0);
        assert_eq!(delete_file(dir.path(), &two).unwrap(), 5);
        assert_eq!(delete_file(dir.path(), &two).unwrap(), 0, "it is gone already");
    }

    #[test]
    fn put_back_merges_with_newer_entries() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = layout.root().join("models--a--b");
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::write(repo.join("blobs/one"), "1").unwrap();
        let removal = StagedRemoval::move_out(&layout, &repo).unwrap().unwrap();
        assert!(!repo.exists());
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::write(repo.join("blobs/two"), "2").unwrap();
        removal.put_back().unwrap();
        assert!(repo.join("blobs/one").exists() && repo.join("blobs/two").exists());
        assert_eq!(fs::read_dir(layout.staging()).unwrap().count(), 0);

        let removal = StagedRemoval::move_out(&layout, &repo).unwrap().unwrap();
        let kept = removal.path().join("blobs/one");
        fs::create_dir_all(layout.root()).unwrap();
        fs::write(&repo, "a file").unwrap();
        assert!(removal.put_back().is_err() && kept.exists());
    }

    #[test]
    fn links_are_deleted_but_not_their_targets() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let (victim, snapshot) = (dir.path().join("victim"), layout.root().join("models--a--b/snapshots/c"));
        fs::create_dir_all(&victim).unwrap();
        fs::write(victim.join("file"), b"mine").unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        symlink(&victim, snapshot.join("link")).unwrap();
        assert!(is_inside(layout.root(), &snapshot));
        assert_eq!(delete_folder(&layout, &snapshot).unwrap(), 0);
        assert!(!snapshot.exists() && victim.join("file").exists());

        symlink(&victim, layout.root().join("models--a--b/blobs")).unwrap();
        assert!(!is_inside(layout.root(), &layout.root().join("models--a--b/blobs/file")));
        assert!(!is_inside(layout.root(), &victim));
    }
}
