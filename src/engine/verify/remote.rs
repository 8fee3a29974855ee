//! Checks the bucket, and repairs it from the cache.
//!
//! One listing shows which blobs, manifests and refs exist; every manifest and ref is read. Anything missing from the
//! listing is checked once more, since another machine may be pushing. A repair uploads what this cache has, with the same
//! code as a push: every blob is hashed as it is sent, and nothing is deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::bucket::client::Bucket;
use crate::bucket::keys::{self, RefKey};
use crate::bucket::read::Stored;
use crate::bucket::refs::Candidate;
use crate::bucket::state::{RemoteState, Scope};
use crate::cache::inventory::{Inventory, SnapshotFile};
use crate::cache::scan;
use crate::cache::{gated, root};
use crate::engine::Session;
use crate::engine::confirm::{self, BlobStatus};
use crate::engine::publish::{self, ListingSizes};
use crate::engine::survey::{Survey, survey};
use crate::error::{Error, Result};
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, Commit, RefName, RepoId, RepoName, RepoSpec};
use crate::model::manifest::Manifest;
use crate::model::selection::Selection;
use crate::plan::push;
use crate::plan::verify::remote::{BlobFault, Facts, RefFault};
use crate::plan::verify::{Finding, Outcome, Place, Reason, Repair};
use crate::progress::{Event, Job};
use crate::suggest::did_you_mean;
use crate::task::blocking;
use crate::transfer::limit::Caps;
use crate::transfer::source::{Fetch, Source};
use crate::transfer::upload::Upload;
use crate::transfer::{Context, check, pool};

/// The result of a check.
#[derive(Debug, Default)]
pub struct Found {
    /// The facts to evaluate.
    pub facts: Facts,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Failed checks.
    pub failures: Vec<Error>,
}

/// Lists the bucket, and reads what is selected. With `deep`, every blob is read as well.
///
/// # Errors
/// If a listing fails, a manifest or ref cannot be read, or a requested repo or revision does not exist.
pub async fn check(session: &Session, bucket: &Bucket, only: &[RepoSpec], deep: Option<Caps>) -> Result<Found> {
    session.progress.event(Event::Step("listing the bucket"));
    let listed = RemoteState::list(bucket, Scope::ALL).await;
    let state = listed.map_err(|failure| bucket.explain_listing(failure))?;
    session.progress.event(Event::Step("reading manifests and refs"));
    let is_wanted = |encoded: &str| only.is_empty() || only.iter().any(|spec| keys::encoded(&spec.query.id) == encoded);
    let groups = state.manifests().iter().filter(|(encoded, _)| is_wanted(encoded));
    let manifests: Vec<String> =
        groups.flat_map(|(encoded, commits)| commits.keys().map(|commit| keys::manifest_of(encoded, commit))).collect();
    let may_be_of_other_team = |candidate: &&Candidate| {
        candidate.repo.is_none() && keys::may_be_of_other_team(&candidate.encoded, &candidate.name)
    };
    let (of_others, refs): (Vec<&Candidate>, Vec<&Candidate>) =
        state.refs().iter().filter(|candidate| is_wanted(&candidate.encoded)).partition(may_be_of_other_team);
    let refs: Vec<String> = refs.into_iter().map(|candidate| candidate.object.key.clone()).collect();
    state.read_manifests(bucket, manifests.iter().cloned()).await?;
    state.read_refs(bucket, refs.iter().cloned()).await?;

    let mut found = Found::default();
    for key in manifests {
        let manifest = match state.manifest(&key) {
            Some(Stored::Valid(manifest)) => Ok(manifest),
            Some(Stored::Invalid(error)) => Err(error.why.unwrap_or(error.what)),
            // It has been deleted since it was listed.
            Some(Stored::Absent) | None => continue,
        };
        found.facts.manifests.insert(key, manifest);
    }
    for key in refs {
        let fault = match state.reference(&key) {
            Some(Stored::Valid(commit)) => match find_fault(bucket, &state, &key, &commit).await? {
                Some(fault) => fault,
                None => continue,
            },
            Some(Stored::Invalid(error)) => RefFault::Bad(error.why.unwrap_or(error.what)),
            Some(Stored::Absent) | None => continue,
        };
        found.facts.refs.insert(key, fault);
    }
    select(bucket, &state, only, &mut found.facts)?;
    check_blobs(session, bucket, &state, deep, &mut found).await?;
    let foreign = state.foreign().keys + of_others.len();
    if foreign > 0 && only.is_empty() {
        found.notes.push(format!("{foreign} objects in the bucket do not belong to this cache and were not checked"));
    }
    Ok(found)
}

