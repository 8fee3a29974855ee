//! Judges what `verify` found, and plans its repairs. Pure: takes facts, and returns findings with typed reasons.
//!
//! [`local`] is about the cache, [`remote`] about the bucket.

pub mod local;
pub mod remote;

use std::path::PathBuf;

use serde::Serialize;

use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};

/// Something that is not as it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The repo, if it is known.
    #[serde(flatten)]
    pub repo: Option<RepoName>,
    /// What is wrong.
    pub reason: Reason,
    /// The file of the cache, or the key in the bucket.
    #[serde(flatten)]
    pub place: Place,
    /// The blob, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobId>,
    /// The files of snapshots, or of the bucket's manifests, that it affects.
    pub files: Vec<AffectedFile>,
    /// The reason in words.
    pub detail: String,
    /// Its outcome.
    pub outcome: Outcome,
    /// The repair that would help.
    #[serde(skip)]
    pub repair: Repair,
}

impl Finding {
    /// Returns what findings are sorted by: the repo, then the file that is affected.
    fn sort_key(&self) -> (&Option<RepoName>, Option<&RepoPath>, &Place) {
        (&self.repo, self.files.first().map(|file| &file.path), &self.place)
    }
}

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In the cache.
    #[serde(serialize_with = "crate::lossy::path")]
    Path(PathBuf),
    /// In the bucket.
    Key(String),
}

/// A file of a revision that a finding affects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AffectedFile {
    /// The revision.
    pub revision: Commit,
    /// The path.
    pub path: RepoPath,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The bytes do not match the name, or not what the commit's tree says.
    Corrupt,
    /// A blob that is needed is not there.
    Missing,
    /// A blob of the bucket has another size than the manifest says.
    WrongSize,
    /// A link that leads to something other than a blob of its repo.
    ForeignLink,
    /// A link that works only while the cache stays where it is.
    AbsoluteLink,
    /// A link to another blob than the commit's tree says.
    WrongBlob,
    /// A commit's tree that is not valid.
    BadTree,
    /// A ref whose content is not a commit.
    BadRef,
    /// A ref with white space around its commit.
    UntidyRef,
    /// A ref that leads to nothing.
    DanglingRef,
    /// A manifest that is not valid.
    BadManifest,
    /// A named pipe, a socket, a device or a folder in place of a file, or a file in place of a folder.
    NotAFile,
}

impl Reason {
    /// Returns whether something is lost or cannot be used. An absolute link works, as long as nothing is moved.
    pub fn is_damage(self) -> bool {
        self != Reason::AbsoluteLink
    }
}

/// The outcome of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was only reported.
    Found,
    /// A repair would be made, if this were not a dry run.
    Repairable,
    /// It was repaired.
    Repaired,
    /// It was not repaired: there is no repair, no source, or it failed.
    Left,
}

/// The repair that would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Nothing that this tool can do.
    None,
    /// Get the blob from a source, and replace what is there. `link` are files that have to be linked again as well.
    Fetch {
        /// Files whose link is not right.
        link: Vec<AffectedFile>,
        /// The size of the blob in bytes, if something says it.
        size: Option<u64>,
    },
    /// Find out from the bucket which blob the file is, then as [`Repair::Fetch`].
    LookUp,
    /// Link the file to its blob, which is here.
    Link,
    /// Take it out of the cache: nothing needs it.
    SetAside,
    /// Write the ref without white space.
    TidyRef,
    /// Write what the bucket says that the ref is, or else take it out of the cache.
    Ref,
    /// Write the bucket's tree.
    Tree,
    /// Upload the blob from this cache.
    Upload {
        /// The size of the blob in bytes.
        size: u64,
    },
    /// Push the revision from this cache.
    Push {
        /// The commit that a ref of the bucket names; `None` for a manifest, and for a ref that names none.
        named: Option<Commit>,
    },
}
