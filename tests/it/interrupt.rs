//! Failures in the middle of an operation: killed and interrupted commands, truncated bodies, throttling stores, and
//! concurrent downloads. A second run completes the work without repeating finished parts, and neither partial nor
//! foreign files ever become visible.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision};
use crate::harness::machine::{self, Machine, Running};
use crate::harness::s3::{Action, S3Request};
use crate::harness::store::Store;
use serde_json::Value;

use crate::harness::{contents, git_sha1, listing, sha256, visible, weights};

/// 33 MiB: with one worker, nine parts of a pull and three of a push.
const LARGE: usize = 33 << 20;
/// The unit in which a pull with one worker can resume.
const PART: usize = 4 << 20;
/// The size of a range that a pull with one worker requests.
const RANGE: usize = 2 * PART;

fn large() -> Revision {
    large_of(LARGE)
}

fn large_of(length: usize) -> Revision {
    Revision::new("model", "org/large").git("config.json", "{}\n").lfs("model.safetensors", weights(1, length))
}

/// How a command is stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    Kill,
    #[cfg(unix)]
    Interrupt,
}

impl Stop {
    fn stop(self, running: Running) {
        match self {
            Stop::Kill => running.kill(),
            #[cfg(unix)]
            Stop::Interrupt => {
                running.interrupt();
                let output = running.finish();
                assert_eq!((output.code, output.stdout.as_str()), (130, ""), "{output:#?}");
                assert!(output.stderr.contains("interrupted"), "{output:#?}");
            }
        }
    }
}

/// Asserts that every visible file is complete, and that there are only files known to huggingface_hub.
#[track_caller]
fn assert_all_complete(machine: &Machine) {
    for (path, what) in contents(&machine.hub()) {
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            ["models--org--large", "blobs", etag] => {
                // The listing already contains its sha256.
                let is_whole = what.ends_with(etag) || {
                    let bytes = fs::read(machine.hub().join(&path)).unwrap();
                    [sha256(&bytes), git_sha1(&bytes)].contains(&etag.to_string())
                };
                assert!(is_whole, "{path} is incomplete");
            }
            ["models--org--large", "snapshots", COMMIT, ..] => {
                assert!(fs::metadata(machine.hub().join(&path)).is_ok(), "{path} is a dangling link: {what}");
            }
            ["models--org--large", "refs", "main"] | ["models--org--large", "trees", _] => {}
            _ => panic!("{path} does not belong in a cache"),
        }
    }
    let locks = machine.hub().join(".locks");
    if locks.exists() {
        for entry in fs::read_dir(locks).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!([".hf-cache-sync", "models--org--large"].contains(&name.as_str()), "{name}");
        }
    }
}

fn first_byte(range: &str) -> usize {
    range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap()
}

fn ranges(seen: &[S3Request]) -> Vec<usize> {
    seen.iter().filter_map(|request| Some(first_byte(request.range.as_deref()?))).collect()
}

fn stop_and_resume_pull(how: Stop) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.publish(&store);
    let gate = store.server.hold(|request| request.range.as_ref().is_some_and(|range| first_byte(range) == 3 * RANGE));
    // With one worker, the request for the fourth range implies that the first two have been received and recorded.
    let running = machine.start(&["pull", "org/large", "--workers", "1"]);
    store.server.wait_for("the fourth range", |seen| ranges(seen).contains(&(3 * RANGE)));
    how.stop(running);
    assert_all_complete(&machine);
    assert!(!revision.dir(&machine.hub()).join("refs").exists(), "an incomplete revision must not get a ref");
    assert!(!revision.snapshot(&machine.hub()).exists());

    gate.open();
    store.server.take_seen();
    let report = machine.ok_json(&["pull", "org/large", "--json"]);
    let transferred = report["downloaded"]["bytes"].as_u64().unwrap() as usize;
    assert!(
        (RANGE..=LARGE - 2 * RANGE + 100).contains(&transferred),
        "only bytes transferred by this run count: {report:#}"
    );
    let again = ranges(&store.server.take_seen());
    assert!(again.iter().all(|start| *start >= 2 * RANGE && start % PART == 0), "{again:?}");
    revision.assert_pulled(&machine.hub());
    assert_all_complete(&machine);
    let partial = machine.hub().join(".locks/.hf-cache-sync/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0, "no leftovers may remain");
}

#[test]
fn a_killed_pull_resumes() {
    stop_and_resume_pull(Stop::Kill);
}

#[cfg(unix)]
#[test]
fn an_interrupted_pull_resumes() {
    stop_and_resume_pull(Stop::Interrupt);
}

fn stop_and_resume_push(how: Stop) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large().layout(Layout::Links);
    revision.write(&machine.hub());
    let before = visible(&machine.hub());
    let gate = store.server.hold(|request| request.part() == Some(3));
    let running = machine.start(&["push", "--workers", "1"]);
    store.server.wait_for("the third part", |seen| seen.iter().any(|request| request.part() == Some(3)));
    how.stop(running);
    assert_all_complete_except_tag(&machine);
    assert_eq!(visible(&machine.hub()), before);
    let keys = store.keys();
    assert!(!keys.iter().any(|key| key.starts_with("manifests/") || key.starts_with("refs")), "{keys:?}");
    assert!(!store.has(&revision.blob_key("model.safetensors")));

    gate.open();
    store.server.behave();
    store.server.take_seen();
    let report = machine.ok_json(&["push", "--json"]);
    let transferred = report["uploaded"]["bytes"].as_u64().unwrap() as usize;
    let sent: Vec<u32> = store.server.take_seen().iter().filter_map(S3Request::part).collect();
    assert_eq!(sent, [3], "only unfinished parts are sent");
    assert!((1..=LARGE / 2).contains(&transferred), "only bytes transferred by this run count: {report:#}");
    revision.assert_published(&store);
    assert_eq!(store.text("refs/org__large/main"), COMMIT);
    assert_eq!(visible(&machine.hub()), before);
    let uploads = machine.hub().join(".locks/.hf-cache-sync/uploads");
    assert_eq!(fs::read_dir(uploads).unwrap().count(), 0, "no leftovers may remain");
}

