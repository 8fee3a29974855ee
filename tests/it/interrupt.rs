//! What breaks in the middle: killed and interrupted commands, bodies that end early, stores that push back, and
//! downloads side by side. A second run completes the work without repeating what was finished, and nothing torn or
//! foreign is ever seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision};
use crate::harness::machine::{self, Machine, Running};
use crate::harness::s3::{Action, Seen};
use crate::harness::store::Store;
use serde_json::Value;

use crate::harness::{contents, git_sha1, listing, sha256, visible, weights};

/// 33 MiB: with one worker, nine parts of a pull and three of a push.
const LARGE: usize = 33 << 20;
/// What a pull with one worker can take up again.
const PART: usize = 4 << 20;
/// A range of a pull with one worker.
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
                let ran = running.finish();
                assert_eq!((ran.code, ran.stdout.as_str()), (130, ""), "{ran:#?}");
                assert!(ran.stderr.contains("interrupted"), "{ran:#?}");
            }
        }
    }
}

/// Every visible file is whole, and nothing is there that huggingface_hub does not know.
#[track_caller]
fn nothing_torn(machine: &Machine) {
    for (path, what) in contents(&machine.hub()) {
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            ["models--org--large", "blobs", etag] => {
                // The listing has the sha256 of it already.
                let is_whole = what.ends_with(etag) || {
                    let bytes = fs::read(machine.hub().join(&path)).unwrap();
                    [sha256(&bytes), git_sha1(&bytes)].contains(&etag.to_string())
                };
                assert!(is_whole, "{path} is torn");
            }
            ["models--org--large", "snapshots", COMMIT, ..] => {
                assert!(fs::metadata(machine.hub().join(&path)).is_ok(), "{path} leads nowhere: {what}");
            }
            ["models--org--large", "refs", "main"] | ["models--org--large", "trees", _] => {}
            _ => panic!("{path} is no part of a cache"),
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

fn ranges(seen: &[Seen]) -> Vec<usize> {
    seen.iter().filter_map(|request| Some(first_byte(request.range.as_deref()?))).collect()
}

fn a_pull_is_stopped(how: Stop) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.publish(&store);
    let gate = store.server.hold(|request| request.range.as_ref().is_some_and(|range| first_byte(range) == 3 * RANGE));
    // With one worker, the request for the fourth range says that the first two were received and noted.
    let running = machine.start(&["pull", "org/large", "--workers", "1"]);
    store.server.wait_for("fourth range", |seen| ranges(seen).contains(&(3 * RANGE)));
    how.stop(running);
    nothing_torn(&machine);
    assert!(!revision.dir(&machine.hub()).join("refs").exists(), "no ref before the revision is complete");
    assert!(!revision.snapshot(&machine.hub()).exists());

    gate.open();
    store.server.take_seen();
    let report = machine.ok_json(&["pull", "org/large", "--json"]);
    let moved = report["downloaded"]["bytes"].as_u64().unwrap() as usize;
    assert!((RANGE..=LARGE - 2 * RANGE + 100).contains(&moved), "only what was moved counts: {report:#}");
    let again = ranges(&store.server.take_seen());
    assert!(again.iter().all(|start| *start >= 2 * RANGE && start % PART == 0), "{again:?}");
    revision.assert_pulled(&machine.hub());
    nothing_torn(&machine);
    let partial = machine.hub().join(".locks/.hf-cache-sync/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0, "nothing is left of it");
}

#[test]
fn a_killed_pull_goes_on_where_it_was() {
    a_pull_is_stopped(Stop::Kill);
}

#[cfg(unix)]
#[test]
fn an_interrupted_pull_goes_on_where_it_was() {
    a_pull_is_stopped(Stop::Interrupt);
}

fn a_push_is_stopped(how: Stop) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large().layout(Layout::Links);
    revision.write(&machine.hub());
    let before = visible(&machine.hub());
    let gate = store.server.hold(|request| request.part() == Some(3));
    let running = machine.start(&["push", "--workers", "1"]);
    store.server.wait_for("third part", |seen| seen.iter().any(|request| request.part() == Some(3)));
    how.stop(running);
    nothing_torn_ignoring_tag(&machine);
    assert_eq!(visible(&machine.hub()), before);
    let keys = store.keys();
    assert!(!keys.iter().any(|key| key.starts_with("manifests/") || key.starts_with("refs")), "{keys:?}");
    assert!(!store.has(&revision.blob_key("model.safetensors")));

    gate.open();
    store.server.behave();
    store.server.take_seen();
    let report = machine.ok_json(&["push", "--json"]);
    let moved = report["uploaded"]["bytes"].as_u64().unwrap() as usize;
    let sent: Vec<u32> = store.server.take_seen().iter().filter_map(Seen::part).collect();
    assert_eq!(sent, [3], "only what was not finished");
    assert!((1..=LARGE / 2).contains(&moved), "only what was moved counts: {report:#}");
    revision.assert_published(&store);
    assert_eq!(store.text("refs/org__large/main"), COMMIT);
    assert_eq!(visible(&machine.hub()), before);
    let uploads = machine.hub().join(".locks/.hf-cache-sync/uploads");
    assert_eq!(fs::read_dir(uploads).unwrap().count(), 0, "nothing is left of it");
}

#[track_caller]
fn nothing_torn_ignoring_tag(machine: &Machine) {
    let tag = machine.hub().join("CACHEDIR.TAG");
    let content = fs::read(&tag).unwrap();
    let times = fs::metadata(&tag).unwrap().modified().unwrap();
    fs::remove_file(&tag).unwrap();
    nothing_torn(machine);
    fs::write(&tag, content).unwrap();
    fs::File::options().write(true).open(&tag).unwrap().set_modified(times).unwrap();
}

#[test]
fn a_killed_push_goes_on_where_it_was() {
    a_push_is_stopped(Stop::Kill);
}

#[cfg(unix)]
#[test]
fn an_interrupted_push_goes_on_where_it_was() {
    a_push_is_stopped(Stop::Interrupt);
}

/// The record of an interrupted upload is of no use once the file is another, or the prefix is.
#[test]
fn parts_of_other_bytes_are_not_used() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.write(&machine.hub());
    let gate = store.server.hold(|request| request.part() == Some(2));
    let running = machine.start(&["push", "--workers", "1"]);
    store.server.wait_for("second part", |seen| seen.iter().any(|request| request.part() == Some(2)));
    running.kill();
    gate.open();
    store.server.behave();
    store.server.take_seen();
    machine.ok(&["push", "--prefix", "elsewhere", "--workers", "1"]);
    let mut sent: Vec<u32> = store.server.take_seen().iter().filter_map(Seen::part).collect();
    sent.sort();
    assert_eq!(sent, [1, 2, 3], "parts under another key cannot be used");
    assert!(store.get(&format!("elsewhere/{}", revision.blob_key("model.safetensors"))).len() == LARGE);
    assert!(!store.has(&revision.blob_key("model.safetensors")));
}

