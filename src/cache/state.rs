//! The local state of the cache: the counterpart of [`crate::bucket::state::RemoteState`], through which every command
//! reads.
//!
//! The scan takes the inventory. What it does not read (trees, licences) is read when a command needs it, and at most
//! once. A pull works without an inventory, since it concerns a single revision.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::gated::{self, Gated};
use super::inventory::{Inventory, ProblemKind, Repo, Revision, SnapshotFile};
use super::layout::Layout;
use super::read;
use super::scan;
use crate::error::{Cause, Error, Result, plain_io, shown};
use crate::model::file_list::MAX_SIZE;
use crate::model::ids::{Commit, RepoName};
use crate::model::tree::Tree;

/// The content of a cache.
#[derive(Debug)]
pub struct LocalState {
    inventory: Inventory,
    trees: Mutex<HashMap<(RepoName, Commit), TreeFile>>,
    gated: Mutex<HashMap<RepoName, Result<Option<Gated>>>>,
}

/// The file `trees/<commit>.json`.
#[derive(Debug, Clone)]
pub enum TreeFile {
    /// It is valid.
    Valid(Arc<Tree>),
    /// There is none, or it has an unknown version.
    Absent,
    /// This user may not read it. huggingface_hub makes trees readable only by their owner.
    Private,
    /// It is not valid or cannot be read; has the reason.
    Invalid(String),
}

impl TreeFile {
    /// Returns the tree, if it is valid.
    pub fn valid(self) -> Option<Arc<Tree>> {
        match self {
            TreeFile::Valid(tree) => Some(tree),
            TreeFile::Absent | TreeFile::Private | TreeFile::Invalid(_) => None,
        }
    }
}

/// How much of a commit a snapshot has, judging by the commit's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completeness {
    /// Every file that the tree lists.
    Complete,
    /// Not every file that the tree lists, as after a download with patterns. What is here is intact.
    Partial {
        /// Number of files that are not here.
        missing: usize,
    },
    /// A file cannot be used: its link is broken, or its size or blob is not that of the tree.
    Damaged {
        /// The paths of these files.
        files: Vec<String>,
    },
    /// There is no tree to compare with, or a part of the snapshot cannot be read.
    Unknown,
}

impl Completeness {
    /// Returns the word for it in reports.
    pub fn word(&self) -> &'static str {
        match self {
            Completeness::Complete => "complete",
            Completeness::Partial { .. } => "partial",
            Completeness::Damaged { .. } => "damaged",
            Completeness::Unknown => "unknown",
        }
    }
}

impl serde::Serialize for Completeness {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl LocalState {
    /// Scans the cache.
    ///
    /// # Errors
    /// See [`scan::scan`].
    pub fn scan(root: &Path) -> Result<LocalState> {
        Ok(LocalState::new(scan::scan(root)?))
    }

    /// Uses the inventory of an earlier scan.
    pub fn new(inventory: Inventory) -> LocalState {
        LocalState { inventory, trees: Mutex::default(), gated: Mutex::default() }
    }

    /// Scans nothing. The inventory is empty, but the content of any repo can be read.
    pub fn unscanned(layout: Layout) -> LocalState {
        LocalState::new(Inventory { layout, repos: Vec::new(), problems: Vec::new(), shared_store: false })
    }

    /// Returns the paths of the cache.
    pub fn layout(&self) -> &Layout {
        &self.inventory.layout
    }

    /// Returns the result of the scan.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Returns only the result of the scan.
    pub fn into_inventory(self) -> Inventory {
        self.inventory
    }

    /// Reads the tree of a commit.
    pub fn tree(&self, repo: &RepoName, commit: &Commit) -> TreeFile {
        let key = (repo.clone(), commit.clone());
        let known = || self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = known().get(&key) {
            return tree.clone();
        }
        let tree = read_tree(&self.layout().tree(repo, commit));
        known().insert(key, tree.clone());
        tree
    }

