//! Determines which blob each file of a snapshot is. A link names its blob. A real file is matched by the commit's
//! tree, by being a hard link to a blob, or as a last resort by its hash, which is computed only once.
//!
//! Libraries write into snapshots: locks, engines, resolved configurations, `__pycache__`. A file that the commit's
//! tree does not list is a stray file. Without a tree, a real file among links is a stray file unless it has the bytes
//! of a local blob. A snapshot of only real files comes from a system without links, and all of its files count.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::inventory::{Problem, RealFile, Repo, SnapshotFile};
use super::layout::Layout;
use super::read::{Buffer, open_quietly};
use crate::hash::BlobHasher;
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};
use crate::model::manifest::ManifestFile;
use crate::model::tree::Tree;
use crate::platform::Inode;

/// A file of a snapshot, with its blob and the location of its bytes.
#[derive(Debug, Clone)]
pub struct LocalFile {
    /// Path, blob and size.
    pub file: ManifestFile,
    /// The location of its bytes.
    pub source: Source,
    /// The name of the same bytes by the other algorithm, if they were hashed. The Hub or the bucket may use either.
    pub other: Option<BlobId>,
}

/// The location of a file's bytes. There may be millions, so no paths are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The snapshot itself.
    Snapshot,
    /// The entry in `blobs/` that the snapshot links to.
    Blob(BlobId),
}

impl LocalFile {
    /// Returns the path of the file with its bytes.
    pub fn path(&self, layout: &Layout, repo: &RepoName, commit: &Commit) -> PathBuf {
        match &self.source {
            Source::Snapshot => layout.snapshot_file(repo, commit, &self.file.path),
            Source::Blob(id) => layout.blob(repo, id),
        }
    }
}

/// The files of a revision.
#[derive(Debug, Default)]
pub struct Files {
    /// Sorted by path.
    pub files: Vec<LocalFile>,
    /// Files in the snapshot that do not belong to the commit.
    pub stray_files: Vec<RepoPath>,
    /// Files that could not be read.
    pub problems: Vec<Problem>,
}

/// Identifies files, and remembers the hashes of real files so that none is hashed twice in a run.
#[derive(Debug, Default)]
pub struct Identifier {
    hashed: HashMap<(u64, u64), Hashes>,
}

#[derive(Debug, Clone, Copy)]
struct Hashes {
    sha1: BlobId,
    sha256: BlobId,
    looks_like_text: bool,
}

/// Size in bytes from which the Hub stores files in LFS or Xet.
const MAX_GIT_SIZE: u64 = 10 << 20;

impl Identifier {
    /// Identifies the files of one revision.
    pub fn files(&mut self, layout: &Layout, repo: &Repo, commit: &Commit, tree: Option<&Tree>) -> Files {
        let mut found = Files::default();
        let Files { files, stray_files, problems } = &mut found;
        let Some(revision) = repo.revisions.get(commit) else { return found };
        files.reserve_exact(revision.files.len());
        let among_links = revision.files.values().any(|file| matches!(file, SnapshotFile::Link(_)));
        let mut sizes: Option<HashSet<u64>> = None;
        let mut by_inode: Option<HashMap<(u64, u64), BlobId>> = None;
        for (path, file) in &revision.files {
            if tree.is_some_and(|tree| tree.get(path).is_none()) {
                stray_files.push(path.clone());
                continue;
            }
            match file {
                SnapshotFile::Link(id) => {
                    let size = repo.blobs[id].size;
                    let file = ManifestFile { path: path.clone(), blob: *id, size };
                    files.push(LocalFile { file, source: Source::Blob(*id), other: None });
                }
                SnapshotFile::Real(real) => {
                    let RealFile { size, inode, .. } = &**real;
                    let source = layout.snapshot_file(&repo.name, commit, path);
                    let in_tree = tree.and_then(|tree| tree.get(path)).map(|entry| (entry.blob, None));
                    let known = in_tree.or_else(|| {
                        let map = by_inode.get_or_insert_with(|| blobs_by_inode(repo));
                        map.get(&inode.as_ref()?.id).map(|id| (*id, None))
                    });
                    let blob_sizes = || repo.blobs.values().map(|blob| blob.size).collect();
                    let named = match known {
                        Some(known) => Ok(known),
                        None if among_links && !sizes.get_or_insert_with(blob_sizes).contains(size) => {
                            stray_files.push(path.clone());
                            continue;
                        }
                        None => self.identify_by_hash(repo, &source, *size, inode.as_ref()),
                    };
                    let is_blob = |id: &BlobId| repo.blobs.contains_key(id);
                    match named {
                        Ok((blob, other))
                            if among_links
                                && known.is_none()
                                && !is_blob(&blob)
                                && !other.as_ref().is_some_and(is_blob) =>
                        {
                            stray_files.push(path.clone())
                        }
                        Ok((blob, other)) => {
                            let file = ManifestFile { path: path.clone(), blob, size: *size };
                            files.push(LocalFile { file, source: Source::Snapshot, other });
                        }
                        Err(error) => problems.push(Problem::unreadable(&source, &error)),
                    }
                }
            }
        }
        found
    }

    fn identify_by_hash(
        &mut self,
        repo: &Repo,
        source: &Path,
        size: u64,
        inode: Option<&Inode>,
    ) -> io::Result<(BlobId, Option<BlobId>)> {
        let key = inode.map(|inode| inode.id);
        let names = match key.and_then(|key| self.hashed.get(&key)) {
            Some(names) => *names,
            None => {
                let names = compute_hashes(source, size)?;
                if let Some(key) = key {
                    self.hashed.insert(key, names);
                }
                names
            }
        };
        let (sha1, sha256) = (names.sha1, names.sha256);
        let is_git = match (repo.blobs.contains_key(&sha1), repo.blobs.contains_key(&sha256)) {
            (true, _) => true,
            (_, true) => false,
            // The Hub's rule of thumb: text smaller than 10 MiB is in git, the rest is not.
            _ => names.looks_like_text && size < MAX_GIT_SIZE,
        };
        Ok(if is_git { (sha1, Some(sha256)) } else { (sha256, Some(sha1)) })
    }
}

fn blobs_by_inode(repo: &Repo) -> HashMap<(u64, u64), BlobId> {
    repo.blobs.iter().filter_map(|(id, blob)| Some((blob.inode.as_ref()?.id, *id))).collect()
}

fn compute_hashes(source: &Path, size: u64) -> io::Result<Hashes> {
    let mut file = open_quietly(source)?;
    let (mut sha1, mut sha256) = (BlobHasher::git(size), BlobHasher::sha256());
    let mut looks_like_text = true;
    let mut buffer = Buffer::new(256 << 10);
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(Hashes { sha1: sha1.finish(), sha256: sha256.finish(), looks_like_text });
        }
        looks_like_text &= !buffer[..length].contains(&0);
        sha1.update(&buffer[..length]);
        sha256.update(&buffer[..length]);
    }
}
