//! Compares this cache with the bucket. Pure: takes the pushable content and the bucket's catalog, and returns rows.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use std::time::SystemTime;

use serde::Serialize;

use crate::bucket::catalog::{Catalog, Repo, Revision};
use crate::bucket::keys;
use crate::bucket::read::Stored;
use crate::bucket::state::{Blobs, RemoteState};
use crate::cache::pushable::{Local, LocalRepo, LocalRevision};
use crate::cache::state::Completeness;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoPath};
use crate::model::manifest::Manifest;
use crate::plan::push;
use crate::when;

/// The number of revisions of each status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// On both sides, with the same files.
    pub in_sync: usize,
    /// Only here.
    pub local_only: usize,
    /// Only in the bucket.
    pub remote_only: usize,
    /// On both sides, with different files.
    pub partial: usize,
    /// In the bucket, with an invalid manifest.
    pub invalid: usize,
    /// Blobs that a manifest names, but the bucket lacks.
    pub missing_blobs: usize,
}

/// The comparison of one revision.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// How both sides compare.
    pub status: Status,
    /// Size in bytes, with each blob counted once: of this cache's files, or else of the bucket's if its manifest was
    /// read.
    pub size: Option<u64>,
    /// How much of the commit this cache has; `None` if the revision is not here.
    pub completeness: Option<Completeness>,
    /// Last use on this machine.
    #[serde(serialize_with = "when::serialize")]
    pub last_used: Option<SystemTime>,
    /// Refs that name it, here or in the bucket.
    pub refs: Vec<RefName>,
    /// Files that only this cache has.
    pub only_local: Vec<RepoPath>,
    /// Files that only the bucket's manifest has.
    pub only_remote: Vec<RepoPath>,
    /// Files with different blobs on each side.
    pub different: Vec<RepoPath>,
    /// Blobs that the bucket's manifest names, but the bucket lacks. Only known if the manifest was read.
    pub missing_blobs: Vec<Gap>,
    /// Whether the repo looks gated, so that a push leaves it out.
    pub gated: bool,
}

/// A blob that is missing from the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Its name.
    pub blob: BlobId,
    /// Its size in bytes, according to the manifest.
    pub size: u64,
    /// The path of a file with this content.
    pub path: RepoPath,
    /// Whether a push from this cache would add it.
    pub here: bool,
}

/// How both sides compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The same files on both sides.
    InSync,
    /// Only here.
    LocalOnly,
    /// Only in the bucket.
    RemoteOnly,
    /// Different files on each side.
    Partial,
    /// The bucket's manifest is invalid.
    Invalid,
}

/// A ref that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefRow {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The ref.
    pub name: RefName,
    /// Its commit on this machine.
    pub local: Commit,
    /// Its commit in the bucket; `None` if the bucket lacks it.
    pub remote: Option<Commit>,
}

/// What is shown of each revision of this cache, in addition to its files.
pub type Details = HashMap<(RepoName, Commit), Detail>;

/// What is shown of a revision of this cache, in addition to its files.
#[derive(Debug)]
pub struct Detail {
    /// How much of the commit is here.
    pub completeness: Completeness,
    /// Last use on this machine.
    pub last_used: Option<SystemTime>,
}

impl Row {
    /// Returns whether a push or a pull would change anything. Revisions of a gated repo that exist only locally do not
    /// count.
    pub fn differs(&self) -> bool {
        let is_left_out = self.gated && self.status == Status::LocalOnly;
        (self.status != Status::InSync && !is_left_out) || !self.missing_blobs.is_empty()
    }
}

