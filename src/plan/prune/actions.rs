//! What a plan of a prune consists of: actions in their order, and what is left alone, each with its reason.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Serialize;

use super::held::Lack;
use crate::cache::state::Completeness;
use crate::error::Error;
use crate::model::ids::{BlobId, Commit, RefName, RepoName};

/// The plan, to be carried out in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The deletions.
    pub actions: Vec<Action>,
    /// Entries that were considered for deletion, but are left alone.
    pub skips: Vec<Skip>,
    /// Problems that already exist.
    pub failures: Vec<Error>,
    /// Bytes of the cache now.
    pub size: u64,
    /// Bytes that the actions free.
    pub freed: u64,
    /// Bytes that no plan can free: they have names outside the cache, or may have unknown users.
    pub pinned: u64,
}

/// One deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    /// The file, folder, ref or revision to delete.
    #[serde(flatten)]
    pub target: Target,
    /// Why it is deleted.
    pub reason: Reason,
    /// Bytes that this frees, after all earlier actions.
    pub bytes: u64,
}

impl Target {
    /// Returns whether it is finished content of a repo.
    pub(super) fn is_content(&self) -> bool {
        !matches!(self, Target::Leftover { .. } | Target::Temporary { .. } | Target::RootTemporary { .. })
    }
}

/// The target of a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Target {
    /// A file or folder of the tool's own state.
    Leftover {
        /// Its path.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// An unfinished file in a repo.
    Temporary {
        /// The repo that it belongs to.
        #[serde(flatten)]
        repo: RepoName,
        /// Its path.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// An unfinished file at the root, which may belong to any repo.
    RootTemporary {
        /// Its path.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// A blob.
    Blob {
        /// The repo that it belongs to.
        #[serde(flatten)]
        repo: RepoName,
        /// Its name.
        blob: BlobId,
    },
    /// A payload of the cache-wide store.
    Payload {
        /// Its path.
        #[serde(serialize_with = "crate::lossy::path")]
        path: PathBuf,
    },
    /// A ref to a commit that is not here. A single one makes huggingface_hub's scan skip the whole repo.
    Ref {
        /// The repo that it belongs to.
        #[serde(flatten)]
        repo: RepoName,
        /// Its name.
        name: RefName,
        /// The commit that it names.
        commit: Commit,
    },
    /// A revision: its refs, its snapshot and related files, and the blobs that only it needed.
    Revision(Eviction),
    /// A repo's folder.
    Folder {
        /// The repo.
        #[serde(flatten)]
        repo: RepoName,
    },
}

/// The eviction of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Eviction {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// Refs that name it.
    pub refs: Vec<RefName>,
    /// How much of the commit is here.
    pub status: Completeness,
    /// Last use, in seconds since 1970.
    #[serde(rename = "last_used", serialize_with = "crate::when::serialize_seconds")]
    pub last_use: u64,
    /// Blobs that only it needed.
    pub blobs: Vec<BlobId>,
}

/// Why something is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It has not been written to for longer than the grace period.
    Abandoned,
    /// No revision uses it.
    Unused,
    /// No ref names it.
    Detached,
    /// A ref names it, and such revisions may be evicted, too.
    Referenced,
    /// The user named it.
    Requested,
    /// It is empty.
    Empty,
    /// Its commit has been missing for longer than the grace period.
    Dangling,
}

/// The actions that the user was shown and agreed to.
#[derive(Debug, Default)]
pub struct Agreement(HashSet<String>);

impl Agreement {
    /// Agrees to all actions of this plan.
    pub fn to(plan: &Plan) -> Self {
        Agreement(plan.actions.iter().map(|action| Self::key(&action.target)).collect())
    }

    fn covers(&self, target: &Target) -> bool {
        self.0.contains(&Self::key(target))
    }

    /// Identifies a target. For a revision this includes its refs, but not the blobs that are deleted with it.
    fn key(target: &Target) -> String {
        match target {
            Target::Leftover { path } | Target::RootTemporary { path } | Target::Payload { path } => {
                format!("{path:?}")
            }
            Target::Temporary { repo, path } => format!("{repo} {path:?}"),
            Target::Blob { repo, blob } => format!("{repo} {blob}"),
            Target::Ref { repo, name, commit } => format!("{repo} {name} {commit}"),
            Target::Revision(gone) => format!("{}@{} {:?}", gone.repo, gone.revision, gone.refs),
            Target::Folder { repo } => repo.to_string(),
        }
    }
}

