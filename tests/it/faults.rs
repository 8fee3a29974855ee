//! The faults of hf-cache-sync 0.1.0 that concern configuration, push, pull and doctor. Each test fails with the
//! behaviour of 0.1.0. Interrupted downloads are in tests/it/interrupt.rs.

use std::fs;

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision};
use crate::harness::machine::Machine;
use crate::harness::s3::{ACCESS_KEY, Action, SECRET_KEY};
use crate::harness::store::{BUCKET, Store};
use crate::harness::{listing, sha256, visible, weights};
use serde_json::Value;

/// 0.1.0: the manifest silently omits every weight file.
#[test]
fn files_in_the_shared_store_are_pushed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name").layout(Layout::Shared);
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    revision.assert_published(&store);
    assert_eq!(
        store.keys().iter().filter(|key| key.starts_with("blobs/")).count(),
        2,
        "blobs are named by ETag, not by Xet hash"
    );
}

/// 0.1.0: uploads `*.incomplete` and temporary files as `blobs/...`.
#[test]
fn unfinished_downloads_are_not_pushed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    let blobs = revision.dir(&machine.hub()).join("blobs");
    let etag = sha256(b"in flight");
    for name in [
        format!("{etag}.incomplete"),
        format!("{etag}.0a1b2c3d.incomplete"),
        "tmp_0b0e6f6c-0000".into(),
        format!(".{etag}.0a1b2c3d.shared"),
        format!(".{etag}.0a1b2c3d.new"),
        format!(".{etag}.0a1b2c3d.old"),
    ] {
        fs::write(blobs.join(name), "half of").unwrap();
    }
    let refs = revision.dir(&machine.hub()).join("refs");
    fs::write(refs.join("main.0a1b2c3d.tmp"), COMMIT).unwrap();
    let trees = revision.dir(&machine.hub()).join("trees");
    fs::create_dir(&trees).unwrap();
    fs::write(trees.join("x.0a1b2c3d.tmp"), "{").unwrap();
    let before = visible(&machine.hub());
    machine.ok(&["push"]);
    assert_eq!(visible(&machine.hub()), before);
    let mut expected = vec![
        revision.blob_key("config.json"),
        revision.blob_key("model.safetensors"),
        revision.manifest_key(),
        "refs/org__name/main".to_string(),
    ];
    expected.sort();
    assert_eq!(store.keys(), expected);
}

/// The counterpart of the previous test: such leftovers of 0.1.0 in a bucket are ignored. The embedded server needs a
/// case-sensitive file system.
#[cfg(unix)]
#[test]
fn keys_that_are_not_hashes_are_ignored() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.publish(&store);
    let etag = revision.etag("config.json");
    for key in [
        format!("blobs/{etag}.incomplete"),
        format!("blobs/{}", etag.to_uppercase()),
        "blobs/README".into(),
        format!("blobs/sub/{etag}"),
        format!("manifests/org__name@{OTHER}.json.bak"),
        "manifests/org__name@main.json".into(),
        "refs/org__name/main.lock".into(),
        "refs-v2/models--org--name/..main".into(),
    ] {
        store.put(&key, "not ours");
    }
    let before = store.objects();
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
    machine.ok(&["push"]);
    assert_eq!(store.objects(), before, "foreign keys must not change");
}

/// 0.1.0: the manifest names blobs that were never uploaded; every pull fails.
#[test]
fn snapshots_of_regular_files_make_the_round_trip() {
    for (layout, tree) in [(Layout::Real, true), (Layout::Real, false), (Layout::Hardlinks, false)] {
        let store = Store::new();
        let (source, target) = (Machine::new(&store), Machine::new(&store));
        let mut revision = Revision::model("org/name").layout(layout);
        revision.tree = tree;
        revision.write(&source.hub());
        source.ok(&["push"]);
        revision.assert_published(&store);
        target.ok(&["pull", "org/name"]);
        revision.assert_pulled(&target.hub());
    }
}

