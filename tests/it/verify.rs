//! `verify`: damage in a real cache or bucket is found, repaired from the other side, and then gone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision};
use crate::harness::cache_dir::set_last_used;
use crate::harness::machine::{Machine, Output};
use crate::harness::s3::Action;
use crate::harness::store::Store;
use crate::harness::{git_sha1, sha256, visible, weights};

/// A machine with a revision in its cache, and the same in its bucket.
struct World {
    store: Store,
    machine: Machine,
    revision: Revision,
}

impl World {
    fn new(revision: Revision) -> World {
        let world = World::unpushed(revision);
        world.machine.ok(&["push", "-q"]);
        world
    }

    fn unpushed(revision: Revision) -> World {
        let store = Store::new();
        let machine = Machine::new(&store);
        revision.write(&machine.hub());
        World { store, machine, revision }
    }

    fn hub(&self) -> PathBuf {
        self.machine.hub()
    }

    fn blob(&self, path: &str) -> PathBuf {
        self.revision.blob(&self.hub(), path)
    }

    fn file(&self, path: &str) -> PathBuf {
        self.revision.snapshot(&self.hub()).join(path)
    }

    fn quarantine(&self) -> PathBuf {
        self.hub().join(".locks/.hf-cache-sync/quarantine")
    }

    /// Checks and repairs. Asserts that a second run finds nothing.
    #[track_caller]
    fn repair(&self, line: &[&str]) -> Value {
        let ran = self.machine.run(&[&["verify", "--repair", "--json"], line].concat());
        assert_eq!(ran.code, 0, "{}", ran.text());
        let again = self.machine.run(&["verify", "--json"]);
        assert_eq!((again.code, findings(&again.json())), (0, vec![]), "{}", again.text());
        ran.json()
    }

    /// Checks, and asserts that it finds exactly this.
    #[track_caller]
    fn finds(&self, line: &[&str], expected: &[&str]) -> Value {
        let ran = self.machine.run(&[&["verify", "--json"], line].concat());
        let report = ran.json();
        assert_eq!(findings(&report), expected, "{}", ran.text());
        assert_eq!(ran.code, if expected.is_empty() { 0 } else { 5 }, "{}", ran.text());
        report
    }
}

/// The findings as `reason: file or place`.
fn findings(report: &Value) -> Vec<String> {
    let found = report["findings"].as_array().unwrap().iter().map(|finding| {
        let place = match finding["files"].as_array().unwrap().as_slice() {
            [] => finding["path"].as_str().or(finding["key"].as_str()).unwrap().rsplit('/').next().unwrap(),
            files => files[0]["path"].as_str().unwrap(),
        };
        format!("{}: {place}", finding["reason"].as_str().unwrap())
    });
    found.collect()
}

fn outcomes(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["outcome"].as_str().unwrap()).collect()
}

fn status(report: &Value) -> &str {
    report["revisions"][0]["status"].as_str().unwrap()
}

/// Changes a single byte in the middle.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn succeeded(ran: Output) -> Value {
    assert_eq!(ran.code, 0, "{}", ran.text());
    ran.json()
}

#[test]
fn a_good_cache_passes_and_stays_unchanged() {
    let world = World::unpushed(Revision::model("org/llm").with_tree());
    Revision::new("dataset", "org/data").git("a.csv", "a,b\n").write(&world.hub());
    let before = visible(&world.hub());
    let report = world.finds(&[], &[]);
    assert_eq!(report["verified"]["blobs"], 3);
    let rows: Vec<_> = report["revisions"].as_array().unwrap().iter().map(|row| row["status"].clone()).collect();
    assert_eq!(rows, ["complete", "unknown"]);
    assert_eq!(visible(&world.hub()), before);
    assert!(!world.hub().join(".locks").exists(), "nothing is written, not even a lock");
    let one = world.finds(&["dataset:org/data"], &[]);
    assert_eq!(one["revisions"].as_array().unwrap().len(), 1);
    let text = world.machine.run(&["verify"]);
    assert!(text.stdout.contains("No damage found"), "{}", text.text());
}

#[test]
fn a_partial_revision_is_not_damage() {
    let world = World::unpushed(Revision::model("org/llm").with_tree().without(&["model.safetensors"]));
    let report = world.finds(&[], &[]);
    assert_eq!((status(&report), &report["revisions"][0]["absent"]), ("partial", &Value::from(1)));
}

#[test]
fn a_bad_blob_is_fetched_again_and_its_bytes_are_kept() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let (blob, bad) = (world.blob("model.safetensors"), world.quarantine().join("models--org--llm/blobs"));
    flip(&blob);
    let wrong = fs::read(&blob).unwrap();
    let report = world.finds(&[], &["corrupt: model.safetensors"]);
    assert_eq!(status(&report), "damaged");
    let planned = world.machine.run(&["verify", "--repair", "--dry-run", "--json"]);
    assert_eq!((planned.code, outcomes(&planned.json())), (5, vec!["repairable"]), "{}", planned.text());
    assert!(!world.quarantine().exists());

    let report = world.repair(&[]);
    assert_eq!((outcomes(&report), &report["downloaded"]["blobs"]), (vec!["repaired"], &Value::from(1)));
    assert_eq!(report["quarantined"]["blobs"], 1);
    world.revision.assert_pulled(&world.hub());
    assert_eq!(fs::read(bad.join(world.revision.etag("model.safetensors"))).unwrap(), wrong);
    // The same blob is damaged once more.
    fs::write(&blob, "other").unwrap();
    world.repair(&[]);
    world.revision.assert_pulled(&world.hub());
    assert_eq!(fs::read_dir(&bad).unwrap().count(), 2);
}

