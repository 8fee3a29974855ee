//! Writes into the cache: folders, blobs, links and small files. Writes are atomic and never go through a link.
//!
//! Temporary files live under `hub/.locks/.hf-cache-sync`, so that an interruption leaves nothing in a folder that
//! huggingface_hub reads. The last step is always a single rename. File modes follow the umask.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::inside::{self, ensure_dir, open_dir, with_folder};
use super::layout::{self, Layout};
use super::read;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::platform::{self, Folder, Opening};

/// Checks that entries can be created in a folder, if it exists.
///
/// # Errors
/// If this user may not write to it.
pub fn check_writable(folder: &Path) -> Result<()> {
    platform::check_writable(folder).map_err(|e| Error::io("cannot write to", folder, &e))
}

/// How a snapshot file refers to its blob, in order of preference. Chosen once per run by [`LinkKind::probe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A relative symbolic link, like those of huggingface_hub.
    Symlink,
    /// A hard link to the blob.
    Hardlink,
    /// The blob itself, moved out of `blobs/` as huggingface_hub does without symbolic links, or a copy if the blob was
    /// already there.
    Real,
}

impl LinkKind {
    /// Finds out which kind this cache supports. With `no_links`, the client's `HF_HUB_DISABLE_SYMLINKS`, only real
    /// files are used.
    ///
    /// # Errors
    /// If nothing can be written to the cache at all.
    pub fn probe(layout: &Layout, no_links: bool) -> Result<LinkKind> {
        let staging = Staging::new(layout)?;
        let folder = staging.folder()?;
        let file = folder.path().join("file");
        let written = inside::open_in(&folder, "file".as_ref(), Opening::NewToWrite, 0o666)
            .and_then(|mut file| file.write_all(b"probe"));
        written.map_err(|e| Error::io("cannot write", &file, &e))?;
        if no_links {
            return Ok(LinkKind::Real);
        }
        if folder.symlink("file", "link".as_ref()).is_ok() && fs::read(folder.path().join("link")).is_ok() {
            return Ok(LinkKind::Symlink);
        }
        let hard = folder.hard_link(&file, "hard".as_ref()).is_ok();
        Ok(if hard { LinkKind::Hardlink } else { LinkKind::Real })
    }
}

/// A temporary folder for unfinished files; removed on drop.
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
        let path = staging(layout).join(format!("{:016x}", fastrand::u64(..)));
        Staging { root: layout.root().to_path_buf(), path }
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
        remove_staged(&self.root, &self.path);
    }
}

/// Removes a staging folder, or what was moved to its place where there was no room for one. Best effort.
fn remove_staged(root: &Path, path: &Path) {
    if inside::delete_tree(root, path).is_err() {
        let _ = inside::remove_file(root, path);
    }
}

fn staging(layout: &Layout) -> PathBuf {
    layout.state().join("staging")
}

/// Returns whether the folder exists in which things are staged.
pub fn has_staging(layout: &Layout) -> bool {
    fs::symlink_metadata(staging(layout)).is_ok_and(|meta| meta.is_dir())
}

/// Makes sure that deletions can move things out of the way even when the disk is full. Best effort.
pub fn prepare_staging(layout: &Layout) {
    let _ = ensure_dir(layout.root(), &staging(layout));
}

/// Leftovers younger than this may be in use by a process that holds no lock.
const LEFTOVER_AGE: std::time::Duration = std::time::Duration::from_secs(3600);

/// How long the mark of an unverified blob stays. By then, nobody resumes a download.
const OLD_MARK: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// How long a remembered manifest stays after its last use.
pub const UNUSED_MANIFEST: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// Removes leftovers of killed runs that cannot be resumed: staging folders and small partial files. Partial files of
/// large blobs stay for their next pull. Also removes remembered manifests that have not been used for long, and old marks
/// of unverified blobs. Call this only while no other process uses the tool's state. Best effort.
pub fn remove_leftovers(layout: &Layout, now: std::time::SystemTime) {
    let entries = |dir: &str| {
        let path = layout.state().join(dir);
        // Behind a link are somebody else's files.
        let own = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        own.then(|| fs::read_dir(path)).into_iter().flatten().flatten().filter_map(io::Result::ok)
    };
    let is_older = |entry: &fs::DirEntry, limit| {
        let modified = entry.metadata().and_then(|meta| meta.modified());
        modified.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > limit))
    };
    let is_old = |entry: &fs::DirEntry| is_older(entry, LEFTOVER_AGE);
    for file in entries("manifests").filter(|entry| is_older(entry, UNUSED_MANIFEST)) {
        let _ = inside::remove_file(layout.root(), &file.path());
    }
    for mark in entries("unverified").filter(|entry| is_older(entry, OLD_MARK)) {
        let _ = inside::remove_file(layout.root(), &mark.path());
    }
    for staged in entries("staging").filter(is_old) {
        remove_staged(layout.root(), &staged.path());
    }
    let is_small = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.ends_with(".small"));
    for file in entries("partial").filter(is_small).filter(is_old) {
        let _ = inside::remove_file(layout.root(), &file.path());
    }
}

