//! Blobs that are read while they arrive: each is pulled once, and no client ends up with wrong bytes.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Serve, assert_no_blob, bytes_requested, file, gets, setup};
use crate::harness::cache::Revision;
use crate::harness::machine::Machine;
use crate::harness::s3::{Action, Gate, S3Request};
use crate::harness::{wait_until, weights};

const MIB: usize = 1 << 20;
/// Number of bytes at the end of a response that are held back.
const HELD_BACK: usize = 64 << 10;

/// Returns a model with one large file.
fn large(mib: usize) -> Revision {
    Revision::new("model", "org/name").lfs("model.bin", weights(mib as u64, mib * MIB + 4321))
}

/// Whether a request reads a blob from this offset or from a later one.
fn reads_from(request: &S3Request, offset: usize) -> bool {
    let from = request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    request.is("GET", "blobs/") && from.is_some_and(|from: usize| from >= offset)
}

#[test]
fn a_blob_is_pulled_once_for_many_clients() {
    for (mib, clients) in [(0, 8), (20, 16)] {
        let revision = large(mib);
        let (store, machine) = setup(std::slice::from_ref(&revision));
        let gate = store.server.hold(|request| request.is("GET", "blobs/"));
        let serve = Serve::start(&machine, &[]);
        let (path, bytes) = (file(&revision, "model.bin"), &revision.file("model.bin").bytes);
        std::thread::scope(|scope| {
            for client in 0..clients {
                let (serve, path) = (&serve, &path);
                scope.spawn(move || {
                    let answer = match client % 3 {
                        2 => serve.ask("GET", path, &[("range", "bytes=1000-")]),
                        _ => serve.get(path),
                    };
                    let from = if client % 3 == 2 { 1000 } else { 0 };
                    assert!(answer.is_complete && answer.body == bytes[from..], "{client}: {answer:?}");
                });
            }
            // All have been accepted before the first byte arrives.
            wait_until("the clients", || serve.metric("connections") > clients);
            gate.open();
        });
        let sums = bytes_requested(&store.server.take_seen(), &store);
        assert_eq!(sums[&revision.blob_key("model.bin")], bytes.len() as u64, "{mib} MiB: {sums:?}");
        revision.assert_pulled(&machine.hub());
        assert_eq!(serve.get(&path).body.len(), bytes.len());
        assert_eq!(bytes_requested(&store.server.take_seen(), &store).len(), 0, "it comes from the cache");
    }
}

#[test]
fn bytes_are_sent_while_the_blob_arrives_except_the_last_ones() {
    let revision = large(24);
    let bytes = &revision.file("model.bin").bytes;
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let last = bytes.len() - 4 * MIB;
    let gate = store.server.hold(move |request| reads_from(request, last));
    let serve = Serve::start(&machine, &[]);
    let path = file(&revision, "model.bin");
    let mut whole = serve.open("GET", &path, &[]);
    let mut part = serve.open("GET", &path, &[("range", "bytes=1048576-2097151")]);
    assert_eq!((whole.status, part.status), (200, 206));
    assert!(whole.read(16 * MIB) == bytes[..16 * MIB], "what has arrived is sent");
    // All bytes of the part have arrived, but are not verified yet.
    let sent = MIB - HELD_BACK;
    assert!(part.read(sent) == bytes[MIB..MIB + sent]);
    assert_no_blob(&machine, &revision.etag("model.bin"));
    // The size is sent immediately.
    let size = serve.ask("GET", &path, &[("range", "bytes=0-0")]);
    assert_eq!((size.status, size.body.as_slice()), (206, &bytes[..1]));
    gate.open();
    let (whole, part) = (whole.finish(), part.finish());
    assert!(whole.is_complete && whole.body == bytes[16 * MIB..]);
    assert!(part.is_complete && part.body == bytes[MIB + sent..2 * MIB]);
    revision.assert_pulled(&machine.hub());
}

