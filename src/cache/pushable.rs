//! The content of this cache that can be pushed: the files of each revision with their blobs, without anything that
//! must stay here, such as gated repos and pointer files.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::gated::Gated;
use crate::cache::identify::{Identifier, LocalFile};
use crate::cache::inventory::{Inventory, Problem, ProblemKind, Repo};
use crate::cache::layout::Layout;
use crate::cache::pointer;
use crate::cache::read::{self, read_small};
use crate::cache::select::{SelectedRepo, select};
use crate::cache::state::{LocalState, TreeFile};
use crate::error::{Cause, Error, Result, printable};
use crate::model::filter::PathFilter;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::model::manifest::{Manifest, ManifestFile};
use crate::model::selection::Selection;
use crate::model::tree::Tree;

/// Limits what is gathered.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The repos, revisions and files.
    pub selection: Selection,
    /// Includes repos that look gated.
    pub allow_gated: bool,
    /// Includes LFS and Xet pointer files.
    pub sync_xet: bool,
}

/// The pushable content of the cache.
#[derive(Debug, Default)]
pub struct Local {
    /// The paths of the cache.
    pub layout: Layout,
    /// The repos, in scan order.
    pub repos: Vec<LocalRepo>,
    /// Problems found by the scan and while reading.
    pub failures: Vec<Error>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// A repo of this cache.
#[derive(Debug)]
pub struct LocalRepo {
    /// Its type and id.
    pub name: RepoName,
    /// Why it looks gated and must not be pushed; `None` if it may be.
    pub gated: Option<Gated>,
    /// Its revisions; none for a gated repo.
    pub revisions: Vec<LocalRevision>,
    /// Its refs.
    pub refs: BTreeMap<RefName, Commit>,
    /// Commits of its snapshots that have a ref named after the commit, which hf-hub needs on every machine.
    pub pins: BTreeSet<Commit>,
    /// Complete blobs that no revision uses.
    pub unused: usize,
}

/// A revision of a repo in this cache.
#[derive(Debug)]
pub struct LocalRevision {
    /// Its commit.
    pub commit: Commit,
    /// Its files, sorted by path.
    pub files: Vec<LocalFile>,
    /// The commit's full listing.
    pub tree: Option<Arc<Tree>>,
    /// The manifest that this cache would publish on its own, without merging the bucket's; `None` without any files.
    pub manifest: Option<Arc<Manifest>>,
    /// Pointer files that were left out.
    pub pointers: Vec<RepoPath>,
    /// Files in the snapshot that do not belong to the commit, escaped for printing.
    pub stray_files: Vec<String>,
    /// Files that cannot be pushed because their link is broken or they cannot be read.
    pub broken: BTreeSet<String>,
    /// Why the revision must not be published: one of its files contradicts the commit's tree.
    pub refused: Option<Error>,
}

impl LocalRevision {
    /// Creates a revision. It is refused if its files contradict each other or the tree.
    pub fn new(repo: &RepoName, commit: Commit, files: Vec<LocalFile>, tree: Option<Arc<Tree>>) -> LocalRevision {
        let listed = || files.iter().map(|local| local.file.clone()).collect();
        let manifest = |tree| Manifest::new(repo.clone(), commit.clone(), listed(), tree);
        let checked = match &tree {
            Some(tree) => files.iter().try_for_each(|local| tree.check_file(&local.file)),
            None => Ok(()),
        };
        let made = checked.and_then(|()| manifest(tree.clone().filter(|tree| tree.is_harmless())));
        let refused = made.as_ref().err().filter(|_| !files.is_empty()).map(|why| {
            Error::new(Cause::Corrupt, format!("{repo}@{} was not pushed", commit.short()))
                .because(why)
                .hint("a file of this snapshot was changed: delete it and download it again")
        });
        // A refused revision can still be compared with the bucket's.
        let manifest = made.or_else(|_| manifest(None)).ok().map(Arc::new);
        let (pointers, stray_files, broken) = (Vec::new(), Vec::new(), BTreeSet::new());
        LocalRevision { commit, files, tree, manifest, pointers, stray_files, broken, refused }
    }
}

impl LocalRepo {
    /// Returns all refs that a push writes.
    pub fn all_refs(&self) -> impl Iterator<Item = (RefName, &Commit)> {
        let refs = self.refs.iter().map(|(name, commit)| (name.clone(), commit));
        refs.chain(self.pins.iter().map(|commit| (RefName::of_commit(commit), commit)))
    }
}

/// Reads everything that a push needs beyond the scan: licences, trees, pointer files, and the hashes of real files.
///
/// # Errors
/// [`Cause::NotFound`] if a requested repo is not in the cache.
pub fn gather(state: &LocalState, options: &Options) -> Result<Local> {
    let inventory = state.inventory();
    let selected = select(inventory, &options.selection)?;
    let mut local = Local { layout: inventory.layout.clone(), notes: selected.notes, ..Local::default() };
    local.failures.extend(inventory.problems.iter().filter_map(failure_of));
    let mut identifier = Identifier::default();
    let mut filtered = Filtered::default();
    let mut unreadable_trees = 0;
    for one in &selected.repos {
        let found = gather_repo(
            state,
            one,
            options,
            &mut identifier,
            &mut filtered,
            &mut unreadable_trees,
            &mut local.failures,
        );
        local.repos.push(found);
        local.notes.extend(untidy_refs_note(one.repo));
    }
    local.notes.extend(filtered.notes(&options.selection.paths, inventory)?);
    if unreadable_trees > 0 {
        local.notes.push(format!(
            "{unreadable_trees} of the files in trees/ cannot be read by this user, because huggingface_hub makes them \
             readable only by their owner: those revisions are pushed without the list that proves them complete"
        ));
    }
    Ok(local)
}

/// Returns a note about refs that are published, but that huggingface_hub cannot use offline on this machine.
fn untidy_refs_note(repo: &Repo) -> Option<String> {
    let names: Vec<&str> = repo.untidy_refs.iter().map(RefName::as_str).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{}: white space around the commit in refs/{} keeps huggingface_hub from using it offline; \
             `hf-cache-sync doctor --fix` repairs it",
            repo.name,
            names.join(", refs/")
        )
    })
}

