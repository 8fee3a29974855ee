//! Caches as they are found in the field: with things in them that huggingface_hub has not put there, of other users, on
//! file servers, edited by hand.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision, indented};
use crate::harness::machine::{BINARY, Machine, run};
use crate::harness::store::Store;
use crate::harness::weights;
use serde_json::Value;

fn make_pipe(path: &Path) {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A store with `org/one` and `org/two`, and a machine that has the first of them, with its tree.
fn scene() -> (Store, Machine, Revision) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").with_tree().git("LICENSE", "MIT License\n");
    let two = Revision::model("org/two").at(OTHER);
    one.write(&machine.hub());
    one.publish(&store);
    two.publish(&store);
    (store, machine, one)
}

/// Where something else than a file can stand, and whether `status` has to name it.
fn places(machine: &Machine, one: &Revision) -> Vec<(PathBuf, bool)> {
    let (hub, dir) = (machine.hub(), one.dir(&machine.hub()));
    let locks = hub.join(".locks");
    vec![
        (dir.join("trees").join(format!("{COMMIT}.json")), true),
        (dir.join("refs/main"), true),
        (one.blob(&hub, "model.safetensors"), true),
        (one.snapshot(&hub).join("config.json"), true),
        (one.snapshot(&hub).join("LICENSE"), true),
        (one.snapshot(&hub).join(".lock"), true),
        (dir.join(".no_exist").join(COMMIT).join("x"), false),
        (dir.join("blobs").join(format!("{}.incomplete", one.etag("config.json"))), false),
        (hub.join("blobs/.huggingface-shared-blobs"), false),
        (hub.join("models--org--pipe"), true),
        (hub.join("CACHEDIR.TAG"), false),
        (locks.join(one.folder()).join(format!("{}.lock", one.etag("model.safetensors"))), false),
        (locks.join(".hf-cache-sync/lock"), false),
        (locks.join(".hf-cache-sync/watch.lock"), false),
        (locks.join(".hf-cache-sync/partial").join(one.etag("model.safetensors")), false),
        (locks.join(".hf-cache-sync/uploads").join(format!("{}.json", one.etag("model.safetensors"))), false),
    ]
}

#[test]
fn a_folder_beside_the_cache_is_told_from_it() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    let hub = machine.hub().canonicalize().unwrap();
    let above = hub.parent().unwrap().join("above");
    std::fs::create_dir(&above).unwrap();
    std::os::unix::fs::symlink(&hub, above.join("hub")).unwrap();
    let meant = format!("did you mean {}?", above.join("hub").display());
    for line in [&["push"][..], &["list"], &["status"]] {
        let ran = machine.run(&[line, &["--cache-dir", above.to_str().unwrap()]].concat());
        assert!(ran.code == 0 && ran.stderr.contains(&meant), "{line:?}: {ran:#?}");
    }
    let repo = hub.join("models--org--name");
    let ran = machine.run(&["list", "--cache-dir", repo.to_str().unwrap()]);
    assert!(ran.stderr.contains(&format!("did you mean {}?", hub.display())), "{ran:#?}");
    for right in [&hub, &hub.join("none")] {
        let ran = machine.run(&["list", "--cache-dir", right.to_str().unwrap()]);
        assert!(!ran.stderr.contains("did you mean"), "{ran:#?}");
    }
}

/// No shell expands these behind a `=`, or in single quotes.
#[test]
fn variables_in_a_path_on_the_command_line_are_expanded() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    let hub = machine.hub();
    Revision::model("org/name").write(&hub);
    let elsewhere = machine.home().join("x");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&hub, elsewhere.join("hub")).unwrap();
    machine.set("WHERE", "x");
    for path in ["~/x/hub", "$HOME/x/hub", "${HOME}/$WHERE/hub"] {
        assert!(machine.ok(&["list", &format!("--cache-dir={path}")]).contains("org/name"), "{path}");
    }
}

