//! The state of both caches and the bucket, as a set of facts, read from the disk without the program's help.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::world::World;
use crate::harness::cache::Revision;

/// Number of machines.
pub const MACHINES: usize = 2;
/// The refs that steps use.
pub const REFS: [&str; 2] = ["main", "v1"];

/// The revisions that exist. A commit never changes, so everything else refers to one by its index here.
pub struct Universe {
    /// All revisions, two of each repo.
    pub revisions: Vec<Revision>,
    /// The bytes of every blob.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl Universe {
    /// Creates a model and a dataset with the same id, and thus with the same keys, and another model. All of them share a
    /// blob, and the two revisions of a repo share others.
    pub fn new() -> Universe {
        let one = |kind: &str, id: &str, digit: char| Revision::new(kind, id).at(&digit.to_string().repeat(40));
        let shared = "shared by all repos";
        let revisions = vec![
            one("model", "org/a", '1').git("config.json", "{}").lfs("w.bin", "first").lfs("shared.bin", shared),
            one("model", "org/a", '2').git("config.json", "{}").lfs("w.bin", "second").lfs("sub/shared.bin", shared),
            one("dataset", "org/a", '3').lfs("data.bin", "dataset").lfs("shared.bin", shared),
            one("dataset", "org/a", '4').lfs("data.bin", "dataset, again").git("README.md", "a dataset"),
            one("model", "org/b", '5').lfs("shared.bin", shared).git("own.txt", "of b"),
            one("model", "org/b", '6').git("own.txt", "of b, again"),
        ];
        let files = revisions.iter().flat_map(|revision| &revision.files);
        let blobs = files.map(|file| (file.etag(), file.bytes.clone())).collect();
        Universe { revisions, blobs }
    }

    /// Returns the folder that identifies the repo of a revision.
    pub fn repo(&self, revision: usize) -> String {
        self.revisions[revision].folder()
    }

    /// Returns the revisions of the same repo, this one included.
    pub fn siblings(&self, revision: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.revisions.len()).filter(move |other| self.repo(*other) == self.repo(revision))
    }

    /// Returns the files of a revision: their paths and blobs.
    pub fn files(&self, revision: usize) -> impl Iterator<Item = (String, String)> + '_ {
        self.revisions[revision].files.iter().map(|file| (file.path.clone(), file.etag()))
    }

    /// Returns the path of a file of a revision.
    pub fn path(&self, revision: usize, file: usize) -> String {
        let files = &self.revisions[revision].files;
        files[file % files.len()].path.clone()
    }

    /// Returns the keys of a ref in the bucket: the one of 0.1.0, and the one for ids that it does not identify.
    pub fn ref_keys(&self, revision: usize, name: &str) -> [String; 2] {
        let one = &self.revisions[revision];
        [format!("refs/{}/{name}", one.encoded()), format!("refs-v2/{}/{name}", one.folder())]
    }

    /// Returns the file with the tree of a revision.
    pub fn tree(&self, hub: &Path, revision: usize) -> PathBuf {
        let one = &self.revisions[revision];
        one.dir(hub).join("trees").join(format!("{}.json", one.commit))
    }

    fn health(&self, etag: &str, bytes: &[u8]) -> Health {
        let good = &self.blobs[etag];
        match bytes {
            bytes if bytes == good => Health::Good,
            bytes if bytes.len() == good.len() => Health::Altered,
            _ => Health::Truncated,
        }
    }

    fn revision_at(&self, commit: &str) -> Option<usize> {
        self.revisions.iter().position(|revision| revision.commit == commit)
    }
}

/// How a file or object compares with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It is right.
    Good,
    /// It has other bytes, but the right size.
    Altered,
    /// It has another size.
    Truncated,
}

/// Something that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// A blob in a cache.
    Blob { machine: usize, repo: String, etag: String, health: Health },
    /// A file of a snapshot, which links to the right blob. The blob may be missing.
    File { machine: usize, revision: usize, path: String },
    /// A ref in a cache.
    Ref { machine: usize, repo: String, name: String, revision: usize },
    /// A blob in the bucket.
    Object { etag: String, health: Health },
    /// An entry of a manifest.
    Entry { revision: usize, path: String },
    /// A ref in the bucket, by the rules of reading.
    RemoteRef { repo: String, name: String, revision: usize },
    /// A ref object in the bucket, whether or not it counts.
    RefObject { key: String, revision: usize },
    /// A manifest in the bucket that is not JSON.
    BadManifest { revision: usize },
    /// A ref object in the bucket whose content is not a commit.
    BadRef { key: String },
    /// A tree file in a cache that is not JSON.
    BadTree { machine: usize, revision: usize },
    /// Something that neither a client nor this program should leave behind.
    Odd { place: String },
}

