//! The state of the bucket: a snapshot through which every command reads.
//!
//! [`RemoteState::list`] builds it from listings alone: blobs, manifests, refs, and foreign objects. The content of
//! manifests and refs is read on demand, concurrently, at most once each, and cached. Where the listing proves the
//! content, nothing is read at all: on most stores, the ETag of an object written by a single PUT is the MD5 of its
//! content. Objects with invalid content are part of the snapshot ([`Stored::Invalid`]); callers decide what to do about
//! them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::client::{Bucket, Collect, Object};
use super::keys;
use super::read::{self, Memory, Stored};
use super::refs::Candidate;
use crate::error::{Failure, Result};
use crate::hash::md5_hex;
use crate::model::ids::{BlobId, Commit, RepoId, RepoName, RepoQuery, RepoType};
use crate::model::manifest::Manifest;

/// Number of manifests or refs to read concurrently.
const CONCURRENT_READS: usize = 32;

/// The scope of a listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// Blobs.
    pub blobs: bool,
    /// Manifests.
    pub manifests: bool,
    /// Refs, both 0.1.0's and ours.
    pub refs: bool,
}

impl Scope {
    /// Everything.
    pub const ALL: Scope = Scope { blobs: true, manifests: true, refs: true };
    /// Everything but blobs.
    pub const NAMES: Scope = Scope { blobs: false, manifests: true, refs: true };
    /// Only manifests.
    pub const MANIFESTS: Scope = Scope { blobs: false, manifests: true, refs: false };
    /// Only refs.
    pub const REFS: Scope = Scope { blobs: false, manifests: false, refs: true };
}

/// The entry of an object in a listing, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Size in bytes.
    pub size: u64,
    /// On most stores, the MD5 of an object that was written by a single PUT.
    pub etag: Option<Etag>,
    /// When it was last modified, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// An ETag without quotes. Most are an MD5 and are stored as one, to save memory.
#[derive(Clone, PartialEq, Eq)]
pub enum Etag {
    /// 32 lowercase hexadecimal digits.
    Md5([u8; 16]),
    /// Any other text, such as the ETag of a multipart upload.
    Other(Box<str>),
}

/// The entry of a blob in a listing, without its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobEntry {
    /// Size in bytes.
    pub size: u64,
    /// When it was last modified, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// The blobs of a bucket. There may be millions, so neither their keys nor their ETags are stored.
#[derive(Debug, Default)]
pub struct Blobs(
    /// Sorted by name.
    Vec<Blob>,
);

/// A listed blob.
#[derive(Debug, Clone, Copy)]
struct Blob {
    id: BlobId,
    size: u64,
    /// Nanoseconds since one before 1970.
    modified: Option<NonZeroU64>,
}

impl Blob {
    fn new(id: BlobId, object: &Object) -> Blob {
        let since = object.modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let nanos = since.and_then(|since| u64::try_from(since.as_nanos()).ok()?.checked_add(1));
        Blob { id, size: object.size, modified: nanos.and_then(NonZeroU64::new) }
    }

    fn entry(&self) -> BlobEntry {
        let time = |nanos: NonZeroU64| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos.get() - 1);
        BlobEntry { size: self.size, modified: self.modified.map(time) }
    }
}

/// Objects under this tool's prefixes whose keys it does not recognize. A stranger may have put millions there.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// How many there are.
    pub keys: usize,
    /// How many of them are not under `blobs/`.
    pub beside_blobs: usize,
    /// Their total size in bytes.
    pub bytes: u64,
    /// Keys that may be those of manifests in a format that this program does not know, up to [`MAX_SUSPECTS`] of them.
    pub suspects: Vec<String>,
}

/// Maximum number of [`Foreign::suspects`].
const MAX_SUSPECTS: usize = 1_000;

impl Foreign {
    fn add(&mut self, object: Object) {
        self.keys += 1;
        self.beside_blobs += usize::from(!object.key.starts_with(keys::BLOBS));
        self.bytes = self.bytes.saturating_add(object.size);
        if keys::may_be_manifest(&object.key) && self.suspects.len() < MAX_SUSPECTS {
            self.suspects.push(object.key);
        }
    }

