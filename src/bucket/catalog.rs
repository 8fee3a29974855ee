//! The bucket's repos, with their revisions and refs.
//!
//! The catalog is built from a [`RemoteState`], whose keys say nearly everything. One LIST of manifests and one of refs
//! suffice where a manifest's key can belong to only one repo. Manifests are read, concurrently, where it may belong to
//! several:
//!
//! - if the encoded id decodes to no id or to more than one (`a___b`), or
//! - if `refs-v2/` names a repo with the same encoding: a dataset with that id, or `a__b` next to `a/b`.
//!
//! Every other manifest counts as a model's. A dataset that only 0.1.0 has pushed is therefore listed as a model: 0.1.0
//! writes the type only to the manifest, which [`Options::every_manifest`] reads.
//!
//! Refs need no GET either where the store's ETag is the MD5 of the content: it is compared with the MD5 of the repo's
//! commits. Which repos a ref key may refer to: [`super::refs`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::client::Bucket;
use super::keys;
use super::read::Stored;
use super::refs::Candidate;
use super::state::RemoteState;
use crate::error::{Error, Result};
use crate::hash::md5_hex;
use crate::model::ids::{Commit, RefName, RepoId, RepoName, RepoType};
use crate::model::manifest::Manifest;

/// The keys to read in addition to ambiguous ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Every manifest, for the types, files and sizes of all repos, including those that 0.1.0 pushed.
    pub every_manifest: bool,
    /// Every ref whose commit does not follow from the listing.
    pub every_ref: bool,
}

/// The bucket's repos.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Repos with at least one manifest.
    pub repos: BTreeMap<RepoName, Repo>,
    /// Manifests and refs that are not valid.
    pub failures: Vec<Error>,
    /// Number of keys that this tool does not recognize, outside `blobs/`.
    pub foreign: usize,
}

/// One repo.
#[derive(Debug, Default)]
pub struct Repo {
    /// Its revisions.
    pub revisions: BTreeMap<Commit, Revision>,
    /// Its refs. A ref that is known to lead to none of its revisions is left out.
    pub refs: BTreeMap<RefName, Ref>,
}

/// One revision.
#[derive(Debug)]
pub struct Revision {
    /// When its manifest was written, by the store's clock.
    pub modified: Option<SystemTime>,
    /// Its manifest, if it was read.
    pub manifest: Option<Arc<Manifest>>,
}

/// A ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// Its key.
    pub key: String,
    /// The revision that it points to; `None` if unknown without a GET.
    pub commit: Option<Commit>,
    /// When it was written, by the store's clock.
    pub modified: Option<SystemTime>,
}

impl Repo {
    /// Returns the revision that was pushed last.
    pub fn latest(&self) -> Option<&Commit> {
        self.revisions.iter().max_by_key(|(_, revision)| revision.modified).map(|(commit, _)| commit)
    }

    /// Returns the refs that point to this revision.
    pub fn refs_to<'a>(&'a self, commit: &'a Commit) -> impl Iterator<Item = &'a RefName> {
        self.refs.iter().filter(move |(_, reference)| reference.commit.as_ref() == Some(commit)).map(|(name, _)| name)
    }
}

/// Returns the encoded ids of the repos that `refs-v2/` names.
fn ids_in_new_refs(state: &RemoteState) -> BTreeSet<&str> {
    let named = state.refs().iter().filter(|candidate| candidate.repo.is_some());
    named.map(|candidate| candidate.encoded.as_str()).collect()
}

/// Returns the id of the model that manifests with this encoded id belong to; `None` if they have to be read to find out.
fn unambiguous_model(encoded: &str, in_new_refs: &BTreeSet<&str>) -> Option<RepoId> {
    keys::plain_id(encoded).filter(|_| !in_new_refs.contains(encoded))
}

