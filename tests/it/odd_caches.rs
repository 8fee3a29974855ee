//! Caches as they occur in practice: with foreign files, files of other users, on file servers, and with manual edits.

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

/// A store with `org/one` and `org/two`, and a machine that has the first one, including its tree.
fn setup() -> (Store, Machine, Revision) {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").with_tree().git("LICENSE", "MIT License\n");
    let two = Revision::model("org/two").at(OTHER);
    one.write(&machine.hub());
    one.publish(&store);
    two.publish(&store);
    (store, machine, one)
}

/// Returns the places where something other than a regular file can be, and whether `status` must report it there.
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
fn a_wrong_cache_dir_gets_a_hint() {
    let store = Store::new();
    let machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    let hub = machine.hub().canonicalize().unwrap();
    let above = hub.parent().unwrap().join("above");
    std::fs::create_dir(&above).unwrap();
    std::os::unix::fs::symlink(&hub, above.join("hub")).unwrap();
    let hint = format!("did you mean {}?", above.join("hub").display());
    for line in [&["push"][..], &["list"], &["status"]] {
        let output = machine.run(&[line, &["--cache-dir", above.to_str().unwrap()]].concat());
        assert!(output.code == 0 && output.stderr.contains(&hint), "{line:?}: {output:#?}");
    }
    let repo = hub.join("models--org--name");
    let output = machine.run(&["list", "--cache-dir", repo.to_str().unwrap()]);
    assert!(output.stderr.contains(&format!("did you mean {}?", hub.display())), "{output:#?}");
    for right in [&hub, &hub.join("none")] {
        let output = machine.run(&["list", "--cache-dir", right.to_str().unwrap()]);
        assert!(!output.stderr.contains("did you mean"), "{output:#?}");
    }
}

/// Shells do not expand these after a `=` or in single quotes.
#[test]
fn variables_in_cache_dir_are_expanded() {
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
fn named_pipes_are_reported_and_never_opened() {
    let (_store, machine, one) = setup();
    for place in 0..places(&machine, &one).len() {
        let (_store, machine, one) = setup();
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
            let output = machine.run(line);
            assert!((0..=6).contains(&output.code), "{line:?} with a pipe at {name}: {output:#?}");
            if line[0] == "status" && named {
                assert!(output.stdout.contains(&name), "{name}: {output:#?}");
            }
            if output.code != 0 {
                assert!(
                    output.stderr.contains(&name) || line[0] == "doctor",
                    "{line:?} with a pipe at {name}: {output:#?}"
                );
            }
        }
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo(), "{name}");
    }
}

#[test]
fn sockets_and_devices_are_never_read() {
    for what in ["socket", "/dev/zero"] {
        let (_store, machine, one) = setup();
        let (hub, dir) = (machine.hub(), one.dir(&machine.hub()));
        let tree = dir.join("trees").join(format!("{COMMIT}.json"));
        let mut sockets = Vec::new();
        for path in
            [&tree, &one.blob(&hub, "config.json"), &dir.join("refs/other"), &one.snapshot(&hub).join("LICENSE")]
        {
            let _ = fs::remove_file(path);
            match what {
                "socket" => {
                    // Socket paths must be short.
                    let near = machine.home().join("s");
                    sockets.push(UnixListener::bind(&near).unwrap());
                    fs::rename(near, path).unwrap();
                }
                device => symlink(device, path).unwrap(),
            }
        }
        for line in [&["push"][..], &["diff"], &["status"], &["list"], &["prune"], &["pull", "org/one"], &["doctor"]] {
            let output = machine.run(line);
            assert!((0..=6).contains(&output.code), "{line:?} with {what}: {output:#?}");
        }
    }
}

/// Puts a non-file in place of a file. Returns `false` if this user may not.
pub fn plant(kind: &str, path: &Path, home: &Path) -> bool {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match kind {
        "pipe" => make_pipe(path),
        "socket" => {
            // Socket paths must be short.
            let near = home.join("s");
            drop(UnixListener::bind(&near).unwrap());
            fs::rename(near, path).unwrap();
        }
        // Reading from it would never end.
        "device" => {
            let made = std::process::Command::new("mknod").arg(path).args(["c", "1", "5"]).output().unwrap();
            if !made.status.success() {
                crate::harness::skip("a device in a cache", "this user may not create one");
            }
            return made.status.success();
        }
        "loop" => symlink(path.file_name().unwrap(), path).unwrap(),
        "folder" => {
            let _ = fs::remove_dir(path);
            fs::create_dir(path).unwrap();
            fs::write(path.join("inner"), "mine").unwrap();
        }
        _ => unreachable!(),
    }
    true
}