    fn merge(&mut self, other: Foreign) {
        self.keys += other.keys;
        self.beside_blobs += other.beside_blobs;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.suspects.extend(other.suspects);
    }
}

/// A snapshot of a bucket.
#[derive(Debug, Default)]
pub struct RemoteState {
    blobs: Blobs,
    /// By encoded id and commit.
    manifests: BTreeMap<String, BTreeMap<Commit, Entry>>,
    /// In listing order.
    refs: Vec<Candidate>,
    /// Indexes into `refs`, by key.
    ref_indexes: HashMap<String, usize>,
    foreign: Foreign,
    manifests_read: ReadCache<Arc<Manifest>>,
    refs_read: ReadCache<Commit>,
}

impl From<Object> for Entry {
    fn from(object: Object) -> Entry {
        Entry { size: object.size, etag: object.etag.map(Etag::from), modified: object.modified }
    }
}

impl Entry {
    /// Whether size and ETag prove that the object has this content.
    fn has_content(&self, content: &[u8]) -> bool {
        self.size == content.len() as u64 && self.etag == Some(Etag::from(md5_hex(content)))
    }
}

impl From<String> for Etag {
    fn from(text: String) -> Etag {
        match parse_md5(&text) {
            Some(md5) => Etag::Md5(md5),
            None => Etag::Other(text.into_boxed_str()),
        }
    }
}

/// Parses 32 lowercase hexadecimal digits; `None` for any other text.
fn parse_md5(text: &str) -> Option<[u8; 16]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut md5 = [0; 16];
    for (byte, [high, low]) in md5.iter_mut().zip(digits.as_chunks().0) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(md5)
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Etag::Md5(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Etag::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Blobs {
    /// Returns what the listing says about a blob; `None` if the bucket does not have it.
    pub fn get(&self, id: &BlobId) -> Option<BlobEntry> {
        let index = self.0.binary_search_by(|known| known.id.cmp(id)).ok()?;
        Some(self.0[index].entry())
    }

    /// Whether the bucket has the blob with this size.
    pub fn has(&self, id: &BlobId, size: u64) -> bool {
        self.get(id).is_some_and(|entry| entry.size == size)
    }

    /// Returns the number of blobs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns all blobs, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&BlobId, BlobEntry)> {
        self.0.iter().map(|blob| (&blob.id, blob.entry()))
    }
}

impl Collect for RemoteState {
    fn add(&mut self, object: Object) {
        if let Some(id) = keys::parse_blob(&object.key) {
            self.blobs.0.push(Blob::new(id, &object));
        } else if let Some((encoded, commit)) = keys::parse_manifest(&object.key) {
            let encoded = encoded.to_string();
            self.manifests.entry(encoded).or_default().insert(commit, object.into());
        } else if keys::parse_ref(&object.key).is_none() {
            self.foreign.add(object);
        } else if let Some(candidate) = Candidate::of(object) {
            self.add_ref(candidate);
        }
    }

    fn keys(&self) -> impl Iterator<Item = String> {
        let blobs = self.blobs.0.iter().map(|blob| keys::blob(&blob.id));
        let manifests = self.manifests.iter();
        let manifests =
            manifests.flat_map(|(id, commits)| commits.keys().map(move |commit| keys::manifest_of(id, commit)));
        blobs.chain(manifests).chain(self.ref_indexes.keys().cloned())
    }
}

impl RemoteState {
    /// Builds the state from listed objects.
    pub fn new(objects: impl IntoIterator<Item = Object>) -> RemoteState {
        let mut state = RemoteState::default();
        objects.into_iter().for_each(|object| state.add(object));
        state.sorted()
    }

    /// Lists the bucket.
    ///
    /// # Errors
    /// If any page fails: nothing may be decided on a partial listing.
    pub async fn list(bucket: &Bucket, scope: Scope) -> Result<RemoteState, Failure> {
        let others = [(scope.manifests, keys::MANIFESTS), (scope.refs, keys::ALL_REFS)];
        let others: Vec<&str> = others.into_iter().filter_map(|(wanted, prefix)| wanted.then_some(prefix)).collect();
        let blobs = async {
            match scope.blobs {
                true => Self::list_blobs(bucket, 0).await,
                false => Ok(RemoteState::default()),
            }
        };
        let (blobs, others) = tokio::try_join!(blobs, Self::list_prefixes(bucket, &others))?;
        Ok(blobs.merge(others))
    }

