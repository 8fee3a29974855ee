//! Finds a revision in the bucket: its repo, commit and manifest. Which ref keys count: [`super::refs`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::client::Bucket;
use super::keys;
use super::read::{self, Stored};
use super::refs::Candidate;
use super::state::{RemoteState, Scope};
use crate::error::{Cause, Error, Result, printable};
use crate::model::found::Found;
use crate::model::ids::{Commit, RefName, RepoId, RepoQuery, RepoType};
use crate::model::manifest::Manifest;
use crate::model::selection::ambiguous_commit;
use crate::suggest::did_you_mean;

/// The hint when the bucket does not have a revision.
const FALLBACK_HINT: &str = "`--fallback hf-hub` downloads from the Hub instead";
/// Maximum number of manifests to read to find out which repo types an id has.
const MAX_TYPE_PROBES: usize = 8;

/// A repo to search for, and what the bucket has under its keys.
struct Search<'a> {
    bucket: &'a Bucket,
    query: &'a RepoQuery,
    state: RemoteState,
}

/// Finds `revision` (a branch, tag, PR ref, commit or short commit; by default `main`) of a repo.
///
/// # Errors
/// [`crate::error::Cause::NotFound`] with the closest names or the available revisions,
/// [`crate::error::Cause::Usage`] if several repo types or commits match, [`crate::error::Cause::Invalid`] if the ref or
/// manifest is not valid.
pub async fn find(bucket: &Bucket, query: &RepoQuery, revision: Option<&str>) -> Result<Found> {
    let failure = match find_as_typed(bucket, query, revision).await {
        Err(failure) if failure.cause.is_missing() => failure,
        found => return found,
    };
    // The Hub ignores the case of ids; keys are case-sensitive.
    let Some(id) = id_in_other_case(bucket, query).await else { return Err(failure) };
    let note = format!("{} is {id} in bucket '{}'", query.id, bucket.name());
    let mut found = find_as_typed(bucket, &RepoQuery { id, ..query.clone() }, revision).await?;
    found.notes.push(note);
    Ok(found)
}

/// Returns the only id in the bucket that differs from this one in nothing but case.
async fn id_in_other_case(bucket: &Bucket, query: &RepoQuery) -> Option<RepoId> {
    let state = RemoteState::list(bucket, Scope::MANIFESTS).await.ok()?;
    let wanted = keys::encoded(&query.id);
    let found: Vec<&String> =
        state.manifests().keys().filter(|encoded| encoded.eq_ignore_ascii_case(&wanted)).collect();
    match found.as_slice() {
        [one] if **one != wanted => {
            let ids = keys::possible_ids(one).into_iter();
            let mut ids = ids.filter(|id| id.as_str().eq_ignore_ascii_case(query.id.as_str()));
            ids.next()
        }
        _ => None,
    }
}

async fn find_as_typed(bucket: &Bucket, query: &RepoQuery, revision: Option<&str>) -> Result<Found> {
    let doing = format!("cannot look up {query} in bucket '{}'", bucket.name());
    // The ref is most likely under 0.1.0's key, which all versions know: read it while the listings are in flight.
    let text = revision.unwrap_or("main");
    let name = text.parse::<RefName>().ok().filter(|_| text.parse::<Commit>().is_err());
    let likely_key = name.map(|name| keys::old_ref(&query.id, &name));
    let prefetch = async { Some((likely_key.clone()?, read::reference(bucket, likely_key.as_ref()?).await.ok()?)) };
    let (listed, prefetched) = tokio::join!(RemoteState::list_repo(bucket, query), prefetch);
    let state = listed.map_err(|failure| bucket.explain(failure, &doing))?;
    if let Some((key, stored @ Stored::Valid(_))) = prefetched {
        state.keep_ref(&key, stored);
    }
    Search { bucket, query, state }.find(revision).await
}

/// The target of a ref.
#[derive(Default)]
struct Targets<'a> {
    /// For each repo type, the ref key that takes precedence and the manifest it leads to.
    found: BTreeMap<RepoType, (&'a Candidate, Arc<Manifest>)>,
    errors: Vec<Error>,
}