/// With any kind of entry in any place, each command ends, names the obstacle if it fails, and leaves it there.
#[test]
fn no_command_opens_or_removes_anything_but_files() {
    let (_store, machine, one) = setup();
    let kinds = ["socket", "device", "loop", "folder", "pipe"];
    // Each place is tested with two of the kinds.
    let is_tried = |number: usize, kind: usize| (number + kind) % kinds.len() < 2;
    let cases = (0..places(&machine, &one).len()).flat_map(|number| (0..kinds.len()).map(move |kind| (number, kind)));
    for (number, kind) in cases.filter(|(number, kind)| is_tried(*number, *kind)) {
        let kind = kinds[kind];
        let (_store, machine, one) = setup();
        let (path, _) = places(&machine, &one).swap_remove(number);
        if path.is_dir() || !plant(kind, &path, &machine.home()) {
            continue;
        }
        let kind_of = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.file_type()).ok();
        let (planted, name) = (kind_of(&path), path.strip_prefix(machine.hub()).unwrap().display().to_string());
        for line in [
            &["status"][..],
            &["list"],
            &["diff"],
            &["verify"],
            &["push", "--dry-run"],
            &["pull", "org/one"],
            &["verify", "--repair"],
            &["prune", "--dry-run", "--max-gb", "0", "--include-referenced"],
            &["rm", "org/one", "--dry-run"],
            &["doctor"],
            &["rm", "org/one", "--yes"],
            &["prune", "--max-gb", "0", "--include-referenced", "--orphan-grace", "0", "--temporary-grace", "0"],
        ] {
            let output = machine.run(line);
            let case = format!("{line:?} with a {kind} at {name}");
            assert!((0..=6).contains(&output.code), "{case}: {output:#?}");
            output.nothing_internal();
            let is_removal = (line[0] == "rm" || line[0] == "prune") && !line.contains(&"--dry-run");
            // Removing a repo also removes its links, and a pull replaces a dangling link.
            let may_go = is_removal || kind == "loop";
            assert!(may_go || kind_of(&path) == planted, "{case}: it is gone: {output:#?}");
            if kind == "folder" && !is_removal {
                // `refs/main/inner` is a damaged ref, which a repair sets aside.
                let set_aside = machine.hub().join(".locks/.hf-cache-sync/quarantine").join(&name);
                let kept = [path.join("inner"), set_aside.join("inner")].map(|file| fs::read(file).ok());
                assert!(kept.contains(&Some(b"mine".to_vec())), "{case}: {output:#?}");
            }
        }
    }
}

#[test]
fn named_pipes_do_not_stop_a_watch() {
    let (store, machine, one) = setup();
    make_pipe(&one.dir(&machine.hub()).join("trees").join(format!("{COMMIT}.json")));
    make_pipe(&one.dir(&machine.hub()).join("refs/other"));
    for poll in [&[][..], &["--poll", "0.2"]] {
        let watch = machine.start(&[&["watch", "--debounce", "0.1"], poll].concat());
        watch.wait_for("named pipe");
        watch.interrupt();
        let output = watch.finish();
        assert_eq!(output.code, 0, "{output:#?}");
    }
    one.assert_published(&store);
}

#[test]
fn huge_files_in_place_of_small_ones_are_not_read() {
    let (store, machine, one) = setup();
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
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 1, "{output:#?}");
    assert!(output.stderr.contains("too large") && output.stderr.contains("refs/huge"), "{output:#?}");
    one.assert_published(&store);
    for line in [&["status"][..], &["diff"], &["list"], &["doctor"], &["prune", "--dry-run"]] {
        let output = machine.run(line);
        assert!(output.code <= 1 && output.code >= 0, "{line:?}: {output:#?}");
    }
}