    /// Lists only the blobs, of which there are about `expected`, or 0 if that is unknown.
    ///
    /// # Errors
    /// As [`RemoteState::list`].
    pub async fn list_blobs(bucket: &Bucket, expected: usize) -> Result<RemoteState, Failure> {
        let listings = bucket.list_blobs::<RemoteState>(expected).await?;
        Ok(listings.into_iter().reduce(RemoteState::merge).unwrap_or_default().sorted())
    }

    /// Lists the manifests and refs that a repo may have, 0.1.0's refs first. Other repos may share these keys.
    ///
    /// # Errors
    /// As [`RemoteState::list`].
    pub async fn list_repo(bucket: &Bucket, query: &RepoQuery) -> Result<RemoteState, Failure> {
        let kinds = RepoType::ALL.into_iter().filter(|kind| query.kind.is_none_or(|wanted| wanted == *kind));
        let new_refs = kinds.map(|kind| keys::new_refs_of(&RepoName::new(kind, query.id.clone())));
        let prefixes: Vec<String> =
            [keys::manifests_of(&query.id), keys::old_refs_of(&query.id)].into_iter().chain(new_refs).collect();
        Self::list_prefixes(bucket, &prefixes).await
    }

    async fn list_prefixes(bucket: &Bucket, prefixes: &[impl AsRef<str>]) -> Result<RemoteState, Failure> {
        let listings = try_join_all(prefixes.iter().map(|prefix| bucket.list::<RemoteState>(prefix.as_ref()))).await?;
        Ok(listings.into_iter().reduce(RemoteState::merge).unwrap_or_default().sorted())
    }

    /// Merges another listing, which has no keys in common with this one.
    pub(super) fn merge(mut self, other: RemoteState) -> RemoteState {
        match self.blobs.is_empty() {
            true => self.blobs = other.blobs,
            false => self.blobs.0.extend(other.blobs.0),
        }
        for (encoded, commits) in other.manifests {
            self.manifests.entry(encoded).or_default().extend(commits);
        }
        other.refs.into_iter().for_each(|candidate| self.add_ref(candidate));
        self.foreign.merge(other.foreign);
        self
    }

    fn add_ref(&mut self, candidate: Candidate) {
        self.ref_indexes.insert(candidate.object.key.clone(), self.refs.len());
        self.refs.push(candidate);
    }

    fn sorted(mut self) -> RemoteState {
        self.blobs.0.sort_unstable_by_key(|blob| blob.id);
        self
    }

    /// Returns the blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Returns the manifests by encoded id and commit.
    pub fn manifests(&self) -> &BTreeMap<String, BTreeMap<Commit, Entry>> {
        &self.manifests
    }

    /// Returns the commits that have a manifest under this id, or under another id with the same encoding.
    pub fn commits(&self, id: &RepoId) -> impl Iterator<Item = &Commit> {
        self.manifests.get(&keys::encoded(id)).into_iter().flat_map(BTreeMap::keys)
    }

    /// Returns the refs, in listing order.
    pub fn refs(&self) -> &[Candidate] {
        &self.refs
    }

    /// Returns the objects under this tool's prefixes whose keys it does not recognize.
    pub fn foreign(&self) -> &Foreign {
        &self.foreign
    }

    /// Returns what the listing says about the manifest under a key; `None` if it is not listed.
    pub fn listed_manifest(&self, key: &str) -> Option<&Entry> {
        let (encoded, commit) = keys::parse_manifest(key)?;
        self.manifests.get(encoded)?.get(&commit)
    }

    /// Returns the ref under a key, as listed; `None` if it is not listed.
    pub fn listed_ref(&self, key: &str) -> Option<&Candidate> {
        Some(&self.refs[*self.ref_indexes.get(key)?])
    }

