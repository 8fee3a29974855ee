//! What is in the bucket: the one picture of it, through which every command reads.
//!
//! [`RemoteState::list`] makes it of listings alone: blobs, manifests, refs, and keys that are none of this tool's. What
//! manifests and refs say is read when it is needed, several at once and each at most once, and is kept. Where the
//! listing proves it, nothing is read at all: most stores' ETag is the MD5 of what one PUT has sent. What is stored but
//! not valid is part of the picture ([`Stored::Invalid`]); what it means is for whoever looks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::client::{Bucket, Collect, Object};
use super::error::Failure;
use super::keys;
use super::read::{self, Stored};
use super::refs::Candidate;
use crate::error::Result;
use crate::hash::md5_hex;
use crate::model::ids::{BlobId, Commit, RepoId, RepoName, RepoQuery, RepoType};
use crate::model::manifest::Manifest;

/// Manifests or refs read at once.
const AT_ONCE: usize = 32;

/// What to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// Blobs.
    pub blobs: bool,
    /// Manifests.
    pub manifests: bool,
    /// Refs, of 0.1.0's kind and of ours.
    pub refs: bool,
}

impl Scope {
    /// Everything.
    pub const ALL: Scope = Scope { blobs: true, manifests: true, refs: true };
    /// Everything but blobs.
    pub const NAMES: Scope = Scope { blobs: false, manifests: true, refs: true };
    /// Blobs alone.
    pub const BLOBS: Scope = Scope { blobs: true, manifests: false, refs: false };
    /// Manifests alone.
    pub const MANIFESTS: Scope = Scope { blobs: false, manifests: true, refs: false };
    /// Refs alone.
    pub const REFS: Scope = Scope { blobs: false, manifests: false, refs: true };
}

/// What a listing says of an object, beside its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Size in bytes.
    pub size: u64,
    /// For most stores the MD5 of what one PUT has sent.
    pub etag: Option<Etag>,
    /// Last modified, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// An ETag without quotes. Most are an MD5, and are kept as such.
#[derive(Clone, PartialEq, Eq)]
pub enum Etag {
    /// 32 lowercase hexadecimal digits.
    Md5([u8; 16]),
    /// Any other text, such as that of an object that was sent in parts.
    Other(Box<str>),
}

/// The blobs of a bucket, of which there may be millions: kept without their keys.
#[derive(Debug, Default)]
pub struct Blobs(
    /// Sorted by name.
    Vec<(BlobId, Entry)>,
);

/// The picture of a bucket.
#[derive(Debug, Default)]
pub struct RemoteState {
    blobs: Blobs,
    /// By encoded id and commit.
    manifests: BTreeMap<String, BTreeMap<Commit, Entry>>,
    /// In the order of the listing.
    refs: Vec<Candidate>,
    /// Where in `refs` each key is.
    ref_places: HashMap<String, usize>,
    foreign: Vec<Object>,
    manifests_read: Reads<Arc<Manifest>>,
    refs_read: Reads<Commit>,
}

impl From<Object> for Entry {
    fn from(object: Object) -> Entry {
        Entry { size: object.size, etag: object.etag.map(Etag::from), modified: object.modified }
    }
}

impl Entry {
    /// Whether size and ETag prove that an object has this content.
    fn is_of(&self, content: &[u8]) -> bool {
        self.size == content.len() as u64 && self.etag == Some(Etag::from(md5_hex(content)))
    }
}

impl From<String> for Etag {
    fn from(text: String) -> Etag {
        match md5_of(&text) {
            Some(md5) => Etag::Md5(md5),
            None => Etag::Other(text.into_boxed_str()),
        }
    }
}

/// The bytes that 32 lowercase hexadecimal digits mean; `None` for any other text.
fn md5_of(text: &str) -> Option<[u8; 16]> {
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
    /// What the listing says of a blob; `None` when the bucket lacks it.
    pub fn get(&self, id: &BlobId) -> Option<&Entry> {
        let place = self.0.binary_search_by(|(known, _)| known.cmp(id)).ok()?;
        Some(&self.0[place].1)
    }

    /// Whether the bucket has the blob with this size.
    pub fn has(&self, id: &BlobId, size: u64) -> bool {
        self.get(id).is_some_and(|entry| entry.size == size)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&BlobId, &Entry)> {
        self.0.iter().map(|(id, entry)| (id, entry))
    }
}

