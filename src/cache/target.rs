//! What of a revision is here already: a look at each of its files, without a scan of the whole cache.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plan::{Donor, Plan};
use crate::cache::gated::{self, Gated};
use crate::cache::layout::{self, Layout};
use crate::cache::{mend, place, read, space};
use crate::error::{Error, Result, plain_io, shown};
use crate::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::manifest::Tree;
use crate::remote::lookup::Found;
use crate::remote::transfer::download::already_there;

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
/// [`crate::error::Kind::Usage`] when it is a file.
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

/// Repos of this cache that have a blob of the right name and size, one for each blob that the plans lack.
pub fn find_donors(layout: &Layout, plans: &[Plan]) -> HashMap<BlobId, Donor> {
    let wanted: HashMap<BlobId, u64> =
        plans.iter().flat_map(|plan| &plan.fetch).map(|fetch| (fetch.blob, fetch.size)).collect();
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
    for plan in plans {
        find_in_repo(layout, plan, &mut donors);
    }
    donors
}

/// Largest real file of a snapshot without a tree that is read to find out whether it is what is looked for, in bytes.
const WORTH_A_LOOK: u64 = 64 << 20;

/// Looks in the repo itself for what is not in its `blobs/` by name: there it may be by its name of the other algorithm,
/// or as a real file of another snapshot. The bytes decide later.
fn find_in_repo(layout: &Layout, plan: &Plan, donors: &mut HashMap<BlobId, Donor>) {
    let repo = &plan.manifest.repo;
    let lacking: Vec<_> = plan.fetch.iter().filter(|fetch| !donors.contains_key(&fetch.blob)).collect();
    if lacking.is_empty() || fs::symlink_metadata(layout.repo(repo)).is_err() {
        return;
    }
    let mut add = |blob: BlobId, file: PathBuf| drop(donors.insert(blob, Donor { repo: repo.clone(), file }));
    let mut twins: HashMap<u64, Vec<BlobId>> = HashMap::new();
    let blobs = fs::read_dir(layout.blobs(repo)).into_iter().flatten().flatten();
    for id in blobs.filter_map(|entry| entry.file_name().to_str()?.parse::<BlobId>().ok()) {
        if let Ok(meta) = fs::metadata(layout.blob(repo, &id))
            && meta.is_file()
        {
            twins.entry(meta.len()).or_default().push(id);
        }
    }
    for fetch in &lacking {
        let twin = twins.get(&fetch.size).into_iter().flatten().find(|twin| {
            twin.may_be_twin(&fetch.blob) && read::matches_name(&layout.blob(repo, twin), &fetch.blob, fetch.size)
        });
        twin.into_iter().for_each(|twin| add(fetch.blob, layout.blob(repo, twin)));
    }
    let snapshots = fs::read_dir(layout.repo(repo).join("snapshots")).into_iter().flatten().flatten();
    for commit in snapshots.filter_map(|entry| entry.file_name().to_str()?.parse::<Commit>().ok()) {
        let tree = read::read_small(&layout.tree(repo, &commit), MAX_TREE).ok().flatten();
        if let Some(tree) = tree.and_then(|bytes| Tree::parse(&bytes).ok().flatten()) {
            let by_blob: HashMap<BlobId, &RepoPath> =
                tree.entries().iter().map(|(path, entry)| (entry.blob, path)).collect();
            for fetch in &lacking {
                let file = by_blob.get(&fetch.blob).map(|path| layout.snapshot_file(repo, &commit, path));
                let is_real = |file: &PathBuf| fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file());
                file.filter(is_real).into_iter().for_each(|file| add(fetch.blob, file));
            }
            continue;
        }
        let mut real = Vec::new();
        real_files(&layout.snapshot(repo, &commit), &mut real);
        for fetch in lacking.iter().filter(|fetch| fetch.size <= WORTH_A_LOOK) {
            let fits =
                |(size, file): &&(u64, PathBuf)| *size == fetch.size && read::matches_name(file, &fetch.blob, *size);
            real.iter().find(fits).into_iter().for_each(|(_, file)| add(fetch.blob, file.clone()));
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

/// Largest tree file that is read, in bytes.
const MAX_TREE: u64 = 256 << 20;

fn look_at(path: &std::path::Path, id: &BlobId, size: u64, verify: bool) -> BlobState {
    // Through links on purpose: a blob may be a link into the cache-wide store.
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() != size => BlobState::WrongSize,
        Ok(_) if verify && !read::matches_name(path, id, size) => BlobState::Corrupt,
        Ok(_) => BlobState::Present,
        Err(_) => BlobState::Missing,
    }
}

/// 0.1.0's rule: a repo is judged by the licence files that are here already.
///
/// # Errors
/// When they cannot be read, so that nobody can tell.
pub fn look_gated(layout: &Layout, repo: &RepoName) -> Result<Option<Gated>> {
    let unknown = |(path, e): (std::path::PathBuf, io::Error)| {
        Error::failed(format!("cannot tell whether {repo} is gated, so it is not pulled")).because(format!(
            "{}: {}",
            shown(&path),
            plain_io(&e)
        ))
    };
    let folder = layout.repo(repo).join("snapshots");
    let snapshots = match fs::read_dir(&folder) {
        Ok(snapshots) => snapshots,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unknown((folder, error))),
    };
    for snapshot in snapshots {
        let path = snapshot.map_err(|error| unknown((folder.clone(), error)))?.path();
        // A stray file, such as .DS_Store, is no snapshot.
        if path.is_dir()
            && let Some(gated) = gated::look(&path).map_err(unknown)?
        {
            return Ok(Some(gated));
        }
    }
    Ok(None)
}

/// Makes sure that the disk can take everything, before the first byte. Where the system does not tell, a note says so.
///
/// # Errors
/// [`crate::error::Kind::Failed`] with the numbers.
pub fn check_space(layout: &Layout, plans: &[&Plan]) -> Result<Option<String>> {
    let mut blobs = BTreeMap::new();
    for plan in plans {
        blobs.extend(plan.downloads().map(|fetch| (fetch.blob, fetch.size)));
    }
    let needed: u64 = blobs.iter().map(|(id, size)| size.saturating_sub(already_there(layout, id, *size))).sum();
    match space::available(layout.root()) {
        Some(free) if free < needed => Err(Error::failed("there is not enough disk space")
            .because(format!(
                "the download needs {}, {} are free at {}",
                bytesize::ByteSize(needed).display().iec(),
                bytesize::ByteSize(free).display().iec(),
                layout.root().display()
            ))
            .hint("free some, for example with `hf-cache-sync prune`, or use another cache directory")),
        None if needed > 0 && cfg!(unix) => Ok(Some(format!(
            "the free space at {} is not known: going on without a check, {} are needed",
            layout.root().display(),
            bytesize::ByteSize(needed).display().iec()
        ))),
        _ => Ok(None),
    }
}