#[track_caller]
fn assert_all_complete_except_tag(machine: &Machine) {
    let tag = machine.hub().join("CACHEDIR.TAG");
    let content = fs::read(&tag).unwrap();
    let times = fs::metadata(&tag).unwrap().modified().unwrap();
    fs::remove_file(&tag).unwrap();
    assert_all_complete(machine);
    fs::write(&tag, content).unwrap();
    fs::File::options().write(true).open(&tag).unwrap().set_modified(times).unwrap();
}

#[test]
fn a_killed_push_resumes() {
    stop_and_resume_push(Stop::Kill);
}

#[cfg(unix)]
#[test]
fn an_interrupted_push_resumes() {
    stop_and_resume_push(Stop::Interrupt);
}

/// The record of an interrupted upload must not be used if the file or the prefix has changed.
#[test]
fn uploaded_parts_are_not_reused_under_another_prefix() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.write(&machine.hub());
    let gate = store.server.hold(|request| request.part() == Some(2));
    let running = machine.start(&["push", "--workers", "1"]);
    store.server.wait_for("the second part", |seen| seen.iter().any(|request| request.part() == Some(2)));
    running.kill();
    gate.open();
    store.server.behave();
    store.server.take_seen();
    machine.ok(&["push", "--prefix", "elsewhere", "--workers", "1"]);
    let mut sent: Vec<u32> = store.server.take_seen().iter().filter_map(S3Request::part).collect();
    sent.sort();
    assert_eq!(sent, [1, 2, 3], "parts uploaded under another key must not be reused");
    assert!(store.get(&format!("elsewhere/{}", revision.blob_key("model.safetensors"))).len() == LARGE);
    assert!(!store.has(&revision.blob_key("model.safetensors")));
}

/// If the leftovers of an earlier run do not match the journal, they are downloaded again; a bad blob is never
/// installed.
#[test]
fn a_corrupt_partial_file_is_detected() {
    let KilledPull { store: _store, machine, revision, paths: [partial, _] } = KilledPull::new();
    let mut bytes = fs::read(&partial).unwrap();
    bytes[1000] ^= 1;
    fs::write(&partial, bytes).unwrap();
    machine.ok(&["pull", "org/large"]);
    revision.assert_pulled(&machine.hub());
}

/// Leftovers of killed runs that cannot be resumed are deleted eventually, but not while they may be in use.
#[test]
fn old_leftovers_are_cleaned_up() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").publish(&store);
    let state = machine.hub().join(".locks/.hf-cache-sync");
    let etag = sha256(b"some blob");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for (name, old) in [("old", true), ("young", false)] {
        let staging = state.join("staging").join(name);
        let partial = state.join("partial").join(format!("{etag}.{name}.small"));
        let resumable = state.join("partial").join(format!("{etag}{name}"));
        fs::create_dir_all(&staging).unwrap();
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(staging.join("file"), "half").unwrap();
        fs::write(&partial, "half").unwrap();
        fs::write(&resumable, "half").unwrap();
        if old {
            for path in [&staging, &partial, &resumable] {
                fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
            }
        }
    }
    // A ref that a killed prune had moved aside on a full disk, where there was no room for a folder.
    let moved = fs::File::create(state.join("staging/moved")).unwrap();
    moved.set_modified(long_ago).unwrap();
    fs::create_dir_all(state.join("unverified")).unwrap();
    for (name, days) in [("old", 31), ("young", 29)] {
        let mark = fs::File::create(state.join("unverified").join(name)).unwrap();
        mark.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(days * 24 * 3600)).unwrap();
    }
    machine.ok(&["pull", "org/name"]);
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(state.join(dir)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("staging"), ["young"]);
    assert_eq!(names("partial"), [format!("{etag}.young.small"), format!("{etag}old"), format!("{etag}young")]);
    assert_eq!(names("unverified"), ["young"]);
}

#[cfg(unix)]
#[test]
fn cleanup_does_not_follow_links() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").publish(&store);
    let (state, outside) = (machine.hub().join(".locks/.hf-cache-sync"), machine.home().join("outside"));
    fs::create_dir_all(outside.join("mine")).unwrap();
    fs::write(outside.join("mine.small"), "mine").unwrap();
    fs::create_dir_all(&state).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for name in ["mine", "mine.small"] {
        fs::File::open(outside.join(name)).unwrap().set_modified(long_ago).unwrap();
    }
    for name in ["staging", "partial"] {
        std::os::unix::fs::symlink(&outside, state.join(name)).unwrap();
    }
    let before = listing(&outside);
    assert_eq!(machine.run(&["pull", "org/name"]).code, 1);
    assert_eq!(listing(&outside), before);
}

#[test]
fn a_truncated_body_is_resumed() {
    for length in [200_000, 9 << 20] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::new("model", "org/name").lfs("model.bin", weights(2, length));
        revision.publish(&store);
        let cuts = AtomicUsize::new(0);
        store.server.on_request(move |request| {
            match request.is("GET", "blobs/") && cuts.fetch_add(1, Ordering::SeqCst) < 2 {
                true => Action::Cut(50_000),
                false => Action::Pass,
            }
        });
        machine.ok(&["pull", "org/name"]);
        revision.assert_pulled(&machine.hub());
        let seen: Vec<S3Request> =
            store.server.take_seen().into_iter().filter(|request| request.is("GET", "blobs/")).collect();
        let starts = ranges(&seen);
        // Ranges start at a multiple of 1 MiB.
        let resumed = starts.iter().filter(|start| **start % (1 << 20) != 0).count();
        assert!(resumed == 2, "it resumes after the last byte: {starts:?}");
    }
}

#[test]
fn a_body_that_is_always_truncated_is_an_error() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::new("model", "org/name").lfs("model.bin", weights(2, 200_000));
    revision.publish(&store);
    store.server.on_request(|request| match request.is("GET", "blobs/") {
        true => Action::Cut(0),
        false => Action::Pass,
    });
    let output = machine.run(&["pull", "org/name"]);
    assert_eq!((output.code, output.stdout.as_str()), (6, ""), "{output:#?}");
    output.nothing_internal();
    assert!(visible(&machine.hub()).is_empty(), "{:?}", visible(&machine.hub()));
}