/// Returns a row for each revision that either side has.
pub fn compare_revisions(local: &Local, catalog: &Catalog, remote: &RemoteState, details: &Details) -> Vec<Row> {
    let mut both: BTreeMap<(RepoName, Commit), Sides<'_>> = BTreeMap::new();
    for repo in &local.repos {
        // A revision without a file to publish can never be in the bucket.
        for revision in repo.revisions.iter().filter(|revision| !revision.files.is_empty()) {
            let sides = both.entry((repo.name.clone(), revision.commit.clone())).or_default();
            sides.local = Some((repo, revision));
        }
    }
    for (name, repo) in &catalog.repos {
        for (commit, revision) in &repo.revisions {
            both.entry((name.clone(), commit.clone())).or_default().remote = Some((repo, revision));
        }
    }
    // Usually, no blob is missing, and this is not needed.
    let here = LazyCell::new(|| {
        let revisions = local.repos.iter().flat_map(|repo| &repo.revisions);
        revisions.flat_map(|revision| revision.files.iter().map(|file| file.file.blob)).collect::<HashSet<_>>()
    });
    let rows = both.into_iter().map(|((repo, revision), sides)| {
        let mut row = sides.compare(repo, revision, remote);
        if let Some(detail) = details.get(&(row.repo.clone(), row.revision.clone())) {
            row.last_used = detail.last_used;
            row.completeness = Some(detail.completeness.clone());
        }
        row.missing_blobs = sides
            .manifest()
            .map_or_else(Vec::new, |manifest| find_gaps(manifest, remote.blobs(), |blob| here.contains(blob)));
        row
    });
    rows.collect()
}

/// A revision on both sides.
#[derive(Default)]
struct Sides<'a> {
    local: Option<(&'a LocalRepo, &'a LocalRevision)>,
    remote: Option<(&'a Repo, &'a Revision)>,
}

impl Sides<'_> {
    /// Returns the bucket's manifest, if it was read.
    fn manifest(&self) -> Option<&Manifest> {
        self.remote.and_then(|(_, revision)| revision.manifest.as_deref())
    }

    fn compare(&self, repo: RepoName, revision: Commit, remote: &RemoteState) -> Row {
        let ours = self.local.and_then(|(_, revision)| match self.manifest() {
            Some(theirs) => push::beside(revision, theirs).unwrap_or_else(|_| revision.manifest.clone()),
            None => revision.manifest.clone(),
        });
        let invalid = || {
            let stored = remote.manifest(&keys::manifest(&repo.id, &revision));
            matches!(stored, Some(Stored::Invalid(_) | Stored::Absent))
        };
        let files = match (&ours, self.manifest()) {
            (Some(ours), Some(theirs)) => Files::compare(ours, theirs, &self.twins()),
            _ => Files::default(),
        };
        let status = match (&ours, self.remote) {
            (Some(_), None) if invalid() => Status::Invalid,
            (Some(_), None) => Status::LocalOnly,
            (None, _) => Status::RemoteOnly,
            (Some(_), Some(_)) if files.is_same() => Status::InSync,
            (Some(_), Some(_)) => Status::Partial,
        };
        Row {
            size: ours.as_deref().or(self.manifest()).map(Manifest::total_size),
            refs: self.refs(&revision).into_iter().cloned().collect(),
            repo,
            revision,
            status,
            completeness: None,
            last_used: None,
            only_local: files.only_local,
            only_remote: files.only_remote,
            different: files.different,
            missing_blobs: Vec::new(),
            gated: false,
        }
    }

    /// Returns both names of local files that have a name by either algorithm.
    fn twins(&self) -> HashMap<&RepoPath, [BlobId; 2]> {
        let files = self.local.iter().flat_map(|(_, revision)| &revision.files);
        files.filter_map(|local| Some((&local.file.path, [local.file.blob, local.other?]))).collect()
    }

    fn refs<'a>(&'a self, revision: &'a Commit) -> BTreeSet<&'a RefName> {
        let mut refs = BTreeSet::new();
        if let Some((repo, _)) = self.local {
            refs.extend(repo.refs.iter().filter(|(_, commit)| *commit == revision).map(|(name, _)| name));
        }
        if let Some((repo, _)) = self.remote {
            refs.extend(repo.refs_to(revision));
        }
        refs
    }
}

/// How the files of a revision differ.
#[derive(Default)]
struct Files {
    only_local: Vec<RepoPath>,
    only_remote: Vec<RepoPath>,
    different: Vec<RepoPath>,
}

