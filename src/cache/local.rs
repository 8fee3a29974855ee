//! What this cache can offer: per revision the files with their blobs, without what must not be pushed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::cache::gated::{self, Gated};
use crate::cache::identify::{Identifier, LocalFile};
use crate::cache::pointer;
use crate::cache::read::{self, MAX_TREE, read_small};
use crate::cache::scan::{Inventory, Problem, ProblemKind, Repo};
use crate::error::{Cause, Error, Result, plain_io, printable, shown};
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath, RepoType, Typed};
use crate::model::manifest::{Manifest, Tree};
use crate::suggest::nearest;

/// What to consider.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// These repos; all when empty.
    pub only: Vec<Typed>,
    /// Also repos that look gated.
    pub allow_gated: bool,
    /// Also LFS/Xet pointer files.
    pub sync_xet: bool,
}

/// What the cache can offer.
#[derive(Debug, Default)]
pub struct Local {
    /// Repos, in the order of the scan.
    pub repos: Vec<LocalRepo>,
    /// What the scan and the reading found wrong.
    pub failures: Vec<Error>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Which revisions of a repo are wanted.
enum Wanted {
    All,
    These(Vec<Commit>),
}

/// Repos, with what is wanted of each.
type Meant<'a> = Vec<(&'a Repo, Wanted)>;

impl Wanted {
    fn add(&mut self, more: &Wanted) {
        match (&mut *self, more) {
            (Wanted::These(known), Wanted::These(more)) => known.extend(more.iter().cloned()),
            _ => *self = Wanted::All,
        }
    }
}

/// One repo.
#[derive(Debug)]
pub struct LocalRepo {
    /// Which.
    pub name: RepoName,
    /// Set when it must not be pushed.
    pub gated: Option<Gated>,
    /// Its revisions; none for a gated repo.
    pub revisions: Vec<LocalRevision>,
    /// Its refs.
    pub refs: BTreeMap<RefName, Commit>,
    /// Commits of its snapshots with a ref that is called like them, which hf-hub needs wherever they come to.
    pub pins: BTreeSet<Commit>,
    /// Complete blobs that no revision uses.
    pub unused: usize,
}

/// One revision.
#[derive(Debug)]
pub struct LocalRevision {
    /// Which.
    pub commit: Commit,
    /// Its files, sorted by path.
    pub files: Vec<LocalFile>,
    /// The commit's full listing.
    pub tree: Option<Tree>,
    /// What this cache would publish of it, for all that it knows itself.
    pub manifest: Arc<Manifest>,
    /// Pointer files that are left out.
    pub pointers: Vec<RepoPath>,
    /// What is in the snapshot and not of the commit, safe to print.
    pub strangers: Vec<String>,
    /// What cannot be pushed of the snapshot: a file whose link is broken, or one that cannot be read.
    pub broken: BTreeSet<String>,
    /// Why it must not be published: a file contradicts the commit's tree.
    pub refused: Option<Error>,
}

impl LocalRevision {
    /// A revision with nothing to be said against it.
    pub fn new(repo: &RepoName, commit: Commit, files: Vec<LocalFile>, tree: Option<Tree>) -> LocalRevision {
        let manifest = Manifest {
            repo: repo.clone(),
            revision: commit.clone(),
            files: files.iter().map(|local| local.file.clone()).collect(),
            tree: tree.clone().filter(Tree::is_harmless),
            extra: serde_json::Map::new(),
        };
        LocalRevision {
            commit,
            files,
            tree,
            manifest: Arc::new(manifest),
            pointers: Vec::new(),
            strangers: Vec::new(),
            broken: BTreeSet::new(),
            refused: None,
        }
    }
}

impl LocalRepo {
    /// All refs that a push writes.
    pub fn all_refs(&self) -> impl Iterator<Item = (RefName, &Commit)> {
        let refs = self.refs.iter().map(|(name, commit)| (name.clone(), commit));
        refs.chain(self.pins.iter().map(|commit| (RefName::of_commit(commit), commit)))
    }
}

