//! Judges the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{AffectedFile, Finding, Outcome, Place, Reason, Repair};
use crate::cache::integrity::{Check, Facts, FileFacts, FileKind, RefFacts, RefFault, RepoFacts, RevisionFacts};
use crate::cache::inventory::{Problem, ProblemKind};
use crate::cache::layout::Layout;
use crate::cache::state::{Completeness, TreeFile};
use crate::model::amount::Amount;
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};
use crate::model::tree::Tree;

/// A ref that was written this recently may be of a download that has just begun.
const YOUNG: Duration = Duration::from_secs(3600);

/// The judgement.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Every revision that was checked.
    pub revisions: Vec<Row>,
    /// The findings.
    pub findings: Vec<Finding>,
    /// Files that cannot be proven right or wrong.
    pub unverified: Vec<Unverified>,
    /// Blobs and files whose bytes were proven right.
    pub verified: Amount,
    /// Blobs and files that another program was working on.
    pub in_use: usize,
}

/// A revision.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// The revision.
    pub revision: Commit,
    /// How much of it is here, and whether it is intact.
    pub status: Completeness,
    /// Number of files in the snapshot, or in the bucket's manifest.
    pub files: usize,
    /// Number of the commit's files that are missing, if a tree lists them.
    pub absent: Option<usize>,
}

/// Something that nothing proves right or wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Unverified {
    /// The repo.
    #[serde(flatten)]
    pub repo: RepoName,
    /// Where it is.
    #[serde(serialize_with = "crate::lossy::path")]
    pub path: PathBuf,
    /// Why.
    pub reason: UnverifiedReason,
}

/// Why something cannot be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnverifiedReason {
    /// Its name is not a hash, as old clients and some servers name blobs.
    NoHash,
    /// A real file, and no tree says what it should be.
    NoTree,
    /// A file that the commit's tree does not list, such as one that a library wrote into the snapshot.
    Stray,
    /// Its path cannot be a file of a commit, or not on every system.
    Name,
    /// A tree of a newer format.
    UnknownTree,
    /// A tree that only its owner can read.
    PrivateTree,
}

/// Judges the facts. `now` is the time of the check.
pub fn judge(facts: &Facts, now: SystemTime) -> Judgement {
    let mut judgement = Judgement::default();
    for repo in &facts.repos {
        RepoJudge { layout: &facts.layout, repo, now, out: &mut judgement }.run();
    }
    judgement.findings.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    judgement
}

struct RepoJudge<'a> {
    layout: &'a Layout,
    repo: &'a RepoFacts,
    now: SystemTime,
    out: &'a mut Judgement,
}