#[test]
fn nothing_waits_for_a_pipe_and_it_is_named_and_left() {
    let (_store, machine, one) = scene();
    for place in 0..places(&machine, &one).len() {
        let (_store, machine, one) = scene();
        let (path, named) = places(&machine, &one).swap_remove(place);
        make_pipe(&path);
        let name = path.strip_prefix(machine.hub()).unwrap().display().to_string();
        for line in [
            &["status", "--json"][..],
            &["push", "--dry-run"],
            &["push"],
            &["diff"],
            &["list", "--revisions"],
            &["doctor"],
            &["prune", "--dry-run", "--max-gb", "0"],
            &["pull", "org/one", "--dry-run"],
            &["pull", "org/one"],
            &["pull", "org/two"],
            &["pull-all"],
            &["prune", "--max-gb", "1000"],
        ] {
            let ran = machine.run(line);
            assert!((0..=6).contains(&ran.code), "{line:?} with a pipe at {name}: {ran:#?}");
            if line[0] == "status" && named {
                assert!(ran.stdout.contains(&name), "{name}: {ran:#?}");
            }
            if ran.code != 0 {
                assert!(ran.stderr.contains(&name) || line[0] == "doctor", "{line:?} with a pipe at {name}: {ran:#?}");
            }
        }
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo(), "{name}");
    }
}

#[test]
fn sockets_and_endless_devices_are_no_files_either() {
    for what in ["socket", "/dev/zero"] {
        let (_store, machine, one) = scene();
        let (hub, dir) = (machine.hub(), one.dir(&machine.hub()));
        let tree = dir.join("trees").join(format!("{COMMIT}.json"));
        let mut sockets = Vec::new();
        for path in
            [&tree, &one.blob(&hub, "config.json"), &dir.join("refs/other"), &one.snapshot(&hub).join("LICENSE")]
        {
            let _ = fs::remove_file(path);
            match what {
                "socket" => {
                    // The path of a socket has to be short.
                    let near = machine.home().join("s");
                    sockets.push(UnixListener::bind(&near).unwrap());
                    fs::rename(near, path).unwrap();
                }
                device => symlink(device, path).unwrap(),
            }
        }
        for line in [&["push"][..], &["diff"], &["status"], &["list"], &["prune"], &["pull", "org/one"], &["doctor"]] {
            let ran = machine.run(line);
            assert!((0..=6).contains(&ran.code), "{line:?} with {what}: {ran:#?}");
        }
    }
}

#[test]
fn a_watch_goes_on_beside_pipes() {
    let (store, machine, one) = scene();
    make_pipe(&one.dir(&machine.hub()).join("trees").join(format!("{COMMIT}.json")));
    make_pipe(&one.dir(&machine.hub()).join("refs/other"));
    for poll in [&[][..], &["--poll", "0.2"]] {
        let watch = machine.start(&[&["watch", "--debounce", "0.1"], poll].concat());
        watch.wait_for("named pipe");
        watch.interrupt();
        let ran = watch.finish();
        assert_eq!(ran.code, 0, "{ran:#?}");
    }
    one.assert_published(&store);
}

#[test]
fn huge_files_in_the_place_of_small_ones_are_not_read() {
    let (store, machine, one) = scene();
    let dir = one.dir(&machine.hub());
    let state = machine.hub().join(".locks/.hf-cache-sync/uploads");
    fs::create_dir_all(&state).unwrap();
    for path in [
        dir.join("trees").join(format!("{COMMIT}.json")),
        dir.join("refs/huge"),
        machine.hub().join("blobs/.huggingface-shared-blobs"),
        state.join(format!("{}.json", one.etag("model.safetensors"))),
        machine.home().join("token"),
    ] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(&path).unwrap().set_len(20 << 30).unwrap();
    }
    let ran = machine.run(&["push"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("too large") && ran.stderr.contains("refs/huge"), "{ran:#?}");
    one.assert_published(&store);
    for line in [&["status"][..], &["diff"], &["list"], &["doctor"], &["prune", "--dry-run"]] {
        let ran = machine.run(line);
        assert!(ran.code <= 1 && ran.code >= 0, "{line:?}: {ran:#?}");
    }
}