impl Collect for RemoteState {
    fn take(&mut self, object: Object) {
        if let Some(id) = keys::parse_blob(&object.key) {
            self.blobs.0.push((id, object.into()));
        } else if let Some((encoded, commit)) = keys::parse_manifest(&object.key) {
            let encoded = encoded.to_string();
            self.manifests.entry(encoded).or_default().insert(commit, object.into());
        } else if keys::parse_ref(&object.key).is_none() {
            self.foreign.push(object);
        } else if let Some(candidate) = Candidate::of(object) {
            self.add_ref(candidate);
        }
    }

    fn keys(&self) -> HashSet<String> {
        let blobs = self.blobs.0.iter().map(|(id, _)| keys::blob(id));
        let manifests = self.manifests.iter();
        let manifests =
            manifests.flat_map(|(id, commits)| commits.keys().map(move |commit| keys::manifest_of(id, commit)));
        let others = self.ref_places.keys().chain(self.foreign.iter().map(|object| &object.key)).cloned();
        blobs.chain(manifests).chain(others).collect()
    }
}

impl RemoteState {
    /// The picture that these objects make.
    pub fn new(objects: impl IntoIterator<Item = Object>) -> RemoteState {
        let mut state = RemoteState::default();
        objects.into_iter().for_each(|object| state.take(object));
        state.sorted()
    }

    /// Lists what is in the bucket.
    ///
    /// # Errors
    /// Any page that fails: nothing is decided on a part of a listing.
    pub async fn list(bucket: &Bucket, scope: Scope) -> Result<RemoteState, Failure> {
        let all = [(scope.blobs, keys::BLOBS), (scope.manifests, keys::MANIFESTS), (scope.refs, keys::ALL_REFS)];
        let wanted: Vec<&str> = all.into_iter().filter_map(|(wanted, prefix)| wanted.then_some(prefix)).collect();
        Self::list_below(bucket, &wanted).await
    }

    /// Lists what a repo may have of manifests and refs, 0.1.0's refs first. Its keys may be those of others, too.
    ///
    /// # Errors
    /// As [`RemoteState::list`].
    pub async fn list_repo(bucket: &Bucket, query: &RepoQuery) -> Result<RemoteState, Failure> {
        let kinds = RepoType::ALL.into_iter().filter(|kind| query.kind.is_none_or(|wanted| wanted == *kind));
        let new_refs = kinds.map(|kind| keys::new_refs_of(&RepoName::new(kind, query.id.clone())));
        let below: Vec<String> =
            [keys::manifests_of(&query.id), keys::old_refs_of(&query.id)].into_iter().chain(new_refs).collect();
        Self::list_below(bucket, &below).await
    }

    async fn list_below(bucket: &Bucket, prefixes: &[impl AsRef<str>]) -> Result<RemoteState, Failure> {
        let listings = try_join_all(prefixes.iter().map(|prefix| bucket.list::<RemoteState>(prefix.as_ref()))).await?;
        Ok(listings.into_iter().reduce(RemoteState::joined).unwrap_or_default().sorted())
    }

    /// With another listing, which has none of the same keys.
    fn joined(mut self, other: RemoteState) -> RemoteState {
        match self.blobs.is_empty() {
            true => self.blobs = other.blobs,
            false => self.blobs.0.extend(other.blobs.0),
        }
        for (encoded, commits) in other.manifests {
            self.manifests.entry(encoded).or_default().extend(commits);
        }
        other.refs.into_iter().for_each(|candidate| self.add_ref(candidate));
        self.foreign.extend(other.foreign);
        self
    }

    fn add_ref(&mut self, candidate: Candidate) {
        self.ref_places.insert(candidate.object.key.clone(), self.refs.len());
        self.refs.push(candidate);
    }