/// Reads what is needed beside the scan: licences, trees, pointer files, and real files without a name.
///
/// # Errors
/// [`Cause::NotFound`] when a repo was named that is not in the cache.
pub fn gather(inventory: &Inventory, options: &Options) -> Result<Local> {
    let mut wanted: BTreeMap<&RepoName, Wanted> = BTreeMap::new();
    let mut notes = Vec::new();
    for typed in &options.only {
        let mut meant: Vec<&Repo> = inventory.repos.iter().filter(|repo| typed.query.matches(&repo.name)).collect();
        if meant.is_empty() {
            meant = inventory.repos.iter().filter(|repo| typed.query.resembles(&repo.name)).collect();
            match meant.as_slice() {
                [one] => notes.push(format!("{} is {} in this cache", typed.query, one.name)),
                [one, others @ ..] if others.iter().all(|other| other.name.id == one.name.id) => {
                    notes.push(format!("{} is {} in this cache", typed.query, one.name.id));
                }
                _ => return Err(not_cached(inventory, typed)),
            }
        }
        let (meant, note) = of_one_id(meant, typed)?;
        notes.extend(note);
        for (repo, commits) in meant {
            wanted.entry(&repo.name).and_modify(|known| known.add(&commits)).or_insert(commits);
        }
    }
    let is_wanted = |repo: &&Repo| options.only.is_empty() || wanted.contains_key(&repo.name);
    let mut local = Local { notes, ..Local::default() };
    local.failures.extend(inventory.problems.iter().filter_map(failure));
    let mut identifier = Identifier::default();
    let mut kept_from_us = 0;
    for repo in inventory.repos.iter().filter(is_wanted) {
        let mut found = gather_repo(inventory, repo, options, &mut identifier, &mut kept_from_us, &mut local.failures);
        if let Some(Wanted::These(commits)) = wanted.get(&repo.name) {
            found.revisions.retain(|revision| commits.contains(&revision.commit));
            found.refs.retain(|_, commit| commits.contains(commit));
        }
        local.repos.push(found);
        local.notes.extend(untidy(repo));
    }
    if kept_from_us > 0 {
        local.notes.push(format!(
            "{kept_from_us} of the files in trees/ cannot be read by this user, since huggingface_hub writes them for \
             their owner alone: those revisions are pushed without the list that proves them complete"
        ));
    }
    Ok(local)
}

/// Of the repos that an id fits, those that are meant, with what of them, and what a user should know. An id without a
/// type is that of the model, as in a pull; failing that, of whatever has it. Who lacks the revision is not meant.
///
/// # Errors
/// When none has the revision.
fn of_one_id<'a>(repos: Vec<&'a Repo>, typed: &Typed) -> Result<(Meant<'a>, Option<String>)> {
    let (mut meant, mut errors) = (Vec::new(), Vec::new());
    for repo in repos {
        match typed.revision.as_ref().map(|text| revision_of(repo, text)).transpose() {
            Ok(commit) => meant.push((repo, commit.map_or(Wanted::All, |commit| Wanted::These(vec![commit])))),
            Err(error) => errors.push((repo.name.kind != RepoType::Model, error)),
        }
    }
    // Of the model's and the others' errors, the model's.
    errors.sort_by_key(|(is_other, _)| *is_other);
    if let (true, Some((_, error))) = (meant.is_empty(), errors.into_iter().next()) {
        return Err(error);
    }
    let is_model = |repo: &Repo| repo.name.kind == RepoType::Model;
    let others: Vec<String> =
        meant.iter().filter(|(repo, _)| !is_model(repo)).map(|(repo, _)| repo.name.to_string()).collect();
    if others.is_empty() || others.len() == meant.len() {
        return Ok((meant, None));
    }
    meant.retain(|(repo, _)| is_model(repo));
    let note = format!("{} is the model; there is {} in this cache, too", typed.query, others.join(" and "));
    Ok((meant, Some(note)))
}

/// Refs that are published as they are meant, and that huggingface_hub cannot use here.
fn untidy(repo: &Repo) -> Option<String> {
    let names: Vec<&str> = repo.untidy_refs.iter().map(RefName::as_str).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{}: white space around the commit in refs/{} keeps huggingface_hub from using it offline; \
             `hf-cache-sync doctor --fix` mends it",
            repo.name,
            names.join(", refs/")
        )
    })
}

/// What of it is a failure of a push; a ref that is understood all the same is a note.
fn failure(problem: &Problem) -> Option<Error> {
    if problem.kind == ProblemKind::UntidyRef {
        return None;
    }
    let path = crate::error::printable(&problem.path.to_string_lossy(), 400);
    problem.kind.is_failure().then(|| Error::failed(path).because(problem.detail.clone()))
}

/// The commit of this cache that a ref, a commit or the first digits of one name.
fn revision_of(repo: &Repo, text: &str) -> Result<Commit> {
    let fits = |commit: &&Commit| text.len() >= 4 && commit.as_str().starts_with(text);
    let by_ref = text.parse::<RefName>().ok().and_then(|name| repo.refs.get(&name));
    let commits: Vec<&Commit> = repo.revisions.keys().filter(fits).collect();
    match (by_ref.filter(|commit| repo.revisions.contains_key(*commit)), commits.as_slice()) {
        (Some(commit), _) => Ok(commit.clone()),
        (None, [commit]) => Ok((*commit).clone()),
        (None, [_, _, ..]) => {
            Err(Error::usage(format!("'{}' is ambiguous in {}", printable(text, 100), repo.name))
                .hint("give more digits"))
        }
        (None, []) => {
            let mut there: Vec<&str> = repo.refs.keys().map(RefName::as_str).collect();
            there.extend(repo.revisions.keys().map(Commit::short));
            there.truncate(12);
            Err(Error::not_found(format!("revision '{}' of {} is not in this cache", printable(text, 100), repo.name))
                .because(format!("it has {}", there.join(", "))))
        }
    }
}