impl Files {
    fn compare(ours: &Manifest, theirs: &Manifest, twins: &HashMap<&RepoPath, [BlobId; 2]>) -> Files {
        let by_path = |manifest: &Manifest| {
            manifest.files().iter().map(|file| (file.path.clone(), (file.blob, file.size))).collect::<BTreeMap<_, _>>()
        };
        let (ours, mut theirs) = (by_path(ours), by_path(theirs));
        let mut files = Files::default();
        for (path, file) in ours {
            match theirs.remove(&path) {
                None => files.only_local.push(path),
                Some((blob, size)) if size == file.1 && twins.get(&path).is_some_and(|names| names.contains(&blob)) => {
                }
                Some(other) if other != file => files.different.push(path),
                Some(_) => {}
            }
        }
        files.only_remote = theirs.into_keys().collect();
        files
    }

    fn is_same(&self) -> bool {
        self.only_local.is_empty() && self.only_remote.is_empty() && self.different.is_empty()
    }
}

/// Finds blobs of a manifest that the bucket lacks, or has with a different size.
fn find_gaps(manifest: &Manifest, blobs: &Blobs, is_here: impl Fn(&BlobId) -> bool) -> Vec<Gap> {
    let mut seen = HashSet::new();
    let missing = manifest.files().iter().filter(|file| !blobs.has(&file.blob, file.size));
    let gaps = missing.filter(|file| seen.insert(file.blob)).map(|file| Gap {
        blob: file.blob,
        size: file.size,
        path: file.path.clone(),
        here: is_here(&file.blob),
    });
    gaps.collect()
}

/// Returns the refs to local revisions that the bucket lacks, or has with a different commit. If the revision itself is
/// not in the bucket, its own row reports that.
pub fn compare_refs(local: &Local, catalog: &Catalog) -> Vec<RefRow> {
    let mut rows = Vec::new();
    for repo in &local.repos {
        let Some(remote) = catalog.repos.get(&repo.name) else { continue };
        for (name, commit) in &repo.refs {
            let published = repo.revisions.iter().any(|revision| revision.commit == *commit)
                && remote.revisions.contains_key(commit);
            let there = remote.refs.get(name).and_then(|reference| reference.commit.clone());
            if published && there.as_ref() != Some(commit) {
                rows.push(RefRow { repo: repo.name.clone(), name: name.clone(), local: commit.clone(), remote: there });
            }
        }
    }
    rows
}

