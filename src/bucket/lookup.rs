//! Finding a revision in the bucket: which repo, which commit, which manifest. Which ref keys count: [`super::refs`].

use std::collections::BTreeMap;

use futures_util::future::{try_join_all, try_join3};

use super::client::Bucket;
use super::error::Failure;
use super::keys;
use super::refs::Candidate;
use crate::error::{Error, Result, printable};
use crate::model::found::Found;
use crate::model::ids::{Commit, RefName, RepoId, RepoName, RepoQuery, RepoType};
use crate::model::manifest::Manifest;
use crate::suggest::nearest;

/// Largest manifest that is read, in bytes.
pub const MAX_MANIFEST: u64 = 256 << 20;
/// Largest ref that is read, in bytes.
const MAX_REF: u64 = 256;
/// What helps when the bucket lacks a revision.
const INSTEAD: &str = "`--fallback hf-hub` downloads from the Hub instead";

/// What the bucket lists for one id.
#[derive(Debug, Default)]
struct Listing {
    commits: Vec<Commit>,
    /// 0.1.0's first.
    refs: Vec<Candidate>,
}

impl Listing {
    /// Whether there is a ref of this revision that is called like its commit.
    fn pins(&self, manifest: &Manifest) -> bool {
        let mut refs = self.refs.iter();
        refs.any(|one| one.name.as_str() == manifest.revision.as_str() && one.may_mean(&manifest.repo))
    }
}

/// Finds `revision` (a branch, tag, PR ref, commit or short commit; `main` when none) of a repo.
///
/// # Errors
/// [`crate::error::Kind::NotFound`] with the nearest names or the revisions that are there,
/// [`crate::error::Kind::Usage`] when several types or commits fit, [`crate::error::Kind::Integrity`] when what is
/// found is not valid.
pub async fn find(bucket: &Bucket, query: &RepoQuery, revision: Option<&str>) -> Result<Found> {
    let failure = match find_as_typed(bucket, query, revision).await {
        Err(failure) if failure.kind == crate::error::Kind::NotFound => failure,
        found => return found,
    };
    // The Hub takes ids in any case, keys do not.
    let Some(id) = id_in_other_case(bucket, query).await else { return Err(failure) };
    let note = format!("{} is {id} in bucket '{}'", query.id, bucket.name());
    let mut found = find_as_typed(bucket, &RepoQuery { id, ..query.clone() }, revision).await?;
    found.notes.push(note);
    Ok(found)
}

/// The only id of the bucket that differs from this one by upper and lower case alone.
async fn id_in_other_case(bucket: &Bucket, query: &RepoQuery) -> Option<RepoId> {
    let objects = bucket.list(keys::MANIFESTS).await.ok()?;
    let wanted = keys::encoded(&query.id);
    let mut found: Vec<&str> = objects.iter().filter_map(|object| Some(keys::parse_manifest(&object.key)?.0)).collect();
    found.retain(|encoded| encoded.eq_ignore_ascii_case(&wanted));
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [one] if *one != wanted => {
            let ids = keys::possible_ids(one).into_iter();
            let mut ids = ids.filter(|id| id.as_str().eq_ignore_ascii_case(query.id.as_str()));
            ids.next()
        }
        _ => None,
    }
}