#[test]
fn truncated_and_missing_blobs_are_restored() {
    let world = World::new(Revision::model("org/llm").with_tree().git("sub/folder/notes.txt", "words"));
    fs::File::options().write(true).open(world.blob("model.safetensors")).unwrap().set_len(1000).unwrap();
    fs::write(world.blob("config.json"), "").unwrap();
    fs::remove_file(world.blob("sub/folder/notes.txt")).unwrap();
    let expected = ["corrupt: config.json", "corrupt: model.safetensors", "missing: sub/folder/notes.txt"];
    let report = world.finds(&[], &expected);
    let details: Vec<_> = report["findings"].as_array().unwrap().iter().map(|one| one["detail"].clone()).collect();
    assert!(details.iter().any(|detail| detail == "it has 1000 bytes instead of 300000"), "{details:?}");
    world.repair(&[]);
    world.revision.assert_pulled(&world.hub());
}

/// Without a tree, the size of a missing blob is unknown here.
#[test]
fn a_missing_blob_is_restored_without_a_tree() {
    let world = World::new(Revision::model("org/llm"));
    fs::remove_file(world.blob("model.safetensors")).unwrap();
    world.repair(&[]);
    world.revision.assert_pulled(&world.hub());
}

#[test]
fn without_a_source_nothing_changes() {
    let world = World::unpushed(Revision::model("org/llm").with_tree());
    flip(&world.blob("model.safetensors"));
    fs::remove_file(world.blob("config.json")).unwrap();
    let before = visible(&world.hub());
    let ran = world.machine.run(&["verify", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (5, vec!["left", "left"]), "{}", ran.text());
    assert_eq!(visible(&world.hub()), before);
    assert!(!world.quarantine().exists() || fs::read_dir(world.quarantine()).unwrap().count() == 0);
    let text = world.machine.run(&["verify", "--repair"]);
    assert!(text.stdout.contains("no good copy was found -> not repaired"), "{}", text.text());
    assert!(
        text.stderr.contains("--fallback hf-hub") && text.stderr.contains("`hf-cache-sync push`"),
        "{}",
        text.text()
    );
    assert!(ran.json()["notes"][0].as_str().unwrap().contains("no good copy"), "{}", ran.text());
}

/// The bucket's copy may be bad, too: it is not used, and the local file stays.
#[test]
fn a_bad_copy_in_the_bucket_repairs_nothing() {
    let world = World::new(Revision::model("org/llm").with_tree());
    flip(&world.blob("model.safetensors"));
    flip(&world.store.path(&world.revision.blob_key("model.safetensors")));
    let wrong = fs::read(world.blob("model.safetensors")).unwrap();
    let ran = world.machine.run(&["verify", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (5, vec!["left"]), "{}", ran.text());
    assert_eq!(fs::read(world.blob("model.safetensors")).unwrap(), wrong);
    let kept = world.quarantine().join("models--org--llm/blobs");
    assert!(!kept.exists() || fs::read_dir(kept).unwrap().count() == 0);
}

#[test]
fn a_good_copy_in_another_repo_is_used_first() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let other = Revision { id: "org/copy".into(), ..world.revision.clone() };
    other.write(&world.hub());
    flip(&world.blob("model.safetensors"));
    let report = world.repair(&[]);
    assert_eq!((&report["downloaded"]["blobs"], &report["shared"]["blobs"]), (&Value::from(0), &Value::from(1)));
    world.revision.assert_pulled(&world.hub());
    other.assert_pulled(&world.hub());
}

#[test]
fn links_are_recreated() {
    let world = World::new(Revision::model("org/llm").with_tree().git("d/a.txt", "text"));
    let outside = world.machine.home().join("outside");
    fs::write(&outside, "mine").unwrap();
    let relink = |path: &str, target: &Path| {
        fs::remove_file(world.file(path)).unwrap();
        symlink(target, world.file(path)).unwrap();
    };
    relink("config.json", &outside);
    relink("d/a.txt", &world.blob("model.safetensors"));
    relink("model.safetensors", Path::new("../../blobs/gone"));
    world.finds(&[], &["foreign-link: config.json", "wrong-blob: d/a.txt", "missing: model.safetensors"]);
    world.repair(&[]);
    world.revision.assert_pulled(&world.hub());
    assert_eq!(fs::read(&outside).unwrap(), b"mine");

    // It works, as long as the cache stays where it is.
    relink("config.json", &world.blob("config.json"));
    let ran = world.machine.run(&["verify", "--json"]);
    assert_eq!((ran.code, findings(&ran.json())), (0, vec!["absolute-link: config.json".into()]), "{}", ran.text());
    world.repair(&[]);
    world.revision.assert_pulled(&world.hub());
}

/// Without a tree, the bucket's manifest names the blob of a file.
#[test]
fn a_foreign_link_is_explained_by_the_bucket() {
    let world = World::new(Revision::model("org/llm"));
    fs::remove_file(world.file("config.json")).unwrap();
    symlink("/nowhere/at/all", world.file("config.json")).unwrap();
    world.finds(&[], &["foreign-link: config.json"]);
    world.repair(&[]);
    world.revision.assert_pulled(&world.hub());
}

#[test]
fn refs_are_tidied_rewritten_or_set_aside() {
    let world = World::new(Revision::model("org/llm").with_tree().refs(&["main", "v1", "v2", "lost", "refs/pr/1"]));
    let reference = |name: &str| world.revision.dir(&world.hub()).join("refs").join(name);
    fs::write(reference("v1"), format!("{COMMIT}\n")).unwrap();
    fs::write(reference("v2"), "nonsense").unwrap();
    fs::write(reference("lost"), OTHER).unwrap();
    fs::write(reference("new"), OTHER).unwrap();
    set_last_used(&reference("lost"), 7200);
    let expected = ["dangling-ref: lost", "dangling-ref: new", "untidy-ref: v1", "bad-ref: v2"];
    world.finds(&[], &expected);
    let ran = world.machine.run(&["verify", "--repair", "--json"]);
    // A download may have just begun.
    assert_eq!(outcomes(&ran.json()), ["repaired", "left", "repaired", "repaired"], "{}", ran.text());
    set_last_used(&reference("new"), 7200);
    world.repair(&[]);
    for name in ["main", "v1", "v2", "refs/pr/1"] {
        assert_eq!(fs::read_to_string(reference(name)).unwrap(), COMMIT, "{name}");
    }
    assert!(!reference("lost").exists() && !reference("new").exists());
    let kept = world.quarantine().join("models--org--llm/refs");
    assert_eq!(fs::read_to_string(kept.join("lost")).unwrap(), OTHER);
    assert_eq!(fs::read_to_string(kept.join("v2")).unwrap(), "nonsense");
}

#[test]
fn a_bad_tree_is_written_again() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let tree = world.revision.dir(&world.hub()).join(format!("trees/{COMMIT}.json"));
    fs::write(&tree, "{\"format_version\": 1, \"files\"").unwrap();
    let report = world.finds(&[], &[&format!("bad-tree: {COMMIT}.json")]);
    assert_eq!(status(&report), "unknown");
    world.repair(&[]);
    world.revision.assert_pulled(&world.hub());
    fs::write(&tree, "{\"format_version\": 7}").unwrap();
    let report = world.finds(&[], &[]);
    assert_eq!(report["unverified"][0]["reason"], "unknown-tree");
}

