//! Failures around a server: the bucket, the disk, and other processes in its cache.

use std::fs;

use super::{Serve, assert_no_blob, bytes_requested, file, gets, push, setup};
use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::{Machine, Running};
use crate::harness::s3::Action;
use crate::harness::store::Store;
use crate::harness::{listing, wait_until, weights};

#[test]
fn without_the_bucket_the_cache_is_served() {
    let revision = Revision::model("org/name");
    let absent = Revision::model("org/absent");
    let (store, machine) = setup(&[revision.clone(), absent.clone()]);
    machine.ok(&["pull", "org/name"]);
    for action in [
        Action::Refuse(403, "AccessDenied", "not today"),
        Action::Refuse(500, "InternalError", "broken"),
        Action::Page(502),
    ] {
        let refused = action.clone();
        store.server.on_request(move |_| refused.clone());
        let serve = Serve::start(&machine, &[]);
        for name in ["config.json", "model.safetensors"] {
            assert_eq!(serve.head(&file(&revision, name)).status, 200, "{action:?}");
            let answer = serve.get(&file(&revision, name));
            assert!(answer.is_complete && answer.body == revision.file(name).bytes, "{action:?}: {answer:?}");
        }
        assert_eq!(serve.json("/api/models/org/name")["siblings"].as_array().unwrap().len(), 2);
        assert_eq!(serve.json("/api/models/org/name/refs")["branches"][0]["targetCommit"], COMMIT);
        let answer = serve.get(&file(&absent, "config.json"));
        assert!(matches!(answer.status, 424 | 503) && answer.header("x-error-code").is_empty(), "{answer:?}");
        assert!(!answer.header("x-error-message").contains("org/name"), "of this request: {answer:?}");
        let page = serve.get("/").text();
        assert!(page.contains("cannot be reached"), "the page says so: {page}");
        store.server.behave();
        wait_until("the bucket to be asked again", || serve.get(&file(&absent, "config.json")).status == 200);
        fs::remove_dir_all(absent.dir(&machine.hub())).unwrap();
        let output = serve.stop();
        assert!(output.stderr.contains("cannot be reached"), "{output:?}");
        assert!(!output.stderr.contains("\\u{a}"), "{output:?}");
        output.nothing_internal();
    }
}

#[test]
fn offline_serves_only_the_cache() {
    let revision = Revision::model("org/name").with_tree();
    let store = Store::new();
    let machine = Machine::unconfigured();
    revision.write(&machine.hub());
    let serve = Serve::start(&machine, &["--offline"]);
    for name in ["main", COMMIT, &COMMIT[..8]] {
        let answer = serve.get(&format!("/org/name/resolve/{name}/model.safetensors"));
        assert!(answer.status == 200 && answer.body == revision.file("model.safetensors").bytes, "{answer:?}");
    }
    assert_eq!(serve.json("/api/models/org/name/refs")["branches"][0]["targetCommit"], COMMIT);
    serve.get("/org/none/resolve/main/a").refused(404, "RepoNotFound");
    serve.get("/org/name/resolve/v2/a").refused(404, "RevisionNotFound");
    serve.get("/org/name/resolve/main/none").refused(404, "EntryNotFound");
    let status = serve.json("/status.json");
    assert!(status["about"]["bucket"].is_null());
    assert!(store.server.take_seen().is_empty());
}

