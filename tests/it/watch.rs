//! `watch` as a process of its own: the real binary, a real cache on disk, the embedded S3 server. Everything is
//! awaited by looking at the bucket, at the requests or at the watch's own updates; nothing depends on how long it
//! takes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::s3::{self, Action, Server};
use hf_cache_sync::hash::BlobHasher;
use serde_json::Value;

const ONE: &str = "1111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222";
/// Nothing here takes that long; it only keeps a broken watch from hanging the tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cache, a bucket, and the server in front of it.
struct Setup {
    dir: tempfile::TempDir,
    server: Server,
}

impl Setup {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("store/bucket")).unwrap();
        fs::create_dir(dir.path().join("hub")).unwrap();
        let server = Server::start(&dir.path().join("store"), 0, s3::ACCESS_KEY, s3::SECRET_KEY).await;
        Setup { dir, server }
    }

    fn hub(&self) -> PathBuf {
        self.dir.path().join("hub")
    }

    fn repo(&self, name: &str) -> PathBuf {
        self.hub().join(format!("models--acme--{name}"))
    }

    /// An object of the bucket.
    fn object(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.path().join("store/bucket").join(key)).ok()
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_hf-cache-sync"));
        command.env_clear().current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.env("HF_HUB_CACHE", self.hub()).env("B2_ENDPOINT", &self.server.url).env("B2_BUCKET", "bucket");
        command.env("B2_REGION", "us-east-1").env("B2_APPLICATION_KEY_ID", s3::ACCESS_KEY);
        command.env("B2_APPLICATION_KEY", s3::SECRET_KEY);
        command.args(["--json", "watch"]).args(arguments);
        if !arguments.contains(&"--debounce") {
            command.args(["--debounce", "0.1"]);
        }
        command
    }

    fn watch(&self, arguments: &[&str]) -> Watch {
        Watch::start(self.command(arguments))
    }
}

/// A running watch.
struct Watch {
    child: Child,
    updates: Arc<Mutex<Vec<Value>>>,
}

impl Watch {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let updates = Arc::new(Mutex::new(Vec::new()));
        let (lines, heard) = (BufReader::new(child.stdout.take().unwrap()).lines(), updates.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        Watch { child, updates }
    }

    /// The updates of this kind so far.
    fn told(&self, event: &str) -> Vec<Value> {
        self.updates.lock().unwrap().iter().filter(|update| update["event"] == event).cloned().collect()
    }