/// 0.1.0: writes outside the cache, or a file named `sub\k`.
#[test]
fn manifest_paths_outside_the_snapshot_are_refused() {
    for path in ["../../../../escaped", "/", "sub\\k", "a/../../b", "C:\\x"] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let absolute = machine.home().join("escaped").display().to_string();
        let path = if path == "/" { absolute.as_str() } else { path };
        let revision = Revision::model("org/name");
        revision.publish(&store);
        let mut manifest = revision.manifest();
        manifest["files"][0]["path"] = path.into();
        store.put(&revision.manifest_key(), serde_json::to_vec(&manifest).unwrap());
        let before = listing(&machine.home());
        machine.run(&["pull", "org/name"]).refused(5, &["not valid"]);
        assert_eq!(listing(&machine.home()), before, "{path}");
    }
}

/// 0.1.0: uses them without validation, and unlinks an existing target first.
#[test]
fn blob_names_and_refs_from_the_bucket_are_validated() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.publish(&store);
    machine.ok(&["pull", "org/name"]);
    let before = listing(&machine.home());
    let good = store.get(&revision.manifest_key());
    for name in ["../../../work/x", "config.json", "", "..", &"A".repeat(64), &"a".repeat(63)] {
        let mut manifest: Value = serde_json::from_slice(&good).unwrap();
        manifest["files"][0]["blob"] = name.into();
        store.put(&revision.manifest_key(), serde_json::to_vec(&manifest).unwrap());
        machine.run(&["pull", "org/name"]).refused(5, &["not valid"]);
        assert_eq!(listing(&machine.home()), before, "{name}");
    }
    store.put(&revision.manifest_key(), good);
    for content in ["../../../../x", "main", "", &COMMIT[..12], &COMMIT.to_uppercase()] {
        store.put("refs/org__name/main", content);
        machine.run(&["pull", "org/name"]).refused(5, &["refs/org__name/main", "not valid"]);
        assert_eq!(listing(&machine.home()), before, "{content}");
    }
}

/// 0.1.0: with sha256, the blob is published and every pull fails for good; with sha1, it is installed everywhere.
#[test]
fn a_corrupt_local_blob_is_not_published() {
    // One for each kind of upload: from memory, streamed, in parts; with git's hash as well as sha256.
    let sizes = [("small.bin", 1000), ("streamed.bin", 2 << 20), ("parts.bin", 17 << 20)];
    for lfs in [true, false] {
        for (name, size) in sizes {
            let store = Store::new();
            let machine = Machine::new(&store);
            let bytes = weights(7, size);
            let revision = Revision::model("org/bad");
            let revision = if lfs { revision.lfs(name, bytes) } else { revision.git(name, bytes) };
            revision.write(&machine.hub());
            let fine = Revision::model("org/fine");
            fine.write(&machine.hub());
            let blob = revision.blob(&machine.hub(), name);
            let mut bytes = fs::read(&blob).unwrap();
            bytes[size / 2] ^= 1;
            fs::write(&blob, bytes).unwrap();
            let output = machine.run(&["push"]);
            assert_eq!(output.code, 5, "{output:#?}");
            let etag = revision.etag(name);
            assert!(output.stderr.contains(&etag) && output.stderr.contains("corrupt"), "{output:#?}");
            output.nothing_internal();
            fine.assert_published(&store);
            let keys = store.keys();
            assert!(!keys.contains(&format!("blobs/{etag}")), "{keys:?}");
            assert!(!keys.iter().any(|key| key.contains("org__bad")), "{keys:?}");
        }
    }
}

