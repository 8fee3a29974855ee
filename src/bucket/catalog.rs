//! What is in the bucket: which repos, with which revisions and refs.
//!
//! It is made of a [`RemoteState`], whose keys say nearly all of it. One LIST of manifests and one of refs suffice where
//! a manifest's key can mean only one repo; manifests are read, several at once, where it can mean several:
//!
//! - the encoded id decodes to no or to more than one id (`a___b`), or
//! - `refs-v2/` names a repo that is encoded alike: a dataset of that id, or `a__b` beside `a/b`.
//!
//! Every other manifest counts as that of the model of its id. A dataset that only 0.1.0 has pushed therefore counts
//! as a model, since 0.1.0 writes the type into the manifest and nowhere else: [`Options::every_manifest`] tells.
//!
//! What a ref says needs no GET either where the store's ETag is the content's MD5: it is compared with the MD5 of the
//! commits that the repo has. Which repo its key means: [`super::refs`].

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

/// What to read beside what is ambiguous.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Every manifest: then types, files and sizes are known, also of what 0.1.0 has pushed.
    pub every_manifest: bool,
    /// Every ref that the listing alone does not explain.
    pub every_ref: bool,
}

/// The bucket's repos.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Repos with at least one manifest.
    pub repos: BTreeMap<RepoName, Repo>,
    /// Manifests and refs that are not valid.
    pub failures: Vec<Error>,
    /// Keys that are none of this tool's.
    pub foreign: usize,
}

/// One repo.
#[derive(Debug, Default)]
pub struct Repo {
    /// Its revisions.
    pub revisions: BTreeMap<Commit, Revision>,
    /// Its refs, as far as they lead to one of its revisions.
    pub refs: BTreeMap<RefName, Ref>,
}

/// One revision.
#[derive(Debug)]
pub struct Revision {
    /// When its manifest was written, by the store's clock.
    pub modified: Option<SystemTime>,
    /// Its manifest, where it was read.
    pub manifest: Option<Arc<Manifest>>,
}

/// A ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// Its key.
    pub key: String,
    /// The revision that it names; `None` where only a GET would tell.
    pub commit: Option<Commit>,
    /// When it was written, by the store's clock.
    pub modified: Option<SystemTime>,
}

impl Repo {
    /// The revision that was pushed last.
    pub fn latest(&self) -> Option<&Commit> {
        self.revisions.iter().max_by_key(|(_, revision)| revision.modified).map(|(commit, _)| commit)
    }

    /// The refs that name this revision.
    pub fn refs_to<'a>(&'a self, commit: &'a Commit) -> impl Iterator<Item = &'a RefName> {
        self.refs.iter().filter(move |(_, reference)| reference.commit.as_ref() == Some(commit)).map(|(name, _)| name)
    }
}

/// Ids that `refs-v2/` names, by how they are encoded.
fn named_in_refs(state: &RemoteState) -> BTreeSet<&str> {
    let named = state.refs().iter().filter(|candidate| candidate.repo.is_some());
    named.map(|candidate| candidate.encoded.as_str()).collect()
}

/// The id of the model that these manifests must be of, unless they have to be read.
fn only_model(encoded: &str, named: &BTreeSet<&str>) -> Option<RepoId> {
    keys::plain_id(encoded).filter(|_| !named.contains(encoded))
}

/// Keys of the manifests that have to be read.
fn to_read(state: &RemoteState, options: Options) -> Vec<String> {
    let named = named_in_refs(state);
    let open = |encoded: &str| options.every_manifest || only_model(encoded, &named).is_none();
    let groups = state.manifests().iter().filter(|(encoded, _)| open(encoded));
    groups.flat_map(|(encoded, commits)| commits.keys().map(move |commit| keys::manifest_of(encoded, commit))).collect()
}

/// Reads what is ambiguous and what the options ask for. Of `known`, keys of manifests, the caller sees to what is not
/// valid; they are used as they were read.
///
/// # Errors
/// When a request fails; what is there but not valid is in [`Catalog::failures`].
pub async fn read(bucket: &Bucket, state: &RemoteState, known: HashSet<String>, options: Options) -> Result<Catalog> {
    let wanted: Vec<String> = to_read(state, options).into_iter().filter(|key| !known.contains(key)).collect();
    state.read_manifests(bucket, wanted.iter().cloned()).await?;
    let mut failures: Vec<Error> = wanted.iter().filter_map(|key| invalid(state.manifest(key)?)).collect();
    let mut used = known;
    used.extend(wanted);
    let mut catalog = revisions(state, &used);

    let open = catalog.open_refs(state, options);
    state.read_refs(bucket, open.iter().cloned()).await?;
    failures.extend(open.iter().filter_map(|key| invalid(state.reference(key)?)));
    catalog.add_refs(state, &open);
    failures.sort_by(|a, b| a.what.cmp(&b.what));
    catalog.failures = failures;
    Ok(catalog)
}

