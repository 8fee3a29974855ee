//! Where else in this cache the bytes of a blob may be: another repo, another name, a real file of another snapshot.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::layout::Layout;
use super::read::{self, MAX_TREE};
use super::target::{BlobState, look_at};
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};
use crate::model::manifest::Tree;

/// A file of this cache that should be a blob, by its name, place or size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Donor {
    /// The repo that has it.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Its bytes.
    #[serde(skip)]
    pub file: PathBuf,
}

/// Repos of this cache that have a blob of the right name and size, one for each of the blobs, with their sizes, that
/// repos lack.
pub fn find(layout: &Layout, lacking: &[(&RepoName, Vec<(BlobId, u64)>)]) -> HashMap<BlobId, Donor> {
    let wanted: HashMap<BlobId, u64> = lacking.iter().flat_map(|(_, blobs)| blobs).copied().collect();
    let mut donors = HashMap::new();
    if wanted.is_empty() {
        return donors;
    }
    let names = |dir: &std::path::Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    };
    for repo in names(layout.root()).filter_map(|name| RepoName::from_folder(&name)) {
        for blob in names(&layout.blobs(&repo)).filter_map(|name| name.parse::<BlobId>().ok()) {
            let fits = |size: &u64| look_at(&layout.blob(&repo, &blob), &blob, *size, false) == BlobState::Present;
            if !donors.contains_key(&blob) && wanted.get(&blob).is_some_and(fits) {
                donors.insert(blob, Donor { file: layout.blob(&repo, &blob), repo: repo.clone() });
            }
        }
    }
    for (repo, blobs) in lacking {
        find_in_repo(layout, repo, blobs, &mut donors);
    }
    donors
}

/// Largest real file of a snapshot without a tree that is read to find out whether it is what is looked for, in bytes.
const WORTH_A_LOOK: u64 = 64 << 20;

/// Looks in the repo itself for what is not in its `blobs/` by name: there it may be by its name of the other algorithm,
/// or as a real file of another snapshot. The bytes decide later.
fn find_in_repo(layout: &Layout, repo: &RepoName, blobs: &[(BlobId, u64)], donors: &mut HashMap<BlobId, Donor>) {
    let lacking: Vec<(BlobId, u64)> = blobs.iter().filter(|(blob, _)| !donors.contains_key(blob)).copied().collect();
    if lacking.is_empty() || fs::symlink_metadata(layout.repo(repo)).is_err() {
        return;
    }
    let mut add = |blob: BlobId, file: PathBuf| drop(donors.insert(blob, Donor { repo: repo.clone(), file }));
    let mut twins: HashMap<u64, Vec<BlobId>> = HashMap::new();
    let entries = fs::read_dir(layout.blobs(repo)).into_iter().flatten().flatten();
    for id in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<BlobId>().ok()) {
        if let Ok(meta) = fs::metadata(layout.blob(repo, &id))
            && meta.is_file()
        {
            twins.entry(meta.len()).or_default().push(id);
        }
    }
    for (blob, size) in &lacking {
        let twin = twins
            .get(size)
            .into_iter()
            .flatten()
            .find(|twin| twin.may_be_twin(blob) && read::matches_name(&layout.blob(repo, twin), blob, *size));
        twin.into_iter().for_each(|twin| add(*blob, layout.blob(repo, twin)));
    }
    let snapshots = fs::read_dir(layout.repo(repo).join("snapshots")).into_iter().flatten().flatten();
    for commit in snapshots.filter_map(|entry| entry.file_name().to_str()?.parse::<Commit>().ok()) {
        let tree = read::read_small(&layout.tree(repo, &commit), MAX_TREE).ok().flatten();
        if let Some(tree) = tree.and_then(|bytes| Tree::parse(&bytes).ok().flatten()) {
            let by_blob: HashMap<BlobId, &RepoPath> =
                tree.entries().iter().map(|(path, entry)| (entry.blob, path)).collect();
            for (blob, _) in &lacking {
                let file = by_blob.get(blob).map(|path| layout.snapshot_file(repo, &commit, path));
                let is_real = |file: &PathBuf| fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file());
                file.filter(is_real).into_iter().for_each(|file| add(*blob, file));
            }
            continue;
        }
        let mut real = Vec::new();
        real_files(&layout.snapshot(repo, &commit), &mut real);
        for (blob, size) in lacking.iter().filter(|(_, size)| *size <= WORTH_A_LOOK) {
            let fits = |(length, file): &&(u64, PathBuf)| length == size && read::matches_name(file, blob, *size);
            real.iter().find(fits).into_iter().for_each(|(_, file)| add(*blob, file.clone()));
        }
    }
}

/// The files below a folder that are no links, with their sizes.
fn real_files(folder: &Path, found: &mut Vec<(u64, PathBuf)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => real_files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.extend(entry.metadata().map(|meta| (meta.len(), entry.path()))),
            _ => {}
        }
    }
}
