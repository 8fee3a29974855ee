//! File systems that fail in the middle: full, out of inodes, over quota, read-only, or without permission. The message
//! says so, nothing torn is visible, and the next run completes the work.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::cache::{OTHER, Revision};
use crate::harness::machine::{Machine, Output};
use crate::harness::mount::{Mount, with_mounts};
use crate::harness::store::Store;
use crate::harness::{git_sha1, listing, sha256, weights};

fn revision() -> Revision {
    Revision::new("model", "org/name")
        .git("config.json", "{\"a\": 1}")
        .git("sub/tokenizer.json", "{\"b\": 2}")
        .lfs("medium.bin", weights(1, 700_000))
        .lfs("large.bin", weights(2, 9 << 20))
        .with_tree()
        .refs(&["main"])
}

fn setup() -> (Store, Machine, Revision) {
    let store = Store::new();
    let (source, revision) = (Machine::new(&store), revision());
    revision.write(&source.hub());
    source.ok(&["push"]);
    let machine = Machine::new(&store);
    (store, machine, revision)
}

/// Asserts that everything that huggingface_hub would find is what its name says, and that every ref leads to a whole
/// revision.
#[track_caller]
fn assert_sound(hub: &Path, revision: &Revision, when: &str) {
    let dir = revision.dir(hub);
    assert!(!dir.exists() || dir.join("snapshots").is_dir(), "{when}: {:#?}", listing(&dir));
    for entry in fs::read_dir(dir.join("blobs")).into_iter().flatten().map(Result::unwrap) {
        let (name, bytes) = (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        if name.len() == 64 || name.len() == 40 {
            assert!(name == sha256(&bytes) || name == git_sha1(&bytes), "{when}: {name} is torn");
        }
    }
    for (path, _) in listing(&dir).iter().filter(|(_, what)| what.starts_with("link")) {
        assert!(dir.join(path).exists(), "{when}: {path} leads nowhere");
    }
    if dir.join("refs/main").exists() {
        revision.assert_pulled(hub);
    }
}

#[track_caller]
fn assert_clean(output: &Output, words: &[&str], when: &str) {
    assert!(output.code == 1 || output.code == 3, "{when}: {output:#?}");
    assert!(words.iter().any(|words| output.stderr.contains(words)), "{when}: {output:#?}");
    output.nothing_internal();
}

/// Runs it again, with room, and leaves no trace of the failure.
#[track_caller]
fn assert_completes(machine: &Machine, revision: &Revision) {
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
    let state = machine.hub().join(".locks/.hf-cache-sync");
    for folder in ["partial", "staging"] {
        let left: Vec<String> = listing(&state.join(folder)).into_keys().filter(|path| !path.is_empty()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Uses up the inodes, but for some.
fn take_inodes(folder: &Path, spare: usize) {
    fs::create_dir(folder).unwrap();
    let mut taken = 0;
    while fs::File::create(folder.join(taken.to_string())).is_ok() {
        taken += 1;
    }
    (0..spare.min(taken)).for_each(|number| fs::remove_file(folder.join(number.to_string())).unwrap());
}

/// Whatever the step at which no more files can be created.
#[test]
fn a_file_system_without_inodes() {
    with_mounts("disk::a_file_system_without_inodes", || {
        let (store, machine, revision) = setup();
        let hub = machine.hub();
        let _mount = Mount::new(&hub, "size=64m,nr_inodes=200");
        let filler = hub.join(".locks/filler");
        let mut failures = 0;
        for spare in 0.. {
            fs::create_dir_all(hub.join(".locks")).unwrap();
            take_inodes(&filler, spare);
            let output = machine.run(&["pull", "org/name"]);
            let when = format!("{spare} inodes");
            assert_sound(&hub, &revision, &when);
            if output.code == 0 {
                break;
            }
            failures += 1;
            assert_clean(&output, &["inodes"], &when);
            fs::remove_dir_all(&filler).unwrap();
            assert_completes(&machine, &revision);
            for entry in fs::read_dir(&hub).unwrap().map(Result::unwrap) {
                fs::remove_dir_all(entry.path()).unwrap();
            }
            assert!(spare < 100, "{output:#?}");
        }
        revision.assert_pulled(&hub);
        assert!(failures > 10, "only {failures} steps failed");
        drop(store);
    });
}

/// The disk becomes full during the download of one blob.
#[test]
fn a_disk_that_becomes_full() {
    with_mounts("disk::a_disk_that_becomes_full", || {
        for blob in ["config.json", "medium.bin", "large.bin"] {
            let (store, machine, revision) = setup();
            let hub = machine.hub();
            let _mount = Mount::new(&hub, "size=24m");
            let key = revision.blob_key(blob);
            let gate = store.server.hold({
                let key = key.clone();
                move |request| request.is("GET", &key)
            });
            let running = machine.start(&["pull", "org/name"]);
            store.server.wait_for("the blob", |seen| seen.iter().any(|request| request.is("GET", &key)));
            let filler = hub.join("filler");
            let _ = fs::write(&filler, vec![1; 24 << 20]);
            gate.open();
            let output = running.finish();
            assert_sound(&hub, &revision, blob);
            assert_clean(&output, &["No space left"], blob);
            assert!(output.stderr.contains("free some space"), "{output:#?}");
            fs::remove_file(filler).unwrap();
            store.server.behave();
            assert_completes(&machine, &revision);
        }
    });
}

/// The file system turns read-only during the download of one blob.
#[test]
fn a_disk_that_becomes_read_only() {
    with_mounts("disk::a_disk_that_becomes_read_only", || {
        for blob in ["config.json", "medium.bin", "large.bin"] {
            let (store, machine, revision) = setup();
            let hub = machine.hub();
            fs::create_dir_all(&hub).unwrap();
            let key = revision.blob_key(blob);
            let gate = store.server.hold({
                let key = key.clone();
                move |request| request.is("GET", &key)
            });
            let running = machine.start(&["pull", "org/name"]);
            store.server.wait_for("the blob", |seen| seen.iter().any(|request| request.is("GET", &key)));
            let read_only = Mount::read_only(&hub);
            gate.open();
            let output = running.finish();
            assert_clean(&output, &["ead-only"], blob);
            drop(read_only);
            assert_sound(&hub, &revision, blob);
            store.server.behave();
            // Nothing could be cleaned up, but whatever can be resumed is.
            machine.ok(&["pull", "org/name"]);
            revision.assert_pulled(&hub);
        }
    });
}

/// The permission to write is lost during the download of one blob.
#[test]
fn a_folder_that_may_no_longer_be_written_to() {
    for folder in ["models--org--name/blobs", "models--org--name/snapshots", "models--org--name/refs"] {
        let (store, machine, revision) = setup();
        let hub = machine.hub();
        // Another revision has brought the folders.
        let other = Revision::new("model", "org/name").git("other.json", "{}").at(OTHER).refs(&["other"]);
        other.write(&hub);
        let key = revision.blob_key("medium.bin");
        let gate = store.server.hold({
            let key = key.clone();
            move |request| request.is("GET", &key)
        });
        let running = machine.start_as_owner(&["pull", "org/name"]);
        store.server.wait_for("the blob", |seen| seen.iter().any(|request| request.is("GET", &key)));
        fs::set_permissions(hub.join(folder), fs::Permissions::from_mode(0o555)).unwrap();
        gate.open();
        let output = running.finish();
        fs::set_permissions(hub.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
        assert_clean(&output, &["ermission denied"], folder);
        assert_eq!(output.code, 3, "{output:#?}");
        assert_sound(&hub, &revision, folder);
        store.server.behave();
        let output = machine.run_as_owner(&["pull", "org/name"]);
        assert_eq!(output.code, 0, "{output:#?}");
        revision.assert_pulled(&hub);
    }
}

/// As `ulimit -f` sets it. Without care, the signal would end the process without a word.
#[test]
fn a_limit_on_the_size_of_files() {
    let (_store, machine, revision) = setup();
    let output = crate::harness::machine::run(machine.script("ulimit -f 4096; exec \"$0\" pull org/name"));
    assert_clean(&output, &["too large"], "ulimit");
    assert_sound(&machine.hub(), &revision, "ulimit");
    assert!(!revision.blob(&machine.hub(), "large.bin").exists());
    assert_completes(&machine, &revision);
}