/// Leftovers of an earlier run that are not what the journal says cost a second download, never a wrong blob.
#[test]
fn a_damaged_partial_file_is_found_out() {
    let KilledPull { store: _store, machine, revision, paths: [partial, _] } = KilledPull::new();
    let mut bytes = fs::read(&partial).unwrap();
    bytes[1000] ^= 1;
    fs::write(&partial, bytes).unwrap();
    machine.ok(&["pull", "org/large"]);
    revision.assert_pulled(&machine.hub());
}

/// What a killed run left, and cannot be taken up again, does not stay for ever; what may be in use does.
#[test]
fn leftovers_are_swept_up() {
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
    machine.ok(&["pull", "org/name"]);
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(state.join(dir)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("staging"), ["young"]);
    assert_eq!(names("partial"), [format!("{etag}.young.small"), format!("{etag}old"), format!("{etag}young")]);
}

#[cfg(unix)]
#[test]
fn nothing_is_swept_up_through_a_link() {
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
fn a_body_that_breaks_off_is_taken_up_again() {
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
        let seen: Vec<Seen> =
            store.server.take_seen().into_iter().filter(|request| request.is("GET", "blobs/")).collect();
        let starts = ranges(&seen);
        // A range begins at a whole MiB.
        let taken_up = starts.iter().filter(|start| **start % (1 << 20) != 0).count();
        assert!(taken_up == 2, "it goes on after the last byte: {starts:?}");
    }
}

#[test]
fn a_body_that_always_breaks_off_is_a_failure() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::new("model", "org/name").lfs("model.bin", weights(2, 200_000));
    revision.publish(&store);
    store.server.on_request(|request| match request.is("GET", "blobs/") {
        true => Action::Cut(0),
        false => Action::Pass,
    });
    let ran = machine.run(&["pull", "org/name"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (6, ""), "{ran:#?}");
    ran.nothing_internal();
    assert!(visible(&machine.hub()).is_empty(), "{:?}", visible(&machine.hub()));
}