#[test]
fn a_configuration_and_a_token_that_are_pipes() {
    let (_store, mut machine, _) = scene();
    let path = machine.work().join(".hf-cache-sync.yaml");
    make_pipe(&path);
    machine.run(&["status"]).refused(2, &[".hf-cache-sync.yaml", "a named pipe"]);
    fs::remove_file(&path).unwrap();
    // What a shell passes is at the other end of something that runs.
    let line = "exec \"$0\" --config <(printf 'cache:\\n  max_local_gb: 7\\n') status";
    let ran = run(machine.program("/bin/bash", &["-c", line, BINARY]));
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stdout.contains("7.0 GiB"), "{ran:#?}");
    assert_eq!(machine.run(&["status", "--config", "/dev/null"]).code, 0);
    make_pipe(&machine.home().join("token"));
    machine.set("HF_TOKEN_PATH", &machine.home().join("token").display().to_string());
    machine.set("HF_ENDPOINT", "http://127.0.0.1:9");
    machine.run(&["pull", "org/nothing", "--fallback", "hf-hub"]).refused(2, &["token", "a named pipe"]);
}

/// What systems leave, as files and as folders.
const LITTER: [&str; 12] = [
    ".DS_Store",
    "._twin",
    "Thumbs.db",
    "desktop.ini",
    ".nfs000000000012345600000001",
    ".fuse_hidden0000000100000002",
    "~syncthing~x.tmp",
    ".config.json.swp",
    "@eaDir/SYNO@INDEX",
    "#recycle/old",
    ".AppleDouble/x",
    ".Trash-1000/info/x.trashinfo",
];

fn scatter(dir: &Path) {
    for name in LITTER {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("litter in {}", dir.display())).unwrap();
    }
}