    async fn pushes(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} pushes"), || self.told("pushed").len() >= count).await;
        self.told("pushed")
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// The exit code and stderr, once it has ended.
    async fn end(mut self) -> (Option<i32>, String) {
        until("the end", || self.child.try_wait().unwrap().is_some()).await;
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn name_of(content: &[u8]) -> String {
    let mut hasher = BlobHasher::sha256();
    hasher.update(content);
    hasher.finish().to_string()
}

/// Puts a file into a snapshot as the client does: a temporary, a rename into `blobs/`, then a link.
fn add(repo: &Path, commit: &str, path: &str, content: &[u8]) -> String {
    let name = name_of(content);
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
async fn running(arguments: &[&str]) -> (Setup, Watch) {
    let setup = Setup::new().await;
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(arguments);
    watch.pushes(1).await;
    assert_eq!(setup.reference("m", "main").as_deref(), Some(ONE), "the initial push");
    (setup, watch)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_of_a_known_revision_and_a_new_revision_arrive() {
    let (setup, _watch) = running(&[]).await;
    add(&setup.repo("m"), ONE, "more.bin", b"more");
    until("the united manifest", || setup.paths("m", ONE) == ["config.json", "more.bin"]).await;
    let blob = add(&setup.repo("m"), TWO, "config.json", b"two");
    set_ref(&setup.repo("m"), "main", TWO);
    until("the new ref", || setup.reference("m", "main").as_deref() == Some(TWO)).await;
    assert_eq!(setup.object(&format!("blobs/{blob}")).as_deref(), Some(&b"two"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ref_alone_arrives() {
    let (setup, _watch) = running(&[]).await;
    for name in ["v1.0", "v2.0"] {
        set_ref(&setup.repo("m"), name, ONE);
        until("the ref", || setup.reference("m", name).as_deref() == Some(ONE)).await;
    }
}

/// Without a quiet time, a push follows at once on what is heard during another one: a watch that hears itself never
/// comes to rest. The events of a change come after those of the pushes before it, and a signal lets a push that runs
/// end; so all pushes have been told when the watch has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_no_news_to_itself() {
    let setup = Setup::new().await;
    let contents = ["one", "two", "three", "four"];
    add(&setup.repo("m"), ONE, contents[0], contents[0].as_bytes());
    for content in &contents[1..] {
        fs::write(setup.repo("m").join("blobs").join(name_of(content.as_bytes())), content).unwrap();
    }
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&["--debounce", "0"]);
    for (known, content) in contents.iter().enumerate() {
        if known > 0 {
            // One event, unlike a rename.
            link(&setup.repo("m"), ONE, content, &name_of(content.as_bytes()));
        }
        watch.pushes(known + 1).await;
    }
    watch.signal("-TERM");
    let updates = watch.updates.clone();
    assert_eq!(watch.end().await, (Some(0), String::new()));
    until("the last update", || updates.lock().unwrap().last().unwrap()["event"] == "stopped").await;
    let told = updates.lock().unwrap();
    let kinds: Vec<&str> = told.iter().map(|update| update["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["started", "pushed", "pushed", "pushed", "pushed", "stopped"], "{told:#?}");
    assert!(
        told[1..=contents.len()].iter().all(|push| push["manifests"] == 1 && push["uploaded"]["blobs"] == 1),
        "each has its change: {told:#?}"
    );
    assert_eq!(told.last().unwrap()["push_abandoned"], false);
    assert_eq!(setup.paths("m", ONE), ["four", "one", "three", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_a_link_into_the_shared_store_arrives() {
    let (setup, _watch) = running(&[]).await;
    let (blob, xet) = (name_of(b"shared"), "ab".repeat(32));
    let store = setup.hub().join("blobs");
    fs::create_dir_all(store.join("ab")).unwrap();
    fs::write(store.join(".huggingface-shared-blobs"), "1\n").unwrap();
    fs::write(store.join("ab").join(&xet), b"shared").unwrap();
    // The snapshot's link is there already, so that the link in blobs/ is the only news.
    let blobs = setup.repo("m").join("blobs");
    link(&setup.repo("m"), ONE, "model.bin", &blob);
    let temporary = blobs.join(format!(".{blob}.0a1b2c3d.new"));
    symlink(format!("../../blobs/ab/{xet}"), &temporary).unwrap();
    fs::rename(temporary, blobs.join(&blob)).unwrap();
    until("the manifest", || setup.paths("m", ONE) == ["config.json", "model.bin"]).await;
    assert_eq!(setup.object(&format!("blobs/{blob}")).as_deref(), Some(&b"shared"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repo_that_did_not_exist_at_start_is_watched() {
    let (setup, watch) = running(&[]).await;
    add(&setup.repo("new"), ONE, "a", b"a");
    set_ref(&setup.repo("new"), "main", ONE);
    until("the repo", || setup.reference("new", "main").as_deref() == Some(ONE)).await;
    // And it stays watched: this comes after a push of the complete repo.
    watch.pushes(2).await;
    add(&setup.repo("new"), ONE, "b", b"b");
    until("the second file", || setup.paths("new", ONE) == ["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_never_pushed() {
    let (setup, _watch) = running(&[]).await;
    let (blobs, name) = (setup.repo("m").join("blobs"), name_of(b"whole"));
    let temporaries = [format!("{name}.incomplete"), format!("{name}.0a1b2c3d.incomplete"), "tmp_0b0e".into()];
    let swaps = [format!(".{name}.0a1b2c3d.shared"), format!(".{name}.0a1b2c3d.old")];
    for temporary in temporaries.iter().chain(&swaps) {
        fs::write(blobs.join(temporary), b"who").unwrap();
    }
    set_ref(&setup.repo("m"), "v1.0", ONE);
    until("the ref", || setup.reference("m", "v1.0").as_deref() == Some(ONE)).await;
    let known = [name_of(b"one")];
    for seen in setup.server.take_seen().into_iter().filter(|seen| seen.method == "PUT") {
        if let Some(blob) = seen.key.strip_prefix("blobs/") {
            assert!(known.contains(&blob.to_string()), "{blob} was sent");
        }
    }
    assert!(temporaries.iter().chain(&swaps).all(|temporary| blobs.join(temporary).exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_everything_is_tried_again() {
    let setup = Setup::new().await;
    setup.server.on_request(|_| Action::Refuse(403, "AccessDenied", "not today"));
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    until("two failed pushes", || watch.told("failed").len() >= 2).await;
    let failed = watch.told("failed");
    assert_eq!((&failed[0]["attempt"], &failed[1]["attempt"]), (&Value::from(1), &Value::from(2)));
    assert!(failed[0]["retry_in"].as_f64().unwrap() > 0.0);
    setup.server.behave();
    until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE)).await;
    watch.pushes(1).await;
    watch.signal("-TERM");
    let (code, stderr) = watch.end().await;
    assert_eq!((code, stderr.matches("error:").count()), (Some(0), 1), "said once: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_for_blobs_gets_them_later() {
    let setup = Setup::new().await;
    setup.server.on_request(|seen| match seen.method.as_str() {
        "PUT" if seen.key.starts_with("blobs/") => Action::Refuse(403, "AccessDenied", "not today"),
        _ => Action::Pass,
    });
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    let pushes = watch.pushes(2).await;
    for (push, said) in pushes.iter().zip([1, 0]) {
        assert_eq!((&push["failed"], push["failures"].as_array().unwrap().len()), (&Value::from(1), said));
        assert!(push["retry_in"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(setup.reference("m", "main"), None, "no ref before its blobs");
    setup.server.on_request(|seen| match seen.method.as_str() {
        "GET" if seen.query.contains("list-type") => Action::Refuse(503, "SlowDown", "later"),
        _ => Action::Pass,
    });
    setup.server.take_seen();
    let mut seen = Vec::new();
    until("a refused listing", || {
        seen.extend(setup.server.take_seen());
        seen.iter().any(|request| request.query.contains("list-type"))
    })
    .await;
    setup.server.behave();
    until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_blob_is_reported_once_and_does_not_stop_the_rest() {
    let setup = Setup::new().await;
    let blob = add(&setup.repo("broken"), ONE, "model.bin", b"good");
    fs::write(setup.repo("broken").join("blobs").join(blob), b"evil").unwrap();
    set_ref(&setup.repo("broken"), "main", ONE);
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    watch.pushes(1).await;
    assert_eq!(setup.reference("m", "main").as_deref(), Some(ONE));
    set_ref(&setup.repo("m"), "v1.0", ONE);
    let pushes = watch.pushes(2).await;
    for (push, said) in pushes.iter().zip([1, 0]) {
        assert_eq!((&push["failed"], push["failures"].as_array().unwrap().len()), (&Value::from(1), said));
        assert_eq!(push["retry_in"], Value::Null, "another try would find the same blob");
    }
    assert_eq!(pushes[0]["failures"][0]["kind"], "integrity");
    assert_eq!(setup.reference("broken", "main"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_watch_is_refused_and_a_later_one_is_not() {
    let (setup, watch) = running(&[]).await;
    let second = run(setup.command(&[])).await;
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `watch`"));
    watch.signal("-KILL");
    watch.end().await;
    setup.watch(&[]).pushes(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_vanishes_ends_the_watch_in_clear_words() {
    for arguments in [&[][..], &["--poll", "0.1"]] {
        let (setup, watch) = running(arguments).await;
        fs::rename(setup.hub(), setup.dir.path().join("moved")).unwrap();
        let updates = watch.updates.clone();
        let (code, stderr) = watch.end().await;
        assert_eq!(code, Some(4));
        // The error is one line of JSON, too: this reader takes each line by itself.
        until("the error", || updates.lock().unwrap().last().unwrap()["error"]["kind"] == "not-found").await;
        assert!(stderr.contains("is gone") && !stderr.contains("panicked"), "{stderr}");
        assert!(!setup.hub().exists(), "it must not come back by itself");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_end_an_idle_watch_with_success() {
    for signal in ["-TERM", "-INT"] {
        let (_setup, watch) = running(&[]).await;
        watch.signal(signal);
        let updates = watch.updates.clone();
        let (code, stderr) = watch.end().await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        until("the last update", || updates.lock().unwrap().last().unwrap()["event"] == "stopped").await;
        assert_eq!(updates.lock().unwrap().last().unwrap()["push_abandoned"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_abandons_a_push_at_once_and_the_next_watch_completes_it() {
    let setup = Setup::new().await;
    setup.server.on_request(|seen| match seen.method.as_str() {
        "PUT" => Action::Hang,
        _ => Action::Pass,
    });
    add(&setup.repo("m"), ONE, "config.json", b"one");
    set_ref(&setup.repo("m"), "main", ONE);
    let watch = setup.watch(&[]);
    let mut seen = Vec::new();
    until("the upload", || {
        seen.extend(setup.server.take_seen());
        seen.iter().any(|request| request.method == "PUT")
    })
    .await;
    // Two signals of one kind at once may be merged into one.
    watch.signal("-TERM");
    watch.signal("-INT");
    let updates = watch.updates.clone();
    assert_eq!(watch.end().await.0, Some(0));
    until("the last update", || updates.lock().unwrap().last().unwrap()["event"] == "stopped").await;
    assert_eq!(updates.lock().unwrap().last().unwrap()["push_abandoned"], true);
    assert_eq!(setup.reference("m", "main"), None);
    setup.server.behave();
    let _watch = setup.watch(&[]);
    until("the ref", || setup.reference("m", "main").as_deref() == Some(ONE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_finds_the_same_changes() {
    let (setup, watch) = running(&["--poll", "0.1"]).await;
    assert_eq!(watch.told("started")[0]["how"], "poll");
    add(&setup.repo("m"), ONE, "more.bin", b"more");
    until("the united manifest", || setup.paths("m", ONE) == ["config.json", "more.bin"]).await;
    set_ref(&setup.repo("m"), "v1.0", ONE);
    until("the ref", || setup.reference("m", "v1.0").as_deref() == Some(ONE)).await;
    add(&setup.repo("new"), ONE, "a", b"a");
    set_ref(&setup.repo("new"), "main", ONE);
    until("the new repo", || setup.reference("new", "main").as_deref() == Some(ONE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_work_ends_the_watch_at_once() {
    let setup = Setup::new().await;
    let (none, file) = (setup.dir.path().join("none"), setup.dir.path().join("file"));
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
        let output = run(command).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    assert!(!none.exists());
}

/// Runs a watch that must end by itself.
async fn run(command: Command) -> Output {
    let mut watch = Watch::start(command);
    until("the end", || watch.child.try_wait().unwrap().is_some()).await;
    let (mut stderr, status) = (Vec::new(), watch.child.wait().unwrap());
    watch.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Output { status, stdout: Vec::new(), stderr }
}
