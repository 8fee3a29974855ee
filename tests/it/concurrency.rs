//! Several machines on one bucket, and several processes on one cache, at the same time.
//!
//! `CONCURRENCY_ROUNDS=100 cargo test --test it concurrency::` runs many more rounds. Each test prints the seed of its random
//! numbers; `SEED` sets it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::cache::{OTHER, Revision};
use crate::harness::machine::{Machine, Output, Running};
use crate::harness::s3::{Action, Gate, S3Request};
use crate::harness::sound::assert_sound_cache;
use crate::harness::store::Store;
use crate::harness::{git_sha1, seed, sha256, weights};

/// Returns the number of rounds to run.
fn rounds(usual: usize) -> usize {
    std::env::var("CONCURRENCY_ROUNDS").map_or(usual, |text| text.parse().unwrap())
}

/// How a store treats conditional writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conditions {
    Honoured,
    Refused,
    Ignored,
    /// Honoured, but an ETag in quotes never matches: Ceph compares the quotes, too.
    Unquoted,
    /// Every condition fails.
    Unmet,
}

impl Conditions {
    /// Returns the response to a write if the store rejects its condition.
    fn refusal(self, request: &S3Request) -> Option<Action> {
        let unmet = Action::Refuse(412, "PreconditionFailed", "");
        match self {
            Conditions::Honoured | Conditions::Ignored => None,
            Conditions::Refused => {
                let message = "A header you provided implies functionality not implemented";
                request.conditional.then_some(Action::Refuse(501, "NotImplemented", message))
            }
            Conditions::Unquoted => request.is_quoted_write().then_some(unmet),
            Conditions::Unmet => request.conditional.then_some(unmet),
        }
    }
}

/// A store whose requests take up to `longest` milliseconds.
fn slow_store(conditions: Conditions, random: fastrand::Rng, longest: u64) -> Store {
    let store = Store::new();
    if conditions == Conditions::Ignored {
        store.server.ignore_conditions();
    }
    let random = Mutex::new(random);
    store.server.on_request(move |request| {
        let delay = || Action::Delay(Duration::from_millis(random.lock().unwrap().u64(..=longest)));
        conditions.refusal(request).unwrap_or_else(delay)
    });
    store
}

/// A revision, and the parts of it that this many machines have.
fn parts(count: usize) -> (Revision, Vec<Revision>) {
    let paths: Vec<String> = (0..count).map(|number| format!("part-{number}.bin")).collect();
    let full = Revision::model("org/name").git("README.md", "everybody has this");
    let full = paths.iter().fold(full, |full, path| full.git(path, format!("the content of {path}")));
    let part = |own: &String| {
        let others: Vec<&str> = paths.iter().filter(|path| *path != own).map(String::as_str).collect();
        full.clone().without(&others)
    };
    let parts = paths.iter().map(part).collect();
    (full, parts)
}

/// Returns a machine for each part, with the part in its cache.
fn machines_with(parts: &[Revision], store: &Store) -> Vec<Machine> {
    let machine_with = |part: &Revision| {
        let machine = Machine::new(store);
        part.write(&machine.hub());
        machine
    };
    parts.iter().map(machine_with).collect()
}

#[test]
fn concurrently_pushed_parts_are_merged() {
    let mut random = fastrand::Rng::with_seed(seed());
    use Conditions::{Honoured, Ignored, Refused, Unmet, Unquoted};
    for conditions in [Honoured, Refused, Ignored, Unquoted, Unmet] {
        for round in 0..rounds(4) {
            let machines = if round % 4 == 3 { 3 } else { 2 };
            let store = slow_store(conditions, random.fork(), 20);
            let (full, parts) = parts(machines);
            if round % 2 == 1 {
                full.clone().without(&["part-0.bin", "part-1.bin", "part-2.bin"]).publish(&store);
            }
            let machines = machines_with(&parts, &store);
            let pushes: Vec<_> = machines.iter().map(|machine| machine.start(&["push"])).collect();
            for push in pushes {
                let ran = push.finish();
                assert_eq!(ran.code, 0, "{conditions:?}, round {round}: {ran:#?}");
            }
            full.assert_published(&store);
        }
    }
}

fn is_manifest_write(request: &S3Request) -> bool {
    request.is("PUT", "manifests/")
}