#[test]
fn a_manifest_that_is_cut_is_read_again() {
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
fn a_store_that_pushes_back_is_asked_again() {
    for (status, code) in [(503, "SlowDown"), (429, "")] {
        let store = Store::new();
        let (source, target) = (Machine::new(&store), Machine::new(&store));
        let revision = Revision::model("org/name").lfs("parts.bin", weights(3, 17 << 20));
        revision.write(&source.hub());
        // Every kind of request fails once.
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

/// A cache of many small blobs, and a store that lets through so many of them.
fn fails_after(few: usize, action: Action) -> (Store, Machine) {
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
        if count < few { Action::Pass } else { action.clone() }
    });
    (store, machine)
}

#[test]
fn a_store_that_is_lost_is_not_waited_for_by_each_blob() {
    let (store, machine) = fails_after(20, Action::Refuse(503, "ServiceUnavailable", "gone fishing"));
    let ran = machine.run(&["push", "--workers", "8"]);
    assert_eq!(ran.code, 6, "{ran:#?}");
    let tries = store.server.take_seen().iter().filter(|request| request.is("PUT", "blobs/")).count();
    assert!(tries <= 20 + 8 * 8, "more than those in flight were tried to the end: {tries}");
    // All failed for one reason, which is shown once. The lines of progress name it too, as what they wait for.
    assert_eq!(ran.stderr.matches("gone fishing)\n").count(), 1, "{ran:#?}");
    assert!(ran.stderr.contains("more failed in the same way"), "{ran:#?}");
    store.server.behave();
    machine.ok(&["push"]);
    assert!(store.has("refs/org__many/main"));
}

#[test]
fn credentials_that_end_during_a_run_end_it() {
    let (store, machine) = fails_after(20, Action::Refuse(400, "ExpiredToken", "the token has expired"));
    let ran = machine.run(&["push", "--workers", "8"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    let tries = store.server.take_seen().iter().filter(|request| request.is("PUT", "blobs/")).count();
    // Those in flight, each by the fast path and by the SDK.
    assert!(tries <= 20 + 2 * 8, "more than those in flight were tried: {tries}");
}

#[test]
fn a_listing_that_breaks_off_is_asked_for_again() {
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

/// Both find the same record of an upload; neither may take its parts away from the other.
#[test]
fn two_pushes_of_one_cache_send_a_large_blob_once() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.write(&machine.hub());
    let gate = store.server.hold(|request| request.part() == Some(2));
    let one = machine.start(&["push"]);
    store.server.wait_for("second part", |seen| seen.iter().any(|request| request.part() == Some(2)));
    let two = machine.start(&["push"]);
    two.wait_for("another hf-cache-sync is pushing");
    gate.open();
    let (one, two) = (one.finish(), two.finish());
    assert_eq!((one.code, two.code), (0, 0), "{one:#?} {two:#?}");
    let seen = store.server.take_seen();
    let begun = seen.iter().filter(|request| request.method == "POST" && request.query.contains("uploads")).count();
    assert_eq!(begun, 1, "one upload");
    revision.assert_published(&store);
    let uploads = machine.hub().join(".locks/.hf-cache-sync/uploads");
    assert_eq!(fs::read_dir(uploads).unwrap().count(), 0, "nothing is left of it");
}

/// What a pull has seen before it waits may be gone when it goes on.
#[test]
fn a_pull_that_waits_for_a_prune_looks_again() {
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
    let ran = pull.finish();
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_pulled(&machine.hub());
}

#[test]
fn a_listing_that_fails_in_the_middle_decides_nothing() {
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
fn one_upload_that_fails_does_not_stop_the_others() {
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
    let ran = machine.run(&["push"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains(&bad.etag("bad.bin")) && ran.stderr.contains("not this one"), "{ran:#?}");
    good.assert_published(&store);
    assert!(!store.has(&bad.manifest_key()) && !store.has("refs/org__bad/main"), "not half published");
    store.server.behave();
    machine.ok(&["push"]);
    bad.assert_published(&store);
}

#[test]
fn two_pulls_at_once_fetch_a_blob_once() {
    // Below a MiB no lock file is made, and both may fetch it.
    for (length, path) in [(2 << 20, "small.bin"), (LARGE, "large.bin")] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::new("model", "org/large").lfs(path, weights(4, length));
        revision.publish(&store);
        let gate = store.server.hold(|request| request.is("GET", "blobs/"));
        let one = machine.start(&["pull", "org/large", "--workers", "1"]);
        store.server.wait_for("blob", |seen| seen.iter().any(|request| request.is("GET", "blobs/")));
        let two = machine.start(&["pull", "org/large"]);
        two.wait_for("another process is downloading");
        gate.open();
        let (one, two) = (one.finish(), two.finish());
        assert_eq!((one.code, two.code), (0, 0), "{one:#?} {two:#?}");
        assert_eq!(one.stdout, two.stdout);
        let fetched = store.server.take_seen().iter().filter(|request| request.is("GET", "blobs/")).count();
        assert_eq!(fetched, length.div_ceil(RANGE), "once");
        revision.assert_pulled(&machine.hub());
        nothing_torn(&machine);
    }
}

/// Two repos of one cache share a blob: the client's locks do not exclude each other, ours does.
#[test]
fn two_pulls_of_two_repos_with_one_blob() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let bytes = weights(4, LARGE);
    let (a, b) =
        (Revision::new("model", "org/a").lfs("a.bin", &bytes), Revision::new("model", "org/b").lfs("b", &bytes));
    a.publish(&store);
    b.publish(&store);
    let gate = store.server.hold(|request| request.is("GET", "blobs/"));
    let one = machine.start(&["pull", "org/a", "--workers", "1"]);
    store.server.wait_for("blob", |seen| seen.iter().any(|request| request.is("GET", "blobs/")));
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

/// The Python client holds its lock on a blob: we wait, and take what it has fetched.
#[test]
fn a_blob_that_the_client_is_fetching() {
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
    fs::write(&incomplete, "its beginning").unwrap();

    let running = machine.start(&["pull", "org/large"]);
    running.wait_for("another process is downloading");
    assert_eq!(fs::read(&incomplete).unwrap(), b"its beginning");
    fs::write(&incomplete, &revision.file("model.safetensors").bytes).unwrap();
    fs::rename(&incomplete, blobs.join(&etag)).unwrap();
    lock.unlock().unwrap();
    let ran = running.finish();
    assert_eq!(ran.code, 0, "{ran:#?}");
    let key = revision.blob_key("model.safetensors");
    assert!(!store.server.take_seen().iter().any(|request| request.is("GET", &key)), "it is not fetched again");
    revision.assert_pulled(&machine.hub());
}

/// What the client does not know is made with the modes that it would give: a group shares a cache.
#[cfg(unix)]
#[test]
fn modes_follow_the_umask() {
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

/// A store that says yes to every write that `which` picks, and does `action` instead.
fn untrue(store: &Store, times: usize, action: Action, which: impl Fn(&Seen) -> bool + Send + Sync + 'static) {
    let count = AtomicUsize::new(0);
    store.server.on_request(move |request| match which(request) && count.fetch_add(1, Ordering::SeqCst) < times {
        true => action.clone(),
        false => Action::Pass,
    });
}

/// Whether the request makes an object of a key that begins like this.
fn makes(request: &Seen, key: &str) -> bool {
    (request.is("PUT", key) && request.part().is_none())
        || (request.is("POST", key) && request.query.contains("uploadId"))
}

/// A small blob, one that is streamed, and one in parts.
fn every_size(id: &str) -> Revision {
    Revision::new("model", id)
        .git("config.json", format!("{{\"id\": \"{id}\"}}"))
        .lfs("streamed.bin", weights(id.len() as u64, 2 << 20))
        .lfs("parts.bin", weights(id.len() as u64, 17 << 20))
}

#[test]
fn a_blob_that_the_store_did_not_keep_is_sent_once_more() {
    for action in [Action::Swallow, Action::Keep(5), Action::Misplace] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = every_size("org/name");
        revision.write(&machine.hub());
        untrue(&store, 3, action.clone(), |request| makes(request, "blobs/"));
        let ran = machine.run(&["push", "--json"]);
        assert_eq!(ran.code, 0, "{action:?}: {ran:#?}");
        revision.assert_published(&store);
        assert_eq!(store.text("refs/org__name/main"), COMMIT);
        assert!(ran.stderr.contains("sending once more"), "{ran:#?}");
        let report = ran.json();
        assert_eq!(report["uploaded"]["blobs"], 3, "{report:#}");
    }
}

#[test]
fn a_blob_that_the_store_never_keeps_is_not_published() {
    let small = ["config.json", "streamed.bin"];
    for path in ["config.json", "streamed.bin", "parts.bin"] {
        for action in [Action::Swallow, Action::Keep(5), Action::Misplace] {
            let store = Store::new();
            let machine = Machine::new(&store);
            let (mut bad, good) = (every_size("org/bad"), Revision::model("org/good"));
            // The large file costs time.
            bad.files.retain(|file| small.contains(&file.path.as_str()) || file.path == path);
            bad.write(&machine.hub());
            good.write(&machine.hub());
            let key = bad.blob_key(path);
            untrue(&store, usize::MAX, action.clone(), move |request| makes(request, &key));
            let ran = machine.run(&["push"]);
            assert_eq!(ran.code, 5, "{path} {action:?}: {ran:#?}");
            assert!(ran.stderr.contains(&bad.etag(path)) && ran.stderr.contains(path), "{ran:#?}");
            ran.nothing_internal();
            assert!(!store.has(&bad.manifest_key()) && !store.has("refs/org__bad/main"), "nothing of it is published");
            good.assert_published(&store);
            assert_eq!(store.text("refs/org__good/main"), COMMIT);
            let sent = store.server.take_seen().iter().filter(|request| makes(request, &bad.blob_key(path))).count();
            assert_eq!(sent, 2, "once more, and not for ever");
            store.server.behave();
            machine.ok(&["push"]);
            bad.assert_published(&store);
        }
    }
}

/// A listing may lag behind: what a HEAD finds is there.
#[test]
fn a_listing_that_lags_fails_no_push() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = every_size("org/name");
    revision.write(&machine.hub());
    store.server.on_request(|request| match request.is_list() {
        true => Action::Overlook("blobs/"),
        false => Action::Pass,
    });
    machine.ok(&["push"]);
    revision.assert_published(&store);
    assert_eq!(store.text("refs/org__name/main"), COMMIT);
    let sent = store.server.take_seen().iter().filter(|request| makes(request, "blobs/")).count();
    assert_eq!(sent, 3, "nothing is sent twice");
}

#[test]
fn a_manifest_that_the_store_did_not_keep() {
    for action in [Action::Swallow, Action::Keep(100), Action::Misplace] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::model("org/name");
        revision.write(&machine.hub());
        untrue(&store, usize::MAX, action.clone(), |request| makes(request, "manifests/"));
        let ran = machine.run(&["push"]);
        assert_eq!(ran.code, 5, "{action:?}: {ran:#?}");
        assert!(ran.stderr.contains("the manifest of org/name@"), "{ran:#?}");
        ran.nothing_internal();
        assert!(!store.has("refs/org__name/main"), "no ref to what is not there");
        untrue(&store, 1, action, |request| makes(request, "manifests/"));
        machine.ok(&["push"]);
        revision.assert_published(&store);
        assert_eq!(store.text("refs/org__name/main"), COMMIT);
    }
}

#[test]
fn a_ref_that_the_store_did_not_keep() {
    for before in [None, Some(OTHER)] {
        for action in [Action::Swallow, Action::Keep(7)] {
            let store = Store::new();
            let machine = Machine::new(&store);
            let many: Vec<Revision> = (0..3).map(|n| Revision::model(&format!("org/name-{n}"))).collect();
            for revision in &many {
                revision.write(&machine.hub());
            }
            if let Some(commit) = before {
                store.put("refs/org__name-1/main", commit);
            }
            untrue(&store, usize::MAX, action.clone(), |request| makes(request, "refs/org__name-1/"));
            let ran = machine.run(&["push"]);
            assert_eq!(ran.code, 5, "{action:?}: {ran:#?}");
            assert!(ran.stderr.contains("ref main of org/name-1@"), "{ran:#?}");
            assert_eq!(store.text("refs/org__name-2/main"), COMMIT);
            untrue(&store, 1, action.clone(), |request| makes(request, "refs/org__name-1/"));
            machine.ok(&["push"]);
            assert_eq!(store.text("refs/org__name-1/main"), COMMIT);
        }
    }
}

/// Gone between the listing and the publication, by a rule of the bucket or another machine's clean-up.
#[test]
fn a_blob_that_disappears_during_a_push_is_sent_anew() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = every_size("org/name");
    revision.write(&machine.hub());
    let gone = revision.blob_key("streamed.bin");
    store.put(&gone, &revision.file("streamed.bin").bytes);
    let gate = store.server.hold(|request| makes(request, "blobs/"));
    let running = machine.start(&["push"]);
    store.server.wait_for("blob", |seen| seen.iter().any(|request| makes(request, "blobs/")));
    store.remove(&gone);
    gate.open();
    let ran = running.finish();
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_published(&store);
}

/// What is checked costs a request where there is something to check, and none where nothing was done.
#[test]
fn checking_costs_one_request() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut revision = Revision::new("model", "org/many");
    for number in 0..50 {
        revision = revision.git(&format!("{number}.txt"), format!("{number}\n"));
    }
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    let seen = store.server.take_seen();
    assert_eq!(seen.iter().filter(|request| request.is_list()).count(), 4, "one more than the first three");
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
    /// The id of its upload.
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
        store.server.wait_for("third part", |seen| seen.iter().any(|request| request.part() == Some(3)));
        running.kill();
        store.server.behave();
        store.server.take_seen();
        let mut killed = KilledPush { store, machine, revision, upload: String::new(), record: Vec::new() };
        killed.record = fs::read(killed.record_path()).unwrap();
        let record: Value = serde_json::from_slice(&killed.record).unwrap();
        killed.upload = record["upload"].as_str().unwrap().to_string();
        killed
    }

    /// What is known here of the upload.
    fn record_path(&self) -> PathBuf {
        let name = format!("{}.json", self.revision.etag("model.safetensors"));
        self.machine.hub().join(".locks/.hf-cache-sync/uploads").join(name)
    }

    /// Forgets what a later push has published, so that the next one finds the same record and an empty bucket.
    fn rewind(&self) {
        self.store.clear();
        fs::write(self.record_path(), &self.record).unwrap();
    }

    /// The next push goes well; returns the numbers of the parts that it sent.
    #[track_caller]
    fn goes_on(&self, what: &str) -> Vec<u32> {
        goes_well(&self.store, &self.machine, &self.revision, what)
    }
}