async fn find_as_typed(bucket: &Bucket, query: &RepoQuery, revision: Option<&str>) -> Result<Found> {
    let doing = format!("cannot look up {query} in bucket '{}'", bucket.name());
    // Most likely the ref is under the key that all versions know: it is read while the listings are under way.
    let text = revision.unwrap_or("main");
    let name = text.parse::<RefName>().ok().filter(|_| text.parse::<Commit>().is_err());
    let likely = name.map(|name| keys::old_ref(&query.id, &name));
    let early = async { Some((likely.clone()?, read_ref(bucket, likely.as_ref()?).await.ok()??)) };
    let (listing, early) = tokio::join!(list(bucket, query), early);
    let listing = listing.map_err(|failure| bucket.explain(failure, &doing))?;
    if let Some(commit) = revision.and_then(|text| text.parse::<Commit>().ok()) {
        return by_commit(bucket, query, &listing, commit, None).await;
    }
    let name: RefName = match revision {
        None => RefName::main(),
        Some(text) => {
            text.parse().map_err(|e| Error::usage(format!("invalid revision for {query}")).because(format!("{e}")))?
        }
    };
    let search = by_ref(bucket, query, &listing, &name, early).await?;
    if !search.found.is_empty() {
        return choose_type(query, &listing, search, name);
    }
    if let Some(error) = search.errors.into_iter().next() {
        return Err(error);
    }
    let fits = |commit: &&Commit| name.as_str().len() >= 4 && commit.as_str().starts_with(name.as_str());
    let commits: Vec<&Commit> = listing.commits.iter().filter(fits).collect();
    match commits.as_slice() {
        [] => Err(not_found(bucket, query, &listing, revision).await),
        [commit] => by_commit(bucket, query, &listing, (*commit).clone(), None).await,
        several => Err(Error::usage(format!("'{name}' is ambiguous in {query}"))
            .because(format!("it fits {}", several.iter().map(|c| c.as_str()).collect::<Vec<_>>().join(", ")))
            .hint("give more digits")),
    }
}

async fn list(bucket: &Bucket, query: &RepoQuery) -> Result<Listing, Failure> {
    let kinds = RepoType::ALL.into_iter().filter(|kind| query.kind.is_none_or(|wanted| wanted == *kind));
    let prefixes: Vec<String> = kinds.map(|kind| keys::new_refs_of(&RepoName::new(kind, query.id.clone()))).collect();
    let new_refs = try_join_all(prefixes.iter().map(|prefix| bucket.list(prefix)));
    let manifests = keys::manifests_of(&query.id);
    let old_refs = keys::old_refs_of(&query.id);
    let (manifests, old, new) = try_join3(bucket.list(&manifests), bucket.list(&old_refs), new_refs).await?;

    let mut listing = Listing::default();
    listing.commits.extend(manifests.iter().filter_map(|object| Some(keys::parse_manifest(&object.key)?.1)));
    listing.refs.extend(old.into_iter().chain(new.into_iter().flatten()).filter_map(Candidate::of));
    Ok(listing)
}

/// Reads the manifest of a commit; `None` when there is none, or when it is of another repo that shares the key.
async fn manifest_of(bucket: &Bucket, query: &RepoQuery, commit: &Commit) -> Result<Option<Manifest>> {
    let manifest = read_manifest(bucket, &keys::manifest(&query.id, commit)).await?;
    Ok(manifest.filter(|manifest| query.matches(&manifest.repo)))
}

/// Reads and validates the manifest under a key; `None` when the key is not there.
///
/// # Errors
/// [`crate::error::Kind::Integrity`] when it is not valid, or belongs to another key.
pub async fn read_manifest(bucket: &Bucket, key: &str) -> Result<Option<Manifest>> {
    Ok(read_manifest_and_etag(bucket, key).await?.map(|(manifest, _)| manifest))
}

/// The same, with the object's ETag, when the store tells it.
///
/// # Errors
/// As [`read_manifest`].
pub async fn read_manifest_and_etag(bucket: &Bucket, key: &str) -> Result<Option<(Manifest, Option<String>)>> {
    let doing = format!("cannot read {key}");
    let small = bucket.get_small(key, MAX_MANIFEST).await.map_err(|failure| bucket.explain(failure, &doing))?;
    let Some(small) = small else { return Ok(None) };
    let bad = |why: String| {
        Error::integrity(format!("the manifest {key} is not valid"))
            .because(why)
            .hint("push the revision again from a machine that has it")
    };
    let manifest = Manifest::parse(&small.bytes).map_err(bad)?;
    let own_key = keys::manifest(&manifest.repo.id, &manifest.revision);
    if own_key != key {
        return Err(bad(format!("it says that it is {}@{}", manifest.repo, manifest.revision)));
    }
    Ok(Some((manifest, small.etag)))
}