#[test]
fn litter_in_every_folder_is_nothing() {
    for layout in [Layout::Links, Layout::Real, Layout::Shared] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let one = Revision::model("org/one").git("sub/x.txt", "x").refs(&["main", "refs/pr/1"]).layout(layout);
        let hub = machine.hub();
        let dir = one.dir(&hub);
        one.write(&hub);
        fs::create_dir_all(dir.join("trees")).unwrap();
        fs::create_dir_all(hub.join(".locks").join(one.folder())).unwrap();
        let folders = ["", "blobs", "snapshots", "refs", "refs/refs", "refs/refs/pr", "trees"];
        folders.iter().for_each(|name| scatter(&dir.join(name)));
        for place in [&hub, &hub.join(".locks"), &one.snapshot(&hub), &one.snapshot(&hub).join("sub")] {
            scatter(place);
        }
        // Twins of what is there; a deleted ref in a bin has a commit in it.
        for twin in ["refs/._main", "refs/refs/pr/._1", "blobs/._x", "snapshots/._x", "refs/main~"] {
            fs::write(dir.join(twin), COMMIT).unwrap();
        }
        fs::write(dir.join("refs/#recycle/gone"), COMMIT).unwrap();
        fs::write(dir.join("blobs").join(format!("._{}", one.etag("config.json"))), "twin").unwrap();
        fs::write(hub.join(format!("._{}", one.folder())), "twin").unwrap();

        let status = machine.run(&["status", "--json"]).json();
        assert_eq!(status["problems"], serde_json::json!([]), "{layout:?}");
        let ran = machine.run(&["push"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{layout:?}: {ran:#?}");
        assert!(!ran.stdout.contains("skipped"), "{layout:?}: {ran:#?}");
        one.assert_published(&store);
        assert_eq!(store.keys().iter().filter(|key| key.starts_with("refs/")).count(), 2, "{:?}", store.keys());
        let ran = machine.run(&["diff", "--exit-code"]);
        assert_eq!(ran.code, 0, "{layout:?}: {ran:#?}");
        let list = machine.run(&["list", "--json"]).json();
        assert_eq!(list["problems"], 0);
        assert_eq!(list["repos"][0]["revisions"][0]["files"], 3, "{layout:?}: {list}");
        assert_eq!(list["repos"][0]["refs"].as_array().unwrap().len(), 2);
        let prune = machine.run(&["prune", "--dry-run", "--max-gb", "1000", "--json"]).json();
        assert_eq!((&prune["skipped"], &prune["freed"]), (&serde_json::json!([]), &serde_json::json!(0)), "{layout:?}");
        // And it does not keep a revision from going.
        let ran = machine.run(&["prune", "--max-gb", "0", "--include-referenced", "--orphan-grace", "0", "--json"]);
        assert_eq!(ran.json()["evicted"].as_array().unwrap().len(), 1, "{layout:?}: {ran:#?}");
        assert!(!one.snapshot(&hub).exists());
    }
}

#[test]
fn a_file_of_the_commit_travels_whatever_it_is_called() {
    for layout in [Layout::Links, Layout::Real, Layout::Hardlinks] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let one = Revision::model("org/one")
            .git(".DS_Store", "a Mac's, in git")
            .git("._config.json", "a twin, in git")
            .git("notes~", "a backup")
            .git("@eaDir/deep/x", "in a folder")
            .lfs("sub/Thumbs.db", b"pictures\0")
            .with_tree()
            .layout(layout);
        one.write(&machine.hub());
        scatter(&one.snapshot(&machine.hub()).join("@eaDir/deep"));
        let ran = machine.run(&["push"]);
        assert_eq!(ran.code, 0, "{layout:?}: {ran:#?}");
        one.assert_published(&store);
        assert_eq!(machine.run(&["diff", "--exit-code"]).code, 0, "{layout:?}");
        let list = machine.run(&["list", "--json"]).json();
        assert_eq!(list["repos"][0]["revisions"][0]["files"], 7, "{layout:?}: {list}");
        let other = Machine::new(&store);
        other.ok(&["pull", "org/one"]);
        one.assert_pulled(&other.hub());
        assert_eq!(other.run(&["diff", "--exit-code"]).code, 0, "{layout:?}");
    }
}

/// What libraries write into a snapshot.
fn add_strangers(one: &Revision, hub: &Path) -> [&'static str; 4] {
    let snapshot = one.snapshot(hub);
    fs::write(snapshot.join(".lock"), "").unwrap();
    fs::write(snapshot.join("model.engine"), weights(9, 500_000)).unwrap();
    fs::create_dir(snapshot.join("__pycache__")).unwrap();
    fs::write(snapshot.join("__pycache__/modeling.cpython-312.pyc"), "\0pyc").unwrap();
    fs::write(snapshot.join("config_resolved.json"), "{}").unwrap();
    [".lock", "model.engine", "__pycache__/modeling.cpython-312.pyc", "config_resolved.json"]
}

#[test]
fn what_is_not_of_the_commit_stays_out_and_is_said() {
    use std::os::unix::ffi::OsStrExt;
    for layout in [Layout::Links, Layout::Real, Layout::Shared, Layout::Hardlinks] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let one = Revision::model("org/one").with_tree().layout(layout);
        one.write(&machine.hub());
        let names = add_strangers(&one, &machine.hub());
        let snapshot = one.snapshot(&machine.hub());
        symlink("/etc/hostname", snapshot.join("elsewhere")).unwrap();
        symlink("../../blobs/".to_string() + &"0".repeat(40), snapshot.join("nowhere")).unwrap();
        fs::write(snapshot.join(std::ffi::OsStr::from_bytes(b"not-\xff-utf8")), "x").unwrap();
        fs::write(snapshot.join("back\\slash"), "x").unwrap();
        make_pipe(&snapshot.join("pipe"));
        let ran = machine.run(&["push", "--json"]);
        assert_eq!(ran.code, 0, "{layout:?}: {ran:#?}");
        let report = ran.json();
        let skipped = &report["skipped"][0];
        assert_eq!(skipped["reason"], "unlisted", "{layout:?}: {report}");
        assert_eq!(skipped["files"].as_array().unwrap().len(), 9, "{layout:?}: {report}");
        for name in names {
            assert!(skipped["files"].to_string().contains(name), "{name}: {report}");
        }
        one.assert_published(&store);
        let manifest: Value = serde_json::from_slice(&store.get(&one.manifest_key())).unwrap();
        assert_eq!(manifest["tree"], serde_json::from_slice::<Value>(&one.tree_json()).unwrap());
        assert_eq!(store.keys().iter().filter(|key| key.starts_with("blobs/")).count(), 2);
        let text = machine.run(&["push"]);
        assert!(text.stdout.contains("9 files not part of this commit"), "{text:#?}");
        assert_eq!(machine.run(&["diff", "--exit-code"]).code, 0, "{layout:?}");

        // A machine whose client wrote no tree adds nothing to what the bucket knows.
        let older = Machine::new(&store);
        Revision { tree: false, ..one.clone() }.write(&older.hub());
        add_strangers(&one, &older.hub());
        let before = store.objects();
        let ran = older.run(&["push"]);
        assert_eq!(ran.code, 0, "{layout:?}: {ran:#?}");
        assert_eq!(store.objects(), before, "{layout:?}");
    }
}