/// After the connection breaks, each blob is requested with `Range: N-`, as huggingface_hub does.
#[test]
fn after_damage_in_transit_a_download_starts_again() {
    let revision = large(20);
    let bytes = &revision.file("model.bin").bytes;
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let damaged = AtomicUsize::new(0);
    let last = bytes.len() - 2 * MIB;
    // The first range is damaged once, and the last one arrives late: by then, the client has wrong bytes.
    let gate = Gate::new();
    let held = gate.clone();
    store.server.on_request(move |request| {
        let is_first = request.is("GET", "blobs/") && !reads_from(request, 1);
        if is_first && damaged.fetch_add(1, Ordering::SeqCst) == 0 {
            Action::Flip
        } else if reads_from(request, last) {
            Action::Hold(held.clone())
        } else {
            Action::Pass
        }
    });
    let serve = Serve::start(&machine, &[]);
    let path = file(&revision, "model.bin");
    let mut client = serve.open("GET", &path, &[]);
    client.read(9 * MIB);
    gate.open();
    let broken = client.finish();
    assert!(!broken.is_complete, "the connection breaks");
    let resumed = serve.ask("GET", &path, &[("range", "bytes=9437184-")]);
    assert_eq!((resumed.status, resumed.header("content-range")), (200, ""), "{resumed:?}");
    assert!(resumed.is_complete && resumed.body == *bytes);
    revision.assert_pulled(&machine.hub());
    // A client that returns later may still have wrong bytes, even after a restart.
    let again = serve.ask("GET", &path, &[("range", "bytes=9437184-")]);
    assert!(again.status == 200 && again.body == *bytes);
    serve.stop();
    let serve = Serve::start(&machine, &[]);
    let again = serve.ask("GET", &path, &[("range", "bytes=9437184-")]);
    assert!(again.status == 200 && again.body == *bytes);
    let part = serve.ask("GET", &path, &[("range", "bytes=0-9")]);
    assert_eq!((part.status, part.body.as_slice()), (206, &bytes[..10]));
}

/// hf-hub for Rust appends any response to its partial file, and llama.cpp accepts nothing but the rest of a file.
#[test]
fn clients_that_never_start_again_get_no_wrong_bytes_or_discard_them() {
    let revision = large(20);
    let bytes = &revision.file("model.bin").bytes;
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let damaged = AtomicUsize::new(0);
    let last = bytes.len() - 2 * MIB;
    let gate = crate::harness::s3::Gate::new();
    let held = gate.clone();
    store.server.on_request(move |request| {
        let is_first = request.is("GET", "blobs/") && !reads_from(request, 1);
        if is_first && damaged.fetch_add(1, Ordering::SeqCst) == 0 {
            Action::Flip
        } else if reads_from(request, last) {
            Action::Hold(held.clone())
        } else {
            Action::Pass
        }
    });
    let serve = Serve::start(&machine, &[]);
    let path = file(&revision, "model.bin");
    let agent = ("user-agent", "unknown/None; hf-hub/0.4.3; rust/unknown");
    assert_eq!(serve.head(&path).header("accept-ranges"), "bytes");
    std::thread::scope(|scope| {
        let appends = scope.spawn(|| serve.ask("GET", &path, &[("range", "bytes=0-"), agent]));
        let mut other = serve.open("GET", &path, &[]);
        other.read(9 * MIB);
        wait_until("both", || serve.metric("misses_total") == 2);
        gate.open();
        assert!(!other.finish().is_complete, "others are sent wrong bytes, and their connection breaks");
        let appends = appends.join().unwrap();
        assert!(appends.status == 206 && appends.is_complete && appends.body == *bytes, "{appends:?}");
    });
    // Its partial download is right, so it may resume.
    let resumed = serve.ask("GET", &path, &[("range", "bytes=9437184-"), agent]);
    assert!(resumed.status == 206 && resumed.body == bytes[9437184..], "{resumed:?}");
    assert_eq!(serve.head(&path).header("accept-ranges"), "none");
}

#[test]
fn a_corrupt_blob_is_never_served_and_not_fetched_for_every_retry() {
    for mib in [0, 20] {
        let revision = large(mib);
        let (store, machine) = setup(std::slice::from_ref(&revision));
        let key = revision.blob_key("model.bin");
        let mut wrong = revision.file("model.bin").bytes.clone();
        wrong[1000] ^= 1;
        store.put(&key, &wrong);
        let serve = Serve::start(&machine, &["--no-sync"]);
        let path = file(&revision, "model.bin");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let answer = serve.get(&path);
                    assert!(answer.status == 424 || !answer.is_complete, "{answer:?}");
                });
            }
        });
        wait_until("the end of the pull", || serve.metric("pulls_in_flight") == 0);
        let fetched = bytes_requested(&store.server.take_seen(), &store)[&key];
        assert!(fetched <= 2 * wrong.len() as u64, "{fetched} bytes");
        for range in ["bytes=0-", "bytes=4000-", "bytes=5-"] {
            let answer = serve.ask("GET", &path, &[("range", range)]);
            answer.refused(424, "");
            assert!(answer.header("x-error-message").contains("corrupt"), "{answer:?}");
        }
        assert_eq!(gets(&store.server.take_seen(), &key), 0, "the failure is remembered");
        assert_no_blob(&machine, &revision.etag("model.bin"));
        let page = serve.get("/").text();
        assert!(page.contains("corrupt"), "{page}");
        assert!(serve.get("/metrics").text().contains("hf_cache_sync_errors_total{kind=\"integrity\"}"));
        // HEAD still answers from the manifest.
        assert_eq!(serve.head(&path).status, 200);
    }
}

