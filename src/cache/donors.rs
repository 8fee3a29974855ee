//! Finds other places in this cache that may have the bytes of a missing blob: another repo, another name, or a real file in
//! another snapshot.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::layout::Layout;
use super::presence::{BlobState, check_blob};
use super::read;
use super::state::LocalState;
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};

/// A file in this cache that should have the bytes of a blob, judging by its name, location or size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Donor {
    /// The repo that has it.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The file with the bytes.
    #[serde(skip)]
    pub file: PathBuf,
}

/// Decides whether a file that should have a blob's bytes may be its donor.
type Accept<'a> = &'a dyn Fn(&BlobId, &Path) -> bool;

/// Finds a donor for each missing blob, if there is one. `missing` lists the blobs that each repo lacks, with their sizes in
/// bytes.
pub fn find(state: &LocalState, missing: &[(&RepoName, Vec<(BlobId, u64)>)]) -> HashMap<BlobId, Donor> {
    find_accepted(state, missing, &|_, _| true)
}

/// Finds only donors with the blob's own name, which takes no time regardless of the size of the cache. This is for the
/// thousands of pulls of a few blobs each that a server makes.
pub fn find_by_name(layout: &Layout, missing: &[(&RepoName, Vec<(BlobId, u64)>)]) -> HashMap<BlobId, Donor> {
    let wanted: Vec<&(BlobId, u64)> = missing.iter().flat_map(|(_, blobs)| blobs).collect();
    let mut donors = HashMap::new();
    for repo in names(layout.root()).filter_map(|name| RepoName::from_folder(&name)) {
        for (blob, size) in &wanted {
            let file = layout.blob(&repo, blob);
            if !donors.contains_key(blob) && check_blob(&file, blob, *size, false) == BlobState::Present {
                donors.insert(*blob, Donor { repo: repo.clone(), file });
            }
        }
    }
    donors
}

/// Finds a donor with the right bytes for each damaged or missing blob, if there is one, with its size in bytes. `wanted`
/// lists the blobs of each repo, with their sizes if known. Files in `bad` are known to be wrong.
pub fn find_proven(
    state: &LocalState,
    wanted: &[(RepoName, BlobId, Option<u64>)],
    bad: &HashSet<PathBuf>,
) -> HashMap<BlobId, (Donor, u64)> {
    let layout = state.layout();
    let size_of = |path: &Path| fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len());
    let is_proven = |blob: &BlobId, path: &Path| {
        !bad.contains(path) && size_of(path).is_some_and(|size| read::matches_name(path, blob, size))
    };
    let repos: Vec<RepoName> = names(layout.root()).filter_map(|name| RepoName::from_folder(&name)).collect();
    let mut found = HashMap::new();
    // A copy with the blob's own name can be found without a size.
    for (_, blob, _) in wanted {
        let copy = repos.iter().find(|repo| is_proven(blob, &layout.blob(repo, blob)));
        found.extend(copy.map(|repo| (*blob, Donor { repo: repo.clone(), file: layout.blob(repo, blob) })));
    }
    let mut missing: Vec<(&RepoName, Vec<(BlobId, u64)>)> = Vec::new();
    for (repo, blob, size) in wanted.iter().filter(|(_, blob, _)| !found.contains_key(blob)) {
        missing.extend(size.map(|size| (repo, vec![(*blob, size)])));
    }
    found.extend(find_accepted(state, &missing, &is_proven));
    let with_size = |(blob, donor): (BlobId, Donor)| size_of(&donor.file).map(|size| (blob, (donor, size)));
    found.into_iter().filter_map(with_size).collect()
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn find_accepted(
    state: &LocalState,
    missing: &[(&RepoName, Vec<(BlobId, u64)>)],
    accept: Accept<'_>,
) -> HashMap<BlobId, Donor> {
    let layout = state.layout();
    let wanted: HashMap<BlobId, u64> = missing.iter().flat_map(|(_, blobs)| blobs).copied().collect();
    let mut donors = HashMap::new();
    if wanted.is_empty() {
        return donors;
    }
    let mut without_blobs = Vec::new();
    for repo in names(layout.root()).filter_map(|name| RepoName::from_folder(&name)) {
        let mut has_blobs = false;
        for blob in names(&layout.blobs(&repo)).filter_map(|name| name.parse::<BlobId>().ok()) {
            let fits = |size: &u64| check_blob(&layout.blob(&repo, &blob), &blob, *size, false) == BlobState::Present;
            has_blobs = true;
            if !donors.contains_key(&blob)
                && wanted.get(&blob).is_some_and(fits)
                && accept(&blob, &layout.blob(&repo, &blob))
            {
                donors.insert(blob, Donor { file: layout.blob(&repo, &blob), repo: repo.clone() });
            }
        }
        // Where links are impossible, the files are in the snapshots.
        if !has_blobs {
            without_blobs.push(repo);
        }
    }
    for repo in without_blobs.iter().filter(|name| !missing.iter().any(|(repo, _)| repo == name)) {
        let missing: Vec<BlobId> = wanted.keys().filter(|blob| !donors.contains_key(*blob)).copied().collect();
        if missing.is_empty() {
            break;
        }
        for commit in snapshots(layout, repo) {
            find_listed_files(state, repo, &commit, &missing, accept, &mut donors);
        }
    }
    for (repo, blobs) in missing {
        find_in_repo(state, repo, blobs, accept, &mut donors);
    }
    donors
}

