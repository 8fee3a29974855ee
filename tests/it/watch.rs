//! `watch` as a process of its own: the real binary, a real cache on disk, the embedded S3 server. Everything is
//! awaited by looking at the bucket, at the requests or at the watch's own updates; nothing depends on how long it
//! takes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::machine::{self, Machine, Ran, Running};
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

    /// An object of the bucket.
    fn object(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.store.path(key)).ok()
    }

    fn reference(&self, repo: &str, name: &str) -> Option<String> {
        Some(String::from_utf8(self.object(&format!("refs/acme__{repo}/{name}"))?).unwrap())
    }

    /// The paths in a manifest.
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
    /// The updates of this kind so far.
    fn told(&self, event: &str) -> Vec<Value> {
        updates(&self.0.stdout()).into_iter().filter(|update| update["event"] == event).collect()
    }

    fn pushes(&self, count: usize) -> Vec<Value> {
        wait_until(&format!("{count} pushes"), || self.told("pushed").len() >= count);
        self.told("pushed")
    }

    /// Sends it a signal and waits for its end.
    fn end(self, signal: &str) -> Ran {
        self.0.signal(signal);
        self.0.finish()
    }
}

/// What a watch tells, a line each.
fn updates(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Puts a file into a snapshot as the client does: a temporary, a rename into `blobs/`, then a link.
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

/// A setup with one complete repo, pushed by a watch that is running.
fn running(arguments: &[&str]) -> (Setup, Watch) {
    let setup = Setup::new();
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(arguments);
    watch.pushes(1);
    assert_eq!(setup.reference("m", "main").as_deref(), Some(ONE), "the initial push");
    (setup, watch)
}

#[test]
fn a_new_file_of_a_known_revision_and_a_new_revision_arrive() {
    let (setup, _watch) = running(&[]);
    add(&setup.repo("m"), ONE, "more.bin", b"more");
    wait_until("the united manifest", || setup.paths("m", ONE) == ["config.json", "more.bin"]);
    let blob = add(&setup.repo("m"), TWO, "config.json", b"two");
    set_ref(&setup.repo("m"), "main", TWO);
    wait_until("the new ref", || setup.reference("m", "main").as_deref() == Some(TWO));
    assert_eq!(setup.object(&format!("blobs/{blob}")).as_deref(), Some(&b"two"[..]));
}

#[test]
fn a_ref_alone_arrives() {
    let (setup, _watch) = running(&[]);
    for name in ["v1.0", "v2.0"] {
        set_ref(&setup.repo("m"), name, ONE);
        wait_until("the ref", || setup.reference("m", name).as_deref() == Some(ONE));
    }
}

/// Without a quiet time, a push follows at once on what is heard during another one: a watch that hears itself never
/// comes to rest. The events of a change come after those of the pushes before it, and a signal lets a push that runs
/// end; so all pushes have been told when the watch has ended.
#[test]
fn a_push_is_no_news_to_itself() {
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
            // One event, unlike a rename.
            link(&setup.repo("m"), ONE, content, &sha256(content.as_bytes()));
        }
        watch.pushes(known + 1);
    }
    let ran = watch.end("-TERM");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let told = updates(&ran.stdout);
    let kinds: Vec<&str> = told.iter().map(|update| update["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["started", "pushed", "pushed", "pushed", "pushed", "stopped"], "{told:#?}");
    assert!(
        told[1..=contents.len()].iter().all(|push| push["manifests"] == 1 && push["uploaded"]["blobs"] == 1),
        "each has its change: {told:#?}"
    );
    assert_eq!(told.last().unwrap()["push_abandoned"], false);
    assert_eq!(setup.paths("m", ONE), ["four", "one", "three", "two"]);
}

#[test]
fn a_blob_that_is_a_link_into_the_shared_store_arrives() {
    let (setup, _watch) = running(&[]);
    let (blob, xet) = (sha256(b"shared"), "ab".repeat(32));
    let store = setup.machine.hub().join("blobs");
    fs::create_dir_all(store.join("ab")).unwrap();
    fs::write(store.join(".huggingface-shared-blobs"), "1\n").unwrap();
    fs::write(store.join("ab").join(&xet), b"shared").unwrap();
    // The snapshot's link is there already, so that the link in blobs/ is the only news.
    let blobs = setup.repo("m").join("blobs");
    link(&setup.repo("m"), ONE, "model.bin", &blob);
    let temporary = blobs.join(format!(".{blob}.0a1b2c3d.new"));
    symlink(format!("../../blobs/ab/{xet}"), &temporary).unwrap();
    fs::rename(temporary, blobs.join(&blob)).unwrap();
    wait_until("the manifest", || setup.paths("m", ONE) == ["config.json", "model.bin"]);
    assert_eq!(setup.object(&format!("blobs/{blob}")).as_deref(), Some(&b"shared"[..]));
}

#[test]
fn a_repo_that_did_not_exist_at_start_is_watched() {
    let (setup, watch) = running(&[]);
    add(&setup.repo("new"), ONE, "a", b"a");
    set_ref(&setup.repo("new"), "main", ONE);
    wait_until("the repo", || setup.reference("new", "main").as_deref() == Some(ONE));
    // And it stays watched: this comes after a push of the complete repo.
    watch.pushes(2);
    add(&setup.repo("new"), ONE, "b", b"b");
    wait_until("the second file", || setup.paths("new", ONE) == ["a", "b"]);
}

#[test]
fn what_is_in_flight_is_never_pushed() {
    let (setup, _watch) = running(&[]);
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
            assert!(known.contains(&blob.to_string()), "{blob} was sent");
        }
    }
    assert!(temporaries.iter().chain(&swaps).all(|temporary| blobs.join(temporary).exists()));
}

