//! `--fallback hf-hub`: when the Hub is asked and when it is not, and that what comes from it is proven first.
#![cfg(all(unix, feature = "fallback"))]

mod common;
#[path = "common/hub_server.rs"]
mod hub_server;

use std::fs;

use common::cache::Revision;
use common::machine::{Machine, Ran};
use common::s3::Action;
use common::store::{BUCKET, Store};
use common::weights;
use hub_server::{Hub, TOKEN};
use serde_json::Value;

const HUB: [&str; 2] = ["--fallback", "hf-hub"];

/// A store, a Hub that has these, and a machine that knows both.
fn setup(revisions: &[Revision]) -> (Store, Hub, Machine) {
    let (store, hub) = (Store::new(), Hub::start(revisions));
    let machine = machine(&store, &hub);
    (store, hub, machine)
}

fn machine(store: &Store, hub: &Hub) -> Machine {
    let mut machine = Machine::new(store);
    machine.set("HF_ENDPOINT", &hub.url);
    machine
}

fn pull(machine: &Machine, line: &[&str]) -> Ran {
    machine.run(&[&["pull"], line, &HUB].concat())
}

/// The hub folder has no file that is not finished, neither the client's nor ours.
fn assert_clean(machine: &Machine) {
    let found = common::listing(&machine.hub());
    let unfinished = |path: &&String| {
        [".incomplete", ".tmp", ".small", ".parts"].iter().any(|end| path.ends_with(end))
            || path.starts_with(".locks/.hf-cache-sync/partial/")
    };
    assert_eq!(found.keys().filter(unfinished).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn a_repo_that_the_bucket_lacks_comes_from_the_hub() {
    for kind in ["model", "dataset", "space", "kernel"] {
        let revision = Revision::new(kind, "org/name")
            .git("config.json", "{}\n")
            .git("ordner/größe #1?.txt", "x")
            .git("empty.txt", "")
            .lfs("model.bin", weights(1, 9 << 20))
            .refs(&["main", "refs/pr/1"]);
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        for name in &revision.refs {
            let ran = pull(&machine, &["org/name", "-r", name]);
            assert_eq!((ran.code, ran.stdout), (0, format!("{}\n", revision.snapshot(&machine.hub()).display())));
            if name == "main" {
                assert!(ran.stderr.contains("not in bucket") && ran.stderr.contains("from the Hub"), "{}", ran.stderr);
            }
        }
        revision.assert_pulled(&machine.hub());
        assert_clean(&machine);
        assert_eq!(hub.bodies(), 3, "each file once, none for the empty one");
        // A commit and a short one write no ref.
        let other = self::machine(&_store, &hub);
        for commit in [revision.commit.as_str(), &revision.commit[..8]] {
            assert_eq!(pull(&other, &["org/name", "-r", commit, "--repo-type", kind]).code, 0);
            assert!(!revision.dir(&other.hub()).join("refs").exists());
        }
    }
}

#[test]
fn the_report_names_the_source() {
    let revision = Revision::model("org/name");
    let (store, _hub, machine) = setup(std::slice::from_ref(&revision));
    let source = |ran: Ran| {
        let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:#?}"));
        (report["source"].as_str().unwrap().to_string(), report["from_hub"]["blobs"].as_u64().unwrap())
    };
    assert_eq!(source(pull(&machine, &["org/name", "--json"])), ("hub".into(), 2));
    machine.ok(&["push"]);
    assert_eq!(source(pull(&machine, &["org/name", "--json"])), ("cache".into(), 0));
    let other = self::machine(&store, &_hub);
    assert_eq!(source(pull(&other, &["org/name", "--json"])), ("bucket".into(), 0));
    store.remove(&revision.blob_key("config.json"));
    let other = self::machine(&store, &_hub);
    assert_eq!(source(pull(&other, &["org/name", "--json"])), ("bucket-and-hub".into(), 1));
}

#[test]
fn a_missing_manifest_and_a_torn_one_and_a_corrupt_blob_are_made_up_for() {
    let revision = Revision::model("org/name");
    for damage in ["manifest", "torn", "blob", "ref"] {
        let (store, hub, machine) = setup(std::slice::from_ref(&revision));
        revision.publish(&store);
        match damage {
            "manifest" => store.remove(&revision.manifest_key()),
            "torn" => store.put(&revision.manifest_key(), "{"),
            "ref" => store.put("refs/org__name/main", "nonsense"),
            _ => store.put(&revision.blob_key("model.safetensors"), vec![1; 300_000]),
        }
        let ran = machine.run(&["pull", "org/name"]);
        assert!(ran.code != 0 && hub.seen() == 0, "not without the flag: {ran:#?}");
        let ran = machine.run(&["pull", "org/name", "--dry-run", "--fallback", "hf-hub"]);
        assert!(hub.seen() == 0, "not by a dry run: {ran:#?}");
        let ran = pull(&machine, &["org/name"]);
        assert_eq!(ran.code, 0, "{damage}: {ran:#?}");
        assert!(ran.stderr.contains("taken from the Hub"), "{ran:#?}");
        revision.assert_pulled(&machine.hub());
        assert_clean(&machine);
    }
}

#[test]
fn a_store_that_does_not_answer_is_made_up_for() {
    let revision = Revision::model("org/name");
    let (_, hub, mut machine) = setup(std::slice::from_ref(&revision));
    machine.set("B2_ENDPOINT", "http://127.0.0.1:1");
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_pulled(&machine.hub());
    // pull-all cannot know what there is.
    assert_eq!(machine.run(&[&["pull-all"][..], &HUB].concat()).code, 6);
    assert_eq!(hub.bodies(), 2);
}

#[test]
fn an_archived_blob_is_made_up_for() {
    let revision = Revision::model("org/name");
    let (store, hub, machine) = setup(std::slice::from_ref(&revision));
    revision.publish(&store);
    store.server.on_request(|request| match request.is("GET", "blobs/") {
        true => Action::Refuse(403, "InvalidObjectState", "not valid for the object's storage class"),
        false => Action::Pass,
    });
    let ran = machine.run(&["pull", "org/name"]);
    assert!(ran.code == 6 && ran.stderr.contains("archived") && hub.seen() == 0, "{ran:#?}");
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    revision.assert_pulled(&machine.hub());
}

#[test]
fn a_wrong_set_up_is_never_papered_over() {
    let revision = Revision::model("org/name");
    let (store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "no"));
    assert_eq!(pull(&machine, &["org/name"]).code, 3);
    store.server.behave();
    assert_eq!(pull(&machine, &["org/name", "--bucket", "no-such-bucket"]).code, 4);
    assert_eq!(pull(&machine, &["org/name", "-r", "a b"]).code, 2);
    machine.set("B2_APPLICATION_KEY", "wrong");
    assert_eq!(pull(&machine, &["org/name"]).code, 3);
    machine.unset("B2_BUCKET");
    assert_eq!(pull(&machine, &["org/name"]).code, 2);
    assert_eq!(hub.seen(), 0);
    assert_eq!(BUCKET, "team-cache");
}

#[test]
fn what_the_hub_sends_is_proven_before_it_is_seen() {
    let revision = Revision::model("org/name");
    for (path, bytes) in [
        ("model.safetensors", weights(77, 300_000)),
        ("model.safetensors", weights(1, 299_999)),
        ("model.safetensors", weights(1, 300_001)),
        ("config.json", b"<html>not the file</html>".to_vec()),
    ] {
        let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
        hub.lie(path, bytes);
        let ran = pull(&machine, &["org/name"]);
        assert!(ran.code != 0 && ran.stdout.is_empty(), "{ran:#?}");
        assert!(ran.stderr.contains(path), "{ran:#?}");
        assert!(!revision.blob(&machine.hub(), path).exists());
        assert!(!revision.dir(&machine.hub()).join("refs/main").exists());
        assert_clean(&machine);
        hub.lie(path, revision.file(path).bytes.clone());
        assert_eq!(pull(&machine, &["org/name"]).code, 0);
        revision.assert_pulled(&machine.hub());
    }
}

#[test]
fn a_listing_that_leads_out_of_the_cache_is_refused() {
    let revision = Revision::model("org/name").git("../../../../evil.txt", "x");
    let (_store, _hub, machine) = setup(std::slice::from_ref(&revision));
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 5, "{ran:#?}");
    assert!(!machine.hub().exists() || fs::read_dir(machine.hub()).unwrap().count() == 0, "{ran:#?}");
}

