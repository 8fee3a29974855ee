//! Locks: huggingface_hub's own on a blob that is being fetched, and this tool's on the cache.
//!
//! Both are flock(2) locks on files under `hub/.locks`, which the kernel releases when a process ends, so that no
//! stale lock can block anybody. On a file system without flock there is nothing to take, and work goes on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use super::layout::Layout;
use super::place::ensure_dir;
use crate::error::{Error, Result};
use crate::ids::{BlobId, RepoName};

/// A held lock, released on drop.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
}

/// How the tool's own lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By commands that read or add: many at a time.
    Shared,
    /// By commands that delete: alone.
    Exclusive,
}

/// Tries to take huggingface_hub's lock on a blob; `None` while another process has it (it is downloading it).
///
/// # Errors
/// When the lock file cannot be created, for example in a read-only cache.
pub fn try_client_lock(layout: &Layout, repo: &RepoName, blob: &BlobId) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.client_lock(repo, blob), Mode::Exclusive)
}

/// The same for a blob so small that fetching it twice costs less than a lock file: one that another process has made
/// is heeded, and none is made. `None` while another process has it; `Some(None)` when there is none.
///
/// # Errors
/// When the lock file is there and cannot be opened.
pub fn try_client_lock_if_there(layout: &Layout, repo: &RepoName, blob: &BlobId) -> Result<Option<Option<Lock>>> {
    let path = layout.client_lock(repo, blob);
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(None)),
        _ => Ok(take(&path, Mode::Exclusive, 0o664)?.map(Some)),
    }
}

/// Tries to take this tool's lock on the cache; `None` while another process has it in a way that excludes `mode`.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_tool_lock(layout: &Layout, mode: Mode) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.state().join("lock"), mode)
}

/// Tries to take the lock that makes a `watch` the only one of its cache; `None` while another process has it.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_watch_lock(layout: &Layout) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.state().join("watch.lock"), Mode::Exclusive)
}

/// Tries to take the lock on a partial download, which excludes a second pull of the same blob for another repo.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_partial_lock(layout: &Layout, blob: &BlobId) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.partial(blob).with_extension("lock"), Mode::Exclusive)
}

/// Tries to take huggingface_hub's lock on a payload of the cache-wide store. A file system without flock counts as
/// held: the client then guards the payload in a way of its own, and it is better left alone.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_store_lock(path: &Path) -> Result<Option<Lock>> {
    let lock = take(path, Mode::Exclusive, 0o666)?;
    Ok(lock.filter(|lock| lock._file.is_some()))
}

fn try_lock(root: &Path, path: &Path, mode: Mode) -> Result<Option<Lock>> {
    if let Some(parent) = path.parent() {
        ensure_dir(root, parent)?;
    }
    take(path, mode, 0o664)
}

fn take(path: &Path, mode: Mode, bits: u32) -> Result<Option<Lock>> {
    let failed = |error: &io::Error| Error::io("cannot lock", path, error);
    loop {
        let file = open(path, bits).map_err(|e| failed(&e))?;
        let taken = match mode {
            Mode::Shared => file.try_lock_shared(),
            Mode::Exclusive => file.try_lock(),
        };
        match taken {
            Ok(()) if still_there(&file, path) => return Ok(Some(Lock { _file: Some(file) })),
            // Unlinked between open and lock: the lock on the dead file excludes nobody.
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::debug!(path = %path.display(), "this file system has no flock: going on without a lock");
                return Ok(Some(Lock { _file: None }));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
    }
}

/// Opens or creates the file, never through a link, with at least these mode bits (0664 is the client's for blobs).
fn open(path: &Path, bits: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).mode(bits);
        let file = options.open(path)?;
        let mode = file.metadata()?.permissions().mode();
        if mode & bits != bits {
            // Only the owner may: another user's lock file works as it is.
            let _ = file.set_permissions(std::fs::Permissions::from_mode((mode & 0o7777) | bits));
        }
        Ok(file)
    }
    #[cfg(not(unix))]
    {
        let _ = bits;
        options.open(path)
    }
}

#[cfg(unix)]
fn still_there(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn still_there(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RepoType;

    #[test]
    fn readers_share_and_a_deleter_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let one = try_tool_lock(&layout, Mode::Shared).unwrap();
        let two = try_tool_lock(&layout, Mode::Shared).unwrap();
        assert!(one.is_some() && two.is_some());
        assert!(try_tool_lock(&layout, Mode::Exclusive).unwrap().is_none());
        drop((one, two));
        let alone = try_tool_lock(&layout, Mode::Exclusive).unwrap();
        assert!(alone.is_some() && try_tool_lock(&layout, Mode::Shared).unwrap().is_none());
    }

    #[cfg(unix)]
    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = RepoName::new(RepoType::Model, "a/b".parse().unwrap());
        let blob: BlobId = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        let path = layout.client_lock(&repo, &blob);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), &path).unwrap();
        assert!(try_client_lock(&layout, &repo, &blob).is_err());
        assert!(!dir.path().join("victim").exists());
    }
}
