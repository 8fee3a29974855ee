//! Putting things into the cache: folders, blobs, links, small files. Never through a link, never torn.
//!
//! Temporaries live under `hub/.locks/.hf-cache-sync`, so that an interruption leaves nothing in a folder that
//! huggingface_hub looks at; the last step is always one rename. Files get the modes that the umask gives.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use super::layout::{self, Layout};
use super::read;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};

/// Makes sure that `dir`, at or below `root`, is a folder, and that no part below `root` is a link.
///
/// # Errors
/// [`crate::error::Cause::Other`] when a part is a link or a file, or cannot be created.
pub fn ensure_dir(root: &Path, dir: &Path) -> Result<()> {
    let inside = dir.strip_prefix(root).map_err(|_| outside(dir))?;
    if !root.is_dir() {
        fs::create_dir_all(root).map_err(|e| Error::io("cannot create the cache directory", root, &e))?;
    }
    let mut path = root.to_path_buf();
    for part in inside.components() {
        let Component::Normal(part) = part else { return Err(outside(dir)) };
        path.push(part);
        // Creating first saves a look in the common case of a missing folder, and settles races with the client.
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => continue,
            Ok(meta) => return Err(not_a_folder(&path, meta.is_symlink())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("cannot look at", &path, &error)),
        }
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let meta = fs::symlink_metadata(&path).map_err(|e| Error::io("cannot look at", &path, &e))?;
                if !meta.is_dir() {
                    return Err(not_a_folder(&path, meta.is_symlink()));
                }
            }
            Err(error) => return Err(Error::io("cannot create", &path, &error)),
        }
    }
    Ok(())
}

/// Like [`ensure_dir`] without making anything: what is there of `dir` must be folders and no links.
///
/// # Errors
/// [`crate::error::Cause::Other`] when a part is a link or a file.
pub fn check_dir(root: &Path, dir: &Path) -> Result<()> {
    let inside = dir.strip_prefix(root).map_err(|_| outside(dir))?;
    let mut path = root.to_path_buf();
    for part in inside.components() {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(meta) => return Err(not_a_folder(&path, meta.is_symlink())),
            Err(_) => break,
        }
    }
    Ok(())
}

/// Whether entries can be made in a folder, as far as it is there.
///
/// # Errors
/// When this user may not write to it.
pub fn check_writable(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    match rustix::fs::access(folder, rustix::fs::Access::WRITE_OK) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(Error::io("cannot write to", folder, &error.into())),
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Does something with a file below `root`, and makes its folder only when that shows to be missing: the usual case
/// costs no look at every part of the path. Who calls this in a loop has checked the folder with [`ensure_dir`] before.
///
/// # Errors
/// `what` names the failure.
pub fn with_folder<T>(root: &Path, path: &Path, what: &str, attempt: impl Fn() -> io::Result<T>) -> Result<T> {
    match attempt() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ensure_dir(root, path.parent().unwrap_or(root))?;
            attempt().map_err(|e| Error::io(what, path, &e))
        }
        result => result.map_err(|e| Error::io(what, path, &e)),
    }
}

fn outside(path: &Path) -> Error {
    Error::invalid(format!("refusing to write {}", path.display())).because("it is outside the cache")
}

fn not_a_folder(path: &Path, is_link: bool) -> Error {
    let what = if is_link { "a symbolic link" } else { "not a folder" };
    Error::failed(format!("refusing to write below {}", path.display()))
        .because(format!("it is {what}"))
        .hint("remove or rename it, or use another cache directory")
}

/// How a snapshot file refers to its blob, best first; chosen once per cache by [`LinkKind::probe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A relative symbolic link, as huggingface_hub makes it.
    Symlink,
    /// A hard link to the blob.
    Hardlink,
    /// The blob itself, which then is not in `blobs/` any more, as huggingface_hub does it without symbolic links; a
    /// copy of one that was there before.
    Real,
}