#[test]
fn a_truncated_manifest_is_read_again() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.publish(&store);
    let cuts = AtomicUsize::new(0);
    store.server.on_request(move |request| match request.is("GET", "manifests/") {
        true if cuts.fetch_add(1, Ordering::SeqCst) == 0 => Action::Cut(100),
        _ => Action::Pass,
    });
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
}

#[test]
fn throttled_requests_are_retried() {
    for (status, code) in [(503, "SlowDown"), (429, "")] {
        let store = Store::new();
        let (source, target) = (Machine::new(&store), Machine::new(&store));
        let revision = Revision::model("org/name").lfs("parts.bin", weights(3, 17 << 20));
        revision.write(&source.hub());
        // Every request fails once.
        let failed = std::sync::Mutex::new(std::collections::HashSet::new());
        store.server.on_request(move |request| {
            match failed.lock().unwrap().insert(format!("{} {} {}", request.method, request.key, request.query)) {
                true => Action::Refuse(status, code, "no tomes available"),
                false => Action::Pass,
            }
        });
        source.ok(&["push"]);
        revision.assert_published(&store);
        target.ok(&["pull", "org/name"]);
        revision.assert_pulled(&target.hub());
    }
}

/// A cache of many small blobs, and a store that fails after this many uploads.
fn fails_after(uploads: usize, action: Action) -> (Store, Machine) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut revision = Revision::new("model", "org/many");
    for number in 0..300 {
        revision = revision.git(&format!("{number}.txt"), format!("{number}\n"));
    }
    revision.write(&machine.hub());
    let sent = AtomicUsize::new(0);
    store.server.on_request(move |request| {
        let count = match request.is("PUT", "blobs/") {
            true => sent.fetch_add(1, Ordering::SeqCst),
            false => sent.load(Ordering::SeqCst),
        };
        if count < uploads { Action::Pass } else { action.clone() }
    });
    (store, machine)
}

#[test]
fn a_lost_store_is_not_retried_for_every_blob() {
    let (store, machine) = fails_after(20, Action::Refuse(503, "ServiceUnavailable", "gone fishing"));
    let output = machine.run(&["push", "--workers", "8"]);
    assert_eq!(output.code, 6, "{output:#?}");
    let tries = store.server.take_seen().iter().filter(|request| request.is("PUT", "blobs/")).count();
    assert!(tries <= 20 + 8 * 8, "only blobs in flight may exhaust their retries: {tries}");
    // All failures have the same reason, which is reported once. Progress lines mention it too, as the reason for the
    // wait.
    assert_eq!(output.stderr.matches("gone fishing)\n").count(), 1, "{output:#?}");
    assert!(output.stderr.contains("more failed in the same way"), "{output:#?}");
    store.server.behave();
    machine.ok(&["push"]);
    assert!(store.has("refs/org__many/main"));
}

#[test]
fn expired_credentials_stop_the_run() {
    let (store, machine) = fails_after(20, Action::Refuse(400, "ExpiredToken", "the token has expired"));
    let output = machine.run(&["push", "--workers", "8"]);
    assert_eq!(output.code, 3, "{output:#?}");
    let tries = store.server.take_seen().iter().filter(|request| request.is("PUT", "blobs/")).count();
    // Each upload in flight is sent once by the fast path and once by the SDK.
    assert!(tries <= 20 + 2 * 8, "only blobs in flight may be tried: {tries}");
}

#[test]
fn a_truncated_listing_is_retried() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.publish(&store);
    let broken = AtomicUsize::new(0);
    store.server.on_request(move |request| match request.is_list() && broken.fetch_add(1, Ordering::SeqCst) < 3 {
        true => Action::Cut(40),
        false => Action::Pass,
    });
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
}

/// Both find the same record of an upload, and must not interfere with each other's parts.
#[test]
fn concurrent_pushes_upload_a_blob_once() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.write(&machine.hub());
    let gate = store.server.hold(|request| request.part() == Some(2));
    let one = machine.start(&["push"]);
    store.server.wait_for("the second part", |seen| seen.iter().any(|request| request.part() == Some(2)));
    let two = machine.start(&["push"]);
    two.wait_for("another hf-cache-sync is pushing");
    gate.open();
    let (one, two) = (one.finish(), two.finish());
    assert_eq!((one.code, two.code), (0, 0), "{one:#?} {two:#?}");
    let seen = store.server.take_seen();
    let started = seen.iter().filter(|request| request.method == "POST" && request.query.contains("uploads")).count();
    assert_eq!(started, 1, "one upload");
    revision.assert_published(&store);
    let uploads = machine.hub().join(".locks/.hf-cache-sync/uploads");
    assert_eq!(fs::read_dir(uploads).unwrap().count(), 0, "no leftovers may remain");
}

/// The state that a pull has read before it waits may be outdated when it continues.
#[test]
fn a_pull_that_waits_for_a_prune_rescans_the_cache() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.publish(&store);
    let blob = revision.dir(&machine.hub()).join("blobs").join(revision.etag("model.safetensors"));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, &revision.file("model.safetensors").bytes).unwrap();
    let state = machine.hub().join(".locks/.hf-cache-sync");
    fs::create_dir_all(&state).unwrap();
    let prune = fs::File::create(state.join("lock")).unwrap();
    prune.lock().unwrap();
    let pull = machine.start(&["pull", "org/name"]);
    pull.wait_for("deleting from this cache");
    fs::remove_file(&blob).unwrap();
    drop(prune);
    let output = pull.finish();
    assert_eq!(output.code, 0, "{output:#?}");
    revision.assert_pulled(&machine.hub());
}

#[test]
fn a_listing_that_fails_halfway_stops_the_push() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    for n in 0..1100 {
        store.put(&format!("blobs/{}", sha256(format!("{n}").as_bytes())), "");
    }
    let before = store.objects();
    store.server.on_request(|request| match request.query.contains("continuation-token") {
        true => Action::Refuse(403, "AccessDenied", "not entitled"),
        false => Action::Pass,
    });
    machine.run(&["push"]).refused(3, &["cannot list", "not entitled"]);
    assert_eq!(store.objects(), before);
}