/// 0.1.0: pull trusts it without verification.
#[test]
fn an_existing_blob_is_checked_by_size_or_with_verify() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.publish(&store);
    machine.ok(&["pull", "org/name"]);
    let blob = revision.blob(&machine.hub(), "model.safetensors");
    let good = fs::read(&blob).unwrap();

    fs::write(&blob, &good[..1000]).unwrap();
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());

    let mut bad = good.clone();
    bad[1000] ^= 1;
    fs::write(&blob, &bad).unwrap();
    let small = revision.blob(&machine.hub(), "config.json");
    let length = fs::read(&small).unwrap().len();
    fs::write(&small, vec![b'x'; length]).unwrap();
    store.server.take_seen();
    machine.ok(&["pull", "org/name"]);
    assert!(
        !store.server.take_seen().iter().any(|seen| seen.key.starts_with("blobs/")),
        "only the size is checked without --verify"
    );
    let output = machine.run(&["pull", "org/name", "--verify"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(
        output.stderr.contains("note: 2 files were corrupt here and have been replaced, config.json among them"),
        "{output:#?}"
    );
    revision.assert_pulled(&machine.hub());
}

/// Like the previous test for a link into the shared store: the link is replaced, and the bytes of other repos are not
/// touched.
#[cfg(unix)]
#[test]
fn a_bad_blob_in_the_shared_store_is_replaced_by_a_file() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name").layout(Layout::Shared);
    revision.publish(&store);
    revision.write(&machine.hub());
    let blob = revision.blob(&machine.hub(), "model.safetensors");
    let payload = fs::canonicalize(&blob).unwrap();
    fs::write(&payload, "wrong size").unwrap();
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
    assert_eq!(fs::read(&payload).unwrap(), b"wrong size", "the payload must not be overwritten through the link");
    assert!(!blob.is_symlink());
}

/// 0.1.0: publishes them.
#[test]
fn refs_without_a_published_revision_are_not_published() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    let refs = revision.dir(&machine.hub()).join("refs");
    fs::write(refs.join("resolved-only"), OTHER).unwrap();
    let empty = Revision::new("model", "org/empty");
    empty.write(&machine.hub());
    let pointer = Revision::new("model", "org/pointer")
        .git("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n");
    pointer.write(&machine.hub());
    let stdout = machine.ok(&["push"]);
    let refs: Vec<String> = store.keys().into_iter().filter(|key| key.starts_with("refs")).collect();
    assert_eq!(refs, ["refs/org__name/main"]);
    assert!(stdout.contains("resolved-only") && stdout.contains("org/empty") && stdout.contains("pointer"), "{stdout}");
}

/// 0.1.0: the refs overwrite each other, and the dataset can no longer be pulled by name.
#[test]
fn a_dataset_and_a_model_can_have_the_same_name() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let model = Revision::model("org/name");
    let dataset = Revision::new("dataset", "org/name").git("data.csv", "1,2\n").at(OTHER);
    model.write(&machine.hub());
    dataset.write(&machine.hub());
    machine.ok(&["push"]);
    let target = Machine::new(&store);
    target.ok(&["pull", "org/name"]);
    target.ok(&["pull", "org/name", "--repo-type", "dataset"]);
    model.assert_pulled(&target.hub());
    dataset.assert_pulled(&target.hub());
}

/// 0.1.0: they are pulled as other repos.
#[test]
fn ids_with_double_underscores_make_the_round_trip() {
    let store = Store::new();
    let (source, target) = (Machine::new(&store), Machine::new(&store));
    let revisions = [
        Revision::model("team__a/under__score"),
        Revision::model("a_/b").git("id", "1").at(OTHER),
        Revision::model("a/_b").git("id", "2"),
    ];
    revisions.iter().for_each(|revision| revision.write(&source.hub()));
    source.ok(&["push"]);
    for revision in &revisions {
        target.ok(&["pull", &revision.id]);
        revision.assert_pulled(&target.hub());
    }
    let folders = fs::read_dir(target.hub()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(folders.filter(|name| name.to_string_lossy().starts_with("models--")).count(), 3);
}

/// Two ids with the same key and commit hash: the first keeps the key, the second is reported.
#[test]
fn ids_with_the_same_key_and_commit_do_not_overwrite_each_other() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (first, second) = (Revision::model("a_/b").git("id", "1"), Revision::model("a/_b").git("id", "2"));
    first.write(&machine.hub());
    machine.ok(&["push"]);
    second.write(&machine.hub());
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 1, "{output:#?}");
    assert!(output.stderr.contains("a/_b") && output.stderr.contains("belongs to a_/b"), "{output:#?}");
    first.assert_published(&store);
    Machine::new(&store).run(&["pull", "a/_b"]).refused(4, &["a/_b"]);
}

/// 0.1.0: replaces the full manifest.
#[test]
fn a_partial_snapshot_does_not_replace_a_full_manifest() {
    let store = Store::new();
    let (one, two) = (Machine::new(&store), Machine::new(&store));
    let full = Revision::model("org/name").git("extra.txt", "more");
    full.write(&one.hub());
    one.ok(&["push"]);
    let before = store.objects();
    full.clone().without(&["extra.txt"]).write(&two.hub());
    two.ok(&["push"]);
    assert_eq!(store.objects(), before);
}