fn not_cached(inventory: &Inventory, Typed { query, .. }: &Typed) -> Error {
    let names: Vec<String> = inventory.repos.iter().map(|repo| repo.name.to_string()).collect();
    if let Some(other) = inventory.repos.iter().find(|repo| repo.name.id == query.id) {
        return Error::not_found(format!("{query} is not in the cache {}", inventory.layout.root().display()))
            .because(format!("{} is a {} there", query.id, other.name.kind))
            .hint(format!("name it as {}:{}", other.name.kind.word(), query.id));
    }
    let close: Vec<&str> = nearest(&query.to_string(), names.iter().map(String::as_str)).take(3).collect();
    let error = Error::not_found(format!("{query} is not in the cache {}", inventory.layout.root().display()));
    match close.is_empty() {
        true => error.hint("`hf-cache-sync list` shows what is"),
        false => error.hint(format!("did you mean {}?", close.join(", "))),
    }
}

fn gather_repo(
    inventory: &Inventory,
    repo: &Repo,
    options: &Options,
    identifier: &mut Identifier,
    kept_from_us: &mut usize,
    failures: &mut Vec<Error>,
) -> LocalRepo {
    let trees = inventory.layout.repo(&repo.name).join("trees");
    let is_trees = |problem: &Problem| problem.kind == ProblemKind::Unreadable && problem.path == trees;
    let (unreadable, mut problems): (Vec<&Problem>, Vec<&Problem>) =
        repo.problems.iter().partition(|problem| is_trees(problem));
    *kept_from_us += unreadable.len();
    let mut found = LocalRepo {
        name: repo.name.clone(),
        gated: None,
        revisions: Vec::new(),
        refs: repo.refs.clone(),
        pins: repo.pins.iter().filter(|commit| repo.revisions.contains_key(*commit)).cloned().collect(),
        unused: 0,
    };
    if !options.allow_gated {
        for commit in repo.revisions.keys() {
            match gated::look(&inventory.layout.snapshot(&repo.name, commit)) {
                Ok(None) => {}
                Ok(gated) => {
                    found.gated = gated;
                    failures.extend(problems.into_iter().filter_map(failure));
                    return found;
                }
                Err((path, error)) => {
                    failures.extend(problems.into_iter().filter_map(failure));
                    failures.push(
                        Error::failed(format!("cannot tell whether {} is gated, so it is not pushed", repo.name))
                            .because(format!("{}: {}", shown(&path), plain_io(&error))),
                    );
                    // Its refs do have a snapshot here: nothing more is to be said of them.
                    found.refs.clear();
                    return found;
                }
            }
        }
    }
    let mut pointers = HashMap::new();
    let mut twins = Twins::default();
    for commit in repo.revisions.keys() {
        let tree = read_tree(inventory, repo, commit, kept_from_us, failures);
        let identified = identifier.files(&inventory.layout, repo, commit, tree.as_ref());
        let snapshot = inventory.layout.snapshot(&repo.name, commit);
        let mut broken = BTreeSet::new();
        for problem in &identified.problems {
            let left_out = left_out(problem, &snapshot);
            failures.extend(failure(problem).map(|error| if left_out.is_some() { without(error) } else { error }));
            broken.extend(left_out);
        }
        let mut files = identified.files;
        let mut strangers: Vec<String> =
            identified.strangers.iter().map(|path| printable(path.as_str(), 400)).collect();
        if let Some(tree) = &tree {
            problems.retain(|problem| match stranger(problem, &snapshot, tree) {
                Some(name) => {
                    strangers.push(name);
                    false
                }
                None => true,
            });
        }
        problems.retain(|problem| match left_out(problem, &snapshot) {
            Some(path) => {
                broken.insert(path);
                failures.extend(failure(problem).map(without));
                false
            }
            None => true,
        });
        let mut own_pointers = Vec::new();
        if !options.sync_xet {
            files.retain(|file| {
                let is_pointer = is_pointer(file, &mut pointers);
                if is_pointer {
                    own_pointers.push(file.file.path.clone());
                }
                !is_pointer
            });
        }
        if let Some(tree) = &tree {
            for file in files.iter_mut().filter(|file| tree.may_know_as_twin(&file.file)) {
                let known = tree.get(&file.file.path).expect("it knows the file").blob;
                if twins.are(file, &known) {
                    file.other = Some(std::mem::replace(&mut file.file.blob, known));
                }
            }
        }
        let refused = tree.as_ref().and_then(|tree| contradiction(&repo.name, commit, tree, &files));
        let revision = LocalRevision::new(&repo.name, commit.clone(), files, tree);
        found.revisions.push(LocalRevision { pointers: own_pointers, strangers, broken, refused, ..revision });
    }
    failures.extend(problems.into_iter().filter_map(failure));
    let used: std::collections::HashSet<BlobId> =
        found.revisions.iter().flat_map(|revision| revision.files.iter().map(|file| file.file.blob)).collect();
    found.unused = repo.blobs.keys().filter(|id| !used.contains(id) && !pointers.contains_key(*id)).count();
    found
}