    /// Checks whether any snapshot of the repo has a licence that looks gated.
    ///
    /// # Errors
    /// If a licence cannot be read, so that the answer is unknown.
    pub fn gated(&self, repo: &RepoName) -> Result<Option<Gated>> {
        let known = || self.gated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gated) = known().get(repo) {
            return gated.clone();
        }
        let gated = gated::check_repo(self.layout(), repo).map_err(|(path, error)| {
            Error::new(Cause::of_io(&error), format!("cannot tell whether {repo} is gated")).because(format!(
                "{}: {}",
                shown(&path),
                plain_io(&error)
            ))
        });
        known().insert(repo.clone(), gated.clone());
        gated
    }

    /// Compares a snapshot with the commit's tree.
    pub fn completeness(&self, repo: &Repo, commit: &Commit) -> Completeness {
        let Some(revision) = repo.revisions.get(commit) else { return Completeness::Unknown };
        let snapshot = self.layout().snapshot(&repo.name, commit);
        let mut broken = BTreeSet::new();
        let mut unportable = BTreeSet::new();
        for problem in &repo.problems {
            let Ok(path) = problem.path.strip_prefix(&snapshot) else { continue };
            let path = path.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
            match problem.kind {
                ProblemKind::BrokenLink | ProblemKind::ForeignLink | ProblemKind::NotAFile => broken.insert(path),
                ProblemKind::BadName => unportable.insert(path),
                ProblemKind::Unreadable => return Completeness::Unknown,
                ProblemKind::BadRef | ProblemKind::UntidyRef | ProblemKind::UnknownEntry => continue,
            };
        }
        match self.tree(&repo.name, commit).valid() {
            Some(tree) => compare(repo, revision, &tree, &broken, &unportable),
            None if broken.is_empty() => Completeness::Unknown,
            None => Completeness::Damaged { files: broken.into_iter().collect() },
        }
    }
}

/// Compares the files of a snapshot with a tree. `broken` and `unportable` are the paths of its files that cannot be used,
/// and of those whose names no manifest can contain.
fn compare(
    repo: &Repo,
    revision: &Revision,
    tree: &Tree,
    broken: &BTreeSet<String>,
    unportable: &BTreeSet<String>,
) -> Completeness {
    let mut missing = tree.unportable_paths().filter(|path| !unportable.contains(*path)).count();
    let mut files = Vec::new();
    for (path, entry) in tree.entries() {
        let is_intact = match revision.files.get(path) {
            Some(SnapshotFile::Link(id)) => {
                let is_named = *id == entry.blob || id.may_be_twin(&entry.blob);
                is_named && repo.blobs.get(id).is_some_and(|blob| blob.size == entry.size)
            }
            Some(SnapshotFile::Real(file)) => file.size == entry.size,
            None if broken.contains(path.as_str()) => false,
            None => {
                missing += 1;
                true
            }
        };
        if !is_intact {
            files.push(path.to_string());
        }
    }
    match (files.is_empty(), missing) {
        (false, _) => Completeness::Damaged { files },
        (true, 0) => Completeness::Complete,
        (true, missing) => Completeness::Partial { missing },
    }
}

