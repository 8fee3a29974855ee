//! Partial `pull` and `push`: patterns for files, several repos, single revisions.

use std::fs;

use serde_json::Value;

use crate::harness::cache::{OTHER, Revision};
use crate::harness::machine::Machine;
use crate::harness::store::Store;

/// A revision with its tree.
fn revision() -> Revision {
    Revision::new("model", "org/name")
        .git("config.json", "{}")
        .git("onnx/config.json", "{\"a\": 1}")
        .lfs("onnx/model.onnx", vec![7; 30_000])
        .lfs("model.safetensors", vec![8; 50_000])
        .with_tree()
}

fn setup() -> (Store, Machine, Revision) {
    let (store, revision) = (Store::new(), revision());
    // Pushed by this program, since a manifest of 0.1.0 has no tree.
    let source = Machine::new(&store);
    revision.write(&source.hub());
    source.ok(&["push"]);
    let machine = Machine::new(&store);
    (store, machine, revision)
}

fn diff_row(machine: &Machine) -> Value {
    machine.ok_json(&["diff", "--json"])["revisions"][0].clone()
}

#[test]
fn a_part_is_pulled_and_completed_later() {
    let (_store, machine, revision) = setup();
    let report = machine.ok_json(&["pull", "org/name", "--include", "*.json", "--json"]);
    assert_eq!(
        (&report["files"], &report["files_left_out"], &report["files_not_in_bucket"]),
        (&2.into(), &2.into(), &0.into())
    );
    let part = revision.clone().without(&["onnx/model.onnx", "model.safetensors"]);
    part.assert_pulled(&machine.hub());
    assert_eq!(diff_row(&machine)["completeness"], "partial");
    assert_eq!(diff_row(&machine)["status"], "partial", "the bucket has more files");
    let text = machine.ok(&["diff"]);
    assert!(text.contains("partial here, without 2 files of the commit"), "{text}");

    // Again: nothing to do.
    let again = machine.ok_json(&["pull", "org/name", "--include", "*.json", "--json"]);
    assert_eq!((&again["source"], &again["downloaded"]["blobs"]), (&"cache".into(), &0.into()));
    // Another part joins the first one.
    let onnx = machine.ok_json(&["pull", "org/name", "--include", "onnx/", "--json"]);
    assert_eq!((&onnx["downloaded"]["blobs"], &onnx["present"]["blobs"]), (&1.into(), &1.into()));
    revision.clone().without(&["model.safetensors"]).assert_pulled(&machine.hub());
    // All of it.
    let rest = machine.ok_json(&["pull", "org/name", "--json"]);
    assert_eq!((&rest["downloaded"]["blobs"], &rest["files_left_out"]), (&1.into(), &Value::Null));
    revision.assert_pulled(&machine.hub());
    assert_eq!(diff_row(&machine)["completeness"], "complete");
}

#[test]
fn exclusion_wins_and_a_dry_run_changes_nothing() {
    let (_store, machine, revision) = setup();
    let line = ["pull", "org/name", "--include", "onnx/", "--exclude", "*.json"];
    let dry = machine.ok_json(&[&line[..], &["--dry-run", "--json"]].concat());
    assert_eq!((&dry["downloaded"]["blobs"], &dry["files_left_out"]), (&1.into(), &3.into()));
    assert!(!revision.dir(&machine.hub()).exists());
    machine.ok(&line);
    revision.without(&["config.json", "onnx/config.json", "model.safetensors"]).assert_pulled(&machine.hub());
}