/// Holds the first write of a manifest until the gate opens.
fn hold_first_manifest(store: &Store) -> Gate {
    let is_first = std::sync::atomic::AtomicBool::new(true);
    store
        .server
        .hold(move |request| is_manifest_write(request) && is_first.swap(false, std::sync::atomic::Ordering::SeqCst))
}

fn lists_notices(request: &S3Request) -> bool {
    request.is_list() && request.query.contains("_hf_cache_sync_gc")
}

#[test]
fn a_push_waits_while_another_one_publishes_the_same_revision() {
    let store = Store::new();
    store.server.ignore_conditions();
    let (full, parts) = parts(2);
    let machines = machines_with(&parts, &store);
    let gate = hold_first_manifest(&store);
    let first = machines[0].start(&["push"]);
    store.server.wait_for("a manifest", |seen| seen.iter().any(is_manifest_write));
    store.server.take_seen();
    let second = machines[1].start(&["push"]);
    store.server.wait_for("another look", |seen| seen.iter().filter(|seen| lists_notices(seen)).count() >= 3);
    assert!(!store.server.take_seen().iter().any(is_manifest_write));
    // A push of something else does not wait.
    let other = Machine::new(&store);
    Revision::model("org/other").write(&other.hub());
    other.ok(&["push"]);
    gate.open();
    for push in [first, second] {
        let ran = push.finish();
        assert_eq!(ran.code, 0, "{ran:#?}");
    }
    full.assert_published(&store);
    assert!(!store.keys().iter().any(|key| key.starts_with("_hf_cache_sync_gc")), "{:?}", store.keys());
}

#[test]
fn a_killed_push_does_not_delay_others_for_long() {
    let store = Store::new();
    let (full, parts) = parts(2);
    let machines = machines_with(&parts, &store);
    let gate = hold_first_manifest(&store);
    let first = machines[0].start(&["push"]);
    store.server.wait_for("a manifest", |seen| seen.iter().any(is_manifest_write));
    first.kill();
    store.server.behave();
    let notices: Vec<String> = store.keys().into_iter().filter(|key| key.contains("/push-")).collect();
    assert_eq!(notices.len(), 1);
    store.age(&notices[0], -15);
    machines[1].ok(&["push"]);
    machines[0].ok(&["push"]);
    drop(gate);
    full.assert_published(&store);
}

#[test]
fn waiting_for_turns_costs_a_single_push_no_request() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (full, _) = parts(2);
    full.write(&machine.hub());
    machine.ok(&["push"]);
    let seen = store.server.take_seen();
    assert_eq!(seen.iter().filter(|seen| lists_notices(seen)).count(), 1, "{seen:#?}");
    assert_eq!(seen.iter().filter(|seen| seen.key.starts_with("_hf_cache_sync_gc")).count(), 2, "{seen:#?}");
    machine.ok(&["push"]);
    assert_eq!(store.server.take_seen().len(), 3);
}

#[test]
fn a_ref_that_another_machine_moves_back_is_not_a_failure() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (old, new) = (Revision::model("org/name").at(OTHER), Revision::model("org/name").git("more.txt", "more"));
    old.publish(&store);
    store.age("refs/org__name/main", -60);
    new.write(&machine.hub());
    let path = store.path("refs/org__name/main");
    store.server.on_request(move |request| {
        if request.is("GET", "refs/") {
            std::fs::write(&path, OTHER).unwrap();
        }
        Action::Pass
    });
    machine.ok(&["push"]);
    new.clone().refs(&[]).assert_published(&store);
    assert_eq!(store.text("refs/org__name/main"), OTHER);
}

/// Starts a push of several blobs that is held when it sends the first one.
fn start_and_hold_blob(store: &Store, machine: &Machine, line: &[&str]) -> (Running, Gate) {
    let gate = store.server.hold(|request| request.is("PUT", "blobs/"));
    let push = machine.start(&[&["push", "--json", "--workers", "1"], line].concat());
    store.server.wait_for("a blob", |seen| seen.iter().any(|seen| seen.is("PUT", "blobs/")));
    (push, gate)
}

fn assert_left_out(ran: &Output) {
    assert_eq!(ran.code, 0, "{ran:#?}");
    let report = ran.json();
    assert_eq!((&report["failures"], &report["skipped"]), (&json!([]), &json!([])), "{ran:#?}");
    assert!(report["notes"].to_string().contains("removed from the cache during the push"), "{ran:#?}");
}