/// 0.1.0: aborts the whole pull.
#[test]
fn a_missing_blob_does_not_stop_the_rest_of_the_pull() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name").git("zz.txt", "last");
    revision.publish(&store);
    store.remove(&revision.blob_key("model.safetensors"));
    let output = machine.run(&["pull", "org/name"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:#?}");
    assert!(output.stderr.contains(&revision.etag("model.safetensors")), "{output:#?}");
    let part = revision.clone().without(&["model.safetensors"]).refs(&[]);
    part.assert_pulled(&machine.hub());
    assert!(!revision.dir(&machine.hub()).join("refs/main").exists(), "an incomplete revision must not get a ref");
    // Once it is back, nothing else is fetched.
    store.put(&revision.blob_key("model.safetensors"), &revision.file("model.safetensors").bytes);
    store.server.take_seen();
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.hub());
    let fetched = store.server.take_seen().into_iter().filter(|seen| seen.is("GET", "blobs/")).count();
    assert_eq!(fetched, 1);
}

/// 0.1.0: a traceback, a parameter dump, or exit 0.
#[test]
fn an_unconfigured_bucket_is_a_clear_error() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    Revision::model("org/name").write(&machine.hub());
    machine.unset("B2_BUCKET");
    for line in [&["push"][..], &["push", "--dry-run"], &["pull", "org/name"], &["pull", "org/name", "--dry-run"]] {
        machine.run(line).refused(2, &["no bucket is configured", "B2_BUCKET"]);
    }
    let output = machine.run(&["doctor"]);
    assert_ne!(output.code, 0);
    output.nothing_internal();
    assert!(output.stdout.contains("B2_BUCKET"), "{output:#?}");
}

/// 0.1.0: does not read the bucket.
#[test]
fn a_dry_run_compares_with_the_bucket() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    store.put(&revision.blob_key("config.json"), &revision.file("config.json").bytes);
    let before = (store.objects(), listing(&machine.hub()));
    let stdout = machine.ok(&["push", "--dry-run"]);
    assert!(stdout.contains("would be published"), "{stdout}");
    let json = machine.ok_json(&["push", "--dry-run", "--json"]);
    let uploads: Vec<_> = json["plan"]["uploads"].as_array().unwrap().iter().map(|upload| &upload["blob"]).collect();
    assert_eq!(uploads, [&Value::from(revision.etag("model.safetensors"))], "{json:#}");
    assert_eq!((&json["uploaded"]["blobs"], &json["present"]["blobs"]), (&1.into(), &1.into()), "{json:#}");
    assert_eq!((&json["manifests"], &json["refs"]), (&1.into(), &1.into()), "{json:#}");
    assert_eq!((store.objects(), listing(&machine.hub())), before, "a dry run must not write anything");
    machine.ok(&["push"]);
    let json = machine.ok_json(&["push", "--dry-run", "--json"]);
    assert_eq!((&json["uploaded"]["blobs"], &json["present"]["blobs"]), (&0.into(), &2.into()), "{json:#}");
    assert_eq!((&json["manifests"], &json["refs"]), (&0.into(), &0.into()), "{json:#}");
}

/// A key with the right name and the wrong size counts as missing.
#[test]
fn a_blob_of_the_wrong_size_in_the_bucket_is_replaced() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    store.put(&revision.blob_key("model.safetensors"), "half");
    machine.ok(&["push"]);
    revision.assert_published(&store);
}

/// 0.1.0: ignores it if the keys come from the environment.
#[test]
fn the_aws_session_token_is_sent() {
    let store = Store::new();
    let mut machine = Machine::new(&store);
    machine.unset("B2_APPLICATION_KEY_ID");
    machine.unset("B2_APPLICATION_KEY");
    machine.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    machine.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    machine.set("AWS_SESSION_TOKEN", "temporary");
    machine.run(&["doctor"]);
    let seen = store.server.take_seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.token.as_deref() == Some("temporary")), "{seen:#?}");
    // It belongs only to the AWS pair.
    machine.set("B2_APPLICATION_KEY_ID", ACCESS_KEY);
    machine.set("B2_APPLICATION_KEY", SECRET_KEY);
    machine.ok(&["doctor"]);
    assert!(store.server.take_seen().iter().all(|seen| seen.token.is_none()));
}

