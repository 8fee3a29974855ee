//! Tracks which revisions need which bytes, and how many bytes are freed when a name is deleted. Pure.
//!
//! Bytes belong to a file, not to a name. A blob that two revisions use, a hard link across repos, and a payload of the
//! cache-wide store that several repos link to each count once, and are freed only with their last name. Names outside
//! the cache count, too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::inventory::{BlobPlace, Repo, SnapshotFile};
use crate::cache::prune_facts::Facts;
use crate::model::ids::{BlobId, Commit};
use crate::platform::Inode;

/// Files by device and inode number.
type Inodes = HashMap<(u64, u64), usize>;

/// The ledger of one cache. Repos are identified by their index in the inventory. A copy, on which deletions are tried out,
/// has its own counts.
#[derive(Debug, Clone)]
pub struct Ledger {
    index: Arc<Index>,
    /// Number of remaining names of each file.
    names: Vec<u64>,
    /// Number of revisions that need each blob.
    uses: Vec<u32>,
}

/// The data that deletions do not change. Files and blobs are identified by their index.
#[derive(Debug, Default)]
struct Index {
    files: Vec<Bytes>,
    /// The blobs of one repo after the other, sorted by name.
    blobs: Vec<NamedBlob>,
    repos: Vec<RepoIndex>,
    /// Files by path.
    payloads: HashMap<PathBuf, usize>,
    /// Bytes of everything else.
    others: u64,
}

/// The bytes of one file on disk.
#[derive(Debug)]
struct Bytes {
    size: u64,
    /// Number of names before any deletion.
    names: u64,
    /// Number of names found by the scan.
    found: u64,
    /// Whether the bytes are never freed, because they may have users that are not known.
    pinned: bool,
}

/// A blob of a repo.
#[derive(Debug)]
struct NamedBlob {
    id: BlobId,
    /// Its file; `None` if that is not in this cache.
    file: Option<usize>,
}

/// The contents of a repo.
#[derive(Debug, Default)]
struct RepoIndex {
    blobs: Range<usize>,
    revisions: BTreeMap<Commit, Needs>,
}

/// The blobs and files that a revision needs.
#[derive(Debug, Default)]
struct Needs {
    blobs: Vec<usize>,
    /// Real files of the snapshot.
    files: Vec<usize>,
    /// Whether the bytes of all these blobs are in this cache.
    has_all: bool,
}

/// The effect of evicting a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EvictionEffect {
    /// Blobs that no revision needs after that.
    pub blobs: Vec<BlobId>,
    /// Number of bytes freed.
    pub bytes: u64,
}

impl Index {
    fn new(facts: &Facts) -> Self {
        let mut index = Index {
            others: facts.leftovers.iter().map(|leftover| leftover.bytes).sum::<u64>()
                + facts.root_temporaries.iter().map(|file| file.on_disk).sum::<u64>(),
            ..Index::default()
        };
        let mut inodes = Inodes::new();
        index.add_payloads(facts, &mut inodes);
        for repo in &facts.inventory.repos {
            let found = if repo.is_link { RepoIndex::default() } else { index.add_repo(repo, &mut inodes) };
            index.repos.push(found);
        }
        index
    }

    fn add_payloads(&mut self, facts: &Facts, inodes: &mut Inodes) {
        let mut links: HashMap<&Path, BTreeSet<PathBuf>> = HashMap::new();
        for repo in &facts.inventory.repos {
            for (id, blob) in &repo.blobs {
                if let BlobPlace::Shared(payload) = &blob.place {
                    links.entry(payload).or_default().insert(facts.inventory.layout.blob(&repo.name, id));
                }
            }
        }
        for payload in &facts.payloads {
            let mut names = links.remove(payload.path.as_path()).unwrap_or_default();
            names.extend(payload.references.iter().flatten().cloned());
            let pinned = payload.references.is_none() || payload.inode.is_some_and(|inode| inode.links > 1);
            let file = self.register_name(inodes, payload.size, payload.inode.as_ref());
            // A payload without links has only its own name.
            let names = names.len().max(1) as u64;
            self.files[file] = Bytes { size: payload.size, names, found: names, pinned };
            self.payloads.insert(payload.path.clone(), file);
        }
    }