#[test]
fn without_a_tree_a_real_file_among_links_is_a_stranger() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").git("copied.json", "a copy of a blob");
    one.write(&machine.hub());
    add_strangers(&one, &machine.hub());
    // This one has the bytes of a blob: a client that could not link it.
    let copied = one.snapshot(&machine.hub()).join("copied.json");
    fs::remove_file(&copied).unwrap();
    fs::write(&copied, "a copy of a blob").unwrap();
    let report = machine.run(&["push", "--json"]).json();
    assert_eq!(report["skipped"][0]["reason"], "unlinked", "{report}");
    assert_eq!(report["skipped"][0]["files"].as_array().unwrap().len(), 4, "{report}");
    one.assert_published(&store);
    // Where there are no links at all, nothing tells them apart.
    let real = Revision::model("org/real").layout(Layout::Real);
    real.write(&machine.hub());
    machine.ok(&["push", "org/real"]);
    real.assert_published(&store);
}

#[test]
fn a_bucket_that_has_strangers_keeps_them() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").with_tree();
    // As 0.1.0 publishes it.
    let more = Revision { tree: false, ..one.clone() }.git("engine", "made by a library");
    more.publish(&store);
    one.write(&machine.hub());
    let before = store.objects();
    let ran = machine.run(&["push"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("not of the commit"), "{ran:#?}");
    assert_eq!(store.objects(), before);
}

/// Legal everywhere but on Windows, and handled by huggingface_hub on Linux.
fn names() -> Vec<String> {
    let mut names: Vec<String> = [
        "a:b",
        "c:/d",
        "sub/x:y.txt",
        "aux",
        "con.txt/nul",
        "star*question?quote\"less<more>pipe|",
        "trailing dot.",
        "trailing space ",
        " leading",
        "ünï/名前.txt",
        "nfc-\u{e9}",
        "nfd-e\u{301}",
        "emoji-😀.json",
        "-dash",
        "%41%2f+percent&amp;",
        "~tilde",
        "$HOME",
        "...",
        "#x",
        "=cmd",
    ]
    .map(String::from)
    .into();
    names.push("l".repeat(255));
    names.push(format!("{}deep", "d/".repeat(150)));
    names.push(format!("{}deeper", "e/".repeat(1300)));
    names
}