#[test]
fn a_configuration_or_token_can_be_a_pipe_only_with_a_writer() {
    let (_store, mut machine, _) = setup();
    let path = machine.work().join(".hf-cache-sync.yaml");
    make_pipe(&path);
    machine.run(&["status"]).refused(2, &[".hf-cache-sync.yaml", "a named pipe"]);
    fs::remove_file(&path).unwrap();
    // The pipe that a shell's process substitution passes has a writer.
    let line = "exec \"$0\" --config <(printf 'cache:\\n  max_local_gb: 7\\n') status";
    let output = run(machine.program("/bin/bash", &["-c", line, BINARY]));
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stdout.contains("7.0 GiB"), "{output:#?}");
    assert_eq!(machine.run(&["status", "--config", "/dev/null"]).code, 0);
    make_pipe(&machine.home().join("token"));
    machine.set("HF_TOKEN_PATH", &machine.home().join("token").display().to_string());
    machine.set("HF_ENDPOINT", "http://127.0.0.1:9");
    machine.run(&["pull", "org/nothing", "--fallback", "hf-hub"]).refused(2, &["token", "a named pipe"]);
}

#[test]
fn the_error_for_a_pipe_or_a_link_out_of_the_repo_says_what_to_do() {
    let (_store, machine, one) = setup();
    let snapshot = one.snapshot(&machine.hub());
    for name in ["config.json", "model.safetensors"] {
        fs::remove_file(snapshot.join(name)).unwrap();
    }
    make_pipe(&snapshot.join("config.json"));
    symlink("/etc/hostname", snapshot.join("model.safetensors")).unwrap();
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 1, "{output:#?}");
    for words in
        ["named pipe, not a file, so it is not pushed\n  delete it and", "replace the link with a copy of the file"]
    {
        assert!(output.stderr.contains(words), "{output:#?}");
    }
}

/// Files and folders that operating systems and tools leave behind.
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
fn litter_is_ignored_in_every_folder() {
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
        // AppleDouble and backup copies of existing files, and a deleted ref in a recycle bin that contains a commit.
        for twin in ["refs/._main", "refs/refs/pr/._1", "blobs/._x", "snapshots/._x", "refs/main~"] {
            fs::write(dir.join(twin), COMMIT).unwrap();
        }
        fs::write(dir.join("refs/#recycle/gone"), COMMIT).unwrap();
        fs::write(dir.join("blobs").join(format!("._{}", one.etag("config.json"))), "twin").unwrap();
        fs::write(hub.join(format!("._{}", one.folder())), "twin").unwrap();

        let status = machine.run(&["status", "--json"]).json();
        assert_eq!(status["problems"], serde_json::json!([]), "{layout:?}");
        let output = machine.run(&["push"]);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{layout:?}: {output:#?}");
        assert!(!output.stdout.contains("skipped"), "{layout:?}: {output:#?}");
        one.assert_published(&store);
        assert_eq!(store.keys().iter().filter(|key| key.starts_with("refs/")).count(), 2, "{:?}", store.keys());
        let output = machine.run(&["diff", "--exit-code"]);
        assert_eq!(output.code, 0, "{layout:?}: {output:#?}");
        let list = machine.run(&["list", "--json"]).json();
        assert_eq!(list["problems"], 0);
        assert_eq!(list["repos"][0]["revisions"][0]["files"], 3, "{layout:?}: {list}");
        assert_eq!(list["repos"][0]["refs"].as_array().unwrap().len(), 2);
        let prune = machine.run(&["prune", "--dry-run", "--max-gb", "1000", "--json"]).json();
        assert_eq!((&prune["skipped"], &prune["freed"]), (&serde_json::json!([]), &serde_json::json!(0)), "{layout:?}");
        // Nor does litter prevent a revision from being evicted.
        let output = machine.run(&["prune", "--max-gb", "0", "--include-referenced", "--orphan-grace", "0", "--json"]);
        assert_eq!(output.json()["evicted"].as_array().unwrap().len(), 1, "{layout:?}: {output:#?}");
        assert!(!one.snapshot(&hub).exists());
    }
}