fn read_tree(path: &Path) -> TreeFile {
    let parsed = match read::read_small(path, MAX_SIZE) {
        Ok(Some(bytes)) => Tree::parse(&bytes),
        Ok(None) => Err("it is too large".into()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            io::ErrorKind::PermissionDenied => return TreeFile::Private,
            _ => Err(plain_io(&error)),
        },
    };
    match parsed {
        Ok(Some(tree)) => TreeFile::Valid(Arc::new(tree)),
        Ok(None) => TreeFile::Absent,
        Err(why) => TreeFile::Invalid(why),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with one snapshot of `files`: paths, each with the digit of its blob, which has ten bytes.
    fn cache(files: &[(&str, char)], tree: Option<&str>) -> tempfile::TempDir {
        let hub = tempfile::tempdir().unwrap();
        let repo = hub.path().join("models--org--name");
        let snapshot = repo.join("snapshots").join(COMMIT);
        for folder in [&snapshot, &repo.join("blobs"), &repo.join("trees")] {
            fs::create_dir_all(folder).unwrap();
        }
        for (path, digit) in files {
            let blob = digit.to_string().repeat(40);
            fs::write(repo.join("blobs").join(&blob), [0; 10]).unwrap();
            symlink(format!("../../blobs/{blob}"), snapshot.join(path)).unwrap();
        }
        if let Some(text) = tree {
            let entry =
                |path: &str, digit: &str| format!(r#""{path}": {{"size": 10, "blob_id": "{}"}}"#, digit.repeat(40));
            let entries = text.split(' ').map(|part| part.split_once('=').unwrap());
            let entries: Vec<String> = entries.map(|(path, digit)| entry(path, digit)).collect();
            let text = format!(r#"{{"format_version": 1, "files": {{{}}}}}"#, entries.join(", "));
            fs::write(repo.join("trees").join(format!("{COMMIT}.json")), text).unwrap();
        }
        hub
    }

    fn completeness(hub: &tempfile::TempDir) -> Completeness {
        let state = LocalState::scan(hub.path()).unwrap();
        state.completeness(&state.inventory().repos[0], &COMMIT.parse().unwrap())
    }

    #[test]
    fn a_snapshot_is_complete_partial_damaged_or_unknown() {
        let files = [("a", '1'), ("b", '2')];
        assert_eq!(completeness(&cache(&files, None)), Completeness::Unknown);
        assert_eq!(completeness(&cache(&files, Some("a=1 b=2"))), Completeness::Complete);
        assert_eq!(completeness(&cache(&files, Some("a=1 b=2 c=3 d=4"))), Completeness::Partial { missing: 2 });
        let stray = [("a", '1'), ("b", '2'), ("x.lock", '3')];
        assert_eq!(completeness(&cache(&stray, Some("a=1 b=2"))), Completeness::Complete);
        let another = Completeness::Damaged { files: vec!["b".into()] };
        assert_eq!(completeness(&cache(&files, Some("a=1 b=3 c=4"))), another, "another blob");
    }

    #[test]
    fn a_broken_link_or_a_wrong_size_is_damage() {
        let damaged = |files: &[&str]| Completeness::Damaged { files: files.iter().map(|s| s.to_string()).collect() };
        let blob = |hub: &tempfile::TempDir| hub.path().join("models--org--name/blobs").join("2".repeat(40));
        for tree in [None, Some("a=1 b=2 c=3")] {
            let hub = cache(&[("a", '1'), ("b", '2')], tree);
            fs::remove_file(blob(&hub)).unwrap();
            assert_eq!(completeness(&hub), damaged(&["b"]));
        }
        let hub = cache(&[("a", '1'), ("b", '2')], Some("a=1 b=2"));
        fs::write(blob(&hub), [0; 9]).unwrap();
        assert_eq!(completeness(&hub), damaged(&["b"]));
    }

    #[test]
    fn a_tree_is_read_once() {
        let hub = cache(&[("a", '1')], Some("a=1"));
        let state = LocalState::unscanned(Layout::new(hub.path()));
        let (repo, commit) = (RepoName::from_folder("models--org--name").unwrap(), COMMIT.parse().unwrap());
        let first = state.tree(&repo, &commit).valid().unwrap();
        fs::write(state.layout().tree(&repo, &commit), "{").unwrap();
        assert!(Arc::ptr_eq(&first, &state.tree(&repo, &commit).valid().unwrap()));
        let fresh = LocalState::unscanned(Layout::new(hub.path()));
        assert!(matches!(fresh.tree(&repo, &commit), TreeFile::Invalid(_)));
        assert!(matches!(fresh.tree(&repo, &"f".repeat(40).parse().unwrap()), TreeFile::Absent));
    }
}