async fn by_commit(
    bucket: &Bucket,
    query: &RepoQuery,
    listing: &Listing,
    commit: Commit,
    reference: Option<RefName>,
) -> Result<Found> {
    let manifest = match listing.commits.contains(&commit) {
        true => manifest_of(bucket, query, &commit).await?,
        false => None,
    };
    match manifest {
        Some(manifest) => {
            let notes = type_note(query, manifest.repo.kind);
            let pinned = listing.pins(&manifest);
            Ok(Found { manifest, reference, pinned, notes })
        }
        None => Err(not_found(bucket, query, listing, Some(commit.as_str())).await),
    }
}

#[derive(Default)]
struct Search<'a> {
    /// Per type, the candidate that wins, and where it leads.
    found: BTreeMap<RepoType, (&'a Candidate, Manifest)>,
    errors: Vec<Error>,
}

/// Follows the keys that the ref may have; `early` is one that has been read already.
async fn by_ref<'a>(
    bucket: &Bucket,
    query: &RepoQuery,
    listing: &'a Listing,
    name: &RefName,
    early: Option<(String, Commit)>,
) -> Result<Search<'a>> {
    let mut search = Search::default();
    for candidate in listing.refs.iter().filter(|candidate| candidate.name == *name) {
        let read = match &early {
            Some((known, commit)) if *known == candidate.object.key => Ok(Some(commit.clone())),
            _ => read_ref(bucket, &candidate.object.key).await,
        };
        let manifest = match read {
            Ok(Some(commit)) => manifest_of(bucket, query, &commit).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match manifest {
            Ok(Some(manifest)) if candidate.may_mean(&manifest.repo) => {
                let kind = manifest.repo.kind;
                if search.found.get(&kind).is_none_or(|(known, _)| candidate.outdoes(known)) {
                    search.found.insert(kind, (candidate, manifest));
                }
            }
            Ok(_) => {}
            Err(error) if error.kind == crate::error::Kind::Integrity => search.errors.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok(search)
}

/// Reads a ref; `None` when the key is not there.
///
/// # Errors
/// [`crate::error::Kind::Integrity`] when its content is no commit hash.
pub async fn read_ref(bucket: &Bucket, key: &str) -> Result<Option<Commit>> {
    let doing = format!("cannot read {key}");
    let small = bucket.get_small(key, MAX_REF).await.map_err(|failure| bucket.explain(failure, &doing))?;
    let Some(small) = small else { return Ok(None) };
    let text = String::from_utf8_lossy(&small.bytes);
    match text.trim().parse() {
        Ok(commit) => Ok(Some(commit)),
        Err(why) => Err(Error::integrity(format!("the ref {key} in the bucket is not valid"))
            .because(why.to_string())
            .hint("push the repo again from a machine that has it, or pull a commit with -r")),
    }
}

/// What is stored but not valid counts as not stored.
///
/// # Errors
/// All others.
pub fn if_valid<T>(read: Result<Option<T>>) -> Result<Option<T>> {
    match read {
        Err(error) if error.kind == crate::error::Kind::Integrity => Ok(None),
        read => read,
    }
}

fn type_note(query: &RepoQuery, kind: RepoType) -> Vec<String> {
    match query.kind {
        None if kind != RepoType::Model => vec![format!("{} is a {kind}", query.id)],
        _ => Vec::new(),
    }
}

/// The model of that id, else the only other type that has it.
fn choose_type(query: &RepoQuery, listing: &Listing, mut search: Search<'_>, name: RefName) -> Result<Found> {
    let kind = match search.found.keys().copied().collect::<Vec<_>>().as_slice() {
        [only] => *only,
        kinds if kinds.contains(&RepoType::Model) => RepoType::Model,
        kinds => {
            let choices: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
            return Err(Error::usage(format!("{query} is ambiguous"))
                .because(format!("the bucket has a {} of that id", choices.join(" and a ")))
                .hint(format!("say which one with --repo-type {}", choices.join(" or --repo-type "))));
        }
    };
    let (_, manifest) = search.found.remove(&kind).expect("its key was just listed");
    let mut notes = type_note(query, kind);
    notes.extend(search.errors.iter().map(|error| format!("{error}")));
    let pinned = listing.pins(&manifest);
    Ok(Found { manifest, reference: Some(name), pinned, notes })
}

/// Manifests of an id that are read to find out what types it has.
const TYPES_FROM: usize = 8;

/// The types that an id has in the bucket, when none of them is the one that was asked for.
async fn other_types(bucket: &Bucket, query: &RepoQuery, listing: &Listing) -> Vec<RepoType> {
    let any = RepoQuery { kind: None, ..query.clone() };
    let mut kinds = Vec::new();
    for commit in listing.commits.iter().take(TYPES_FROM) {
        if let Ok(Some(manifest)) = manifest_of(bucket, &any, commit).await
            && !kinds.contains(&manifest.repo.kind)
        {
            kinds.push(manifest.repo.kind);
        }
    }
    if query.kind.is_none_or(|wanted| kinds.contains(&wanted)) { Vec::new() } else { kinds }
}

async fn not_found(bucket: &Bucket, query: &RepoQuery, listing: &Listing, revision: Option<&str>) -> Error {
    if let [kind, ..] = other_types(bucket, query, listing).await[..] {
        return Error::not_found(format!("{query} is not in bucket '{}'", bucket.name()))
            .because(format!("{} is a {kind} there", query.id))
            .hint(format!("ask for it with --repo-type {0}, or as {0}:{1}", kind.word(), query.id));
    }
    let mut there: Vec<String> = listing.refs.iter().map(|candidate| candidate.name.to_string()).collect();
    there.sort();
    there.dedup();
    let leads_nowhere = there.iter().any(|name| name == revision.unwrap_or("main"));
    if leads_nowhere {
        there.clear();
    }
    there.extend(listing.commits.iter().map(|commit| commit.short().to_string()));
    if !listing.commits.is_empty() {
        let shown = printable(revision.unwrap_or("main"), 100);
        let more = if there.len() > 12 { " …" } else { "" };
        there.truncate(12);
        let why = match leads_nowhere {
            true => format!("its ref leads to no manifest of {query}; the bucket has {}{more}", there.join(", ")),
            false => format!("it has {}{more}", there.join(", ")),
        };
        return Error::not_found(format!("revision '{shown}' of {query} is not in bucket '{}'", bucket.name()))
            .because(why)
            .hint(format!("choose one with -r, or push it from a machine that has it; {INSTEAD}"));
    }
    let error = Error::not_found(format!("{query} is not in bucket '{}'", bucket.name()));
    let Ok(objects) = bucket.list(keys::MANIFESTS).await else { return error };
    let encoded = objects.iter().filter_map(|object| Some(keys::parse_manifest(&object.key)?.0));
    let mut names: Vec<String> =
        encoded.map(|text| keys::plain_id(text).map_or_else(|| text.to_string(), |id| id.to_string())).collect();
    names.sort();
    names.dedup();
    let close: Vec<&str> = nearest(query.id.as_str(), names.iter().map(String::as_str)).take(3).collect();
    match (close.is_empty(), names.len()) {
        (_, 0) => error.hint(format!(
            "the bucket has no manifests under this prefix: push first, or check team.prefix; {INSTEAD}"
        )),
        (true, count) => {
            error.hint(format!("repos in the bucket: {count}, see `hf-cache-sync list --remote`; {INSTEAD}"))
        }
        (false, _) => error.hint(format!("did you mean {}? {INSTEAD}", close.join(", "))),
    }
}
