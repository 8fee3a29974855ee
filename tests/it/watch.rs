//! `watch` as a separate process: the real binary, a real cache on disk, and the embedded S3 server. The tests wait for
//! changes in the bucket, for requests, or for updates from the watch; nothing depends on timing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::machine::{self, Machine, Output, Running};
use crate::harness::s3::Action;
use crate::harness::store::Store;
use crate::harness::{sha256, wait_until};

const ONE: &str = "1111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222";

/// A bucket, and a machine with an empty cache.
struct Setup {
    store: Store,
    machine: Machine,
}

impl Setup {
    fn new() -> Self {
        let store = Store::new();
        let machine = Machine::new(&store);
        fs::create_dir_all(machine.hub()).unwrap();
        Setup { store, machine }
    }

    fn repo(&self, name: &str) -> PathBuf {
        self.machine.hub().join(format!("models--acme--{name}"))
    }

    /// Returns an object in the bucket.
    fn object(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.store.path(key)).ok()
    }

    fn reference(&self, repo: &str, name: &str) -> Option<String> {
        Some(String::from_utf8(self.object(&format!("refs/acme__{repo}/{name}"))?).unwrap())
    }

    /// Returns the paths in a manifest.
    fn paths(&self, repo: &str, commit: &str) -> Vec<String> {
        let bytes = self.object(&format!("manifests/acme__{repo}@{commit}.json")).unwrap_or_default();
        let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let files = manifest["files"].as_array().cloned().unwrap_or_default();
        files.iter().map(|file| file["path"].as_str().unwrap().to_string()).collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.command(&["--json", "watch"]);
        command.args(arguments);
        if !arguments.contains(&"--debounce") {
            command.args(["--debounce", "0.1"]);
        }
        command
    }

    fn watch(&self, arguments: &[&str]) -> Watch {
        Watch(Running::start(self.command(arguments)))
    }
}

/// A running watch.
struct Watch(Running);

impl Watch {
    /// Returns the updates of this kind so far.
    fn updates(&self, event: &str) -> Vec<Value> {
        parse_updates(&self.0.stdout()).into_iter().filter(|update| update["event"] == event).collect()
    }

    fn pushes(&self, count: usize) -> Vec<Value> {
        wait_until(&format!("{count} pushes"), || self.updates("pushed").len() >= count);
        self.updates("pushed")
    }

    /// Sends a signal and waits for the watch to exit.
    fn stop(self, signal: &str) -> Output {
        self.0.signal(signal);
        self.0.finish()
    }
}

