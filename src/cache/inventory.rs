//! The contents of a cache, as found by a scan: repos, blobs, revisions, refs, unfinished files and problems. The scanner is
//! [`super::scan`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::layout::Layout;
use crate::error::{Cause, Error, plain_io, shown};
use crate::escape::{Keep, escape};
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::platform::{self, Inode};

/// Everything found under one cache root.
#[derive(Debug)]
pub struct Inventory {
    /// The paths of the cache.
    pub layout: Layout,
    /// The repos, sorted by type and id.
    pub repos: Vec<Repo>,
    /// Problems outside any repo.
    pub problems: Vec<Problem>,
    /// Whether the root has a cache-wide blob store that huggingface_hub would use.
    pub shared_store: bool,
}

/// One repo folder.
#[derive(Debug)]
pub struct Repo {
    /// Its type and id.
    pub name: RepoName,
    /// Its complete blobs.
    pub blobs: BTreeMap<BlobId, Blob>,
    /// Its snapshots, by commit.
    pub revisions: BTreeMap<Commit, Revision>,
    /// Its refs, except for [`Repo::pins`].
    pub refs: BTreeMap<RefName, Commit>,
    /// Commits with a ref that is named after the commit itself. The Rust hf-hub before 1.0 finds a requested commit only by
    /// such a ref. It adds no name by which users would request the commit.
    pub pins: BTreeSet<Commit>,
    /// Refs with white space around their commit, which huggingface_hub takes as part of the commit.
    pub untidy_refs: Vec<RefName>,
    /// Commits with a `trees/<commit>.json`.
    pub trees: Vec<Commit>,
    /// Downloads in flight, and leftovers of interrupted ones.
    pub in_flight: Vec<UnfinishedFile>,
    /// Temporary files of refs and trees, in use or left over.
    pub temporaries: Vec<UnfinishedFile>,
    /// Lock files in `blobs/`, where some clients keep them.
    pub locks: Vec<PathBuf>,
    /// Problems in this folder.
    pub problems: Vec<Problem>,
    /// Whether the repo folder is itself a link. It is read, but never written to.
    pub is_link: bool,
}

/// A complete blob.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its size in bytes.
    pub size: u64,
    /// The location of its bytes.
    pub place: BlobPlace,
    /// The inode of its bytes: equal for hard links and for links to the same shared payload.
    pub inode: Option<Inode>,
    /// Last access, if the file system records it.
    pub accessed: Option<SystemTime>,
    /// Last change.
    pub modified: Option<SystemTime>,
    /// Last change of the entry in `blobs/` itself: newer than `modified` for a new link to old bytes.
    pub placed: Option<SystemTime>,
}

/// The location of a blob's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobPlace {
    /// A regular file in `blobs/`.
    Blobs,
    /// A link in `blobs/` to this payload of the cache-wide store.
    Shared(PathBuf),
    /// A link in `blobs/` to somewhere else.
    Elsewhere,
}

/// One snapshot.
#[derive(Debug, Default)]
pub struct Revision {
    /// Its files, sorted by path.
    pub files: BTreeMap<RepoPath, SnapshotFile>,
}

/// A file in a snapshot.
#[derive(Debug, Clone)]
pub enum SnapshotFile {
    /// A link to a blob in `blobs/`.
    Link(BlobId),
    /// A real file, as on platforms without symbolic links. [`super::identify`] determines which blob it is.
    Real(Box<RealFile>),
}

/// A real file in a snapshot.
#[derive(Debug, Clone)]
pub struct RealFile {
    /// Size in bytes.
    pub size: u64,
    /// Its inode, by which a hard link to a blob is recognised.
    pub inode: Option<Inode>,
    /// Last access.
    pub accessed: Option<SystemTime>,
    /// Last change.
    pub modified: Option<SystemTime>,
}