/// The path in the snapshot of what a push leaves out, since it is broken or cannot be read.
fn left_out(problem: &Problem, snapshot: &Path) -> Option<String> {
    use ProblemKind::{BadName, BrokenLink, ForeignLink, NotAFile, Unreadable};
    let concerns_a_file = matches!(problem.kind, BadName | BrokenLink | ForeignLink | NotAFile | Unreadable);
    let path = problem.path.strip_prefix(snapshot).ok().filter(|path| concerns_a_file && path.iter().count() > 0)?;
    Some(path.to_string_lossy().into_owned())
}

/// The failure of a file that is left out.
fn without(error: Error) -> Error {
    let why = error.why.clone().unwrap_or_default();
    error.because(format!("{why}, so it is left out of what is pushed")).hint("download it again, then push again")
}

/// The name of what is wrong with a snapshot, where the commit has no such file.
fn stranger(problem: &Problem, snapshot: &Path, tree: &Tree) -> Option<String> {
    use ProblemKind::{BadName, BrokenLink, ForeignLink, NotAFile};
    let concerns_a_file = matches!(problem.kind, BadName | BrokenLink | ForeignLink | NotAFile);
    let path = problem.path.strip_prefix(snapshot).ok().filter(|path| concerns_a_file && path.iter().count() > 0)?;
    let names: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    let is_listed = names.is_some_and(|names| tree.lists(&names.join("/")));
    (!is_listed).then(|| printable(&path.to_string_lossy(), 400))
}

/// Which names are names of the same bytes, looked up once.
#[derive(Debug, Default)]
pub(crate) struct Twins(HashMap<(BlobId, BlobId), bool>);

impl Twins {
    /// Whether the file's bytes have this name too.
    pub(crate) fn are(&mut self, file: &LocalFile, name: &BlobId) -> bool {
        let (own, size) = (file.file.blob, file.file.size);
        *self.0.entry((own, *name)).or_insert_with(|| read::matches_name(&file.source, name, size))
    }
}

/// The commit's tree. That another user keeps it to themselves is counted, and no failure.
fn read_tree(
    inventory: &Inventory,
    repo: &Repo,
    commit: &Commit,
    kept_from_us: &mut usize,
    failures: &mut Vec<Error>,
) -> Option<Tree> {
    repo.trees.binary_search(commit).ok()?;
    let path = inventory.layout.tree(&repo.name, commit);
    let parsed = match read_small(&path, MAX_TREE) {
        Ok(Some(bytes)) => Tree::parse(&bytes),
        Ok(None) => Err("it is too large".into()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            *kept_from_us += 1;
            return None;
        }
        Err(error) => Err(plain_io(&error)),
    };
    parsed.unwrap_or_else(|why| {
        failures.push(
            Error::failed(format!("the tree {} is not used", path.display()))
                .because(why)
                .hint("delete it: huggingface_hub fetches it anew"),
        );
        None
    })
}

fn contradiction(repo: &RepoName, commit: &Commit, tree: &Tree, files: &[LocalFile]) -> Option<Error> {
    let why = files.iter().find_map(|file| tree.agrees_with(&file.file).err())?;
    Some(
        Error::new(Cause::Corrupt, format!("{repo}@{} was not pushed", commit.short()))
            .because(why)
            .hint("a file of this snapshot was changed: delete it and download it again"),
    )
}

/// Whether the file is an LFS/Xet pointer. An unreadable one is not: its upload will say why.
fn is_pointer(file: &LocalFile, known: &mut HashMap<BlobId, bool>) -> bool {
    if file.file.size > pointer::MAX_SIZE {
        return false;
    }
    *known.entry(file.file.blob).or_insert_with(|| {
        let content = read_small(&file.source, pointer::MAX_SIZE).ok().flatten();
        content.is_some_and(|content| pointer::is_pointer(&content))
    })
}