#[test]
fn a_failed_upload_does_not_stop_the_others() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (bad, good) = (Revision::model("org/bad").lfs("bad.bin", "unlucky"), Revision::model("org/good-one"));
    bad.write(&machine.hub());
    good.write(&machine.hub());
    let unlucky = bad.blob_key("bad.bin");
    let key = unlucky.clone();
    store.server.on_request(move |request| match request.is("PUT", &key) {
        true => Action::Refuse(400, "InvalidRequest", "not this one"),
        false => Action::Pass,
    });
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 1, "{output:#?}");
    assert!(output.stderr.contains(&bad.etag("bad.bin")) && output.stderr.contains("not this one"), "{output:#?}");
    good.assert_published(&store);
    assert!(
        !store.has(&bad.manifest_key()) && !store.has("refs/org__bad/main"),
        "a revision must not be published in part"
    );
    store.server.behave();
    machine.ok(&["push"]);
    bad.assert_published(&store);
}

#[test]
fn concurrent_pulls_download_a_blob_once() {
    // Below 1 MiB there is no lock file, and both may fetch the blob.
    for (length, path) in [(2 << 20, "small.bin"), (LARGE, "large.bin")] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::new("model", "org/large").lfs(path, weights(4, length));
        revision.publish(&store);
        let gate = store.server.hold(|request| request.is("GET", "blobs/"));
        let one = machine.start(&["pull", "org/large", "--workers", "1"]);
        store.server.wait_for("a blob request", |seen| seen.iter().any(|request| request.is("GET", "blobs/")));
        let two = machine.start(&["pull", "org/large"]);
        two.wait_for("another process is downloading");
        gate.open();
        let (one, two) = (one.finish(), two.finish());
        assert_eq!((one.code, two.code), (0, 0), "{one:#?} {two:#?}");
        assert_eq!(one.stdout, two.stdout);
        let fetched = store.server.take_seen().iter().filter(|request| request.is("GET", "blobs/")).count();
        assert_eq!(fetched, length.div_ceil(RANGE), "once");
        revision.assert_pulled(&machine.hub());
        assert_all_complete(&machine);
    }
}

/// Two repos in the same cache share a blob. The client's locks do not cover this case; ours does.
#[test]
fn concurrent_pulls_of_two_repos_share_a_download() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let bytes = weights(4, LARGE);
    let (a, b) =
        (Revision::new("model", "org/a").lfs("a.bin", &bytes), Revision::new("model", "org/b").lfs("b", &bytes));
    a.publish(&store);
    b.publish(&store);
    let gate = store.server.hold(|request| request.is("GET", "blobs/"));
    let one = machine.start(&["pull", "org/a", "--workers", "1"]);
    store.server.wait_for("a blob request", |seen| seen.iter().any(|request| request.is("GET", "blobs/")));
    let two = machine.start(&["pull", "org/b"]);
    two.wait_for("another hf-cache-sync is downloading");
    gate.open();
    let (one, two) = (one.finish(), two.finish());
    assert_eq!((one.code, two.code), (0, 0), "{one:#?} {two:#?}");
    a.assert_pulled(&machine.hub());
    b.assert_pulled(&machine.hub());
    let partial = machine.hub().join(".locks/.hf-cache-sync/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0);
}

/// The Python client holds the lock of a blob: the pull waits and uses the client's download.
#[test]
fn a_pull_waits_for_the_clients_download() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/large");
    revision.publish(&store);
    let etag = revision.etag("model.safetensors");
    let locks = machine.hub().join(".locks").join(revision.folder());
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join(format!("{etag}.lock"))).unwrap();
    lock.lock().unwrap();
    let blobs = revision.dir(&machine.hub()).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let incomplete = blobs.join(format!("{etag}.0a1b2c3d.incomplete"));
    fs::write(&incomplete, "the beginning").unwrap();

    let running = machine.start(&["pull", "org/large"]);
    running.wait_for("another process is downloading");
    assert_eq!(fs::read(&incomplete).unwrap(), b"the beginning");
    fs::write(&incomplete, &revision.file("model.safetensors").bytes).unwrap();
    fs::rename(&incomplete, blobs.join(&etag)).unwrap();
    lock.unlock().unwrap();
    let output = running.finish();
    assert_eq!(output.code, 0, "{output:#?}");
    let key = revision.blob_key("model.safetensors");
    assert!(
        !store.server.take_seen().iter().any(|request| request.is("GET", &key)),
        "the blob must not be downloaded again"
    );
    revision.assert_pulled(&machine.hub());
}

/// The cache may be shared by a group, so files must get the modes that the client would give them.
#[cfg(unix)]
#[test]
fn file_modes_follow_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large().with_tree();
    let mut manifest = revision.manifest();
    revision.publish(&store);
    manifest["tree"] = serde_json::from_slice(&revision.tree_json()).unwrap();
    store.put(&revision.manifest_key(), serde_json::to_vec(&manifest).unwrap());
    let shell = machine.script("umask 002; \"$0\" pull org/large");
    assert_eq!(machine::run(shell).code, 0);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = revision.dir(&machine.hub());
    assert_eq!(mode(revision.blob(&machine.hub(), "model.safetensors")), 0o664);
    assert_eq!(mode(revision.blob(&machine.hub(), "config.json")), 0o664);
    for path in ["refs/main".to_string(), format!("trees/{COMMIT}.json")] {
        assert_eq!(mode(dir.join(&path)), 0o664, "{path}");
    }
    for path in ["blobs", "snapshots", "refs", &format!("snapshots/{COMMIT}")] {
        assert_eq!(mode(dir.join(path)), 0o775, "{path}");
    }
    for lock in fs::read_dir(machine.hub().join(".locks").join(revision.folder())).unwrap() {
        assert_eq!(mode(lock.unwrap().path()), 0o664);
    }
    assert_eq!(mode(machine.hub().join(".locks/.hf-cache-sync/lock")), 0o664);
}

/// Makes the store report success for the first `times` matching writes, but perform `action` instead.
fn lose_writes(
    store: &Store,
    times: usize,
    action: Action,
    matches: impl Fn(&S3Request) -> bool + Send + Sync + 'static,
) {
    let count = AtomicUsize::new(0);
    store.server.on_request(move |request| match matches(request) && count.fetch_add(1, Ordering::SeqCst) < times {
        true => action.clone(),
        false => Action::Pass,
    });
}

/// Whether the request creates an object with this key prefix.
fn creates(request: &S3Request, key: &str) -> bool {
    (request.is("PUT", key) && request.part().is_none())
        || (request.is("POST", key) && request.query.contains("uploadId"))
}