#[test]
fn a_moved_ref_is_followed_after_the_refresh_time() {
    let old = Revision::new("model", "org/name").git("config.json", "old");
    let new = Revision::new("model", "org/name").git("config.json", "new").at(OTHER);
    let (store, machine) = setup(std::slice::from_ref(&old));
    let fresh = Serve::start(&machine, &["--refresh", "0"]);
    let lasting = Serve::start(&machine, &["--refresh", "1h"]);
    let path = file(&old, "config.json");
    for serve in [&fresh, &lasting] {
        assert_eq!(serve.get(&path).body, b"old");
    }
    new.publish(&store);
    let answer = fresh.get(&path);
    assert_eq!((answer.body.as_slice(), answer.header("x-repo-commit")), (&b"new"[..], OTHER));
    assert_eq!(fresh.json("/api/models/org/name")["sha"], OTHER);
    let answer = lasting.get(&path);
    assert_eq!((answer.body.as_slice(), answer.header("x-repo-commit")), (&b"old"[..], COMMIT));
    // A ref that cannot be looked up again stays as it was, with a note.
    store.server.on_request(|_| Action::Refuse(503, "SlowDown", "later"));
    let answer = fresh.get(&path);
    assert_eq!((answer.status, answer.body.as_slice(), answer.header("x-repo-commit")), (200, &b"new"[..], OTHER));
    assert_eq!(fresh.get(&format!("/org/name/resolve/{COMMIT}/config.json")).body, b"old");
    // The lookup continues after the client has its answer.
    wait_until("the note", || {
        fresh.json("/status.json")["status"]["notes"].to_string().contains("is served from an earlier lookup")
    });
}

#[test]
fn an_invalid_manifest_is_reported() {
    let revision = Revision::model("org/name");
    for (content, status) in
        [("{", 424), ("", 424), ("[]", 424), ("{\"repo\": \"org/other\", \"revision\": \"x\", \"files\": []}", 424)]
    {
        let (store, machine) = setup(std::slice::from_ref(&revision));
        store.put(&revision.manifest_key(), content);
        let serve = Serve::start(&machine, &[]);
        for method in ["HEAD", "GET"] {
            let answer = serve.ask(method, &file(&revision, "config.json"), &[]);
            assert_eq!((answer.status, answer.header("x-repo-commit")), (status, ""), "{content}: {answer:?}");
        }
        assert_eq!(serve.get("/api/models/org/name").status, status);
    }
    // Paths that lead out of the repo.
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let mut manifest = revision.manifest();
    manifest["files"][0]["path"] = "../../evil".into();
    store.put(&revision.manifest_key(), manifest.to_string());
    let serve = Serve::start(&machine, &[]);
    assert_eq!(serve.get(&file(&revision, "config.json")).status, 424);
    assert_eq!(serve.get("/api/models/org/name/tree/main").status, 424);
}

#[test]
fn a_repo_that_looks_gated_in_the_cache_is_refused_and_a_new_one_is_served_as_a_whole() {
    let revision = Revision::model("org/name").git("LICENSE", "Meta Llama Community License Agreement");
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    for name in ["LICENSE", "config.json", "model.safetensors"] {
        assert!(serve.get(&file(&revision, name)).body == revision.file(name).bytes, "{name}");
    }
    revision.assert_pulled(&machine.hub());
    for allowed in [false, true] {
        let machine = Machine::new(&store);
        revision.clone().without(&["model.safetensors"]).write(&machine.hub());
        machine.configure(&format!("team:\n  allow_gated: {allowed}\n"));
        let serve = Serve::start(&machine, &[]);
        assert_eq!(serve.get(&file(&revision, "config.json")).status, 200);
        let answer = serve.get(&file(&revision, "model.safetensors"));
        if allowed {
            assert!(answer.body == revision.file("model.safetensors").bytes);
        } else {
            answer.refused(403, "GatedRepo");
            assert!(answer.header("x-error-message").contains("allow_gated"), "{answer:?}");
            assert_no_blob(&machine, &revision.etag("model.safetensors"));
        }
    }
}

#[test]
fn a_cache_that_cannot_be_written_to_is_served() {
    let revision = Revision::model("org/name").git("more.txt", "more");
    let store = Store::new();
    revision.publish(&store);
    let machine = Machine::new(&store);
    revision.clone().without(&["more.txt"]).write(&machine.hub());
    let serve = Serve::of(machine.start_read_only(&["--json", "serve", "--listen", "127.0.0.1:0"]));
    let before = listing(&machine.hub());
    for name in ["config.json", "model.safetensors"] {
        assert_eq!(serve.ask("HEAD", &file(&revision, name), &[("x-hf-download-counter", "1")]).status, 200);
        let answer = serve.get(&file(&revision, name));
        assert!(answer.status == 200 && answer.body == revision.file(name).bytes, "{answer:?}");
    }
    let answer = serve.get(&file(&revision, "more.txt"));
    answer.refused(424, "");
    assert!(answer.header("x-error-message").contains("ermission"), "{answer:?}");
    assert_eq!(listing(&machine.hub()), before);
    drop(serve);
    machine.make_writable();
}