#[test]
fn files_of_the_commit_are_pushed_even_if_they_look_like_litter() {
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
        let output = machine.run(&["push"]);
        assert_eq!(output.code, 0, "{layout:?}: {output:#?}");
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

/// Adds files that libraries write into a snapshot.
fn add_extra_files(one: &Revision, hub: &Path) -> [&'static str; 4] {
    let snapshot = one.snapshot(hub);
    fs::write(snapshot.join(".lock"), "").unwrap();
    fs::write(snapshot.join("model.engine"), weights(9, 500_000)).unwrap();
    fs::create_dir(snapshot.join("__pycache__")).unwrap();
    fs::write(snapshot.join("__pycache__/modeling.cpython-312.pyc"), "\0pyc").unwrap();
    fs::write(snapshot.join("config_resolved.json"), "{}").unwrap();
    [".lock", "model.engine", "__pycache__/modeling.cpython-312.pyc", "config_resolved.json"]
}

#[test]
fn files_not_in_the_commit_are_reported_and_not_pushed() {
    use std::os::unix::ffi::OsStrExt;
    for layout in [Layout::Links, Layout::Real, Layout::Shared, Layout::Hardlinks] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let one = Revision::model("org/one").with_tree().layout(layout);
        one.write(&machine.hub());
        let names = add_extra_files(&one, &machine.hub());
        let snapshot = one.snapshot(&machine.hub());
        symlink("/etc/hostname", snapshot.join("elsewhere")).unwrap();
        symlink("../../blobs/".to_string() + &"0".repeat(40), snapshot.join("nowhere")).unwrap();
        fs::write(snapshot.join(std::ffi::OsStr::from_bytes(b"not-\xff-utf8")), "x").unwrap();
        fs::write(snapshot.join("back\\slash"), "x").unwrap();
        make_pipe(&snapshot.join("pipe"));
        let output = machine.run(&["push", "--json"]);
        assert_eq!(output.code, 0, "{layout:?}: {output:#?}");
        let report = output.json();
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

        // A machine whose client wrote no tree does not add the extra files to the bucket.
        let older = Machine::new(&store);
        Revision { tree: false, ..one.clone() }.write(&older.hub());
        add_extra_files(&one, &older.hub());
        let before = store.objects();
        let output = older.run(&["push"]);
        assert_eq!(output.code, 0, "{layout:?}: {output:#?}");
        assert_eq!(store.objects(), before, "{layout:?}");
    }
}

#[test]
fn without_a_tree_regular_files_among_links_are_not_pushed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").git("copied.json", "a copy of a blob");
    one.write(&machine.hub());
    add_extra_files(&one, &machine.hub());
    // This file is identical to a blob: the client was unable to link it.
    let copied = one.snapshot(&machine.hub()).join("copied.json");
    fs::remove_file(&copied).unwrap();
    fs::write(&copied, "a copy of a blob").unwrap();
    let report = machine.run(&["push", "--json"]).json();
    assert_eq!(report["skipped"][0]["reason"], "unlinked", "{report}");
    assert_eq!(report["skipped"][0]["files"].as_array().unwrap().len(), 4, "{report}");
    one.assert_published(&store);
    // Without any links, extra files cannot be distinguished.
    let real = Revision::model("org/real").layout(Layout::Real);
    real.write(&machine.hub());
    machine.ok(&["push", "org/real"]);
    real.assert_published(&store);
}

#[test]
fn extra_files_in_the_bucket_are_kept() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").with_tree();
    // 0.1.0 publishes extra files.
    let more = Revision { tree: false, ..one.clone() }.git("engine", "made by a library");
    more.publish(&store);
    one.write(&machine.hub());
    let before = store.objects();
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stderr.contains("not part of the commit"), "{output:#?}");
    assert_eq!(store.objects(), before);
}