impl Search<'_> {
    async fn find(&self, revision: Option<&str>) -> Result<Found> {
        let query = self.query;
        if let Some(commit) = revision.and_then(|text| text.parse::<Commit>().ok()) {
            return self.by_commit(commit).await;
        }
        let name: RefName = match revision {
            None => RefName::main(),
            Some(text) => text
                .parse()
                .map_err(|e| Error::usage(format!("invalid revision for {query}")).because(format!("{e}")))?,
        };
        let targets = self.by_ref(&name).await?;
        if !targets.found.is_empty() {
            return self.choose_type(targets, name);
        }
        if let Some(error) = targets.errors.into_iter().next() {
            return Err(error);
        }
        let matches = |commit: &&Commit| name.as_str().len() >= 4 && commit.as_str().starts_with(name.as_str());
        let commits: Vec<&Commit> = self.commits().filter(matches).collect();
        match commits.as_slice() {
            [] => Err(self.not_found(revision).await),
            [commit] => self.by_commit((*commit).clone()).await,
            several => Err(ambiguous_commit(name.as_str(), query, several)),
        }
    }

    fn commits(&self) -> impl Iterator<Item = &Commit> {
        self.state.commits(&self.query.id)
    }

    /// Reads the manifest of a commit; `None` if there is none, or if it belongs to another repo that shares the key.
    async fn manifest(&self, query: &RepoQuery, commit: &Commit) -> Result<Option<Arc<Manifest>>> {
        let stored = self.state.read_manifest(self.bucket, &keys::manifest(&query.id, commit)).await?;
        Ok(stored.checked()?.filter(|manifest| query.matches(manifest.repo())))
    }

    async fn by_commit(&self, commit: Commit) -> Result<Found> {
        let is_listed = self.commits().any(|listed| *listed == commit);
        let manifest = if is_listed { self.manifest(self.query, &commit).await? } else { None };
        match manifest {
            Some(manifest) => Ok(self.found(manifest, None)),
            None => Err(self.not_found(Some(commit.as_str())).await),
        }
    }

    fn found(&self, manifest: Arc<Manifest>, reference: Option<RefName>) -> Found {
        let kind = manifest.repo().kind;
        let notes = match self.query.kind {
            None if kind != RepoType::Model => vec![format!("{} is a {kind}", self.query.id)],
            _ => Vec::new(),
        };
        // Whether the revision has a ref named after its commit.
        let pinned = self.state.refs().iter().any(|candidate| {
            candidate.name.as_str() == manifest.revision().as_str() && candidate.may_refer_to(manifest.repo())
        });
        let listed = self.state.listed_manifest(&keys::manifest(&manifest.repo().id, manifest.revision()));
        let modified = listed.and_then(|entry| entry.modified);
        Found { manifest: Arc::unwrap_or_clone(manifest), reference, pinned, modified, notes }
    }

    /// Follows all keys of the ref.
    async fn by_ref(&self, name: &RefName) -> Result<Targets<'_>> {
        let mut targets = Targets::default();
        for candidate in self.state.refs().iter().filter(|candidate| candidate.name == *name) {
            match self.follow(candidate).await {
                Ok(Some(manifest)) if candidate.may_refer_to(manifest.repo()) => {
                    let kind = manifest.repo().kind;
                    if targets.found.get(&kind).is_none_or(|(known, _)| candidate.supersedes(known)) {
                        targets.found.insert(kind, (candidate, manifest));
                    }
                }
                Ok(_) => {}
                Err(error) if error.cause.is_invalid() => targets.errors.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(targets)
    }

    async fn follow(&self, candidate: &Candidate) -> Result<Option<Arc<Manifest>>> {
        match self.state.read_ref(self.bucket, &candidate.object.key).await?.checked()? {
            Some(commit) => self.manifest(self.query, &commit).await,
            None => Ok(None),
        }
    }

    /// Chooses the model with that id, or else the only repo with it.
    fn choose_type(&self, mut targets: Targets<'_>, name: RefName) -> Result<Found> {
        let query = self.query;
        let kind = match targets.found.keys().copied().collect::<Vec<_>>().as_slice() {
            [only] => *only,
            kinds if kinds.contains(&RepoType::Model) => RepoType::Model,
            kinds => {
                let choices: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
                return Err(Error::usage(format!("{query} is ambiguous"))
                    .because(format!("the bucket has a {} with that id", choices.join(" and a ")))
                    .hint(format!("say which one with --repo-type {}", choices.join(" or --repo-type "))));
            }
        };
        let (_, manifest) = targets.found.remove(&kind).expect("its key was just listed");
        let mut found = self.found(manifest, Some(name));
        found.notes.extend(targets.errors.iter().map(|error| format!("{error}")));
        Ok(found)
    }

    /// Returns the repo types that the id has in the bucket, if the requested one is not among them.
    async fn other_types(&self) -> Vec<RepoType> {
        let any = RepoQuery { kind: None, ..self.query.clone() };
        let mut kinds = Vec::new();
        for commit in self.commits().take(MAX_TYPE_PROBES) {
            if let Ok(Some(manifest)) = self.manifest(&any, commit).await
                && !kinds.contains(&manifest.repo().kind)
            {
                kinds.push(manifest.repo().kind);
            }
        }
        if self.query.kind.is_none_or(|wanted| kinds.contains(&wanted)) { Vec::new() } else { kinds }
    }

    async fn not_found(&self, revision: Option<&str>) -> Error {
        let (query, bucket) = (self.query, self.bucket);
        if let [kind, ..] = self.other_types().await[..] {
            return Error::not_found(format!("{query} is not in bucket '{}'", bucket.name()))
                .because(format!("{} is a {kind} there", query.id))
                .hint(format!("request it with --repo-type {0}, or as {0}:{1}", kind.word(), query.id));
        }
        let mut available: Vec<String> = self.state.refs().iter().map(|candidate| candidate.name.to_string()).collect();
        available.sort();
        available.dedup();
        let is_dangling = available.iter().any(|name| name == revision.unwrap_or("main"));
        if is_dangling {
            available.clear();
        }
        available.extend(self.commits().map(|commit| commit.short().to_string()));
        if self.commits().next().is_some() {
            let shown = printable(revision.unwrap_or("main"), 100);
            let more = if available.len() > 12 { " …" } else { "" };
            available.truncate(12);
            let why = match is_dangling {
                true => {
                    format!("its ref leads to no manifest of {query}; the bucket has {}{more}", available.join(", "))
                }
                false => format!("it has {}{more}", available.join(", ")),
            };
            let what = format!("revision '{shown}' of {query} is not in bucket '{}'", bucket.name());
            return Error::new(Cause::NoSuchRevision, what)
                .because(why)
                .hint(format!("choose one with -r, or push it from a machine that has it; {FALLBACK_HINT}"));
        }
        let error = Error::not_found(format!("{query} is not in bucket '{}'", bucket.name()));
        let Ok(all) = RemoteState::list(bucket, Scope::MANIFESTS).await else { return error };
        let encoded = all.manifests().keys();
        let mut names: Vec<String> =
            encoded.map(|text| keys::plain_id(text).map_or_else(|| text.clone(), |id| id.to_string())).collect();
        names.sort();
        names.dedup();
        error.hint(match (did_you_mean(query.id.as_str(), names.iter().map(String::as_str)), names.len()) {
            (Some(question), _) => format!("{question} {FALLBACK_HINT}"),
            (None, 0) => format!(
                "the bucket has no manifests under this prefix: push first, or check team.prefix; {FALLBACK_HINT}"
            ),
            (None, count) => {
                format!("repos in the bucket: {count}, see `hf-cache-sync list --remote`; {FALLBACK_HINT}")
            }
        })
    }
}
