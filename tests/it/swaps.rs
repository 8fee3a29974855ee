//! Folders of the cache that are swapped for links while a command runs: nothing outside the cache changes, and the next
//! run succeeds.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision};
use crate::harness::machine::Machine;
use crate::harness::s3::S3Request;
use crate::harness::store::Store;
use crate::harness::{listing, weights};

/// The marker of the cache-wide store.
const MARKER: &str = "blobs/.huggingface-shared-blobs";

/// A folder outside the cache that looks like a whole cache, with different content under the names that a command writes to
/// or deletes.
pub struct Outside {
    pub path: PathBuf,
    before: std::collections::BTreeMap<String, String>,
}

impl Outside {
    /// Imitates the cache at `hub`, so that any of its folders can be the target of a link.
    pub fn imitating(hub: &Path, path: PathBuf) -> Outside {
        imitate(hub, &path);
        // A store with any other marker would be left alone anyway.
        if let Ok(mut marker) = fs::File::options().write(true).open(path.join(MARKER)) {
            marker.write_all(b"1\n").unwrap();
            marker.set_len(2).unwrap();
        }
        let before = listing(&path);
        Outside { path, before }
    }

    #[track_caller]
    pub fn assert_untouched(&self, when: &str) {
        assert_eq!(listing(&self.path), self.before, "{when}");
    }
}

fn imitate(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let path = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => imitate(&entry.path(), &path),
            kind if kind.is_symlink() => symlink(fs::read_link(entry.path()).unwrap(), &path).unwrap(),
            _ => {
                fs::write(&path, "mine").unwrap();
                // Files that are written to or locked could get another mode.
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            }
        }
    }
}

/// Atomically swaps a folder of the cache for a link to the same folder outside. Returns a closure that swaps it back; if
/// the link has been deleted, it deletes the folder, too.
pub fn swap(hub: &Path, outside: &Path, folder: &str) -> impl FnOnce() + use<> {
    swap_if_there(hub, outside, folder).expect("the folder exists")
}

/// Like [`swap`], for a folder that a running command may delete at any moment; `None` if it has.
fn swap_if_there(hub: &Path, outside: &Path, folder: &str) -> Option<impl FnOnce() + use<>> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let (at, aside) = (hub.join(folder), hub.join("aside"));
    symlink(outside.join(folder), &aside).unwrap();
    if let Err(error) = renameat_with(CWD, &at, CWD, &aside, RenameFlags::EXCHANGE) {
        assert_eq!(error, rustix::io::Errno::NOENT, "{}", at.display());
        fs::remove_file(aside).unwrap();
        return None;
    }
    Some(move || match renameat_with(CWD, &at, CWD, &aside, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::NOENT) => fs::remove_dir_all(aside).unwrap(),
        swapped => swapped.map(|()| fs::remove_file(aside).unwrap()).unwrap(),
    })
}

/// Two revisions with three small blobs each.
fn small_revisions() -> [Revision; 2] {
    let revision = |seed: u64| {
        Revision::new("model", "org/name")
            .git("config.json", format!("{{\"seed\": {seed}}}"))
            .git("sub/notes.txt", format!("notes {seed}"))
            .lfs("small.bin", weights(seed + 20, 30_000))
            .with_tree()
    };
    [revision(1).refs(&["main"]), revision(2).at(OTHER).refs(&["v2"])]
}

/// Two revisions with a medium and a large blob as well.
fn revisions() -> [Revision; 2] {
    let [one, two] = small_revisions();
    let with_more = |revision: Revision, seed| {
        revision.lfs("sub/medium.bin", weights(seed, 700_000)).lfs("large.bin", weights(seed + 10, 9 << 20))
    };
    [with_more(one, 1), with_more(two, 2)]
}

/// The folders of the tool's own state, some of which every command writes to.
const STATE: [&str; 7] = ["", "/partial", "/staging", "/manifests", "/quarantine", "/unverified", "/uploads"];