#[test]
fn a_blob_of_the_wrong_size_is_never_served() {
    for mib in [0, 20] {
        let revision = large(mib);
        let (store, machine) = setup(std::slice::from_ref(&revision));
        let bytes = &revision.file("model.bin").bytes;
        for wrong in [bytes[..bytes.len() - 1].to_vec(), [bytes, &b"x"[..]].concat(), Vec::new()] {
            store.put(&revision.blob_key("model.bin"), &wrong);
            let serve = Serve::start(&machine, &["--no-sync"]);
            let answer = serve.get(&file(&revision, "model.bin"));
            // On a slow machine, the headers are sent before the failure.
            match answer.status {
                200 => assert!(answer.body.is_empty() && !answer.is_complete, "{answer:?}"),
                _ => answer.refused(424, ""),
            }
            assert_no_blob(&machine, &revision.etag("model.bin"));
        }
    }
}

#[test]
fn losing_the_bucket_mid_stream_breaks_only_that_connection() {
    let revision = large(20).git("config.json", "{}");
    let bytes = &revision.file("model.bin").bytes;
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let (gate, last) = (Gate::new(), bytes.len() - 2 * MIB);
    let held = gate.clone();
    store.server.on_request(move |request| match reads_from(request, last) {
        true => Action::HoldAndRefuse(held.clone(), 403, "AccessDenied", "gone"),
        false => Action::Pass,
    });
    let serve = Serve::start(&machine, &["--refresh", "0"]);
    assert_eq!(serve.get(&file(&revision, "config.json")).body, b"{}");
    let mut client = serve.open("GET", &file(&revision, "model.bin"), &[]);
    client.read(4 * MIB);
    store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "gone"));
    gate.open();
    assert!(!client.finish().is_complete);
    let small = serve.get(&file(&revision, "config.json"));
    assert_eq!((small.status, small.body.as_slice()), (200, &b"{}"[..]), "the cache is served: {small:?}");
    serve.get(&file(&revision, "model.bin")).refused(424, "");
    assert!(serve.get("/").text().contains("gone"));
    store.server.behave();
    let mut answer = None;
    wait_until("the bucket to be asked again", || {
        answer = Some(serve.get(&file(&revision, "model.bin")));
        answer.as_ref().is_some_and(|answer| answer.status == 200)
    });
    let answer = answer.unwrap();
    assert!(answer.is_complete && answer.body == *bytes, "{answer:?}");
    revision.assert_pulled(&machine.hub());
}

#[test]
fn a_restart_resumes_a_partial_blob() {
    for signal in ["-KILL", "-TERM"] {
        let revision = large(40);
        let bytes = &revision.file("model.bin").bytes;
        let (store, machine) = setup(std::slice::from_ref(&revision));
        let last = 24 * MIB;
        let _gate = store.server.hold(move |request| reads_from(request, last));
        let serve = Serve::start(&machine, &[]);
        let path = file(&revision, "model.bin");
        let mut client = serve.open("GET", &path, &[]);
        client.read(16 * MIB);
        serve.running.signal(signal);
        if signal == "-TERM" {
            // Not while the client waits for its response.
            serve.running.signal(signal);
        }
        let output = serve.running.finish();
        assert_eq!(output.code, if signal == "-KILL" { -1 } else { 0 }, "{output:?}");
        assert!(!client.finish().is_complete);
        assert_no_blob(&machine, &revision.etag("model.bin"));
        store.server.behave();
        store.server.take_seen();
        let serve = Serve::start(&machine, &[]);
        // It is unknown whether the bytes that the client has are right.
        let answer = serve.ask("GET", &path, &[("range", "bytes=16777216-")]);
        assert!(answer.status == 200 && answer.is_complete && answer.body == *bytes, "{answer:?}");
        let fetched = bytes_requested(&store.server.take_seen(), &store)[&revision.blob_key("model.bin")];
        assert!(fetched < (bytes.len() - 8 * MIB) as u64, "{signal}: {fetched} bytes were fetched again");
        revision.assert_pulled(&machine.hub());
    }
}