/// Turns a problem into a failure of the push. An untidy ref is only worth a note, since it can be read.
fn failure_of(problem: &Problem) -> Option<Error> {
    if problem.kind == ProblemKind::UntidyRef {
        return None;
    }
    let hint = match problem.kind {
        ProblemKind::NotAFile => Some("delete it and download the file again, then push again"),
        ProblemKind::ForeignLink => {
            Some("replace the link with a copy of the file, or delete it and download the file again; then push again")
        }
        _ => None,
    };
    let error = problem.to_error("");
    problem.kind.is_failure().then(|| match hint {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// The effect of the path filter.
#[derive(Debug, Default)]
struct Filtered {
    /// All files, with and without problems, before the filter.
    paths: BTreeSet<RepoPath>,
    selected: usize,
    left_out: usize,
}

impl Filtered {
    fn allows(&mut self, filter: &PathFilter, path: &RepoPath) -> bool {
        if filter.is_empty() {
            return true;
        }
        self.paths.insert(path.clone());
        let is_selected = filter.allows(path);
        *(if is_selected { &mut self.selected } else { &mut self.left_out }) += 1;
        is_selected
    }

    /// Reports what was left out to the user.
    ///
    /// # Errors
    /// If everything was.
    fn notes(&self, filter: &PathFilter, inventory: &Inventory) -> Result<Vec<String>> {
        if self.left_out > 0 && self.selected == 0 {
            return Err(Error::not_found(format!("no file in {} matches {filter}", inventory.layout.root().display()))
                .because(format!("all {} files of the selected revisions were left out", self.left_out)));
        }
        let mut notes = Vec::new();
        if self.left_out > 0 {
            let files = if self.left_out == 1 { "1 file".into() } else { format!("{} files", self.left_out) };
            notes.push(format!("{files} not selected"));
        }
        let unmatched = filter.unmatched_includes(self.paths.iter());
        notes.extend(unmatched.map(|pattern| format!("no file matches --include '{}'", printable(pattern, 100))));
        Ok(notes)
    }
}

fn gather_repo(
    state: &LocalState,
    selected: &SelectedRepo<'_>,
    options: &Options,
    identifier: &mut Identifier,
    filtered: &mut Filtered,
    unreadable_trees: &mut usize,
    failures: &mut Vec<Error>,
) -> LocalRepo {
    let inventory = state.inventory();
    let (repo, filter) = (selected.repo, &options.selection.paths);
    let snapshots = inventory.layout.repo(&repo.name).join("snapshots");
    let is_selected = |problem: &&Problem| {
        let commit = problem.path.strip_prefix(&snapshots).ok().and_then(|path| path.iter().next()?.to_str());
        commit.and_then(|name| name.parse().ok()).is_none_or(|commit| selected.includes(&commit))
    };
    let trees = inventory.layout.repo(&repo.name).join("trees");
    let is_tree_folder = |problem: &Problem| problem.kind == ProblemKind::Unreadable && problem.path == trees;
    let (unreadable, mut problems): (Vec<&Problem>, Vec<&Problem>) =
        repo.problems.iter().filter(is_selected).partition(|problem| is_tree_folder(problem));
    *unreadable_trees += unreadable.len();
    let mut found = LocalRepo {
        name: repo.name.clone(),
        gated: None,
        revisions: Vec::new(),
        refs: repo
            .refs
            .iter()
            .filter(|(_, commit)| selected.includes(commit))
            .map(|(a, b)| (a.clone(), b.clone()))
            .collect(),
        pins: repo.pins.iter().filter(|commit| repo.revisions.contains_key(*commit)).cloned().collect(),
        unused: 0,
    };
    if !options.allow_gated {
        match state.gated(&repo.name) {
            Ok(None) => {}
            Ok(gated) => {
                found.gated = gated;
                failures.extend(problems.into_iter().filter_map(failure_of));
                return found;
            }
            Err(error) => {
                failures.extend(problems.into_iter().filter_map(failure_of));
                failures.push(Error { what: error.what + ", so it is not pushed", ..error });
                // The refs do have a snapshot here, so nothing else needs reporting about them.
                found.refs.clear();
                return found;
            }
        }
    }
    let mut pointers = HashMap::new();
    let mut twins = TwinChecker::default();
    for (commit, _) in selected.revisions() {
        let tree = match state.tree(&repo.name, commit) {
            TreeFile::Valid(tree) => Some(tree),
            TreeFile::Absent => None,
            TreeFile::Private => {
                *unreadable_trees += 1;
                None
            }
            TreeFile::Invalid(why) => {
                let path = inventory.layout.tree(&repo.name, commit);
                failures.push(
                    Error::failed(format!("the tree {} is not used", path.display()))
                        .because(why)
                        .hint("delete it: huggingface_hub fetches it again"),
                );
                None
            }
        };
        let identified = identifier.files(&inventory.layout, repo, commit, tree.as_deref());
        let snapshot = inventory.layout.snapshot(&repo.name, commit);
        let mut broken = BTreeSet::new();
        let mut allows = |path: &str| path.parse().map_or(filter.is_empty(), |path| filtered.allows(filter, &path));
        for problem in &identified.problems {
            let left_out = path_in_snapshot(problem, &snapshot);
            if left_out.as_deref().is_some_and(|path| !allows(path)) {
                continue;
            }
            failures
                .extend(failure_of(problem).map(|error| if left_out.is_some() { as_left_out(error) } else { error }));
            broken.extend(left_out);
        }
        let mut files = identified.files;
        let mut stray_files: Vec<String> =
            identified.stray_files.iter().map(|path| printable(path.as_str(), 400)).collect();
        if let Some(tree) = &tree {
            problems.retain(|problem| match stray_name(problem, &snapshot, tree) {
                Some(name) => {
                    stray_files.push(name);
                    false
                }
                None => true,
            });
        }
        problems.retain(|problem| match path_in_snapshot(problem, &snapshot) {
            Some(path) if !allows(&path) => false,
            Some(path) => {
                broken.insert(path);
                failures.extend(failure_of(problem).map(as_left_out));
                false
            }
            None => true,
        });
        let before = files.len();
        files.retain(|file| filtered.allows(filter, &file.file.path));
        if files.is_empty() && broken.is_empty() && before > 0 {
            found.refs.retain(|_, named| named != commit);
            continue;
        }
        let mut left_out_pointers = Vec::new();
        if !options.sync_xet {
            files.retain(|file| {
                let path = || file.path(&inventory.layout, &repo.name, commit);
                let is_pointer = is_pointer(file, path, &mut pointers);
                if is_pointer {
                    left_out_pointers.push(file.file.path.clone());
                }
                !is_pointer
            });
        }
        if let Some(tree) = &tree {
            for file in files.iter_mut().filter(|file| tree.may_list_twin(&file.file)) {
                let known = tree.get(&file.file.path).expect("it knows the file").blob;
                let path = || file.path(&inventory.layout, &repo.name, commit);
                if twins.is_twin(&file.file, path, &known) {
                    file.other = Some(std::mem::replace(&mut file.file.blob, known));
                }
            }
        }
        let revision = LocalRevision::new(&repo.name, commit.clone(), files, tree);
        found.revisions.push(LocalRevision { pointers: left_out_pointers, stray_files, broken, ..revision });
    }
    failures.extend(problems.into_iter().filter_map(failure_of));
    if selected.commits.is_some() || !filter.is_empty() {
        return found;
    }
    let used: HashSet<BlobId> =
        found.revisions.iter().flat_map(|revision| revision.files.iter().map(|file| file.file.blob)).collect();
    found.unused = repo.blobs.keys().filter(|id| !used.contains(id) && !pointers.contains_key(*id)).count();
    found
}

/// Returns the path within the snapshot of a file that a push leaves out because it is broken or unreadable.
fn path_in_snapshot(problem: &Problem, snapshot: &Path) -> Option<String> {
    use ProblemKind::{BadName, BrokenLink, ForeignLink, NotAFile, Unreadable};
    let concerns_a_file = matches!(problem.kind, BadName | BrokenLink | ForeignLink | NotAFile | Unreadable);
    let path = problem.path.strip_prefix(snapshot).ok().filter(|path| concerns_a_file && path.iter().count() > 0)?;
    Some(path.to_string_lossy().into_owned())
}

/// Extends the error of a file that is left out by the consequence and a hint.
fn as_left_out(error: Error) -> Error {
    let why = error.why.clone().unwrap_or_default();
    let hint = error.hint.clone().unwrap_or_else(|| "download it again, then push again".into());
    error.because(format!("{why}, so it is not pushed")).hint(hint)
}

/// Returns the name of a problematic file in a snapshot if the commit does not list it.
fn stray_name(problem: &Problem, snapshot: &Path, tree: &Tree) -> Option<String> {
    use ProblemKind::{BadName, BrokenLink, ForeignLink, NotAFile};
    let concerns_a_file = matches!(problem.kind, BadName | BrokenLink | ForeignLink | NotAFile);
    let path = problem.path.strip_prefix(snapshot).ok().filter(|path| concerns_a_file && path.iter().count() > 0)?;
    let names: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    let is_listed = names.is_some_and(|names| tree.lists(&names.join("/")));
    (!is_listed).then(|| printable(&path.to_string_lossy(), 400))
}

/// Checks whether two blob names stand for the same bytes, and remembers the answers.
#[derive(Debug, Default)]
pub(crate) struct TwinChecker(HashMap<(BlobId, BlobId), bool>);

impl TwinChecker {
    /// Returns whether `name` is another name of the bytes at `path`, which are those of the file.
    pub(crate) fn is_twin(&mut self, file: &ManifestFile, path: impl Fn() -> PathBuf, name: &BlobId) -> bool {
        *self.0.entry((file.blob, *name)).or_insert_with(|| read::matches_name(&path(), name, file.size))
    }
}

/// Returns whether the file is an LFS or Xet pointer. An unreadable file is not: its upload will report the reason.
fn is_pointer(file: &LocalFile, path: impl Fn() -> PathBuf, known: &mut HashMap<BlobId, bool>) -> bool {
    if file.file.size > pointer::MAX_SIZE {
        return false;
    }
    *known.entry(file.file.blob).or_insert_with(|| {
        let content = read_small(&path(), pointer::MAX_SIZE).ok().flatten();
        content.is_some_and(|content| pointer::is_pointer(&content))
    })
}
