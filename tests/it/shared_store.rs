//! `pull` into a cache that has the bytes elsewhere: in huggingface_hub's cache-wide blob store, or in another repo.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::cache::{Layout, Revision};
use crate::harness::machine::Machine;
use crate::harness::store::Store;

static BYTES: [u8; 70_000] = [7; 70_000];

fn model() -> Revision {
    let revision = Revision::new("model", "org/a").git("config.json", "{}").lfs("w.bin", BYTES);
    revision.with_tree().layout(Layout::Shared)
}

fn payload(hub: &Path) -> PathBuf {
    let name = model().file("w.bin").xet_hash();
    hub.join("blobs").join(&name[..2]).join(&name)
}

fn references(hub: &Path) -> String {
    fs::read_to_string(payload(hub).with_extension("refs")).unwrap()
}

/// A bucket with the model, and a machine whose store has the same bytes, for a dataset.
fn setup() -> (Store, Machine, Revision) {
    let store = Store::new();
    let source = Machine::new(&store);
    model().write(&source.hub());
    source.ok(&["push"]);
    let machine = Machine::new(&store);
    let dataset = Revision::new("dataset", "org/b").lfs("w.bin", BYTES).with_tree().layout(Layout::Shared);
    dataset.write(&machine.hub());
    (store, machine, dataset)
}

fn is_shared(machine: &Machine) -> bool {
    fs::symlink_metadata(model().blob(&machine.hub(), "w.bin")).unwrap().is_symlink()
}

#[test]
fn a_blob_joins_the_store_and_prune_respects_it() {
    let (_store, machine, dataset) = setup();
    let hub = machine.hub();
    let dry = machine.ok_json(&["pull", "org/a", "--dry-run", "--json"]);
    assert_eq!((&dry["shared"]["blobs"], &dry["downloaded"]["blobs"]), (&1.into(), &1.into()));
    let report = machine.ok_json(&["pull", "org/a", "--json"]);
    assert_eq!((&report["shared"]["blobs"], &report["downloaded"]["blobs"]), (&1.into(), &1.into()));
    model().assert_pulled(&hub);
    let blob = model().blob(&hub, "w.bin");
    let name = model().file("w.bin").xet_hash();
    assert_eq!(fs::read_link(&blob).unwrap(), PathBuf::from(format!("../../blobs/{}/{name}", &name[..2])));
    let line = |revision: &Revision| format!("{}/blobs/{}\n", revision.folder(), revision.etag("w.bin"));
    assert_eq!(references(&hub), line(&dataset) + &line(&model()));

    // The payload stays as long as one repo needs it.
    let prune = ["prune", "--yes", "--max-gb", "100", "--orphan-grace", "0"];
    fs::remove_dir_all(dataset.dir(&hub)).unwrap();
    machine.ok(&prune);
    model().assert_pulled(&hub);
    fs::remove_dir_all(model().dir(&hub)).unwrap();
    machine.ok(&prune);
    assert!(!payload(&hub).exists());
}

#[test]
fn an_unused_payload_can_be_linked() {
    let (_store, machine, dataset) = setup();
    fs::remove_dir_all(dataset.dir(&machine.hub())).unwrap();
    let report = machine.ok_json(&["pull", "org/a", "--json"]);
    assert_eq!(report["shared"]["blobs"], 1);
    assert!(is_shared(&machine));
    model().assert_pulled(&machine.hub());
}

#[test]
fn a_payload_with_other_bytes_is_not_used() {
    let (_store, machine, _) = setup();
    let other = [8; 70_000];
    fs::write(payload(&machine.hub()), other).unwrap();
    let report = machine.ok_json(&["pull", "org/a", "--json"]);
    assert_eq!(report["downloaded"]["blobs"], 2);
    assert!(!is_shared(&machine));
    model().assert_pulled(&machine.hub());
    assert_eq!(fs::read(payload(&machine.hub())).unwrap(), other, "it is left to its users");
}

/// A machine with an empty store, and a bucket with the model.
fn empty_setup(with_tree: impl Fn(String) -> String) -> (Store, Machine) {
    let (store, machine, dataset) = setup();
    fs::remove_dir_all(dataset.dir(&machine.hub())).unwrap();
    fs::remove_file(payload(&machine.hub())).unwrap();
    fs::remove_file(payload(&machine.hub()).with_extension("refs")).unwrap();
    let manifest = model().manifest_key();
    store.put(&manifest, with_tree(store.text(&manifest)).as_bytes());
    (store, machine)
}

#[test]
fn a_blob_from_the_bucket_becomes_a_payload() {
    let (_store, machine) = empty_setup(|manifest| manifest);
    machine.ok(&["pull", "org/a"]);
    assert!(is_shared(&machine));
    assert_eq!(fs::read(payload(&machine.hub())).unwrap(), BYTES);
    assert_eq!(references(&machine.hub()), format!("{}/blobs/{}\n", model().folder(), model().etag("w.bin")));
    model().assert_pulled(&machine.hub());
}

#[test]
fn a_wrong_name_from_the_bucket_adds_nothing_to_the_store() {
    let name = model().file("w.bin").xet_hash();
    let (_store, machine) = empty_setup(|manifest| manifest.replace(&name, &"ab".repeat(32)));
    machine.ok(&["pull", "org/a"]);
    assert!(!is_shared(&machine) && !payload(&machine.hub()).exists());
    assert!(!machine.hub().join("blobs/ab").exists());
}

#[test]
fn settings_that_disable_the_store_for_the_client_apply_here() {
    for variable in ["HF_HUB_DISABLE_SHARED_BLOBS", "HF_HUB_DISABLE_XET"] {
        let (_store, mut machine, _) = setup();
        machine.set(variable, "1");
        let report = machine.ok_json(&["pull", "org/a", "--json"]);
        assert_eq!(report["shared"]["blobs"], 1, "from the other repo");
        assert!(!is_shared(&machine));
    }
}

#[test]
fn bytes_of_another_repo_are_reused_in_any_layout() {
    for layout in [Layout::Links, Layout::Hardlinks, Layout::Real, Layout::Shared] {
        let store = Store::new();
        let model = Revision::new("model", "org/a").git("config.json", "{}").lfs("w.bin", BYTES);
        model.publish(&store);
        let machine = Machine::new(&store);
        let dataset = Revision::new("dataset", "org/b").lfs("data/w.bin", BYTES).with_tree().layout(layout);
        dataset.write(&machine.hub());
        let report = machine.ok_json(&["pull", "org/a", "--json"]);
        assert_eq!((&report["shared"]["blobs"], &report["downloaded"]["blobs"]), (&1.into(), &1.into()), "{layout:?}");
        model.assert_pulled(&machine.hub());
        let file = dataset.snapshot(&machine.hub()).join("data/w.bin");
        assert!(fs::read(file).unwrap() == BYTES, "{layout:?}: the other repo keeps its file");
    }
}