/// Everything that exists.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The facts.
    pub facts: BTreeSet<Fact>,
    /// Blobs in caches, by machine, repo and name, that are less than an hour old.
    pub young_blobs: BTreeSet<(usize, String, String)>,
    /// Blobs in the bucket that are less than a day old.
    pub young_objects: BTreeSet<String>,
    /// Ref objects in the bucket that are less than a day old.
    pub young_refs: BTreeSet<String>,
    /// Repos with a recent unfinished download, by machine.
    pub in_flight: BTreeSet<(usize, String)>,
    /// Repos with an unfinished download of any age, by machine.
    pub unfinished: BTreeSet<(usize, String)>,
    /// Repos with timestamps in the future, by machine: none of their times are reliable.
    pub from_future: BTreeSet<(usize, String)>,
    /// Repos in which a client was active within the last five minutes, by machine.
    pub active: BTreeSet<(usize, String)>,
    /// Revisions with a file that was used within the last day, by machine.
    pub recent: BTreeSet<(usize, usize)>,
    /// Inode and size of every blob in a cache, by machine, repo and name. Repos may share an inode.
    pub inodes: BTreeMap<(usize, String, String), (u64, u64)>,
    /// The bytes of bad blobs, by machine.
    pub bad_bytes: BTreeSet<(usize, Vec<u8>)>,
    /// The contents of the quarantine, by machine.
    pub quarantine: BTreeSet<(usize, Vec<u8>)>,
    /// Leftovers of this program that only a killed command may leave, by machine.
    pub leftovers: BTreeSet<(usize, String)>,
    /// Whether a killed command has left a notice in the bucket.
    pub has_notices: bool,
}

/// Returns whether the time is certainly or possibly within this many seconds. A time in the future counts.
fn is_within(time: SystemTime, seconds: u64) -> bool {
    time.elapsed().map_or(true, |age| age < Duration::from_secs(seconds))
}

/// Reads a file without updating its access time, since its last use determines what a prune evicts.
fn read(path: &Path) -> Vec<u8> {
    let mut options = fs::File::options();
    #[cfg(target_os = "linux")]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, 0o1_000_000); // O_NOATIME
    let mut bytes = Vec::new();
    let mut file = options.read(true).open(path).unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    bytes
}

fn modified(path: &Path) -> SystemTime {
    fs::symlink_metadata(path).unwrap().modified().unwrap()
}

impl State {
    /// Reads everything from the disk.
    pub fn observe(universe: &Universe, world: &World<'_>) -> State {
        let mut state = State::default();
        for machine in 0..MACHINES {
            state.observe_cache(universe, machine, &world.hub(machine));
        }
        state.observe_bucket(universe, world);
        state
    }

    fn odd(&mut self, place: String) {
        self.facts.insert(Fact::Odd { place });
    }