/// The folders of a cache that has, or will have, both revisions.
fn folders(two: &Revision) -> Vec<String> {
    let in_repo = ["", "/blobs", "/refs", "/snapshots", "/trees"].map(|part| format!("{}{part}", two.folder()));
    let in_snapshots = ["", "/sub"].map(|part| format!("{}/snapshots/{OTHER}{part}", two.folder()));
    let state = STATE.map(|part| format!(".locks/.hf-cache-sync{part}"));
    let locks = [".locks".to_string(), format!(".locks/{}", two.folder())];
    in_repo.into_iter().chain(in_snapshots).chain(state).chain(locks).collect()
}

/// A store with both revisions, and a machine that has the first.
fn setup(revisions: [Revision; 2]) -> (Store, Machine, [Revision; 2]) {
    let store = Store::new();
    let source = Machine::new(&store);
    revisions.iter().for_each(|revision| revision.write(&source.hub()));
    source.ok(&["push"]);
    let machine = Machine::new(&store);
    machine.ok(&["pull", "org/name"]);
    (store, machine, revisions)
}

/// Returns everything that pulling and removing either revision creates or deletes, on another machine.
fn outside_of(store: &Store) -> (Machine, Outside) {
    let other = Machine::new(store);
    other.ok(&["pull-all"]);
    other.ok(&["pull", "org/name", "-r", "v2"]);
    for folder in STATE {
        fs::create_dir_all(other.hub().join(format!(".locks/.hf-cache-sync{folder}"))).unwrap();
    }
    let outside = Outside::imitating(&other.hub(), other.home().join("outside"));
    (other, outside)
}

#[test]
fn a_folder_swapped_for_a_link_during_a_download_is_not_written_through() {
    let (store, _, [one, two]) = setup(revisions());
    let (_other, outside) = outside_of(&store);
    let (pull, pull_all) = (&["pull", "org/name", "-r", "v2"][..], &["pull-all"][..]);
    let is_written =
        |folder: &String| !["/manifests", "/quarantine", "/uploads"].iter().any(|end| folder.ends_with(end));
    let of_pull = folders(&two).into_iter().filter(is_written).map(|folder| (pull, folder));
    let of_pull_all = ["", "/snapshots"].map(|part| format!("{}{part}", two.folder()));
    let of_pull_all = of_pull_all.into_iter().chain([".locks/.hf-cache-sync/manifests".to_string()]);
    let blobs = ["config.json", "sub/medium.bin", "large.bin"];
    for (number, (line, folder)) in of_pull.chain(of_pull_all.map(|folder| (pull_all, folder))).enumerate() {
        let blob = blobs[number % blobs.len()];
        let machine = Machine::new(&store);
        let hub = machine.hub();
        let (present, wanted) = if line == pull { (&one, &two) } else { (&two, &one) };
        present.write(&hub);
        if folder.contains(OTHER) {
            machine.ok(&["pull", "org/name", "-r", "v2", "--include", "sub/notes.txt"]);
        }
        fs::create_dir_all(hub.join(&folder)).unwrap();
        let pull = || machine.start(line);
        let (output, swap_back) =
            store.change_during(pull, &wanted.blob_key(blob), || swap(&hub, &outside.path, &folder));
        let case = format!("{line:?}, {folder} during {blob}: {output:#?}");
        outside.assert_untouched(&case);
        swap_back();
        output.nothing_internal();
        if output.code == 0 {
            wanted.assert_pulled(&hub);
        } else {
            assert!(output.stderr.contains("a symbolic link"), "{case}");
        }
        machine.ok(line);
        wanted.assert_pulled(&hub);
        present.assert_pulled(&hub);
        outside.assert_untouched(&case);
    }
}