#[test]
fn a_store_that_refuses_everything_is_tried_again() {
    let setup = Setup::new();
    setup.store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "not today"));
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    wait_until("two failed pushes", || watch.told("failed").len() >= 2);
    let failed = watch.told("failed");
    assert_eq!((&failed[0]["attempt"], &failed[1]["attempt"]), (&Value::from(1), &Value::from(2)));
    assert!(failed[0]["retry_in"].as_f64().unwrap() > 0.0);
    setup.store.server.behave();
    wait_until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE));
    watch.pushes(1);
    let ran = watch.end("-TERM");
    assert_eq!((ran.code, ran.stderr.matches("error:").count()), (0, 1), "said once: {ran:#?}");
}

#[test]
fn a_store_that_is_down_for_blobs_gets_them_later() {
    let setup = Setup::new();
    setup.store.server.on_request(|seen| match seen.method.as_str() {
        "PUT" if seen.key.starts_with("blobs/") => Action::Refuse(403, "AccessDenied", "not today"),
        _ => Action::Pass,
    });
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    let pushes = watch.pushes(2);
    for (push, said) in pushes.iter().zip([1, 0]) {
        assert_eq!((&push["failed"], push["failures"].as_array().unwrap().len()), (&Value::from(1), said));
        assert!(push["retry_in"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(setup.reference("m", "main"), None, "no ref before its blobs");
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
fn a_broken_blob_is_reported_once_and_does_not_stop_the_rest() {
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
    for (push, said) in pushes.iter().zip([1, 0]) {
        assert_eq!((&push["failed"], push["failures"].as_array().unwrap().len()), (&Value::from(1), said));
        assert_eq!(push["retry_in"], Value::Null, "another try would find the same blob");
    }
    assert_eq!(pushes[0]["failures"][0]["kind"], "integrity");
    assert_eq!(setup.reference("broken", "main"), None);
}

#[test]
fn a_second_watch_is_refused_and_a_later_one_is_not() {
    let (setup, watch) = running(&[]);
    let second = machine::run(setup.command(&[]));
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("another `watch`"));
    watch.0.kill();
    setup.watch(&[]).pushes(1);
}

#[test]
fn a_cache_that_vanishes_ends_the_watch_in_clear_words() {
    for arguments in [&[][..], &["--poll", "0.1"]] {
        let (setup, watch) = running(arguments);
        fs::rename(setup.machine.hub(), setup.machine.home().join("moved")).unwrap();
        let ran = watch.0.finish();
        assert_eq!(ran.code, 4, "{ran:#?}");
        // The error is one line of JSON, too: this reader takes each line by itself.
        assert_eq!(updates(&ran.stdout).last().unwrap()["error"]["kind"], "not-found");
        assert!(ran.stderr.contains("is gone") && !ran.stderr.contains("panicked"), "{ran:#?}");
        assert!(!setup.machine.hub().exists(), "it must not come back by itself");
    }
}

#[test]
fn signals_end_an_idle_watch_with_success() {
    for signal in ["-TERM", "-INT"] {
        let (_setup, watch) = running(&[]);
        let ran = watch.end(signal);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        let last = updates(&ran.stdout).pop().unwrap();
        assert_eq!((&last["event"], &last["push_abandoned"]), (&"stopped".into(), &false.into()));
    }
}

#[test]
fn a_second_signal_abandons_a_push_at_once_and_the_next_watch_completes_it() {
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
    // Two signals of one kind at once may be merged into one.
    watch.0.signal("-TERM");
    let ran = watch.end("-INT");
    assert_eq!(ran.code, 0, "{ran:#?}");
    let last = updates(&ran.stdout).pop().unwrap();
    assert_eq!((&last["event"], &last["push_abandoned"]), (&"stopped".into(), &true.into()));
    assert_eq!(setup.reference("m", "main"), None);
    setup.store.server.behave();
    let _watch = setup.watch(&[]);
    wait_until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE));
}

#[test]
fn polling_finds_the_same_changes() {
    let (setup, watch) = running(&["--poll", "0.1"]);
    assert_eq!(watch.told("started")[0]["how"], "poll");
    add(&setup.repo("m"), ONE, "more.bin", b"more");
    wait_until("the united manifest", || setup.paths("m", ONE) == ["config.json", "more.bin"]);
    set_ref(&setup.repo("m"), "v1.0", ONE);
    wait_until("the ref", || setup.reference("m", "v1.0").as_deref() == Some(ONE));
    add(&setup.repo("new"), ONE, "a", b"a");
    set_ref(&setup.repo("new"), "main", ONE);
    wait_until("the new repo", || setup.reference("new", "main").as_deref() == Some(ONE));
}

#[test]
fn what_can_never_work_ends_the_watch_at_once() {
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
        let ran = machine::run(command);
        assert_eq!(ran.code, code, "{ran:#?}");
        assert!(ran.stderr.contains(words), "{ran:#?}");
    }
    assert!(!none.exists());
}