/// Parses the updates that a watch prints, one per line.
fn parse_updates(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Adds a file to a snapshot as the client does: a temporary file, a rename into `blobs/`, then a link.
fn add(repo: &Path, commit: &str, path: &str, content: &[u8]) -> String {
    let name = sha256(content);
    fs::create_dir_all(repo.join("blobs")).unwrap();
    let temporary = repo.join("blobs").join(format!("{name}.0a1b2c3d.incomplete"));
    fs::write(&temporary, content).unwrap();
    fs::rename(temporary, repo.join("blobs").join(&name)).unwrap();
    link(repo, commit, path, &name);
    name
}

fn link(repo: &Path, commit: &str, path: &str, blob: &str) {
    fs::create_dir_all(repo.join("snapshots").join(commit)).unwrap();
    symlink(format!("../../blobs/{blob}"), repo.join("snapshots").join(commit).join(path)).unwrap();
}

fn set_ref(repo: &Path, name: &str, commit: &str) {
    fs::create_dir_all(repo.join("refs")).unwrap();
    let temporary = repo.join("refs").join(format!("{name}.0a1b2c3d.tmp"));
    fs::write(&temporary, commit).unwrap();
    fs::rename(temporary, repo.join("refs").join(name)).unwrap();
}

/// Returns a setup with a complete repo that a running watch has pushed.
fn start_watch(arguments: &[&str]) -> (Setup, Watch) {
    let setup = Setup::new();
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(arguments);
    watch.pushes(1);
    assert_eq!(setup.reference("m", "main").as_deref(), Some(ONE), "the initial push");
    (setup, watch)
}

#[test]
fn new_files_and_new_revisions_are_pushed() {
    let (setup, _watch) = start_watch(&[]);
    add(&setup.repo("m"), ONE, "more.bin", b"more");
    wait_until("the merged manifest", || setup.paths("m", ONE) == ["config.json", "more.bin"]);
    let blob = add(&setup.repo("m"), TWO, "config.json", b"two");
    set_ref(&setup.repo("m"), "main", TWO);
    wait_until("the new ref", || setup.reference("m", "main").as_deref() == Some(TWO));
    assert_eq!(setup.object(&format!("blobs/{blob}")).as_deref(), Some(&b"two"[..]));
}

#[test]
fn a_new_ref_is_pushed() {
    let (setup, _watch) = start_watch(&[]);
    for name in ["v1.0", "v2.0"] {
        set_ref(&setup.repo("m"), name, ONE);
        wait_until("the ref", || setup.reference("m", name).as_deref() == Some(ONE));
    }
}

/// Without a debounce interval, events that arrive during a push start another push at once, so a watch that reacts to
/// its own changes never becomes idle. The events of a change arrive after those of earlier pushes, and a signal lets a
/// running push complete, so all pushes have been reported when the watch exits.
#[test]
fn a_watch_does_not_react_to_its_own_pushes() {
    let setup = Setup::new();
    let contents = ["one", "two", "three", "four"];
    add(&setup.repo("m"), ONE, contents[0], contents[0].as_bytes());
    for content in &contents[1..] {
        fs::write(setup.repo("m").join("blobs").join(sha256(content.as_bytes())), content).unwrap();
    }
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&["--debounce", "0"]);
    for (known, content) in contents.iter().enumerate() {
        if known > 0 {
            // A single event, unlike a rename.
            link(&setup.repo("m"), ONE, content, &sha256(content.as_bytes()));
        }
        watch.pushes(known + 1);
    }
    let output = watch.stop("-TERM");
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let updates = parse_updates(&output.stdout);
    let kinds: Vec<&str> = updates.iter().map(|update| update["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["started", "pushed", "pushed", "pushed", "pushed", "stopped"], "{updates:#?}");
    assert!(
        updates[1..=contents.len()].iter().all(|push| push["manifests"] == 1 && push["uploaded"]["blobs"] == 1),
        "every push has its own change: {updates:#?}"
    );
    assert_eq!(updates.last().unwrap()["push_abandoned"], false);
    assert_eq!(setup.paths("m", ONE), ["four", "one", "three", "two"]);
}

#[test]
fn a_blob_in_the_shared_store_is_pushed() {
    let (setup, _watch) = start_watch(&[]);
    let (blob, xet) = (sha256(b"shared"), "ab".repeat(32));
    let store = setup.machine.hub().join("blobs");
    fs::create_dir_all(store.join("ab")).unwrap();
    fs::write(store.join(".huggingface-shared-blobs"), "1\n").unwrap();
    fs::write(store.join("ab").join(&xet), b"shared").unwrap();
    // The snapshot's link already exists, so the link in blobs/ is the only change.
    let blobs = setup.repo("m").join("blobs");
    link(&setup.repo("m"), ONE, "model.bin", &blob);
    let temporary = blobs.join(format!(".{blob}.0a1b2c3d.new"));
    symlink(format!("../../blobs/ab/{xet}"), &temporary).unwrap();
    fs::rename(temporary, blobs.join(&blob)).unwrap();
    wait_until("the manifest", || setup.paths("m", ONE) == ["config.json", "model.bin"]);
    assert_eq!(setup.object(&format!("blobs/{blob}")).as_deref(), Some(&b"shared"[..]));
}

#[test]
fn a_repo_created_later_is_watched() {
    let (setup, watch) = start_watch(&[]);
    add(&setup.repo("new"), ONE, "a", b"a");
    set_ref(&setup.repo("new"), "main", ONE);
    wait_until("the repo", || setup.reference("new", "main").as_deref() == Some(ONE));
    // The repo is still watched after a push of the complete repo.
    watch.pushes(2);
    add(&setup.repo("new"), ONE, "b", b"b");
    wait_until("the second file", || setup.paths("new", ONE) == ["a", "b"]);
}

#[test]
fn unfinished_downloads_are_never_pushed() {
    let (setup, _watch) = start_watch(&[]);
    let (blobs, name) = (setup.repo("m").join("blobs"), sha256(b"whole"));
    let temporaries = [format!("{name}.incomplete"), format!("{name}.0a1b2c3d.incomplete"), "tmp_0b0e".into()];
    let swaps = [format!(".{name}.0a1b2c3d.shared"), format!(".{name}.0a1b2c3d.old")];
    for temporary in temporaries.iter().chain(&swaps) {
        fs::write(blobs.join(temporary), b"who").unwrap();
    }
    set_ref(&setup.repo("m"), "v1.0", ONE);
    wait_until("the ref", || setup.reference("m", "v1.0").as_deref() == Some(ONE));
    let known = [sha256(b"one")];
    for seen in setup.store.server.take_seen().into_iter().filter(|seen| seen.method == "PUT") {
        if let Some(blob) = seen.key.strip_prefix("blobs/") {
            assert!(known.contains(&blob.to_string()), "{blob} was uploaded");
        }
    }
    assert!(temporaries.iter().chain(&swaps).all(|temporary| blobs.join(temporary).exists()));
}

#[test]
fn a_push_is_retried_if_the_store_refuses_everything() {
    let setup = Setup::new();
    setup.store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "not today"));
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    wait_until("two failed pushes", || watch.updates("failed").len() >= 2);
    let failed = watch.updates("failed");
    assert_eq!((&failed[0]["attempt"], &failed[1]["attempt"]), (&Value::from(1), &Value::from(2)));
    assert!(failed[0]["retry_in"].as_f64().unwrap() > 0.0);
    setup.store.server.behave();
    wait_until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE));
    watch.pushes(1);
    let output = watch.stop("-TERM");
    assert_eq!(
        (output.code, output.stderr.matches("error:").count()),
        (0, 1),
        "the error is printed once: {output:#?}"
    );
}