/// Names that are legal except on Windows, and that huggingface_hub supports on Linux.
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
fn unusual_file_names_make_the_round_trip() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut one = Revision::model("org/one").with_tree();
    for (number, name) in names().iter().enumerate() {
        one = one.git(name, format!("file {number}"));
    }
    one.write(&machine.hub());
    let output = machine.run(&["push"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:#?}");
    one.assert_published(&store);
    let manifest: Value = serde_json::from_slice(&store.get(&one.manifest_key())).unwrap();
    assert_eq!(manifest["tree"], serde_json::from_slice::<Value>(&one.tree_json()).unwrap());
    let other = Machine::new(&store);
    let output = other.run(&["pull", "org/one"]);
    assert_eq!(output.code, 0, "{output:#?}");
    one.assert_pulled(&other.hub());
    assert_eq!(other.run(&["diff", "--exit-code"]).code, 0);
    assert_eq!(other.run(&["status", "--json"]).json()["problems"], serde_json::json!([]));
    let output = other.run(&["prune", "--max-gb", "0", "--include-referenced", "--orphan-grace", "0"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(!one.snapshot(&other.hub()).exists(), "{output:#?}");
}

#[test]
fn unportable_file_names_are_reported_and_the_rest_is_pushed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let plain = Revision::model("org/one").with_tree();
    let one = plain.clone().git("sub\\k.txt", "backslash").git("bell\u{7}", "control");
    one.write(&machine.hub());
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 1, "{output:#?}");
    assert!(output.stderr.contains("backslash") && output.stderr.contains("control character"), "{output:#?}");
    assert!(!output.stderr.contains('\u{7}'), "{output:#?}");
    plain.assert_published(&store);
    let manifest: Value = serde_json::from_slice(&store.get(&one.manifest_key())).unwrap();
    assert!(manifest.get("tree").is_none(), "earlier versions reject a manifest with such a tree");
    assert!(manifest["unportable_tree"]["files"].get("sub\\k.txt").is_some(), "{manifest:#}");
    let other = Machine::new(&store);
    let pulled = other.run(&["pull", "org/one"]);
    assert!(pulled.code == 0 && pulled.stderr.contains("2 files of this revision cannot be pulled"), "{pulled:#?}");
    let tree = fs::read(one.dir(&other.hub()).join("trees").join(format!("{COMMIT}.json"))).unwrap();
    assert_eq!(tree, one.tree_json(), "the tree tells huggingface_hub that the snapshot is incomplete");
    assert!(!one.snapshot(&other.hub()).join("sub\\k.txt").exists());
    // A later push keeps it in the bucket.
    other.ok(&["push"]);
    assert_eq!(store.get(&one.manifest_key()), indented(&manifest, b"  "));
}

#[test]
fn files_in_refs_that_are_not_refs_are_ignored() {
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
    assert_eq!(machine.run(&["push"]).code, 1, "a bad ref with a valid name is an error");
}

#[test]
fn an_unreadable_licence_is_reported() {
    let (_store, machine, one) = setup();
    let license = one.blob(&machine.hub(), "LICENSE");
    chmod(&license, 0o000);
    let output = machine.run_read_only(&["push"]);
    chmod(&license, 0o644);
    assert_eq!(output.code, 3, "{output:#?}");
    assert!(output.stderr.contains("LICENSE: ") && !output.stderr.contains("has no snapshot"), "{output:#?}");
    assert!(!output.stdout.contains("has no snapshot"), "{output:#?}");
}

#[test]
fn refs_with_white_space_are_reported_pushed_and_repaired() {
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
        assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), content, "only --fix may change it");
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
                assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), content, "a dry run must not change it");
                let pulled = machine.run(&["pull", "org/one"]);
                assert_eq!(pulled.code, 0, "{pulled:#?}");
                assert!(pulled.stderr.contains("repaired refs/main of org/one"), "{pulled:#?}");
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
fn refs_without_a_commit_are_never_repaired() {
    let (_store, machine, one) = setup();
    let refs = one.dir(&machine.hub()).join("refs");
    let bad = [("empty", ""), ("word", "main\n"), ("two", &format!("{COMMIT}\n{OTHER}\n")), ("short", &COMMIT[..39])];
    for (name, content) in bad {
        fs::write(refs.join(name), content).unwrap();
    }
    fs::write(refs.join("lone"), OTHER).unwrap();
    let output = machine.run(&["doctor", "--fix"]);
    assert!(output.stdout.contains("org/one refs/lone") && output.stdout.contains("this is harmless"), "{output:#?}");
    for (name, content) in bad {
        assert_eq!(fs::read_to_string(refs.join(name)).unwrap(), content);
    }
    assert_eq!(fs::read_to_string(refs.join("lone")).unwrap(), OTHER);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn unreadable_trees_are_reported_in_a_single_note() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (one, two) = (Revision::model("org/one").with_tree(), Revision::model("org/two").at(OTHER).with_tree());
    for revision in [&one, &two] {
        revision.write(&machine.hub());
        let trees = revision.dir(&machine.hub()).join("trees");
        chmod(&trees.join(format!("{}.json", revision.commit)), 0o000);
    }
    for line in [&["push", "--dry-run"][..], &["push"], &["diff", "--exit-code"]] {
        let output = machine.run_read_only(line);
        assert_eq!(output.code, 0, "{line:?}: {output:#?}");
        assert_eq!(output.stderr.matches("note: ").count(), 1, "{line:?}: {output:#?}");
        assert!(output.stderr.contains("2 of the files in trees/") && !output.stderr.contains("delete"), "{output:#?}");
        assert!(!output.stdout.contains("skipped"), "{output:#?}");
    }
    one.assert_published(&store);
    two.assert_published(&store);
    for line in [&["status"][..], &["list"], &["doctor"]] {
        let output = machine.run_read_only(line);
        assert_eq!(output.code, 0, "{line:?}: {output:#?}");
    }

    // A user who can read the trees publishes them; later pushes by others keep them.
    let owner = Machine::new(&store);
    one.write(&owner.hub());
    owner.ok(&["push"]);
    let published = store.get(&one.manifest_key());
    assert!(serde_json::from_slice::<Value>(&published).unwrap().get("tree").is_some());
    let output = machine.run_read_only(&["push"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert_eq!(store.get(&one.manifest_key()), published);
    let output = machine.run_read_only(&["pull", "org/one"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(!output.stderr.contains("ermission"), "{output:#?}");
}

#[test]
fn failing_to_write_a_tree_is_not_an_error() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let one = Revision::model("org/one").with_tree();
    one.write(&machine.hub());
    machine.ok(&["push"]);
    let trees = one.dir(&machine.hub()).join("trees");
    let tree = trees.join(format!("{COMMIT}.json"));
    // An unexpected entry in place of the tree must not be replaced.
    make_pipe(&tree);
    fs::remove_file(one.snapshot(&machine.hub()).join("config.json")).unwrap();
    let output = machine.run(&["pull", "org/one"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stderr.contains("was not written") && output.stderr.contains("a named pipe"), "{output:#?}");
    assert!(one.snapshot(&machine.hub()).join("config.json").exists());
    // A folder that another user has made inaccessible.
    fs::remove_file(&tree).unwrap();
    fs::remove_file(one.snapshot(&machine.hub()).join("config.json")).unwrap();
    let output = match fs::metadata(machine.home()).unwrap().uid() {
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
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stderr.contains("was not written"), "{output:#?}");
    chmod(&trees, 0o755);
}

#[test]
fn unreadable_files_are_reported_and_the_rest_is_pushed() {
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
    let output = machine.run_read_only(&["push"]);
    assert_eq!(output.code, 3, "{output:#?}");
    assert!(
        output.stderr.contains("refs/other") && output.stderr.contains(&two.etag("model.safetensors")),
        "{output:#?}"
    );
    one.assert_published(&store);
    assert!(!store.has(&two.manifest_key()), "a revision must not be published in part");
    assert_eq!(store.text("refs/org__one/main"), COMMIT);
    chmod(&blob, 0o644);
    chmod(&reference, 0o644);
}

#[test]
fn read_only_locks_of_another_user_can_be_taken() {
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
    let output = machine.run_in_shared(&["pull", "org/one"]);
    assert_eq!(output.code, 0, "{output:#?}");
    one.assert_pulled(&machine.hub());
}

#[test]
fn a_tilde_after_an_equals_sign_is_expanded() {
    let (_store, machine, _) = setup();
    fs::rename(machine.hub(), machine.home().join("mine")).unwrap();
    let output = machine.run(&["status", "--cache-dir=~/mine"]);
    assert!(output.code == 0 && output.stdout.contains("1 (1 revision)"), "{output:#?}");
    fs::write(machine.home().join("team.yaml"), "cache:\n  max_local_gb: 7\n").unwrap();
    let output = machine.run(&["--config=~/team.yaml", "status", "--cache-dir=~/mine"]);
    assert!(output.code == 0 && output.stdout.contains("7.0 GiB"), "{output:#?}");
    assert!(!machine.work().join("~").exists());
}