/// Counts the rows by status.
pub fn count(rows: &[Row]) -> Counts {
    let mut counts = Counts::default();
    let mut missing = HashSet::new();
    for row in rows {
        match row.status {
            Status::InSync => counts.in_sync += 1,
            Status::LocalOnly => counts.local_only += 1,
            Status::RemoteOnly => counts.remote_only += 1,
            Status::Partial => counts.partial += 1,
            Status::Invalid => counts.invalid += 1,
        }
        missing.extend(row.missing_blobs.iter().map(|gap| gap.blob));
    }
    counts.missing_blobs = missing.len();
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::bucket::catalog::Ref;
    use crate::bucket::client::Object;
    use crate::cache::identify::{LocalFile, Source};
    use crate::error::Error;
    use crate::model::manifest::ManifestFile;

    fn commit(digit: char) -> Commit {
        digit.to_string().repeat(40).parse().unwrap()
    }

    /// `a=1` is the path `a` with the blob `111…`, ten bytes long.
    fn files(text: &str) -> Vec<ManifestFile> {
        let file = |part: &str| {
            let (path, digit) = part.split_once('=').unwrap();
            ManifestFile { path: path.parse().unwrap(), blob: digit.repeat(40).parse().unwrap(), size: 10 }
        };
        text.split_whitespace().map(file).collect()
    }

    fn local(repo: &RepoName, revisions: &[(char, &str)], refs: &[(&str, char)]) -> Local {
        let revision = |(digit, text): &(char, &str)| {
            let files = files(text).into_iter().map(|file| LocalFile { file, source: Source::Snapshot, other: None });
            LocalRevision::new(repo, commit(*digit), files.collect(), None)
        };
        let repo = LocalRepo {
            name: repo.clone(),
            gated: None,
            revisions: revisions.iter().map(revision).collect(),
            refs: refs.iter().map(|(name, digit)| (name.parse().unwrap(), commit(*digit))).collect(),
            pins: Default::default(),
            unused: 0,
        };
        Local { repos: vec![repo], ..Local::default() }
    }

    fn catalog(repo: &RepoName, revisions: &[(char, Option<&str>)], refs: &[(&str, Option<char>)]) -> Catalog {
        let revision = |(digit, text): &(char, Option<&str>)| {
            let manifest = |text| Manifest::new(repo.clone(), commit(*digit), files(text), None).unwrap();
            let manifest = text.map(|text| Arc::new(manifest(text)));
            (commit(*digit), Revision { modified: None, manifest })
        };
        let reference = |(name, digit): &(&str, Option<char>)| {
            (name.parse().unwrap(), Ref { key: String::new(), commit: digit.map(commit), modified: None })
        };
        let repos =
            Repo { revisions: revisions.iter().map(revision).collect(), refs: refs.iter().map(reference).collect() };
        Catalog { repos: [(repo.clone(), repos)].into(), ..Catalog::default() }
    }

    fn object(key: String) -> Object {
        Object { key, size: 10, etag: None, modified: None }
    }

    fn model() -> RepoName {
        RepoName::new(crate::model::ids::RepoType::Model, "org/name".parse().unwrap())
    }

    #[test]
    fn every_status_is_reported() {
        let local = local(&model(), &[('a', "x=1"), ('b', "x=1 y=2 z=3"), ('c', "x=1"), ('d', ""), ('e', "x=1")], &[]);
        let remote = catalog(&model(), &[('a', Some("x=1")), ('b', Some("x=1 y=9 w=8")), ('d', None)], &[]);
        let bad_key = keys::manifest(&model().id, &commit('e'));
        let blobs = files("x=1 y=9").into_iter().map(|file| keys::blob(&file.blob));
        let state = RemoteState::new(blobs.chain([bad_key.clone()]).map(object));
        state.keep_manifest(&bad_key, Stored::Invalid(Error::invalid("it is not JSON")));
        let rows = compare_revisions(&local, &remote, &state, &Details::default());
        let statuses: Vec<_> = rows.iter().map(|row| row.status).collect();
        use Status::*;
        assert_eq!(statuses, [InSync, Partial, LocalOnly, RemoteOnly, Invalid]);
        assert_eq!((rows[1].only_local.as_slice(), rows[1].only_remote.as_slice()), (&paths("z")[..], &paths("w")[..]));
        assert_eq!(rows[1].different, paths("y"));
        assert_eq!(rows[1].missing_blobs.iter().map(|gap| &gap.path).collect::<Vec<_>>(), [&paths("w")[0]]);
        let counted = count(&rows);
        assert_eq!((counted.in_sync, counted.partial, counted.invalid, counted.missing_blobs), (1, 1, 1, 1));
    }

    #[test]
    fn a_blob_that_the_bucket_lacks_is_a_difference_even_in_sync() {
        let local = local(&model(), &[('a', "x=1 again=1")], &[]);
        let remote = catalog(&model(), &[('a', Some("x=1 again=1"))], &[]);
        let rows = compare_revisions(&local, &remote, &RemoteState::default(), &Details::default());
        assert_eq!((rows[0].status, rows[0].missing_blobs.len()), (Status::InSync, 1));
        assert!(rows[0].missing_blobs[0].here && rows[0].differs());
    }

    #[test]
    fn only_refs_to_published_revisions_are_compared() {
        let local = local(
            &model(),
            &[('a', "x=1"), ('b', "x=1")],
            &[("same", 'a'), ("moved", 'a'), ("lacking", 'a'), ("unpublished", 'b'), ("nowhere", 'f')],
        );
        let there = [("same", Some('a')), ("moved", Some('b')), ("theirs", Some('a')), ("nowhere", Some('f'))];
        let remote = catalog(&model(), &[('a', Some("x=1"))], &there);
        let rows: Vec<_> =
            compare_refs(&local, &remote).into_iter().map(|row| (row.name.to_string(), row.remote)).collect();
        assert_eq!(rows, [("lacking".into(), None), ("moved".into(), Some(commit('b')))]);
    }

    fn paths(text: &str) -> Vec<RepoPath> {
        text.split_whitespace().map(|path| path.parse().unwrap()).collect()
    }
}
