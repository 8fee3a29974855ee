//! Tests of the plan with fixed dates and random caches, and of its execution when the cache has changed since the
//! scan.

mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;

use super::held::{Held, Lack, Proof};
use super::{Agreement, Options, Plan, Reason, SkipReason, Target, plan, plan_removal};
use crate::cache::inventory::{
    Blob, BlobPlace, Inventory, Problem, ProblemKind, RealFile, Repo, Revision, SnapshotFile, UnfinishedFile,
};
use crate::cache::layout::Layout;
use crate::cache::prune_facts::{DanglingRef, Facts, Leftover, RepoFacts, gather};
use crate::cache::scan::scan;
use crate::cache::shared::Payload;
use crate::error::Cause;
use crate::model::ids::{BlobId, Commit, RefName, RepoName, RepoType};
use crate::model::manifest::{Manifest, ManifestFile};
use crate::model::pins::Pins;
use crate::platform::Inode;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn options(budget: u64) -> Options {
    Options {
        budget: Some(budget),
        orphan_grace: Duration::from_secs(HOUR),
        temporary_grace: Duration::from_secs(DAY),
        ..Options::default()
    }
}

/// 2024-01-31, 00:00 UTC.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_706_659_200)
}

fn ago(seconds: u64) -> Option<SystemTime> {
    Some(now() - Duration::from_secs(seconds))
}

fn blob_id(number: u64) -> BlobId {
    format!("{number:064x}").parse().unwrap()
}

fn commit(number: u64) -> Commit {
    format!("{number:040x}").parse().unwrap()
}

fn blob(size: u64, seconds_ago: u64) -> Blob {
    let time = ago(seconds_ago);
    Blob { size, place: BlobPlace::Blobs, inode: None, accessed: time, modified: time, placed: time }
}

fn revision(blobs: &[u64]) -> Revision {
    let files = blobs.iter().map(|blob| (format!("file-{blob}").parse().unwrap(), SnapshotFile::Link(blob_id(*blob))));
    Revision { files: files.collect() }
}

fn repo(name: &str) -> Repo {
    Repo {
        name: RepoName::new(RepoType::Model, name.parse().unwrap()),
        blobs: BTreeMap::new(),
        revisions: BTreeMap::new(),
        refs: BTreeMap::new(),
        pins: BTreeSet::new(),
        untidy_refs: Vec::new(),
        trees: Vec::new(),
        in_flight: Vec::new(),
        temporaries: Vec::new(),
        locks: Vec::new(),
        problems: Vec::new(),
        is_link: false,
    }
}

fn facts(repos: Vec<Repo>) -> Facts {
    let layout = Layout::new("/hub");
    Facts {
        inventory: Inventory { layout, repos, problems: Vec::new(), shared_store: false },
        payloads: Vec::new(),
        store_problems: Vec::new(),
        leftovers: Vec::new(),
        root_temporaries: Vec::new(),
        hidden: BTreeMap::new(),
        harmless: BTreeSet::new(),
        repos: BTreeMap::new(),
        noatime: false,
    }
}

/// Describes a plan with one line for each action and skip.
fn describe(plan: &Plan) -> String {
    let mut out = String::new();
    for action in &plan.actions {
        let target = match &action.target {
            Target::Leftover { path }
            | Target::RootTemporary { path }
            | Target::Temporary { path, .. }
            | Target::Payload { path } => {
                format!("file {}", path.display())
            }
            Target::Blob { repo, blob } => format!("blob {repo} {}", &blob.to_string()[60..]),
            Target::Folder { repo } => format!("folder {repo}"),
            Target::Ref { repo, name, .. } => format!("ref {repo} {name}"),
            Target::Revision(gone) => {
                let blobs: Vec<String> = gone.blobs.iter().map(|blob| blob.to_string()[60..].to_string()).collect();
                format!("revision {}@{} [{}]", gone.repo, &gone.revision.as_str()[36..], blobs.join(" "))
            }
        };
        let _ = writeln!(out, "{:?}: {target}, frees {}", action.reason, action.bytes);
    }
    for skip in &plan.skips {
        let repo = skip.repo.as_ref().map(RepoName::to_string).unwrap_or_default();
        let revision = skip.revision.as_ref().map(|commit| format!("@{}", &commit.as_str()[36..])).unwrap_or_default();
        let path = skip.path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default();
        let _ = writeln!(out, "kept {repo}{revision}{path}: {:?}, {} bytes", skip.reason, skip.bytes);
    }
    let _ = write!(out, "{} of {} bytes", plan.freed, plan.size);
    out
}

/// Returns two repos: one with a main, a tag and two detached revisions, and one with an old detached revision.
fn everyday() -> Facts {
    let mut a = repo("org/a");
    for (number, size, days) in [(1, 100, 1), (2, 200, 9), (3, 300, 5), (4, 400, 3)] {
        a.blobs.insert(blob_id(number), blob(size, days * DAY));
        a.revisions.insert(commit(number), revision(&[number]));
    }
    a.refs.insert(RefName::main(), commit(1));
    a.refs.insert("v1.0".parse().unwrap(), commit(2));
    let mut b = repo("org/b");
    b.blobs.insert(blob_id(5), blob(500, 30 * DAY));
    b.revisions.insert(commit(5), revision(&[5]));
    facts(vec![a, b])
}

#[test]
fn within_the_budget_nothing_is_planned() {
    insta::assert_snapshot!(describe(&plan(&everyday(), &options(1500), now())), @"0 of 1500 bytes");
}