    /// Returns the content of a listed manifest; `None` if it is not listed or has not been read.
    pub fn manifest(&self, key: &str) -> Option<Stored<Arc<Manifest>>> {
        self.listed_manifest(key)?;
        self.manifests_read.get(key)
    }

    /// Returns the content of a listed ref; `None` if it is not listed or has not been read.
    pub fn reference(&self, key: &str) -> Option<Stored<Commit>> {
        self.listed_ref(key)?;
        self.refs_read.get(key)
    }

    /// Returns the repo that a ref of this id belongs to, which is the one named in its manifest; `None` if either has
    /// not been read.
    pub fn owner(&self, id: &RepoId, key: &str) -> Option<RepoName> {
        let commit = self.refs_read.get(key)?.valid()?;
        let manifest = self.manifests_read.get(&keys::manifest(id, &commit))?.valid()?;
        Some(manifest.repo().clone())
    }

    /// Returns whether the listing alone proves that the bucket has exactly this manifest. If so, it counts as read.
    pub fn prove_manifest(&self, manifest: &Arc<Manifest>) -> bool {
        let key = keys::manifest(&manifest.repo().id, manifest.revision());
        let proven = self.listed_manifest(&key).is_some_and(|entry| entry.has_content(&manifest.to_json()));
        if proven {
            self.keep_manifest(&key, Stored::Valid(manifest.clone()));
        }
        proven
    }

    /// Returns whether the listing alone proves that a ref points to this commit. If so, it counts as read.
    pub fn prove_ref(&self, key: &str, commit: &Commit) -> bool {
        let content = commit.as_str().as_bytes();
        let proven = self.listed_ref(key).is_some_and(|Candidate { object, .. }| {
            object.size == content.len() as u64 && object.etag.as_ref() == Some(&md5_hex(content))
        });
        if proven {
            self.keep_ref(key, Stored::Valid(commit.clone()));
        }
        proven
    }

    /// Caches the content of a manifest, unless it is already known.
    pub fn keep_manifest(&self, key: &str, stored: Stored<Arc<Manifest>>) {
        self.manifests_read.keep(key, stored);
    }

    /// Caches the content of a ref, unless it is already known.
    pub fn keep_ref(&self, key: &str, stored: Stored<Commit>) {
        self.refs_read.keep(key, stored);
    }

    /// Reads a manifest, listed or not, unless it is already known.
    ///
    /// # Errors
    /// If the request fails.
    pub async fn read_manifest(&self, bucket: &Bucket, key: &str) -> Result<Stored<Arc<Manifest>>> {
        self.manifests_read.read(key, async { Ok(read::manifest(bucket, key).await?.map(Arc::new)) }).await
    }

    /// Like [`Self::read_manifest`]. A manifest whose listed MD5 and size are those of one that was read before is not
    /// read again.
    ///
    /// # Errors
    /// If the request fails.
    pub async fn recall_manifest(
        &self,
        bucket: &Bucket,
        key: &str,
        memory: &dyn Memory,
    ) -> Result<Stored<Arc<Manifest>>> {
        let read = async {
            let listed = self.listed_manifest(key);
            let remembered = listed.and_then(|entry| match &entry.etag {
                Some(md5 @ Etag::Md5(_)) => read::remembered_manifest(key, &md5.to_string(), entry.size, memory),
                _ => None,
            });
            let stored = match remembered {
                Some(manifest) => Stored::Valid(manifest),
                None => read::manifest_to_remember(bucket, key, memory).await?,
            };
            Ok(stored.map(Arc::new))
        };
        self.manifests_read.read(key, read).await
    }

    /// Returns the commit that a ref points to, if the listing alone proves it: the manifest of that commit is listed, and
    /// the ref's MD5 is that of its hash.
    pub fn listed_target(&self, candidate: &Candidate) -> Option<&Commit> {
        let md5 = candidate.object.etag.as_deref()?;
        let mut commits = self.manifests.get(&candidate.encoded)?.keys();
        commits.find(|commit| {
            let content = commit.as_str().as_bytes();
            candidate.object.size == content.len() as u64 && md5_hex(content) == md5
        })
    }