#[test]
fn names_that_are_legal_here_travel() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut one = Revision::model("org/one").with_tree();
    for (number, name) in names().iter().enumerate() {
        one = one.git(name, format!("file {number}"));
    }
    one.write(&machine.hub());
    let ran = machine.run(&["push"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:#?}");
    one.assert_published(&store);
    let manifest: Value = serde_json::from_slice(&store.get(&one.manifest_key())).unwrap();
    assert_eq!(manifest["tree"], serde_json::from_slice::<Value>(&one.tree_json()).unwrap());
    let other = Machine::new(&store);
    let ran = other.run(&["pull", "org/one"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    one.assert_pulled(&other.hub());
    assert_eq!(other.run(&["diff", "--exit-code"]).code, 0);
    assert_eq!(other.run(&["status", "--json"]).json()["problems"], serde_json::json!([]));
    let ran = other.run(&["prune", "--max-gb", "0", "--include-referenced", "--orphan-grace", "0"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(!one.snapshot(&other.hub()).exists(), "{ran:#?}");
}

#[test]
fn a_name_that_cannot_travel_is_named_and_the_rest_goes_on() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let plain = Revision::model("org/one").with_tree();
    let one = plain.clone().git("sub\\k.txt", "backslash").git("bell\u{7}", "control");
    one.write(&machine.hub());
    let ran = machine.run(&["push"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("backslash") && ran.stderr.contains("control character"), "{ran:#?}");
    assert!(!ran.stderr.contains('\u{7}'), "{ran:#?}");
    plain.assert_published(&store);
    let manifest: Value = serde_json::from_slice(&store.get(&one.manifest_key())).unwrap();
    assert!(manifest.get("tree").is_none(), "earlier versions refuse a manifest with such a tree");
    assert!(manifest["unportable_tree"]["files"].get("sub\\k.txt").is_some(), "{manifest:#}");
    let other = Machine::new(&store);
    let pulled = other.run(&["pull", "org/one"]);
    assert!(pulled.code == 0 && pulled.stderr.contains("2 files of this revision cannot be pulled"), "{pulled:#?}");
    let tree = fs::read(one.dir(&other.hub()).join("trees").join(format!("{COMMIT}.json"))).unwrap();
    assert_eq!(tree, one.tree_json(), "with it huggingface_hub knows that the snapshot is not complete");
    assert!(!one.snapshot(&other.hub()).join("sub\\k.txt").exists());
    // The bucket loses it by no further push.
    other.ok(&["push"]);
    assert_eq!(store.get(&one.manifest_key()), indented(&manifest, b"  "));
}

#[test]
fn what_can_be_no_ref_stops_no_push_and_no_diff() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one");
    one.write(&machine.hub());
    let refs = one.dir(&machine.hub()).join("refs");
    let names = [
        ".gitkeep",
        ".nomedia",
        ".main.AbC123",
        "main.lock",
        "main.bak",
        "main.orig",
        "main (conflicted copy).txt",
        "main.sync-conflict-20260101-120000-ABCDEFG",
    ];
    for name in names {
        fs::write(refs.join(name), "").unwrap();
    }
    fs::write(refs.join(".main.XyZ789"), COMMIT).unwrap();
    machine.ok(&["push"]);
    one.assert_published(&store);
    assert_eq!(store.keys().iter().filter(|key| key.starts_with("refs/")).count(), 1, "{:?}", store.keys());
    machine.ok(&["diff"]);
    fs::write(refs.join("main"), "nothing").unwrap();
    assert_eq!(machine.run(&["push"]).code, 1, "a real ref is damaged");
}

#[test]
fn a_licence_that_cannot_be_read_is_named() {
    let (_store, machine, one) = scene();
    let license = one.blob(&machine.hub(), "LICENSE");
    chmod(&license, 0o000);
    let ran = machine.run_read_only(&["push"]);
    chmod(&license, 0o644);
    assert!(ran.code == 1 || ran.code == 3, "{ran:#?}");
    assert!(ran.stderr.contains("LICENSE: ") && !ran.stderr.contains("has no snapshot"), "{ran:#?}");
    assert!(!ran.stdout.contains("has no snapshot"), "{ran:#?}");
}

#[test]
fn a_ref_with_white_space_is_told_pushed_kept_and_mended() {
    for (content, number) in [
        (format!("{COMMIT}\n"), 0),
        (format!("{COMMIT}\r\n"), 1),
        (format!(" {COMMIT}  \n\n"), 2),
        (format!("\u{feff}{COMMIT}"), 3),
    ] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let one = Revision::model("org/one").refs(&["main", "refs/pr/1"]);
        one.write(&machine.hub());
        let refs = one.dir(&machine.hub()).join("refs");
        fs::write(refs.join("main"), &content).unwrap();
        fs::write(refs.join("refs/pr/1"), &content).unwrap();
        let status = machine.run(&["status"]);
        assert_eq!(status.code, 0, "{status:#?}");
        assert!(status.stderr.contains("refs/main") && status.stderr.contains("doctor --fix"), "{status:#?}");
        let doctor = machine.run(&["doctor"]);
        assert_eq!(doctor.code, 0, "{doctor:#?}");
        for word in ["white space", "org/one refs/main", "org/one refs/refs/pr/1", "doctor --fix"] {
            assert!(doctor.stdout.contains(word), "{word}: {doctor:#?}");
        }
        assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), content, "only looked at");
        let push = machine.run(&["push"]);
        assert_eq!(push.code, 0, "{push:#?}");
        assert!(push.stderr.contains("doctor --fix"), "{push:#?}");
        assert_eq!(store.text("refs/org__one/main"), COMMIT);
        assert_eq!(machine.run(&["diff", "--exit-code"]).code, 0);
        machine.ok(&["prune", "--max-gb", "0", "--orphan-grace", "0"]);
        assert!(one.snapshot(&machine.hub()).join("config.json").exists(), "a ref protects its revision");
        assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), content);
        match number % 2 {
            0 => {
                let fixed = machine.run(&["doctor", "--fix"]);
                assert_eq!(fixed.code, 0, "{fixed:#?}");
                assert!(fixed.stdout.contains("repaired org/one refs/main, org/one refs/refs/pr/1"), "{fixed:#?}");
            }
            _ => {
                machine.ok(&["pull", "org/one", "--dry-run"]);
                assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), content, "a dry run");
                let pulled = machine.run(&["pull", "org/one"]);
                assert_eq!(pulled.code, 0, "{pulled:#?}");
                assert!(pulled.stderr.contains("mended refs/main of org/one"), "{pulled:#?}");
            }
        }
        assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), COMMIT);
        assert_eq!(fs::read_to_string(refs.join("refs/pr/1")).unwrap(), COMMIT);
        let again = machine.run(&["doctor", "--fix"]);
        assert!(again.stdout.contains("nothing to repair"), "{again:#?}");
        assert_eq!(machine.run(&["status", "--json"]).json()["problems"], serde_json::json!([]));
    }
}