#[test]
fn other_processes_may_delete_what_is_served() {
    let revision = Revision::new("model", "org/name").git("config.json", "{}").lfs("model.bin", weights(4, 12 << 20));
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let bytes = &revision.file("model.bin").bytes;
    let (small, large) = (file(&revision, "config.json"), file(&revision, "model.bin"));
    for line in [
        &["rm", "org/name", "-y"][..],
        &["prune", "--max-size", "0", "-y", "--include-referenced", "--orphan-grace", "0"],
    ] {
        assert!(serve.get(&large).body == *bytes && serve.get(&small).body == b"{}");
        // A response in flight continues: the file is open.
        let mut begun = serve.open("GET", &large, &[]);
        begun.read(1 << 20);
        machine.ok(line);
        assert_no_blob(&machine, &revision.etag("model.bin"));
        let rest = begun.finish();
        assert!(rest.is_complete && rest.body == bytes[1 << 20..], "{rest:?}");
        assert!(serve.get(&large).body == *bytes, "it is pulled again");
    }
    fs::remove_dir_all(machine.hub()).unwrap();
    assert!(serve.get(&large).body == *bytes && serve.get(&small).body == b"{}");
    wait_until("the snapshot", || revision.snapshot(&machine.hub()).join("config.json").exists());
    revision.assert_pulled(&machine.hub());
}