/// A client that shares the cache takes the lock, looks for the blob, and downloads nothing.
#[test]
fn a_head_of_a_client_that_shares_the_cache_starts_the_pull() {
    let revision = large(9);
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    let path = file(&revision, "model.bin");
    assert_eq!(serve.head(&path).status, 200);
    assert_eq!(gets(&store.server.take_seen(), "blobs/"), 0, "a mere HEAD pulls nothing");
    let answer = serve.ask("HEAD", &path, &[("x-hf-download-counter", "1")]);
    assert_eq!(answer.status, 200);
    wait_until("the blob", || revision.blob(&machine.hub(), "model.bin").exists());
    wait_until("the snapshot", || revision.snapshot(&machine.hub()).join("model.bin").exists());
}

#[test]
fn two_files_with_one_blob_are_pulled_once_and_both_linked() {
    let bytes = weights(5, 9 * MIB);
    let revision = Revision::new("model", "org/name").lfs("a.bin", &bytes).lfs("b.bin", &bytes);
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    std::thread::scope(|scope| {
        for name in ["a.bin", "b.bin", "a.bin", "b.bin"] {
            let (serve, revision, bytes) = (&serve, &revision, &bytes);
            scope.spawn(move || assert!(serve.get(&file(revision, name)).body == *bytes));
        }
    });
    let sums = bytes_requested(&store.server.take_seen(), &store);
    assert_eq!(sums[&revision.blob_key("a.bin")], bytes.len() as u64);
    for name in ["a.bin", "b.bin"] {
        wait_until("the link", || {
            fs::read(revision.snapshot(&machine.hub()).join(name)).is_ok_and(|read| read == bytes)
        });
    }
}

#[test]
fn two_repos_with_one_blob_are_pulled_once_and_both_get_it() {
    let bytes = weights(5, 9 * MIB);
    let revisions = ["org/one", "org/two"].map(|id| Revision::new("model", id).lfs("model.bin", &bytes));
    let (store, machine) = setup(&revisions);
    let gate = store.server.hold(|request| request.is("GET", "blobs/"));
    let serve = Serve::start(&machine, &[]);
    std::thread::scope(|scope| {
        for (started, revision) in revisions.iter().enumerate() {
            let (serve, bytes) = (&serve, &bytes);
            scope.spawn(move || assert!(serve.get(&file(revision, "model.bin")).body == *bytes));
            wait_until("the request", || serve.metric("misses_total") > started as u64);
        }
        gate.open();
    });
    let sums = bytes_requested(&store.server.take_seen(), &store);
    assert_eq!(sums[&revisions[0].blob_key("model.bin")], bytes.len() as u64);
    for revision in &revisions {
        wait_until("the link", || {
            fs::read(revision.snapshot(&machine.hub()).join("model.bin")).is_ok_and(|read| read == bytes)
        });
    }
}

#[test]
fn two_servers_with_one_cache_pull_a_blob_once() {
    let revision = large(20);
    let bytes = &revision.file("model.bin").bytes;
    let (store, machine) = setup(std::slice::from_ref(&revision));
    let gate = store.server.hold(|request| request.is("GET", "blobs/"));
    let servers = [(); 2].map(|()| Serve::start(&machine, &[]));
    std::thread::scope(|scope| {
        for serve in &servers {
            let path = file(&revision, "model.bin");
            scope.spawn(move || assert!(serve.get(&path).body == *bytes));
            wait_until("the pull", || serve.metric("pulls_in_flight") == 1);
        }
        gate.open();
    });
    let sums = bytes_requested(&store.server.take_seen(), &store);
    assert_eq!(sums[&revision.blob_key("model.bin")], bytes.len() as u64);
    revision.assert_pulled(&machine.hub());
}

#[test]
fn a_new_file_of_a_snapshot_in_the_cache_is_pulled_into_it() {
    let revision = Revision::model("org/name");
    let (store, _) = setup(std::slice::from_ref(&revision));
    let machine = Machine::new(&store);
    revision.clone().without(&["model.safetensors"]).write(&machine.hub());
    let serve = Serve::start(&machine, &[]);
    for name in ["config.json", "model.safetensors"] {
        assert!(serve.get(&file(&revision, name)).body == revision.file(name).bytes);
    }
    let sums = bytes_requested(&store.server.take_seen(), &store);
    assert_eq!(sums.keys().collect::<Vec<_>>(), [&revision.blob_key("model.safetensors")]);
    revision.assert_pulled(&machine.hub());
}
