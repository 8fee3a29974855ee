//! Deleting, one step at a time, never through a link, and counting what the disk gets back.
//!
//! A folder is first renamed into the tool's own state, so that an interruption leaves nothing half: whoever looks
//! sees it whole or not at all. What an interruption leaves there, the next `prune` removes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::place::Staging;

/// Whether every part of `path` between `root` and its last is a real folder: nothing is reached through a link.
pub fn is_inside(root: &Path, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(root) else { return false };
    let Some(parents) = inside.parent() else { return false };
    let mut folder = root.to_path_buf();
    parents.components().all(|part| {
        folder.push(part);
        fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir())
    })
}

/// Deletes one name; returns the bytes that the disk gets back, which are none while the file has other names. A
/// name that is gone already is no error.
///
/// # Errors
/// When it cannot be deleted, or is a folder.
pub fn file(path: &Path) -> io::Result<u64> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    fs::remove_file(path)?;
    let last = super::scan::inode(&meta).is_none_or(|inode| inode.links <= 1);
    Ok(if meta.is_file() && last { meta.len() } else { 0 })
}

/// Deletes a folder and all in it, links as links; returns the bytes that the disk gets back.
///
/// # Errors
/// The first entry that cannot be deleted; what came before it is gone.
pub fn tree(path: &Path) -> io::Result<u64> {
    let mut freed = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        freed += match entry.file_type()?.is_dir() {
            true => tree(&entry.path())?,
            false => file(&entry.path())?,
        };
    }
    fs::remove_dir(path)?;
    Ok(freed)
}

/// A file or folder that was taken out of the cache by one rename; deleted on drop.
#[derive(Debug)]
pub struct Aside {
    from: PathBuf,
    path: PathBuf,
    staging: Staging,
}

impl Aside {
    /// Takes it out of the cache; `None` where that takes more than a rename (another file system, or a folder
    /// of a lower layer of an overlay).
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn take(layout: &Layout, from: &Path) -> io::Result<Option<Aside>> {
        let staging = Staging::new(layout).map_err(|error| io::Error::other(error.to_string()))?;
        let path = staging.path().join("aside");
        match fs::rename(from, &path) {
            Ok(()) => Ok(Some(Aside { from: from.to_path_buf(), path, staging })),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes the folder; returns the bytes that the disk gets back.
    ///
    /// # Errors
    /// When something in it cannot be deleted; it stays out of the cache then.
    pub fn delete(self) -> io::Result<u64> {
        tree(&self.path)
    }

    /// Puts it back where it was, or into what stands there by now.
    ///
    /// # Errors
    /// When some of it cannot be put back, which then stays where it is.
    pub fn put_back(self) -> io::Result<()> {
        merge(&self.path, &self.from).inspect_err(|_| self.staging.keep())
    }
}

/// Moves a file or folder, or what of it is not at `to` yet: who made something anew has made what is wanted now.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(from, to),
        there => there?,
    };
    match (fs::symlink_metadata(from)?.is_dir(), there.is_dir()) {
        (true, true) => fs::read_dir(from)?.try_for_each(|entry| {
            let name = entry?.file_name();
            merge(&from.join(&name), &to.join(&name))
        }),
        (false, false) => Ok(()),
        _ => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Deletes a folder so that it vanishes at once, where the file system can do that.
///
/// # Errors
/// When it, or something in it, cannot be deleted.
pub fn folder(layout: &Layout, path: &Path) -> io::Result<u64> {
    match Aside::take(layout, path) {
        Ok(Some(aside)) => aside.delete(),
        Ok(None) => tree(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn bytes_count_with_their_last_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, b"12345").unwrap();
        fs::hard_link(&one, &two).unwrap();
        assert_eq!(file(&one).unwrap(), 0);
        assert_eq!(file(&two).unwrap(), 5);
        assert_eq!(file(&two).unwrap(), 0, "it is gone already");
    }

    #[test]
    fn what_is_put_back_joins_what_came_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = layout.root().join("models--a--b");
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::write(repo.join("blobs/one"), "1").unwrap();
        let aside = Aside::take(&layout, &repo).unwrap().unwrap();
        assert!(!repo.exists());
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::write(repo.join("blobs/two"), "2").unwrap();
        aside.put_back().unwrap();
        assert!(repo.join("blobs/one").exists() && repo.join("blobs/two").exists());
        assert_eq!(fs::read_dir(layout.state().join("staging")).unwrap().count(), 0);

        let aside = Aside::take(&layout, &repo).unwrap().unwrap();
        let kept = aside.path().join("blobs/one");
        fs::create_dir_all(layout.root()).unwrap();
        fs::write(&repo, "a file").unwrap();
        assert!(aside.put_back().is_err() && kept.exists());
    }

    #[test]
    fn links_are_deleted_and_not_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let (victim, snapshot) = (dir.path().join("victim"), layout.root().join("models--a--b/snapshots/c"));
        fs::create_dir_all(&victim).unwrap();
        fs::write(victim.join("file"), b"mine").unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        symlink(&victim, snapshot.join("link")).unwrap();
        assert!(is_inside(layout.root(), &snapshot));
        assert_eq!(folder(&layout, &snapshot).unwrap(), 0);
        assert!(!snapshot.exists() && victim.join("file").exists());

        symlink(&victim, layout.root().join("models--a--b/blobs")).unwrap();
        assert!(!is_inside(layout.root(), &layout.root().join("models--a--b/blobs/file")));
        assert!(!is_inside(layout.root(), &victim));
    }
}