/// Something that is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skip {
    /// The repo, if it concerns one.
    #[serde(flatten)]
    pub repo: Option<RepoName>,
    /// The revision, if it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Commit>,
    /// How much of that revision's commit is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Completeness>,
    /// The path, if it concerns a single file or folder.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::lossy::optional")]
    pub path: Option<PathBuf>,
    /// Why it is left alone.
    pub reason: SkipReason,
    /// What the bucket lacks of the revision, if that is the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<Lack>,
    /// Bytes that deleting it would have freed, as far as known.
    pub bytes: u64,
}

/// Why something is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipReason {
    /// A ref names the revision.
    Referenced,
    /// The bucket does not hold all of the revision.
    NotInBucket,
    /// A pattern of the user protects the revision.
    Pinned,
    /// The revision was used too recently.
    Recent,
    /// Everything that the revision needs is also needed by others.
    FreesNothing,
    /// Younger than the grace period.
    Young,
    /// A download may be in flight.
    InFlight,
    /// A client was active in this repo minutes ago.
    Busy,
    /// Another process holds the lock.
    Held,
    /// It is a link, or is reached through one.
    Link,
    /// A link from elsewhere leads into this repo.
    NeededElsewhere,
    /// It cannot be read, so it is unknown what is needed.
    Unreadable,
    /// Its content is not understood, so it is unknown which blobs are needed.
    Undecidable,
    /// A ref is not understood, so it is unknown which revision it names.
    BadRef,
    /// Not part of a cache.
    Unknown,
    /// The payload has no readable list of references.
    Unlisted,
    /// It has changed since the scan, or since it was shown to the user.
    Changed,
}

impl Plan {
    /// Removes all actions that the user has not agreed to.
    pub fn limit_to(&mut self, shown: &Agreement) {
        let all = std::mem::take(&mut self.actions);
        for action in all {
            match shown.covers(&action.target) {
                true => self.actions.push(action),
                false => {
                    self.freed = self.freed.saturating_sub(action.bytes);
                    let (repo, revision, path) = match &action.target {
                        Target::Leftover { path } | Target::RootTemporary { path } | Target::Payload { path } => {
                            (None, None, Some(path.clone()))
                        }
                        Target::Temporary { repo, path } => (Some(repo.clone()), None, Some(path.clone())),
                        Target::Revision(gone) => (Some(gone.repo.clone()), Some(gone.revision.clone()), None),
                        Target::Blob { repo, .. } | Target::Ref { repo, .. } | Target::Folder { repo } => {
                            (Some(repo.clone()), None, None)
                        }
                    };
                    let (reason, bytes) = (SkipReason::Changed, action.bytes);
                    self.skips.push(Skip { repo, revision, status: None, path, reason, lacks: None, bytes });
                }
            }
        }
    }

    /// Adds to each revision that goes or stays how much of its commit is here. No decision depends on it.
    pub fn add_statuses(&mut self, status: impl Fn(&RepoName, &Commit) -> Completeness) {
        for action in &mut self.actions {
            if let Target::Revision(gone) = &mut action.target {
                gone.status = status(&gone.repo, &gone.revision);
            }
        }
        for skip in &mut self.skips {
            skip.status = skip.repo.as_ref().zip(skip.revision.as_ref()).map(|(repo, commit)| status(repo, commit));
        }
    }

    pub(super) fn add_action(&mut self, target: Target, reason: Reason, bytes: u64) {
        self.freed += bytes;
        self.actions.push(Action { target, reason, bytes });
    }

    pub(super) fn add_skip(&mut self, reason: SkipReason, repo: Option<&RepoName>, path: Option<PathBuf>, bytes: u64) {
        self.skips.push(Skip { repo: repo.cloned(), revision: None, status: None, path, reason, lacks: None, bytes });
    }
}