#[test]
fn a_pattern_without_a_match_is_reported_and_changes_nothing() {
    let (_store, machine, revision) = setup();
    for (patterns, words) in [
        (&["--include", "*.gguf"][..], &["no file of org/name@", "--include '*.gguf'", "it has config.json"][..]),
        (&["--include", "onnx"], &["--include 'onnx'"]),
        (&["--exclude", "*"], &["--exclude '*'"]),
    ] {
        machine.run(&[&["pull", "org/name"], patterns].concat()).refused(4, words);
        assert!(!revision.dir(&machine.hub()).exists());
    }
    machine.run(&["pull", "org/name", "--include", "[a"]).refused(2, &["--include '[a'"]);
    // One of several patterns may have none.
    let ran = machine.run(&["pull", "org/name", "--include", "*.json", "--include", "*.gguf"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("no file of org/name matches --include '*.gguf'"), "{ran:#?}");
}

#[test]
fn files_that_were_never_pushed_are_named_as_such() {
    let store = Store::new();
    let source = Machine::new(&store);
    revision().without(&["model.safetensors"]).write(&source.hub());
    source.ok(&["push"]);
    let machine = Machine::new(&store);
    machine.run(&["pull", "org/name", "--include", "*.safetensors"]).refused(4, &["never pushed"]);
    let part = machine.ok_json(&["pull", "org/name", "--include", "*.json", "--json"]);
    assert_eq!(part["files_not_in_bucket"], 0, "the pattern does not ask for it");
}

#[test]
fn several_repos_are_pulled_together() {
    let (store, machine, name) = setup();
    let other = Revision::new("dataset", "org/data").git("README.md", "hello").at(OTHER).refs(&["main", "v1"]);
    other.publish(&store);
    let ran = machine.run(&["pull", "org/name", "dataset:org/data@v1", "org/name"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let paths = [name.snapshot(&machine.hub()), other.snapshot(&machine.hub())];
    let lines: Vec<_> = ran.stdout.lines().map(std::path::PathBuf::from).collect();
    assert_eq!(lines, paths, "a path a line, in the order of the arguments");
    name.assert_pulled(&machine.hub());
    assert_eq!(fs::read_to_string(other.dir(&machine.hub()).join("refs/v1")).unwrap(), OTHER);

    let report = machine.ok_json(&["pull", "org/name", "dataset:org/data", "--json"]);
    let rows = report["repos"].as_array().unwrap();
    assert_eq!((&rows[0]["requested"], &rows[0]["result"]), (&"org/name".into(), &"present".into()));
    assert_eq!(rows[1]["snapshot"], paths[1].to_str().unwrap());
    assert_eq!((&rows[1]["revision"], rows[1].get("key")), (&OTHER.into(), None));
}

#[test]
fn one_of_several_repos_that_fails_does_not_stop_the_others() {
    let (_store, machine, revision) = setup();
    let ran = machine.run(&["pull", "org/nam", "org/name"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert_eq!(ran.stdout.trim_end(), revision.snapshot(&machine.hub()).to_str().unwrap());
    assert!(ran.stderr.contains("org/nam: failed"), "{ran:#?}");
    let ran = machine.run(&["pull", "org/x", "org/y"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{ran:#?}");
    assert!(ran.stderr.contains("org/x is not in") && ran.stderr.contains("org/y is not in"), "{ran:#?}");
    machine.run(&["pull", "org/name", "org/y", "-r", "main"]).refused(2, &["-r applies to one repo"]);
    machine.run(&["pull", "org/name", "main"]).refused(2, &["`hf-cache-sync pull org/name -r main`"]);
}

#[test]
fn one_revision_is_pushed() {
    let store = Store::new();
    let source = Machine::new(&store);
    let (one, two) = (revision().refs(&["main"]), revision().git("b.txt", "b").at(OTHER).refs(&["v2"]));
    [&one, &two].iter().for_each(|revision| revision.write(&source.hub()));
    // A broken file of another revision does not matter.
    std::os::unix::fs::symlink("../../blobs/gone", one.snapshot(&source.hub()).join("broken.bin")).unwrap();
    source.run(&["push", "-r", "v2"]).refused(2, &["-r needs a repo"]);
    source.run(&["push", "org/name", "-r", "v3"]).refused(4, &["v3", "main", "v2"]);
    source.ok(&["push", "org/name", "-r", "v2"]);
    two.assert_published(&store);
    assert!(!store.keys().contains(&one.manifest_key()), "{:?}", store.keys());
}

#[test]
fn a_partial_push_never_removes_files() {
    let store = Store::new();
    let (source, whole) = (Machine::new(&store), revision());
    whole.write(&source.hub());
    let line = ["push", "--include", "*.json", "--exclude", "onnx/"];
    let dry = source.ok_json(&[&line[..], &["--dry-run", "--json"]].concat());
    assert_eq!(
        (&dry["uploaded"]["blobs"], &dry["manifests"], &dry["skipped"]),
        (&1.into(), &1.into(), &Value::Array(vec![]))
    );
    assert!(store.keys().is_empty());
    let ran = source.run(&line);
    assert!(ran.code == 0 && ran.stderr.contains("3 files not selected"), "{ran:#?}");
    let manifest: Value = serde_json::from_slice(&store.get(&whole.manifest_key())).unwrap();
    assert_eq!(manifest["files"].as_array().unwrap().len(), 1);
    assert!(manifest["tree"]["files"]["model.safetensors"].is_object(), "the tree tells that it is a part");
    let machine = Machine::new(&store);
    let report = machine.ok_json(&["pull", "org/name", "--json"]);
    assert_eq!((&report["files"], &report["files_not_in_bucket"]), (&1.into(), &3.into()));

    source.ok(&["push"]);
    whole.assert_published(&store);
    source.ok(&line);
    whole.assert_published(&store);
    source.run(&["push", "--include", "*.gguf"]).refused(4, &["no file in", "--include '*.gguf'"]);
    whole.assert_published(&store);
}

#[test]
fn a_revision_without_a_matching_file_is_left_out_with_its_ref() {
    let store = Store::new();
    let source = Machine::new(&store);
    let plain = Revision::new("dataset", "org/data").git("README.md", "hello").at(OTHER);
    [&revision(), &plain].iter().for_each(|revision| revision.write(&source.hub()));
    let report = source.ok_json(&["push", "--include", "*.safetensors", "--json"]);
    assert_eq!(
        (&report["manifests"], &report["refs"], &report["skipped"]),
        (&1.into(), &1.into(), &Value::Array(vec![]))
    );
    assert_eq!(
        store.keys(),
        [revision().blob_key("model.safetensors"), revision().manifest_key(), "refs/org__name/main".into()]
    );
}
