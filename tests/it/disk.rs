//! File systems that fail in the middle: full, out of inodes, over quota, read-only, or without permission. The message says
//! so, nothing incomplete is visible, and the next run completes the work.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

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

/// Asserts that everything that huggingface_hub would find matches its name, and that every ref names a complete revision.
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

/// Asserts that another run, with enough space, completes and leaves no trace of the failure.
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

/// Uses up all inodes except this many.
fn take_inodes(folder: &Path, spare: usize) {
    fs::create_dir(folder).unwrap();
    let mut taken = 0;
    while fs::File::create(folder.join(taken.to_string())).is_ok() {
        taken += 1;
    }
    (0..spare.min(taken)).for_each(|number| fs::remove_file(folder.join(number.to_string())).unwrap());
}

/// At every step at which no more files can be created.
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
            let filler = hub.join("filler");
            let pull = || machine.start(&["pull", "org/name"]);
            let (output, _) = store.change_during(pull, &key, || fs::write(&filler, vec![1; 24 << 20]));
            assert_sound(&hub, &revision, blob);
            assert_clean(&output, &["No space left"], blob);
            assert!(output.stderr.contains("free some space"), "{output:#?}");
            fs::remove_file(filler).unwrap();
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
            let pull = || machine.start(&["pull", "org/name"]);
            let (output, read_only) = store.change_during(pull, &key, || Mount::read_only(&hub));
            assert_clean(&output, &["ead-only"], blob);
            drop(read_only);
            assert_sound(&hub, &revision, blob);
            // Nothing could be cleaned up, but everything resumable is resumed.
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
        // Another revision has created the folders.
        let other = Revision::new("model", "org/name").git("other.json", "{}").at(OTHER).refs(&["other"]);
        other.write(&hub);
        let key = revision.blob_key("medium.bin");
        let pull = || machine.start_as_owner(&["pull", "org/name"]);
        let (output, ()) = store.change_during(pull, &key, || {
            fs::set_permissions(hub.join(folder), fs::Permissions::from_mode(0o555)).unwrap();
        });
        fs::set_permissions(hub.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
        assert_clean(&output, &["ermission denied"], folder);
        assert_eq!(output.code, 3, "{output:#?}");
        assert_sound(&hub, &revision, folder);
        let output = machine.run_as_owner(&["pull", "org/name"]);
        assert_eq!(output.code, 0, "{output:#?}");
        revision.assert_pulled(&hub);
    }
}

/// As `ulimit -f` sets it. Unhandled, the signal would end the process without a message.
#[test]
fn a_limit_on_the_size_of_files() {
    let (_store, machine, revision) = setup();
    let output = crate::harness::machine::run(machine.script("ulimit -f 4096; exec \"$0\" pull org/name"));
    assert_clean(&output, &["too large"], "ulimit");
    assert_sound(&machine.hub(), &revision, "ulimit");
    assert!(!revision.blob(&machine.hub(), "large.bin").exists());
    assert_completes(&machine, &revision);
}