/// A small blob, a streamed blob, and a blob that is uploaded in parts.
fn every_size(id: &str) -> Revision {
    Revision::new("model", id)
        .git("config.json", format!("{{\"id\": \"{id}\"}}"))
        .lfs("streamed.bin", weights(id.len() as u64, 2 << 20))
        .lfs("parts.bin", weights(id.len() as u64, 17 << 20))
}

#[test]
fn a_blob_that_the_store_lost_is_uploaded_again() {
    for action in [Action::Swallow, Action::Truncate(5), Action::Misplace] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = every_size("org/name");
        revision.write(&machine.hub());
        lose_writes(&store, 3, action.clone(), |request| creates(request, "blobs/"));
        let output = machine.run(&["push", "--json"]);
        assert_eq!(output.code, 0, "{action:?}: {output:#?}");
        revision.assert_published(&store);
        assert_eq!(store.text("refs/org__name/main"), COMMIT);
        assert!(output.stderr.contains("sending once more"), "{output:#?}");
        let report = output.json();
        assert_eq!(report["uploaded"]["blobs"], 3, "{report:#}");
    }
}

#[test]
fn a_blob_that_the_store_always_loses_is_not_published() {
    let small = ["config.json", "streamed.bin"];
    for path in ["config.json", "streamed.bin", "parts.bin"] {
        for action in [Action::Swallow, Action::Truncate(5), Action::Misplace] {
            let store = Store::new();
            let machine = Machine::new(&store);
            let (mut bad, good) = (every_size("org/bad"), Revision::model("org/good"));
            // Skip the large file where possible to save time.
            bad.files.retain(|file| small.contains(&file.path.as_str()) || file.path == path);
            bad.write(&machine.hub());
            good.write(&machine.hub());
            let key = bad.blob_key(path);
            lose_writes(&store, usize::MAX, action.clone(), move |request| creates(request, &key));
            let output = machine.run(&["push"]);
            assert_eq!(output.code, 5, "{path} {action:?}: {output:#?}");
            assert!(output.stderr.contains(&bad.etag(path)) && output.stderr.contains(path), "{output:#?}");
            output.nothing_internal();
            assert!(
                !store.has(&bad.manifest_key()) && !store.has("refs/org__bad/main"),
                "the repo must not be published"
            );
            good.assert_published(&store);
            assert_eq!(store.text("refs/org__good/main"), COMMIT);
            let sent = store.server.take_seen().iter().filter(|request| creates(request, &bad.blob_key(path))).count();
            assert_eq!(sent, 2, "the upload is repeated only once");
            store.server.behave();
            machine.ok(&["push"]);
            bad.assert_published(&store);
        }
    }
}

/// An object that is missing from the listing but found by HEAD counts as stored.
#[test]
fn a_push_succeeds_with_an_outdated_listing() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = every_size("org/name");
    revision.write(&machine.hub());
    store.server.on_request(|request| match request.is_list() {
        true => Action::Omit("blobs/"),
        false => Action::Pass,
    });
    machine.ok(&["push"]);
    revision.assert_published(&store);
    assert_eq!(store.text("refs/org__name/main"), COMMIT);
    let sent = store.server.take_seen().iter().filter(|request| creates(request, "blobs/")).count();
    assert_eq!(sent, 3, "no blob is uploaded twice");
}

#[test]
fn a_lost_manifest_is_detected_and_pushed_again() {
    for action in [Action::Swallow, Action::Truncate(100), Action::Misplace] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::model("org/name");
        revision.write(&machine.hub());
        lose_writes(&store, usize::MAX, action.clone(), |request| creates(request, "manifests/"));
        let output = machine.run(&["push"]);
        assert_eq!(output.code, 5, "{action:?}: {output:#?}");
        assert!(output.stderr.contains("the manifest of org/name@"), "{output:#?}");
        assert!(output.stdout.contains("  not published\n"), "{output:#?}");
        output.nothing_internal();
        assert!(!store.has("refs/org__name/main"), "no ref may point to a missing manifest");
        lose_writes(&store, 1, action, |request| creates(request, "manifests/"));
        machine.ok(&["push"]);
        revision.assert_published(&store);
        assert_eq!(store.text("refs/org__name/main"), COMMIT);
    }
}

#[test]
fn a_lost_ref_is_detected_and_pushed_again() {
    for before in [None, Some(OTHER)] {
        for action in [Action::Swallow, Action::Truncate(7)] {
            let store = Store::new();
            let machine = Machine::new(&store);
            let many: Vec<Revision> = (0..3).map(|n| Revision::model(&format!("org/name-{n}"))).collect();
            for revision in &many {
                revision.write(&machine.hub());
            }
            if let Some(commit) = before {
                store.put("refs/org__name-1/main", commit);
            }
            lose_writes(&store, usize::MAX, action.clone(), |request| creates(request, "refs/org__name-1/"));
            let output = machine.run(&["push"]);
            assert_eq!(output.code, 5, "{action:?}: {output:#?}");
            assert!(output.stderr.contains("ref main of org/name-1@"), "{output:#?}");
            assert_eq!(store.text("refs/org__name-2/main"), COMMIT);
            lose_writes(&store, 1, action.clone(), |request| creates(request, "refs/org__name-1/"));
            machine.ok(&["push"]);
            assert_eq!(store.text("refs/org__name-1/main"), COMMIT);
        }
    }
}

/// Deleted between the listing and the publication, by a lifecycle rule or a cleanup on another machine.
#[test]
fn a_blob_deleted_during_a_push_is_uploaded_again() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = every_size("org/name");
    revision.write(&machine.hub());
    let gone = revision.blob_key("streamed.bin");
    store.put(&gone, &revision.file("streamed.bin").bytes);
    let gate = store.server.hold(|request| creates(request, "blobs/"));
    let running = machine.start(&["push"]);
    store.server.wait_for("a blob request", |seen| seen.iter().any(|request| creates(request, "blobs/")));
    store.remove(&gone);
    gate.open();
    let output = running.finish();
    assert_eq!(output.code, 0, "{output:#?}");
    revision.assert_published(&store);
}