/// Returns whether the snapshot file already refers to this blob: it is the right link, or a real file of the right
/// size.
pub fn is_linked(layout: &Layout, repo: &RepoName, commit: &Commit, path: &RepoPath, blob: &BlobId, size: u64) -> bool {
    let link = layout.snapshot_file(repo, commit, path);
    match fs::symlink_metadata(&link) {
        Ok(meta) if meta.is_symlink() => fs::read_link(&link).is_ok_and(|target| {
            target.as_os_str() == layout::link_text(path, blob).as_str()
                || layout::normalized(&layout.snapshot_file(repo, commit, path).with_file_name("").join(target))
                    == layout.blob(repo, blob)
        }),
        Ok(meta) => meta.is_file() && meta.len() == size,
        Err(_) => false,
    }
}

/// Creates the snapshot of a revision from its blobs.
pub struct SnapshotWriter<'a> {
    /// The cache.
    pub layout: &'a Layout,
    /// The repo.
    pub repo: &'a RepoName,
    /// The revision.
    pub commit: &'a Commit,
    /// How files refer to blobs.
    pub kind: LinkKind,
    /// Blobs that only this snapshot needs, so that [`LinkKind::Real`] may move them into it.
    pub own: &'a HashSet<BlobId>,
}

/// A new snapshot that is not visible yet; removed on drop unless it is published.
#[derive(Debug)]
pub struct StagedSnapshot {
    staging: Staging,
    root: PathBuf,
    snapshot: PathBuf,
}

impl StagedSnapshot {
    /// Moves the snapshot into place. Returns `false` if it exists by now, or if a rename cannot do that here.
    ///
    /// # Errors
    /// If it cannot be moved into place.
    pub fn publish(self) -> Result<bool> {
        let staged = self.staging.path().join("snapshot");
        ensure_dir(&self.root, self.snapshot.parent().unwrap_or(&self.root))?;
        // Not again and again where it is there.
        let publish = || match inside::rename(&self.root, &staged, &self.snapshot) {
            Err(_) if self.snapshot.is_dir() => Ok(false),
            renamed => renamed.map(|()| true),
        };
        match platform::patiently(publish) {
            Ok(published) => Ok(published),
            // The repo is a mount of its own, so each file is put in place individually.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(false),
            // A file system that cannot rename folders.
            Err(error) if is_refused(&error) => Ok(false),
            Err(error) => Err(Error::io("cannot create", &self.snapshot, &error)),
        }
    }
}