    fn add_repo(&mut self, repo: &Repo, inodes: &mut Inodes) -> RepoIndex {
        self.others += repo.in_flight.iter().chain(&repo.temporaries).map(|file| file.on_disk).sum::<u64>();
        let first = self.blobs.len();
        for (id, blob) in &repo.blobs {
            let file = match &blob.place {
                BlobPlace::Elsewhere => None,
                BlobPlace::Blobs => Some(self.register_name(inodes, blob.size, blob.inode.as_ref())),
                BlobPlace::Shared(payload) => Some(match self.payloads.get(payload) {
                    Some(file) => *file,
                    None => {
                        let file = self.register_name(inodes, blob.size, blob.inode.as_ref());
                        self.files[file].pinned = true;
                        file
                    }
                }),
            };
            self.blobs.push(NamedBlob { id: *id, file });
        }
        let mut found = RepoIndex { blobs: first..self.blobs.len(), revisions: BTreeMap::new() };
        let sources = Sources::of(repo);
        for (commit, revision) in &repo.revisions {
            let mut blobs = BTreeSet::new();
            let mut needs = Needs::default();
            for file in revision.files.values() {
                match file {
                    SnapshotFile::Link(id) => drop(blobs.insert(*id)),
                    SnapshotFile::Real(file) => {
                        needs.files.push(self.register_name(inodes, file.size, file.inode.as_ref()));
                        blobs.extend(sources.find(file.size, file.inode.as_ref()));
                    }
                }
            }
            let known: Vec<usize> = blobs.iter().filter_map(|id| self.find_in(&found, id)).collect();
            needs.has_all = known.len() == blobs.len() && known.iter().all(|blob| self.blobs[*blob].file.is_some());
            needs.blobs = known;
            found.revisions.insert(commit.clone(), needs);
        }
        found
    }

    /// Registers a name, and returns the index of its file.
    fn register_name(&mut self, inodes: &mut Inodes, size: u64, inode: Option<&Inode>) -> usize {
        let new = self.files.len();
        let file = inode.map_or(new, |inode| *inodes.entry(inode.id).or_insert(new));
        if file == new {
            self.files.push(Bytes { size, names: inode.map_or(1, |inode| inode.links), found: 0, pinned: false });
        }
        // A link that was created during the scan may not be included in the link count.
        let bytes = &mut self.files[file];
        bytes.found += 1;
        bytes.names = bytes.names.max(bytes.found);
        file
    }

    fn find_in(&self, repo: &RepoIndex, id: &BlobId) -> Option<usize> {
        let index = self.blobs[repo.blobs.clone()].binary_search_by_key(id, |blob| blob.id).ok()?;
        Some(repo.blobs.start + index)
    }

    fn find(&self, repo: usize, id: &BlobId) -> Option<usize> {
        self.find_in(&self.repos[repo], id)
    }

    fn needs(&self, repo: usize, commit: &Commit) -> Option<&Needs> {
        self.repos[repo].revisions.get(commit)
    }
}

impl Ledger {
    /// Creates the ledger from the scan. Repos that are links do not belong to this cache.
    pub fn new(facts: &Facts) -> Self {
        let index = Index::new(facts);
        let names = index.files.iter().map(|bytes| bytes.names).collect();
        let mut uses = vec![0; index.blobs.len()];
        for needs in index.repos.iter().flat_map(|repo| repo.revisions.values()) {
            needs.blobs.iter().for_each(|blob| uses[*blob] += 1);
        }
        Ledger { index: Arc::new(index), names, uses }
    }

    /// Returns the bytes on disk before any deletion, with each file counted once.
    pub fn size(&self) -> u64 {
        self.index.others + self.index.files.iter().map(|bytes| bytes.size).sum::<u64>()
    }

