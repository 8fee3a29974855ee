//! Writes snapshots: the folder of a revision, whose files refer to blobs.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::inside::{self, ensure_dir, open_dir};
use super::layout::{self, Layout};
use super::place::{check_replaceable, is_refused, rename_over, rename_over_in, temporary_name};
use super::read;
use super::staging::Staging;
use crate::error::{Error, Result};
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};
use crate::platform::{self, Folder, Opening};

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
        // An existing snapshot is not a reason to retry.
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
        // Another pull was faster. On Windows, a file that is already open could not be replaced.
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

/// Whether `file`, which is not a link, is what `blob` leads to.
fn is_same_file(blob: &Path, file: &Path) -> bool {
    let id = |path, meta: fs::Metadata| platform::inode(path, &meta).map(|inode| inode.id);
    let found = fs::symlink_metadata(file).ok().filter(fs::Metadata::is_file).and_then(|meta| id(file, meta));
    found.is_some() && found == fs::metadata(blob).ok().and_then(|meta| id(blob, meta))
}

/// Whether a regular file (not a link) has the bytes of the blob.
fn is_whole(file: &Path, blob: &BlobId) -> bool {
    fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file() && read::matches_name(file, blob, meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::place::write_ref;
    use crate::model::ids::{RefName, RepoType};
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
            let staging = f.layout.staging();
            assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
        }
    }

    /// A concurrent pull of the same revision finds every file in place, as the very file to link.
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
        assert_eq!(fs::read_dir(f.layout.staging()).unwrap().count(), 0);
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
}