impl LinkKind {
    /// What this cache allows. With `no_links`, which is the client's `HF_HUB_DISABLE_SYMLINKS`, nothing else than real
    /// files is wanted.
    ///
    /// # Errors
    /// When nothing can be written into the cache at all.
    pub fn probe(layout: &Layout, no_links: bool) -> Result<LinkKind> {
        let state = layout.state();
        ensure_dir(layout.root(), &state)?;
        let dir = Staging::new(layout)?;
        let file = dir.path().join("file");
        fs::write(&file, b"probe").map_err(|e| Error::io("cannot write", &file, &e))?;
        if no_links {
            return Ok(LinkKind::Real);
        }
        if symlink("file", &dir.path().join("link")).is_ok() && fs::read(dir.path().join("link")).is_ok() {
            return Ok(LinkKind::Symlink);
        }
        let hard = fs::hard_link(&file, dir.path().join("hard")).is_ok();
        Ok(if hard { LinkKind::Hardlink } else { LinkKind::Real })
    }
}

#[cfg(unix)]
fn symlink(text: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(text, link)
}

#[cfg(windows)]
fn symlink(text: &str, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(text.replace('/', "\\"), link)
}

/// A folder of our own for things that are not finished; removed on drop.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    /// A fresh, empty folder under the tool's state.
    ///
    /// # Errors
    /// When the cache cannot be written to.
    pub fn new(layout: &Layout) -> Result<Staging> {
        let path = layout.state().join("staging").join(format!("{:016x}", fastrand::u64(..)));
        ensure_dir(layout.root(), &path)?;
        Ok(Staging { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves what is in it.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Leftovers younger than this may be in use by a process that holds no lock.
const LEFTOVER_AGE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Removes what killed runs have left and nobody can take up again: staging folders and small partial files. Partial
/// files of large blobs stay, for their next pull. To be called while no other process uses the state. Best effort.
pub fn sweep(layout: &Layout, now: std::time::SystemTime) {
    let entries = |dir: &str| {
        let path = layout.state().join(dir);
        // A link would lead to somebody else's files.
        let own = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        own.then(|| fs::read_dir(path)).into_iter().flatten().flatten().filter_map(io::Result::ok)
    };
    let is_old = |entry: &fs::DirEntry| {
        let modified = entry.metadata().and_then(|meta| meta.modified());
        modified.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > LEFTOVER_AGE))
    };
    for folder in entries("staging").filter(is_old) {
        let _ = fs::remove_dir_all(folder.path());
    }
    let is_small = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.ends_with(".small"));
    for file in entries("partial").filter(is_small).filter(is_old) {
        let _ = fs::remove_file(file.path());
    }
}

/// Whether the snapshot file refers to this blob already: the right link, or a real file of the right size.
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

/// Makes snapshots of one repo revision out of its blobs.
pub struct SnapshotWriter<'a> {
    /// The cache.
    pub layout: &'a Layout,
    /// The repo.
    pub repo: &'a RepoName,
    /// The revision.
    pub commit: &'a Commit,
    /// How files refer to blobs.
    pub kind: LinkKind,
    /// Blobs that nothing but this snapshot needs, so that [`LinkKind::Real`] may move them into it.
    pub own: &'a HashSet<BlobId>,
}

/// A new snapshot that nobody sees yet; removed again unless it is published.
#[derive(Debug)]
pub struct Staged {
    staging: Staging,
    root: PathBuf,
    snapshot: PathBuf,
}

impl Staged {
    /// Makes the snapshot appear; `false` when another process has made it meanwhile.
    ///
    /// # Errors
    /// When it cannot be moved into place.
    pub fn publish(self) -> Result<bool> {
        ensure_dir(&self.root, self.snapshot.parent().unwrap_or(&self.root))?;
        match fs::rename(self.staging.path().join("snapshot"), &self.snapshot) {
            Ok(()) => Ok(true),
            Err(_) if self.snapshot.is_dir() => Ok(false),
            // The repo is a mount of its own: then each file is put in place by itself.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(false),
            // A file system that cannot rename folders.
            Err(error) if is_refused(&error) => Ok(false),
            Err(error) => Err(Error::io("cannot create", &self.snapshot, &error)),
        }
    }
}