/// Right before the first deletion, when everything has been decided.
#[test]
fn a_folder_swapped_for_a_link_before_a_deletion_is_not_deleted_through() {
    let lines: [&[&str]; 2] = [
        &["prune", "--max-size", "0B", "--require-remote", "--yes", "--orphan-grace", "0"],
        &["rm", "org/name", "--require-remote", "--yes"],
    ];
    let (store, machine, [one, two]) = setup(small_revisions());
    let (hub, (_other, outside)) = (machine.hub(), outside_of(&store));
    machine.ok(&["pull", "org/name", "-r", "v2"]);
    for (number, folder) in folders(&two).into_iter().enumerate() {
        let line = lines[number % lines.len()];
        two.age(&hub, 9);
        fs::create_dir_all(hub.join(&folder)).unwrap();
        let delete = || machine.start(line);
        let (output, swap_back) =
            store.change_during(delete, "refs/org__name/v2", || swap(&hub, &outside.path, &folder));
        let case = format!("{line:?}, {folder}: {output:#?}");
        outside.assert_untouched(&case);
        swap_back();
        output.nothing_internal();
        assert!((0..=6).contains(&output.code), "{case}");
        let again = machine.run(line);
        assert!(again.code == 0 || (again.code == 4 && line[0] == "rm"), "{case}: {again:#?}");
        assert!(!two.dir(&hub).exists(), "{case}: {again:#?}");
        outside.assert_untouched(&case);
        machine.ok(&["pull", "org/name"]);
        machine.ok(&["pull", "org/name", "-r", "v2"]);
        [&one, &two].iter().for_each(|revision| revision.assert_pulled(&hub));
    }
}

/// The store that all repos share, when a payload joins it, and when one is deleted from it.
#[test]
fn the_cache_wide_store_swapped_for_a_link_stays_as_it_is() {
    let revision = || small_revisions().map(|revision| revision.layout(Layout::Shared));
    let payload = revision()[1].file("small.bin").xet_hash();
    let pull = &["pull", "org/name", "-r", "v2"][..];
    let prune = &["prune", "--max-size", "0B", "--require-remote", "--yes", "--orphan-grace", "0"][..];
    let (store, _, [_, two]) = setup(revision());
    let with_shared_store = || {
        let machine = Machine::new(&store);
        fs::create_dir_all(machine.hub().join("blobs").join(&payload[..2])).unwrap();
        fs::write(machine.hub().join(MARKER), "1\n").unwrap();
        machine
    };
    let other = with_shared_store();
    other.ok(pull);
    assert!(other.hub().join("blobs").join(&payload[..2]).join(&payload).exists());
    let outside = Outside::imitating(&other.hub(), other.home().join("outside"));
    for (line, folder) in [pull, prune].into_iter().flat_map(|line| [(line, "blobs"), (line, "blobs/xx")]) {
        let (folder, machine) = (folder.replace("xx", &payload[..2]), with_shared_store());
        let hub = machine.hub();
        let key = if line == pull { two.blob_key("small.bin") } else { "refs/org__name/v2".to_string() };
        if line == prune {
            machine.ok(pull);
            two.age(&hub, 9);
        }
        let start = || machine.start(line);
        let (output, swap_back) = store.change_during(start, &key, || swap(&hub, &outside.path, &folder));
        let case = format!("{line:?}, {folder}: {output:#?}");
        outside.assert_untouched(&case);
        swap_back();
        output.nothing_internal();
        assert!((0..=6).contains(&output.code), "{case}");
        machine.ok(line);
        machine.ok(pull);
        two.assert_pulled(&hub);
        outside.assert_untouched(&case);
    }
}

#[test]
fn a_quarantine_swapped_for_a_link_is_not_written_through() {
    let folders = ["", "/models--org--name", "/models--org--name/blobs"];
    let (store, machine, [one, _]) = setup(small_revisions());
    let (hub, (_other, outside)) = (machine.hub(), outside_of(&store));
    for root in [&hub, &outside.path] {
        fs::create_dir_all(root.join(".locks/.hf-cache-sync/quarantine/models--org--name/blobs")).unwrap();
    }
    let outside = Outside { before: listing(&outside.path), ..outside };
    // The first request precedes all repairs; the one for the blob comes after the bad bytes are quarantined.
    for (folder, key) in folders.iter().flat_map(|folder| [(folder, ""), (folder, "blobs/")]) {
        let folder = format!(".locks/.hf-cache-sync/quarantine{folder}");
        let bad = weights(9, 30_000);
        fs::write(one.blob(&hub, "small.bin"), &bad).unwrap();
        let repair = || machine.start(&["verify", "--repair"]);
        let (output, swap_back) = store.change_during(repair, key, || swap(&hub, &outside.path, &folder));
        let case = format!("{folder} before {key}: {output:#?}");
        outside.assert_untouched(&case);
        swap_back();
        output.nothing_internal();
        assert!([0, 1, 5].contains(&output.code), "{case}");
        machine.ok(&["verify", "--repair"]);
        one.assert_pulled(&hub);
        let kept = one.blob(&hub.join(".locks/.hf-cache-sync/quarantine"), "small.bin");
        assert_eq!(fs::read(&kept).unwrap(), bad, "{case}");
        fs::remove_file(kept).unwrap();
        outside.assert_untouched(&case);
    }
}