    /// Returns the bytes that no plan can free: they have a name outside the cache, or may have unknown users.
    pub fn pinned(&self) -> u64 {
        let is_pinned = |bytes: &&Bytes| bytes.pinned || bytes.names > bytes.found;
        self.index.files.iter().filter(is_pinned).map(|bytes| bytes.size).sum()
    }

    /// Returns whether any revision needs the blob.
    pub fn is_used(&self, repo: usize, blob: &BlobId) -> bool {
        self.index.find(repo, blob).is_some_and(|blob| self.uses[blob] > 0)
    }

    /// Returns whether all blobs of the revision are in this cache.
    pub fn has_all(&self, repo: usize, commit: &Commit) -> bool {
        self.index.needs(repo, commit).is_none_or(|needs| needs.has_all)
    }

    /// Removes the name of a blob, and returns the number of bytes freed.
    pub fn drop_blob(&mut self, repo: usize, blob: &BlobId) -> u64 {
        let file = self.index.find(repo, blob).and_then(|blob| self.index.blobs[blob].file);
        file.map_or(0, |file| self.drop_name(file))
    }

    /// Removes a payload without links, and returns the number of bytes freed.
    pub fn drop_payload(&mut self, payload: &Path) -> u64 {
        self.index.payloads.get(payload).copied().map_or(0, |file| self.drop_name(file))
    }

    fn drop_name(&mut self, file: usize) -> u64 {
        let (names, bytes) = (&mut self.names[file], &self.index.files[file]);
        *names = names.saturating_sub(1);
        if *names == 0 && !bytes.pinned { bytes.size } else { 0 }
    }

    fn add_name(&mut self, file: usize) -> u64 {
        let (names, bytes) = (&mut self.names[file], &self.index.files[file]);
        *names += 1;
        if *names == 1 && !bytes.pinned { bytes.size } else { 0 }
    }

    /// Removes a revision, and the blobs that only it needs.
    pub fn evict(&mut self, repo: usize, commit: &Commit) -> EvictionEffect {
        let index = self.index.clone();
        let mut effect = EvictionEffect::default();
        let Some(needs) = index.needs(repo, commit) else { return effect };
        effect.bytes += needs.files.iter().map(|file| self.drop_name(*file)).sum::<u64>();
        for blob in &needs.blobs {
            self.uses[*blob] = self.uses[*blob].saturating_sub(1);
            if self.uses[*blob] == 0 {
                let NamedBlob { id, file } = &index.blobs[*blob];
                effect.bytes += file.map_or(0, |file| self.drop_name(file));
                effect.blobs.push(*id);
            }
        }
        effect
    }

    /// Undoes [`Ledger::evict`], and returns the number of bytes that are not freed after all.
    pub fn restore(&mut self, repo: usize, commit: &Commit) -> u64 {
        let index = self.index.clone();
        let Some(needs) = index.needs(repo, commit) else { return 0 };
        let mut kept: u64 = needs.files.iter().map(|file| self.add_name(*file)).sum();
        for blob in &needs.blobs {
            self.uses[*blob] += 1;
            if self.uses[*blob] == 1
                && let Some(file) = index.blobs[*blob].file
            {
                kept += self.add_name(file);
            }
        }
        kept
    }
}

/// Finds the blobs that a real file of a snapshot may come from.
#[derive(Default)]
struct Sources {
    by_inode: HashMap<(u64, u64), BlobId>,
    by_size: HashMap<u64, Vec<BlobId>>,
}

impl Sources {
    fn of(repo: &Repo) -> Self {
        let mut sources = Sources::default();
        for (id, blob) in &repo.blobs {
            if let Some(inode) = &blob.inode {
                sources.by_inode.insert(inode.id, *id);
            }
            sources.by_size.entry(blob.size).or_default().push(*id);
        }
        sources
    }

    /// Returns the blob that the file is a hard link to, or else all blobs of its size, since it may be a copy of any.
    fn find(&self, size: u64, inode: Option<&Inode>) -> Vec<BlobId> {
        match inode.and_then(|inode| self.by_inode.get(&inode.id)) {
            Some(id) => vec![*id],
            None => self.by_size.get(&size).cloned().unwrap_or_default(),
        }
    }
}