    fn observe_cache(&mut self, universe: &Universe, machine: usize, hub: &Path) {
        let repos: BTreeSet<String> = (0..universe.revisions.len()).map(|revision| universe.repo(revision)).collect();
        for repo in &repos {
            let folder = hub.join(repo);
            let parts = ["blobs", "snapshots", "refs"].map(|part| folder.join(part));
            let locks = hub.join(".locks").join(repo);
            let files = files_below(&folder).into_iter().chain(files_below(&locks));
            let all = files.chain(parts).chain([folder.clone(), locks.clone()]);
            if all.filter(|path| path.symlink_metadata().is_ok()).any(|path| modified(&path) > SystemTime::now()) {
                self.from_future.insert((machine, repo.clone()));
            }
        }
        // Blobs that were used within the last day, by repo and name.
        let mut used_blobs = BTreeSet::new();
        for path in files_below(hub) {
            let relative = path.strip_prefix(hub).unwrap().to_str().unwrap().to_string();
            let parts: Vec<&str> = relative.split('/').collect();
            match parts.as_slice() {
                [".locks", ".hf-cache-sync", inside @ ..] => match inside {
                    ["lock" | "repair.lock"] | ["manifests", ..] => {}
                    ["quarantine", ..] => _ = self.quarantine.insert((machine, read(&path))),
                    _ => _ = self.leftovers.insert((machine, relative)),
                },
                [".locks", repo, name]
                    if repos.contains(*repo)
                        && name.strip_suffix(".lock").is_some_and(|etag| universe.blobs.contains_key(etag)) =>
                {
                    if is_within(modified(&path), 300) {
                        self.active.insert((machine, repo.to_string()));
                    }
                }
                ["CACHEDIR.TAG"] => {}
                [repo, ..] if !repos.contains(*repo) => self.odd(relative),
                [repo, "blobs", name] => match universe.blobs.contains_key(*name) {
                    true => {
                        let bytes = read(&path);
                        let health = universe.health(name, &bytes);
                        let (repo, etag) = (repo.to_string(), name.to_string());
                        let meta = fs::metadata(&path).unwrap();
                        self.inodes.insert(
                            (machine, repo.clone(), etag.clone()),
                            (std::os::unix::fs::MetadataExt::ino(&meta), meta.len()),
                        );
                        if health != Health::Good {
                            self.bad_bytes.insert((machine, bytes));
                        }
                        let used = meta.modified().unwrap().max(meta.accessed().unwrap());
                        if is_within(used, 24 * 3600) {
                            used_blobs.insert((repo.clone(), etag.clone()));
                        }
                        if is_within(modified(&path), 300) {
                            self.active.insert((machine, repo.clone()));
                        }
                        if is_within(modified(&path), 3600) {
                            self.young_blobs.insert((machine, repo.clone(), etag.clone()));
                        }
                        self.facts.insert(Fact::Blob { machine, repo, etag, health });
                    }
                    false if name.ends_with(".incomplete") => {
                        if is_within(modified(&path), 24 * 3600) {
                            self.in_flight.insert((machine, repo.to_string()));
                        }
                        self.unfinished.insert((machine, repo.to_string()));
                    }
                    false => self.odd(relative),
                },
                [repo, "snapshots", commit, inside @ ..] => {
                    let inside = inside.join("/");
                    let revision = universe.revision_at(commit).filter(|one| universe.repo(*one) == **repo);
                    let etag = revision.and_then(|one| universe.files(one).find(|(path, _)| *path == inside));
                    let up = "../".repeat(inside.matches('/').count() + 2);
                    match (revision, etag) {
                        (Some(revision), Some((path_inside, etag)))
                            if fs::read_link(&path).is_ok_and(|to| to == Path::new(&format!("{up}blobs/{etag}"))) =>
                        {
                            self.facts.insert(Fact::File { machine, revision, path: path_inside });
                        }
                        _ => self.odd(relative),
                    }
                }
                [repo, "refs", name] => {
                    let commit = fs::read_to_string(&path).unwrap();
                    match universe.revision_at(&commit) {
                        Some(revision) if REFS.contains(name) => {
                            let (repo, name) = (repo.to_string(), name.to_string());
                            self.facts.insert(Fact::Ref { machine, repo, name, revision });
                        }
                        _ => self.odd(relative),
                    }
                }
                [repo, "trees", name] => {
                    let commit = name.strip_suffix(".json").unwrap_or_default();
                    match universe.revision_at(commit).filter(|one| universe.repo(*one) == **repo) {
                        None => self.odd(relative),
                        Some(_) if is_json(&read(&path)) => {}
                        Some(revision) => _ = self.facts.insert(Fact::BadTree { machine, revision }),
                    }
                }
                _ => self.odd(relative),
            }
        }
        for revision in 0..universe.revisions.len() {
            let repo = universe.repo(revision);
            let paths = self.paths(machine, revision);
            let mut etags = universe.files(revision).filter(|(path, _)| paths.contains(path)).map(|(_, etag)| etag);
            if etags.any(|etag| used_blobs.contains(&(repo.clone(), etag))) {
                self.recent.insert((machine, revision));
            }
        }
    }

    fn observe_bucket(&mut self, universe: &Universe, world: &World<'_>) {
        let store = &world.store;
        let mut refs = Vec::new();
        for key in store.keys() {
            let is_young = |seconds| is_within(modified(&store.path(&key)), seconds);
            match key.split_once('/') {
                Some(("blobs", etag)) if universe.blobs.contains_key(etag) => {
                    if is_young(24 * 3600) {
                        self.young_objects.insert(etag.to_string());
                    }
                    let health = universe.health(etag, &store.get(&key));
                    self.facts.insert(Fact::Object { etag: etag.to_string(), health });
                }
                Some(("manifests", _)) => match entries(universe, &key, &store.get(&key)) {
                    Some(entries) => self.facts.extend(entries),
                    None => match universe.revisions.iter().position(|one| one.manifest_key() == key) {
                        Some(revision) if !is_json(&store.get(&key)) => {
                            self.facts.insert(Fact::BadManifest { revision });
                        }
                        _ => self.odd(key),
                    },
                },
                Some(("refs" | "refs-v2", _)) => match universe.revision_at(&store.text(&key)) {
                    Some(revision) => {
                        if is_young(24 * 3600) {
                            self.young_refs.insert(key.clone());
                        }
                        refs.push((key.clone(), revision, modified(&store.path(&key))));
                        self.facts.insert(Fact::RefObject { key, revision });
                    }
                    None => _ = self.facts.insert(Fact::BadRef { key }),
                },
                Some(("_hf_cache_sync_gc", _)) => {
                    // An empty notice has ended.
                    let notice: Value = serde_json::from_slice(&store.get(&key)).unwrap();
                    self.has_notices |= notice.as_object().unwrap().values().any(|list| list != &Value::Array(vec![]));
                }
                _ => self.odd(key),
            }
        }
        // Of the keys that name a manifest of the repo, the newest counts.
        for number in 0..universe.revisions.len() {
            let repo = universe.repo(number);
            for name in REFS {
                let keys = universe.ref_keys(number, name);
                let candidates = refs.iter().filter(|(key, revision, _)| {
                    keys.contains(key) && universe.repo(*revision) == repo && self.has_manifest(*revision)
                });
                if let Some((_, revision, _)) = candidates.max_by_key(|(_, _, time)| *time) {
                    let (repo, name, revision) = (repo.clone(), name.to_string(), *revision);
                    self.facts.insert(Fact::RemoteRef { repo, name, revision });
                }
            }
        }
    }