impl SnapshotWriter<'_> {
    /// Prepares a snapshot that is not there yet. `None` when it is: then each file is put in place by itself.
    ///
    /// # Errors
    /// The first file that cannot be made.
    pub fn stage(&self, files: &[(&RepoPath, &BlobId)]) -> Result<Option<Staged>> {
        let snapshot = self.layout.snapshot(self.repo, self.commit);
        if fs::symlink_metadata(&snapshot).is_ok() {
            return Ok(None);
        }
        let staging = Staging::new(self.layout)?;
        let staged = staging.path().join("snapshot");
        let mut last_folder = PathBuf::new();
        for (path, blob) in files {
            let file = layout::join(staged.clone(), path);
            let folder = file.parent().unwrap_or(&staged);
            if folder != last_folder {
                fs::create_dir_all(folder).map_err(|e| Error::io("cannot create", folder, &e))?;
                last_folder = folder.to_path_buf();
            }
            self.make(path, blob, &file)?;
        }
        Ok(Some(Staged { staging, root: self.layout.root().to_path_buf(), snapshot }))
    }

    /// Links every file. A snapshot that is not there yet appears whole, by one rename; in one that is there, each
    /// file is put in place by itself.
    ///
    /// # Errors
    /// The first file that cannot be put in place; nothing outside the cache is ever touched.
    pub fn write(&self, files: &[(&RepoPath, &BlobId)]) -> Result<()> {
        // A blob may be moved away only once it is certain where to.
        if self.kind != LinkKind::Real
            && let Some(staged) = self.stage(files)?
            && staged.publish()?
        {
            return Ok(());
        }
        let staging = Staging::new(self.layout)?;
        for (index, (path, blob)) in files.iter().enumerate() {
            let is_last = !files[index + 1..].iter().any(|(_, other)| other == blob);
            if self.kind == LinkKind::Real && is_last && self.own.contains(*blob) && self.give_away(path, blob)? {
                continue;
            }
            self.replace(&staging, path, blob)?;
        }
        Ok(())
    }

    /// Moves a blob to where the file is to be; `false` when it has to be copied.
    fn give_away(&self, path: &RepoPath, blob: &BlobId) -> Result<bool> {
        let source = self.layout.blob(self.repo, blob);
        // A link leads to bytes that others need.
        if !fs::symlink_metadata(&source).is_ok_and(|meta| meta.is_file()) {
            return Ok(false);
        }
        let file = self.layout.snapshot_file(self.repo, self.commit, path);
        if let Some(folder) = file.parent() {
            ensure_dir(self.layout.root(), folder)?;
        }
        Ok(rename_over(&source, &file).is_ok())
    }

    fn replace(&self, staging: &Staging, path: &RepoPath, blob: &BlobId) -> Result<()> {
        let file = self.layout.snapshot_file(self.repo, self.commit, path);
        if let Some(folder) = file.parent() {
            ensure_dir(self.layout.root(), folder)?;
        }
        check_replaceable(&file)?;
        let failed = |error: io::Error| Error::io("cannot replace", &file, &error);
        let staged = staging.path().join("file");
        self.make(path, blob, &staged)?;
        match rename_over(&staged, &file) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let _ = fs::remove_file(&staged);
                let beside = beside(&file);
                self.make(path, blob, &beside)?;
                rename_over(&beside, &file).inspect_err(|_| drop(fs::remove_file(&beside))).map_err(failed)
            }
            replaced => replaced.map_err(failed),
        }
    }

    fn make(&self, path: &RepoPath, blob: &BlobId, at: &Path) -> Result<()> {
        let source = self.layout.blob(self.repo, blob);
        let made = match self.kind {
            LinkKind::Symlink => symlink(&layout::link_text(path, blob), at),
            LinkKind::Hardlink => fs::canonicalize(&source).and_then(|source| fs::hard_link(source, at)),
            LinkKind::Real => fs::canonicalize(&source)
                .and_then(|source| reflink_copy::reflink(&source, at).or_else(|_| read::copy_quietly(&source, at))),
        };
        made.map_err(|error| match error.kind() {
            // The folder is our own: only another file of this revision can be in the way.
            io::ErrorKind::AlreadyExists => Error::failed(format!("cannot put {path} of {} in place", self.repo))
                .because("the revision has another file whose name is the same to this file system, which ignores case")
                .hint("use a cache directory on a file system that does not"),
            _ => Error::io("cannot link", at, &error),
        })
    }
}

