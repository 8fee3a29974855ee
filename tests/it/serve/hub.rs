//! `serve --fallback hf-hub`: files that the bucket lacks are fetched from the Hub, once for all clients, and may be
//! published.

use std::fs;

use super::{Serve, assert_no_blob, file};
use crate::harness::cache::{OTHER, Revision};
use crate::harness::hub_server::{Hub, Reply};
use crate::harness::machine::Machine;
use crate::harness::store::Store;
use crate::harness::{wait_until, weights};

const HUB: [&str; 2] = ["--fallback", "hf-hub"];
const PUBLISHED: [&str; 3] = ["--fallback", "hf-hub", "--push"];

fn setup(on_hub: &[Revision]) -> (Store, Hub, Machine) {
    let (store, hub) = (Store::new(), Hub::start(on_hub));
    let mut machine = Machine::new(&store);
    machine.set("HF_ENDPOINT", &hub.url);
    fs::create_dir_all(machine.hub()).unwrap();
    (store, hub, machine)
}

#[test]
fn files_that_the_bucket_lacks_are_fetched_once_for_all_clients() {
    let revision = Revision::model("org/name").git("empty.txt", "").lfs("large.bin", weights(3, 20 << 20));
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &HUB);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for content in &revision.files {
                    let path = file(&revision, &content.path);
                    assert_eq!(serve.head(&path).header("etag"), format!("\"{}\"", content.etag()));
                    let answer = serve.get(&path);
                    assert!(answer.is_complete && answer.body == content.bytes, "{answer:?}");
                }
            });
        }
    });
    let all: u64 = revision.files.iter().map(|file| file.bytes.len() as u64).sum();
    assert_eq!(hub.take_bytes_sent(), all, "each file once");
    assert_eq!(serve.json("/api/models/org/name")["sha"], revision.commit);
    revision.assert_pulled(&machine.hub());
    assert!(store.keys().is_empty(), "nothing is published without --push");
    assert_eq!(serve.metric("read_bytes_total{source=\"hub\"}"), all);
    serve.get("/org/none/resolve/main/a").refused(404, "RepoNotFound");
    serve.get("/org/name/resolve/v9/a").refused(404, "RevisionNotFound");
    serve.get(&file(&revision, "none")).refused(404, "EntryNotFound");
}

#[test]
fn without_a_fallback_the_hub_is_not_contacted() {
    let revision = Revision::model("org/name");
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &[]);
    serve.get(&file(&revision, "config.json")).refused(404, "RepoNotFound");
    assert_eq!(hub.request_count(), 0);
}

#[test]
fn files_from_the_hub_are_published() {
    let revision = Revision::model("org/name");
    let gated = Revision::model("org/gated").git("LICENSE", "Meta Llama Community License Agreement").at(OTHER);
    let (store, _hub, machine) = setup(&[revision.clone(), gated.clone()]);
    let serve = Serve::start(&machine, &PUBLISHED);
    for one in [&revision, &gated] {
        for content in &one.files {
            assert!(serve.get(&file(one, &content.path)).body == content.bytes);
        }
    }
    wait_until("the ref in the bucket", || store.has("refs/org__name/main"));
    revision.assert_published(&store);
    let output = serve.stop();
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!store.keys().iter().any(|key| key.contains("gated")), "a gated repo stays here: {:?}", store.keys());
    // Another machine, without the Hub.
    let other = Machine::new(&store);
    fs::create_dir_all(other.hub()).unwrap();
    let serve = Serve::start(&other, &[]);
    assert!(serve.get(&file(&revision, "model.safetensors")).body == revision.file("model.safetensors").bytes);
}

#[test]
fn the_rest_is_published_at_shutdown() {
    let revision = Revision::model("org/name");
    let (store, _hub, machine) = setup(std::slice::from_ref(&revision));
    let serve = Serve::start(&machine, &PUBLISHED);
    for content in &revision.files {
        assert_eq!(serve.get(&file(&revision, &content.path)).status, 200);
    }
    assert_eq!(serve.stop().code, 0);
    revision.assert_published(&store);
    assert!(store.has("refs/org__name/main"));
}