    /// Returns whether the bucket has a manifest of this revision.
    pub fn has_manifest(&self, revision: usize) -> bool {
        self.facts.iter().any(|fact| matches!(fact, Fact::Entry { revision: one, .. } if *one == revision))
    }

    /// Returns the health of a blob in a cache.
    pub fn blob(&self, machine: usize, repo: &str, etag: &str) -> Option<Health> {
        let fact = |health| Fact::Blob { machine, repo: repo.into(), etag: etag.into(), health };
        HEALTHS.into_iter().find(|health| self.facts.contains(&fact(*health)))
    }

    /// Returns the health of a blob in the bucket.
    pub fn object(&self, etag: &str) -> Option<Health> {
        HEALTHS.into_iter().find(|health| self.facts.contains(&Fact::Object { etag: etag.into(), health: *health }))
    }

    /// Returns the paths of a revision in a cache.
    pub fn paths(&self, machine: usize, revision: usize) -> BTreeSet<String> {
        let of = |fact: &Fact| match fact {
            Fact::File { machine: m, revision: r, path } if (*m, *r) == (machine, revision) => Some(path.clone()),
            _ => None,
        };
        self.facts.iter().filter_map(of).collect()
    }

    /// Returns the paths of a revision in its manifest.
    pub fn entries(&self, revision: usize) -> BTreeSet<String> {
        let of = |fact: &Fact| match fact {
            Fact::Entry { revision: r, path } if *r == revision => Some(path.clone()),
            _ => None,
        };
        self.facts.iter().filter_map(of).collect()
    }

    /// Returns everything that should never occur: no command may add to it, regardless of earlier damage.
    pub fn violations(&self, universe: &Universe) -> BTreeSet<String> {
        let etag = |revision: usize, path: &str| {
            universe.files(revision).find(|(known, _)| known == path).map(|(_, etag)| etag).unwrap()
        };
        let mut found = BTreeSet::new();
        for fact in &self.facts {
            let broken = match fact {
                Fact::Blob { health, .. } | Fact::Object { health, .. } => *health != Health::Good,
                Fact::File { machine, revision, path } => {
                    self.blob(*machine, &universe.repo(*revision), &etag(*revision, path)).is_none()
                }
                Fact::Ref { machine, revision, .. } => self.paths(*machine, *revision).is_empty(),
                // An altered object cannot be distinguished from a good one without reading it.
                Fact::Entry { revision, path } => {
                    matches!(self.object(&etag(*revision, path)), None | Some(Health::Truncated))
                }
                Fact::RefObject { revision, .. } => !self.has_manifest(*revision),
                Fact::RemoteRef { .. } => false,
                Fact::BadManifest { .. } | Fact::BadRef { .. } | Fact::BadTree { .. } | Fact::Odd { .. } => true,
            };
            if broken {
                found.insert(format!("{fact:?}"));
            }
        }
        found
    }
}

const HEALTHS: [Health; 3] = [Health::Good, Health::Altered, Health::Truncated];

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Value>(bytes).is_ok()
}

/// Returns the entries of a manifest; `None` unless they match its commit exactly.
fn entries(universe: &Universe, key: &str, bytes: &[u8]) -> Option<Vec<Fact>> {
    let manifest: Value = serde_json::from_slice(bytes).ok()?;
    let revision = universe.revision_at(manifest["revision"].as_str()?)?;
    let one = &universe.revisions[revision];
    let is_own = one.manifest_key() == key && manifest["repo"] == *one.id && manifest["repo_type"] == *one.kind;
    let known: BTreeMap<String, String> = universe.files(revision).collect();
    let entry = |file: &Value| {
        let path = file["path"].as_str()?.to_string();
        let etag = known.get(&path)?;
        let is_right = file["blob"] == **etag && file["size"] == universe.blobs[etag].len();
        is_right.then_some(Fact::Entry { revision, path })
    };
    let entries: Option<Vec<Fact>> = manifest["files"].as_array()?.iter().map(entry).collect();
    entries.filter(|entries| is_own && !entries.is_empty())
}

/// Returns all files and links below a folder.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match fs::symlink_metadata(&path).unwrap().is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found
}
