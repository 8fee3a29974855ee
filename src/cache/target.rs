//! What of a revision is here already: a look at each of its files, without a scan of the whole cache.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::layout::{self, Layout};
use crate::cache::{mend, place, read};
use crate::error::{Error, Result};
use crate::model::found::Found;
use crate::model::ids::{BlobId, RefName, RepoName};

/// What is here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct State {
    /// For each blob of the manifest.
    pub blobs: BTreeMap<BlobId, BlobState>,
    /// For each file of the manifest, in its order: whether it is in place.
    pub in_place: Vec<bool>,
    /// Whether the tree file is as the manifest has it (or there is none).
    pub tree: bool,
    /// Whether the ref says this commit (or none is to be written).
    pub reference: bool,
    /// Whether there is a ref called like the commit (or none is to be written).
    pub pin: bool,
}

/// What is here of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobState {
    /// Complete.
    Present,
    /// Not in `blobs/`, but every file that needs it is in place as a real file.
    InSnapshot,
    /// There, with another size.
    WrongSize,
    /// There, with bytes that do not match the name (only where they were hashed).
    Corrupt,
    /// Not there.
    Missing,
}

/// The cache root may be missing, but nothing else may stand there.
///
/// # Errors
/// [`crate::error::Cause::Usage`] when it is a file.
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

/// Looks. With `verify`, the bytes of blobs that are here are hashed.
pub fn look(layout: &Layout, found: &Found, verify: bool) -> State {
    let (manifest, reference) = (&found.manifest, found.reference.as_ref());
    let (repo, commit) = (&manifest.repo, &manifest.revision);
    let mut state = State::default();
    // In a folder that is not there nothing has to be looked for.
    let is_there = |folder: PathBuf| fs::symlink_metadata(folder).is_ok();
    let has_blobs = is_there(layout.blobs(repo));
    for (id, size) in manifest.blobs() {
        let blob = if has_blobs { look_at(&layout.blob(repo, &id), &id, size, verify) } else { BlobState::Missing };
        state.blobs.insert(id, blob);
    }
    let has_snapshot = is_there(layout.snapshot(repo, commit));
    for file in &manifest.files {
        let path = layout.snapshot_file(repo, commit, &file.path);
        let meta = has_snapshot.then(|| fs::symlink_metadata(&path).ok()).flatten();
        let is_real = meta.as_ref().is_some_and(|meta| meta.is_file());
        let linked = meta.is_some() && place::is_linked(layout, repo, commit, &file.path, &file.blob, file.size);
        let is_twin = !linked && meta.is_some() && !is_real && is_twin(layout, repo, &path, &file.blob, file.size);
        let good = is_twin
            || linked && !(verify && is_real && look_at(&path, &file.blob, file.size, true) != BlobState::Present);
        state.in_place.push(good);
        let blob = state.blobs.get_mut(&file.blob).expect("every file's blob was looked at");
        match (*blob, good && (is_real || is_twin)) {
            (BlobState::Missing, true) => *blob = BlobState::InSnapshot,
            (BlobState::InSnapshot, false) => *blob = BlobState::Missing,
            _ => {}
        }
    }
    // A file that needs the blob may have come before the one that lacks it.
    for (file, good) in manifest.files.iter().zip(&state.in_place) {
        if !good && state.blobs[&file.blob] == BlobState::InSnapshot {
            state.blobs.insert(file.blob, BlobState::Missing);
        }
    }
    let tree = layout.tree(repo, commit);
    state.tree = manifest.tree.as_ref().is_none_or(|known| place::has_content(&tree, &known.to_json()))
        || is_kept_from_us(&tree);
    state.reference = reference.is_none_or(|name| {
        let path = layout.reference(repo, name);
        // One that only has to be mended is: see `run::carry_out`.
        place::has_content(&path, commit.as_str().as_bytes()) || mend::is_untidy(layout, &path, commit)
    });
    let pin = || layout.reference(repo, &RefName::of_commit(commit));
    state.pin = !found.pinned || place::has_content(&pin(), commit.as_str().as_bytes());
    state
}

/// Whether a snapshot file is a link to these very bytes under their name by the other algorithm.
fn is_twin(layout: &Layout, repo: &RepoName, path: &Path, blob: &BlobId, size: u64) -> bool {
    let Ok(target) = fs::read_link(path) else { return false };
    let inside = layout::normalized(&path.with_file_name("").join(target));
    let name = inside.strip_prefix(layout.blobs(repo)).ok().and_then(|name| name.to_str()?.parse::<BlobId>().ok());
    name.is_some_and(|name| name.may_be_twin(blob)) && look_at(path, blob, size, true) == BlobState::Present
}

/// Whether the file is there and only others may read it, as the client's trees (mode 0600) in another user's cache:
/// what it says is theirs to keep.
fn is_kept_from_us(path: &std::path::Path) -> bool {
    read::open_quietly(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

pub(super) fn look_at(path: &std::path::Path, id: &BlobId, size: u64, verify: bool) -> BlobState {
    // Through links on purpose: a blob may be a link into the cache-wide store.
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() != size => BlobState::WrongSize,
        Ok(_) if verify && !read::matches_name(path, id, size) => BlobState::Corrupt,
        Ok(_) => BlobState::Present,
        Err(_) => BlobState::Missing,
    }
}