#[test]
fn the_token_is_sent_and_the_hubs_refusal_is_told() {
    let revision = Revision::model("org/name");
    let (_store, hub, mut machine) = setup(std::slice::from_ref(&revision));
    hub.require_token();
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.stderr.contains("HF_TOKEN") && ran.stderr.contains("not in bucket"), "{ran:#?}");
    machine.set("HF_TOKEN", "hf_wrong");
    assert!(!pull(&machine, &["org/name"]).stderr.contains("hf_wrong"));
    machine.set("HF_TOKEN", TOKEN);
    assert_eq!(pull(&machine, &["org/name"]).code, 0);

    let mut machine = self::machine(&_store, &hub);
    fs::write(machine.home().join("stored"), format!("{TOKEN}\n")).unwrap();
    machine.set("HF_TOKEN_PATH", &machine.home().join("stored").display().to_string());
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    revision.assert_pulled(&machine.hub());
    machine.set("HF_HUB_OFFLINE", "1");
    assert_eq!(pull(&machine, &["org/other"]).code, 2);
}

#[test]
fn what_neither_has_is_told_for_both() {
    let (_store, _hub, machine) = setup(&[Revision::model("org/name")]);
    let ran = pull(&machine, &["org/missing"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    assert!(ran.stderr.contains("on the Hub") && ran.stderr.contains("not in bucket"), "{ran:#?}");
    let ran = pull(&machine, &["org/name", "-r", "v9"]);
    assert!(ran.code == 4 && ran.stderr.contains("no such revision"), "{ran:#?}");
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    let revision = Revision::new("model", "org/name").git("a.txt", "a").lfs("big.bin", weights(5, 80 << 20));
    let (_store, hub, machine) = setup(std::slice::from_ref(&revision));
    // The second run of parts of 64 MiB breaks, every time.
    hub.cut("big.bin", 64 << 20, 0);
    let ran = pull(&machine, &["org/name"]);
    assert_eq!(ran.code, 6, "{ran:#?}");
    assert!(!revision.dir(&machine.hub()).join("refs/main").exists());
    hub.cut("big.bin", u64::MAX, 0);
    hub.take_sent();
    assert_eq!(pull(&machine, &["org/name"]).code, 0);
    assert!(hub.take_sent() <= 16 << 20, "only what is missing comes again");
    revision.assert_pulled(&machine.hub());
    assert_clean(&machine);
}

#[test]
fn pull_all_asks_for_what_fails_and_for_nothing_else() {
    let at = |number: usize| format!("{number}{}", &common::cache::COMMIT[1..]);
    let repos: Vec<Revision> = [("model", "org/a"), ("dataset", "org/b"), ("model", "org/c"), ("dataset", "org/d")]
        .iter()
        .enumerate()
        .map(|(number, (kind, id))| {
            let revision =
                Revision::new(kind, id).at(&at(number)).git("config.json", format!("{{\"id\": \"{id}\"}}\n"));
            revision.lfs("model.bin", weights(number as u64 + 1, 10_000))
        })
        .collect();
    let (store, hub, machine) = setup(&repos);
    let source = Machine::new(&store);
    repos.iter().for_each(|revision| revision.write(&source.hub()));
    source.ok(&["push"]);
    store.remove(&repos[1].blob_key("model.bin"));
    store.remove(&repos[2].manifest_key());
    let ran = machine.run(&["pull-all", "--json", "--fallback", "hf-hub"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let mut rows: Vec<(String, String)> = report["repos"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["repo"].as_str().unwrap().into(), row["source"].as_str().unwrap().into()))
        .collect();
    rows.sort();
    let expected = [("org/a", "bucket"), ("org/b", "bucket-and-hub"), ("org/c", "hub"), ("org/d", "bucket")];
    assert_eq!(rows, expected.map(|(repo, source)| (repo.to_string(), source.to_string())));
    assert_eq!(report["notes"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(hub.bodies(), 3);
    repos.iter().for_each(|revision| revision.assert_pulled(&machine.hub()));
    assert_clean(&machine);
}