/// Returns the keys of the manifests to read.
fn manifests_to_read(state: &RemoteState, options: Options) -> Vec<String> {
    let in_new_refs = ids_in_new_refs(state);
    let needs_read = |encoded: &str| options.every_manifest || unambiguous_model(encoded, &in_new_refs).is_none();
    let groups = state.manifests().iter().filter(|(encoded, _)| needs_read(encoded));
    groups.flat_map(|(encoded, commits)| commits.keys().map(move |commit| keys::manifest_of(encoded, commit))).collect()
}

/// Builds the catalog, reading what is ambiguous and what the options request.
///
/// `known` are the keys of manifests that the caller has read; the caller also reports those that are not valid.
///
/// # Errors
/// If a request fails. Invalid manifests and refs are reported in [`Catalog::failures`].
pub async fn read(bucket: &Bucket, state: &RemoteState, known: HashSet<String>, options: Options) -> Result<Catalog> {
    let wanted: Vec<String> =
        manifests_to_read(state, options).into_iter().filter(|key| !known.contains(key)).collect();
    state.read_manifests(bucket, wanted.iter().cloned()).await?;
    let mut failures: Vec<Error> = wanted.iter().filter_map(|key| error(state.manifest(key)?)).collect();
    let mut used = known;
    used.extend(wanted);
    let mut catalog = revisions(state, &used);

    let read_refs = catalog.refs_to_read(state, options);
    state.read_refs(bucket, read_refs.iter().cloned()).await?;
    failures.extend(read_refs.iter().filter_map(|key| error(state.reference(key)?)));
    catalog.add_refs(state, &read_refs);
    failures.sort_by(|a, b| a.what.cmp(&b.what));
    catalog.failures = failures;
    Ok(catalog)
}

/// Returns what is wrong with invalid content. Apart from being reported, it counts as absent.
fn error<T>(stored: Stored<T>) -> Option<Error> {
    match stored {
        Stored::Invalid(error) => Some(error),
        Stored::Valid(_) | Stored::Absent => None,
    }
}

/// Assigns every manifest to its repo. `used` are the keys of the manifests that were read.
fn revisions(state: &RemoteState, used: &HashSet<String>) -> Catalog {
    let in_new_refs = ids_in_new_refs(state);
    let mut catalog = Catalog { foreign: state.foreign().beside_blobs, ..Catalog::default() };
    for (encoded, commits) in state.manifests() {
        let model = unambiguous_model(encoded, &in_new_refs).map(|id| RepoName::new(RepoType::Model, id));
        for (commit, entry) in commits {
            let key = keys::manifest_of(encoded, commit);
            let (repo, manifest) = match used.contains(&key) {
                true => match state.manifest(&key).and_then(Stored::valid) {
                    Some(manifest) => (manifest.repo().clone(), Some(manifest)),
                    None => continue,
                },
                false => match &model {
                    Some(model) => (model.clone(), None),
                    None => continue,
                },
            };
            let revision = Revision { modified: entry.modified, manifest };
            catalog.repos.entry(repo).or_default().revisions.insert(commit.clone(), revision);
        }
    }
    catalog
}

/// The target of a ref, as far as the listing shows it.
enum Target {
    /// A commit of this repo; `None` if unknown without a GET.
    Repo(RepoName, Option<Commit>),
    /// Unknown without a GET.
    Unknown,
    /// No repo in the bucket.
    Nothing,
}

type ReposByEncodedId<'a> = HashMap<String, Vec<&'a RepoName>>;

type EtagsByRepo<'a> = HashMap<&'a RepoName, HashMap<String, &'a Commit>>;

/// The commits of the repos with one encoded id, by the ETag of a ref that names them. Refs are listed repo by repo, so one is
/// enough.
#[derive(Default)]
struct CommitsByEtag<'a>(Option<(String, EtagsByRepo<'a>)>);