#[test]
fn failed_blobs_are_pushed_later() {
    let setup = Setup::new();
    setup.store.server.on_request(|seen| match seen.method.as_str() {
        "PUT" if seen.key.starts_with("blobs/") => Action::Refuse(403, "AccessDenied", "not today"),
        _ => Action::Pass,
    });
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    let pushes = watch.pushes(2);
    for (push, reported) in pushes.iter().zip([1, 0]) {
        assert_eq!((&push["failed"], push["failures"].as_array().unwrap().len()), (&Value::from(1), reported));
        assert!(push["retry_in"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(setup.reference("m", "main"), None, "no ref may precede its blobs");
    setup.store.server.on_request(|seen| match seen.method.as_str() {
        "GET" if seen.query.contains("list-type") => Action::Refuse(503, "SlowDown", "later"),
        _ => Action::Pass,
    });
    setup.store.server.take_seen();
    let mut seen = Vec::new();
    wait_until("a refused listing", || {
        seen.extend(setup.store.server.take_seen());
        seen.iter().any(|request| request.query.contains("list-type"))
    });
    setup.store.server.behave();
    wait_until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE));
}

#[test]
fn a_corrupt_blob_is_reported_once_and_does_not_stop_the_rest() {
    let setup = Setup::new();
    let blob = add(&setup.repo("broken"), ONE, "model.bin", b"good");
    fs::write(setup.repo("broken").join("blobs").join(blob), b"evil").unwrap();
    set_ref(&setup.repo("broken"), "main", ONE);
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    watch.pushes(1);
    assert_eq!(setup.reference("m", "main").as_deref(), Some(ONE));
    set_ref(&setup.repo("m"), "v1.0", ONE);
    let pushes = watch.pushes(2);
    for (push, reported) in pushes.iter().zip([1, 0]) {
        assert_eq!((&push["failed"], push["failures"].as_array().unwrap().len()), (&Value::from(1), reported));
        assert_eq!(push["retry_in"], Value::Null, "a retry would find the same blob");
    }
    assert_eq!(pushes[0]["failures"][0]["kind"], "integrity");
    assert_eq!(setup.reference("broken", "main"), None);
}

#[test]
fn only_one_watch_can_run_at_a_time() {
    let (setup, watch) = start_watch(&[]);
    let second = machine::run(setup.command(&[]));
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("another `watch`"));
    watch.0.kill();
    setup.watch(&[]).pushes(1);
}

