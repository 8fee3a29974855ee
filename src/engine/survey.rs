//! The state of both sides, from which a comparison starts: the content that this cache can publish, and the bucket.
//!
//! The cache is scanned while the bucket is listed. A manifest or ref that both sides have is read from the bucket only if
//! the listing does not prove that it is what this cache would write.

use std::collections::HashMap;
use std::sync::Arc;

use super::Session;
use crate::bucket::client::Bucket;
use crate::bucket::read::Stored;
use crate::bucket::state::{RemoteState, Scope};
use crate::bucket::{keys, refs};
use crate::cache::inventory::Inventory;
use crate::cache::pushable::{self, Local, LocalRepo, LocalRevision, TwinChecker};
use crate::cache::state::LocalState;
use crate::error::Result;
use crate::progress::Event;
use crate::task::blocking;

/// The state of both sides.
#[derive(Debug)]
pub struct Survey {
    /// The cache.
    pub state: LocalState,
    /// The content of the cache that can be published.
    pub local: Local,
    /// The bucket. Every manifest and ref that the cache has as well is known, if it is in the bucket.
    pub remote: RemoteState,
}

/// Reads both sides.
///
/// # Errors
/// If the cache cannot be read at all, a requested repo is not in it, or a request fails. Invalid objects are part of the
/// result.
pub async fn survey(session: &Session, bucket: &Bucket, options: pushable::Options) -> Result<Survey> {
    session.progress.event(Event::Step("scanning the cache"));
    let root = session.config.cache.root.clone();
    compare(session, bucket, options, move || LocalState::scan(&root)).await
}

/// Reads both sides, of which the cache has been scanned already.
///
/// # Errors
/// As [`survey`].
pub async fn survey_scanned(
    session: &Session,
    bucket: &Bucket,
    options: pushable::Options,
    inventory: Inventory,
) -> Result<Survey> {
    session.progress.event(Event::Step("listing the bucket"));
    compare(session, bucket, options, || Ok(LocalState::new(inventory))).await
}

async fn compare(
    session: &Session,
    bucket: &Bucket,
    options: pushable::Options,
    scan: impl FnOnce() -> Result<LocalState> + Send + 'static,
) -> Result<Survey> {
    let scanned = blocking(move || {
        let state = scan()?;
        let local = pushable::gather(&state, &options)?;
        Ok((state, local))
    });
    let (scanned, listed) = tokio::join!(scanned, RemoteState::list(bucket, Scope::ALL));
    let (state, mut local) = scanned?;
    let remote = listed.map_err(|failure| bucket.explain_listing(failure))?;

    session.progress.event(Event::Step("comparing with the bucket"));
    read_counterparts(bucket, &remote, &local).await?;
    Ok(blocking(move || {
        find_twins(&mut local, &remote);
        Survey { state, local, remote }
    })
    .await)
}

fn revisions(local: &Local) -> impl Iterator<Item = (&LocalRepo, &LocalRevision)> {
    local.repos.iter().flat_map(|repo| repo.revisions.iter().map(move |revision| (repo, revision)))
}

/// Reads the bucket's manifests and refs of this cache's revisions and refs, if they differ from what this cache would
/// write.
async fn read_counterparts(bucket: &Bucket, remote: &RemoteState, local: &Local) -> Result<()> {
    let manifests = revisions(local).filter_map(|(repo, revision)| {
        let key = keys::manifest(&repo.name.id, &revision.commit);
        let is_proved = || revision.manifest.as_ref().is_some_and(|own| remote.prove_manifest(own));
        (remote.listed_manifest(&key).is_some() && !is_proved()).then_some(key)
    });
    remote.read_manifests(bucket, manifests).await?;

    let mut of_others = Vec::new();
    let mut differing = Vec::new();
    for repo in &local.repos {
        for (name, commit) in repo.all_refs() {
            for key in refs::keys_to_write(&repo.name, &name) {
                if remote.listed_ref(&key).is_some() && !remote.prove_ref(&key, commit) {
                    differing.push(key.clone());
                    if keys::is_shared_ref(&repo.name, &key) {
                        of_others.push((&repo.name.id, key));
                    }
                }
            }
        }
    }
    remote.read_refs(bucket, differing).await?;
    // If several repos may use a ref's key, the manifest that it leads to names its owner.
    let owners = of_others.into_iter().filter_map(|(id, key)| {
        let commit = remote.reference(&key)?.valid()?;
        Some(keys::manifest(id, &commit))
    });
    remote.read_manifests(bucket, owners).await
}

/// Finds files that the bucket's manifests know by another valid name: mirrors use the SHA-256 of files that the Hub names
/// by git's SHA-1. Hashes only files that differ in nothing else.
fn find_twins(local: &mut Local, remote: &RemoteState) {
    let mut twins = TwinChecker::default();
    let Local { layout, repos, .. } = local;
    for repo in repos {
        for revision in &mut repo.revisions {
            let key = keys::manifest(&repo.name.id, &revision.commit);
            let Some(stored) = remote.manifest(&key).and_then(Stored::valid) else { continue };
            // The listing has proved it.
            if revision.manifest.as_ref().is_some_and(|own| Arc::ptr_eq(&stored, own)) {
                continue;
            }
            let known: HashMap<_, _> = stored.files().iter().map(|file| (&file.path, file)).collect();
            for file in revision.files.iter_mut().filter(|file| file.other.is_none()) {
                let path = &file.file.path;
                let listed = known.get(path).map(|known| (known.blob, known.size));
                let in_tree = || stored.tree()?.get(path).map(|entry| (entry.blob, entry.size));
                if let Some((blob, size)) = listed.or_else(in_tree)
                    && size == file.file.size
                    && blob.may_be_twin(&file.file.blob)
                    && twins.is_twin(&file.file, || file.path(layout, &repo.name, &revision.commit), &blob)
                {
                    file.other = Some(blob);
                }
            }
        }
    }
}
