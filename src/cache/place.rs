//! Writes files into the cache: atomically, and never through a link.
//!
//! Temporary files live under `hub/.locks/.hf-cache-sync`, so that an interruption leaves nothing in a folder that
//! huggingface_hub reads. The last step is always a single rename. File modes follow the umask.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::inside::{self, open_dir, with_folder};
use super::layout::Layout;
use super::read;
use super::staging::Staging;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ids::{BlobId, Commit, RefName, RepoName};
use crate::platform::{self, Folder, Opening};

/// Checks that entries can be created in a folder, if it exists.
///
/// # Errors
/// If this user may not write to it.
pub fn check_writable(folder: &Path) -> Result<()> {
    platform::check_writable(folder).map_err(|e| Error::io("cannot write to", folder, &e))
}

/// Writes a ref. A ref that already names the commit is not rewritten, so that a complete cache may be read-only.
///
/// # Errors
/// If it cannot be written, or a part of its path is a link.
pub fn write_ref(layout: &Layout, repo: &RepoName, name: &RefName, commit: &Commit, sync: bool) -> Result<()> {
    write_small(layout, &layout.reference(repo, name), commit.as_str().as_bytes(), sync)
}

/// Returns whether the error means that the file system does not support the operation. Mounts of buckets and of remote
/// machines lack many operations, and report that in as many ways.
pub fn is_refused(error: &io::Error) -> bool {
    platform::is_refused(error)
        || matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput | io::ErrorKind::NotSeekable)
}

/// Turns a failed flush into a success if the file system does not support flushing.
pub fn flushed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_refused(&error) => {
            tracing::debug!(%error, "this file system does not flush");
            Ok(())
        }
        result => result,
    }
}

/// Renames an entry of the cache, replacing an existing target. On file systems that cannot do that atomically, the target
/// is removed first, so that for a moment neither exists.
///
/// # Errors
/// If it cannot be renamed, or one of the folders does not exist or is reached through a link.
pub fn rename_over(root: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let ((source, name), (target, new)) = (inside::parent(root, from, false)?, inside::parent(root, to, false)?);
    rename_over_in(&source, name, &target, new)
}

/// Like [`rename_over`], from one folder to another.
pub fn rename_over_in(from: &Folder, name: &OsStr, to: &Folder, new: &OsStr) -> io::Result<()> {
    match platform::patiently(|| from.rename(name, to, new)) {
        Err(error)
            if (is_refused(&error) || error.kind() == io::ErrorKind::AlreadyExists)
                && fs::symlink_metadata(to.path().join(new)).is_ok_and(|meta| !meta.is_dir()) =>
        {
            to.remove_file(new)?;
            from.rename(name, to, new)
        }
        renamed => renamed,
    }
}

/// Writes a small file atomically, unless it already has this content. With `sync`, its bytes are flushed to the disk
/// before it appears; on ext4, that also waits for much of the data recently written to other files.
///
/// # Errors
/// If it cannot be written, or a part of its path is a link.
pub fn write_small(layout: &Layout, path: &Path, content: &[u8], sync: bool) -> Result<()> {
    if has_content(path, content) {
        return Ok(());
    }
    check_replaceable(path)?;
    let folder = open_dir(layout.root(), path.parent().unwrap_or(path))?;
    let name = path.file_name().unwrap_or_default();
    let staging = Staging::new(layout)?;
    let write_in = |staging: &Folder, staged: &OsStr| -> io::Result<()> {
        let mut file = inside::open_in(staging, staged, Opening::NewToWrite, 0o666)?;
        let written = file.write_all(content).and_then(|()| if sync { flushed(file.sync_all()) } else { Ok(()) });
        drop(file);
        let renamed = written.and_then(|()| rename_over_in(staging, staged, &folder, name));
        renamed.inspect_err(|_| drop(staging.remove_file(staged)))
    };
    let written = match write_in(&staging.folder()?, "file".as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => write_in(&folder, &temporary_name(name)),
        written => written,
    };
    written.map_err(|e| Error::io("cannot write", path, &e))
}

/// Returns a temporary name for a file, for folders on another file system than the tool's state. Its suffix is that of the
/// client's own temporary files.
pub(super) fn temporary_name(name: &OsStr) -> std::ffi::OsString {
    // The file's own name may already have the maximum length.
    let mut temporary = if name.len() > 200 { "long".into() } else { name.to_os_string() };
    temporary.push(format!(".{:08x}.tmp", fastrand::u32(..)));
    temporary
}

/// Returns whether `path` is a regular file (not a link) with exactly this content.
pub fn has_content(path: &Path, content: &[u8]) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == content.len() as u64)
        && read::read_small(path, content.len() as u64).is_ok_and(|bytes| bytes.as_deref() == Some(content))
}

/// Checks that a file may be placed at `path`. A named pipe, a socket or a device is left alone.
///
/// # Errors
/// [`crate::error::Cause::Other`] if `path` is one of these.
pub fn check_replaceable(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if files::is_special(&meta) => {
            Err(Error::failed(format!("cannot replace {}", crate::error::printable(&path.to_string_lossy(), 400)))
                .because(files::not_a_file(&meta))
                .hint("remove it, then run the same command again"))
        }
        _ => Ok(()),
    }
}

/// Flushes a folder, so that a rename in it survives a power failure. Best effort: not every system supports it.
pub fn sync_dir(path: &Path) {
    let _ = platform::sync_dir(path);
}

/// Remembers that bytes of this blob are passed on before they are verified. A client that has them may resume much later,
/// even from another run of this program, and must not do so if they were wrong.
///
/// # Errors
/// If the mark cannot be written.
pub fn mark_unverified(layout: &Layout, blob: &BlobId) -> Result<()> {
    let path = layout.unverified(blob);
    with_folder(layout.root(), &path, "cannot write", |folder, name| {
        let file = inside::open_in(folder, name, Opening::Any, 0o666)?;
        // An earlier mark counts from now. Best effort: another user may own it.
        let _ = file.set_modified(std::time::SystemTime::now());
        Ok(())
    })
}

/// Returns whether [`mark_unverified`] was called for this blob, and not [`unmark_unverified`] since.
pub fn is_marked_unverified(layout: &Layout, blob: &BlobId) -> bool {
    fs::symlink_metadata(layout.unverified(blob)).is_ok()
}

/// Notes that what was passed on has been verified.
pub fn unmark_unverified(layout: &Layout, blob: &BlobId) {
    let _ = inside::remove_file(layout.root(), &layout.unverified(blob));
}

/// Marks a file as used now by setting its access time, which also works on noatime mounts. Best effort: a read-only
/// cache or another owner is not an error.
pub fn mark_used(path: &Path, now: std::time::SystemTime) {
    if let Ok(file) = super::read::open_quietly(path) {
        let _ = file.set_times(fs::FileTimes::new().set_accessed(now));
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;

    #[test]
    fn a_link_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = RepoName::new(RepoType::Model, "org/name".parse().unwrap());
        let commit: Commit = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, b"mine").unwrap();
        let reference = layout.reference(&repo, &RefName::main());
        fs::create_dir_all(reference.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&victim, &reference).unwrap();
        write_ref(&layout, &repo, &RefName::main(), &commit, true).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert_eq!(fs::read_to_string(&reference).unwrap(), commit.as_str());
    }
}