/// What is not valid is said, and is otherwise as good as absent.
fn invalid<T>(stored: Stored<T>) -> Option<Error> {
    match stored {
        Stored::Invalid(error) => Some(error),
        Stored::Valid(_) | Stored::Absent => None,
    }
}

/// Gives every manifest to its repo. `used` are the keys of those whose content counts.
fn revisions(state: &RemoteState, used: &HashSet<String>) -> Catalog {
    let named = named_in_refs(state);
    let foreign = state.foreign().iter().filter(|object| !object.key.starts_with(keys::BLOBS)).count();
    let mut catalog = Catalog { foreign, ..Catalog::default() };
    for (encoded, commits) in state.manifests() {
        let model = only_model(encoded, &named).map(|id| RepoName::new(RepoType::Model, id));
        for (commit, entry) in commits {
            let key = keys::manifest_of(encoded, commit);
            let (repo, manifest) = match used.contains(&key) {
                true => match state.manifest(&key).and_then(Stored::valid) {
                    Some(manifest) => (manifest.repo.clone(), Some(manifest)),
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

/// What the keys alone say about a ref.
enum Said {
    /// It is this repo's, and names this commit where that is known.
    Of(RepoName, Option<Commit>),
    /// A GET would tell.
    Open,
    /// It leads nowhere.
    Nowhere,
}

impl Catalog {
    /// Repos that share 0.1.0's keys.
    fn alike(&self) -> HashMap<String, Vec<&RepoName>> {
        let mut alike: HashMap<String, Vec<&RepoName>> = HashMap::new();
        for name in self.repos.keys() {
            alike.entry(keys::encoded(&name.id)).or_default().push(name);
        }
        alike
    }

    /// Keys of the refs that have to be read.
    fn open_refs(&self, state: &RemoteState, options: Options) -> Vec<String> {
        let alike = self.alike();
        let open = state.refs().iter().filter(|candidate| match self.explain(candidate, &alike) {
            Said::Open => true,
            Said::Of(_, commit) => commit.is_none() && options.every_ref,
            Said::Nowhere => false,
        });
        open.map(|candidate| candidate.object.key.clone()).collect()
    }

    fn explain(&self, candidate: &Candidate, alike: &HashMap<String, Vec<&RepoName>>) -> Said {
        let listed = |name: &RepoName| {
            let etag = candidate.object.etag.as_deref()?;
            self.repos.get(name)?.revisions.keys().find(|commit| md5_hex(commit.as_str().as_bytes()) == etag)
        };
        let repos: Vec<&RepoName> = meant(candidate, alike).collect();
        let found = repos.iter().find_map(|repo| Some((*repo, listed(repo)?.clone())));
        match (found, repos.as_slice()) {
            (Some((repo, commit)), _) => Said::Of(repo.clone(), Some(commit)),
            (None, []) => Said::Nowhere,
            (None, [only]) if candidate.repo.is_none() => Said::Of((*only).clone(), None),
            (None, _) => Said::Open,
        }
    }

    /// Adds every ref that leads to a revision of its repo. `open` are the keys of those that were read.
    fn add_refs(&mut self, state: &RemoteState, open: &[String]) {
        let alike = self.alike();
        let open: HashSet<&str> = open.iter().map(String::as_str).collect();
        let mut newest: BTreeMap<(RepoName, &RefName), (&Candidate, Option<Commit>)> = BTreeMap::new();
        for candidate in state.refs() {
            let key = candidate.object.key.as_str();
            let said = match open.contains(key) {
                true => state.reference(key).and_then(Stored::valid).and_then(|commit| {
                    let has = |repo: &&RepoName| self.repos[*repo].revisions.contains_key(&commit);
                    meant(candidate, &alike).find(has).map(|repo| (repo.clone(), Some(commit.clone())))
                }),
                false => match self.explain(candidate, &alike) {
                    Said::Of(repo, commit) => Some((repo, commit)),
                    Said::Open | Said::Nowhere => None,
                },
            };
            let Some((repo, commit)) = said else { continue };
            let place = (repo, &candidate.name);
            if newest.get(&place).is_none_or(|(known, _)| candidate.outdoes(known)) {
                newest.insert(place, (candidate, commit));
            }
        }
        // One that is called like its commit is hf-hub's: it names nothing that somebody could ask for in another way.
        newest.retain(|(_, name), (_, commit)| commit.as_ref().is_none_or(|commit| commit.as_str() != name.as_str()));
        for ((repo, name), (Candidate { object, .. }, commit)) in newest {
            let reference = Ref { key: object.key.clone(), commit, modified: object.modified };
            self.repos.entry(repo).or_default().refs.insert(name.clone(), reference);
        }
    }
}

/// The repos that this key may mean.
fn meant<'a>(
    candidate: &'a Candidate,
    alike: &'a HashMap<String, Vec<&'a RepoName>>,
) -> impl Iterator<Item = &'a RepoName> {
    let alike = alike.get(&candidate.encoded).into_iter().flatten().copied();
    alike.filter(|repo| candidate.may_mean(repo))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::client::Object;
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

    /// Takes these manifests for read; returns their keys.
    fn reads(state: &RemoteState, manifests: &[(&str, char)]) -> HashSet<String> {
        let read = |(repo, digit): &(&str, char)| {
            let query: crate::model::ids::RepoQuery = repo.parse().unwrap();
            let repo = RepoName::new(query.kind.unwrap_or(RepoType::Model), query.id);
            let key = keys::manifest(&repo.id, &commit(*digit));
            let (files, extra) = (Vec::new(), serde_json::Map::new());
            let manifest = Manifest { repo, revision: commit(*digit), files, tree: None, extra };
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
        assert_eq!(to_read(&state, Options::default()), Vec::<String>::new());
        assert_eq!(to_read(&state, Options { every_manifest: true, every_ref: false }).len(), 3);
        let mut catalog = revisions(&state, &HashSet::new());
        assert_eq!(catalog.open_refs(&state, Options::default()), Vec::<String>::new());
        assert_eq!(
            catalog.open_refs(&state, Options { every_manifest: false, every_ref: true }),
            ["refs/org__name/gone"]
        );
        catalog.add_refs(&state, &[]);
        assert_eq!(shown(&catalog), ["gpt2 a", "org/name bc gone=? main=c"]);
        let latest = |id: &str| catalog.repos[&RepoName::new(RepoType::Model, id.parse().unwrap())].latest().cloned();
        assert_eq!((latest("org/name"), catalog.foreign), (Some(commit('b')), 1));
    }

    #[test]
    fn a_ref_that_is_read_and_leads_nowhere_is_none() {
        let state = RemoteState::new([manifest_of("org__name", 'a', 1), ref_to("refs/org__name/gone", 'd', 4)]);
        let mut catalog = revisions(&state, &HashSet::new());
        state.keep_ref("refs/org__name/gone", Stored::Valid(commit('d')));
        catalog.add_refs(&state, &["refs/org__name/gone".into()]);
        assert_eq!(shown(&catalog), ["org/name a"]);
    }

    #[test]
    fn ambiguous_names_are_read_and_only_they() {
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
        let read = reads(&state, &read);
        assert_eq!(to_read(&state, Options::default()).into_iter().collect::<HashSet<_>>(), read);
        let mut catalog = revisions(&state, &read);
        assert_eq!(catalog.open_refs(&state, Options::default()), Vec::<String>::new());
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
    fn of_two_keys_of_one_ref_the_last_written_counts() {
        for (old, new, wins) in [(1, 2, 'b'), (2, 1, 'a'), (1, 1, 'a')] {
            let state = RemoteState::new([
                manifest_of("org__set", 'a', 1),
                manifest_of("org__set", 'b', 1),
                ref_to("refs/org__set/main", 'a', old),
                ref_to("refs-v2/datasets--org--set/main", 'b', new),
            ]);
            let read = reads(&state, &[("dataset:org/set", 'a'), ("dataset:org/set", 'b')]);
            let mut catalog = revisions(&state, &read);
            catalog.add_refs(&state, &[]);
            assert_eq!(shown(&catalog), [format!("dataset:org/set ab main={wins}")]);
        }
    }

    #[test]
    fn without_md5_etags_refs_are_read_where_they_could_be_anybodys() {
        let opaque = |key: &str| object(key, Some("\"kms\"".into()), 1);
        let state = RemoteState::new([
            manifest_of("one__model", 'a', 1),
            manifest_of("both__kinds", 'c', 1),
            manifest_of("both__kinds", 'd', 1),
            opaque("refs/one__model/main"),
            opaque("refs/both__kinds/main"),
            opaque("refs-v2/datasets--both--kinds/main"),
        ]);
        let read = reads(&state, &[("both/kinds", 'c'), ("dataset:both/kinds", 'd')]);
        let mut catalog = revisions(&state, &read);
        let open = catalog.open_refs(&state, Options::default());
        assert_eq!(open, ["refs/both__kinds/main", "refs-v2/datasets--both--kinds/main"]);
        open.iter().zip(['d', 'c']).for_each(|(key, digit)| state.keep_ref(key, Stored::Valid(commit(digit))));
        catalog.add_refs(&state, &open);
        // The last of them names the model's commit, so it is none of the dataset's.
        assert_eq!(shown(&catalog), ["both/kinds c", "one/model a main=?", "dataset:both/kinds d main=d"]);
    }
}