impl RepoJudge<'_> {
    fn run(mut self) {
        let first = self.out.findings.len();
        self.blobs();
        self.missing_blobs();
        for (commit, revision) in &self.repo.revisions {
            self.tree(commit, revision);
            for path in revision.files.keys() {
                self.file(commit, revision, path);
            }
            for problem in &revision.bad_paths {
                match problem.kind {
                    ProblemKind::BadName => self.cannot_verify(problem.path.clone(), UnverifiedReason::Name),
                    _ => self.add_problem(problem),
                }
            }
        }
        for path in &self.repo.unnamed {
            self.cannot_verify(path.clone(), UnverifiedReason::NoHash);
        }
        for problem in &self.repo.odd {
            self.add_problem(problem);
        }
        for (path, reference) in &self.repo.refs {
            self.reference(path, reference);
        }
        for (commit, revision) in &self.repo.revisions {
            let damage = self.out.findings[first..].iter().filter(|finding| finding.reason.is_damage());
            let files = damage.flat_map(|finding| &finding.files).filter(|file| file.revision == *commit);
            let damaged: BTreeSet<String> = files.map(|file| file.path.to_string()).collect();
            let row = self.row(commit, revision, damaged);
            self.out.revisions.push(row);
        }
    }

    fn add(
        &mut self,
        reason: Reason,
        path: PathBuf,
        blob: Option<BlobId>,
        files: Vec<AffectedFile>,
        detail: &str,
        repair: Repair,
    ) {
        self.out.findings.push(Finding {
            repo: Some(self.repo.name.clone()),
            reason,
            place: Place::Path(path),
            blob,
            files,
            detail: detail.into(),
            outcome: Outcome::Found,
            repair,
        });
    }

    fn add_problem(&mut self, problem: &Problem) {
        let reason = if problem.kind == ProblemKind::ForeignLink { Reason::ForeignLink } else { Reason::NotAFile };
        let (blob, files) = self.affected(&problem.path);
        self.add(reason, problem.path.clone(), blob, files, &problem.detail, Repair::None);
    }

    /// Returns the blob whose place this is, if it is one, and the files that cannot be used because of what is there.
    fn affected(&self, path: &Path) -> (Option<BlobId>, Vec<AffectedFile>) {
        let folder = self.layout.repo(&self.repo.name);
        if let Some(blob) = crate::cache::integrity::blob_at(&folder, path) {
            return (Some(blob), self.users(&blob).0);
        }
        let Ok(inside) = path.strip_prefix(folder.join("snapshots")) else { return (None, Vec::new()) };
        let mut parts = inside.iter().map(|part| part.to_str());
        let revision = parts.next().flatten().and_then(|name| name.parse::<Commit>().ok());
        let parts: Option<Vec<&str>> = parts.collect();
        let path = parts.and_then(|parts| parts.join("/").parse::<RepoPath>().ok());
        let file = revision.zip(path).map(|(revision, path)| AffectedFile { revision, path });
        (None, file.into_iter().collect())
    }

    fn cannot_verify(&mut self, path: PathBuf, reason: UnverifiedReason) {
        self.out.unverified.push(Unverified { repo: self.repo.name.clone(), path, reason });
    }

    /// Returns the files of all revisions that are this blob. Hard links have to be made again when it is replaced.
    fn users(&self, blob: &BlobId) -> (Vec<AffectedFile>, Vec<AffectedFile>) {
        let (mut files, mut hard_links) = (Vec::new(), Vec::new());
        for (commit, revision) in &self.repo.revisions {
            for (path, file) in revision.files.iter().filter(|(_, file)| file.blob() == Some(*blob)) {
                let affected = AffectedFile { revision: commit.clone(), path: path.clone() };
                if matches!(file.kind, FileKind::Real { .. }) {
                    hard_links.push(affected.clone());
                }
                files.push(affected);
            }
        }
        (files, hard_links)
    }

    /// Returns the size that a tree says a blob has.
    fn size_of(&self, blob: &BlobId) -> Option<u64> {
        let trees = self.repo.revisions.values().filter_map(|revision| revision.tree());
        let mut entries = trees.flat_map(|tree| tree.entries().map(|(_, entry)| entry));
        entries.find(|entry| entry.blob == *blob).map(|entry| entry.size)
    }

    fn blobs(&mut self) {
        for (id, blob) in &self.repo.blobs {
            match &blob.check {
                Check::Good => self.out.verified.add(blob.size),
                Check::InUse => self.out.in_use += 1,
                Check::Unchecked | Check::Unreadable => {}
                Check::Wrong { found, size } => {
                    let (files, link) = self.users(id);
                    let expected = self.size_of(id);
                    let detail = wrong_bytes(found, *size, expected);
                    // Nothing is lost if it is unused, but the client would use it for the next file of that name.
                    let repair = match files.is_empty() && !self.repo.is_part {
                        true => Repair::SetAside,
                        false => Repair::Fetch { link, size: expected },
                    };
                    self.add(Reason::Corrupt, blob.path.clone(), Some(*id), files, &detail, repair);
                }
            }
        }
    }

    /// Adds one finding for each missing blob, regardless of the number of links to it.
    fn missing_blobs(&mut self) {
        let mut missing: BTreeMap<BlobId, Vec<AffectedFile>> = BTreeMap::new();
        for (commit, revision) in &self.repo.revisions {
            for (path, file) in &revision.files {
                if let FileKind::Broken(Some(blob)) = file.kind {
                    missing
                        .entry(blob)
                        .or_default()
                        .push(AffectedFile { revision: commit.clone(), path: path.clone() });
                }
            }
        }
        for (blob, files) in missing {
            let path = self.layout.blob(&self.repo.name, &blob);
            let repair = Repair::Fetch { link: Vec::new(), size: self.size_of(&blob) };
            self.add(Reason::Missing, path, Some(blob), files, "the link leads to nothing", repair);
        }
    }

    fn file(&mut self, commit: &Commit, revision: &RevisionFacts, path: &RepoPath) {
        let file = &revision.files[path];
        let at = self.layout.snapshot_file(&self.repo.name, commit, path);
        let this = || vec![AffectedFile { revision: commit.clone(), path: path.clone() }];
        let tree = revision.tree();
        let listed = tree.and_then(|tree| tree.get(path));
        let fetch = |size| Repair::Fetch { link: this(), size };
        match &file.kind {
            FileKind::Link { blob, is_absolute } => {
                if let Some(entry) = listed.filter(|entry| entry.blob != *blob) {
                    let is_twin = entry.blob.may_be_twin(blob) && matches!(file.twin, Check::Good);
                    // When the linked blob is itself corrupt, that is what has to be repaired.
                    let is_known = self.repo.blobs.get(blob).is_some_and(|blob| blob.check.is_wrong());
                    if !is_twin && !is_known && !matches!(file.twin, Check::InUse | Check::Unreadable) {
                        let detail = format!("it links to blob {blob}, but the commit's tree says {}", entry.blob);
                        self.add(Reason::WrongBlob, at, Some(entry.blob), this(), &detail, fetch(Some(entry.size)));
                        return;
                    }
                }
                if *is_absolute {
                    let detail = "its target is an absolute path, which breaks when the cache is moved";
                    self.add(Reason::AbsoluteLink, at, Some(*blob), this(), detail, Repair::Link);
                }
            }
            FileKind::Broken(Some(_)) => {}
            FileKind::Broken(None) | FileKind::Foreign(_) => {
                let detail = match &file.kind {
                    FileKind::Foreign(target) => {
                        format!("it links to {}, which is not a blob of this repo", crate::error::shown(target))
                    }
                    _ => "the link leads to nothing".into(),
                };
                let reason =
                    if matches!(file.kind, FileKind::Foreign(_)) { Reason::ForeignLink } else { Reason::Missing };
                match listed {
                    Some(entry) => self.add(reason, at, Some(entry.blob), this(), &detail, fetch(Some(entry.size))),
                    None => self.add(reason, at, None, this(), &detail, Repair::LookUp),
                }
            }
            FileKind::Unnamed => self.cannot_verify(at, UnverifiedReason::NoHash),
            FileKind::Real { size, hard_link, expected, check } => match (check, expected) {
                // The finding about the blob covers it.
                (_, None) if hard_link.is_some() => {}
                (Check::Wrong { .. }, Some(blob)) if *hard_link == Some(*blob) => {}
                (Check::Good, _) if hard_link.is_some() => {}
                (Check::Good, _) => self.out.verified.add(*size),
                (Check::InUse, _) => self.out.in_use += 1,
                (Check::Wrong { found, size }, Some(blob)) => {
                    let expected = listed.map(|entry| entry.size);
                    let detail = wrong_bytes(found, *size, expected);
                    self.add(Reason::Corrupt, at, Some(*blob), this(), &detail, fetch(expected));
                }
                (Check::Unreadable, _) => {}
                (Check::Unchecked | Check::Wrong { .. }, _) => {
                    let reason = if tree.is_some() { UnverifiedReason::Stray } else { UnverifiedReason::NoTree };
                    self.cannot_verify(at, reason);
                }
            },
        }
    }

    fn tree(&mut self, commit: &Commit, revision: &RevisionFacts) {
        let path = self.layout.tree(&self.repo.name, commit);
        match &revision.tree {
            TreeFile::Absent if revision.has_unknown_tree => self.cannot_verify(path, UnverifiedReason::UnknownTree),
            TreeFile::Absent | TreeFile::Valid(_) => {}
            TreeFile::Private => self.cannot_verify(path, UnverifiedReason::PrivateTree),
            TreeFile::Invalid(why) => {
                self.add(Reason::BadTree, path, None, Vec::new(), why, Repair::Tree);
            }
        }
    }

    fn reference(&mut self, path: &Path, reference: &RefFacts) {
        let is_young = reference.written.is_none_or(|time| self.now.duration_since(time).is_ok_and(|age| age < YOUNG));
        let (reason, detail, repair) = match &reference.fault {
            RefFault::Untidy => {
                let detail = "it has white space around its commit, which huggingface_hub takes as part of it";
                (Reason::UntidyRef, detail.to_string(), Repair::TidyRef)
            }
            // The client writes the ref before it downloads anything.
            RefFault::Dangling(_) if self.repo.is_busy => {
                self.out.in_use += 1;
                return;
            }
            RefFault::Dangling(commit) => {
                let detail = format!("it names {}, of which there is no snapshot", commit.short());
                match is_young {
                    true => {
                        (Reason::DanglingRef, detail + "; it may be of a download that has just begun", Repair::None)
                    }
                    false => (Reason::DanglingRef, detail, Repair::Ref),
                }
            }
            RefFault::Bad(detail) if reference.name.is_none() => (Reason::BadRef, detail.clone(), Repair::None),
            RefFault::Bad(detail) => (Reason::BadRef, detail.clone(), Repair::Ref),
        };
        self.add(reason, path.to_path_buf(), None, Vec::new(), &detail, repair);
    }

    fn row(&self, commit: &Commit, revision: &RevisionFacts, damaged: BTreeSet<String>) -> Row {
        let absent = revision.tree().map(|tree| {
            let listed = tree.entries().filter(|(path, _)| !revision.files.contains_key(*path)).count();
            listed + tree.unportable_paths().count().saturating_sub(revision.bad_paths.len())
        });
        let is_unchecked = revision.is_unreadable
            || revision.files.iter().any(|(path, file)| self.is_unchecked(revision.tree(), path, file));
        let status = completeness(damaged, is_unchecked, absent);
        let (repo, files) = (self.repo.name.clone(), revision.files.len());
        Row { repo, revision: commit.clone(), status, files, absent }
    }

    /// Returns whether nothing says if a file is good. One that the tree does not list takes nothing from its revision,
    /// unless it is a blob that should have been checked.
    fn is_unchecked(&self, tree: Option<&Tree>, path: &RepoPath, file: &FileFacts) -> bool {
        let is_open = |check: &Check| matches!(check, Check::Unchecked | Check::Unreadable | Check::InUse);
        let is_open_blob = |blob| self.repo.blobs.get(blob).is_none_or(|blob| is_open(&blob.check));
        let listed = tree.and_then(|tree| tree.get(path));
        match &file.kind {
            FileKind::Link { blob, .. } => {
                let is_twin = listed.is_some_and(|entry| entry.blob.may_be_twin(blob));
                is_open_blob(blob) || (is_twin && is_open(&file.twin))
            }
            FileKind::Unnamed => listed.is_some(),
            FileKind::Real { hard_link, expected: None, .. } => hard_link.as_ref().is_some_and(is_open_blob),
            FileKind::Real { check, .. } => is_open(check),
            FileKind::Broken(_) | FileKind::Foreign(_) => false,
        }
    }
}