/// 0.1.0: takes it literally.
#[test]
fn tildes_and_variables_in_cache_paths_are_expanded() {
    let store = Store::new();
    let revision = Revision::model("org/name");
    revision.publish(&store);
    for (variable, value, hub) in [
        ("HF_HOME", "~/hf", "hf/hub"),
        ("HF_HUB_CACHE", "~/cache-a", "cache-a"),
        ("HUGGINGFACE_HUB_CACHE", "$HOME/cache-b", "cache-b"),
        ("XDG_CACHE_HOME", "~/xdg", "xdg/huggingface/hub"),
    ] {
        let mut machine = Machine::new(&store);
        machine.set(variable, value);
        machine.ok(&["pull", "org/name"]);
        revision.assert_pulled(&machine.home().join(hub));
        assert!(!machine.work().join("~").exists());
    }
    let machine = Machine::new(&store);
    machine.configure("cache:\n  hf_cache_dir: ~/from-yaml\n");
    machine.ok(&["pull", "org/name"]);
    revision.assert_pulled(&machine.home().join("from-yaml"));
}

/// 0.1.0: reads it as true.
#[test]
fn a_quoted_boolean_is_refused() {
    let store = Store::new();
    let machine = Machine::new(&store);
    for key in ["team:\n  allow_gated", "cache:\n  sync_xet"] {
        machine.configure(&format!("storage:\n  bucket: {BUCKET}\n{key}: \"false\"\n"));
        let output = machine.run(&["push"]);
        output.refused(2, &[".hf-cache-sync.yaml", "line 4", key.split_whitespace().last().unwrap(), "true or false"]);
    }
}

/// 0.1.0: a broken YAML file breaks every command, including `init`.
#[test]
fn init_works_with_a_broken_configuration() {
    let machine = Machine::unconfigured();
    machine.configure("storage: [\n");
    machine.run(&["push"]).refused(2, &[".hf-cache-sync.yaml", "line"]);
    let stdout = machine.ok(&["init"]);
    assert!(stdout.contains("was left unchanged"), "{stdout}");
    assert_eq!(fs::read_to_string(machine.work().join(".hf-cache-sync.yaml")).unwrap(), "storage: [\n");
    machine.ok(&["--help"]);
}

/// 0.1.0: doctor always fails with a read-only key.
#[test]
fn doctor_accepts_a_read_only_key() {
    let store = Store::new();
    let machine = Machine::new(&store);
    store.server.on_request(|request| match request.method.as_str() {
        "PUT" | "POST" | "DELETE" => Action::Refuse(403, "AccessDenied", "not entitled"),
        _ => Action::Pass,
    });
    let stdout = machine.ok(&["doctor"]);
    assert!(stdout.contains("read-only"), "{stdout}");
    assert_ne!(machine.run(&["doctor", "--require-write"]).code, 0);
    assert!(store.keys().is_empty());
    store.server.behave();
    machine.ok(&["doctor", "--require-write"]);
    assert!(store.keys().is_empty(), "doctor must delete its probe");
}

