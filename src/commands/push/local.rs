//! What this cache can offer: per revision the files with their blobs, without what must not be pushed.

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::cache::gated::{self, Gated};
use crate::cache::identify::{Identifier, LocalFile};
use crate::cache::pointer;
use crate::cache::read::read_small;
use crate::cache::scan::{Inventory, Problem, Repo};
use crate::config::nearest;
use crate::error::{Error, Kind, Result, plain_io};
use crate::ids::{BlobId, Commit, RefName, RepoName, RepoPath, RepoQuery};
use crate::manifest::Tree;

/// Largest tree file that is read, in bytes.
const MAX_TREE: u64 = 256 << 20;

/// What to consider.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// These repos; all when empty.
    pub only: Vec<RepoQuery>,
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
    /// Pointer files that are left out.
    pub pointers: Vec<RepoPath>,
    /// Why it must not be published: a file contradicts the commit's tree.
    pub refused: Option<Error>,
}

/// Reads what is needed beside the scan: licences, trees, pointer files, and real files without a name.
///
/// # Errors
/// [`Kind::NotFound`] when a repo was named that is not in the cache.
pub fn gather(inventory: &Inventory, options: &Options) -> Result<Local> {
    for query in &options.only {
        if !inventory.repos.iter().any(|repo| query.matches(&repo.name)) {
            return Err(not_cached(inventory, query));
        }
    }
    let wanted = |repo: &&Repo| options.only.is_empty() || options.only.iter().any(|query| query.matches(&repo.name));
    let mut local = Local::default();
    local.failures.extend(inventory.problems.iter().filter_map(failure));
    let mut identifier = Identifier::default();
    for repo in inventory.repos.iter().filter(wanted) {
        local.failures.extend(repo.problems.iter().filter_map(failure));
        let found = gather_repo(inventory, repo, options, &mut identifier, &mut local.failures);
        local.repos.push(found);
    }
    Ok(local)
}

fn failure(problem: &Problem) -> Option<Error> {
    let path = crate::error::printable(&problem.path.to_string_lossy(), 400);
    problem.kind.is_failure().then(|| Error::failed(path).because(problem.detail.clone()))
}

fn not_cached(inventory: &Inventory, query: &RepoQuery) -> Error {
    let names: Vec<String> = inventory.repos.iter().map(|repo| repo.name.to_string()).collect();
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
    failures: &mut Vec<Error>,
) -> LocalRepo {
    let mut found =
        LocalRepo { name: repo.name.clone(), gated: None, revisions: Vec::new(), refs: repo.refs.clone(), unused: 0 };
    if !options.allow_gated {
        for commit in repo.revisions.keys() {
            match gated::look(&inventory.layout.snapshot(&repo.name, commit)) {
                Ok(None) => {}
                Ok(gated) => {
                    found.gated = gated;
                    return found;
                }
                Err(error) => {
                    failures.push(
                        Error::failed(format!("cannot tell whether {} is gated, so it is not pushed", repo.name))
                            .because(plain_io(&error)),
                    );
                    return found;
                }
            }
        }
    }
    let mut pointers = HashMap::new();
    for commit in repo.revisions.keys() {
        let tree = read_tree(inventory, repo, commit, failures);
        let (mut files, problems) = identifier.files(&inventory.layout, repo, commit, tree.as_ref());
        failures.extend(problems.iter().filter_map(failure));
        let mut left_out = Vec::new();
        if !options.sync_xet {
            files.retain(|file| {
                let is_pointer = is_pointer(file, &mut pointers);
                if is_pointer {
                    left_out.push(file.file.path.clone());
                }
                !is_pointer
            });
        }
        let refused = tree.as_ref().and_then(|tree| contradiction(&repo.name, commit, tree, &files));
        found.revisions.push(LocalRevision { commit: commit.clone(), files, tree, pointers: left_out, refused });
    }
    let used: std::collections::HashSet<BlobId> =
        found.revisions.iter().flat_map(|revision| revision.files.iter().map(|file| file.file.blob)).collect();
    found.unused = repo.blobs.keys().filter(|id| !used.contains(id) && !pointers.contains_key(*id)).count();
    found
}

fn read_tree(inventory: &Inventory, repo: &Repo, commit: &Commit, failures: &mut Vec<Error>) -> Option<Tree> {
    repo.trees.binary_search(commit).ok()?;
    let path = inventory.layout.tree(&repo.name, commit);
    let parsed = match read_small(&path, MAX_TREE) {
        Ok(Some(bytes)) => Tree::parse(&bytes),
        Ok(None) => Err("it is too large".into()),
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
        Error::new(Kind::Integrity, format!("{repo}@{} was not pushed", commit.short()))
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