/// The push goes well; returns the numbers of the parts that it sent.
#[track_caller]
fn goes_well(store: &Store, machine: &Machine, revision: &Revision, what: &str) -> Vec<u32> {
    let ran = machine.run(&["push", "--workers", "1"]);
    assert_eq!(ran.code, 0, "{what}: {ran:#?}");
    store.server.behave();
    revision.assert_published(store);
    assert_eq!(store.text("refs/org__large/main"), COMMIT);
    let uploads = machine.hub().join(".locks/.hf-cache-sync/uploads");
    assert_eq!(fs::read_dir(uploads).unwrap().count(), 0, "{what}: nothing is left of it");
    store.server.take_seen().iter().filter_map(Seen::part).collect()
}

/// What can have become of an unfinished upload.
#[test]
fn an_upload_that_is_of_no_use_any_more_is_begun_anew() {
    type Which = fn(&Seen) -> bool;
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
            // Without a code it is a page, of whatever stands before the store.
            true if code.is_empty() => Action::Page(status),
            true => Action::Refuse(status, code, "no such thing"),
            false => Action::Pass,
        });
        let sent = killed.goes_on(code);
        assert!(sent.ends_with(&[1, 2, 3]), "{status} {code}: {sent:?}");
    }
}

/// The server of these tests forgets uploads as a real one does: it lists no parts, and refuses new ones.
#[test]
fn an_upload_that_the_store_has_cleaned_up() {
    let killed = KilledPush::new();
    killed.store.server.clean_up_uploads();
    let sent = killed.goes_on("cleaned up");
    assert_eq!(sent, [1, 2, 3]);
}