#[test]
fn real_files_are_compared_with_the_tree() {
    for layout in [Layout::Real, Layout::Hardlinks] {
        let world = World::new(Revision::model("org/llm").with_tree().layout(layout));
        world.finds(&[], &[]);
        flip(&world.file("model.safetensors"));
        let wrong = fs::read(world.file("model.safetensors")).unwrap();
        world.finds(&[], &["corrupt: model.safetensors"]);
        let report = world.repair(&[]);
        assert_eq!(report["quarantined"]["blobs"], 1, "{layout:?}");
        assert!(fs::read(world.file("model.safetensors")).unwrap() == world.revision.file("model.safetensors").bytes);
        let kept = match layout {
            Layout::Real => world.quarantine().join(format!("models--org--llm/snapshots/{COMMIT}/model.safetensors")),
            _ => world.quarantine().join("models--org--llm/blobs").join(world.revision.etag("model.safetensors")),
        };
        assert!(fs::read(kept).unwrap() == wrong, "{layout:?}");
    }
}

/// Without a tree, the bucket's manifest names the expected blob of a real file.
#[test]
fn real_files_without_a_tree_are_compared_with_the_bucket() {
    let world = World::new(Revision::model("org/llm").layout(Layout::Real));
    let report = world.finds(&[], &[]);
    assert_eq!((report["unverified"].as_array().unwrap().len(), &report["verified"]["blobs"]), (2, &0.into()));
    let report = world.repair(&[]);
    assert_eq!((&report["unverified"], &report["verified"]["blobs"]), (&serde_json::json!([]), &2.into()));
    flip(&world.file("model.safetensors"));
    let planned = world.machine.run(&["verify", "--repair", "--dry-run", "--json"]);
    assert_eq!(findings(&planned.json()), ["corrupt: model.safetensors"], "{}", planned.text());
    let report = world.repair(&[]);
    assert_eq!((outcomes(&report), &report["quarantined"]["blobs"]), (vec!["repaired"], &1.into()));
    assert!(fs::read(world.file("model.safetensors")).unwrap() == world.revision.file("model.safetensors").bytes);

    // An unreachable bucket does not weaken the check.
    let mut world = World::new(Revision::model("org/llm").layout(Layout::Real));
    world.machine.connect("http://127.0.0.1:1", "team-cache", "test-region");
    let ran = world.machine.run(&["verify", "--repair", "--json"]);
    assert_eq!((ran.code, ran.json()["unverified"].as_array().unwrap().len()), (0, 2), "{}", ran.text());
    assert!(ran.json()["notes"].to_string().contains("not compared with the bucket's manifests"), "{}", ran.text());
}

#[test]
fn files_without_proof_are_named_and_are_not_damage() {
    let world = World::unpushed(Revision::model("org/llm"));
    let blobs = world.revision.dir(&world.hub()).join("blobs");
    fs::write(blobs.join("5d41402abc4b2a76b9719d911017c592"), "old").unwrap();
    symlink("../../blobs/5d41402abc4b2a76b9719d911017c592", world.file("old.bin")).unwrap();
    fs::write(world.file("written.lock"), "").unwrap();
    fs::write(blobs.join(format!("{}.incomplete", "a".repeat(64))), "half").unwrap();
    let report = world.finds(&[], &[]);
    let reasons: Vec<_> =
        report["unverified"].as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["no-hash", "no-tree", "no-hash"]);
    let text = world.machine.run(&["verify"]).text();
    assert!(text.contains("the name of the blob is not a hash"), "{text}");
}

/// A mirror names a file by sha256 that the tree names by git's sha1.
#[test]
fn names_by_both_algorithms_are_proven() {
    let world = World::unpushed(Revision::model("org/llm").with_tree());
    let bytes = &world.revision.file("config.json").bytes;
    let twin = sha256(bytes);
    fs::rename(world.blob("config.json"), world.blob("config.json").with_file_name(&twin)).unwrap();
    fs::remove_file(world.file("config.json")).unwrap();
    symlink(format!("../../blobs/{twin}"), world.file("config.json")).unwrap();
    world.finds(&[], &[]);
    // The blob matches its own name, but not the tree.
    let other = b"something else";
    fs::write(world.blob("config.json").with_file_name(sha256(other)), other).unwrap();
    fs::remove_file(world.file("config.json")).unwrap();
    symlink(format!("../../blobs/{}", sha256(other)), world.file("config.json")).unwrap();
    world.finds(&[], &["wrong-blob: config.json"]);
}