#[test]
fn a_repo_that_disappears_during_a_push_is_left_out() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let kept = Revision::model("org/kept");
    let gone = Revision::model("org/gone").git("one.txt", "only here").git("two.txt", "this, too");
    kept.write(&machine.hub());
    gone.write(&machine.hub());
    let (push, gate) = start_and_hold_blob(&store, &machine, &[]);
    std::fs::remove_dir_all(gone.dir(&machine.hub())).unwrap();
    gate.open();
    assert_left_out(&push.finish());
    kept.assert_published(&store);
    assert!(!store.has(&gone.manifest_key()) && !store.has("refs/org__gone/main"));
    machine.ok(&["verify", "--remote"]);
}

#[test]
fn a_repo_that_disappears_during_the_scan_is_not_a_failure() {
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..rounds(10) {
        let store = Store::new();
        let machine = Machine::new(&store);
        let kept = Revision::model("org/kept");
        kept.write(&machine.hub());
        let gone: Vec<Revision> = (0..10).map(|number| Revision::model(&format!("org/gone-{number}"))).collect();
        gone.iter().for_each(|gone| gone.write(&machine.hub()));
        let push = machine.start(&["push"]);
        std::thread::sleep(Duration::from_micros(random.u64(..30_000)));
        for gone in gone {
            // The client deletes in this order.
            std::fs::remove_dir_all(gone.dir(&machine.hub()).join("snapshots")).unwrap();
            std::fs::remove_dir_all(gone.dir(&machine.hub())).unwrap();
        }
        let ran = push.finish();
        assert_eq!(ran.code, 0, "{ran:#?}");
        kept.assert_published(&store);
        machine.ok(&["verify", "--remote"]);
    }
}

#[test]
fn a_repo_is_pushed_though_others_with_the_same_blobs_disappear_one_by_one() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let with_shared_files = |id: &str| {
        (0..20)
            .fold(Revision::model(id), |revision, number| revision.git(&format!("{number}.txt"), format!("{number}")))
    };
    let kept = with_shared_files("org/kept");
    kept.write(&machine.hub());
    let gone: Vec<PathBuf> = (0..8)
        .map(|number| with_shared_files(&format!("org/gone-{number}")))
        .inspect(|gone| gone.write(&machine.hub()))
        .map(|gone| gone.dir(&machine.hub()))
        .collect();
    let rest = Mutex::new(gone.into_iter());
    store.server.on_request(move |request| {
        if request.is("PUT", "blobs/")
            && let Some(next) = rest.lock().unwrap().next()
        {
            std::fs::remove_dir_all(next).unwrap();
        }
        Action::Pass
    });
    assert_left_out(&machine.run(&["push", "--json", "--workers", "1"]));
    kept.assert_published(&store);
    machine.ok(&["verify", "--remote"]);
}

#[test]
fn what_remains_of_a_revision_is_pushed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name").git("one.txt", "1").git("two.txt", "2");
    revision.write(&machine.hub());
    let (push, gate) = start_and_hold_blob(&store, &machine, &["org/name"]);
    let seen = store.server.take_seen();
    let sent = seen.iter().find(|seen| seen.is("PUT", "blobs/")).unwrap().key.clone();
    let gone = ["one.txt", "two.txt"].into_iter().find(|path| revision.blob_key(path) != sent).unwrap();
    std::fs::remove_file(revision.snapshot(&machine.hub()).join(gone)).unwrap();
    std::fs::remove_file(revision.blob(&machine.hub(), gone)).unwrap();
    gate.open();
    assert_left_out(&push.finish());
    revision.without(&[gone]).assert_published(&store);
}

#[test]
fn a_requested_repo_that_disappears_is_not_a_failure() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    let (push, gate) = start_and_hold_blob(&store, &machine, &["org/name"]);
    std::fs::remove_dir_all(revision.dir(&machine.hub())).unwrap();
    gate.open();
    assert_left_out(&push.finish());
    assert!(store.keys().iter().all(|key| key.starts_with("blobs/")), "{:?}", store.keys());
}

/// Returns a revision of the repo with this number in this round: most files change, one stays the same.
fn revision_of_round(repo: usize, round: usize) -> Revision {
    let commit = format!("{:040x}", 1 + repo + 100 * round);
    let revision = Revision::model(&format!("org/repo-{repo}")).at(&commit).refs(&["main"]);
    revision
        .git("stays.txt", format!("repo {repo}"))
        .git("changes.txt", format!("repo {repo}, round {round}"))
        .lfs("weights.bin", weights((repo * 1000 + round) as u64, 40_000))
}