/// Returns the fault of a ref that names this commit. A manifest that was pushed after the listing counts.
async fn find_fault(bucket: &Bucket, state: &RemoteState, key: &str, commit: &Commit) -> Result<Option<RefFault>> {
    let Some(candidate) = state.listed_ref(key) else { return Ok(None) };
    let manifest = keys::manifest_of(&candidate.encoded, commit);
    // A key of 0.1.0 does not say which repo it belongs to.
    if candidate.repo.is_none() && state.listed_manifest(&manifest).is_some() {
        return Ok(None);
    }
    Ok(match state.read_manifest(bucket, &manifest).await? {
        Stored::Absent => Some(RefFault::Dangling(commit.clone())),
        Stored::Valid(manifest) if !candidate.may_refer_to(manifest.repo()) => {
            Some(RefFault::Foreign(commit.clone(), manifest.repo().clone()))
        }
        // A bad manifest is reported on its own.
        Stored::Valid(_) | Stored::Invalid(_) => None,
    })
}

/// Removes everything that was not requested. Several repos may share an encoded id.
///
/// # Errors
/// [`crate::error::Cause::NotFound`] if nothing matches a request.
fn select(bucket: &Bucket, state: &RemoteState, only: &[RepoSpec], facts: &mut Facts) -> Result<()> {
    if only.is_empty() {
        return Ok(());
    }
    let mut kept: BTreeSet<String> = BTreeSet::new();
    let mut kept_refs: BTreeSet<String> = BTreeSet::new();
    for spec in only {
        let encoded = keys::encoded(&spec.query.id);
        let commits = spec.revision.as_ref().map(|text| commits_of(state, &encoded, text));
        let is_requested = |key: &str| match (keys::parse_manifest(key), &commits) {
            (Some((of, commit)), Some(commits)) => of == encoded && commits.contains(&commit),
            (Some((of, _)), None) => of == encoded,
            (None, _) => false,
        };
        let is_of = |manifest: &Result<Arc<Manifest>, String>| match manifest {
            Ok(manifest) => spec.query.matches(manifest.repo()),
            Err(_) => true,
        };
        let manifests = facts.manifests.iter().filter(|(key, manifest)| is_requested(key) && is_of(manifest));
        let manifests: Vec<String> = manifests.map(|(key, _)| key.clone()).collect();
        let refs = facts.refs.keys().filter(|key| match keys::parse_ref(key) {
            Some(RefKey::Old(of, name)) => of == encoded && is_revision(spec, &name),
            Some(RefKey::New(repo, name)) => spec.query.matches(&repo) && is_revision(spec, &name),
            None => false,
        });
        let refs: Vec<String> = refs.cloned().collect();
        if manifests.is_empty() && refs.is_empty() {
            return Err(not_found(bucket, state, spec));
        }
        kept.extend(manifests);
        kept_refs.extend(refs);
    }
    facts.manifests.retain(|key, _| kept.contains(key));
    facts.refs.retain(|key, _| kept_refs.contains(key));
    Ok(())
}

fn is_revision(spec: &RepoSpec, name: &RefName) -> bool {
    spec.revision.as_ref().is_none_or(|text| text == name.as_str())
}