#[test]
fn a_bad_blob_that_nothing_uses_is_set_aside() {
    let world = World::unpushed(Revision::model("org/llm"));
    let name = git_sha1(b"right");
    let orphan = world.blob("config.json").with_file_name(&name);
    fs::write(&orphan, "wrong").unwrap();
    world.finds(&[], &[&format!("corrupt: {name}")]);
    // The selection does not use it.
    world.finds(&[&format!("org/llm@{COMMIT}")], &[]);
    world.repair(&[]);
    assert!(!orphan.exists());
    assert_eq!(fs::read(world.quarantine().join("models--org--llm/blobs").join(name)).unwrap(), b"wrong");
}

/// A payload of the cache-wide store is checked against all its links, and a bad one is no longer linked into other repos.
#[test]
fn a_shared_payload_is_proven_by_its_links_and_replaced_for_all_of_them() {
    let world = World::new(Revision::model("org/llm").with_tree().layout(Layout::Shared));
    let other = Revision { id: "org/copy".into(), ..world.revision.clone() };
    other.write(&world.hub());
    let payload = fs::canonicalize(world.blob("model.safetensors")).unwrap();
    let list = payload.with_extension("refs");
    let etag = world.revision.etag("model.safetensors");
    fs::write(&list, format!("models--org--llm/blobs/{etag}\nmodels--org--copy/blobs/{etag}\n")).unwrap();
    world.finds(&[], &[]);
    flip(&payload);
    world.finds(&[], &["corrupt: model.safetensors", "corrupt: model.safetensors"]);
    // The other repo still needs it.
    let report = succeeded(world.machine.run(&["verify", "org/llm", "--repair", "--json"]));
    assert!(report["notes"][0].as_str().unwrap().contains("still linked from 1 other"), "{report}");
    assert!(payload.exists());
    world.repair(&[]);
    assert!(!payload.exists() && !list.exists());
    let inside = payload.strip_prefix(fs::canonicalize(world.hub()).unwrap()).unwrap();
    assert!(world.quarantine().join(inside).exists());
    for revision in [&world.revision, &other] {
        revision.assert_pulled(&world.hub());
    }
}

#[test]
fn a_large_blob_and_many_small_ones_are_hashed_in_parallel() {
    let mut revision = Revision::new("model", "org/many").lfs("large.bin", weights(1, 5 << 20));
    for number in 0..60 {
        revision = revision.git(&format!("d/{number}.txt"), format!("text {number}"));
        revision = revision.lfs(&format!("d/{number}.bin"), weights(number + 2, 1000 * number as usize));
    }
    let world = World::unpushed(revision);
    let report = world.finds(&[], &[]);
    assert_eq!(report["verified"]["blobs"], 121);
    flip(&world.blob("d/7.bin"));
    flip(&world.blob("large.bin"));
    world.finds(&[], &["corrupt: d/7.bin", "corrupt: large.bin"]);
}

#[test]
fn a_read_only_cache_can_be_checked_and_not_repaired() {
    let world = World::new(Revision::model("org/llm").with_tree());
    flip(&world.blob("config.json"));
    let ran = world.machine.run_read_only(&["verify", "--json"]);
    assert_eq!((ran.code, findings(&ran.json())), (5, vec!["corrupt: config.json".into()]), "{}", ran.text());
    world.machine.run_read_only(&["verify", "--repair"]).refused(3, &["cannot write to", "omit --repair"]);
}

#[test]
fn unreadable_files_are_not_a_success() {
    let world = World::unpushed(Revision::model("org/llm").with_tree());
    let blob = world.blob("model.safetensors");
    fs::set_permissions(&blob, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let ran = world.machine.run_as_owner(&["verify", "--json"]);
    assert_eq!((ran.code, findings(&ran.json())), (3, vec![]), "{}", ran.text());
    assert!(ran.stdout.contains("model") && ran.json()["failures"][0]["kind"] == "permission");
    assert_eq!(status(&ran.json()), "unknown");
}

/// The links to it have a target, but no program can read a file there.
#[test]
fn a_blob_that_is_not_a_file_damages_its_revisions() {
    let world = World::unpushed(Revision::model("org/llm").with_tree());
    let blob = world.blob("model.safetensors");
    fs::remove_file(&blob).unwrap();
    fs::create_dir(&blob).unwrap();
    for line in [&[][..], &["org/llm@main"]] {
        let report = world.finds(line, &["not-a-file: model.safetensors"]);
        assert_eq!(status(&report), "damaged");
    }
    fs::remove_dir(&blob).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&blob).status().unwrap().success());
    let report = world.finds(&[], &["not-a-file: model.safetensors"]);
    assert_eq!(status(&report), "damaged");
}

/// A blob of the bucket that `--deep` could not read is neither good nor bad.
#[test]
fn a_blob_that_deep_cannot_read_is_not_complete() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let key = world.revision.blob_key("model.safetensors");
    world.store.server.on_request(move |seen| match seen.is("GET", &key) {
        true => Action::Refuse(403, "AccessDenied", "not for you"),
        false => Action::Pass,
    });
    let ran = world.machine.run(&["verify", "--remote", "--deep", "--json"]);
    assert_ne!(ran.code, 0, "{}", ran.text());
    assert_eq!((findings(&ran.json()), status(&ran.json())), (vec![], "unknown"), "{}", ran.text());
}