#[test]
fn an_upload_that_is_cleaned_up_while_it_runs() {
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
        goes_well(&store, &machine, &revision, code);
    }
}

/// Fresh starts have an end.
#[test]
fn an_upload_that_is_always_lost_is_a_failure() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = large();
    revision.write(&machine.hub());
    store.server.on_request(|request| match request.part() {
        Some(2) => Action::Refuse(404, "NoSuchUpload", "The specified upload does not exist"),
        _ => Action::Pass,
    });
    let ran = machine.run(&["push", "--workers", "1"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    ran.nothing_internal();
    let seen = store.server.take_seen();
    let begun = seen.iter().filter(|request| request.method == "POST" && request.query.contains("uploads")).count();
    assert_eq!(begun, 2);
}

#[test]
fn a_record_of_an_upload_that_says_something_else() {
    let bend = |key: &'static str, value: Value| {
        move |record: &[u8]| {
            let mut record: Value = serde_json::from_slice(record).unwrap();
            record[key] = value.clone();
            serde_json::to_vec(&record).unwrap()
        }
    };
    type Bend = Box<dyn Fn(&[u8]) -> Vec<u8>>;
    let cases: Vec<Bend> = vec![
        Box::new(bend("bucket", "another".into())),
        Box::new(bend("endpoint", "http://127.0.0.1:9".into())),
        Box::new(bend("part_size", (8 << 20).into())),
        Box::new(bend("part_size", 0.into())),
        Box::new(bend("size", 5.into())),
        Box::new(bend("upload", "".into())),
        Box::new(bend("upload", "no such/upload?\n".into())),
        Box::new(bend("modified", Value::Null)),
        Box::new(|record| record[..record.len() / 2].to_vec()),
        Box::new(|_| Vec::new()),
        Box::new(|_| b"[1, 2]".to_vec()),
        Box::new(|_| vec![0xff; 100]),
    ];
    let killed = KilledPush::new();
    for (number, bend) in cases.iter().enumerate() {
        killed.rewind();
        fs::write(killed.record_path(), bend(&killed.record)).unwrap();
        let sent = killed.goes_on(&format!("case {number}"));
        assert_eq!(sent, [1, 2, 3], "case {number}");
    }
}