#[test]
fn a_blob_that_was_replaced_in_the_cache_is_not_served_under_its_name() {
    let revision = Revision::model("org/name");
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let path = file(&revision, "model.safetensors");
    assert_eq!(serve.get(&path).status, 200);
    fs::write(revision.blob(&machine.hub(), "model.safetensors"), b"short").unwrap();
    let answer = serve.get(&path);
    assert!(answer.status == 200 && answer.body == revision.file("model.safetensors").bytes, "{answer:?}");
    assert_eq!(
        fs::read(revision.blob(&machine.hub(), "model.safetensors")).unwrap(),
        revision.file("model.safetensors").bytes
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported_and_leaves_the_cache_clean() {
    let name = "serve::faults::a_full_disk_is_reported_and_leaves_the_cache_clean";
    crate::harness::mount::with_mounts(name, fill_the_disk);
}

#[cfg(target_os = "linux")]
fn fill_the_disk() {
    let revision = Revision::new("model", "org/name")
        .git("config.json", "{}")
        .lfs("small.bin", weights(4, 3 << 20))
        .lfs("model.bin", weights(4, 40 << 20));
    let (_store, machine) = setup(std::slice::from_ref(&revision));
    let _mount = crate::harness::mount::Mount::new(&machine.hub(), "size=16m");
    let serve = Serve::start(&machine, &[]);
    let answer = serve.get(&file(&revision, "model.bin"));
    answer.refused(507, "");
    assert_no_blob(&machine, &revision.etag("model.bin"));
    // There is room for these.
    for name in ["config.json", "small.bin"] {
        let answer = serve.get(&file(&revision, name));
        assert!(answer.status == 200 && answer.body == revision.file(name).bytes, "{answer:?}");
    }
    // It becomes full while the server runs.
    let filler = machine.hub().join("filler");
    let _ = fs::write(&filler, vec![0; 16 << 20]);
    let other = Revision::new("model", "org/other").lfs("small.bin", weights(5, 3 << 20));
    other.publish(&_store);
    let answer = serve.get(&file(&other, "small.bin"));
    assert!(answer.status == 507 || !answer.is_complete, "{answer:?}");
    assert_no_blob(&machine, &other.etag("small.bin"));
    assert_eq!(serve.get(&file(&revision, "config.json")).body, b"{}", "the cache is served");
    fs::remove_file(filler).unwrap();
    wait_until("another attempt", || serve.get(&file(&other, "small.bin")).status == 200);
    let left = listing(&machine.hub());
    assert!(!left.keys().any(|path| path.ends_with(".small")), "{left:?}");
}

#[test]
fn the_cache_stays_within_its_budget_while_clients_read() {
    let revisions: Vec<Revision> = (0..6)
        .map(|n| {
            Revision::new("model", &format!("org/r{n}"))
                .lfs("model.bin", weights(10 + n, 2 << 20))
                .at(&format!("{n}").repeat(40))
        })
        .collect();
    let store = Store::new();
    revisions.iter().for_each(|revision| push(&store, revision));
    let machine = Machine::new(&store);
    fs::create_dir_all(machine.hub()).unwrap();
    let serve = Serve::start(&machine, &["--max-size", "5MiB"]);
    let mut begun = serve.open("GET", &file(&revisions[0], "model.bin"), &[]);
    begun.read(1000);
    for revision in &revisions {
        let answer = serve.get(&file(revision, "model.bin"));
        assert!(answer.is_complete && answer.body == revision.file("model.bin").bytes, "{answer:?}");
    }
    let rest = begun.finish();
    assert!(rest.is_complete && rest.body == revisions[0].file("model.bin").bytes[1000..]);
    let has = |revision: &Revision| revision.blob(&machine.hub(), "model.bin").exists();
    wait_until("the budget", || revisions.iter().filter(|revision| has(revision)).count() <= 2);
    assert!(has(&revisions[5]) && !has(&revisions[0]), "the latest stay");
    wait_until("the size on the page", || serve.metric("cache_bytes") <= 5 << 20);
    let again = serve.get(&file(&revisions[0], "model.bin"));
    assert!(again.is_complete && again.body == revisions[0].file("model.bin").bytes);
}

#[test]
fn a_budget_for_a_cache_that_does_not_exist_yet_is_kept_without_a_warning() {
    let revision = Revision::model("org/name");
    let store = Store::new();
    push(&store, &revision);
    let machine = Machine::new(&store);
    let serve = Serve::start(&machine, &["--max-size", "1GB"]);
    wait_until("the size", || serve.json("/status.json")["about"]["cache_bytes"] == 0);
    assert_eq!(serve.get(&file(&revision, "config.json")).status, 200);
    assert_eq!(serve.stop().stderr, "");
}

#[test]
fn files_that_the_bucket_lacks_are_kept_even_over_the_budget() {
    let own = Revision::new("model", "org/own").lfs("model.bin", weights(1, 3 << 20));
    let revision = Revision::new("model", "org/name").lfs("model.bin", weights(2, 3 << 20)).at(OTHER);
    let store = Store::new();
    push(&store, &revision);
    let machine = Machine::new(&store);
    own.write(&machine.hub());
    let serve = Serve::start(&machine, &["--max-size", "1MiB"]);
    assert_eq!(serve.get(&file(&revision, "model.bin")).status, 200);
    wait_until("the note", || serve.json("/status.json")["status"]["notes"].to_string().contains("over its budget"));
    wait_until("the eviction", || !revision.blob(&machine.hub(), "model.bin").exists());
    own.assert_pulled(&machine.hub());
}

#[test]
fn a_lost_store_is_not_waited_for_repeatedly() {
    let revision = Revision::model("org/name").git("more.txt", "more");
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &["--refresh", "0"]);
    for name in ["config.json", "model.safetensors"] {
        assert_eq!(serve.get(&file(&revision, name)).status, 200);
    }
    drop(store);
    for _ in 0..20 {
        for name in ["config.json", "model.safetensors"] {
            let answer = serve.get(&file(&revision, name));
            assert!(answer.status == 200 && answer.body == revision.file(name).bytes, "{answer:?}");
        }
        assert_eq!(serve.json("/api/models/org/name")["sha"], COMMIT);
        assert_eq!(serve.json("/api/models/org/name/refs")["branches"][0]["targetCommit"], COMMIT);
    }
    let answer = serve.get("/org/none/resolve/main/a");
    assert_eq!((answer.status, answer.header("x-error-code")), (503, ""), "{answer:?}");
    assert!(answer.header("x-error-message").contains("cannot be reached"), "{answer:?}");
}

#[test]
fn two_servers_and_a_pull_share_a_cache() {
    let revision = Revision::new("model", "org/name").git("config.json", "{}").lfs("model.bin", weights(6, 20 << 20));
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let gate = store.server.hold(|request| request.is("GET", "blobs/") && request.range.is_some());
    let servers = [Serve::start(&machine, &[]), Serve::start(&machine, &[])];
    let bytes = &revision.file("model.bin").bytes;
    std::thread::scope(|scope| {
        for serve in servers.iter().chain(&servers) {
            let path = file(&revision, "model.bin");
            scope.spawn(move || {
                let answer = serve.get(&path);
                assert!(answer.is_complete && answer.body == *bytes, "{answer:?}");
            });
        }
        store.server.wait_for("the first range", |seen| gets(seen, "blobs/") > 0);
        wait_until("both servers", || servers.iter().all(|serve| serve.metric("pulls_in_flight") == 1));
        let pull = machine.start(&["pull", "org/name"]);
        gate.open();
        assert_eq!(pull.finish().code, 0);
    });
    let sums = bytes_requested(&store.server.take_seen(), &store);
    assert_eq!(sums[&revision.blob_key("model.bin")], bytes.len() as u64);
    revision.assert_pulled(&machine.hub());
}

/// A server does not wait for the client's lock, so a pull may hold it while the server fetches the blob.
#[test]
fn a_pull_that_waits_for_a_server_without_the_clients_lock_downloads_nothing() {
    let revision = Revision::new("model", "org/name").git("config.json", "{}").lfs("model.bin", weights(6, 20 << 20));
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let gate = store.server.hold(|request| request.is("GET", "blobs/") && request.range.is_some());
    let locks = machine.hub().join(".locks").join(revision.folder());
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join(format!("{}.lock", revision.etag("model.bin")))).unwrap();
    lock.lock().unwrap();
    let serve = Serve::start(&machine, &[]);
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(serve.get(&file(&revision, "model.bin")).is_complete));
        store.server.wait_for("the first range", |seen| gets(seen, "blobs/") > 0);
        let pull = machine.start(&["pull", "org/name"]);
        pull.wait_for("another process is downloading");
        lock.unlock().unwrap();
        pull.wait_for("another hf-cache-sync is downloading");
        gate.open();
        assert_eq!(pull.finish().code, 0);
    });
    let sums = bytes_requested(&store.server.take_seen(), &store);
    assert_eq!(sums[&revision.blob_key("model.bin")], 20 << 20);
    revision.assert_pulled(&machine.hub());
}

