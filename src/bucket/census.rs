//! The needs of every manifest in a bucket: the basis of all deletions. Nothing else of a manifest is kept.
//!
//! Deletions are decided on a complete picture or not at all. So this reads every manifest. Anything that may need blobs
//! in a way that this program does not understand is a [problem](Census::problems).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::{IgnoredAny, MapAccess};

use super::client::Bucket;
use super::keys;
use super::read::Stored;
use super::refs::Candidate;
use super::state::{Entry, RemoteState, Scope};
use crate::error::{Error, Result, printable};
use crate::hash::md5_hex;
use crate::model::file_list::MAX_SIZE;
use crate::model::ids::{BlobId, Commit, RepoName};
use crate::model::json::{self, Compact, Entries, List, Object};
use crate::model::manifest::Manifest;

/// Manifests read at once.
const AT_ONCE: usize = 32;
/// Top-level keys that would indicate a later format. Manifests of this format have none of them, or a 1.
const VERSIONS: [&str; 5] = ["format_version", "version", "format", "schema_version", "manifest_version"];

/// The objects that a manifest needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Its repo.
    pub repo: RepoName,
    /// Its revision.
    pub commit: Commit,
    /// The blobs of its files, with their sizes in bytes.
    pub blobs: BTreeMap<BlobId, u64>,
    /// Hashes elsewhere in it, which may name blobs.
    pub mentions: BTreeSet<BlobId>,
}

/// A bucket, and what its manifests need.
#[derive(Debug, Default)]
pub struct Census {
    /// The bucket, as it was listed.
    pub state: RemoteState,
    /// The needs of each manifest, by its key.
    pub manifests: BTreeMap<String, Needs>,
    /// The commit that each ref names, by its key; `None` if its content is not a commit.
    pub refs: BTreeMap<String, Option<Commit>>,
    /// Problems that make this incomplete, by key.
    pub problems: BTreeMap<String, Error>,
}

impl Census {
    /// Lists the bucket and reads every manifest that is new or has changed since the census `before`.
    ///
    /// # Errors
    /// If a request fails.
    pub async fn take(bucket: &Bucket, before: Option<&Census>) -> Result<Census> {
        let listed =
            tokio::try_join!(RemoteState::list(bucket, Scope::ALL), bucket.list_page(keys::LATER_MANIFESTS, None, 1));
        let (state, (later, _)) = listed.map_err(|failure| bucket.explain_listing(failure))?;
        let suspects = state.foreign().suspects.iter().chain(later.iter().map(|object| &object.key));
        let mut census = Census { problems: unknown_manifests(suspects), ..Census::default() };
        let keys = state.manifests().iter().flat_map(|(encoded, commits)| {
            commits.iter().map(move |(commit, entry)| (keys::manifest_of(encoded, commit), entry))
        });
        let mut unread = Vec::new();
        for (key, entry) in keys {
            match before.and_then(|before| before.unchanged(&key, entry)) {
                Some(needs) => drop(census.manifests.insert(key, needs.clone())),
                None => unread.push(key),
            }
        }
        let mut reads = stream::iter(unread).map(|key| async move { read(bucket, &key).await.map(|read| (key, read)) });
        let mut missing = Vec::new();
        let mut reads = std::pin::pin!(reads.by_ref().buffer_unordered(AT_ONCE));
        while let Some((key, read)) = reads.try_next().await? {
            match read {
                Some(Ok(needs)) => drop(census.manifests.insert(key, needs)),
                Some(Err(error)) => drop(census.problems.insert(key, error)),
                None => missing.push(key),
            }
        }
        // Most have been removed since they were listed. One that is still listed may come back, and then needs its blobs.
        for key in missing {
            let page = bucket.list_page(&key, None, 1).await;
            let (listed, _) = page.map_err(|failure| bucket.explain_listing(failure))?;
            if listed.iter().any(|object| object.key == key) {
                let error = Error::invalid(format!("the manifest {} cannot be read", printable(&key, 200)))
                    .because("the store lists it, but says that it does not exist")
                    .hint("if that does not pass, push the revision again from a machine that has it");
                census.problems.insert(key, error);
            }
        }
        census.refs = read_refs(bucket, &state).await?;
        census.state = state;
        Ok(census)
    }

