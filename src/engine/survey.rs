//! What the bucket has, as far as a push needs to know: one listing, and GETs only for what differs from what this
//! machine would write.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::bucket::client::{Bucket, Object};
use crate::bucket::{keys, lookup, refs};
use crate::cache::local::{Local, LocalRepo, LocalRevision, Twins};
use crate::error::{Error, Kind, Result};
use crate::hash::md5_hex;
use crate::model::ids::{BlobId, Commit, RepoName};
use crate::model::manifest::Manifest;

/// Small objects read at once.
const AT_ONCE: usize = 32;

/// What the listings said.
#[derive(Debug, Default)]
pub struct Listing {
    blobs: HashMap<BlobId, u64>,
    small: HashMap<String, Object>,
}

impl Listing {
    /// The objects that are manifests and refs.
    pub fn small(&self) -> impl Iterator<Item = &Object> {
        self.small.values()
    }
}

/// The bucket, seen from this cache.
#[derive(Debug, Default)]
pub struct Remote {
    /// Blobs with their sizes.
    pub blobs: HashMap<BlobId, u64>,
    /// By key: manifests of this cache's revisions.
    pub manifests: HashMap<String, Stored>,
    /// By key: refs that this cache could write.
    pub refs: HashMap<String, StoredRef>,
    /// How many refs there are, of whatever repo.
    pub listed_refs: usize,
}

/// A manifest in the bucket.
#[derive(Debug, Clone)]
pub enum Stored {
    /// Exactly what this machine would write.
    Same,
    /// Another one.
    Other(Box<Manifest>),
    /// Not a valid one, and why.
    Invalid(String),
}

/// A ref in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRef {
    /// What it says; `None` when that is no commit.
    pub commit: Option<Commit>,
    /// The repo that it belongs to, where that was looked up: the one that its manifest names.
    pub owner: Option<RepoName>,
}

/// Lists blobs, manifests and refs.
///
/// # Errors
/// Any page that fails: nothing is decided on a part of a listing.
pub async fn list(bucket: &Bucket) -> Result<Listing> {
    let lists = tokio::try_join!(bucket.list(keys::BLOBS), bucket.list(keys::MANIFESTS), bucket.list(keys::ALL_REFS));
    let doing = format!("cannot list bucket '{}'", bucket.name());
    let (blobs, manifests, refs) = lists.map_err(|failure| bucket.explain(failure, &doing))?;
    Ok(Listing {
        blobs: blobs.into_iter().filter_map(|object| Some((keys::parse_blob(&object.key)?, object.size))).collect(),
        small: manifests.into_iter().chain(refs).map(|object| (object.key.clone(), object)).collect(),
    })
}

/// Reads what differs from what this machine would write.
///
/// # Errors
/// When a request fails; what is there but not valid is part of the result.
pub async fn compare(bucket: &Bucket, listing: Listing, local: &Local) -> Result<Remote> {
    let revisions = local.repos.iter().flat_map(|repo| repo.revisions.iter().map(move |revision| (repo, revision)));
    let manifests = stream::iter(revisions.filter_map(|(repo, revision)| {
        let object = listing.small.get(&keys::manifest(&repo.name.id, &revision.commit))?;
        Some(stored_manifest(bucket, repo, revision, object))
    }));
    let manifests = manifests.buffer_unordered(AT_ONCE).try_collect().await?;

    let refs =
        local.repos.iter().flat_map(|repo| repo.all_refs().map(move |(name, commit)| (&repo.name, name, commit)));
    let wanted =
        refs.flat_map(|(repo, name, commit)| refs::keys_to_write(repo, &name).map(move |key| (key, repo, commit)));
    let refs = stream::iter(wanted.filter_map(|(key, repo, commit)| {
        let object = listing.small.get(&key)?;
        Some(stored_ref(bucket, key, repo, commit, object))
    }));
    let refs = refs.buffer_unordered(AT_ONCE).try_collect().await?;
    let listed_refs = listing.small.keys().filter(|key| key.starts_with(keys::ALL_REFS)).count();
    Ok(Remote { blobs: listing.blobs, manifests, refs, listed_refs })
}

/// Whether the listing alone proves that the object has this content: most stores' ETag of one PUT is its MD5.
pub(crate) fn is_listed_as(object: &Object, content: &[u8]) -> bool {
    object.size == content.len() as u64 && object.etag.as_deref() == Some(md5_hex(content).as_str())
}

async fn stored_manifest(
    bucket: &Bucket,
    repo: &LocalRepo,
    revision: &LocalRevision,
    object: &Object,
) -> Result<(String, Stored)> {
    let ours = crate::plan::push::manifest(&repo.name, revision, None).to_json();
    let key = object.key.clone();
    if is_listed_as(object, &ours) {
        return Ok((key, Stored::Same));
    }
    match lookup::read_manifest(bucket, &key).await {
        Ok(Some(manifest)) => Ok((key, Stored::Other(Box::new(manifest)))),
        Ok(None) => Ok((key, Stored::Invalid("it was deleted meanwhile".into()))),
        Err(Error { kind: Kind::Integrity, why, .. }) => Ok((key, Stored::Invalid(why.unwrap_or_default()))),
        Err(error) => Err(error),
    }
}

async fn stored_ref(
    bucket: &Bucket,
    key: String,
    repo: &RepoName,
    commit: &Commit,
    object: &Object,
) -> Result<(String, StoredRef)> {
    // Under a commit of ours the manifest is ours as well: nothing to look up.
    if is_listed_as(object, commit.as_str().as_bytes()) {
        return Ok((key, StoredRef { commit: Some(commit.clone()), owner: Some(repo.clone()) }));
    }
    Ok((key.clone(), read_ref(bucket, &key, repo).await?))
}

/// Reads a ref and, where other repos may use the key too, whose it is.
///
/// # Errors
/// When a request fails; content that is not valid belongs to nobody.
pub async fn read_ref(bucket: &Bucket, key: &str, repo: &RepoName) -> Result<StoredRef> {
    let commit = lookup::if_valid(lookup::read_ref(bucket, key).await)?;
    let owner = match &commit {
        Some(commit) if keys::is_shared_ref(repo, key) => {
            let manifest = lookup::read_manifest(bucket, &keys::manifest(&repo.id, commit)).await;
            lookup::if_valid(manifest)?.map(|manifest| manifest.repo)
        }
        _ => None,
    };
    Ok(StoredRef { commit, owner })
}

/// Finds out which files the bucket's manifests know by another name that is as right: mirrors name by sha256 what the
/// Hub names by git's sha1. Reads the files that differ in no more than that.
pub fn find_twins(local: &mut Local, remote: &Remote) {
    let mut twins = Twins::default();
    for repo in &mut local.repos {
        for revision in &mut repo.revisions {
            let key = keys::manifest(&repo.name.id, &revision.commit);
            let Some(Stored::Other(stored)) = remote.manifests.get(&key) else { continue };
            let known: HashMap<_, _> = stored.files.iter().map(|file| (&file.path, file)).collect();
            for file in revision.files.iter_mut().filter(|file| file.other.is_none()) {
                let path = &file.file.path;
                let listed = known.get(path).map(|known| (known.blob, known.size));
                let in_tree = || stored.tree.as_ref()?.get(path).map(|entry| (entry.blob, entry.size));
                if let Some((blob, size)) = listed.or_else(in_tree)
                    && size == file.file.size
                    && blob.may_be_twin(&file.file.blob)
                    && twins.are(file, &blob)
                {
                    file.other = Some(blob);
                }
            }
        }
    }
}