#[test]
fn a_folder_of_upload_records_swapped_for_a_link_is_not_written_through() {
    let revision = Revision::model("org/name").lfs("large.bin", weights(1, 20 << 20));
    let key = revision.blob_key("large.bin");
    let folder = ".locks/.hf-cache-sync/uploads";
    // Before a record is written, before it is extended, and before it is removed.
    for (method, query) in [("POST", "uploads"), ("PUT", "partNumber"), ("POST", "uploadId")] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let (hub, path) = (machine.hub(), machine.home().join("outside"));
        revision.write(&hub);
        let record = format!("{folder}/{}.json", revision.etag("large.bin"));
        fs::create_dir_all(hub.join(folder)).unwrap();
        fs::create_dir_all(path.join(folder)).unwrap();
        fs::write(path.join(record), "mine").unwrap();
        let outside = Outside { before: listing(&path), path };
        let is_held = {
            let key = key.clone();
            move |request: &S3Request| request.is(method, &key) && request.query.contains(query)
        };
        let gate = store.server.hold(is_held.clone());
        let push = machine.start(&["push"]);
        store.server.wait_for(query, |seen| seen.iter().any(&is_held));
        let swap_back = swap(&hub, &outside.path, folder);
        gate.open();
        let output = push.finish();
        store.server.behave();
        outside.assert_untouched(&format!("{query}: {output:#?}"));
        swap_back();
        output.nothing_internal();
        machine.ok(&["push"]);
        revision.assert_published(&store);
        outside.assert_untouched(query);
    }
}

/// Swaps folders again and again, at random moments, while commands pull and remove.
#[test]
#[expect(clippy::print_stderr, reason = "the seed, to repeat a failure")]
fn folders_swapped_at_random_moments_are_not_written_through() {
    let seed = std::env::var("SWAP_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let rounds = std::env::var("SWAP_ROUNDS").map_or(8, |rounds| rounds.parse().unwrap());
    eprintln!("SWAP_SEED={seed} SWAP_ROUNDS={rounds}");
    let (store, machine, [one, two]) = setup(revisions());
    let (hub, (_other, outside)) = (machine.hub(), outside_of(&store));
    let started = Instant::now();
    for round in 0..rounds {
        // While a folder is swapped, this test leaves the cache alone.
        let (is_done, is_swapped) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let swapper = std::thread::spawn({
            let (hub, path, folders) = (hub.clone(), outside.path.clone(), folders(&two));
            let (is_done, is_swapped) = (is_done.clone(), is_swapped.clone());
            move || {
                let mut random = fastrand::Rng::with_seed(seed.wrapping_add(round));
                let mut pause = |most| std::thread::sleep(Duration::from_micros(random.u64(..most)));
                let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(round));
                while !is_done.load(Ordering::SeqCst) {
                    let folder = &folders[random.usize(..folders.len())];
                    let swapped = is_swapped.lock().unwrap();
                    if hub.join(folder).is_dir()
                        && let Some(swap_back) = swap_if_there(&hub, &path, folder)
                    {
                        pause(3000);
                        swap_back();
                    }
                    drop(swapped);
                    pause(3000);
                }
            }
        });
        let commands = [
            &["pull", "org/name", "-r", "v2"][..],
            &["verify", "org/name", "--repair"],
            &["rm", "org/name", "-r", "v2", "--yes"],
            &["pull-all"],
            &["prune", "--max-size", "0B", "--require-remote", "--yes", "--orphan-grace", "0"],
        ];
        for line in commands {
            if line[0] == "prune" {
                let _unswapped = is_swapped.lock().unwrap();
                if two.dir(&hub).exists() {
                    two.age(&hub, 9);
                }
            }
            let output = machine.run(line);
            assert!((0..=6).contains(&output.code), "{line:?}: {output:#?}");
            output.nothing_internal();
        }
        is_done.store(true, Ordering::SeqCst);
        swapper.join().unwrap();
        outside.assert_untouched(&format!("round {round} of seed {seed}"));
        machine.ok(&["pull", "org/name"]);
        machine.ok(&["pull", "org/name", "-r", "v2"]);
        two.assert_pulled(&hub);
        one.assert_pulled(&hub);
        machine.ok(&["verify", "org/name"]);
        machine.ok(&["rm", "org/name", "-r", "v2", "--yes"]);
        if started.elapsed() > Duration::from_secs(20) {
            break;
        }
    }
}