/// A part that is not what was sent is sent anew, and only that one.
#[test]
fn a_part_that_the_store_has_otherwise() {
    for (number, expected) in [(2, vec![2, 3]), (1, vec![1, 3])] {
        let killed = KilledPush::new();
        killed.store.server.change_part(number);
        let mut sent = killed.goes_on("another ETag");
        sent.sort();
        assert_eq!(sent, expected);
    }
}

/// ETags need not be MD5s, where a store encrypts: a part that is sent again tells. Here they are.
#[test]
fn parts_none_of_which_the_store_has_as_they_are() {
    let killed = KilledPush::new();
    killed.store.server.change_part(1);
    killed.store.server.change_part(2);
    let mut sent = killed.goes_on("other ETags");
    sent.sort();
    assert_eq!(sent, [1, 2, 3]);
}

/// The refusal may come before the part was sent, and get lost with the connection.
#[test]
fn an_upload_that_is_refused_before_it_is_read() {
    let killed = KilledPush::new();
    let old = killed.upload.clone();
    killed.store.server.on_request(move |request| match request.part().is_some() && request.query.contains(&old) {
        true => Action::Slam(403, "AccessDenied", "no such upload"),
        false => Action::Pass,
    });
    let sent = killed.goes_on("slammed");
    assert!(sent.ends_with(&[1, 2, 3]), "{sent:?}");
}

