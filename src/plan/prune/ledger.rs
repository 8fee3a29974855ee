//! Tracks which revisions need which bytes, and how many bytes are freed when a name is deleted. Pure.
//!
//! Bytes belong to a file, not to a name. A blob that two revisions use, a hard link across repos, and a payload of the
//! cache-wide store that several repos link to each count once, and are freed only with their last name. Names outside
//! the cache count, too.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::cache::prune_facts::Facts;
use crate::cache::scan::{Place, Repo, SnapshotFile};
use crate::model::ids::{BlobId, Commit};
use crate::platform::Inode;

/// Files by device and inode number.
type Files = HashMap<(u64, u64), usize>;

/// The bytes of one file on disk.
#[derive(Debug, Clone)]
struct Bytes {
    size: u64,
    /// Number of remaining names.
    names: u64,
    /// Number of names found by the scan.
    found: u64,
    /// Whether the bytes are never freed, because they may have users that are not known.
    pinned: bool,
}

/// The blobs and files that a revision needs.
#[derive(Debug, Clone, Default)]
struct Needs {
    blobs: BTreeSet<BlobId>,
    /// Real files of the snapshot.
    files: Vec<usize>,
}

/// The ledger of one cache. Repos are identified by their index in the inventory.
#[derive(Debug, Clone)]
pub struct Ledger {
    bytes: Vec<Bytes>,
    blobs: HashMap<(usize, BlobId), usize>,
    uses: HashMap<(usize, BlobId), u32>,
    needs: HashMap<(usize, Commit), Needs>,
    payloads: HashMap<PathBuf, usize>,
    others: u64,
}

/// The effect of evicting a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EvictionEffect {
    /// Blobs that no revision needs any more.
    pub blobs: Vec<BlobId>,
    /// Number of bytes freed.
    pub bytes: u64,
}

impl Ledger {
    /// Creates the ledger from the scan. Repos that are links do not belong to this cache.
    pub fn new(facts: &Facts) -> Self {
        let mut ledger = Ledger {
            bytes: Vec::new(),
            blobs: HashMap::new(),
            uses: HashMap::new(),
            needs: HashMap::new(),
            payloads: HashMap::new(),
            others: facts.leftovers.iter().map(|leftover| leftover.bytes).sum::<u64>()
                + facts.root_temporaries.iter().map(|file| file.on_disk).sum::<u64>(),
        };
        let mut files = Files::new();
        ledger.add_payloads(facts, &mut files);
        for (index, repo) in facts.inventory.repos.iter().enumerate().filter(|(_, repo)| !repo.is_link) {
            ledger.others += repo.in_flight.iter().chain(&repo.temporaries).map(|file| file.on_disk).sum::<u64>();
            for (id, blob) in &repo.blobs {
                let file = match &blob.place {
                    Place::Elsewhere => continue,
                    Place::Blobs => ledger.register_name(&mut files, blob.size, blob.inode.as_ref()),
                    Place::Shared(payload) => match ledger.payloads.get(payload) {
                        Some(file) => *file,
                        None => {
                            let file = ledger.register_name(&mut files, blob.size, blob.inode.as_ref());
                            ledger.bytes[file].pinned = true;
                            file
                        }
                    },
                };
                ledger.blobs.insert((index, *id), file);
            }
            let sources = Sources::of(repo);
            for (commit, revision) in &repo.revisions {
                let mut needs = Needs::default();
                for file in revision.files.values() {
                    match file {
                        SnapshotFile::Link(id) => drop(needs.blobs.insert(*id)),
                        SnapshotFile::Real { size, inode, .. } => {
                            needs.files.push(ledger.register_name(&mut files, *size, inode.as_ref()));
                            needs.blobs.extend(sources.find(*size, inode.as_ref()));
                        }
                    }
                }
                for id in &needs.blobs {
                    *ledger.uses.entry((index, *id)).or_default() += 1;
                }
                ledger.needs.insert((index, commit.clone()), needs);
            }
        }
        ledger
    }