/// Returns how much there is of a revision, given its damaged files, whether any file could not be checked and, if known,
/// the number of files that are not there.
pub(super) fn completeness(damaged: BTreeSet<String>, is_unchecked: bool, absent: Option<usize>) -> Completeness {
    match (damaged.is_empty(), absent.filter(|_| !is_unchecked)) {
        (false, _) => Completeness::Damaged { files: damaged.into_iter().collect() },
        (true, Some(0)) => Completeness::Complete,
        (true, Some(missing)) => Completeness::Partial { missing },
        (true, None) => Completeness::Unknown,
    }
}

/// "it has 5 bytes instead of 6", or what its bytes hash to.
fn wrong_bytes(found: &BlobId, size: u64, expected: Option<u64>) -> String {
    match expected.filter(|expected| *expected != size) {
        Some(expected) => format!("it has {size} bytes instead of {expected}"),
        None => format!("its bytes hash to {found}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::integrity::BlobFacts;
    use crate::cache::inventory::BlobPlace;
    use crate::model::ids::RefName;
    use std::sync::Arc;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn id(digit: char) -> BlobId {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn sha256(digit: char) -> BlobId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    /// A repo with one revision, and a tree that lists these paths with the digits of their blobs, ten bytes each.
    struct Repo(RepoFacts);

    impl Repo {
        fn new(tree: Option<&[(&str, char)]>) -> Repo {
            let entry = |(path, digit): &(&str, char)| {
                format!("\"{path}\": {{\"size\": 10, \"blob_id\": \"{}\"}}", digit.to_string().repeat(40))
            };
            let tree = match tree {
                None => TreeFile::Absent,
                Some(entries) => {
                    let entries: Vec<String> = entries.iter().map(entry).collect();
                    let text = format!("{{\"format_version\": 1, \"files\": {{{}}}}}", entries.join(", "));
                    TreeFile::Valid(Arc::new(Tree::parse(text.as_bytes()).unwrap().unwrap()))
                }
            };
            let revision = RevisionFacts {
                files: BTreeMap::new(),
                bad_paths: Vec::new(),
                tree,
                has_unknown_tree: false,
                is_unreadable: false,
            };
            Repo(RepoFacts {
                name: RepoName::from_folder("models--org--name").unwrap(),
                is_part: false,
                blobs: BTreeMap::new(),
                revisions: [(COMMIT.parse().unwrap(), revision)].into(),
                refs: BTreeMap::new(),
                unnamed: Vec::new(),
                odd: Vec::new(),
                is_busy: false,
            })
        }

        fn blob(mut self, blob: BlobId, check: Check) -> Repo {
            let path = format!("blobs/{blob}").into();
            self.0.blobs.insert(blob, BlobFacts { path, place: BlobPlace::Blobs, size: 10, check });
            self
        }

        fn file(self, path: &str, kind: FileKind) -> Repo {
            self.file_with_twin(path, kind, Check::Unchecked)
        }

        fn file_with_twin(mut self, path: &str, kind: FileKind, twin: Check) -> Repo {
            let revision = self.0.revisions.values_mut().next().unwrap();
            revision.files.insert(path.parse().unwrap(), FileFacts { kind, twin });
            self
        }

        fn reference(mut self, fault: RefFault, hours: u64) -> Repo {
            let written = Some(now() - Duration::from_secs(3600 * hours));
            let facts = RefFacts { name: Some(RefName::main()), fault, written };
            self.0.refs.insert("refs/main".into(), facts);
            self
        }

        fn judge(self) -> Judgement {
            let facts = Facts { layout: Layout::new("/hub"), repos: vec![self.0], failures: Vec::new() };
            judge(&facts, now())
        }

        /// Reasons with their repairs, and the status of the revision.
        fn judged(self) -> (Vec<(Reason, Repair)>, String) {
            let judged = self.judge();
            let findings = judged.findings.into_iter().map(|finding| (finding.reason, finding.repair)).collect();
            (findings, judged.revisions[0].status.word().to_string())
        }
    }

    fn link(blob: BlobId) -> FileKind {
        FileKind::Link { blob, is_absolute: false }
    }

    fn wrong() -> Check {
        Check::Wrong { found: id('f'), size: 10 }
    }

    fn file(path: &str) -> AffectedFile {
        AffectedFile { revision: COMMIT.parse().unwrap(), path: path.parse().unwrap() }
    }

    #[test]
    fn good_files_are_complete_partial_or_unknown() {
        let with = |tree| Repo::new(tree).blob(id('1'), Check::Good).file("a", link(id('1'))).judged();
        assert_eq!(with(Some(&[("a", '1')])), (vec![], "complete".into()));
        assert_eq!(with(Some(&[("a", '1'), ("b", '2')])), (vec![], "partial".into()));
        assert_eq!(with(None), (vec![], "unknown".into()));
    }

    #[test]
    fn wrong_bytes_are_fetched_and_an_unused_blob_is_set_aside() {
        let fetch = |link, size| Repair::Fetch { link, size };
        let used = Repo::new(None).blob(id('1'), wrong()).file("a", link(id('1'))).judged();
        assert_eq!(used, (vec![(Reason::Corrupt, fetch(vec![], None))], "damaged".into()));
        // A tree knows the size; a hard link has to be made again.
        let hard = FileKind::Real { size: 10, hard_link: Some(id('1')), expected: Some(id('1')), check: wrong() };
        let hard = Repo::new(Some(&[("a", '1')])).blob(id('1'), wrong()).file("a", hard).judged();
        assert_eq!(hard, (vec![(Reason::Corrupt, fetch(vec![file("a")], Some(10)))], "damaged".into()));
        let unused = Repo::new(None).blob(id('1'), wrong()).judged();
        assert_eq!(unused, (vec![(Reason::Corrupt, Repair::SetAside)], "unknown".into()));
        for check in [Check::InUse, Check::Unreadable, Check::Unchecked] {
            let judged = Repo::new(Some(&[("a", '1')])).blob(id('1'), check).file("a", link(id('1'))).judge();
            assert!(judged.findings.is_empty() && judged.verified.blobs == 0);
            assert_eq!(judged.revisions[0].status.word(), "unknown");
        }
    }

    #[test]
    fn what_could_not_be_checked_is_not_complete() {
        let tree: &[(&str, char)] = &[("a", '1')];
        let unread = |expected| FileKind::Real { size: 1, hard_link: None, expected, check: Check::Unreadable };
        for kind in [link(id('1')), FileKind::Unnamed, unread(Some(id('1')))] {
            assert_eq!(Repo::new(Some(tree)).file("a", kind).judged(), (vec![], "unknown".into()));
        }
        let good = || Repo::new(Some(tree)).blob(id('1'), Check::Good).file("a", link(id('1')));
        // Files that are no part of the commit change nothing.
        let stray = FileKind::Real { size: 1, hard_link: None, expected: None, check: Check::Unchecked };
        assert_eq!(good().file("b", stray).file("c", FileKind::Unnamed).judged().1, "complete");
        let mut unreadable = good();
        unreadable.0.revisions.values_mut().for_each(|revision| revision.is_unreadable = true);
        assert_eq!(unreadable.judged().1, "unknown");
    }

    #[test]
    fn what_is_not_a_file_damages_the_files_that_need_it() {
        let odd = |place: &str| {
            let path = Path::new("/hub/models--org--name").join(place);
            Problem::new(path, ProblemKind::NotAFile, "is a folder")
        };
        let mut repo = Repo::new(Some(&[("a", '1'), ("d/b", '2')])).file("a", link(id('1')));
        repo.0.odd = vec![odd(&format!("blobs/{}", id('1'))), odd(&format!("snapshots/{COMMIT}/d/b")), odd("refs/x")];
        let judged = repo.judge();
        let files: Vec<_> = judged.findings.iter().map(|finding| finding.files.clone()).collect();
        assert_eq!(files, [vec![], vec![file("a")], vec![file("d/b")]]);
        assert_eq!(judged.findings[1].blob, Some(id('1')));
        assert_eq!(judged.revisions[0].status.word(), "damaged");
    }

    #[test]
    fn one_missing_blob_is_one_finding() {
        let broken = || FileKind::Broken(Some(id('1')));
        let judged = Repo::new(None).file("a", broken()).file("b", broken()).judge();
        assert_eq!((judged.findings.len(), judged.findings[0].files.len()), (1, 2));
        let unknown = Repo::new(None).file("a", FileKind::Broken(None)).judged();
        assert_eq!(unknown.0, [(Reason::Missing, Repair::LookUp)]);
        let foreign = FileKind::Foreign("/etc/passwd".into());
        let listed = Repo::new(Some(&[("a", '1')])).file("a", foreign).judged();
        let fetch = Repair::Fetch { link: vec![file("a")], size: Some(10) };
        assert_eq!(listed, (vec![(Reason::ForeignLink, fetch)], "damaged".into()));
    }

    #[test]
    fn a_link_may_contradict_the_tree_only_by_the_other_algorithm() {
        let tree: &[(&str, char)] = &[("a", '1')];
        let judged = |blob: BlobId, twin| {
            Repo::new(Some(tree)).blob(blob, Check::Good).file_with_twin("a", link(blob), twin).judged()
        };
        assert_eq!(judged(sha256('2'), Check::Good), (vec![], "complete".into()));
        for (blob, twin) in [(id('2'), Check::Unchecked), (sha256('2'), wrong())] {
            assert_eq!(judged(blob, twin).0[0].0, Reason::WrongBlob);
        }
        // The blob itself is what has to be repaired.
        let both = Repo::new(Some(tree)).blob(sha256('2'), wrong()).file_with_twin("a", link(sha256('2')), wrong());
        assert_eq!(both.judged().0.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), [Reason::Corrupt]);
    }

    #[test]
    fn an_absolute_link_is_no_damage() {
        let absolute = FileKind::Link { blob: id('1'), is_absolute: true };
        let judged = Repo::new(Some(&[("a", '1')])).blob(id('1'), Check::Good).file("a", absolute).judged();
        assert_eq!(judged, (vec![(Reason::AbsoluteLink, Repair::Link)], "complete".into()));
    }

    #[test]
    fn a_dangling_ref_is_left_alone_while_it_may_be_of_a_download() {
        let dangling = || RefFault::Dangling("f".repeat(40).parse().unwrap());
        assert_eq!(Repo::new(None).reference(dangling(), 2).judged().0, [(Reason::DanglingRef, Repair::Ref)]);
        assert_eq!(Repo::new(None).reference(dangling(), 0).judged().0, [(Reason::DanglingRef, Repair::None)]);
        let mut busy = Repo::new(None).reference(dangling(), 2);
        busy.0.is_busy = true;
        let judged = busy.judge();
        assert_eq!((judged.findings.len(), judged.in_use), (0, 1));
        assert_eq!(Repo::new(None).reference(RefFault::Untidy, 0).judged().0, [(Reason::UntidyRef, Repair::TidyRef)]);
    }

    #[test]
    fn what_nothing_proves_is_said_and_is_no_damage() {
        let real = || FileKind::Real { size: 1, hard_link: None, expected: None, check: Check::Unchecked };
        for (tree, reason) in [(None, UnverifiedReason::NoTree), (Some(&[("b", '1')][..]), UnverifiedReason::Stray)] {
            let judged = Repo::new(tree).file("a", real()).judge();
            assert_eq!((judged.findings.len(), judged.unverified[0].reason), (0, reason));
        }
        let judged = Repo::new(None).file("a", FileKind::Unnamed).judge();
        assert_eq!(judged.unverified[0].reason, UnverifiedReason::NoHash);
    }
}