/// Damage on the way concerns a part, not the others.
#[test]
fn a_part_that_always_arrives_damaged_leaves_the_others_alone() {
    let killed = KilledPush::new();
    killed.store.server.on_request(|request| match request.part() {
        Some(3) => Action::Refuse(400, "BadDigest", "The Content-MD5 you specified did not match"),
        _ => Action::Pass,
    });
    let ran = killed.machine.run(&["push", "--workers", "1"]);
    assert_eq!(ran.code, 5, "{ran:#?}");
    ran.nothing_internal();
    killed.store.server.behave();
    let seen = killed.store.server.take_seen();
    assert!(!seen.iter().any(|request| request.method == "DELETE"), "the upload is not given up: {seen:#?}");
    let sent = killed.goes_on("behaves again");
    assert_eq!(sent, [3], "only the damaged one");
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
    /// Of the large blob, after three of its ranges.
    fn new() -> Self {
        KilledPull::at(3 * RANGE, LARGE)
    }

    /// Of a blob of this length, before the range that begins here.
    fn at(start: usize, length: usize) -> Self {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = large_of(length);
        revision.publish(&store);
        store.server.hold(move |request| request.range.as_ref().is_some_and(|range| first_byte(range) == start));
        let running = machine.start(&["pull", "org/large", "--workers", "1"]);
        store.server.wait_for("range", |seen| ranges(seen).contains(&start));
        running.kill();
        store.server.behave();
        store.server.take_seen();
        let partial = machine.hub().join(".locks/.hf-cache-sync/partial").join(revision.etag("model.safetensors"));
        let journal = partial.with_extension("parts");
        KilledPull { store, machine, revision, paths: [partial, journal] }
    }
}