impl SnapshotWriter<'_> {
    /// Prepares a new snapshot; `None` if it already exists, so each file must be put in place individually.
    ///
    /// # Errors
    /// The first file that cannot be created.
    pub fn stage(&self, files: &[(&RepoPath, &BlobId)]) -> Result<Option<StagedSnapshot>> {
        let snapshot = self.layout.snapshot(self.repo, self.commit);
        if fs::symlink_metadata(&snapshot).is_ok() {
            return Ok(None);
        }
        let staging = Staging::new(self.layout)?;
        let staged = staging.path().join("snapshot");
        let mut folder = staging.folder()?;
        for (path, blob) in files {
            let file = layout::join(staged.clone(), path);
            let parent = file.parent().unwrap_or(&staged);
            if parent != folder.path() {
                folder = open_dir(self.layout.root(), parent)?;
            }
            self.create_entry(path, blob, &folder, file.file_name().unwrap_or_default())?;
        }
        Ok(Some(StagedSnapshot { staging, root: self.layout.root().to_path_buf(), snapshot }))
    }

    /// Links every file. A new snapshot appears atomically, by one rename. In an existing one, each file is put in
    /// place individually.
    ///
    /// # Errors
    /// The first file that cannot be put in place. Nothing outside the cache is ever modified.
    pub fn write(&self, files: &[(&RepoPath, &BlobId)]) -> Result<()> {
        // Real files are not staged: a blob may be moved only to its final place.
        if self.kind != LinkKind::Real
            && let Some(staged) = self.stage(files)?
            && staged.publish()?
        {
            return Ok(());
        }
        let staging = Staging::new(self.layout)?;
        let folder = staging.folder()?;
        for (index, (path, blob)) in files.iter().enumerate() {
            let is_last = !files[index + 1..].iter().any(|(_, other)| other == blob);
            if self.kind == LinkKind::Real && is_last && self.own.contains(*blob) && self.move_blob(path, blob)? {
                continue;
            }
            self.replace_file(&folder, index.to_string().as_ref(), path, blob)?;
        }
        Ok(())
    }

    /// Moves a blob to the place of the file; returns `false` if it has to be copied instead.
    fn move_blob(&self, path: &RepoPath, blob: &BlobId) -> Result<bool> {
        let source = self.layout.blob(self.repo, blob);
        // The target of a link is shared with others.
        if !fs::symlink_metadata(&source).is_ok_and(|meta| meta.is_file()) {
            return Ok(false);
        }
        let file = self.layout.snapshot_file(self.repo, self.commit, path);
        ensure_dir(self.layout.root(), file.parent().unwrap_or(&file))?;
        Ok(rename_over(self.layout.root(), &source, &file).is_ok())
    }

    /// Makes the file in `staging` first, by a name that no other file had: a rename over a name of the same bytes succeeds
    /// and leaves it there.
    fn replace_file(&self, staging: &Folder, staged: &OsStr, path: &RepoPath, blob: &BlobId) -> Result<()> {
        let file = self.layout.snapshot_file(self.repo, self.commit, path);
        let folder = open_dir(self.layout.root(), file.parent().unwrap_or(&file))?;
        let name = file.file_name().unwrap_or_default();
        check_replaceable(&file)?;
        // Another pull was faster. Where somebody has opened the file already, it could not be replaced on Windows.
        if self.kind == LinkKind::Hardlink && is_same_file(&self.layout.blob(self.repo, blob), &file) {
            return Ok(());
        }
        let failed = |error: io::Error| Error::io("cannot replace", &file, &error);
        match self.create_entry(path, blob, staging, staged) {
            // Another pull was faster, and has moved the blob here.
            Err(_) if self.kind == LinkKind::Real && is_whole(&file, blob) => return Ok(()),
            made => made?,
        }
        match rename_over_in(staging, staged, &folder, name) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let _ = staging.remove_file(staged);
                let beside = temporary_name(name);
                self.create_entry(path, blob, &folder, &beside)?;
                let renamed = rename_over_in(&folder, &beside, &folder, name);
                renamed.inspect_err(|_| drop(folder.remove_file(&beside))).map_err(failed)
            }
            replaced => replaced.map_err(failed),
        }
    }

    fn create_entry(&self, path: &RepoPath, blob: &BlobId, folder: &Folder, name: &OsStr) -> Result<()> {
        let source = self.layout.blob(self.repo, blob);
        let make = || match self.kind {
            LinkKind::Symlink => folder.symlink(&layout::link_text(path, blob), name),
            LinkKind::Hardlink => fs::canonicalize(&source).and_then(|source| folder.hard_link(&source, name)),
            LinkKind::Real => fs::canonicalize(&source).and_then(|source| {
                folder.clone_file(&source, name).or_else(|_| read::copy_quietly(&source, folder, name))
            }),
        };
        platform::patiently(make).map_err(|error| match error.kind() {
            // The folder is our own, so only another file of this revision can be in the way.
            io::ErrorKind::AlreadyExists => Error::failed(format!("cannot put {path} of {} in place", self.repo))
                .because(
                    "this file system ignores case, and the revision has another file whose name differs only in case",
                )
                .hint("use a cache directory on a case-sensitive file system"),
            _ => Error::io("cannot link", &folder.path().join(name), &error),
        })
    }
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
fn temporary_name(name: &OsStr) -> std::ffi::OsString {
    // The file's own name may already have the maximum length.
    let mut temporary = if name.len() > 200 { "long".into() } else { name.to_os_string() };
    temporary.push(format!(".{:08x}.tmp", fastrand::u32(..)));
    temporary
}

/// Whether `file`, which is no link, is what `blob` leads to.
fn is_same_file(blob: &Path, file: &Path) -> bool {
    let id = |path, meta: fs::Metadata| platform::inode(path, &meta).map(|inode| inode.id);
    let found = fs::symlink_metadata(file).ok().filter(fs::Metadata::is_file).and_then(|meta| id(file, meta));
    found.is_some() && found == fs::metadata(blob).ok().and_then(|meta| id(blob, meta))
}

/// Whether a regular file (no link) has the bytes of the blob.
fn is_whole(file: &Path, blob: &BlobId) -> bool {
    fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file() && read::matches_name(file, blob, meta.len()))
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