    /// Returns the key of the manifest that a ref leads to, whether or not it exists.
    pub fn target(&self, candidate: &Candidate) -> Option<String> {
        let commit = self.refs.get(&candidate.object.key)?.as_ref()?;
        Some(keys::manifest_of(&candidate.encoded, commit))
    }

    /// Returns what a manifest needs if it is still the one that was read.
    fn unchanged(&self, key: &str, entry: &Entry) -> Option<&Needs> {
        let is_same = entry.etag.is_some() && self.state.listed_manifest(key) == Some(entry);
        self.manifests.get(key).filter(|_| is_same)
    }

    /// Returns the error for a deletion that is refused because of a problem; `more` mentions further ones.
    pub fn refusal(what: String, problem: &Error, more: &str) -> Error {
        let why = problem.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let error = Error::new(problem.cause, what).because(format!("{}{why}{more}", problem.what));
        Error { hint: problem.hint.clone(), ..error }
    }
}

/// Returns the commit that each ref names. A ref is not read if the listing proves that it names a commit of its repo.
async fn read_refs(bucket: &Bucket, state: &RemoteState) -> Result<BTreeMap<String, Option<Commit>>> {
    let mut found = BTreeMap::new();
    let mut by_md5: HashMap<&str, HashMap<String, &Commit>> = HashMap::new();
    for (encoded, commits) in state.manifests() {
        by_md5.insert(encoded, commits.keys().map(|commit| (md5_hex(commit.as_str().as_bytes()), commit)).collect());
    }
    let mut unread = Vec::new();
    for candidate in state.refs() {
        let object = &candidate.object;
        let proven = object.etag.as_ref().and_then(|etag| by_md5.get(candidate.encoded.as_str())?.get(etag));
        match proven.filter(|commit| object.size == commit.as_str().len() as u64) {
            Some(commit) => drop(found.insert(object.key.clone(), Some((*commit).clone()))),
            None => unread.push(object.key.clone()),
        }
    }
    state.read_refs(bucket, unread.iter().cloned()).await?;
    for key in unread {
        match state.reference(&key) {
            Some(Stored::Valid(commit)) => drop(found.insert(key, Some(commit))),
            Some(Stored::Invalid(_)) => drop(found.insert(key, None)),
            // It has been removed since it was listed.
            Some(Stored::Absent) | None => {}
        }
    }
    Ok(found)
}

/// Returns the problem of each key that may be a manifest in a format that this program does not know.
fn unknown_manifests<'a>(suspects: impl Iterator<Item = &'a String>) -> BTreeMap<String, Error> {
    let problem = |key: &String| {
        let error = Error::invalid(format!("{} is not a manifest that this version knows", printable(key, 200)))
            .because("a newer version may have written it, and it may need any blob")
            .hint("update hf-cache-sync; if the key is not one of its own, delete or rename it with the store's tools");
        (key.clone(), error)
    };
    suspects.map(problem).collect()
}

/// Reads what a manifest needs. Returns `None` if it is gone, and an error inside if it is not understood.
async fn read(bucket: &Bucket, key: &str) -> Result<Option<Result<Needs>>> {
    let doing = format!("cannot read {key}");
    match bucket.get_small(key, MAX_SIZE).await.map_err(|failure| bucket.explain(failure, &doing)) {
        Ok(small) => Ok(small.map(|small| needs(key, &small.bytes))),
        Err(error) if error.cause.is_invalid() => Ok(Some(Err(error))),
        Err(error) => Err(error),
    }
}