/// Asserts that the bucket is complete: every manifest's blobs exist with the right bytes, and every ref has a manifest.
fn assert_complete(store: &Store) {
    let keys = store.keys();
    for key in keys.iter().filter(|key| key.starts_with("manifests/")) {
        let manifest: Value = serde_json::from_slice(&store.get(key)).unwrap();
        for file in manifest["files"].as_array().unwrap() {
            let blob = file["blob"].as_str().unwrap();
            let bytes = store.get(&format!("blobs/{blob}"));
            let name = if blob.len() == 64 { sha256(&bytes) } else { git_sha1(&bytes) };
            assert_eq!(name, blob, "{key}: {}", file["path"]);
        }
    }
    for key in keys.iter().filter(|key| key.starts_with("refs/")) {
        let repo = key.split('/').nth(1).unwrap();
        assert!(store.has(&format!("manifests/{repo}@{}.json", store.text(key))), "{key} leads nowhere");
    }
}

/// Commands of all kinds on one cache and bucket, on stores of every kind, while a client downloads into the cache.
#[test]
fn all_commands_run_concurrently_on_one_cache_and_bucket() {
    let mut random = fastrand::Rng::with_seed(seed());
    for conditions in [Conditions::Ignored, Conditions::Honoured, Conditions::Refused] {
        run_all_commands(conditions, &mut random);
    }
}

fn run_all_commands(conditions: Conditions, random: &mut fastrand::Rng) {
    const REPOS: usize = 5;
    let store = slow_store(conditions, random.fork(), 3);
    let machine = Machine::new(&store);
    for repo in 0..REPOS {
        revision_of_round(repo, 0).write(&machine.hub());
    }
    machine.ok(&["push"]);
    let watch = machine.start(&["--json", "watch", "--debounce", "0.1"]);
    for round in 1..=rounds(1) {
        (0..REPOS).for_each(|repo| revision_of_round(repo, round - 1).age(&machine.hub(), 40));
        let mut name = || format!("org/repo-{}", random.usize(..REPOS));
        let (one, two, three) = (name(), name(), name());
        let mut lines: Vec<Vec<&str>> = vec![
            vec!["push"],
            vec!["push"],
            vec!["push", "--workers", "1"],
            vec!["push", &one],
            vec!["pull", &two],
            vec!["pull", &three],
            vec!["pull-all"],
            vec!["pull-all"],
            vec!["prune", "--older-than", "30d", "--include-referenced", "--orphan-grace", "0s", "--yes"],
            vec!["prune", "--older-than", "30d", "--require-remote", "--yes"],
            vec!["remote", "gc", "--grace", "0", "--yes"],
        ];
        random.shuffle(&mut lines);
        // New revisions of some repos.
        let downloads: Vec<usize> = (0..REPOS).filter(|_| random.bool()).collect();
        let mut pauses = random.fork();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for repo in downloads {
                    revision_of_round(repo, round).download(&machine.hub(), || {
                        std::thread::sleep(Duration::from_millis(pauses.u64(..30)));
                    });
                }
            });
            let mut running = Vec::new();
            for line in lines {
                std::thread::sleep(Duration::from_millis(random.u64(..30)));
                running.push((line.clone(), machine.start(&line)));
            }
            for (line, running) in running {
                let ran = running.finish();
                // A prune may have evicted all of the repo before the push began.
                let is_gone = line.len() == 2 && line[0] == "push" && ran.stderr.contains("is not in the cache");
                assert!(ran.code == 0 || is_gone, "{conditions:?}, round {round}, {line:?}: {ran:#?}");
            }
        });
        assert_complete(&store);
    }
    watch.signal("-TERM");
    let watched = watch.finish();
    assert!(watched.code == 0 && watched.stdout.contains("\"pushed\""), "{watched:#?}");
    // A push that failed among all the others is repeated.
    let last = watched.stdout.lines().rfind(|line| line.contains("\"pushed\""));
    assert!(last.is_some_and(|line| line.contains("\"failed\":0,")), "{last:?}");
    assert_sound_cache(&machine.hub());
    machine.ok(&["push"]);
    assert_complete(&store);
    machine.ok(&["verify"]);
    machine.ok(&["verify", "--remote", "--deep"]);
    // Nothing that is in the cache is missing from the bucket, and a fresh machine gets all of it.
    let fresh = Machine::new(&store);
    fresh.ok(&["pull-all"]);
    fresh.ok(&["verify"]);
}