    /// Reads a ref, listed or not, unless it is already known.
    ///
    /// # Errors
    /// If the request fails.
    pub async fn read_ref(&self, bucket: &Bucket, key: &str) -> Result<Stored<Commit>> {
        self.refs_read.read(key, read::reference(bucket, key)).await
    }

    /// Reads manifests concurrently.
    ///
    /// # Errors
    /// If a request fails.
    pub async fn read_manifests(&self, bucket: &Bucket, keys: impl IntoIterator<Item = String>) -> Result<()> {
        let reads = stream::iter(keys).map(|key| async move { self.read_manifest(bucket, &key).await.map(drop) });
        reads.buffer_unordered(CONCURRENT_READS).try_collect().await
    }

    /// Reads refs concurrently.
    ///
    /// # Errors
    /// If a request fails.
    pub async fn read_refs(&self, bucket: &Bucket, keys: impl IntoIterator<Item = String>) -> Result<()> {
        let reads = stream::iter(keys).map(|key| async move { self.read_ref(bucket, &key).await.map(drop) });
        reads.buffer_unordered(CONCURRENT_READS).try_collect().await
    }
}

/// Content that was read, by key. Concurrent reads of one key share a single request.
#[derive(Debug)]
struct ReadCache<T>(Mutex<HashMap<String, Cell<T>>>);

type Cell<T> = Arc<OnceCell<Stored<T>>>;

impl<T> Default for ReadCache<T> {
    fn default() -> Self {
        ReadCache(Mutex::default())
    }
}

