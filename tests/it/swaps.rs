//! Folders of the cache that are swapped for links while a command runs: nothing outside the cache changes, and the next
//! run succeeds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::cache::{COMMIT, OTHER, Revision};
use crate::harness::machine::Machine;
use crate::harness::store::Store;
use crate::harness::{listing, weights};

/// A folder outside the cache that looks like a whole cache, with other content under the very names that a command
/// writes to or deletes.
struct Outside {
    path: PathBuf,
    before: std::collections::BTreeMap<String, String>,
}

impl Outside {
    /// Imitates the cache at `hub`, every folder of which a link may lead to.
    fn imitating(hub: &Path, path: PathBuf) -> Outside {
        imitate(hub, &path);
        let before = listing(&path);
        Outside { path, before }
    }

    #[track_caller]
    fn assert_untouched(&self, when: &str) {
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
                // What is written to, or locked, could get another mode.
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            }
        }
    }
}

/// Swaps a folder of the cache for a link to the same folder outside, at once. Returns what swaps it back.
fn swap(hub: &Path, outside: &Path, folder: &str) -> impl FnOnce() + use<> {
    let (at, aside) = (hub.join(folder), hub.join("aside"));
    symlink(outside.join(folder), &aside).unwrap();
    let exchange = move || {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, &at, CWD, &aside, RenameFlags::EXCHANGE).unwrap();
        aside
    };
    let exchange_back = exchange.clone();
    exchange();
    move || fs::remove_file(exchange_back()).unwrap()
}

/// Two revisions with a small, a medium and a large blob each.
fn revisions() -> [Revision; 2] {
    let revision = |seed| {
        Revision::new("model", "org/name")
            .git("config.json", format!("{{\"seed\": {seed}}}"))
            .lfs("sub/medium.bin", weights(seed, 700_000))
            .lfs("large.bin", weights(seed + 10, 9 << 20))
            .with_tree()
    };
    [revision(1).refs(&["main"]), revision(2).at(OTHER).refs(&["v2"])]
}

fn folders(one: &Revision) -> Vec<String> {
    let in_repo = ["", "/blobs", "/refs", "/snapshots", "/trees"].map(|part| format!("{}{part}", one.folder()));
    let state = ["", "/partial", "/staging"].map(|part| format!(".locks/.hf-cache-sync{part}"));
    let locks = [".locks".to_string(), format!(".locks/{}", one.folder())];
    in_repo.into_iter().chain(state).chain(locks).collect()
}

/// A store with both revisions, and a machine that has the first.
fn setup() -> (Store, Machine, [Revision; 2]) {
    let store = Store::new();
    let source = Machine::new(&store);
    let revisions = revisions();
    revisions.iter().for_each(|revision| revision.write(&source.hub()));
    source.ok(&["push"]);
    let machine = Machine::new(&store);
    machine.ok(&["pull", "org/name"]);
    (store, machine, revisions)
}

/// Everything that pulling and removing the second revision leaves or takes.
fn outside_of(store: &Store, machine: &Machine) -> Outside {
    let other = Machine::new(store);
    other.ok(&["pull-all"]);
    other.ok(&["pull", "org/name", "-r", "v2"]);
    for folder in ["partial", "staging"] {
        fs::create_dir_all(other.hub().join(".locks/.hf-cache-sync").join(folder)).unwrap();
    }
    Outside::imitating(&other.hub(), machine.home().join("outside"))
}

#[test]
fn a_folder_swapped_for_a_link_during_a_download_is_not_written_through() {
    let (_, _, [one, _]) = setup();
    let blobs = ["config.json", "sub/medium.bin", "large.bin"];
    for (number, folder) in folders(&one).into_iter().enumerate() {
        let blob = blobs[number % blobs.len()];
        let (store, machine, [_, two]) = setup();
        let (hub, outside) = (machine.hub(), outside_of(&store, &machine));
        let key = two.blob_key(blob);
        let pull = || machine.start(&["pull", "org/name", "-r", "v2"]);
        let (output, swap_back) = store.change_during(pull, &key, || swap(&hub, &outside.path, &folder));
        outside.assert_untouched(&format!("{folder} during {blob}: {output:#?}"));
        swap_back();
        let case = format!("{folder} during {blob}: {output:#?}");
        output.nothing_internal();
        if output.code == 0 {
            two.assert_pulled(&hub);
        } else {
            assert!(output.stderr.contains("a symbolic link"), "{case}");
        }
        machine.ok(&["pull", "org/name", "-r", "v2"]);
        two.assert_pulled(&hub);
        one.assert_pulled(&hub);
        outside.assert_untouched(&case);
    }
}

/// Swaps folders again and again, at random moments, while commands pull and remove.
#[test]
#[expect(clippy::print_stderr, reason = "the seed, to repeat a failure")]
fn folders_swapped_at_random_moments_are_not_written_through() {
    let seed = std::env::var("SWAP_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let rounds = std::env::var("SWAP_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    eprintln!("SWAP_SEED={seed} SWAP_ROUNDS={rounds}");
    let (store, machine, [one, two]) = setup();
    let (hub, outside) = (machine.hub(), outside_of(&store, &machine));
    let started = Instant::now();
    for round in 0..rounds {
        let is_done = Arc::new(AtomicBool::new(false));
        let swapper = std::thread::spawn({
            let (hub, path, is_done, folders) = (hub.clone(), outside.path.clone(), is_done.clone(), folders(&one));
            move || {
                let mut random = fastrand::Rng::with_seed(seed.wrapping_add(round));
                let mut pause = |most| std::thread::sleep(Duration::from_micros(random.u64(..most)));
                let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(round));
                while !is_done.load(Ordering::SeqCst) {
                    let folder = &folders[random.usize(..folders.len())];
                    if hub.join(folder).is_dir() {
                        let swap_back = swap(&hub, &path, folder);
                        pause(3000);
                        swap_back();
                    }
                    pause(3000);
                }
            }
        });
        let commands = [
            &["pull", "org/name", "-r", "v2"][..],
            &["verify", "org/name", "--repair"],
            &["rm", "org/name", "-r", "v2", "--yes"],
        ];
        for line in commands {
            let output = machine.run(line);
            assert!((0..=6).contains(&output.code), "{line:?}: {output:#?}");
            output.nothing_internal();
        }
        is_done.store(true, Ordering::SeqCst);
        swapper.join().unwrap();
        outside.assert_untouched(&format!("round {round} of seed {seed}"));
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

/// A file that has another name outside, in place of what a download writes to or locks.
#[test]
fn a_hard_link_in_place_of_a_partial_file_is_not_written_through() {
    let (store, machine, [_, two]) = setup();
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
        // The others are in place.
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