#[test]
fn a_watch_exits_with_a_clear_error_if_the_cache_vanishes() {
    for arguments in [&[][..], &["--poll", "0.1"]] {
        let (setup, watch) = start_watch(arguments);
        fs::rename(setup.machine.hub(), setup.machine.home().join("moved")).unwrap();
        let output = watch.0.finish();
        assert_eq!(output.code, 4, "{output:#?}");
        // The error is also a single line of JSON, since the updates are parsed line by line.
        assert_eq!(parse_updates(&output.stdout).last().unwrap()["error"]["kind"], "not-found");
        assert!(output.stderr.contains("is gone") && !output.stderr.contains("panicked"), "{output:#?}");
        assert!(!setup.machine.hub().exists(), "the cache must not be recreated");
    }
}

#[test]
fn an_idle_watch_exits_with_success_on_signals() {
    for signal in ["-TERM", "-INT"] {
        let (_setup, watch) = start_watch(&[]);
        let output = watch.stop(signal);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        let last = parse_updates(&output.stdout).pop().unwrap();
        assert_eq!((&last["event"], &last["push_abandoned"]), (&"stopped".into(), &false.into()));
    }
}

#[test]
fn a_second_signal_aborts_a_push_and_the_next_watch_completes_it() {
    let setup = Setup::new();
    setup.store.server.on_request(|seen| match seen.method.as_str() {
        "PUT" => Action::Hang,
        _ => Action::Pass,
    });
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    let mut seen = Vec::new();
    wait_until("the upload", || {
        seen.extend(setup.store.server.take_seen());
        seen.iter().any(|request| request.method == "PUT")
    });
    // Two pending signals of the same kind may be merged.
    watch.0.signal("-TERM");
    let output = watch.stop("-INT");
    assert_eq!(output.code, 0, "{output:#?}");
    let last = parse_updates(&output.stdout).pop().unwrap();
    assert_eq!((&last["event"], &last["push_abandoned"]), (&"stopped".into(), &true.into()));
    assert_eq!(setup.reference("m", "main"), None);
    setup.store.server.behave();
    let _watch = setup.watch(&[]);
    wait_until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE));
}

#[test]
fn polling_detects_the_same_changes() {
    let (setup, watch) = start_watch(&["--poll", "0.1"]);
    assert_eq!(watch.updates("started")[0]["how"], "poll");
    add(&setup.repo("m"), ONE, "more.bin", b"more");
    wait_until("the merged manifest", || setup.paths("m", ONE) == ["config.json", "more.bin"]);
    set_ref(&setup.repo("m"), "v1.0", ONE);
    wait_until("the ref", || setup.reference("m", "v1.0").as_deref() == Some(ONE));
    add(&setup.repo("new"), ONE, "a", b"a");
    set_ref(&setup.repo("new"), "main", ONE);
    wait_until("the new repo", || setup.reference("new", "main").as_deref() == Some(ONE));
}

#[test]
fn unrecoverable_errors_stop_the_watch() {
    let setup = Setup::new();
    let (none, file) = (setup.machine.home().join("none"), setup.machine.home().join("file"));
    fs::write(&file, "").unwrap();
    type Change<'a> = &'a dyn Fn(&mut Command) -> &mut Command;
    let cases: [(i32, &str, Change); 5] = [
        (2, "no bucket", &|command| command.env_remove("B2_BUCKET")),
        (2, "incomplete", &|command| command.env_remove("B2_APPLICATION_KEY")),
        (2, "number of seconds", &|command| command.args(["--poll", "0"])),
        (4, "there is no cache at", &|command| command.env("HF_HUB_CACHE", &none)),
        (2, "not a directory", &|command| command.env("HF_HUB_CACHE", &file)),
    ];
    for (code, words, change) in cases {
        let mut command = setup.command(&[]);
        change(&mut command);
        let output = machine::run(command);
        assert_eq!(output.code, code, "{output:#?}");
        assert!(output.stderr.contains(words), "{output:#?}");
    }
    assert!(!none.exists());
}