#[test]
fn detached_revisions_are_evicted_by_last_use_until_the_cache_fits() {
    insta::assert_snapshot!(describe(&plan(&everyday(), &options(701), now())), @"
    Detached: revision org/b@0005 [0005], frees 500
    Detached: revision org/a@0003 [0003], frees 300
    Empty: folder org/b, frees 0
    800 of 1500 bytes
    ");
}

#[test]
fn revisions_with_refs_are_kept_and_counted() {
    insta::assert_snapshot!(describe(&plan(&everyday(), &options(0), now())), @"
    Detached: revision org/b@0005 [0005], frees 500
    Detached: revision org/a@0003 [0003], frees 300
    Detached: revision org/a@0004 [0004], frees 400
    Empty: folder org/b, frees 0
    kept org/a@0002: Referenced, 200 bytes
    kept org/a@0001: Referenced, 100 bytes
    1200 of 1500 bytes
    ");
}

#[test]
fn if_requested_referenced_revisions_follow_by_last_use() {
    let options = Options { include_referenced: true, ..options(250) };
    insta::assert_snapshot!(describe(&plan(&everyday(), &options, now())), @"
    Detached: revision org/b@0005 [0005], frees 500
    Detached: revision org/a@0003 [0003], frees 300
    Detached: revision org/a@0004 [0004], frees 400
    Referenced: revision org/a@0002 [0002], frees 200
    Empty: folder org/b, frees 0
    1400 of 1500 bytes
    ");
}

/// Returns that the bucket holds these revisions, and of all others what it lacks.
fn held(facts: &Facts, holds: impl Fn(&RepoName, &Commit) -> bool) -> Held {
    let revisions =
        facts.inventory.repos.iter().flat_map(|repo| repo.revisions.keys().map(|commit| (&repo.name, commit)));
    let examined = revisions.map(|(repo, commit)| {
        let file = ManifestFile { path: "file".parse().unwrap(), blob: blob_id(0), size: 0 };
        let manifest = Manifest::new(repo.clone(), commit.clone(), vec![file], None).unwrap();
        let proof = Proof { manifest: Arc::new(manifest), refs: Vec::new() };
        ((repo.clone(), commit.clone()), if holds(repo, commit) { Ok(proof) } else { Err(Lack::Manifest) })
    });
    Held::of(examined)
}

#[test]
fn what_the_bucket_holds_goes_by_last_use_whether_or_not_a_ref_names_it() {
    let facts = everyday();
    let held = held(&facts, |_, revision| *revision != commit(5));
    let options = Options { held: Some(held), ..options(1000) };
    insta::assert_snapshot!(describe(&plan(&facts, &options, now())), @"
    Referenced: revision org/a@0002 [0002], frees 200
    Detached: revision org/a@0003 [0003], frees 300
    kept org/b@0005: NotInBucket, 500 bytes
    500 of 1500 bytes
    ");
    let nothing = Options { held: Some(Held::default()), include_referenced: true, ..options.clone() };
    assert_eq!(plan(&facts, &nothing, now()).freed, 0, "what was not examined is not held");
}

#[test]
fn an_age_without_a_budget_evicts_all_that_is_older() {
    let older_than = Some(Duration::from_secs(5 * DAY));
    let by_age = Options { budget: None, older_than, ..options(0) };
    insta::assert_snapshot!(describe(&plan(&everyday(), &by_age, now())), @"
    Detached: revision org/b@0005 [0005], frees 500
    Detached: revision org/a@0003 [0003], frees 300
    Empty: folder org/b, frees 0
    kept org/a@0002: Referenced, 200 bytes
    800 of 1500 bytes
    ");
    let both = Options { older_than, include_referenced: true, ..options(600) };
    insta::assert_snapshot!(describe(&plan(&everyday(), &both, now())), @"
    Detached: revision org/b@0005 [0005], frees 500
    Detached: revision org/a@0003 [0003], frees 300
    Referenced: revision org/a@0002 [0002], frees 200
    Empty: folder org/b, frees 0
    1000 of 1500 bytes
    ");
    let neither = Options { budget: None, ..options(0) };
    assert_eq!(plan(&everyday(), &neither, now()).freed, 0);
}

#[test]
fn pins_are_named_only_where_they_matter() {
    let keep = Pins::parse_list("org/b, org/a@v1.0").unwrap();
    let pinned = |budget| plan(&everyday(), &Options { keep: keep.clone(), ..options(budget) }, now());
    assert_eq!(pinned(1500).skips, []);
    insta::assert_snapshot!(describe(&pinned(1200)), @"
    Detached: revision org/a@0003 [0003], frees 300
    kept org/b@0005: Pinned, 500 bytes
    300 of 1500 bytes
    ");
}

#[test]
fn an_unknown_time_counts_as_now() {
    let mut facts = everyday();
    facts.inventory.repos[1].blobs.get_mut(&blob_id(5)).unwrap().accessed = None;
    let planned = describe(&plan(&facts, &options(1200), now()));
    assert!(planned.starts_with("Detached: revision org/a@0003"), "{planned}");
}

#[test]
fn leftovers_are_deleted_by_age_even_within_the_budget() {
    let mut facts = everyday();
    let file = |name: &str, age: Option<SystemTime>| UnfinishedFile {
        path: name.into(),
        size: 7,
        on_disk: 7,
        modified: age,
        changed: None,
    };
    let repo = &mut facts.inventory.repos[0];
    repo.in_flight = vec![
        file("old.incomplete", ago(DAY)),
        file("young.incomplete", ago(DAY - 1)),
        file("timeless.incomplete", None),
        file("held.incomplete", ago(9 * DAY)),
    ];
    let repo = &mut facts.inventory.repos[1];
    repo.blobs.insert(blob_id(6), blob(60, HOUR));
    repo.blobs.insert(blob_id(7), blob(70, HOUR - 1));
    // A fresh link to old bytes.
    repo.blobs.insert(blob_id(8), Blob { placed: ago(1), ..blob(80, DAY) });
    let held = RepoFacts { held: BTreeSet::from(["held.incomplete".into()]), ..RepoFacts::default() };
    facts.repos.insert(facts.inventory.repos[0].name.clone(), held);
    facts.leftovers = [("old", DAY), ("young", HOUR)]
        .map(|(name, age)| Leftover { path: name.into(), bytes: 5, modified: ago(age) })
        .into();
    let payload = |path: &str, age, references| Payload {
        path: path.into(),
        size: 9,
        inode: None,
        modified: ago(age),
        references,
    };
    facts.payloads = vec![
        payload("/hub/blobs/unused", HOUR, Some(BTreeSet::new())),
        payload("/hub/blobs/young", 1, Some(BTreeSet::new())),
        payload("/hub/blobs/unlisted", DAY, None),
        payload("/hub/blobs/linked", DAY, Some(BTreeSet::from(["/hub/models--x/blobs/y".into()]))),
    ];
    insta::assert_snapshot!(describe(&plan(&facts, &options(1 << 30), now())), @"
    Abandoned: file old, frees 5
    Abandoned: file old.incomplete, frees 7
    Unused: blob org/b 0006, frees 60
    Unused: file /hub/blobs/unused, frees 9
    kept  young: InFlight, 5 bytes
    kept org/a young.incomplete: InFlight, 7 bytes
    kept org/a timeless.incomplete: InFlight, 7 bytes
    kept org/a held.incomplete: Held, 7 bytes
    kept org/b /hub/models--org--b/blobs/0000000000000000000000000000000000000000000000000000000000000007: Young, 70 bytes
    kept org/b /hub/models--org--b/blobs/0000000000000000000000000000000000000000000000000000000000000008: Young, 80 bytes
    kept  /hub/blobs/young: Young, 9 bytes
    kept  /hub/blobs/unlisted: Unlisted, 9 bytes
    81 of 1784 bytes
    ");
}

fn with_problem(kind: ProblemKind, path: &str) -> Plan {
    let mut facts = everyday();
    facts.inventory.repos[0].blobs.insert(blob_id(6), blob(60, DAY));
    facts.inventory.repos[0].problems.push(Problem::new(path.into(), kind, "why"));
    plan(&facts, &options(0), now())
}

#[test]
fn problems_keep_everything_that_they_may_hide() {
    let touches_a =
        |plan: &Plan| describe(plan).lines().any(|line| !line.starts_with("kept") && line.contains("org/a"));
    for kind in [ProblemKind::BrokenLink, ProblemKind::ForeignLink, ProblemKind::BadName] {
        assert!(!touches_a(&with_problem(kind, "/hub/models--org--a/blobs/x")), "{kind:?}");
    }
    let unreadable = with_problem(ProblemKind::Unreadable, "/hub/models--org--a/refs");
    assert!(!touches_a(&unreadable) && unreadable.failures.len() == 1 && unreadable.freed == 500);
    // An unreadable place may hold links to the blobs of any repo.
    for path in ["", "/blobs", "/blobs/x", "/snapshots", "/snapshots/x", "/snapshots/x/y", "/strange"] {
        let path = format!("/hub/models--org--a{path}");
        let blocked = with_problem(ProblemKind::Unreadable, &path);
        assert_eq!((blocked.actions.len(), blocked.freed, blocked.failures.len()), (0, 0, 1), "{path}");
        let skip = blocked.skips.iter().find(|skip| skip.reason == SkipReason::Unreadable).unwrap();
        assert_eq!((skip.path.as_ref().unwrap().to_str().unwrap(), skip.bytes), (&*path, 1560), "{path}");
    }
    assert!(!touches_a(&with_problem(ProblemKind::UnknownEntry, "/hub/models--org--a/snapshots/x")));
    let stray = with_problem(ProblemKind::UnknownEntry, "/hub/models--org--a/README");
    assert_eq!(stray.freed, 1260, "a stray file hides nothing");
    let reference = with_problem(ProblemKind::BadRef, "/hub/models--org--a/refs/x");
    assert_eq!(reference.freed, 560, "orphans are deleted, but the ref may name any revision");

    let mut facts = everyday();
    let problem = Problem::new("/hub".into(), ProblemKind::Unreadable, "why");
    facts.inventory.problems.push(problem);
    let blocked = plan(&facts, &options(0), now());
    assert_eq!((blocked.actions.len(), blocked.failures.len()), (0, 1));
}

#[test]
fn a_place_without_links_blocks_nothing_else() {
    let mut facts = everyday();
    let path = PathBuf::from("/hub/models--org--a/blobs");
    let problem = Problem::new(path.clone(), ProblemKind::Unreadable, "why");
    facts.inventory.repos[0].problems.push(problem);
    assert_eq!(plan(&facts, &options(0), now()).freed, 0);
    facts.harmless.insert(path);
    assert_eq!(plan(&facts, &options(0), now()).freed, 500);
    // Hidden behind a link, or in a folder that is not part of a cache.
    facts.hidden.insert("/elsewhere".into(), Cause::Permission);
    let blocked = plan(&facts, &options(0), now());
    assert_eq!(blocked.actions.len(), 0);
    assert_eq!(
        blocked.failures.iter().map(|failure| failure.cause).collect::<Vec<_>>(),
        [Cause::Other, Cause::Permission]
    );
    // It is not a failure if nothing would be deleted anyway.
    assert_eq!(plan(&facts, &options(1 << 30), now()).failures.len(), 1);
}

#[test]
fn a_recent_download_at_the_root_may_be_for_any_repo() {
    let mut facts = everyday();
    let file = |age: u64, changed: Option<u64>| {
        let path = "/hub/tmp/aB3dE5f".into();
        vec![UnfinishedFile { path, size: 7, on_disk: 7, modified: ago(age), changed: changed.and_then(ago) }]
    };
    facts.inventory.repos[0].blobs.insert(blob_id(6), blob(60, DAY));
    facts.root_temporaries = file(DAY - 1, None);
    let blocked = plan(&facts, &options(0), now());
    assert_eq!((blocked.actions.len(), blocked.size), (0, 1567));
    assert!(blocked.skips.iter().any(|skip| skip.reason == SkipReason::InFlight && skip.bytes == 1260), "{blocked:?}");
    facts.root_temporaries = file(DAY, Some(DAY));
    assert_eq!(plan(&facts, &options(0), now()).freed, 1267);
    // A modification time in the future does not protect a file forever.
    facts.root_temporaries = file(0, Some(DAY));
    facts.root_temporaries[0].modified = Some(now() + Duration::from_secs(9 * DAY));
    assert_eq!(plan(&facts, &options(0), now()).freed, 1267);
}

#[test]
fn a_repo_with_unfinished_files_keeps_everything_else() {
    for (held, locked, temporaries) in
        [(false, false, false), (true, false, false), (false, true, false), (false, false, true)]
    {
        let mut facts = everyday();
        let (name, repo) = (facts.inventory.repos[0].name.clone(), &mut facts.inventory.repos[0]);
        repo.blobs.insert(blob_id(6), blob(60, 9 * DAY));
        let file =
            |age| UnfinishedFile { path: "x.part".into(), size: 7, on_disk: 7, modified: ago(age), changed: None };
        match (held, locked, temporaries) {
            (false, false, false) => repo.in_flight.push(file(DAY - 1)),
            (_, _, true) => repo.temporaries.push(file(DAY - 1)),
            _ => {}
        }
        let dangling = DanglingRef { commit: commit(9), written: ago(9 * DAY) };
        let about = RepoFacts {
            held: if held { BTreeSet::from(["y.part".into()]) } else { BTreeSet::new() },
            locked,
            dangling_refs: BTreeMap::from([("lost".parse().unwrap(), dangling)]),
            ..RepoFacts::default()
        };
        facts.repos.insert(name.clone(), about);
        let planned = describe(&plan(&facts, &options(0), now()));
        let touched = planned.lines().any(|line| !line.starts_with("kept") && line.contains("org/a"));
        assert!(!touched && planned.contains("revision org/b"), "{planned}");
        // The bytes include everything in the repo, even main and the tag.
        assert!(
            planned.contains("kept org/a: InFlight, 1060") || planned.contains("kept org/a: Held, 1060"),
            "{planned}"
        );
    }
}

#[test]
fn only_actions_that_were_shown_are_carried_out() {
    let shown = Agreement::to(&plan(&everyday(), &options(701), now()));
    let mut facts = everyday();
    // A blob and a ref that were added while the user was asked.
    facts.inventory.repos[0].blobs.insert(blob_id(6), blob(60, DAY));
    facts.inventory.repos[0].refs.insert("new".parse().unwrap(), commit(3));
    let mut planned = plan(&facts, &Options { include_referenced: true, ..options(0) }, now());
    planned.limit_to(&shown);
    insta::assert_snapshot!(describe(&planned), @"
    Detached: revision org/b@0005 [0005], frees 500
    Empty: folder org/b, frees 0
    kept org/a: Changed, 60 bytes
    kept org/a@0004: Changed, 400 bytes
    kept org/a@0002: Changed, 200 bytes
    kept org/a@0003: Changed, 300 bytes
    kept org/a@0001: Changed, 100 bytes
    kept org/a: Changed, 0 bytes
    500 of 1560 bytes
    ");
}

/// A ref that hf-hub named after the commit does not keep the commit, since no user chose that name.
#[test]
fn a_ref_named_after_its_commit_does_not_keep_it() {
    let mut facts = everyday();
    facts.inventory.repos[1].pins.insert(commit(5));
    let planned = plan(&facts, &options(1400), now());
    let Target::Revision(gone) = &planned.actions[0].target else { panic!("{planned:?}") };
    assert_eq!((&gone.revision, gone.refs.as_slice()), (&commit(5), &[RefName::of_commit(&commit(5))][..]));
    assert_eq!(planned.actions[0].reason, Reason::Detached);
}

#[test]
fn a_repo_in_use_is_left_alone() {
    let mut facts = everyday();
    let name = facts.inventory.repos[1].name.clone();
    facts.repos.insert(name.clone(), RepoFacts { client_seen: ago(299), ..RepoFacts::default() });
    assert_eq!(plan(&facts, &options(0), now()).freed, 1200, "no file has arrived since then");
    facts.inventory.repos[1].blobs.insert(blob_id(5), blob(500, 299));
    let busy = plan(&facts, &options(0), now());
    assert!(busy.skips.iter().any(|skip| skip.reason == SkipReason::Busy && skip.repo.as_ref() == Some(&name)));
    assert_eq!(busy.freed, 700);
    facts.repos.insert(name.clone(), RepoFacts { client_seen: ago(300), ..RepoFacts::default() });
    assert_eq!(plan(&facts, &options(0), now()).freed, 1200);
    // A revision that is complete according to its tree is not half downloaded.
    let complete = BTreeSet::from([commit(5)]);
    facts.repos.insert(name, RepoFacts { client_seen: ago(299), complete, ..RepoFacts::default() });
    let planned = plan(&facts, &options(0), now());
    assert_eq!(planned.freed, 1200);
    assert!(planned.actions.iter().any(|action| matches!(action.target, Target::Folder { .. })));
}

#[test]
fn in_a_repo_in_use_only_the_newest_revision_is_kept() {
    let mut facts = everyday();
    let name = facts.inventory.repos[0].name.clone();
    facts.inventory.repos[0].refs.clear();
    facts.inventory.repos[0].blobs.insert(blob_id(1), blob(100, 10));
    // Another revision was read later, but the one that arrived last may be half downloaded.
    facts.inventory.repos[0].blobs.get_mut(&blob_id(4)).unwrap().accessed = ago(1);
    facts.repos.insert(name, RepoFacts { client_seen: ago(1), ..RepoFacts::default() });
    let planned = plan(&facts, &options(0), now());
    let busy: Vec<_> = planned.skips.iter().filter(|skip| skip.reason == SkipReason::Busy).collect();
    assert_eq!((busy.len(), busy[0].revision.clone()), (1, Some(commit(1))));
    assert_eq!(planned.freed, 1400);
}

/// Generates a repo: blobs with sizes and ages, revisions of some of them, and refs to some of those.
fn any_repo(name: &'static str) -> impl Strategy<Value = Repo> {
    let blobs = prop::collection::vec((1u64..50, 0u64..100, prop::option::of(0u64..4)), 0..8);
    let revisions = prop::collection::vec(prop::collection::vec(0usize..8, 0..5), 0..6);
    let refs = prop::collection::vec(0usize..6, 0..3);
    (blobs, revisions, refs).prop_map(move |(blobs, revisions, refs)| {
        let mut repo = repo(name);
        for (number, (size, hours, file)) in blobs.iter().enumerate() {
            // Some blobs are one file with several names, even across repos, and therefore have the same size.
            let inode = file.map(|file| Inode { id: (1, file), links: 3, allocated: 0 });
            let size = file.map_or(*size, |file| 1000 * (file + 1));
            repo.blobs.insert(blob_id(number as u64), Blob { inode, ..blob(size, hours * HOUR) });
        }
        for (number, files) in revisions.iter().enumerate() {
            let there = files.iter().filter(|file| **file < blobs.len()).map(|file| *file as u64).collect::<Vec<_>>();
            repo.revisions.insert(commit(number as u64), revision(&there));
        }
        for (number, target) in refs.iter().enumerate() {
            repo.refs.insert(format!("ref-{number}").parse().unwrap(), commit(*target as u64));
        }
        repo
    })
}

proptest! {
    #[test]
    fn kept_revisions_keep_their_blobs_and_refs_are_respected(
        a in any_repo("org/a"),
        b in any_repo("org/b"),
        budget in 0u64..5000,
        include_referenced: bool,
    ) {
        let facts = facts(vec![a, b]);
        let options = Options { include_referenced, ..options(budget) };
        let planned = plan(&facts, &options, now());
        let mut gone_revisions = BTreeSet::new();
        let mut gone_blobs = BTreeSet::new();
        for action in &planned.actions {
            match &action.target {
                Target::Revision(gone) => {
                    prop_assert!(include_referenced || gone.refs.is_empty());
                    prop_assert!(gone_revisions.insert((&gone.repo, &gone.revision)));
                    for blob in &gone.blobs {
                        prop_assert!(gone_blobs.insert((&gone.repo, *blob)), "a blob goes once");
                    }
                }
                Target::Blob { repo, blob } => prop_assert!(gone_blobs.insert((repo, *blob))),
                _ => {}
            }
        }
        let mut names: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let mut freed = 0;
        for repo in &facts.inventory.repos {
            for (commit, revision) in &repo.revisions {
                let is_gone = gone_revisions.contains(&(&repo.name, commit));
                let named = repo.refs.values().any(|target| target == commit);
                prop_assert!(!(is_gone && named && !include_referenced));
                for file in revision.files.values() {
                    let SnapshotFile::Link(id) = file else { unreachable!() };
                    prop_assert!(is_gone || !gone_blobs.contains(&(&repo.name, *id)), "a kept revision lost a blob");
                }
            }
            for (id, blob) in repo.blobs.iter().filter(|(id, _)| gone_blobs.contains(&(&repo.name, **id))) {
                match blob.inode {
                    None => freed += blob.size,
                    Some(inode) => {
                        let names = names.entry(inode.id).or_default();
                        *names += 1;
                        let found = facts.inventory.repos.iter().flat_map(|repo| repo.blobs.values());
                        let found = found.filter(|other| other.inode == Some(inode)).count() as u64;
                        freed += if *names == inode.links.max(found) { blob.size } else { 0 };
                    }
                }
                prop_assert!(facts.inventory.layout.blob(&repo.name, id).starts_with("/hub"));
            }
        }
        prop_assert_eq!(planned.freed, freed, "bytes freed");
        prop_assert!(planned.freed <= planned.size);
        // The last eviction was necessary: without it, the cache is over its budget.
        let last = planned.actions.iter().rfind(|action| matches!(action.target, Target::Revision(_)));
        if let Some(last) = last {
            prop_assert!(planned.size - planned.freed + last.bytes > budget);
        }
        let again = plan(&facts, &options, now());
        prop_assert_eq!(again, planned, "the same in, the same out");
    }
}

proptest! {
    /// For any cache and options, all evicted revisions are held, old enough and not pinned, and everything evictable is
    /// evicted.
    #[test]
    fn nothing_goes_that_is_not_held_is_recent_or_is_pinned(
        a in any_repo("org/a"),
        b in any_repo("org/b"),
        budget in prop::option::of(0u64..5000),
        holds in prop::collection::vec(any::<bool>(), 12),
        hours in prop::option::of(0u64..100),
        pins in prop::collection::vec(prop::sample::select(vec!["org/a", "*@ref-0", "org/b@ref-*"]), 0..2),
    ) {
        let facts = facts(vec![a, b]);
        let number = |commit: &Commit| usize::from_str_radix(commit.as_str(), 16).unwrap();
        let is_held = |repo: &RepoName, commit: &Commit| {
            holds[number(commit) + if repo.id.as_str() == "org/a" { 0 } else { 6 }]
        };
        let keep = Pins::parse_list(&pins.join(",")).unwrap();
        let older_than = hours.map(|hours| Duration::from_secs(hours * HOUR));
        let options = Options {
            budget,
            older_than,
            keep: keep.clone(),
            held: Some(held(&facts, is_held)),
            ..options(0)
        };
        let planned = plan(&facts, &options, now());
        let gone: Vec<_> = planned.actions.iter().filter_map(|action| match &action.target {
            Target::Revision(gone) => Some(gone),
            _ => None,
        }).collect();
        for one in &gone {
            prop_assert!(is_held(&one.repo, &one.revision), "not held: {one:?}");
            let age = now().duration_since(UNIX_EPOCH + Duration::from_secs(one.last_use)).unwrap();
            prop_assert!(older_than.is_none_or(|older| age >= older), "recent: {one:?}");
            prop_assert!(!keep.match_revision(&one.repo, &one.revision, &one.refs), "pinned: {one:?}");
        }
        prop_assert!(gone.is_sorted_by_key(|one| one.last_use), "least recently used first");
        // Without a reason to go on, nothing more goes.
        let left = planned.size - planned.freed;
        match (budget, gone.last()) {
            (Some(budget), Some(last)) => {
                let is_last = |action: &&super::actions::Action| matches!(&action.target, Target::Revision(one) if one == *last);
                let bytes = planned.actions.iter().find(is_last).unwrap().bytes;
                prop_assert!(left + bytes > budget);
            }
            (None, Some(_)) => prop_assert!(older_than.is_some()),
            _ => {}
        }
        // With a reason to go on, all that is left is named.
        if budget.is_some_and(|budget| left > budget) {
            for repo in &facts.inventory.repos {
                for revision in repo.revisions.keys() {
                    let is_gone = gone.iter().any(|one| one.repo == repo.name && one.revision == *revision);
                    let skip = planned.skips.iter().find(|skip| {
                        skip.repo.as_ref() == Some(&repo.name) && skip.revision.as_ref() == Some(revision)
                    });
                    prop_assert!(is_gone != skip.is_some(), "{}@{revision}", repo.name);
                    if skip.is_some_and(|skip| skip.reason == SkipReason::NotInBucket) {
                        prop_assert!(!is_held(&repo.name, revision));
                    }
                }
            }
        }
    }
}

/// Returns the repo that an action deletes from, unless it deletes an abandoned file.
fn touched(target: &Target) -> Option<&RepoName> {
    match target {
        Target::Blob { repo, .. } | Target::Ref { repo, .. } | Target::Folder { repo } => Some(repo),
        Target::Revision(gone) => Some(&gone.repo),
        Target::Temporary { .. } | Target::Leftover { .. } | Target::RootTemporary { .. } | Target::Payload { .. } => {
            None
        }
    }
}

/// Generates what a scan may have found of other processes in a repo: unfinished files by age in hours, locks, a file of
/// an unknown program, a ref without a snapshot.
fn any_activity() -> impl Strategy<Value = (Vec<u64>, Vec<u64>, RepoFacts)> {
    let ages = || prop::collection::vec(0u64..50, 0..2);
    let write = prop::option::of(0u64..50);
    let seen = prop::option::of(0u64..2);
    (ages(), ages(), any::<bool>(), any::<bool>(), write, seen, any::<bool>()).prop_map(
        |(in_flight, temporaries, held, locked, write, seen, dangling)| {
            let lost = DanglingRef { commit: commit(99), written: ago(9 * DAY) };
            let about = RepoFacts {
                held: if held { BTreeSet::from(["in-flight-0".into()]) } else { BTreeSet::new() },
                locked,
                last_unfinished_write: write.and_then(|hours| ago(hours * HOUR)),
                client_seen: seen.and_then(|hours| ago(hours * HOUR)),
                dangling_refs: dangling.then(|| ("lost".parse().unwrap(), lost)).into_iter().collect(),
                ..RepoFacts::default()
            };
            (in_flight, temporaries, about)
        },
    )
}

fn busy_facts(mut repos: Vec<Repo>, activity: Vec<(Vec<u64>, Vec<u64>, RepoFacts)>) -> Facts {
    let file = |name: &str, number: usize, hours: u64| {
        let path = PathBuf::from(format!("{name}-{number}"));
        UnfinishedFile { path, size: 7, on_disk: 7, modified: ago(hours * HOUR), changed: None }
    };
    let mut about = BTreeMap::new();
    for (repo, (in_flight, temporaries, facts)) in repos.iter_mut().zip(activity) {
        repo.in_flight = in_flight.iter().enumerate().map(|(n, hours)| file("in-flight", n, *hours)).collect();
        repo.temporaries = temporaries.iter().enumerate().map(|(n, hours)| file("temporary", n, *hours)).collect();
        about.insert(repo.name.clone(), facts);
    }
    Facts { repos: about, ..facts(repos) }
}

/// Returns whether the documentation promises to leave the repo alone, with its revisions, unused blobs and refs.
fn is_promised_to_stay(facts: &Facts, repo: &Repo, grace: Duration) -> bool {
    let about = facts.for_repo(&repo.name);
    let is_recent = |time: Option<SystemTime>| time.is_some_and(|time| now().duration_since(time).unwrap() < grace);
    about.locked
        || !about.held.is_empty()
        || is_recent(about.last_unfinished_write)
        || repo.in_flight.iter().chain(&repo.temporaries).any(|file| is_recent(file.modified))
}

proptest! {
    /// A repo with a download in flight, or with a lock held by another process, is left alone.
    #[test]
    fn a_repo_in_use_is_left_alone_whatever_else_there_is(
        a in any_repo("org/a"),
        b in any_repo("org/b"),
        activity in prop::collection::vec(any_activity(), 2),
        budget in 0u64..5000,
        orphan_hours in 0u64..3,
        temporary_hours in 0u64..50,
        include_referenced: bool,
        is_removal: bool,
    ) {
        let facts = busy_facts(vec![a, b], activity);
        let options = Options {
            budget: Some(budget),
            include_referenced,
            orphan_grace: Duration::from_secs(orphan_hours * HOUR),
            temporary_grace: Duration::from_secs(temporary_hours * HOUR),
            ..Options::default()
        };
        let all = facts.inventory.repos.iter().map(|repo| (repo.name.clone(), None)).collect();
        let planned = match is_removal {
            true => plan_removal(&facts, &all, &options, now()),
            false => plan(&facts, &options, now()),
        };
        for repo in &facts.inventory.repos {
            let stays = is_promised_to_stay(&facts, repo, options.temporary_grace);
            let is_touched = planned.actions.iter().any(|action| touched(&action.target) == Some(&repo.name));
            prop_assert!(!(stays && is_touched), "{}: {}", repo.name, describe(&planned));
            if is_removal {
                let is_named = planned.skips.iter().any(|skip| skip.repo.as_ref() == Some(&repo.name));
                prop_assert!(!stays || is_named, "what is kept is named: {}", describe(&planned));
            }
        }
    }

    /// Only what was requested goes, and everything else keeps what it needs.
    #[test]
    fn a_removal_touches_nothing_else(
        a in any_repo("org/a"),
        b in any_repo("org/b"),
        wanted in prop::option::of(prop::collection::btree_set(0u64..6, 0..4)),
    ) {
        let facts = facts(vec![a, b]);
        let [a, b] = facts.inventory.repos.as_slice() else { unreachable!() };
        let commits: Option<BTreeSet<Commit>> = wanted.map(|numbers| numbers.into_iter().map(commit).collect());
        let removal = BTreeMap::from([(a.name.clone(), commits.clone())]);
        let options = Options { orphan_grace: Duration::ZERO, ..options(0) };
        let planned = plan_removal(&facts, &removal, &options, now());
        let mut gone_blobs = BTreeSet::new();
        let mut gone = BTreeSet::new();
        for action in &planned.actions {
            prop_assert_ne!(touched(&action.target), Some(&b.name));
            match &action.target {
                Target::Revision(one) => {
                    prop_assert!(commits.as_ref().is_none_or(|commits| commits.contains(&one.revision)));
                    gone.insert(one.revision.clone());
                    for blob in &one.blobs {
                        prop_assert!(gone_blobs.insert(*blob), "a blob goes once");
                    }
                }
                Target::Blob { blob, .. } => prop_assert!(gone_blobs.insert(*blob), "a blob goes once"),
                _ => {}
            }
        }
        for (commit, revision) in &a.revisions {
            let is_wanted = commits.as_ref().is_none_or(|commits| commits.contains(commit));
            prop_assert_eq!(gone.contains(commit), is_wanted, "everything that was requested goes");
            for file in revision.files.values() {
                let SnapshotFile::Link(id) = file else { unreachable!() };
                prop_assert!(is_wanted || !gone_blobs.contains(id), "a kept revision lost a blob");
            }
        }
        if commits.is_none() {
            prop_assert_eq!(gone_blobs.len(), a.blobs.len());
            let is_folder = |action: &super::actions::Action| matches!(action.target, Target::Folder { .. });
            prop_assert!(planned.actions.iter().any(is_folder));
        }
    }
}

/// Random caches on a real disk, with what other programs do in them: scanned, planned and carried out, and compared with
/// what the documentation promises. Nothing here asks the planner.
#[cfg(unix)]
mod promises {
    use super::*;
    use crate::engine::evict::execute;
    use std::collections::HashMap;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// What another program does in a repo, which protects all of it.
    const IN_USE: [&str; 13] = [
        "blobs/{}.incomplete",
        "blobs/{}.0a1b2c3d.incomplete",
        "blobs/{}.part",
        "blobs/{}..part",
        "blobs/{}.sync.part",
        "blobs/{}.downloadInProgress",
        "blobs/.{}.Xy12ab",
        "tmpa1b2c3d4/x",
        // Locks, which are held.
        "lock .locks/{repo}/{}.lock",
        "lock .locks/{repo}/blobs/{}.lock",
        "lock {repo}/blobs/{}.lock",
        "lock .locks/{repo}/another.lock",
        "lock .locks/{repo}/refs/main.lock",
    ];

    /// What is left of a program that has ended, and protects nothing.
    const LEFT: [&str; 3] = ["unlocked .locks/{repo}/{}.lock", "unlocked {repo}/blobs/{}.lock", "nothing"];

    struct Random {
        rng: fastrand::Rng,
        root: PathBuf,
        locks: Vec<fs::File>,
        /// Repos that must stay as they are, and why.
        protected: HashMap<String, String>,
    }

    fn backdate(path: &Path, seconds: u64) {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        let times = fs::FileTimes::new().set_accessed(then).set_modified(then);
        fs::File::open(path).unwrap().set_times(times).unwrap();
    }

    fn write(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    impl Random {
        fn repo(&mut self, folder: &str) {
            let dir = self.root.join(folder);
            let blobs = 1 + self.rng.u64(..5);
            for number in 0..blobs {
                let path = dir.join("blobs").join(blob_id(number).to_string());
                write(&path, &"x".repeat(1 + number as usize));
                backdate(&path, 9 * DAY + self.rng.u64(..9) * HOUR);
            }
            for number in 0..self.rng.u64(..4) {
                let snapshot = dir.join("snapshots").join(commit(number).as_str());
                fs::create_dir_all(&snapshot).unwrap();
                for file in 0..self.rng.u64(..3) {
                    let target = format!("../../blobs/{}", blob_id(self.rng.u64(..blobs)));
                    symlink(target, snapshot.join(format!("file-{file}"))).unwrap();
                }
                if self.rng.bool() {
                    write(&dir.join("refs").join(format!("ref-{number}")), commit(number).as_str());
                }
            }
            if self.rng.u8(..4) == 0 {
                let path = dir.join("refs/lost");
                write(&path, commit(99).as_str());
                backdate(&path, 9 * DAY);
            }
            // Of a blob that is there, or of another one.
            let blob = blob_id(self.rng.u64(..7)).to_string();
            let is_used = self.rng.bool();
            let what =
                if is_used { IN_USE[self.rng.usize(..IN_USE.len())] } else { LEFT[self.rng.usize(..LEFT.len())] };
            let text = what.replace("{repo}", folder).replace("{}", &blob);
            match text.split_once(' ') {
                Some((kind, path)) => {
                    let path = self.root.join(path);
                    write(&path, "");
                    let file = fs::File::open(&path).unwrap();
                    backdate(&path, 9 * DAY);
                    if kind == "lock" {
                        file.lock().unwrap();
                        self.locks.push(file);
                    }
                }
                None if text == "nothing" => {}
                None => write(&dir.join(&text), "half"),
            }
            if is_used {
                self.protected.insert(folder.to_string(), text);
            }
            for part in ["", "blobs", "snapshots", "refs"].map(|part| dir.join(part)) {
                if part.is_dir() {
                    backdate(&part, 9 * DAY);
                }
            }
        }
    }

    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut left = vec![dir.to_path_buf()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
                let path = entry.path();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    left.push(path);
                } else if kind.is_symlink() {
                    found.insert(path.clone(), fs::read_link(path).unwrap().into_os_string().into_encoded_bytes());
                } else {
                    found.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        found
    }

    /// Returns whether anything was deleted.
    fn check(seed: u64) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let mut random = Random {
            rng: fastrand::Rng::with_seed(seed),
            root: layout.root().to_path_buf(),
            locks: Vec::new(),
            protected: HashMap::new(),
        };
        let folders = ["models--org--a", "datasets--org--b", "models--c"];
        folders.iter().for_each(|folder| random.repo(folder));
        // An old client's download to the root, for an unknown repo.
        let is_all_protected = random.rng.u8(..8) == 0;
        if is_all_protected {
            write(&layout.root().join(["tmpa1b2c3d4", "tmp/aB3dE5f"][random.rng.usize(..2)]), "half");
        }
        let before = contents(layout.root());
        let options = Options {
            budget: Some(random.rng.u64(..30) * u64::from(random.rng.bool())),
            include_referenced: random.rng.bool(),
            orphan_grace: Duration::from_secs(random.rng.u64(..3) * HOUR),
            temporary_grace: Duration::from_secs((1 + random.rng.u64(..48)) * HOUR),
            ..Options::default()
        };
        let facts = gather(scan(layout.root()).unwrap());
        let removal = facts.inventory.repos.iter().map(|repo| (repo.name.clone(), None)).collect();
        let now = SystemTime::now();
        let planned = match random.rng.u8(..4) {
            0 => plan_removal(&facts, &removal, &options, now),
            _ => plan(&facts, &options, now),
        };
        let done = execute(&facts, &planned, None);
        let explain = || format!("seed {seed}: {:?}\n{}\n{:?}", random.protected, describe(&planned), done.skips);
        assert_eq!(done.failures, [], "{}", explain());
        let after = contents(layout.root());
        for (path, content) in &before {
            let folder = path.strip_prefix(layout.root()).unwrap().iter().next().unwrap().to_str().unwrap();
            if is_all_protected || random.protected.contains_key(folder) {
                assert_eq!(after.get(path), Some(content), "{} is gone or changed\n{}", path.display(), explain());
            }
        }
        // The rest is readable: no link dangles, and no ref names a deleted snapshot.
        for path in after.keys().filter(|path| path.is_symlink()) {
            assert!(path.exists(), "{} leads nowhere\n{}", path.display(), explain());
        }
        for (path, content) in after.iter().filter(|(path, _)| path.iter().any(|part| part == "refs")) {
            let Some(repo) = path.ancestors().find(|folder| folder.ends_with("refs")).and_then(Path::parent) else {
                continue;
            };
            let snapshot = |content: &[u8]| repo.join("snapshots").join(String::from_utf8_lossy(content).as_ref());
            let was_there = before.keys().any(|path| path.starts_with(snapshot(content)));
            assert!(!was_there || snapshot(content).exists(), "{} dangles\n{}", path.display(), explain());
        }
        after.len() < before.len()
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "the seed, to repeat a failure")]
    fn a_repo_in_use_stays_as_it_is_in_random_caches() {
        let first = std::env::var("PRUNE_SEED").map_or_else(|_| fastrand::u64(..1 << 40), |seed| seed.parse().unwrap());
        let rounds = std::env::var("PRUNE_ROUNDS").map_or(400, |rounds| rounds.parse().unwrap());
        eprintln!("PRUNE_SEED={first} PRUNE_ROUNDS={rounds}");
        let deleting = (first..first + rounds).filter(|seed| check(*seed)).count() as u64;
        assert!(deleting > rounds / 4, "only {deleting} prunes have deleted anything");
    }
}

/// Tests with a real cache that changes between the plan and its execution. It has one old revision that is evicted.
#[cfg(unix)]
mod races {
    use super::*;
    use crate::engine::evict::{Outcome, execute};
    use std::os::unix::fs::symlink;

    struct Race {
        _dir: tempfile::TempDir,
        layout: Layout,
        repo: RepoName,
        facts: Facts,
        plan: Plan,
    }

    fn age(path: &std::path::Path, days: u64) {
        let then = SystemTime::now() - Duration::from_secs(days * DAY);
        let times = fs::FileTimes::new().set_accessed(then).set_modified(then);
        fs::File::open(path).unwrap().set_times(times).unwrap();
    }

    fn race() -> Race {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = RepoName::new(RepoType::Model, "org/a".parse().unwrap());
        for number in [1, 2] {
            let path = layout.blob(&repo, &blob_id(number));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"12345").unwrap();
            age(&path, 9);
        }
        link(&layout, &repo, 1, 1);
        for folder in ["", "blobs", "snapshots"] {
            age(&layout.repo(&repo).join(folder), 9);
        }
        let facts = gather(scan(layout.root()).unwrap());
        let plan = plan(&facts, &options(0), SystemTime::now());
        assert_eq!(plan.freed, 10, "{}", describe(&plan));
        Race { _dir: dir, layout, repo, facts, plan }
    }

    fn link(layout: &Layout, repo: &RepoName, revision: u64, blob: u64) {
        let snapshot = layout.snapshot(repo, &commit(revision));
        fs::create_dir_all(&snapshot).unwrap();
        symlink(format!("../../blobs/{}", blob_id(blob)), snapshot.join("file")).unwrap();
    }

    impl Race {
        fn run(&self) -> Outcome {
            let done = execute(&self.facts, &self.plan, None);
            assert_eq!(done.failures, []);
            done
        }

        fn blob(&self, number: u64) -> PathBuf {
            self.layout.blob(&self.repo, &blob_id(number))
        }

        fn has_snapshot(&self) -> bool {
            self.layout.snapshot(&self.repo, &commit(1)).join("file").exists()
        }
    }

    fn reasons(done: &Outcome) -> Vec<SkipReason> {
        done.skips.iter().map(|skip| skip.reason).collect()
    }

    #[test]
    fn an_undisturbed_plan_is_carried_out_completely() {
        let race = race();
        assert_eq!((race.run().freed, race.layout.repo(&race.repo).exists()), (10, false));
    }

    #[test]
    fn a_new_ref_keeps_its_revision() {
        let race = race();
        crate::cache::place::write_ref(&race.layout, &race.repo, &RefName::main(), &commit(1), true).unwrap();
        let done = race.run();
        assert_eq!((reasons(&done), done.freed), (vec![SkipReason::Changed], 5));
        assert!(race.has_snapshot());
    }

    #[test]
    fn a_revision_that_was_just_read_or_extended_is_kept() {
        let read = race();
        age(&read.blob(1), 0);
        assert_eq!(reasons(&read.run()), [SkipReason::Changed]);
        assert!(read.has_snapshot());
        let extended = race();
        let more = extended.layout.snapshot(&extended.repo, &commit(1)).join("more");
        symlink(format!("../../blobs/{}", blob_id(1)), more).unwrap();
        assert_eq!(reasons(&extended.run()), [SkipReason::Changed]);
        assert!(extended.has_snapshot());
    }

    #[test]
    fn a_blob_that_a_new_snapshot_uses_is_kept() {
        let race = race();
        link(&race.layout, &race.repo, 7, 1);
        link(&race.layout, &race.repo, 8, 2);
        let done = race.run();
        assert_eq!((reasons(&done), done.freed), (vec![SkipReason::Changed; 2], 0));
        assert!(race.blob(1).exists() && race.blob(2).exists() && !race.has_snapshot());
    }

    #[test]
    fn a_blob_that_was_replaced_is_kept() {
        let race = race();
        let other = race.blob(2).with_file_name("tmp_other");
        fs::write(&other, b"54321").unwrap();
        fs::rename(&other, race.blob(2)).unwrap();
        assert_eq!(reasons(&race.run()), [SkipReason::Changed]);
        assert_eq!(fs::read(race.blob(2)).unwrap(), b"54321");
    }

    #[test]
    fn a_new_problem_keeps_all_blobs() {
        let race = race();
        link(&race.layout, &race.repo, 7, 99);
        assert_eq!(reasons(&race.run()), [SkipReason::Changed]);
        assert!(race.blob(1).exists() && race.blob(2).exists());
    }

    #[test]
    fn a_new_download_keeps_its_repo() {
        let race = race();
        let incomplete = race.blob(1).with_file_name(format!("{}.0a1b2c3d.incomplete", blob_id(3)));
        fs::write(&incomplete, b"half").unwrap();
        assert_eq!(reasons(&race.run()), [SkipReason::InFlight; 2]);
        assert!(race.has_snapshot() && race.blob(1).exists() && incomplete.exists() && race.blob(2).exists());
    }

    #[test]
    fn a_new_download_at_the_root_keeps_everything() {
        let race = race();
        fs::create_dir_all(race.layout.root().join("tmp")).unwrap();
        fs::write(race.layout.root().join("tmp/aB3dE5f"), b"half").unwrap();
        assert!(reasons(&race.run()).contains(&SkipReason::InFlight));
        assert!(race.has_snapshot() && race.blob(1).exists());
    }

    #[test]
    fn a_lock_held_by_another_client_keeps_the_whole_repo() {
        for place in ["models--org--a/blobs/{}.lock", ".locks/models--org--a/blobs/{}.lock"] {
            let race = race();
            let path = race.layout.root().join(place.replace("{}", &blob_id(2).to_string()));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let lock = fs::File::create(&path).unwrap();
            lock.lock().unwrap();
            assert_eq!(reasons(&race.run()), [SkipReason::Held; 2], "{place}");
            assert!(race.has_snapshot() && race.blob(1).exists() && race.blob(2).exists(), "{place}");
        }
    }

    #[test]
    fn a_folder_with_new_content_is_kept() {
        let race = race();
        crate::cache::place::write_ref(&race.layout, &race.repo, &RefName::main(), &commit(9), true).unwrap();
        assert_eq!(reasons(&race.run()), [SkipReason::Changed]);
        assert!(race.layout.reference(&race.repo, &RefName::main()).exists());
    }

    #[test]
    fn a_snapshot_replaced_by_a_link_is_not_followed() {
        let race = race();
        let (snapshots, aside) = (race.layout.repo(&race.repo).join("snapshots"), race.layout.root().join("aside"));
        fs::rename(&snapshots, &aside).unwrap();
        symlink(&aside, &snapshots).unwrap();
        assert!(reasons(&race.run()).contains(&SkipReason::Link));
        assert!(aside.join(commit(1).as_str()).join("file").is_symlink());
    }
}