/// Returns the commits that a revision may mean: those of the refs with this name, or else those that begin with the text.
fn commits_of(state: &RemoteState, encoded: &str, text: &str) -> Vec<Commit> {
    let refs = state.refs().iter().filter(|candidate| candidate.encoded == encoded && candidate.name.as_str() == text);
    let named: Vec<Commit> = refs.filter_map(|candidate| state.reference(&candidate.object.key)?.valid()).collect();
    if !named.is_empty() || text.len() < 4 {
        return named;
    }
    let commits = state.manifests().get(encoded).into_iter().flat_map(BTreeMap::keys);
    commits.filter(|commit| commit.as_str().starts_with(text)).cloned().collect()
}

fn not_found(bucket: &Bucket, state: &RemoteState, spec: &RepoSpec) -> Error {
    let query = &spec.query;
    if state.commits(&query.id).next().is_some()
        && let Some(revision) = &spec.revision
    {
        let revision = crate::error::printable(revision, 100);
        return Error::not_found(format!("revision '{revision}' of {query} is not in bucket '{}'", bucket.name()))
            .hint("`hf-cache-sync list --remote --revisions` shows what is there");
    }
    let ids: Vec<RepoId> = state.manifests().keys().filter_map(|encoded| keys::plain_id(encoded)).collect();
    let close = did_you_mean(query.id.as_str(), ids.iter().map(RepoId::as_str));
    let error = Error::not_found(format!("{query} is not in bucket '{}'", bucket.name()));
    error.hint(close.unwrap_or_else(|| "`hf-cache-sync list --remote` shows what is there".into()))
}

/// Compares the blobs of the manifests with the listing and, with `deep`, their bytes with their names.
async fn check_blobs(
    session: &Session,
    bucket: &Bucket,
    state: &RemoteState,
    deep: Option<Caps>,
    found: &mut Found,
) -> Result<()> {
    let mut files: BTreeMap<(BlobId, u64), (&Manifest, &crate::model::ids::RepoPath)> = BTreeMap::new();
    for manifest in found.facts.manifests.values().flatten() {
        for file in manifest.files() {
            files.entry((file.blob, file.size)).or_insert((manifest, &file.path));
        }
    }
    let label = |manifest: &Manifest, path: &crate::model::ids::RepoPath| format!("{}/{path}", manifest.repo());
    let suspects = files.iter().filter(|((id, size), _)| !state.blobs().has(id, *size));
    let suspects: Vec<Upload> = suspects
        .map(|((id, size), (manifest, path))| Upload {
            id: *id,
            size: *size,
            source: PathBuf::new(),
            label: label(manifest, path),
        })
        .collect();
    let mut faults = BTreeMap::new();
    let mut unchecked = BTreeSet::new();
    if !suspects.is_empty() {
        session.progress.event(Event::Step("checking again what the listing lacks"));
        for unconfirmed in confirm::find_unconfirmed(bucket, suspects, state.blobs().len()).await? {
            let key = (unconfirmed.blob.id, unconfirmed.blob.size);
            match unconfirmed.status {
                BlobStatus::Missing => drop(faults.insert(key, BlobFault::Missing)),
                BlobStatus::WrongSize(size) => drop(faults.insert(key, BlobFault::Size(size))),
                BlobStatus::Unknown(failure) => {
                    let doing = format!("cannot check blob {} ({})", unconfirmed.blob.id, unconfirmed.blob.label);
                    found.failures.push(bucket.explain(failure, &doing));
                    unchecked.insert(key);
                }
            }
        }
    }
    if let Some(caps) = deep {
        let mut repos: HashMap<&RepoName, usize> = HashMap::new();
        let left = files.iter().filter(|(key, _)| !faults.contains_key(*key) && !unchecked.contains(*key));
        let mut jobs = Vec::new();
        let fetches: Vec<Fetch> = left
            .map(|((id, size), (manifest, path))| {
                let next = repos.len();
                jobs.push(Job { blob: *id, size: *size, repo: *repos.entry(manifest.repo()).or_insert(next) });
                Fetch {
                    id: *id,
                    size: *size,
                    repo: manifest.repo().clone(),
                    commit: manifest.revision().clone(),
                    path: (*path).clone(),
                    source: Source::Bucket(bucket.clone()),
                }
            })
            .collect();
        let context = session.transfers(bucket, caps, false);
        session.progress.event(Event::Planned(jobs));
        let mut failures = Vec::new();
        pool::run(
            fetches,
            &context.limits,
            // Each is read in one request, regardless of its size.
            |fetch: &Fetch| u64::from(context.cut().gets(fetch.size) > 0),
            |fetch| {
                let context = context.clone();
                async move {
                    let hashed = check::hash(&context, &fetch).await;
                    (fetch, hashed)
                }
            },
            |(fetch, hashed)| {
                let key = (fetch.id, fetch.size);
                match hashed {
                    Ok(name) if name == fetch.id => {}
                    Ok(name) => drop(faults.insert(key, BlobFault::Corrupt(name))),
                    Err(error) if check::is_about_the_blob(&error) => drop(faults.insert(key, BlobFault::Missing)),
                    Err(error) => {
                        failures.push(error);
                        unchecked.insert(key);
                    }
                }
            },
        )
        .await;
        found.failures.extend(failures);
    }
    found.facts.blobs = faults;
    found.facts.unchecked = unchecked;
    Ok(())
}