/// What can have become of what an interrupted pull has left.
#[cfg(unix)]
#[test]
fn leftovers_of_a_pull_that_are_of_no_use_are_fetched_anew() {
    /// Three ranges.
    const LENGTH: u64 = 17 << 20;
    type Bend = fn(&[PathBuf; 2]);
    let cases: &[Bend] = &[
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
    let left = paths.each_ref().map(|path| fs::read(path).unwrap());
    for (number, bend) in cases.iter().enumerate() {
        // As the kill has left it.
        fs::remove_dir_all(machine.hub()).unwrap();
        fs::create_dir_all(paths[0].parent().unwrap()).unwrap();
        for (path, bytes) in paths.iter().zip(&left) {
            fs::write(path, bytes).unwrap();
        }
        bend(&paths);
        let ran = machine.run(&["pull", "org/large"]);
        assert_eq!(ran.code, 0, "case {number}: {ran:#?}");
        revision.assert_pulled(&machine.hub());
        nothing_torn(&machine);
    }
}

/// Makes a journal say that the pull has come in so many units of this size, and that the first of them are `there`.
fn write_unit(journal: &Path, unit: u64, count: usize, there: usize) {
    let mut bytes = fs::read(journal).unwrap();
    bytes.truncate(24);
    bytes[16..].copy_from_slice(&unit.to_le_bytes());
    bytes.extend((0..count).map(|at| u8::from(at < there)));
    fs::write(journal, bytes).unwrap();
}

/// Units depend on what a run moves and how: one that goes on keeps those that it finds.
#[test]
fn a_pull_goes_on_with_the_units_that_it_finds() {
    for unit in [1 << 20, 2 << 20, 4 << 20] {
        let KilledPull { store, machine, revision, paths: [_, journal] } = KilledPull::new();
        write_unit(&journal, unit, LARGE.div_ceil(unit as usize), 2 * RANGE / unit as usize);
        machine.ok(&["pull", "org/large"]);
        revision.assert_pulled(&machine.hub());
        nothing_torn(&machine);
        let mut starts = ranges(&store.server.take_seen());
        starts.sort();
        assert_eq!(starts[0], 2 * RANGE, "unit {unit}: {starts:?}");
        assert!(starts.iter().all(|start| start % unit as usize == 0), "unit {unit}: {starts:?}");
    }
}

/// Of a partial file that was damaged only what the earlier run had fetched comes again.
#[test]
fn what_this_run_has_fetched_is_kept_when_the_rest_was_damaged() {
    let KilledPull { store, machine, revision, paths: [partial, _] } = KilledPull::new();
    let mut bytes = fs::read(&partial).unwrap();
    bytes[1000] ^= 1;
    fs::write(&partial, bytes).unwrap();
    machine.ok(&["pull", "org/large", "--workers", "1"]);
    revision.assert_pulled(&machine.hub());
    let starts = ranges(&store.server.take_seen());
    assert!(starts.iter().filter(|start| **start >= 3 * RANGE).count() <= 2, "the end comes once: {starts:?}");
    assert!(starts.contains(&0), "{starts:?}");
}

#[test]
fn bytes_that_arrive_damaged_are_fetched_once_more() {
    for length in [200_000, LARGE] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::new("model", "org/name").lfs("model.bin", weights(2, length));
        revision.publish(&store);
        untrue(&store, 1, Action::Flip, |request| request.is("GET", "blobs/"));
        machine.ok(&["pull", "org/name"]);
        revision.assert_pulled(&machine.hub());
        // And not for ever.
        let other = Machine::new(&store);
        untrue(&store, usize::MAX, Action::Flip, |request| request.is("GET", "blobs/"));
        let ran = other.run(&["pull", "org/name", "--workers", "1"]);
        assert_eq!(ran.code, 5, "{ran:#?}");
        assert!(ran.stderr.contains("corrupt in the bucket"), "{ran:#?}");
    }
}

/// Damage in another place each time: what came twice as the same bytes is not fetched once more.
#[test]
fn only_parts_that_may_be_damaged_are_fetched_again() {
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
    // All of it twice, and then the two parts that were not the same.
    let all = [0, RANGE, 2 * RANGE, 3 * RANGE, 4 * RANGE];
    assert_eq!(starts, [&all[..], &all[..], &[PART, 2 * RANGE + PART]].concat());
}

/// An object that is replaced while it comes, by the same bytes under another ETag.
#[test]
fn an_object_that_is_replaced_while_it_is_read() {
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