/// Returns what the manifest with this content needs.
///
/// # Errors
/// If it is not valid, or in a later format.
pub(crate) fn needs(key: &str, bytes: &[u8]) -> Result<Needs> {
    if let Some(why) = later_format(bytes) {
        return Err(Error::invalid(format!("the manifest {key} is newer than this version of hf-cache-sync"))
            .because(why)
            .hint("update hf-cache-sync"));
    }
    let invalid = |why: String| {
        Error::invalid(format!("the manifest {key} is not valid")).because(why).hint(
            "push the revision again from a machine that has it; if none does, delete this key with the store's tools, \
                   after which `remote gc` deletes its blobs",
        )
    };
    let manifest = Manifest::parse(bytes).map_err(invalid)?;
    if keys::manifest(&manifest.repo().id, manifest.revision()) != key {
        return Err(invalid(format!("it says that it is {}@{}", manifest.repo(), manifest.revision())));
    }
    let mentions = manifest.mentioned_blobs();
    Ok(Needs { blobs: manifest.blobs(), repo: manifest.repo().clone(), commit: manifest.revision().clone(), mentions })
}

/// Returns the evidence that a manifest is in a later format than this program knows; `None` if there is none.
fn later_format(bytes: &[u8]) -> Option<String> {
    // Without this structure, it is not valid in any format.
    let evidence = json::parse(bytes, Object { entries: Evidence::default(), refusal: "" }).ok()?;
    evidence.version.or(evidence.file)
}

/// Evidence of a later format.
#[derive(Default)]
struct Evidence {
    version: Option<String>,
    file: Option<String>,
}

impl<'de> Entries<'de> for Evidence {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if VERSIONS.contains(&&*key) {
            let mut text = Vec::new();
            map.next_value_seed(Compact(&mut text))?;
            if !matches!(&*text, b"null" | b"1") {
                let value = printable(&String::from_utf8_lossy(&text), 40);
                self.version.get_or_insert(format!("its `{key}` is {value}"));
            }
        } else if key == "files" {
            let element = || Object { entries: UnknownKey(None), refusal: "" };
            let done = |UnknownKey(unknown)| {
                if let Some(unknown) = unknown {
                    self.file.get_or_insert(format!("its files have `{}`", printable(&unknown, 40)));
                }
                Ok(())
            };
            map.next_value_seed(List { element, done, refusal: "" })?;
        } else {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// The first key of a file that this format does not have.
struct UnknownKey(Option<String>);

impl<'de> Entries<'de> for UnknownKey {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        map.next_value::<IgnoredAny>()?;
        if self.0.is_none() && !["path", "blob", "size"].contains(&&*key) {
            self.0 = Some(key.into_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn manifest(more: &str, file: &str) -> String {
        format!(
            r#"{{"repo": "org/name", "revision": "{COMMIT}"{more}, "files": [{{"path": "a", "blob": "{}", "size": 3{file}}}]}}"#,
            "a".repeat(40)
        )
    }

    fn needs_of(text: &str) -> Result<Needs> {
        needs(&format!("manifests/org__name@{COMMIT}.json"), text.as_bytes())
    }

    #[test]
    fn a_manifest_needs_its_files_and_every_hash_that_it_mentions() {
        let (sha1, sha256) = ("b".repeat(40), "c".repeat(64));
        let more = format!(r#", "notes": {{"{sha1}": [1, {{"x": "{sha256}"}}]}}, "format_version": 1"#);
        let needs = needs_of(&manifest(&more, "")).unwrap();
        assert_eq!(needs.blobs, BTreeMap::from([("a".repeat(40).parse().unwrap(), 3)]));
        assert_eq!(needs.mentions, BTreeSet::from([sha1.parse().unwrap(), sha256.parse().unwrap()]));
    }

    #[test]
    fn later_formats_are_distinguished_from_invalid_manifests() {
        for (more, file) in [
            (r#", "format_version": 2"#, ""),
            (r#", "version": "1.1""#, ""),
            (r#", "format": {}"#, ""),
            ("", r#", "parts": []"#),
        ] {
            let error = needs_of(&manifest(more, file)).unwrap_err();
            assert!(error.what.contains("newer"), "{error}");
        }
        for text in ["", "{}", "[]", &manifest(r#", "repo_type": "gadget""#, ""), &manifest("", "").replace("org", "o")]
        {
            let error = needs_of(text).unwrap_err();
            assert!(error.what.contains("not valid"), "{error}");
        }
    }
}
