//! Locks: huggingface_hub's own on a blob that is being fetched, and this tool's on the cache.
//!
//! Both are flock(2) locks on files under `hub/.locks`, which the kernel releases when a process ends, so that no stale lock
//! blocks another process. On a file system without flock, work continues without locks: huggingface_hub uses the existence
//! of a file there, which a killed process may leave behind. Deletions check [`Lock::is_real`] first.

use std::ffi::OsStr;
use std::fs::{File, FileTimes, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::inside;
use super::layout::Layout;
use super::place::is_refused;
use crate::error::{Error, Result};
use crate::model::ids::{BlobId, RepoName};
use crate::platform::{self, Folder, Opening};

/// How often a lock file is opened again if it is unlinked as soon as it is locked.
const TRIES: u32 = 1000;

/// A held lock, released on drop.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Returns whether it excludes other processes, which it does not on a file system without flock.
    pub fn is_real(&self) -> bool {
        self._file.is_some()
    }
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
        _ => Ok(try_lock(layout.root(), &path, Mode::Exclusive)?.map(Some)),
    }
}

/// Whether another process holds a lock on this file, or may hold one, since the file cannot be opened. Makes none.
pub fn is_held(path: &Path) -> bool {
    // A FIFO in its place must not be waited for.
    let options = platform::flagged(OpenOptions::new().read(true), platform::NO_FOLLOW | platform::NO_WAIT);
    // To write, where that is allowed: NFS locks no file that is open to read only.
    let file = match options.clone().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => options.open(path),
        opened => opened,
    };
    match file {
        Err(error) => error.kind() != io::ErrorKind::NotFound,
        Ok(file) => match file.try_lock() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(error)) => !has_no_flock(&error),
        },
    }
}

/// Tries to take this tool's lock on the cache; `None` while another process has it in a way that excludes `mode`.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_tool_lock(layout: &Layout, mode: Mode) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.tool_lock(), mode)
}

/// Tries to take the lock that makes a `watch` the only one of its cache; `None` while another process has it.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_watch_lock(layout: &Layout) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.watch_lock(), Mode::Exclusive)
}

/// Tries to take the lock that makes a repair the only one of its cache; `None` while another process has it.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_repair_lock(layout: &Layout) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.repair_lock(), Mode::Exclusive)
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
pub fn try_store_lock(root: &Path, path: &Path) -> Result<Option<Lock>> {
    let lock = take(root, path, Mode::Exclusive, 0o666)?;
    Ok(lock.filter(Lock::is_real))
}

/// Tries to take the lock on the upload of a large blob, which excludes a second push of the same blob from this cache:
/// both would go on with the same parts. `None` while another process has it.
///
/// # Errors
/// When the lock file cannot be created.
pub fn try_upload_lock(layout: &Layout, blob: &BlobId) -> Result<Option<Lock>> {
    try_lock(layout.root(), &layout.upload(blob).with_extension("lock"), Mode::Exclusive)
}

fn try_lock(root: &Path, path: &Path, mode: Mode) -> Result<Option<Lock>> {
    take(root, path, mode, 0o664)
}

/// Whether a lock file was made by this tool, and not by huggingface_hub; see `open`.
pub fn is_own(path: &Path) -> bool {
    std::fs::symlink_metadata(path).and_then(|meta| meta.modified()).is_ok_and(|time| time == SystemTime::UNIX_EPOCH)
}

fn take(root: &Path, path: &Path, mode: Mode, bits: u32) -> Result<Option<Lock>> {
    take_with(root, path, bits, |file| match mode {
        Mode::Shared => file.try_lock_shared(),
        Mode::Exclusive => file.try_lock(),
    })
}