/// 0.1.0: Apache's "separate license agreement" blocks the push.
#[test]
fn only_gated_licences_block_push_and_pull() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let apache = "Apache License\nVersion 2.0, January 2004\nTERMS AND CONDITIONS FOR USE, REPRODUCTION, AND \
                  DISTRIBUTION\nthe terms of any separate license agreement you may have executed with Licensor\n";
    let open = Revision::model("org/open").git("LICENSE", apache);
    let gated = Revision::model("org/gated").git("LICENSE.md", "You must accept the agreement.");
    open.write(&machine.hub());
    gated.write(&machine.hub());
    let stdout = machine.ok(&["push"]);
    assert!(
        stdout.contains("org/gated") && stdout.contains("LICENSE.md") && stdout.contains("team.allow_gated"),
        "{stdout}"
    );
    open.assert_published(&store);
    assert!(!store.keys().iter().any(|key| key.contains("gated") || *key == gated.blob_key("LICENSE.md")));
    machine.configure("team:\n  allow_gated: true\n");
    machine.ok(&["push"]);
    gated.assert_published(&store);
    // At pull, the licence in the cache decides, as in 0.1.0. If nothing needs to be pulled, the licence does not
    // matter.
    fs::remove_file(machine.work().join(".hf-cache-sync.yaml")).unwrap();
    let output = machine.run(&["pull", "org/gated"]);
    assert_eq!(
        (output.code, output.stdout.trim()),
        (0, gated.snapshot(&machine.hub()).to_str().unwrap()),
        "{output:#?}"
    );
    fs::remove_file(gated.blob(&machine.hub(), "model.safetensors")).unwrap();
    fs::remove_file(gated.snapshot(&machine.hub()).join("model.safetensors")).unwrap();
    // Unlike in 0.1.0, not 0: MODEL=$(hf-cache-sync pull org/gated) would continue with an empty path.
    for more in [&[][..], &["--dry-run"]] {
        let output = machine.run(&[&["pull", "org/gated"], more].concat());
        assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:#?}");
        assert!(output.stderr.contains("LICENSE.md") && output.stderr.contains("team.allow_gated"), "{output:#?}");
    }
    let output = machine.run(&["pull-all"]);
    assert!(output.code == 0 && output.stdout.contains("skipped"), "{output:#?}");
}

/// A complete licence text of the SPDX list with typical additions, in various encodings and under various file names.
#[test]
fn open_licences_are_recognised_in_every_format() {
    let store = Store::new();
    let machine = Machine::new(&store);
    // It contains the word "agreement" many times.
    let open = include_str!("harness/cdla-permissive-1.0.txt");
    let units: Vec<u16> = format!("\u{feff}{open}").encode_utf16().collect();
    let utf16: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let latin: Vec<u8> =
        format!("Copyright \u{a9} M\u{fc}ller, all rights reserved\n{open}").chars().map(|c| c as u8).collect();
    let wrapped = open.split_whitespace().collect::<Vec<_>>().chunks(5).map(|line| line.join(" ")).collect::<Vec<_>>();
    let at = |number: usize| format!("{number:02}{}", &COMMIT[2..]);
    let mut number = 0;
    let mut add = |id: &str, name: &str, bytes: &[u8]| {
        number += 1;
        let revision = Revision::model(id).git(name, bytes).at(&at(number));
        revision.write(&machine.hub());
        revision
    };
    let opens = [
        add("open/plain", "LICENSE", open.as_bytes()),
        add("open/wrapped", "Licence.rst", wrapped.join("\r\n * ").as_bytes()),
        add("open/utf16", "LICENSE.txt", &utf16),
        add("open/latin", "COPYING", &latin),
        add("open/twice", "LICENCE.md", format!("{open}\n---\n{open}\nNOTICE: made by us").as_bytes()),
    ];
    let restricted = [
        (add("other/added", "LICENSE", format!("{open}\nYou must accept our terms.").as_bytes()), "you must accept"),
        (add("other/llama", "LICENCE", format!("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n{open}").as_bytes()), "Llama"),
        (add("other/gemma", "License.md", b"Gemma Terms of Use\nUse it well."), "Gemma"),
        (add("other/rail", "LICENSE.rst", format!("BigScience OpenRAIL-M\n{open}").as_bytes()), "OpenRAIL"),
        (add("other/flux", "LICENSE-MODEL", b"FLUX.1 [dev] Non-Commercial License v1.1.1"), "FLUX"),
    ];
    let stdout = machine.ok(&["push"]);
    opens.iter().for_each(|revision| revision.assert_published(&store));
    for (revision, word) in &restricted {
        let line = stdout.lines().find(|line| line.contains(&revision.id)).unwrap_or_else(|| panic!("{stdout}"));
        assert!(line.contains("looks gated") && line.contains(word), "{line}");
        assert!(!store.keys().contains(&revision.manifest_key()), "{line}");
    }
    let output = machine.run(&["push", "-v"]);
    assert!(output.stderr.contains("CDLA-Permissive-1.0"), "{output:#?}");
}