/// The content of an unreadable folder is unknown: nothing in it counts as missing, and no ref as dangling.
#[test]
fn files_in_an_unreadable_folder_are_not_missing() {
    let chmod =
        |path: &Path, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    for (folder, mode) in [("snapshots", 0o000), ("snapshots", 0o444), ("blobs", 0o000), ("blobs", 0o444)] {
        let world = World::new(Revision::model("org/llm").with_tree());
        let (folder, reference) =
            (world.revision.dir(&world.hub()).join(folder), world.revision.dir(&world.hub()).join("refs/main"));
        set_last_used(&reference, 7200);
        let before = visible(&world.hub());
        chmod(&folder, mode);
        let ran = world.machine.run_as_owner(&["verify", "--repair", "--json"]);
        chmod(&folder, 0o755);
        assert_eq!((ran.code, findings(&ran.json())), (3, vec![]), "{folder:?} {mode:o}: {}", ran.text());
        assert_eq!(visible(&world.hub()), before, "{folder:?} {mode:o}");
        world.finds(&[], &[]);
    }
}

#[test]
fn wrong_requests_are_refused() {
    let world = World::unpushed(Revision::model("org/llm"));
    world.machine.run(&["verify", "org/lln"]).refused(4, &["did you mean org/llm"]);
    world.machine.run(&["verify", "org/llm@v9"]).refused(4, &["v9", "main"]);
    for (line, needed) in [
        (&["verify", "--deep"][..], "--remote"),
        (&["verify", "--dry-run"], "--repair"),
        (&["verify", "--no-sync"], "--repair"),
        (&["verify", "--no-sync", "--repair", "--remote"], "--remote"),
    ] {
        let ran = world.machine.run(line);
        assert!(ran.code == 2 && ran.stderr.contains(needed), "{}", ran.text());
    }
    for line in [&["verify", "--fallback", "hf-hub"][..], &["verify", "--remote", "--repair", "--fallback", "hf-hub"]] {
        world.machine.run(line).refused(2, &["--fallback"]);
    }
    for line in [&["verify", "--hub-wait", "9"][..], &["verify", "--repair", "--hub-wait", "9"]] {
        world.machine.run(line).refused(2, &["--hub-wait", "--fallback hf-hub"]);
    }
    let nowhere = world.machine.home().join("nowhere");
    let line = ["verify", "--cache-dir", nowhere.to_str().unwrap()];
    world.machine.run(&line).refused(4, &["nowhere"]);
}

/// A downloading process holds the blob's lock: the existing file may be incomplete.
#[test]
fn a_blob_that_is_being_downloaded_is_left_alone() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let blob = world.blob("config.json");
    flip(&blob);
    let lock = world.hub().join(".locks/models--org--llm").join(format!("{}.lock", world.revision.etag("config.json")));
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    let report = world.finds(&["--repair"], &[]);
    assert_eq!(report["in_use"], 1);
    held.unlock().unwrap();
    world.repair(&[]);
}

/// A `prune` waits for the end of a repair, and both succeed.
#[test]
fn a_prune_waits_for_a_repair() {
    let world = World::new(Revision::model("org/llm").with_tree());
    flip(&world.blob("model.safetensors"));
    let key = world.revision.blob_key("model.safetensors");
    let gate = world.store.server.hold(move |seen| seen.is("GET", &key));
    let repair = world.machine.start(&["verify", "--repair", "--json"]);
    world.store.server.wait_for("the repair", |seen| seen.iter().any(|one| one.is("GET", "blobs/")));
    let prune = world.machine.start(&["prune", "--yes"]);
    prune.wait_for("is using this cache: waiting for it");
    gate.open();
    let ran = repair.finish();
    assert_eq!(ran.code, 0, "{}", ran.text());
    assert_eq!(prune.finish().code, 0);
    world.revision.assert_pulled(&world.hub());
    world.finds(&[], &[]);
}

/// A repair that is killed while the good bytes arrive has changed nothing visible; the next one completes it.
#[test]
fn a_killed_repair_is_completed_by_the_next() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let blob = world.blob("model.safetensors");
    flip(&blob);
    let (wrong, before) = (fs::read(&blob).unwrap(), visible(&world.hub()));
    let key = world.revision.blob_key("model.safetensors");
    let gate = world.store.server.hold(move |seen| seen.is("GET", &key));
    let repair = world.machine.start(&["verify", "--repair"]);
    world.store.server.wait_for("the repair", |seen| seen.iter().any(|one| one.is("GET", "blobs/")));
    repair.kill();
    gate.open();
    world.store.server.behave();
    assert_eq!(visible(&world.hub()).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert!(fs::read(&blob).unwrap() == wrong);
    let report = world.repair(&[]);
    assert_eq!(report["quarantined"]["blobs"], 1);
    world.revision.assert_pulled(&world.hub());
    assert_eq!(fs::read_dir(world.quarantine().join("models--org--llm/blobs")).unwrap().count(), 1);
}