fn take_with(
    root: &Path,
    path: &Path,
    bits: u32,
    flock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<Lock>> {
    let failed = |error: &io::Error| Error::io("cannot lock", path, error);
    let mut tried = 0;
    loop {
        tried += 1;
        let open = |folder: &Folder, name: &OsStr| platform::patiently(|| open(folder, name, bits));
        let (file, made) = inside::with_folder(root, path, "cannot lock", open)?;
        match flock(&file) {
            // Some file systems have no stable inode numbers, so that the file never looks the same.
            Ok(()) if platform::is_at(&file, path) || tried == TRIES => return Ok(Some(Lock { _file: Some(file) })),
            // Unlinked between open and lock: the lock on the deleted file excludes no one.
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) if has_no_flock(&error) => {
                tracing::debug!(path = %path.display(), "this file system has no flock: continuing without a lock");
                // There, huggingface_hub considers the lock held if the file exists, and would wait forever.
                if made {
                    let _ = inside::remove_file(root, path);
                }
                return Ok(Some(Lock { _file: None }));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
    }
}

/// Returns whether the file system has no locks at all; NFS without its lock service reports a different error.
fn has_no_flock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || platform::lacks_lock_service(error)
}

/// Opens or creates the file, never through a link, with at least these mode bits (0664 is the client's for blobs). Returns
/// whether it was created. A new file is dated 1970, which distinguishes it from those of huggingface_hub, whose time
/// `prune` treats as that of the last download.
fn open(folder: &Folder, name: &OsStr, bits: u32) -> io::Result<(File, bool)> {
    let open = |opening| inside::open_in(folder, name, opening, bits);
    let (file, made) = match open(Opening::New) {
        Ok(file) => (file, true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match open(Opening::Any) {
                // Another user's, which is 0644 where the umask is 022, or on a mount that opens what is there for reading
                // alone: for a lock, that is enough.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied || is_refused(&error) => {
                    (open(Opening::Existing)?, false)
                }
                opened => (opened?, false),
            }
        }
        Err(error) => return Err(error),
    };
    if made {
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH));
    }
    // Another user's lock file works as it is, and a file with another name may not be a lock file at all.
    if platform::links(&file).is_none_or(|links| links == 1) {
        platform::widen_mode(&file, bits)?;
    }
    Ok((file, made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;

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

    #[test]
    fn without_flock_no_file_is_left_that_would_look_like_a_held_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let no_flock = |_: &File| Err(TryLockError::Error(io::ErrorKind::Unsupported.into()));
        let lock = take_with(dir.path(), &path, 0o664, no_flock).unwrap().unwrap();
        assert!(!lock.is_real() && !path.exists());
        #[cfg(unix)]
        {
            let no_service = |_: &File| Err(TryLockError::Error(rustix::io::Errno::NOLCK.into()));
            assert!(!take_with(dir.path(), &path, 0o664, no_service).unwrap().unwrap().is_real() && !path.exists());
        }
        std::fs::write(&path, "somebody's").unwrap();
        let lock = take_with(dir.path(), &path, 0o664, no_flock).unwrap().unwrap();
        assert!(!lock.is_real() && path.exists());
    }

    #[test]
    fn our_own_lock_files_are_told_from_the_clients() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a.lock"), dir.path().join("b.lock"));
        std::fs::write(&theirs, "").unwrap();
        for path in [&ours, &theirs] {
            assert!(take(dir.path(), path, Mode::Exclusive, 0o664).unwrap().is_some_and(|lock| lock.is_real()));
        }
        let held = take(dir.path(), &theirs, Mode::Exclusive, 0o664).unwrap();
        assert!(is_held(&theirs) && !is_held(&ours) && !is_held(&dir.path().join("c.lock")));
        drop(held);
        assert!(!is_held(&theirs));
        assert!(is_own(&ours) && !is_own(&theirs) && !is_own(&dir.path().join("c.lock")));
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

    #[cfg(unix)]
    #[test]
    fn a_file_with_another_name_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "mine").unwrap();
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        std::fs::create_dir_all(layout.state()).unwrap();
        std::fs::hard_link(&victim, layout.tool_lock()).unwrap();
        assert!(try_tool_lock(&layout, Mode::Shared).unwrap().is_some());
        let meta = std::fs::metadata(&victim).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert_ne!(meta.modified().unwrap(), SystemTime::UNIX_EPOCH);
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
    }
}