/// A temporary file: a download in flight, a leftover of one, or a file that is being written.
#[derive(Debug, Clone)]
pub struct UnfinishedFile {
    /// The temporary file.
    pub path: PathBuf,
    /// Length of the file, which may have been set in advance.
    pub size: u64,
    /// Bytes that it takes on disk.
    pub on_disk: u64,
    /// Last change.
    pub modified: Option<SystemTime>,
    /// Last change of the file or its metadata (ctime), if available. Programs cannot set it, so it exposes a
    /// modification time in the future.
    pub changed: Option<SystemTime>,
}

impl UnfinishedFile {
    /// Describes the file at `path`.
    pub fn new(path: PathBuf, meta: &Metadata) -> Self {
        let (modified, changed) = (meta.modified().ok(), platform::changed(meta));
        UnfinishedFile { path, size: meta.len(), on_disk: on_disk(meta), modified, changed }
    }

    /// Returns the time of the last write, as far as it is known.
    pub fn last_write(&self) -> Option<SystemTime> {
        self.modified.map(|modified| self.changed.map_or(modified, |changed| modified.min(changed)))
    }
}

/// A problem found by the scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The affected path.
    #[serde(serialize_with = "crate::lossy::path")]
    pub path: PathBuf,
    /// The kind of problem.
    pub kind: ProblemKind,
    /// The reason, for the user.
    pub detail: String,
    /// The typed reason, which decides the exit code of a command that fails because of it.
    #[serde(skip)]
    pub cause: Cause,
}

impl Problem {
    /// Creates a problem with what is there, as opposed to a failure to read it.
    pub fn new(path: PathBuf, kind: ProblemKind, detail: impl Into<String>) -> Problem {
        Problem { path, kind, detail: detail.into(), cause: Cause::Other }
    }

    /// Creates a problem for something that cannot be read.
    pub fn unreadable(path: &Path, error: &io::Error) -> Problem {
        let detail = format!("cannot be read: {}", plain_io(error));
        Problem { cause: Cause::of_io(error), ..Problem::new(path.to_path_buf(), ProblemKind::Unreadable, detail) }
    }

    /// Returns the failure of a command that this problem is in the way of. `what` failed on the path; it may be empty.
    pub fn to_error(&self, what: &str) -> Error {
        let path = shown(&self.path);
        let what = if what.is_empty() { path } else { format!("{what} {path}") };
        let error = Error::new(self.cause, what).because(self.detail.clone());
        if self.cause == Cause::Permission { error.hint(platform::PERMISSION_HINT) } else { error }
    }
}

/// Kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// Could not be read, so its content is unknown.
    Unreadable,
    /// A link whose blob is missing.
    BrokenLink,
    /// A link that leads to something other than a blob of its repo.
    ForeignLink,
    /// A blob whose name is not a hash, or a snapshot file with a path that cannot be stored elsewhere.
    BadName,
    /// A ref whose content is not a commit.
    BadRef,
    /// A ref with white space around its commit: understood here, but not by huggingface_hub.
    UntidyRef,
    /// A named pipe, a socket or a device in place of a file. Never opened.
    NotAFile,
    /// An entry that huggingface_hub does not create; left alone.
    UnknownEntry,
}

impl ProblemKind {
    /// Returns whether a part of the cache is missing or unusable. Other problems are only worth a note.
    pub fn is_failure(self) -> bool {
        self != ProblemKind::UnknownEntry
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", shown(&self.path), escape(&self.detail, Keep::Nothing))
    }
}

impl Inventory {
    /// Returns all problems, those of the root first.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().chain(self.repos.iter().flat_map(|repo| &repo.problems))
    }

    /// Returns the repo with this name.
    pub fn repo(&self, name: &RepoName) -> Option<&Repo> {
        let index = self.repos.binary_search_by(|repo| repo.name.cmp(name)).ok()?;
        Some(&self.repos[index])
    }
}

/// Returns the bytes that an unfinished file takes on disk, if the system reports it. A preallocated file may be mostly
/// a hole.
pub fn on_disk(meta: &Metadata) -> u64 {
    platform::allocated(meta).min(meta.len())
}