    fn add_payloads(&mut self, facts: &Facts, files: &mut Files) {
        let mut links: HashMap<&Path, BTreeSet<PathBuf>> = HashMap::new();
        for repo in &facts.inventory.repos {
            for (id, blob) in &repo.blobs {
                if let Place::Shared(payload) = &blob.place {
                    links.entry(payload).or_default().insert(facts.inventory.layout.blob(&repo.name, id));
                }
            }
        }
        for payload in &facts.payloads {
            let mut names = links.remove(payload.path.as_path()).unwrap_or_default();
            names.extend(payload.references.iter().flatten().cloned());
            let pinned = payload.references.is_none() || payload.inode.is_some_and(|inode| inode.links > 1);
            let file = self.register_name(files, payload.size, payload.inode.as_ref());
            // A payload without links has only its own name.
            let names = names.len().max(1) as u64;
            self.bytes[file] = Bytes { size: payload.size, names, found: names, pinned };
            self.payloads.insert(payload.path.clone(), file);
        }
    }

    /// Registers a name, and returns the index of its file.
    fn register_name(&mut self, files: &mut Files, size: u64, inode: Option<&Inode>) -> usize {
        let new = self.bytes.len();
        let file = inode.map_or(new, |inode| *files.entry(inode.id).or_insert(new));
        if file == new {
            self.bytes.push(Bytes { size, names: inode.map_or(1, |inode| inode.links), found: 0, pinned: false });
        }
        // A link that was created during the scan may not be included in the link count.
        let bytes = &mut self.bytes[file];
        bytes.found += 1;
        bytes.names = bytes.names.max(bytes.found);
        file
    }

    /// Returns the bytes on disk, with each file counted once.
    pub fn size(&self) -> u64 {
        self.others + self.bytes.iter().map(|bytes| bytes.size).sum::<u64>()
    }

    /// Returns the bytes that no plan can free: they have a name outside the cache, or may have unknown users.
    pub fn pinned(&self) -> u64 {
        let is_pinned = |bytes: &&Bytes| bytes.pinned || bytes.names > bytes.found;
        self.bytes.iter().filter(is_pinned).map(|bytes| bytes.size).sum()
    }

    /// Returns whether any revision needs the blob.
    pub fn is_used(&self, repo: usize, blob: &BlobId) -> bool {
        self.uses.get(&(repo, *blob)).is_some_and(|uses| *uses > 0)
    }

    /// Returns whether all blobs of the revision are in this cache.
    pub fn has_all(&self, repo: usize, commit: &Commit) -> bool {
        self.needs(repo, commit).blobs.iter().all(|id| self.blobs.contains_key(&(repo, *id)))
    }

    /// Removes the name of a blob, and returns the number of bytes freed.
    pub fn drop_blob(&mut self, repo: usize, blob: &BlobId) -> u64 {
        self.blobs.get(&(repo, *blob)).copied().map_or(0, |file| self.drop_name(file))
    }

    /// Removes a payload without links, and returns the number of bytes freed.
    pub fn drop_payload(&mut self, payload: &Path) -> u64 {
        self.payloads.get(payload).copied().map_or(0, |file| self.drop_name(file))
    }

    fn drop_name(&mut self, file: usize) -> u64 {
        let bytes = &mut self.bytes[file];
        bytes.names = bytes.names.saturating_sub(1);
        if bytes.names == 0 && !bytes.pinned { bytes.size } else { 0 }
    }

    fn add_name(&mut self, file: usize) -> u64 {
        let bytes = &mut self.bytes[file];
        bytes.names += 1;
        if bytes.names == 1 && !bytes.pinned { bytes.size } else { 0 }
    }

    fn needs(&self, repo: usize, commit: &Commit) -> Needs {
        self.needs.get(&(repo, commit.clone())).cloned().unwrap_or_default()
    }

    /// Removes a revision, and the blobs that only it needs.
    pub fn evict(&mut self, repo: usize, commit: &Commit) -> EvictionEffect {
        let needs = self.needs(repo, commit);
        let mut effect = EvictionEffect::default();
        effect.bytes += needs.files.iter().map(|file| self.drop_name(*file)).sum::<u64>();
        for id in needs.blobs {
            let uses = self.uses.entry((repo, id)).or_default();
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                effect.bytes += self.drop_blob(repo, &id);
                effect.blobs.push(id);
            }
        }
        effect
    }

    /// Undoes [`Ledger::evict`], and returns the number of bytes that are not freed after all.
    pub fn restore(&mut self, repo: usize, commit: &Commit) -> u64 {
        let needs = self.needs(repo, commit);
        let mut kept: u64 = needs.files.iter().map(|file| self.add_name(*file)).sum();
        for id in needs.blobs {
            let uses = self.uses.entry((repo, id)).or_default();
            *uses += 1;
            if *uses == 1
                && let Some(file) = self.blobs.get(&(repo, id)).copied()
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