/// Damage that needs a bucket is left unchanged; everything else is repaired.
#[test]
fn a_repair_that_needs_a_bucket_requires_one() {
    let machine = Machine::unconfigured();
    let revision = Revision::model("org/llm").with_tree().refs(&["main", "v1"]);
    revision.write(&machine.hub());
    let reference = |name: &str| revision.dir(&machine.hub()).join("refs").join(name);
    fs::write(reference("v1"), format!("{COMMIT}\n")).unwrap();
    fs::write(reference("main"), "nonsense").unwrap();
    let before = visible(&machine.hub());
    for line in [&["verify", "--repair"][..], &["verify", "--repair", "--dry-run"]] {
        machine.run(line).refused(2, &["bucket"]);
        assert_eq!(visible(&machine.hub()), before);
    }
    assert!(!machine.hub().join(".locks").exists());
    fs::write(reference("main"), COMMIT).unwrap();
    let ran = machine.run(&["verify", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (0, vec!["repaired"]), "{}", ran.text());
    flip(&revision.blob(&machine.hub(), "config.json"));
    machine.run(&["verify", "--repair"]).refused(2, &["bucket"]);
}

/// A good copy anywhere in the cache repairs a blob, and no bucket is needed for it.
#[test]
fn a_copy_in_this_cache_needs_no_bucket() {
    let revision = Revision::model("org/llm").with_tree();
    type Lend = fn(&Machine, &Revision);
    let cases: [(&str, Lend); 6] = [
        ("another repo", |machine, revision| {
            Revision { id: "org/copy".into(), ..revision.clone() }.write(&machine.hub());
        }),
        ("another repo, which has no tree", |machine, revision| {
            Revision { id: "org/copy".into(), tree: false, ..revision.clone() }.write(&machine.hub());
        }),
        ("a real file of another revision", |machine, revision| {
            revision.clone().at(OTHER).refs(&[]).layout(Layout::Real).write(&machine.hub());
        }),
        ("the cache-wide store", |machine, revision| {
            Revision { id: "org/copy".into(), ..revision.clone() }.layout(Layout::Shared).write(&machine.hub());
        }),
        ("a payload that no repo links to", |machine, revision| {
            let copy = Revision { id: "org/copy".into(), ..revision.clone() }.layout(Layout::Shared);
            copy.write(&machine.hub());
            fs::remove_dir_all(copy.dir(&machine.hub())).unwrap();
            let tree = revision.dir(&machine.hub()).join(format!("trees/{COMMIT}.json"));
            fs::write(tree, copy.tree_json()).unwrap();
        }),
        ("the file is a real one itself", |machine, revision| {
            fs::remove_dir_all(revision.dir(&machine.hub())).unwrap();
            revision.clone().layout(Layout::Real).write(&machine.hub());
            Revision { id: "org/copy".into(), ..revision.clone() }.write(&machine.hub());
        }),
    ];
    for (what, lend) in cases {
        // With a selection, the copy is outside of what is checked.
        for line in [&[][..], &["org/llm@main"]] {
            let machine = Machine::unconfigured();
            revision.write(&machine.hub());
            lend(&machine, &revision);
            flip(&revision.snapshot(&machine.hub()).join("model.safetensors"));
            let planned = machine.run(&[&["verify", "--repair", "--dry-run", "--json"], line].concat());
            assert_eq!(
                (planned.code, outcomes(&planned.json())),
                (5, vec!["repairable"]),
                "{what}: {}",
                planned.text()
            );
            let report = succeeded(machine.run(&[&["verify", "--repair", "--json"], line].concat()));
            assert_eq!((outcomes(&report), &report["shared"]["blobs"]), (vec!["repaired"], &1.into()), "{what}");
            assert_eq!((&report["downloaded"]["blobs"], &report["quarantined"]["blobs"]), (&0.into(), &1.into()));
            let bytes = fs::read(revision.snapshot(&machine.hub()).join("model.safetensors")).unwrap();
            assert!(bytes == revision.file("model.safetensors").bytes, "{what}");
            assert_eq!(findings(&succeeded(machine.run(&["verify", "--json"]))), Vec::<String>::new(), "{what}");
        }
    }
}

/// Without a tree, the size of a missing blob is unknown, but that of its copy is known.
#[test]
fn a_missing_blob_is_copied_from_another_repo_without_a_bucket() {
    let machine = Machine::unconfigured();
    let revision = Revision::model("org/llm");
    revision.write(&machine.hub());
    Revision { id: "org/copy".into(), ..revision.clone() }.write(&machine.hub());
    fs::remove_file(revision.blob(&machine.hub(), "model.safetensors")).unwrap();
    let report = succeeded(machine.run(&["verify", "--repair", "--json"]));
    assert_eq!((outcomes(&report), &report["shared"]["blobs"]), (vec!["repaired"], &1.into()));
    revision.assert_pulled(&machine.hub());
}

/// Blobs with a copy here are not even looked up in the bucket; the others are fetched from it, in the same run.
#[test]
fn a_copy_and_the_bucket_repair_together() {
    let world = World::new(Revision::model("org/llm").with_tree());
    Revision::model("org/small").git("config.json", &world.revision.file("config.json").bytes).write(&world.hub());
    world.store.server.take_seen();
    flip(&world.blob("config.json"));
    flip(&world.blob("model.safetensors"));
    let report = world.repair(&[]);
    assert_eq!((&report["downloaded"]["blobs"], &report["shared"]["blobs"]), (&Value::from(1), &Value::from(1)));
    world.revision.assert_pulled(&world.hub());
    let small = world.revision.blob_key("config.json");
    assert!(world.store.server.take_seen().iter().all(|seen| !seen.key.ends_with(&small)));
}

/// An unreachable bucket is reported, but the damage determines the exit code.
#[test]
fn without_the_store_nothing_is_lost() {
    let mut world = World::new(Revision::model("org/llm").with_tree());
    flip(&world.blob("model.safetensors"));
    let before = visible(&world.hub());
    world.machine.connect("http://127.0.0.1:1", "team-cache", "test-region");
    let ran = world.machine.run(&["verify", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (5, vec!["left"]), "{}", ran.text());
    assert_eq!(ran.json()["failures"][0]["kind"], "unavailable");
    assert_eq!(visible(&world.hub()), before);
    let ran = world.machine.run(&["verify", "--remote"]);
    assert_eq!(ran.code, 6, "{}", ran.text());
    // The right commit of the ref is unknown: the ref is kept for a repair that can look it up.
    let world = World::new(Revision::model("org/llm").with_tree());
    let reference = world.revision.dir(&world.hub()).join("refs/main");
    fs::write(&reference, "nonsense").unwrap();
    let mut unconnected = world.machine;
    let store = world.store;
    unconnected.connect("http://127.0.0.1:1", "team-cache", "test-region");
    let ran = unconnected.run(&["verify", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (5, vec!["left"]), "{}", ran.text());
    assert_eq!(fs::read_to_string(&reference).unwrap(), "nonsense");
    drop(store);
}

impl World {
    /// Repairs the bucket. Asserts that a second run finds nothing.
    #[track_caller]
    fn repair_bucket(&self, line: &[&str]) -> Value {
        let ran = self.machine.run(&[&["verify", "--remote", "--repair", "--json"], line].concat());
        assert_eq!(ran.code, 0, "{}", ran.text());
        self.finds(&["--remote", "--deep"], &[]);
        ran.json()
    }

    /// Repairs the bucket. Asserts that it has the revision and its refs again.
    #[track_caller]
    fn repair_remote(&self, line: &[&str]) -> Value {
        let report = self.repair_bucket(line);
        self.revision.assert_published(&self.store);
        report
    }
}

#[test]
fn a_good_bucket_passes_with_one_listing() {
    let world = World::new(Revision::model("org/llm").with_tree());
    Revision::new("dataset", "org/data").git("a.csv", "a,b\n").publish(&world.store);
    world.store.put(&format!("blobs/{}.incomplete", "a".repeat(64)), "half");
    world.store.server.take_seen();
    let report = world.finds(&["--remote"], &[]);
    assert_eq!((&report["verified"]["blobs"], &report["scope"]), (&Value::from(3), &Value::from("bucket")));
    let seen = world.store.server.take_seen();
    assert!(!seen.iter().any(|one| one.key.starts_with("blobs/") || one.method == "HEAD"), "{seen:?}");
    assert!(report["notes"][0].as_str().unwrap().contains("1 objects"), "{report}");
    let report = world.finds(&["--remote", "--deep"], &[]);
    assert_eq!(report["scope"], "bucket-deep");
    let one = world.finds(&["dataset:org/data", "--remote"], &[]);
    assert_eq!(one["revisions"].as_array().unwrap().len(), 1);
    world.machine.run(&["verify", "org/lln", "--remote"]).refused(4, &["did you mean org/llm"]);
    world.machine.run(&["verify", "org/llm@v9", "--remote"]).refused(4, &["v9"]);
}

#[test]
fn missing_and_short_objects_are_uploaded_again() {
    let world = World::new(Revision::model("org/llm").with_tree());
    world.store.remove(&world.revision.blob_key("config.json"));
    world.store.put(&world.revision.blob_key("model.safetensors"), "short");
    let report = world.finds(&["--remote"], &["missing: config.json", "wrong-size: model.safetensors"]);
    assert_eq!(status(&report), "damaged");
    let planned = world.machine.run(&["verify", "--remote", "--repair", "--dry-run", "--json"]);
    assert_eq!((planned.code, outcomes(&planned.json())), (5, vec!["repairable"; 2]), "{}", planned.text());
    let report = world.repair_remote(&[]);
    assert_eq!(report["uploaded"]["blobs"], 2);
}

/// Only reading the bytes reveals it.
#[test]
fn a_flipped_byte_in_the_bucket_is_found_by_deep() {
    let world = World::new(Revision::model("org/llm").lfs("large.bin", weights(9, 20 << 20)));
    let key = world.revision.blob_key("large.bin");
    flip(&world.store.path(&key));
    world.finds(&["--remote"], &[]);
    world.finds(&["--remote", "--deep"], &["corrupt: large.bin"]);
    // The copy here is bad, too: it is not sent.
    let good = fs::read(world.blob("large.bin")).unwrap();
    flip(&world.blob("large.bin"));
    let ran = world.machine.run(&["verify", "--remote", "--deep", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (5, vec!["left"]), "{}", ran.text());
    assert_eq!(ran.json()["failures"][0]["kind"], "integrity");
    // Another repo has a good one.
    let other = Revision { id: "org/copy".into(), ..world.revision.clone() };
    other.write(&world.hub());
    fs::write(other.blob(&world.hub(), "large.bin"), good).unwrap();
    world.repair_remote(&["--deep"]);
}

#[test]
fn bad_manifests_and_refs_are_restored_from_the_cache() {
    let world = World::new(Revision::model("org/llm").with_tree().refs(&["main", "v1"]));
    world.store.put(&world.revision.manifest_key(), "{\"repo\": \"org/llm\"");
    world.store.put("refs/org__llm/v1", "nonsense");
    let manifest = world.revision.manifest_key();
    let found = [format!("bad-manifest: {}", manifest.rsplit('/').next().unwrap()), "bad-ref: v1".into()];
    world.finds(&["--remote"], &found.each_ref().map(String::as_str));
    world.repair_remote(&[]);
    // The manifest is gone, and both refs dangle.
    world.store.remove(&manifest);
    world.finds(&["--remote"], &["dangling-ref: main", "dangling-ref: v1"]);
    world.repair_remote(&[]);
}

/// A ref of the dataset names the manifest of the model with the same id, so readers ignore it.
#[test]
fn a_ref_that_leads_to_another_repo_is_written_again() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let dataset = Revision::new("dataset", "org/llm").at(OTHER).git("a.csv", "a,b\n");
    dataset.write(&world.hub());
    world.machine.ok(&["push"]);
    let key = "refs-v2/datasets--org--llm/main";
    assert_eq!(world.store.text(key), OTHER);
    world.store.put(key, COMMIT);
    let report = world.finds(&["--remote"], &["dangling-ref: main"]);
    assert_eq!(report["findings"][0]["key"], key);
    assert!(report["findings"][0]["detail"].as_str().unwrap().contains("manifest is that of org/llm"), "{report}");
    world.repair_bucket(&[]);
    assert_eq!(world.store.text(key), OTHER);
}

/// The bucket's ref names a commit that is here, but the local ref names another one: the bucket's ref is not moved back to
/// that.
#[test]
fn a_ref_keeps_its_commit_if_its_revision_is_here() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let newer = Revision::model("org/llm").at(OTHER).git("new.txt", "new").refs(&["main"]);
    newer.publish(&world.store);
    Revision { refs: vec!["v2".into()], ..newer.clone() }.write(&world.hub());
    world.store.remove(&newer.manifest_key());
    world.finds(&["--remote"], &["dangling-ref: main"]);
    world.repair_bucket(&[]);
    assert_eq!(world.store.get("refs/org__llm/main"), OTHER.as_bytes());
    // The commit that it names is not here: it gets the commit of the local ref.
    world.store.put("refs/org__llm/main", "f".repeat(40));
    world.repair_bucket(&[]);
    assert_eq!(world.store.get("refs/org__llm/main"), COMMIT.as_bytes());
}

#[test]
fn damage_without_a_good_copy_is_left_and_nothing_is_sent() {
    let world = World::new(Revision::model("org/llm"));
    let other = Revision::model("org/gone").at(OTHER).git("only.txt", "only there");
    other.publish(&world.store);
    world.store.remove(&other.blob_key("only.txt"));
    world.store.put("refs/org__gone/old", "f".repeat(40));
    let before = world.store.objects();
    let ran = world.machine.run(&["verify", "--remote", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (5, vec!["left"; 2]), "{}", ran.text());
    assert!(
        ran.json()["notes"][0].as_str().unwrap().contains("`hf-cache-sync pull --fallback hf-hub`"),
        "{}",
        ran.text()
    );
    assert_eq!(world.store.objects(), before);
}

/// The keys of a team whose prefix begins with one of our folders look like refs.
#[test]
fn keys_of_other_teams_are_not_damage() {
    let world = World::new(Revision::model("org/llm"));
    let other = Machine::new(&world.store);
    world.revision.write(&other.hub());
    for prefix in ["refs", "refs/team", "refs-v2/team", "blobs", "manifests", "manifests/team"] {
        other.ok(&["push", "--prefix", prefix]);
    }
    for args in [&[][..], &["--deep"], &["--repair"]] {
        let ran = world.machine.run(&[&["verify", "--remote", "--json"], args].concat());
        assert_eq!((ran.code, ran.json()["findings"].as_array().unwrap().len()), (0, 0), "{}", ran.text());
        assert!(ran.json()["notes"][0].as_str().unwrap().contains("were not checked"), "{}", ran.text());
    }
    // What only this team can have written is reported.
    world.store.put("refs/org__llm/old", "f".repeat(40));
    let ran = world.machine.run(&["verify", "--remote", "--json"]);
    assert_eq!((ran.code, &ran.json()["findings"][0]["reason"]), (5, &"dangling-ref".into()), "{}", ran.text());
}

/// Blobs that neither this cache nor the bucket has are fetched from the Hub.
#[cfg(feature = "fallback")]
#[test]
fn the_hub_provides_what_the_bucket_lacks() {
    use crate::harness::hub_server::Hub;
    let mut world = World::unpushed(Revision::model("org/llm"));
    let hub = Hub::start(std::slice::from_ref(&world.revision));
    world.machine.set("HF_ENDPOINT", &hub.url);
    flip(&world.blob("model.safetensors"));
    fs::remove_file(world.blob("config.json")).unwrap();
    let ran = world.machine.run(&["verify", "--repair", "--json"]);
    assert_eq!((ran.code, outcomes(&ran.json())), (5, vec!["left", "left"]), "{}", ran.text());
    let report = world.repair(&["--fallback", "hf-hub"]);
    assert_eq!((outcomes(&report), &report["from_hub"]["blobs"]), (vec!["repaired"; 2], &Value::from(2)));
    world.revision.assert_pulled(&world.hub());
}

/// The second repair waits for the first, and finds that nothing is left to do.
#[test]
fn two_repairs_take_turns() {
    let world = World::new(Revision::model("org/llm").with_tree());
    let tree = world.revision.dir(&world.hub()).join(format!("trees/{COMMIT}.json"));
    fs::write(&tree, "{\"format_version\": 1, \"files\"").unwrap();
    flip(&world.blob("model.safetensors"));
    let key = world.revision.manifest_key();
    world.store.server.take_seen();
    let gate = world.store.server.hold(move |seen| seen.is("GET", &key));
    let first = world.machine.start(&["verify", "--repair", "--json"]);
    world.store.server.wait_for("the repair", |seen| seen.iter().any(|one| one.is("GET", "manifests/")));
    let second = world.machine.start(&["verify", "--repair", "--json"]);
    second.wait_for("is repairing this cache: waiting for it");
    gate.open();
    for repair in [first, second] {
        let ran = repair.finish();
        assert_eq!((ran.code, outcomes(&ran.json())), (0, vec!["repaired"; 2]), "{}", ran.text());
    }
    world.revision.assert_pulled(&world.hub());
    for folder in ["blobs", "trees"] {
        let kept = world.quarantine().join("models--org--llm").join(folder);
        assert_eq!(fs::read_dir(kept).unwrap().count(), 1, "{folder}");
    }
    world.finds(&[], &[]);
}