impl<T: Clone> ReadCache<T> {
    fn cells(&self) -> MutexGuard<'_, HashMap<String, Cell<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, key: &str) -> Cell<T> {
        self.cells().entry(key.to_string()).or_default().clone()
    }

    fn get(&self, key: &str) -> Option<Stored<T>> {
        self.cells().get(key)?.get().cloned()
    }

    fn keep(&self, key: &str, stored: Stored<T>) {
        // The first value stays: all users of the snapshot must see the same content.
        let _ = self.cell(key).set(stored);
    }

    async fn read(&self, key: &str, read: impl Future<Output = Result<Stored<T>>>) -> Result<Stored<T>> {
        self.cell(key).get_or_try_init(|| read).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn commit() -> Commit {
        COMMIT.parse().unwrap()
    }

    fn object(key: &str, content: &str) -> Object {
        let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        Object { key: key.into(), size: content.len() as u64, etag: Some(md5_hex(content.as_bytes())), modified }
    }

    fn manifest(path: &str) -> Arc<Manifest> {
        let text = format!(
            r#"{{"repo": "org/name", "revision": "{COMMIT}", "files": [{{"path": "{path}", "blob": "{COMMIT}", "size": 3}}]}}"#
        );
        Arc::new(Manifest::parse(text.as_bytes()).unwrap())
    }

    fn key() -> String {
        format!("manifests/org__name@{COMMIT}.json")
    }

    #[test]
    fn objects_are_sorted_by_kind() {
        let sha256 = "f".repeat(64);
        let state = RemoteState::new([
            object(&format!("blobs/{sha256}"), "12345"),
            object(&format!("blobs/{COMMIT}"), "123"),
            object(&format!("blobs/{COMMIT}.incomplete"), "1"),
            object(&key(), "{}"),
            object("manifests/notes.txt", "hello"),
            object("manifests/a@b.json", "{}"),
            object("refs-v2/datasets--org--name/main", COMMIT),
            object("refs/org__name/main", COMMIT),
            object("refs.txt", "hello"),
        ]);
        let blobs: Vec<_> = state.blobs().iter().map(|(id, entry)| (id.to_string(), entry.size)).collect();
        assert_eq!(blobs, [(COMMIT.to_string(), 3), (sha256.clone(), 5)]);
        let (small, large) = (COMMIT.parse().unwrap(), sha256.parse().unwrap());
        assert!(state.blobs().has(&small, 3) && state.blobs().has(&large, 5));
        assert!(!state.blobs().has(&small, 5) && state.blobs().get(&"e".repeat(40).parse().unwrap()).is_none());
        assert_eq!(state.commits(&"org/name".parse().unwrap()).collect::<Vec<_>>(), [&commit()]);
        assert_eq!(state.listed_manifest(&key()).unwrap().size, 2);
        let refs: Vec<&str> = state.refs().iter().map(|candidate| candidate.object.key.as_str()).collect();
        assert_eq!(refs, ["refs-v2/datasets--org--name/main", "refs/org__name/main"]);
        assert_eq!(state.listed_ref("refs/org__name/main").unwrap().name.as_str(), "main");
        let foreign = Foreign { keys: 4, beside_blobs: 3, bytes: 13, suspects: vec!["manifests/a@b.json".into()] };
        assert_eq!(*state.foreign(), foreign);
        // Unordered listings rely on this.
        let keys: Vec<String> = state.keys().collect();
        assert!(keys.len() == 5 && keys.contains(&key()) && keys.contains(&format!("blobs/{sha256}")), "{keys:?}");
    }

    #[test]
    fn a_blob_takes_little_memory() {
        assert!(size_of::<Blob>() <= 56, "{}", size_of::<Blob>());
        let id = COMMIT.parse().unwrap();
        for modified in [None, Some(SystemTime::UNIX_EPOCH), Some(SystemTime::UNIX_EPOCH + Duration::new(1 << 33, 7))] {
            let blob = Blob::new(id, &Object { key: String::new(), size: 1, etag: None, modified });
            assert_eq!(blob.entry(), BlobEntry { size: 1, modified });
        }
        let md5 = md5_hex(b"");
        assert!(matches!(Etag::from(md5.clone()), Etag::Md5(_)));
        for text in [&md5, &format!("{md5}-3"), &md5.to_uppercase(), &md5[1..], &format!("{md5}00"), "", "kms"] {
            assert_eq!(Etag::from(text.to_string()).to_string(), *text);
        }
    }

    #[test]
    fn content_that_the_listing_proves_counts_as_read() {
        let (ours, theirs) = (manifest("a"), manifest("b"));
        let content = String::from_utf8(theirs.to_json()).unwrap();
        let state = RemoteState::new([object(&key(), &content), object("refs/org__name/main", COMMIT)]);
        assert!(!state.prove_manifest(&ours) && state.manifest(&key()).is_none());
        assert!(state.prove_manifest(&theirs));
        assert!(Arc::ptr_eq(&state.manifest(&key()).unwrap().valid().unwrap(), &theirs));

        let other: Commit = "f".repeat(40).parse().unwrap();
        assert!(!state.prove_ref("refs/org__name/main", &other) && !state.prove_ref("refs/org__name/v1", &commit()));
        assert!(state.prove_ref("refs/org__name/main", &commit()));
        assert_eq!(state.reference("refs/org__name/main").unwrap().valid(), Some(commit()));
        assert_eq!(state.owner(&ours.repo().id, "refs/org__name/main"), Some(ours.repo().clone()));
        assert_eq!(state.owner(&ours.repo().id, "refs/org__name/v1"), None);
    }

    #[test]
    fn an_unlisted_manifest_is_absent_even_if_it_was_read() {
        let state = RemoteState::default();
        state.keep_manifest(&key(), Stored::Valid(manifest("a")));
        assert!(state.manifest(&key()).is_none());
    }

    #[tokio::test]
    async fn successful_reads_are_cached_and_failures_are_not() {
        let reads = ReadCache::<u8>::default();
        assert!(reads.read("a", async { Err(Error::failed("the store is down")) }).await.is_err());
        assert_eq!(reads.read("a", async { Ok(Stored::Valid(1)) }).await.unwrap().valid(), Some(1));
        let again = reads.read("a", async { panic!("it is cached") }).await;
        assert_eq!(again.unwrap().valid(), Some(1));
        let bad = || Stored::Invalid(Error::invalid("it is not valid"));
        reads.keep("b", bad());
        reads.keep("b", Stored::Valid(2));
        assert!(matches!(reads.get("b"), Some(Stored::Invalid(_))));
    }
}