/// A hard link to an outside file, in place of a file that a download writes to or locks.
#[test]
fn a_hard_link_in_place_of_a_partial_file_is_not_written_through() {
    let (store, machine, [_, two]) = setup(revisions());
    let etag = two.etag("large.bin");
    let state = machine.hub().join(".locks/.hf-cache-sync");
    let outside = machine.home().join("outside");
    fs::create_dir(&outside).unwrap();
    // The size of the blob, as if an earlier run had left it.
    let planted = [
        (state.join("partial").join(&etag), two.file("large.bin").bytes.len() as u64),
        (state.join("partial").join(format!("{etag}.parts")), 24),
        (state.join("partial").join(format!("{etag}.lock")), 0),
        (machine.hub().join(".locks").join(two.folder()).join(format!("{etag}.lock")), 0),
    ];
    fs::create_dir_all(state.join("partial")).unwrap();
    for (number, (path, size)) in planted.iter().enumerate() {
        let file = outside.join(number.to_string());
        fs::File::create(&file).unwrap().set_len(*size).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let _ = fs::remove_file(path);
        fs::hard_link(&file, path).unwrap();
    }
    let before = listing(&outside);
    machine.ok(&["pull", "org/name", "-r", "v2"]);
    two.assert_pulled(&machine.hub());
    assert_eq!(listing(&outside), before);
    drop(store);
}

/// huggingface_hub's scan complains about a repo without `snapshots/`, and a killed pull may not be run again soon.
#[test]
fn a_repo_never_lacks_its_snapshots() {
    let revision = Revision::model("org/new").lfs("large.bin", weights(3, 9 << 20)).lfs("small.bin", weights(4, 1000));
    for last in ["small.bin", "large.bin", "config.json"] {
        let store = Store::new();
        revision.publish(&store);
        let machine = Machine::new(&store);
        let dir = revision.dir(&machine.hub());
        let key = revision.blob_key(last);
        let gate = store.server.hold(move |request| request.is("GET", &key));
        let running = machine.start(&["pull", "org/new"]);
        // The other files are in place.
        let others = revision.files.iter().filter(|file| file.path != last);
        for file in others {
            let blob = revision.blob(&machine.hub(), &file.path);
            crate::harness::wait_until("the other blobs", || {
                assert!(!dir.exists() || dir.join("snapshots").is_dir());
                blob.exists()
            });
        }
        running.kill();
        assert!(dir.join("snapshots").is_dir(), "{:?}", listing(&dir));
        gate.open();
        machine.ok(&["pull", "org/new"]);
        revision.assert_pulled(&machine.hub());
    }
    // An older version, or the user, has left a repo without it.
    let store = Store::new();
    revision.publish(&store);
    let machine = Machine::new(&store);
    let dir = revision.dir(&machine.hub());
    fs::create_dir_all(dir.join("blobs")).unwrap();
    let key = revision.blob_key("large.bin");
    let gate = store.server.hold({
        let key = key.clone();
        move |request| request.is("GET", &key)
    });
    let running = machine.start(&["pull", "org/new"]);
    store.server.wait_for("the blob", |seen| seen.iter().any(|request| request.is("GET", &key)));
    assert!(dir.join("snapshots").is_dir());
    running.kill();
    gate.open();
    assert!(!dir.join("snapshots").join(COMMIT).exists());
}