impl<'a> CommitsByEtag<'a> {
    fn of(&mut self, encoded: &str, find: impl FnOnce() -> EtagsByRepo<'a>) -> &EtagsByRepo<'a> {
        if self.0.as_ref().is_none_or(|(known, _)| known != encoded) {
            self.0 = Some((encoded.to_string(), find()));
        }
        &self.0.as_ref().expect("it was just set").1
    }
}

impl Catalog {
    /// Groups repos by encoded id: those of a group share 0.1.0's keys.
    fn repos_by_encoded_id(&self) -> ReposByEncodedId<'_> {
        let mut repos = ReposByEncodedId::new();
        for name in self.repos.keys() {
            repos.entry(keys::encoded(&name.id)).or_default().push(name);
        }
        repos
    }

    /// Returns the keys of the refs to read.
    fn refs_to_read(&self, state: &RemoteState, options: Options) -> Vec<String> {
        let repos = self.repos_by_encoded_id();
        let mut commits = CommitsByEtag::default();
        let to_read =
            state.refs().iter().filter(|candidate| match self.listed_target(candidate, &repos, &mut commits) {
                Target::Unknown => true,
                Target::Repo(_, commit) => commit.is_none() && options.every_ref,
                Target::Nothing => false,
            });
        to_read.map(|candidate| candidate.object.key.clone()).collect()
    }

    fn listed_target<'a>(
        &'a self,
        candidate: &Candidate,
        repos: &ReposByEncodedId<'a>,
        commits: &mut CommitsByEtag<'a>,
    ) -> Target {
        let possible: Vec<&RepoName> = possible_repos(candidate, repos).collect();
        let etag = candidate.object.etag.as_deref();
        let found = etag.and_then(|etag| {
            let commits = commits.of(&candidate.encoded, || self.commits_by_etag(&candidate.encoded, repos));
            possible.iter().find_map(|repo| Some((*repo, (*commits.get(*repo)?.get(etag)?).clone())))
        });
        match (found, possible.as_slice()) {
            (Some((repo, commit)), _) => Target::Repo(repo.clone(), Some(commit)),
            (None, []) => Target::Nothing,
            (None, [only]) if candidate.repo.is_none() => Target::Repo((*only).clone(), None),
            (None, _) => Target::Unknown,
        }
    }

    /// Returns the commits of the repos with this encoded id, by the ETag of a ref that names them.
    fn commits_by_etag<'a>(&'a self, encoded: &str, repos: &ReposByEncodedId<'a>) -> EtagsByRepo<'a> {
        let repos = repos.get(encoded).into_iter().flatten();
        let etags = repos.map(|repo| {
            let commits = self.repos[*repo].revisions.keys();
            (*repo, commits.map(|commit| (md5_hex(commit.as_str().as_bytes()), commit)).collect())
        });
        etags.collect()
    }

    /// Adds every ref that leads to a revision of its repo. `read` are the keys of the refs that were read.
    fn add_refs(&mut self, state: &RemoteState, read: &[String]) {
        let repos = self.repos_by_encoded_id();
        let read: HashSet<&str> = read.iter().map(String::as_str).collect();
        let mut commits = CommitsByEtag::default();
        let mut newest: BTreeMap<(RepoName, &RefName), (&Candidate, Option<Commit>)> = BTreeMap::new();
        for candidate in state.refs() {
            let key = candidate.object.key.as_str();
            let target = match read.contains(key) {
                true => state.reference(key).and_then(Stored::valid).and_then(|commit| {
                    let has = |repo: &&RepoName| self.repos[*repo].revisions.contains_key(&commit);
                    possible_repos(candidate, &repos).find(has).map(|repo| (repo.clone(), Some(commit.clone())))
                }),
                false => match self.listed_target(candidate, &repos, &mut commits) {
                    Target::Repo(repo, commit) => Some((repo, commit)),
                    Target::Unknown | Target::Nothing => None,
                },
            };
            let Some((repo, commit)) = target else { continue };
            let reference = (repo, &candidate.name);
            if newest.get(&reference).is_none_or(|(known, _)| candidate.supersedes(known)) {
                newest.insert(reference, (candidate, commit));
            }
        }
        // hf-hub names a ref after its commit when a commit was requested. Such a ref adds nothing to the commit itself.
        newest.retain(|(_, name), (_, commit)| commit.as_ref().is_none_or(|commit| commit.as_str() != name.as_str()));
        for ((repo, name), (Candidate { object, .. }, commit)) in newest {
            let reference = Ref { key: object.key.clone(), commit, modified: object.modified };
            self.repos.entry(repo).or_default().refs.insert(name.clone(), reference);
        }
    }
}