#[test]
fn files_left_unpublished_by_a_killed_server_are_published_by_the_next() {
    let revision = Revision::model("org/name").git("more.txt", "more");
    for in_bucket in [None, Some(revision.clone().without(&["more.txt"]))] {
        let (store, hub, machine) = setup(std::slice::from_ref(&revision));
        in_bucket.iter().for_each(|part| part.publish(&store));
        let serve = Serve::start(&machine, &PUBLISHED);
        for content in &revision.files {
            assert_eq!(serve.get(&file(&revision, &content.path)).status, 200);
        }
        serve.running.kill();
        hub.take_bytes_sent();
        let serve = Serve::start(&machine, &PUBLISHED);
        for content in &revision.files {
            assert_eq!(serve.get(&file(&revision, &content.path)).status, 200);
        }
        assert_eq!(hub.take_bytes_sent(), 0, "everything is in the cache");
        assert_eq!(serve.stop().code, 0);
        revision.assert_published(&store);
        assert!(store.has("refs/org__name/main"));
    }
}

#[test]
fn files_that_the_bucket_lacks_are_fetched_from_the_same_commit_on_the_hub() {
    let revision = Revision::model("org/name").git("more.txt", "more").with_tree();
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    revision.clone().without(&["more.txt"]).publish(&store);
    let serve = Serve::start(&machine, &HUB);
    assert!(serve.get(&file(&revision, "model.safetensors")).body == revision.file("model.safetensors").bytes);
    assert_eq!(hub.take_bytes_sent(), 0);
    assert_eq!(serve.head(&file(&revision, "more.txt")).status, 200);
    assert_eq!(serve.get(&file(&revision, "more.txt")).body, b"more");
    serve.get(&file(&revision, "none.txt")).refused(404, "EntryNotFound");
    assert_eq!(hub.take_bytes_sent(), 4);
}

#[test]
fn wrong_bytes_from_the_hub_are_never_served() {
    let revision = Revision::model("org/name").lfs("large.bin", weights(3, 20 << 20));
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    for name in ["model.safetensors", "large.bin"] {
        let mut wrong = revision.file(name).bytes.clone();
        wrong[10] ^= 1;
        hub.tamper_with(name, wrong);
    }
    let serve = Serve::start(&machine, &[&PUBLISHED[..], &["--no-sync"]].concat());
    for name in ["model.safetensors", "large.bin"] {
        let answer = serve.get(&file(&revision, name));
        assert!(answer.status == 424 || !answer.is_complete, "{name}: {answer:?}");
        wait_until("the end of the pull", || serve.metric("pulls_in_flight") == 0);
        assert_no_blob(&machine, &revision.etag(name));
    }
    assert_eq!(serve.get(&file(&revision, "config.json")).status, 200);
    serve.stop();
    assert!(!store.keys().iter().any(|key| key.contains(&revision.etag("large.bin"))));
}

#[test]
fn a_gated_repo_of_the_hub_is_reported_as_gated() {
    let revision = Revision::model("org/name");
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    hub.require_token();
    let serve = Serve::start(&machine, &HUB);
    serve.get(&file(&revision, "config.json")).refused(403, "GatedRepo");
}

#[test]
fn a_busy_hub_is_reported_as_unavailable() {
    let revision = Revision::model("org/name");
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    hub.script(|_| Some(Reply::status(429).with("retry-after", "3600")));
    let serve = Serve::start(&machine, &HUB);
    let answer = serve.get(&file(&revision, "config.json"));
    assert_eq!((answer.status, answer.header("x-error-code")), (503, ""), "{answer:?}");
}

#[test]
fn a_server_that_would_use_itself_as_the_hub_is_refused() {
    let (_store, _hub, mut machine) = setup(&[]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    for endpoint in [
        format!("http://{address}"),
        format!("http://{address}/"),
        format!("http://localhost:{}", address.rsplit(':').next().unwrap()),
    ] {
        machine.set("HF_ENDPOINT", &endpoint);
        let output = machine.run(&["serve", "--listen", &address, "--fallback", "hf-hub"]);
        output.refused(2, &["HF_ENDPOINT"]);
    }
}