    fn sorted(mut self) -> RemoteState {
        self.blobs.0.sort_unstable_by_key(|(id, _)| *id);
        self
    }

    /// The blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The manifests by encoded id and commit.
    pub fn manifests(&self) -> &BTreeMap<String, BTreeMap<Commit, Entry>> {
        &self.manifests
    }

    /// The commits that there are manifests of, for an id and all that are encoded alike.
    pub fn commits(&self, id: &RepoId) -> impl Iterator<Item = &Commit> {
        self.manifests.get(&keys::encoded(id)).into_iter().flat_map(BTreeMap::keys)
    }

    /// The refs, in the order of the listing.
    pub fn refs(&self) -> &[Candidate] {
        &self.refs
    }

    /// Objects that are none of this tool's, though they are where its own are.
    pub fn foreign(&self) -> &[Object] {
        &self.foreign
    }

    /// What the listing says of the manifest under a key; `None` when it has no such manifest.
    pub fn listed_manifest(&self, key: &str) -> Option<&Entry> {
        let (encoded, commit) = keys::parse_manifest(key)?;
        self.manifests.get(encoded)?.get(&commit)
    }

    /// The ref under a key, as it is listed; `None` when there is no such ref.
    pub fn listed_ref(&self, key: &str) -> Option<&Candidate> {
        Some(&self.refs[*self.ref_places.get(key)?])
    }

    /// What a listed manifest says; `None` when it is not listed, or was not read.
    pub fn manifest(&self, key: &str) -> Option<Stored<Arc<Manifest>>> {
        self.listed_manifest(key)?;
        self.manifests_read.get(key)
    }

    /// What a listed ref says; `None` when it is not listed, or was not read.
    pub fn reference(&self, key: &str) -> Option<Stored<Commit>> {
        self.listed_ref(key)?;
        self.refs_read.get(key)
    }

    /// The repo of this id that a ref belongs to, as far as that was read: the one that its manifest names.
    pub fn owner(&self, id: &RepoId, key: &str) -> Option<RepoName> {
        let commit = self.refs_read.get(key)?.valid()?;
        let manifest = self.manifests_read.get(&keys::manifest(id, &commit))?.valid()?;
        Some(manifest.repo.clone())
    }

    /// Whether the listing alone proves that this manifest is what its key has. It then counts as read.
    pub fn prove_manifest(&self, manifest: &Arc<Manifest>) -> bool {
        let key = keys::manifest(&manifest.repo.id, &manifest.revision);
        let proven = self.listed_manifest(&key).is_some_and(|entry| entry.is_of(&manifest.to_json()));
        if proven {
            self.keep_manifest(&key, Stored::Valid(manifest.clone()));
        }
        proven
    }

    /// Whether the listing alone proves that a ref names this commit. It then counts as read.
    pub fn prove_ref(&self, key: &str, commit: &Commit) -> bool {
        let listed = self.listed_ref(key).map(|candidate| Entry::from(candidate.object.clone()));
        let proven = listed.is_some_and(|entry| entry.is_of(commit.as_str().as_bytes()));
        if proven {
            self.keep_ref(key, Stored::Valid(commit.clone()));
        }
        proven
    }

    /// Takes note of what a manifest says, unless that is known.
    pub fn keep_manifest(&self, key: &str, stored: Stored<Arc<Manifest>>) {
        self.manifests_read.keep(key, stored);
    }

    /// Takes note of what a ref says, unless that is known.
    pub fn keep_ref(&self, key: &str, stored: Stored<Commit>) {
        self.refs_read.keep(key, stored);
    }

    /// Reads a manifest, listed or not, unless it was read before.
    ///
    /// # Errors
    /// When the request fails.
    pub async fn read_manifest(&self, bucket: &Bucket, key: &str) -> Result<Stored<Arc<Manifest>>> {
        self.manifests_read.read(key, async { Ok(read::manifest(bucket, key).await?.map(Arc::new)) }).await
    }