/// Returns the repos that a ref key may refer to.
fn possible_repos<'a>(candidate: &'a Candidate, repos: &'a ReposByEncodedId<'a>) -> impl Iterator<Item = &'a RepoName> {
    let same_encoding = repos.get(&candidate.encoded).into_iter().flatten().copied();
    same_encoding.filter(|repo| candidate.may_refer_to(repo))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::client::Object;
    use crate::model::manifest::ManifestFile;
    use std::time::Duration;

    fn commit(digit: char) -> Commit {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn object(key: impl Into<String>, etag: Option<String>, second: u64) -> Object {
        let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        Object { key: key.into(), size: 40, etag, modified }
    }

    fn manifest_of(encoded: &str, digit: char, second: u64) -> Object {
        object(format!("manifests/{encoded}@{}.json", commit(digit)), None, second)
    }

    fn ref_to(key: &str, digit: char, second: u64) -> Object {
        object(key, Some(md5_hex(commit(digit).as_str().as_bytes())), second)
    }

    /// Marks these manifests as read; returns their keys.
    fn mark_read(state: &RemoteState, manifests: &[(&str, char)]) -> HashSet<String> {
        let read = |(repo, digit): &(&str, char)| {
            let query: crate::model::ids::RepoQuery = repo.parse().unwrap();
            let repo = RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id);
            let key = keys::manifest(&repo.id, &commit(*digit));
            let blob = "1".repeat(40).parse().unwrap();
            let files = vec![ManifestFile { path: "x".parse().unwrap(), blob, size: 10 }];
            let manifest = Manifest::new(repo, commit(*digit), files, None).unwrap();
            state.keep_manifest(&key, Stored::Valid(Arc::new(manifest)));
            key
        };
        manifests.iter().map(read).collect()
    }

    fn shown(catalog: &Catalog) -> Vec<String> {
        let line = |(name, repo): (&RepoName, &Repo)| {
            let revisions: String = repo.revisions.keys().map(|commit| &commit.as_str()[..1]).collect();
            let refs = repo.refs.iter().map(|(name, reference)| {
                format!(" {name}={}", reference.commit.as_ref().map_or("?", |commit| &commit.as_str()[..1]))
            });
            format!("{name} {revisions}{}", refs.collect::<String>())
        };
        catalog.repos.iter().map(line).collect()
    }

    #[test]
    fn plain_names_need_no_get() {
        let state = RemoteState::new([
            manifest_of("gpt2", 'a', 1),
            manifest_of("org__name", 'b', 3),
            manifest_of("org__name", 'c', 2),
            ref_to("refs/org__name/main", 'c', 4),
            ref_to("refs/org__name/gone", 'd', 4),
            ref_to("refs/other__name/main", 'c', 4),
            object("manifests/readme.txt", None, 1),
        ]);
        assert_eq!(manifests_to_read(&state, Options::default()), Vec::<String>::new());
        assert_eq!(manifests_to_read(&state, Options { every_manifest: true, every_ref: false }).len(), 3);
        let mut catalog = revisions(&state, &HashSet::new());
        assert_eq!(catalog.refs_to_read(&state, Options::default()), Vec::<String>::new());
        assert_eq!(
            catalog.refs_to_read(&state, Options { every_manifest: false, every_ref: true }),
            ["refs/org__name/gone"]
        );
        catalog.add_refs(&state, &[]);
        assert_eq!(shown(&catalog), ["gpt2 a", "org/name bc gone=? main=c"]);
        let latest = |id: &str| catalog.repos[&RepoName::new(RepoType::Model, id.parse().unwrap())].latest().cloned();
        assert_eq!((latest("org/name"), catalog.foreign), (Some(commit('b')), 1));
    }

    #[test]
    fn a_dangling_ref_is_left_out_once_it_was_read() {
        let state = RemoteState::new([manifest_of("org__name", 'a', 1), ref_to("refs/org__name/gone", 'd', 4)]);
        let mut catalog = revisions(&state, &HashSet::new());
        state.keep_ref("refs/org__name/gone", Stored::Valid(commit('d')));
        catalog.add_refs(&state, &["refs/org__name/gone".into()]);
        assert_eq!(shown(&catalog), ["org/name a"]);
    }

    #[test]
    fn only_ambiguous_names_are_read() {
        let state = RemoteState::new([
            manifest_of("plain__model", 'a', 1),
            manifest_of("a___b", 'b', 1),
            manifest_of("both__kinds", 'c', 1),
            manifest_of("both__kinds", 'd', 1),
            manifest_of("no__slash", 'e', 1),
            ref_to("refs/both__kinds/main", 'c', 1),
            ref_to("refs-v2/datasets--both--kinds/main", 'd', 1),
            ref_to("refs-v2/models--no__slash/main", 'e', 1),
            ref_to("refs-v2/models--a_--b/main", 'b', 1),
        ]);
        let read = [("a_/b", 'b'), ("both/kinds", 'c'), ("dataset:both/kinds", 'd'), ("no__slash", 'e')];
        let read = mark_read(&state, &read);
        assert_eq!(manifests_to_read(&state, Options::default()).into_iter().collect::<HashSet<_>>(), read);
        let mut catalog = revisions(&state, &read);
        assert_eq!(catalog.refs_to_read(&state, Options::default()), Vec::<String>::new());
        catalog.add_refs(&state, &[]);
        let expected = [
            "a_/b b main=b",
            "both/kinds c main=c",
            "no__slash e main=e",
            "plain/model a",
            "dataset:both/kinds d main=d",
        ];
        assert_eq!(shown(&catalog), expected);
    }

    #[test]
    fn of_two_keys_of_one_ref_the_last_one_written_counts() {
        for (old, new, wins) in [(1, 2, 'b'), (2, 1, 'a'), (1, 1, 'a')] {
            let state = RemoteState::new([
                manifest_of("org__set", 'a', 1),
                manifest_of("org__set", 'b', 1),
                ref_to("refs/org__set/main", 'a', old),
                ref_to("refs-v2/datasets--org--set/main", 'b', new),
            ]);
            let read = mark_read(&state, &[("dataset:org/set", 'a'), ("dataset:org/set", 'b')]);
            let mut catalog = revisions(&state, &read);
            catalog.add_refs(&state, &[]);
            assert_eq!(shown(&catalog), [format!("dataset:org/set ab main={wins}")]);
        }
    }

    #[test]
    fn without_md5_etags_refs_are_read_where_they_are_ambiguous() {
        let opaque = |key: &str| object(key, Some("\"kms\"".into()), 1);
        let state = RemoteState::new([
            manifest_of("one__model", 'a', 1),
            manifest_of("both__kinds", 'c', 1),
            manifest_of("both__kinds", 'd', 1),
            opaque("refs/one__model/main"),
            opaque("refs/both__kinds/main"),
            opaque("refs-v2/datasets--both--kinds/main"),
        ]);
        let read = mark_read(&state, &[("both/kinds", 'c'), ("dataset:both/kinds", 'd')]);
        let mut catalog = revisions(&state, &read);
        let to_read = catalog.refs_to_read(&state, Options::default());
        assert_eq!(to_read, ["refs/both__kinds/main", "refs-v2/datasets--both--kinds/main"]);
        to_read.iter().zip(['d', 'c']).for_each(|(key, digit)| state.keep_ref(key, Stored::Valid(commit(digit))));
        catalog.add_refs(&state, &to_read);
        // The dataset's key names the model's commit, so it does not count for the dataset.
        assert_eq!(shown(&catalog), ["both/kinds c", "one/model a main=?", "dataset:both/kinds d main=d"]);
    }
}