/// Verification takes one request if anything was uploaded, and none otherwise.
#[test]
fn verification_takes_one_request() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut revision = Revision::new("model", "org/many");
    for number in 0..50 {
        revision = revision.git(&format!("{number}.txt"), format!("{number}\n"));
    }
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    let seen = store.server.take_seen();
    assert_eq!(
        seen.iter().filter(|request| request.is_list()).count(),
        5,
        "two more than the initial three: of notices, and to check"
    );
    assert_eq!(seen.iter().filter(|request| request.method == "HEAD").count(), 0);
    machine.ok(&["push"]);
    let seen = store.server.take_seen();
    assert_eq!(seen.len(), 3, "{seen:#?}");
}

/// A push that was killed after two of its three parts.
struct KilledPush {
    store: Store,
    machine: Machine,
    revision: Revision,
    /// The upload id.
    upload: String,
    record: Vec<u8>,
}

impl KilledPush {
    fn new() -> Self {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = large();
        revision.write(&machine.hub());
        store.server.hold(|request| request.part() == Some(3));
        let running = machine.start(&["push", "--workers", "1"]);
        store.server.wait_for("the third part", |seen| seen.iter().any(|request| request.part() == Some(3)));
        running.kill();
        store.server.behave();
        store.server.take_seen();
        let mut killed = KilledPush { store, machine, revision, upload: String::new(), record: Vec::new() };
        killed.record = fs::read(killed.record_path()).unwrap();
        let record: Value = serde_json::from_slice(&killed.record).unwrap();
        killed.upload = record["upload"].as_str().unwrap().to_string();
        killed
    }

    /// Returns the path of the local record of the upload.
    fn record_path(&self) -> PathBuf {
        let name = format!("{}.json", self.revision.etag("model.safetensors"));
        self.machine.hub().join(".locks/.hf-cache-sync/uploads").join(name)
    }

    /// Undoes what a later push has published, so that the next one starts with the same record and an empty bucket.
    fn rewind(&self) {
        self.store.clear();
        fs::write(self.record_path(), &self.record).unwrap();
    }

    /// Asserts that the next push succeeds, and returns the part numbers that it sent.
    #[track_caller]
    fn assert_resumes(&self, what: &str) -> Vec<u32> {
        assert_push_succeeds(&self.store, &self.machine, &self.revision, what)
    }
}

/// Asserts that the push succeeds, and returns the part numbers that it sent.
#[track_caller]
fn assert_push_succeeds(store: &Store, machine: &Machine, revision: &Revision, what: &str) -> Vec<u32> {
    let output = machine.run(&["push", "--workers", "1"]);
    assert_eq!(output.code, 0, "{what}: {output:#?}");
    store.server.behave();
    revision.assert_published(store);
    assert_eq!(store.text("refs/org__large/main"), COMMIT);
    let uploads = machine.hub().join(".locks/.hf-cache-sync/uploads");
    assert_eq!(fs::read_dir(uploads).unwrap().count(), 0, "{what}: no leftovers may remain");
    store.server.take_seen().iter().filter_map(S3Request::part).collect()
}

/// The ways in which an unfinished upload can become unusable.
#[test]
fn an_unusable_upload_is_restarted() {
    type Which = fn(&S3Request) -> bool;
    let lists: Which = |request| request.method == "GET";
    let sends: Which = |request| request.part().is_some();
    let completes: Which = |request| request.method == "POST";
    let all: Which = |request| request.method != "DELETE";
    let cases: &[(Which, u16, &'static str)] = &[
        (lists, 403, "AccessDenied"),
        (lists, 404, "NoSuchUpload"),
        (lists, 405, "MethodNotAllowed"),
        (lists, 501, "NotImplemented"),
        (lists, 400, "InvalidArgument"),
        (sends, 403, "AccessDenied"),
        (sends, 404, "NoSuchUpload"),
        (sends, 404, "NoSuchKey"),
        (sends, 404, ""),
        (sends, 403, ""),
        (sends, 400, ""),
        (completes, 404, ""),
        (sends, 400, "InvalidRequest"),
        (completes, 400, "InvalidPart"),
        (completes, 400, "InvalidPartOrder"),
        (completes, 400, "EntityTooSmall"),
        (completes, 404, "NoSuchUpload"),
        (all, 403, "AccessDenied"),
        (all, 404, "NoSuchUpload"),
    ];
    let killed = KilledPush::new();
    for (which, status, code) in cases {
        let (which, status, code, old) = (*which, *status, *code, killed.upload.clone());
        killed.rewind();
        killed.store.server.on_request(move |request| match request.query.contains(&old) && which(request) {
            // Without a code, it is an HTML page from a proxy in front of the store.
            true if code.is_empty() => Action::Page(status),
            true => Action::Refuse(status, code, "no such thing"),
            false => Action::Pass,
        });
        let sent = killed.assert_resumes(code);
        assert!(sent.ends_with(&[1, 2, 3]), "{status} {code}: {sent:?}");
    }
}

/// The embedded server forgets uploads as real ones do: it lists no parts and rejects new ones.
#[test]
fn an_upload_deleted_by_the_store_is_restarted() {
    let killed = KilledPush::new();
    killed.store.server.clean_up_uploads();
    let sent = killed.assert_resumes("cleaned up");
    assert_eq!(sent, [1, 2, 3]);
}

#[test]
fn an_upload_deleted_while_it_runs_is_restarted() {
    for (status, code) in [(404, "NoSuchUpload"), (404, "NoSuchKey")] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = large();
        revision.write(&machine.hub());
        let first = std::sync::Mutex::new(String::new());
        store.server.on_request(move |request| {
            let Some(upload) = request.query.split("uploadId=").nth(1).map(|id| id.split('&').next().unwrap()) else {
                return Action::Pass;
            };
            let mut first = first.lock().unwrap();
            if first.is_empty() {
                *first = upload.to_string();
            }
            match *first == upload && request.part() != Some(1) {
                true => Action::Refuse(status, code, "The specified upload does not exist"),
                false => Action::Pass,
            }
        });
        assert_push_succeeds(&store, &machine, &revision, code);
    }
}