    /// Reads a ref, listed or not, unless it was read before.
    ///
    /// # Errors
    /// When the request fails.
    pub async fn read_ref(&self, bucket: &Bucket, key: &str) -> Result<Stored<Commit>> {
        self.refs_read.read(key, read::reference(bucket, key)).await
    }

    /// Reads manifests, several at once.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn read_manifests(&self, bucket: &Bucket, keys: impl IntoIterator<Item = String>) -> Result<()> {
        let reads = stream::iter(keys).map(|key| async move { self.read_manifest(bucket, &key).await.map(drop) });
        reads.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Reads refs, several at once.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn read_refs(&self, bucket: &Bucket, keys: impl IntoIterator<Item = String>) -> Result<()> {
        let reads = stream::iter(keys).map(|key| async move { self.read_ref(bucket, &key).await.map(drop) });
        reads.buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// What was read, by key: each once, whoever asks at the same time.
#[derive(Debug)]
struct Reads<T>(Mutex<HashMap<String, Cell<T>>>);

type Cell<T> = Arc<OnceCell<Stored<T>>>;

impl<T> Default for Reads<T> {
    fn default() -> Self {
        Reads(Mutex::default())
    }
}

impl<T: Clone> Reads<T> {
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
        // One that is known stays: the picture is that of one moment.
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
    use std::time::Duration;

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
    fn every_key_has_its_place() {
        let sha256 = "f".repeat(64);
        let state = RemoteState::new([
            object(&format!("blobs/{sha256}"), "12345"),
            object(&format!("blobs/{COMMIT}"), "123"),
            object(&format!("blobs/{COMMIT}.incomplete"), "1"),
            object(&key(), "{}"),
            object("manifests/notes.txt", "hello"),
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
        let foreign: Vec<&str> = state.foreign().iter().map(|object| object.key.as_str()).collect();
        assert_eq!(foreign, [&format!("blobs/{COMMIT}.incomplete"), "manifests/notes.txt", "refs.txt"]);
        // An unordered listing relies on it.
        assert_eq!(state.keys().len(), 8);
        assert!(state.keys().contains(&key()) && state.keys().contains(&format!("blobs/{sha256}")));
    }

    #[test]
    fn a_blob_takes_little_memory() {
        assert!(size_of::<(BlobId, Entry)>() <= 88, "{}", size_of::<(BlobId, Entry)>());
        let md5 = md5_hex(b"");
        assert!(matches!(Etag::from(md5.clone()), Etag::Md5(_)));
        for text in [&md5, &format!("{md5}-3"), &md5.to_uppercase(), &md5[1..], &format!("{md5}00"), "", "kms"] {
            assert_eq!(Etag::from(text.to_string()).to_string(), *text);
        }
    }

    #[test]
    fn what_the_listing_proves_counts_as_read() {
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
        assert_eq!(state.owner(&ours.repo.id, "refs/org__name/main"), Some(ours.repo.clone()));
        assert_eq!(state.owner(&ours.repo.id, "refs/org__name/v1"), None);
    }

    #[test]
    fn what_is_not_listed_is_not_there_whatever_was_read() {
        let state = RemoteState::default();
        state.keep_manifest(&key(), Stored::Valid(manifest("a")));
        assert!(state.manifest(&key()).is_none());
    }

    #[tokio::test]
    async fn what_was_read_is_not_read_again_and_failures_are() {
        let reads = Reads::<u8>::default();
        assert!(reads.read("a", async { Err(Error::failed("the store is away")) }).await.is_err());
        assert_eq!(reads.read("a", async { Ok(Stored::Valid(1)) }).await.unwrap().valid(), Some(1));
        let again = reads.read("a", async { panic!("it is known") }).await;
        assert_eq!(again.unwrap().valid(), Some(1));
        let bad = || Stored::Invalid(Error::invalid("it is not valid"));
        reads.keep("b", bad());
        reads.keep("b", Stored::Valid(2));
        assert!(matches!(reads.get("b"), Some(Stored::Invalid(_))));
    }
}