/// The result of a repair of the bucket.
#[derive(Debug, Default)]
pub struct Tally {
    /// Blobs uploaded.
    pub uploaded: Amount,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Failures.
    pub failures: Vec<Error>,
}

/// Hint for objects that this cache has no good copy of.
const NO_COPY_HINT: &str = "run the same command on a machine that has them, or get them here first with `hf-cache-sync pull --fallback hf-hub`";

/// Repairs everything that this cache has good copies of. Records the outcome in each finding.
///
/// # Errors
/// If the cache cannot be read at all.
pub async fn repair(
    session: &Session,
    bucket: &Bucket,
    caps: Caps,
    findings: &mut [Finding],
    dry_run: bool,
) -> Result<Tally> {
    findings.iter_mut().for_each(|finding| finding.outcome = Outcome::Left);
    if root::check(&session.config.cache.root, &session.config.cache.source).is_err() {
        let notes = vec![format!("there is no cache here to take good copies from: {NO_COPY_HINT}")];
        return Ok(Tally { notes, ..Tally::default() });
    }
    session.progress.event(Event::Step("looking for good copies"));
    let cache = session.config.cache.root.clone();
    let inventory = blocking(move || scan::scan(&cache)).await?;
    // A read-only cache can be a source without the lock, since no prune can run on it.
    let _lock = if dry_run { None } else { session.lock_shared().await.ok() };
    let context = session.transfers(bucket, caps, false);
    let mut run = Run { session, bucket, context, inventory: &inventory, findings, dry_run, tally: Tally::default() };
    run.upload_blobs().await?;
    run.push_revisions().await?;
    let lacks_copy = |finding: &Finding| {
        finding.outcome == Outcome::Left && matches!(finding.repair, Repair::Upload { .. } | Repair::Push { .. })
    };
    // Other notes and failures explain why an existing copy was not used.
    if run.tally.failures.is_empty() && run.tally.notes.is_empty() && run.findings.iter().any(lacks_copy) {
        run.tally.notes.push(format!("this cache has no good copies of the rest: {NO_COPY_HINT}"));
    }
    Ok(run.tally)
}

/// A repair in progress.
struct Run<'a> {
    session: &'a Session,
    bucket: &'a Bucket,
    context: Context,
    inventory: &'a Inventory,
    findings: &'a mut [Finding],
    dry_run: bool,
    tally: Tally,
}