/// The number of restarts is limited.
#[test]
fn an_upload_that_is_deleted_every_time_is_an_error() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.write(&machine.hub());
    store.server.on_request(|request| match request.part() {
        Some(2) => Action::Refuse(404, "NoSuchUpload", "The specified upload does not exist"),
        _ => Action::Pass,
    });
    let output = machine.run(&["push", "--workers", "1"]);
    assert_eq!(output.code, 1, "{output:#?}");
    output.nothing_internal();
    let seen = store.server.take_seen();
    let started = seen.iter().filter(|request| request.method == "POST" && request.query.contains("uploads")).count();
    assert_eq!(started, 2);
}

#[test]
fn an_upload_with_a_bad_record_is_restarted() {
    let set = |key: &'static str, value: Value| {
        move |record: &[u8]| {
            let mut record: Value = serde_json::from_slice(record).unwrap();
            record[key] = value.clone();
            serde_json::to_vec(&record).unwrap()
        }
    };
    type Change = Box<dyn Fn(&[u8]) -> Vec<u8>>;
    let cases: Vec<Change> = vec![
        Box::new(set("bucket", "another".into())),
        Box::new(set("endpoint", "http://127.0.0.1:9".into())),
        Box::new(set("part_size", (8 << 20).into())),
        Box::new(set("part_size", 0.into())),
        Box::new(set("size", 5.into())),
        Box::new(set("upload", "".into())),
        Box::new(set("upload", "no such/upload?\n".into())),
        Box::new(set("modified", Value::Null)),
        Box::new(|record| record[..record.len() / 2].to_vec()),
        Box::new(|_| Vec::new()),
        Box::new(|_| b"[1, 2]".to_vec()),
        Box::new(|_| vec![0xff; 100]),
    ];
    let killed = KilledPush::new();
    for (number, change) in cases.iter().enumerate() {
        killed.rewind();
        fs::write(killed.record_path(), change(&killed.record)).unwrap();
        let sent = killed.assert_resumes(&format!("case {number}"));
        assert_eq!(sent, [1, 2, 3], "case {number}");
    }
}

/// Only the part that differs from the one sent is uploaded again.
#[test]
fn a_part_with_a_different_etag_is_uploaded_again() {
    for (number, expected) in [(2, vec![2, 3]), (1, vec![1, 3])] {
        let killed = KilledPush::new();
        killed.store.server.change_part(number);
        let mut sent = killed.assert_resumes("another ETag");
        sent.sort();
        assert_eq!(sent, expected);
    }
}

/// ETags are not MD5s on stores that encrypt, so a part is uploaded again to find out. Here they are MD5s.
#[test]
fn parts_that_all_differ_are_uploaded_again() {
    let killed = KilledPush::new();
    killed.store.server.change_part(1);
    killed.store.server.change_part(2);
    let mut sent = killed.assert_resumes("other ETags");
    sent.sort();
    assert_eq!(sent, [1, 2, 3]);
}

/// The error may arrive before the part has been sent, and get lost when the connection breaks.
#[test]
fn an_upload_refused_before_the_body_is_read_is_restarted() {
    let killed = KilledPush::new();
    let old = killed.upload.clone();
    killed.store.server.on_request(move |request| match request.part().is_some() && request.query.contains(&old) {
        true => Action::RefuseEarly(403, "AccessDenied", "no such upload"),
        false => Action::Pass,
    });
    let sent = killed.assert_resumes("refused early");
    assert!(sent.ends_with(&[1, 2, 3]), "{sent:?}");
}

/// A corrupt part must not affect the others.
#[test]
fn a_part_that_is_always_corrupted_does_not_affect_the_others() {
    let killed = KilledPush::new();
    killed.store.server.on_request(|request| match request.part() {
        Some(3) => Action::Refuse(400, "BadDigest", "The Content-MD5 you specified did not match"),
        _ => Action::Pass,
    });
    let output = killed.machine.run(&["push", "--workers", "1"]);
    assert_eq!(output.code, 5, "{output:#?}");
    output.nothing_internal();
    killed.store.server.behave();
    let seen = killed.store.server.take_seen();
    assert!(!seen.iter().any(|request| request.method == "DELETE"), "the upload must not be aborted: {seen:#?}");
    let sent = killed.assert_resumes("behaves again");
    assert_eq!(sent, [3], "only the corrupt part");
}

/// A pull that was killed in the middle.
struct KilledPull {
    store: Store,
    machine: Machine,
    revision: Revision,
    /// The partial file and its journal.
    paths: [PathBuf; 2],
}

impl KilledPull {
    /// Kills a pull of the large blob after three ranges.
    fn new() -> Self {
        KilledPull::at(3 * RANGE, LARGE)
    }

    /// Kills a pull of a blob of this length before the range at `start`.
    fn at(start: usize, length: usize) -> Self {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = large_of(length);
        revision.publish(&store);
        store.server.hold(move |request| request.range.as_ref().is_some_and(|range| first_byte(range) == start));
        let running = machine.start(&["pull", "org/large", "--workers", "1"]);
        store.server.wait_for("the range", |seen| ranges(seen).contains(&start));
        running.kill();
        store.server.behave();
        store.server.take_seen();
        let partial = machine.hub().join(".locks/.hf-cache-sync/partial").join(revision.etag("model.safetensors"));
        let journal = partial.with_extension("parts");
        KilledPull { store, machine, revision, paths: [partial, journal] }
    }
}