/// Writes a file until the file system has no room for another byte.
fn take_blocks(file: &Path) {
    let mut file = fs::File::create(file).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

/// Fills the file system at `hub`.
fn fill(hub: &Path, with: &str) {
    fs::create_dir_all(hub.join(".locks")).unwrap();
    match with {
        "inodes" => take_inodes(&hub.join(".locks/filler"), 0),
        _ => take_blocks(&hub.join(".locks/filler")),
    }
}

/// Deleting something to free space must not need space.
#[test]
fn a_full_file_system_can_be_pruned() {
    with_mounts("disk::a_full_file_system_can_be_pruned", || {
        let lines: [&[&str]; 4] = [
            &["prune", "--max-size", "0B", "--include-referenced", "--yes"],
            &["prune", "--max-size", "0B", "--require-remote", "--yes"],
            &["rm", "org/name", "--yes"],
            &["rm", "org/name", "--require-remote", "--yes"],
        ];
        let cases = lines.into_iter().flat_map(|line| ["inodes", "blocks"].map(|with| (line, with)));
        for ((line, with), has_pulled) in cases.flat_map(|case| [(case, true), (case, false)]) {
            let (store, machine, revision) = setup();
            let hub = machine.hub();
            let _mount = Mount::new(&hub, "size=16m,nr_inodes=200");
            if has_pulled {
                machine.ok(&["pull", "org/name"]);
            } else {
                revision.write(&hub);
                machine.ok(&["push"]);
            }
            // A blob that nothing uses, without a lock file.
            let unused = weights(7, 5000);
            fs::write(revision.dir(&hub).join("blobs").join(sha256(&unused)), &unused).unwrap();
            revision.age(&hub, 9);
            // Before the command, or once it has decided, right before its first deletion.
            let output = if line.contains(&"--require-remote") && has_pulled {
                let (delete, key) = (|| machine.start(line), "refs/org__name/main");
                store.change_during(delete, key, || fill(&hub, with)).0
            } else {
                fill(&hub, with);
                machine.run(line)
            };
            assert_eq!(output.code, 0, "{line:?} without {with}: {output:#?}");
            let left: Vec<String> = listing(&hub).into_keys().filter(|path| path.starts_with("models--")).collect();
            assert!(left.is_empty(), "{line:?} without {with}: {left:?}");
            let left = listing(&hub.join(".locks/.hf-cache-sync/staging"));
            assert!(left.keys().all(String::is_empty), "{line:?} without {with}: {left:?}");
        }
    });
}

/// Needs root, loop devices and btrfs-progs, and is skipped without them. The messages have a test that always runs.
#[test]
#[ignore = "btrfs counts what a quota allows only now and then, so that this may fail on a busy machine"]
fn a_quota_that_is_used_up() {
    let (store, machine, revision) = setup();
    let hub = machine.hub();
    let Some(_mount) = Mount::image(hub.parent().unwrap(), "btrfs", 256) else {
        return crate::harness::skip("disk::a_quota_that_is_used_up", "no btrfs can be mounted");
    };
    let btrfs = |line: &[&str]| {
        let output = Command::new("btrfs").args(line).arg(&hub).output().unwrap();
        assert!(output.status.success(), "{line:?}: {output:?}");
    };
    btrfs(&["subvolume", "create"]);
    btrfs(&["quota", "enable"]);
    // Its own metadata counts as well.
    for (quota, blob) in [("2M", "large.bin"), ("24M", "large.bin"), ("24M", "medium.bin")] {
        btrfs(&["qgroup", "limit", quota]);
        let output = match quota {
            "2M" => machine.run(&["pull", "org/name"]),
            _ => {
                let fill = || take_blocks(&hub.join("filler"));
                store.change_during(|| machine.start(&["pull", "org/name"]), &revision.blob_key(blob), fill).0
            }
        };
        assert_clean(&output, &["quota exceeded", "Quota exceeded"], blob);
        assert!(output.stderr.contains("your disk quota is used up: free some space"), "{output:#?}");
        assert_sound(&hub, &revision, blob);
        btrfs(&["qgroup", "limit", "none"]);
        let _ = fs::remove_file(hub.join("filler"));
        assert_completes(&machine, &revision);
        // Data that uses up a quota can be pruned.
        revision.age(&hub, 9);
        let used = hub.join("filler");
        btrfs(&["qgroup", "limit", "12M"]);
        take_blocks(&used);
        machine.ok(&["prune", "--max-size", "0B", "--include-referenced", "--yes"]);
        assert!(!revision.dir(&hub).exists());
        fs::remove_file(used).unwrap();
    }
}

/// Two repos with one revision each, in a cache and in a bucket.
fn two_repos() -> (Store, Machine, [Revision; 2]) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::new("model", "org/one").lfs("one.bin", weights(5, 50_000)).git("a.json", "{}").with_tree();
    let two = Revision::new("model", "org/two").at(OTHER).lfs("two.bin", weights(6, 50_000)).git("b.json", "[]");
    let all = [one.refs(&["main"]), two.refs(&["main", "v1.0"])];
    all.iter().for_each(|revision| revision.write(&machine.hub()));
    machine.ok(&["push"]);
    all.iter().for_each(|revision| revision.age(&machine.hub(), 9));
    (store, machine, all)
}