/// A client of `serve` gets a response, no matter what is in place of the file.
#[test]
fn a_server_opens_only_regular_files() {
    let one = Revision::model("org/one").with_tree();
    for kind in ["pipe", "socket", "device", "loop", "folder"] {
        for place in ["blob", "snapshot", "ref", "tree"] {
            let (_store, machine) = setup(std::slice::from_ref(&one));
            one.write(&machine.hub());
            let path = match place {
                "blob" => one.blob(&machine.hub(), "model.safetensors"),
                "snapshot" => one.snapshot(&machine.hub()).join("model.safetensors"),
                "ref" => one.dir(&machine.hub()).join("refs/main"),
                _ => one.dir(&machine.hub()).join("trees").join(format!("{}.json", one.commit)),
            };
            if !crate::odd_caches::plant(kind, &path, &machine.home()) {
                continue;
            }
            let serve = Serve::start(&machine, &[]);
            for url in ["/org/one/resolve/main/model.safetensors", "/api/models/org/one/revision/main"] {
                let answer = serve.get(url);
                let case = format!("{url} with a {kind} in place of the {place}: {answer:?}");
                assert!((200..600).contains(&answer.status), "{case}");
                if url.contains("resolve") && answer.status == 200 && answer.is_complete {
                    assert_eq!(answer.body, one.file("model.safetensors").bytes, "{case}");
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_swapped_for_a_link_during_a_pull_is_not_written_through() {
    use crate::swaps::{Outside, swap};
    let revision = Revision::new("model", "org/name").git("config.json", "{}").lfs("large.bin", weights(1, 3 << 20));
    let revision = revision.refs(&["main"]);
    let in_repo = ["", "/blobs", "/snapshots"].map(|part| format!("{}{part}", revision.folder()));
    let state = ["", "/partial", "/staging", "/unverified"].map(|part| format!(".locks/.hf-cache-sync{part}"));
    let folders: Vec<String> = in_repo.into_iter().chain(state).collect();
    let (store, other) = setup(std::slice::from_ref(&revision));
    other.ok(&["pull", "org/name"]);
    folders.iter().for_each(|folder| fs::create_dir_all(other.hub().join(folder)).unwrap());
    let outside = Outside::imitating(&other.hub(), other.home().join("outside"));
    for folder in &folders {
        let machine = Machine::new(&store);
        let hub = machine.hub();
        folders.iter().for_each(|folder| fs::create_dir_all(hub.join(folder)).unwrap());
        let serve = Serve::start(&machine, &[]);
        let (path, bytes) = (file(&revision, "large.bin"), &revision.file("large.bin").bytes);
        let key = revision.blob_key("large.bin");
        store.server.take_seen();
        let gate = store.server.hold({
            let key = key.clone();
            move |request| request.is("GET", &key)
        });
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| serve.get(&path));
            store.server.wait_for(&key, |seen| gets(seen, &key) > 0);
            let swap_back = swap(&hub, &outside.path, folder);
            gate.open();
            let answer = asked.join().unwrap();
            outside.assert_untouched(&format!("{folder}: {answer:?}"));
            swap_back();
            let is_good = answer.status == 200 && answer.body == *bytes;
            assert!(is_good || answer.status >= 400 || !answer.is_complete, "{folder}: {answer:?}");
        });
        store.server.behave();
        serve.stop().nothing_internal();
        let serve = Serve::start(&machine, &[]);
        let answer = serve.get(&path);
        assert!(answer.status == 200 && answer.body == *bytes, "{folder}: {answer:?}");
        serve.stop().nothing_internal();
        outside.assert_untouched(folder);
        machine.ok(&["pull", "org/name"]);
        revision.assert_pulled(&hub);
    }
}

/// Unix only: Windows has no `ulimit`.
#[cfg(unix)]
#[test]
fn a_readme_cannot_take_more_memory_than_a_multiple_of_its_size() {
    let readme = |yaml: String| format!("---\n{yaml}\n---\n# Title\n");
    let repos: Vec<Revision> = [
        readme("tags: [one]".into()),
        readme(format!("a: &a {}\nb: [{}]", "x".repeat(500_000), "*a,".repeat(150_000))),
        readme(format!("a: [{}]", "1,".repeat(500_000))),
        readme(format!("a: {}{}", "[".repeat(400_000), "]".repeat(400_000))),
    ]
    .into_iter()
    .enumerate()
    .map(|(number, readme)| Revision::model(&format!("org/name-{number}")).git("README.md", readme))
    .collect();
    let (_store, machine) = setup(&repos);
    let mut limited = machine.script("ulimit -d 300000 && exec \"$0\" --json serve --listen 127.0.0.1:0");
    limited.env("TOKIO_WORKER_THREADS", "2");
    let serve = Serve::of(Running::start(limited));
    let tags: Vec<String> =
        (0..4).map(|number| serve.json(&format!("/api/models/org/name-{number}"))["tags"].to_string()).collect();
    assert_eq!(tags, [r#"["one"]"#, "[]", "[]", "[]"]);
    serve.stop().nothing_internal();
}
