//! Determines which parts of a revision are already in this cache, by checking each of its files instead of scanning the
//! whole cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::layout::{self, Layout};
use crate::cache::state::{LocalState, TreeFile};
use crate::cache::{place, read, repair, snapshot};
use crate::error::{Error, Result};
use crate::model::found::Found;
use crate::model::ids::{BlobId, RefName, RepoName};

/// The parts of a revision that this cache has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct State {
    /// The state of each blob of the manifest.
    pub blobs: BTreeMap<BlobId, BlobState>,
    /// Whether each file of the manifest is in place, in manifest order.
    pub in_place: Vec<bool>,
    /// Whether the tree file matches the manifest's tree, or need not be written.
    pub tree: bool,
    /// Whether the ref names this commit, or need not be written.
    pub reference: bool,
    /// Whether there is a ref named after the commit, or it need not be written.
    pub pin: bool,
}

/// The local state of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobState {
    /// Complete.
    Present,
    /// Not in `blobs/`, but every file that needs it is in place as a real file.
    InSnapshot,
    /// Present, but with a different size.
    WrongSize,
    /// Present, but its bytes do not match its name. Only detected when the bytes are hashed.
    Corrupt,
    /// Not present.
    Missing,
}

/// Checks that the cache root is a directory or does not exist yet.
///
/// # Errors
/// [`crate::error::Cause::Usage`] if it is anything but a directory.
pub fn check_root(layout: &Layout) -> Result<()> {
    let root = layout.root();
    match fs::metadata(root) {
        Ok(meta) if !meta.is_dir() => {
            Err(Error::usage(format!("the cache directory {} is not a directory", root.display()))
                .hint("set HF_HUB_CACHE, cache.hf_cache_dir or --cache-dir to the `hub` folder"))
        }
        _ => Ok(()),
    }
}

/// Checks which parts of a revision are here. With `verify`, local blobs are hashed.
pub fn inspect(local: &LocalState, found: &Found, verify: bool) -> State {
    let layout = local.layout();
    let (manifest, reference) = (&found.manifest, found.reference.as_ref());
    let (repo, commit) = (manifest.repo(), manifest.revision());
    let mut state = State::default();
    // If a folder is missing, its files need not be looked up.
    let is_there = |folder: PathBuf| fs::symlink_metadata(folder).is_ok();
    let has_blobs = is_there(layout.blobs(repo));
    for (id, size) in manifest.blobs() {
        let blob = if has_blobs { check_blob(&layout.blob(repo, &id), &id, size, verify) } else { BlobState::Missing };
        state.blobs.insert(id, blob);
    }
    let has_snapshot = is_there(layout.snapshot(repo, commit));
    for file in manifest.files() {
        let path = layout.snapshot_file(repo, commit, &file.path);
        let meta = has_snapshot.then(|| fs::symlink_metadata(&path).ok()).flatten();
        let is_real = meta.as_ref().is_some_and(|meta| meta.is_file());
        let linked = meta.is_some() && snapshot::is_linked(layout, repo, commit, &file.path, &file.blob, file.size);
        let is_twin = !linked && meta.is_some() && !is_real && is_twin(layout, repo, &path, &file.blob, file.size);
        let good = is_twin
            || linked && !(verify && is_real && check_blob(&path, &file.blob, file.size, true) != BlobState::Present);
        state.in_place.push(good);
        let blob = state.blobs.get_mut(&file.blob).expect("every file's blob was checked");
        match (*blob, good && (is_real || is_twin)) {
            (BlobState::Missing, true) => *blob = BlobState::InSnapshot,
            (BlobState::InSnapshot, false) => *blob = BlobState::Missing,
            _ => {}
        }
    }
    // An earlier file may have marked the blob as present before a later file turned out to be missing.
    for (file, good) in manifest.files().iter().zip(&state.in_place) {
        if !good && state.blobs[&file.blob] == BlobState::InSnapshot {
            state.blobs.insert(file.blob, BlobState::Missing);
        }
    }
    state.tree = manifest.tree().is_none_or(|known| match local.tree(repo, commit) {
        TreeFile::Valid(tree) => *tree == *known,
        // It belongs to another user of a shared cache.
        TreeFile::Private => true,
        TreeFile::Absent | TreeFile::Invalid(_) => false,
    });
    state.reference = reference.is_none_or(|name| {
        let path = layout.reference(repo, name);
        // An untidy ref counts as present: the pull repairs it.
        place::has_content(&path, commit.as_str().as_bytes()) || repair::is_untidy(layout, &path, commit)
    });
    let pin = || layout.reference(repo, &RefName::of_commit(commit));
    state.pin = !found.pinned || place::has_content(&pin(), commit.as_str().as_bytes());
    state
}

/// Returns whether a snapshot file links to the same bytes under their name by the other hash algorithm.
fn is_twin(layout: &Layout, repo: &RepoName, path: &Path, blob: &BlobId, size: u64) -> bool {
    let Ok(target) = fs::read_link(path) else { return false };
    let inside = layout::normalized(&path.with_file_name("").join(target));
    let name = inside.strip_prefix(layout.blobs(repo)).ok().and_then(|name| name.to_str()?.parse::<BlobId>().ok());
    name.is_some_and(|name| name.may_be_twin(blob)) && check_blob(path, blob, size, true) == BlobState::Present
}

pub(super) fn check_blob(path: &std::path::Path, id: &BlobId, size: u64, verify: bool) -> BlobState {
    // Follows links on purpose: a blob may be a link into the cache-wide store.
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() != size => BlobState::WrongSize,
        Ok(_) if verify && !read::matches_name(path, id, size) => BlobState::Corrupt,
        Ok(_) => BlobState::Present,
        Err(_) => BlobState::Missing,
    }
}