impl Run<'_> {
    /// Uploads the blobs that are missing or bad, each from the first good copy in this cache.
    async fn upload_blobs(&mut self) -> Result<()> {
        let Run { session, bucket, context, inventory, findings, dry_run, tally } = self;
        let mut wanted: BTreeMap<(BlobId, u64), Vec<usize>> = BTreeMap::new();
        for (index, finding) in findings.iter().enumerate() {
            if let (Repair::Upload { size }, Some(blob)) = (&finding.repair, finding.blob) {
                wanted.entry((blob, *size)).or_default().push(index);
            }
        }
        let mut copies = find_copies(inventory, &wanted.keys().copied().collect());
        if !session.config.team.allow_gated {
            let gated = |repo: &RepoName| !matches!(gated::check_repo(&inventory.layout, repo), Ok(None));
            let judged: HashMap<RepoName, bool> =
                copies.values().flatten().map(|(repo, _)| (repo.clone(), gated(repo))).collect();
            copies.values_mut().for_each(|copies| copies.retain(|(repo, _)| !judged[repo]));
            let left_out: BTreeSet<&RepoName> =
                judged.iter().filter(|(_, gated)| **gated).map(|(repo, _)| repo).collect();
            let note = |repo: &&RepoName| format!("{repo} looks gated here, so its copies are not uploaded");
            tally.notes.extend(left_out.iter().map(note));
        }
        let mut unsure: Vec<(Upload, Vec<usize>)> = Vec::new();
        let mut failures: HashMap<BlobId, Error> = HashMap::new();
        for round in 0.. {
            let mut uploads = Vec::new();
            for ((id, size), indexes) in &wanted {
                let copy = copies.get(&(*id, *size)).and_then(|copies| copies.get(round));
                // If the store fails, another copy would fail, too.
                let is_open = findings[indexes[0]].outcome == Outcome::Left
                    && !unsure.iter().any(|(sent, _)| sent.id == *id)
                    && !failures.get(id).is_some_and(|error| error.cause.may_pass());
                let Some((repo, source)) = copy.filter(|_| is_open) else { continue };
                if *dry_run {
                    indexes.iter().for_each(|index| findings[*index].outcome = Outcome::Repairable);
                    continue;
                }
                let path = findings[indexes[0]].files.first().map(|file| file.path.to_string());
                let label = format!("{repo}/{}", path.unwrap_or_default());
                uploads.push(Upload { id: *id, size: *size, source: source.clone(), label });
            }
            if uploads.is_empty() {
                break;
            }
            let jobs = uploads.iter().map(|upload| Job { blob: upload.id, size: upload.size, repo: 0 });
            session.progress.event(Event::Planned(jobs.collect()));
            for (upload, failure) in publish::send_all(context, uploads).await {
                match failure {
                    None => {
                        let indexes = wanted[&(upload.id, upload.size)].clone();
                        failures.remove(&upload.id);
                        unsure.push((upload, indexes));
                    }
                    Some(error) => drop(failures.insert(upload.id, error)),
                }
            }
        }
        tally.failures.extend(failures.into_values());
        let sent: Vec<Upload> = unsure.iter().map(|(upload, _)| upload.clone()).collect();
        let lost = confirm::find_lost(bucket, sent).await;
        for (upload, indexes) in unsure {
            match lost.iter().find(|(blob, _)| blob.id == upload.id) {
                Some((_, error)) => tally.failures.push(error.clone()),
                None => {
                    tally.uploaded.add(context.moved_bytes(&upload.id, upload.size));
                    indexes.into_iter().for_each(|index| findings[index].outcome = Outcome::Repaired);
                }
            }
        }
        Ok(())
    }

    /// Pushes the revisions of this cache whose manifests or refs are bad or missing.
    async fn push_revisions(&mut self) -> Result<()> {
        let Run { session, bucket, context, inventory, findings, dry_run, tally } = self;
        let mut wanted: Vec<(usize, RepoName, Commit)> = Vec::new();
        for (index, finding) in findings.iter().enumerate() {
            let (Repair::Push { named }, Place::Key(key)) = (&finding.repair, &finding.place) else { continue };
            let manifest = keys::parse_manifest(key);
            let reference = keys::parse_ref(key);
            for repo in &inventory.repos {
                // The commit that the ref names in the bucket, or else in this cache.
                let current = |name: &RefName| {
                    named.as_ref().filter(|commit| repo.revisions.contains_key(*commit)).or(repo.refs.get(name))
                };
                let commit = match (&manifest, &reference) {
                    (Some((encoded, commit)), _) if *encoded == keys::encoded(&repo.name.id) => Some(commit),
                    (_, Some(RefKey::Old(encoded, name))) if *encoded == keys::encoded(&repo.name.id) => current(name),
                    (_, Some(RefKey::New(of, name))) if *of == repo.name => current(name),
                    _ => None,
                };
                if let Some(commit) = commit.filter(|commit| repo.revisions.contains_key(*commit)) {
                    wanted.push((index, repo.name.clone(), commit.clone()));
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let specs = wanted.iter().filter_map(|(_, repo, commit)| {
            format!("{}:{}@{commit}", repo.kind.word(), repo.id.as_str()).parse::<RepoSpec>().ok()
        });
        let options = session.push_options(Selection::of(specs.collect()));
        let Survey { local, remote, .. } = survey(session, bucket, options).await?;
        let plan = push::plan(&local, &remote);
        if *dry_run {
            for (index, repo, commit) in &wanted {
                if plan.revisions.iter().any(|revision| revision.repo == *repo && revision.commit == *commit) {
                    findings[*index].outcome = Outcome::Repairable;
                }
            }
            return Ok(());
        }
        let listed = ListingSizes { blobs: remote.blobs().len(), refs: remote.refs().len() };
        let done = publish::publish(context, &plan, listed).await;
        tally.uploaded += done.uploaded;
        // Blobs that could not be uploaded before have been tried again.
        let known: HashSet<String> = tally.failures.iter().map(Error::to_string).collect();
        tally.failures.extend(done.failures.into_iter().filter(|error| !known.contains(&error.to_string())));
        // The outcome depends on what is in the bucket now, not on what was sent.
        let listed = RemoteState::list(bucket, Scope::NAMES).await;
        let state = listed.map_err(|failure| bucket.explain_listing(failure))?;
        for (index, _, _) in &wanted {
            let finding = &mut findings[*index];
            let Place::Key(key) = finding.place.clone() else { continue };
            let is_good = match finding.reason {
                Reason::BadManifest => matches!(state.read_manifest(bucket, &key).await?, Stored::Valid(_)),
                _ => match state.read_ref(bucket, &key).await? {
                    Stored::Valid(commit) => find_fault(bucket, &state, &key, &commit).await?.is_none(),
                    Stored::Invalid(_) | Stored::Absent => false,
                },
            };
            if is_good {
                finding.outcome = Outcome::Repaired;
            }
        }
        Ok(())
    }
}

/// Returns the files in this cache that should have the bytes of these blobs.
fn find_copies(
    inventory: &Inventory,
    wanted: &BTreeSet<(BlobId, u64)>,
) -> HashMap<(BlobId, u64), Vec<(RepoName, PathBuf)>> {
    let mut copies: HashMap<(BlobId, u64), Vec<(RepoName, PathBuf)>> = HashMap::new();
    let mut identifier = crate::cache::identify::Identifier::default();
    for repo in &inventory.repos {
        for (id, blob) in &repo.blobs {
            if wanted.contains(&(*id, blob.size)) {
                let path = inventory.layout.blob(&repo.name, id);
                copies.entry((*id, blob.size)).or_default().push((repo.name.clone(), path));
            }
        }
        for (commit, revision) in &repo.revisions {
            let may_fit = |size: &u64| wanted.iter().any(|(_, wanted)| wanted == size);
            let has_real =
                revision.files.values().any(|file| matches!(file, SnapshotFile::Real(file) if may_fit(&file.size)));
            if !has_real {
                continue;
            }
            for local in identifier.files(&inventory.layout, repo, commit, None).files {
                for name in [Some(local.file.blob), local.other].into_iter().flatten() {
                    if wanted.contains(&(name, local.file.size)) {
                        let path = local.path(&inventory.layout, &repo.name, commit);
                        copies.entry((name, local.file.size)).or_default().push((repo.name.clone(), path));
                    }
                }
            }
        }
    }
    copies
}