/// Remembers that bytes of this blob are passed on before they are verified. Whoever has them may resume long after, even
/// from another run of this program, and must not do so if they were wrong.
///
/// # Errors
/// If the mark cannot be written.
pub fn mark_unverified(layout: &Layout, blob: &BlobId) -> Result<()> {
    let path = layout.unverified(blob);
    with_folder(layout.root(), &path, "cannot write", |folder, name| {
        let file = inside::open_in(folder, name, Opening::Any, 0o666)?;
        // It may be an earlier one, whose time counts from now. Best effort: it may be somebody else's.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;
    #[cfg(unix)]
    use std::os::unix::fs::symlink as unix_symlink;

    struct Fixture {
        dir: tempfile::TempDir,
        layout: Layout,
        repo: RepoName,
        commit: Commit,
        blob: BlobId,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = RepoName::new(RepoType::Model, "org/name".parse().unwrap());
        let blob: BlobId = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        ensure_dir(layout.root(), &layout.blobs(&repo)).unwrap();
        fs::write(layout.blob(&repo, &blob), b"hello\n").unwrap();
        Fixture { dir, layout, repo, commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(), blob }
    }

    #[test]
    fn every_kind_of_link_reads_the_same() {
        for kind in [LinkKind::Symlink, LinkKind::Hardlink, LinkKind::Real] {
            let f = fixture();
            if kind == LinkKind::Symlink && LinkKind::probe(&f.layout, false).unwrap() != kind {
                continue;
            }
            let writer =
                SnapshotWriter { layout: &f.layout, repo: &f.repo, commit: &f.commit, kind, own: &HashSet::new() };
            let (top, deep): (RepoPath, RepoPath) = ("a".parse().unwrap(), "d/e/a".parse().unwrap());
            writer.write(&[(&top, &f.blob)]).unwrap();
            writer.write(&[(&deep, &f.blob)]).unwrap();
            for path in [&top, &deep] {
                let file = f.layout.snapshot_file(&f.repo, &f.commit, path);
                assert_eq!(fs::read(&file).unwrap(), b"hello\n");
                assert_eq!(fs::symlink_metadata(&file).unwrap().is_symlink(), kind == LinkKind::Symlink);
                assert!(is_linked(&f.layout, &f.repo, &f.commit, path, &f.blob, 6));
            }
            let staging = f.layout.state().join("staging");
            assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
        }
    }

    /// Who pulls the same revision at the same time finds every file in place, as the very file that is to be linked.
    #[test]
    fn files_that_are_there_already_are_linked_again() {
        let f = fixture();
        let other: BlobId = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        fs::write(f.layout.blob(&f.repo, &other), b"other\n").unwrap();
        let (a, b, c): (RepoPath, RepoPath, RepoPath) =
            ("a".parse().unwrap(), "b".parse().unwrap(), "d/c".parse().unwrap());
        let files = [(&a, &f.blob), (&b, &f.blob), (&c, &other)];
        for kind in [LinkKind::Hardlink, LinkKind::Real, LinkKind::Hardlink] {
            let writer =
                SnapshotWriter { layout: &f.layout, repo: &f.repo, commit: &f.commit, kind, own: &HashSet::new() };
            for _ in 0..2 {
                writer.write(&files).unwrap();
                for (path, blob) in files {
                    let (file, blob) = (f.layout.snapshot_file(&f.repo, &f.commit, path), f.layout.blob(&f.repo, blob));
                    assert_eq!(fs::read(&file).unwrap(), fs::read(&blob).unwrap());
                    assert_eq!(is_same_file(&blob, &file), kind == LinkKind::Hardlink, "{kind:?}");
                }
            }
        }
        assert_eq!(fs::read_dir(f.layout.state().join("staging")).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_written_through_a_link() {
        let f = fixture();
        let victim = f.dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        let repo = f.layout.repo(&f.repo);
        unix_symlink(&victim, repo.join("refs")).unwrap();
        assert!(write_ref(&f.layout, &f.repo, &RefName::main(), &f.commit, true).is_err());
        let snapshot = f.layout.snapshot(&f.repo, &f.commit);
        fs::create_dir_all(&snapshot).unwrap();
        unix_symlink(&victim, snapshot.join("d")).unwrap();
        let writer = SnapshotWriter {
            layout: &f.layout,
            repo: &f.repo,
            commit: &f.commit,
            kind: LinkKind::Symlink,
            own: &HashSet::new(),
        };
        let path: RepoPath = "d/a".parse().unwrap();
        assert!(writer.write(&[(&path, &f.blob)]).is_err());
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_not_followed() {
        let f = fixture();
        let victim = f.dir.path().join("victim");
        fs::write(&victim, b"mine").unwrap();
        let reference = f.layout.reference(&f.repo, &RefName::main());
        fs::create_dir_all(reference.parent().unwrap()).unwrap();
        unix_symlink(&victim, &reference).unwrap();
        write_ref(&f.layout, &f.repo, &RefName::main(), &f.commit, true).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert_eq!(fs::read_to_string(&reference).unwrap(), f.commit.as_str());
    }
}