/// Returns the payload of the cache-wide store that should be a blob, judging by its name and size.
pub fn find_in_store(layout: &Layout, repo: &RepoName, size: u64, xet_hash: &BlobId) -> Option<Donor> {
    let file = layout.payload(xet_hash);
    let is_payload = fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_file() && meta.len() == size);
    is_payload.then(|| Donor { repo: repo.clone(), file })
}

/// Maximum size, in bytes, of a real file that is hashed to check whether it is a missing blob, if its snapshot has no tree.
const MAX_HASHED_SIZE: u64 = 64 << 20;

/// Searches the repo itself for blobs that are not in its `blobs/` by name. They may be there under their name by the
/// other hash algorithm, or as a real file of another snapshot. The bytes are verified later.
fn find_in_repo(
    state: &LocalState,
    repo: &RepoName,
    blobs: &[(BlobId, u64)],
    accept: Accept<'_>,
    donors: &mut HashMap<BlobId, Donor>,
) {
    let layout = state.layout();
    let missing: Vec<(BlobId, u64)> = blobs.iter().filter(|(blob, _)| !donors.contains_key(blob)).copied().collect();
    if missing.is_empty() || fs::symlink_metadata(layout.repo(repo)).is_err() {
        return;
    }
    let donor = |file: PathBuf| Donor { repo: repo.clone(), file };
    let mut twins: HashMap<u64, Vec<BlobId>> = HashMap::new();
    let entries = fs::read_dir(layout.blobs(repo)).into_iter().flatten().flatten();
    for id in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<BlobId>().ok()) {
        if let Ok(meta) = fs::metadata(layout.blob(repo, &id))
            && meta.is_file()
        {
            twins.entry(meta.len()).or_default().push(id);
        }
    }
    for (blob, size) in &missing {
        let twin = twins
            .get(size)
            .into_iter()
            .flatten()
            .find(|twin| twin.may_be_twin(blob) && read::matches_name(&layout.blob(repo, twin), blob, *size));
        donors.extend(twin.map(|twin| (*blob, donor(layout.blob(repo, twin)))));
    }
    let ids: Vec<BlobId> = missing.iter().map(|(blob, _)| *blob).collect();
    for commit in snapshots(layout, repo) {
        if find_listed_files(state, repo, &commit, &ids, accept, donors) {
            continue;
        }
        let mut real = Vec::new();
        collect_real_files(&layout.snapshot(repo, &commit), &mut real);
        for (blob, size) in missing.iter().filter(|(_, size)| *size <= MAX_HASHED_SIZE) {
            let fits = |(length, file): &&(u64, PathBuf)| length == size && read::matches_name(file, blob, *size);
            donors.extend(real.iter().find(fits).map(|(_, file)| (*blob, donor(file.clone()))));
        }
    }
}

/// Returns the commits of a repo's snapshots.
fn snapshots(layout: &Layout, repo: &RepoName) -> impl Iterator<Item = Commit> {
    let entries = fs::read_dir(layout.repo(repo).join("snapshots")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Searches the real files of a snapshot for blobs, by the commit's tree. Returns `false` if there is no tree.
fn find_listed_files(
    state: &LocalState,
    repo: &RepoName,
    commit: &Commit,
    missing: &[BlobId],
    accept: Accept<'_>,
    donors: &mut HashMap<BlobId, Donor>,
) -> bool {
    let Some(tree) = state.tree(repo, commit).valid() else { return false };
    let by_blob: HashMap<BlobId, &RepoPath> = tree.entries().map(|(path, entry)| (entry.blob, path)).collect();
    for blob in missing {
        let file = by_blob.get(blob).map(|path| state.layout().snapshot_file(repo, commit, path));
        let is_real = |file: &PathBuf| fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file());
        donors.extend(
            file.filter(|file| is_real(file) && accept(blob, file))
                .map(|file| (*blob, Donor { repo: repo.clone(), file })),
        );
    }
    true
}

/// Collects the regular files below a folder, with their sizes. Links are not followed.
fn collect_real_files(folder: &Path, found: &mut Vec<(u64, PathBuf)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_real_files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.extend(entry.metadata().map(|meta| (meta.len(), entry.path()))),
            _ => {}
        }
    }
}