/// Writes a ref. One that says the same already is left as it is, so that a complete cache may be read-only.
///
/// # Errors
/// When it cannot be written, or a part of its path is a link.
pub fn write_ref(layout: &Layout, repo: &RepoName, name: &RefName, commit: &Commit, sync: bool) -> Result<()> {
    write_small(layout, &layout.reference(repo, name), commit.as_str().as_bytes(), sync)
}

/// Whether the file system says that it does not know such an operation at all. Mounts of buckets and of other machines
/// lack many of them, and have as many ways to say so.
pub fn is_refused(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) {
        return true;
    }
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput | io::ErrorKind::NotSeekable)
}

/// The result of flushing, which some file systems do not know.
pub fn flushed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_refused(&error) => {
            tracing::debug!(%error, "this file system does not flush");
            Ok(())
        }
        result => result,
    }
}

/// Renames a file to a name that may be taken. Some file systems cannot do both at once: there the old one is removed
/// before, so that for a moment there is neither.
pub fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error)
            if (is_refused(&error) || error.kind() == io::ErrorKind::AlreadyExists)
                && fs::symlink_metadata(to).is_ok_and(|meta| !meta.is_dir()) =>
        {
            fs::remove_file(to)?;
            fs::rename(from, to)
        }
        renamed => renamed,
    }
}

/// Writes a small file whole, by rename, unless its content is that already. With `sync` its bytes are on the disk
/// before it appears, which on ext4 waits for much of what was written to other files before.
///
/// # Errors
/// When it cannot be written, or a part of its path is a link.
pub fn write_small(layout: &Layout, path: &Path, content: &[u8], sync: bool) -> Result<()> {
    if has_content(path, content) {
        return Ok(());
    }
    check_replaceable(path)?;
    if let Some(parent) = path.parent() {
        ensure_dir(layout.root(), parent)?;
    }
    let staging = Staging::new(layout)?;
    let write_by = |staged: &Path| -> io::Result<()> {
        let mut file = File::create_new(staged)?;
        file.write_all(content)?;
        if sync {
            flushed(file.sync_all())?;
        }
        drop(file);
        rename_over(staged, path).inspect_err(|_| drop(fs::remove_file(staged)))
    };
    let written = match write_by(&staging.path().join("file")) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => write_by(&beside(path)),
        written => written,
    };
    written.map_err(|e| Error::io("cannot write", path, &e))
}

/// A name beside a file whose folder is on another file system than the tool's own, to be renamed at once. It ends as
/// the client's own temporaries do.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    // A name may be as long as the file system allows.
    if name.len() > 200 {
        name = "long".into();
    }
    name.push(format!(".{:08x}.tmp", fastrand::u32(..)));
    path.with_file_name(name)
}

/// Whether a regular file (no link) has exactly this content.
pub fn has_content(path: &Path, content: &[u8]) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == content.len() as u64)
        && read::read_small(path, content.len() as u64).is_ok_and(|bytes| bytes.as_deref() == Some(content))
}

/// Whether a file may be put where `path` is: a named pipe, a socket or a device belongs to somebody, and is left.
///
/// # Errors
/// [`crate::error::Cause::Other`] when something of the kind stands there.
pub fn check_replaceable(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if files::is_special(&meta) => {
            Err(Error::failed(format!("cannot replace {}", crate::error::printable(&path.to_string_lossy(), 400)))
                .because(files::not_a_file(&meta))
                .hint("remove it, and run the same again"))
        }
        _ => Ok(()),
    }
}

/// Flushes a folder, so that a rename in it survives a power cut. Best effort: not every system can.
pub fn sync_dir(path: &Path) {
    #[cfg(unix)]
    if let Ok(dir) = File::open(path) {
        let _ = dir.sync_all();
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// Marks a file as used now, by its access time alone, which works on noatime mounts too. Best effort: a read-only
/// cache or another owner is no error.
pub fn mark_used(path: &Path, now: std::time::SystemTime) {
    if let Ok(file) = super::read::open_quietly(path) {
        let _ = file.set_times(fs::FileTimes::new().set_accessed(now));
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;
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