/// The file system stops a prune or `rm` after it has decided what to delete: nothing else is deleted, clients see a sound
/// cache, and the next run completes.
#[test]
fn deletions_that_the_file_system_refuses() {
    with_mounts("disk::deletions_that_the_file_system_refuses", || {
        let lines: [&[&str]; 2] = [
            &["prune", "--max-size", "0B", "--require-remote", "--yes", "--orphan-grace", "0"],
            &["rm", "org/one", "org/two", "--require-remote", "--yes"],
        ];
        for line in lines {
            for fault in ["", "snapshots", "refs", "blobs", "snapshots/COMMIT", "trees", ".locks", "read-only"] {
                let when = format!("{line:?}, {fault}");
                let (store, machine, all) = two_repos();
                let hub = machine.hub();
                let [one, two] = &all;
                let closed = match fault {
                    ".locks" => hub.join(".locks/.hf-cache-sync/staging"),
                    _ => one.dir(&hub).join(fault.replace("COMMIT", &one.commit)),
                };
                // The listing proves it for the plan, and it is read right before the deletion.
                let key = "refs/org__two/v1.0";
                let delete = || machine.start_as_owner(line);
                let (output, mount) = store.change_during(delete, key, || match fault {
                    "read-only" => Some(Mount::read_only(&hub)),
                    _ => {
                        fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
                        None
                    }
                });
                drop(mount);
                for revision in &all {
                    assert_sound(&hub, revision, &when);
                    // It is complete, or gone.
                    if revision.snapshot(&hub).exists() {
                        let refs = revision.refs.iter().all(|name| revision.dir(&hub).join("refs").join(name).exists());
                        assert!(refs || fault == "read-only", "{when}: refs are gone");
                    }
                }
                if fault != "read-only" && fault != ".locks" {
                    assert!(!two.dir(&hub).exists(), "{when}: {:#?}", listing(&hub));
                }
                if closed.exists() && fault != "read-only" {
                    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
                }
                assert_clean(&output, &["ermission denied", "ead-only"], &when);
                assert_eq!(output.code, if fault == "read-only" { 1 } else { 3 }, "{when}: {output:#?}");
                assert!(!output.stderr.contains("u{a}") && !output.stderr.contains("kept"), "{when}: {output:#?}");
                let again = machine.run_as_owner(line);
                assert!(again.code == 0 || (again.code == 4 && line[0] == "rm"), "{when}: {again:#?}");
                if again.code == 0 {
                    assert!(!one.dir(&hub).exists() && !two.dir(&hub).exists(), "{when}: {:#?}", listing(&hub));
                }
                for (id, revision) in ["org/one", "org/two"].iter().zip(&all) {
                    for name in &revision.refs {
                        let pulled = machine.run_as_owner(&["pull", id, "-r", name]);
                        assert_eq!(pulled.code, 0, "{when}: {pulled:#?}");
                    }
                    revision.assert_pulled(&hub);
                }
            }
        }
    });
}

/// The file system stops a repair while it fetches a good blob: the bad one stays in place, or is in the quarantine.
#[test]
fn a_repair_that_the_file_system_refuses() {
    with_mounts("disk::a_repair_that_the_file_system_refuses", || {
        let line = ["verify", "--repair"];
        for fault in ["full", "inodes", "read-only", "blobs"] {
            let (store, machine, [one, _]) = two_repos();
            let hub = machine.hub();
            fs::remove_dir_all(&hub).unwrap();
            let _mount = Mount::new(&hub, "size=8m,nr_inodes=100");
            one.write(&hub);
            machine.ok(&["push"]);
            let blob = one.blob(&hub, "one.bin");
            let bad = weights(8, 50_000);
            fs::write(&blob, &bad).unwrap();
            let filler = hub.join(".locks/filler");
            let repair = || machine.start_as_owner(&line);
            let (output, mount) = store.change_during(repair, &one.blob_key("one.bin"), || match fault {
                "read-only" => Some(Mount::read_only(&hub)),
                "blobs" => {
                    fs::set_permissions(one.dir(&hub).join("blobs"), fs::Permissions::from_mode(0o500)).unwrap();
                    None
                }
                "inodes" => {
                    take_inodes(&filler, 0);
                    None
                }
                _ => {
                    let _ = fs::write(&filler, vec![1; 8 << 20]);
                    None
                }
            });
            drop(mount);
            output.nothing_internal();
            // The remaining damage determines the exit code. By then, the repair may need no more files.
            if fault != "inodes" || output.code != 0 {
                assert_eq!(output.code, 5, "{fault}: {output:#?}");
                let words = ["No space left", "inodes", "ead-only", "ermission denied"];
                assert!(words.iter().any(|words| output.stderr.contains(words)), "{fault}: {output:#?}");
                assert!(fs::read(&blob).unwrap() == bad, "{fault}: the bad bytes are not in their place");
            }
            fs::set_permissions(one.dir(&hub).join("blobs"), fs::Permissions::from_mode(0o755)).unwrap();
            let _ = fs::remove_file(&filler);
            let _ = fs::remove_dir_all(&filler);
            let again = machine.run_as_owner(&line);
            assert_eq!(again.code, 0, "{fault}: {again:#?}");
            assert_eq!(fs::read(&blob).unwrap(), one.file("one.bin").bytes, "{fault}");
            let quarantine = listing(&hub.join(".locks/.hf-cache-sync/quarantine"));
            let kept = quarantine.iter().filter(|(_, what)| what.starts_with("file"));
            assert_eq!(kept.count(), 1, "{fault}: {quarantine:#?}");
        }
    });
}