/// The ways in which the leftovers of an interrupted pull can become unusable.
#[cfg(unix)]
#[test]
fn unusable_leftovers_are_downloaded_again() {
    /// Three ranges.
    const LENGTH: u64 = 17 << 20;
    type Change = fn(&[PathBuf; 2]);
    let cases: &[Change] = &[
        |[partial, _]| fs::File::options().write(true).open(partial).unwrap().set_len(LENGTH + 5).unwrap(),
        |[partial, _]| fs::File::options().write(true).open(partial).unwrap().set_len(5).unwrap(),
        |[_, journal]| fs::write(journal, "no journal").unwrap(),
        |[_, journal]| fs::write(journal, "").unwrap(),
        |[_, journal]| write_unit(journal, 0, 5, 2),
        |[_, journal]| write_unit(journal, PART as u64 + 1, 5, 2),
        |[_, journal]| write_unit(journal, u64::MAX, 5, 2),
        |[_, journal]| write_unit(journal, 1 << 20, 16, 8),
        |[_, journal]| fs::File::options().write(true).open(journal).unwrap().set_len(26).unwrap(),
        |[partial, _]| fs::remove_file(partial).unwrap(),
        |[_, journal]| fs::remove_file(journal).unwrap(),
        |[partial, journal]| {
            for path in [partial, journal] {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }
        },
        |[partial, journal]| {
            for path in [partial, journal] {
                fs::remove_file(path).unwrap();
                std::os::unix::fs::symlink("/nowhere/at/all", path).unwrap();
            }
        },
        |[partial, journal]| {
            for path in [partial, journal] {
                fs::remove_file(path).unwrap();
                assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
            }
        },
    ];
    let KilledPull { store: _store, machine, revision, paths } = KilledPull::at(2 * RANGE, LENGTH as usize);
    let leftovers = paths.each_ref().map(|path| fs::read(path).unwrap());
    for (number, change) in cases.iter().enumerate() {
        // Restore the state that the kill left behind.
        fs::remove_dir_all(machine.hub()).unwrap();
        fs::create_dir_all(paths[0].parent().unwrap()).unwrap();
        for (path, bytes) in paths.iter().zip(&leftovers) {
            fs::write(path, bytes).unwrap();
        }
        change(&paths);
        let output = machine.run(&["pull", "org/large"]);
        assert_eq!(output.code, 0, "case {number}: {output:#?}");
        revision.assert_pulled(&machine.hub());
        assert_all_complete(&machine);
    }
}

/// Rewrites the journal: this unit size, `count` units, of which the first `there` are done.
fn write_unit(journal: &Path, unit: u64, count: usize, done: usize) {
    let mut bytes = fs::read(journal).unwrap();
    bytes.truncate(24);
    bytes[16..].copy_from_slice(&unit.to_le_bytes());
    bytes.extend((0..count).map(|at| u8::from(at < done)));
    fs::write(journal, bytes).unwrap();
}

/// The unit size depends on the run's options and workload; a resumed pull keeps the recorded one.
#[test]
fn a_resumed_pull_keeps_the_recorded_unit_size() {
    for unit in [1 << 20, 2 << 20, 4 << 20] {
        let KilledPull { store, machine, revision, paths: [_, journal] } = KilledPull::new();
        write_unit(&journal, unit, LARGE.div_ceil(unit as usize), 2 * RANGE / unit as usize);
        machine.ok(&["pull", "org/large"]);
        revision.assert_pulled(&machine.hub());
        assert_all_complete(&machine);
        let mut starts = ranges(&store.server.take_seen());
        starts.sort();
        assert_eq!(starts[0], 2 * RANGE, "unit {unit}: {starts:?}");
        assert!(starts.iter().all(|start| start % unit as usize == 0), "unit {unit}: {starts:?}");
    }
}

/// If the partial file is corrupt, only the parts that the earlier run had fetched are fetched again.
#[test]
fn bytes_from_this_run_are_kept_if_older_ones_were_corrupt() {
    let KilledPull { store, machine, revision, paths: [partial, _] } = KilledPull::new();
    let mut bytes = fs::read(&partial).unwrap();
    bytes[1000] ^= 1;
    fs::write(&partial, bytes).unwrap();
    machine.ok(&["pull", "org/large", "--workers", "1"]);
    revision.assert_pulled(&machine.hub());
    let starts = ranges(&store.server.take_seen());
    assert!(starts.iter().filter(|start| **start >= 3 * RANGE).count() <= 2, "the end is downloaded once: {starts:?}");
    assert!(starts.contains(&0), "{starts:?}");
}

#[test]
fn bytes_corrupted_in_transit_are_downloaded_again() {
    for length in [200_000, LARGE] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::new("model", "org/name").lfs("model.bin", weights(2, length));
        revision.publish(&store);
        lose_writes(&store, 1, Action::Flip, |request| request.is("GET", "blobs/"));
        machine.ok(&["pull", "org/name"]);
        revision.assert_pulled(&machine.hub());
        // But only once.
        let other = Machine::new(&store);
        lose_writes(&store, usize::MAX, Action::Flip, |request| request.is("GET", "blobs/"));
        let output = other.run(&["pull", "org/name", "--workers", "1"]);
        assert_eq!(output.code, 5, "{output:#?}");
        assert!(output.stderr.contains("corrupt in the bucket"), "{output:#?}");
    }
}

/// Each attempt is corrupted in another place; parts that were identical twice are not fetched a third time.
#[test]
fn only_parts_that_may_be_corrupt_are_downloaded_again() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.publish(&store);
    let times = std::sync::Mutex::new(std::collections::HashMap::<usize, usize>::new());
    store.server.on_request(move |request| {
        let Some(range) = &request.range else { return Action::Pass };
        let start = first_byte(range);
        let mut times = times.lock().unwrap();
        let time = times.entry(start).or_default();
        *time += 1;
        match (start, *time) {
            (0, 1) => Action::Flip,
            (start, 2) if start == 2 * RANGE => Action::Flip,
            _ => Action::Pass,
        }
    });
    machine.ok(&["pull", "org/large", "--workers", "1"]);
    revision.assert_pulled(&machine.hub());
    let starts = ranges(&store.server.take_seen());
    // Everything twice, and then the two parts that differed.
    let all = [0, RANGE, 2 * RANGE, 3 * RANGE, 4 * RANGE];
    assert_eq!(starts, [&all[..], &all[..], &[PART, 2 * RANGE + PART]].concat());
}

/// The object is overwritten during the download with the same bytes and a new ETag.
#[test]
fn an_object_replaced_during_a_download_is_downloaded_again() {
    for length in [200_000, LARGE] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::new("model", "org/name").lfs("model.bin", weights(2, length));
        revision.publish(&store);
        let count = AtomicUsize::new(0);
        store.server.on_request(move |request| match request.is("GET", "blobs/") {
            true => match count.fetch_add(1, Ordering::SeqCst) {
                0 => Action::Cut(50_000),
                1 => Action::Refuse(412, "PreconditionFailed", "another ETag"),
                _ => Action::Pass,
            },
            false => Action::Pass,
        });
        machine.ok(&["pull", "org/name", "--workers", "1"]);
        revision.assert_pulled(&machine.hub());
    }
}