#[test]
fn what_is_no_commit_is_never_mended() {
    let (_store, machine, one) = scene();
    let refs = one.dir(&machine.hub()).join("refs");
    let bad = [("empty", ""), ("word", "main\n"), ("two", &format!("{COMMIT}\n{OTHER}\n")), ("short", &COMMIT[..39])];
    for (name, content) in bad {
        fs::write(refs.join(name), content).unwrap();
    }
    fs::write(refs.join("lone"), OTHER).unwrap();
    let ran = machine.run(&["doctor", "--fix"]);
    assert!(ran.stdout.contains("org/one refs/lone") && ran.stdout.contains("this is harmless"), "{ran:#?}");
    for (name, content) in bad {
        assert_eq!(fs::read_to_string(refs.join(name)).unwrap(), content);
    }
    assert_eq!(fs::read_to_string(refs.join("lone")).unwrap(), OTHER);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn trees_of_another_user_cost_one_note() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (one, two) = (Revision::model("org/one").with_tree(), Revision::model("org/two").at(OTHER).with_tree());
    for revision in [&one, &two] {
        revision.write(&machine.hub());
        let trees = revision.dir(&machine.hub()).join("trees");
        chmod(&trees.join(format!("{}.json", revision.commit)), 0o000);
    }
    for line in [&["push", "--dry-run"][..], &["push"], &["diff", "--exit-code"]] {
        let ran = machine.run_read_only(line);
        assert_eq!(ran.code, 0, "{line:?}: {ran:#?}");
        assert_eq!(ran.stderr.matches("note: ").count(), 1, "{line:?}: {ran:#?}");
        assert!(ran.stderr.contains("2 of the files in trees/") && !ran.stderr.contains("delete"), "{ran:#?}");
        assert!(!ran.stdout.contains("skipped"), "{ran:#?}");
    }
    one.assert_published(&store);
    two.assert_published(&store);
    for line in [&["status"][..], &["list"], &["doctor"]] {
        let ran = machine.run_read_only(line);
        assert_eq!(ran.code, 0, "{line:?}: {ran:#?}");
    }

    // Who can read them publishes them; and then nobody takes them away.
    let owner = Machine::new(&store);
    one.write(&owner.hub());
    owner.ok(&["push"]);
    let published = store.get(&one.manifest_key());
    assert!(serde_json::from_slice::<Value>(&published).unwrap().get("tree").is_some());
    let ran = machine.run_read_only(&["push"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(store.get(&one.manifest_key()), published);
    let ran = machine.run_read_only(&["pull", "org/one"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(!ran.stderr.contains("ermission"), "{ran:#?}");
}

#[test]
fn a_tree_that_cannot_be_written_is_no_failure() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").with_tree();
    one.write(&machine.hub());
    machine.ok(&["push"]);
    let trees = one.dir(&machine.hub()).join("trees");
    let tree = trees.join(format!("{COMMIT}.json"));
    // It is another one, and what stands there is not for us to replace.
    make_pipe(&tree);
    fs::remove_file(one.snapshot(&machine.hub()).join("config.json")).unwrap();
    let ran = machine.run(&["pull", "org/one"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("was not written") && ran.stderr.contains("a named pipe"), "{ran:#?}");
    assert!(one.snapshot(&machine.hub()).join("config.json").exists());
    // A folder that another user keeps to themselves.
    fs::remove_file(&tree).unwrap();
    fs::remove_file(one.snapshot(&machine.hub()).join("config.json")).unwrap();
    let ran = match fs::metadata(machine.home()).unwrap().uid() {
        0 => {
            machine.run_in_shared(&["status"]);
            chmod(&trees, 0o755);
            machine.run_read_only(&["pull", "org/one"])
        }
        _ => {
            chmod(&trees, 0o555);
            machine.run(&["pull", "org/one"])
        }
    };
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("was not written"), "{ran:#?}");
    chmod(&trees, 0o755);
}

#[test]
fn what_another_user_keeps_to_themselves_is_named_and_the_rest_goes_on() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (one, two) = (Revision::model("org/one"), Revision::model("org/second").at(OTHER));
    one.write(&machine.hub());
    two.write(&machine.hub());
    let reference = one.dir(&machine.hub()).join("refs/other");
    fs::write(&reference, COMMIT).unwrap();
    chmod(&reference, 0o000);
    let blob = two.blob(&machine.hub(), "model.safetensors");
    chmod(&blob, 0o000);
    let ran = machine.run_read_only(&["push"]);
    assert!(ran.code == 1 || ran.code == 3, "{ran:#?}");
    assert!(ran.stderr.contains("refs/other") && ran.stderr.contains(&two.etag("model.safetensors")), "{ran:#?}");
    one.assert_published(&store);
    assert!(!store.has(&two.manifest_key()), "nothing half");
    assert_eq!(store.text("refs/org__one/main"), COMMIT);
    chmod(&blob, 0o644);
    chmod(&reference, 0o644);
}

#[test]
fn locks_of_another_user_are_taken_for_reading() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").lfs("big.bin", weights(3, 2 << 20));
    one.publish(&store);
    let locks = machine.hub().join(".locks");
    let files = [
        locks.join(one.folder()).join(format!("{}.lock", one.etag("big.bin"))),
        locks.join(one.folder()).join(format!("{}.lock", one.etag("config.json"))),
        locks.join(".hf-cache-sync/lock"),
    ];
    for file in &files {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
        chmod(file, 0o444);
    }
    let ran = machine.run_in_shared(&["pull", "org/one"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    one.assert_pulled(&machine.hub());
}

#[test]
fn a_tilde_after_an_equals_sign_is_the_home_directory() {
    let (_store, machine, _) = scene();
    fs::rename(machine.hub(), machine.home().join("mine")).unwrap();
    let ran = machine.run(&["status", "--cache-dir=~/mine"]);
    assert!(ran.code == 0 && ran.stdout.contains("1 (1 revision)"), "{ran:#?}");
    fs::write(machine.home().join("team.yaml"), "cache:\n  max_local_gb: 7\n").unwrap();
    let ran = machine.run(&["--config=~/team.yaml", "status", "--cache-dir=~/mine"]);
    assert!(ran.code == 0 && ran.stdout.contains("7.0 GiB"), "{ran:#?}");
    assert!(!machine.work().join("~").exists());
}
