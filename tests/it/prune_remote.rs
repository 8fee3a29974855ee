//! `prune --require-remote`: evicted revisions can be pulled again, and what the bucket lacks is named.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision};
use crate::harness::machine::{Machine, Output};
use crate::harness::s3::{Action, S3Request};
use crate::harness::store::Store;
use crate::harness::{contents, visible, weights};

/// A machine that has pushed these revisions, each last used this many days ago.
fn pushed(revisions: &[(&Revision, u64)]) -> (Store, Machine) {
    let store = Store::new();
    let machine = Machine::new(&store);
    for (revision, _) in revisions {
        revision.write(&machine.hub());
    }
    machine.ok(&["push", "-q"]);
    for (revision, days) in revisions {
        revision.age(&machine.hub(), *days);
    }
    store.server.take_seen();
    (store, machine)
}

fn prune(machine: &Machine, args: &[&str]) -> Output {
    machine.run(&[&["prune", "--json"], args].concat())
}

/// Evicts everything that may be evicted.
fn prune_all(machine: &Machine) -> Value {
    let ran = prune(machine, &["--max-size", "0B", "--require-remote"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran.json()
}

fn evicted(report: &Value) -> Vec<&str> {
    report["evicted"].as_array().unwrap().iter().map(|one| one["repo"].as_str().unwrap()).collect()
}

/// Returns what the bucket lacked of each revision that was kept for that reason.
fn lacks(report: &Value) -> Vec<(&str, &str)> {
    let skips = report["skipped"].as_array().unwrap().iter();
    let skips = skips.filter(|skip| skip["reason"] == "not-in-bucket");
    skips.map(|skip| (skip["repo"].as_str().unwrap(), skip["lacks"]["what"].as_str().unwrap())).collect()
}

fn is_here(machine: &Machine, revision: &Revision) -> bool {
    revision.snapshot(&machine.hub()).exists()
}

#[test]
fn evicted_revisions_can_be_pulled_again_byte_for_byte() {
    let layouts = [Layout::Links, Layout::Shared, Layout::Hardlinks, Layout::Real];
    for layout in if cfg!(unix) { &layouts[..] } else { &layouts[2..] } {
        let first = Revision::model("org/first").refs(&["main", "v1.0", "refs/pr/1"]).with_tree().layout(*layout);
        let data = Revision::new("dataset", "org/data").at(OTHER).lfs("d.bin", weights(5, 1000)).layout(*layout);
        let (_store, machine) = pushed(&[(&first, 30), (&data, 3)]);
        let report = prune_all(&machine);
        assert_eq!(evicted(&report), ["org/first", "org/data"], "{layout:?}: {report:#}");
        assert_eq!((&report["size"], &report["require_remote"]), (&0.into(), &true.into()));
        assert!(!first.dir(&machine.hub()).exists() && !data.dir(&machine.hub()).exists());
        for name in &first.refs {
            machine.ok(&["pull", "org/first", "-r", name]);
        }
        machine.ok(&["pull", "dataset:org/data"]);
        first.assert_pulled(&machine.hub());
        data.assert_pulled(&machine.hub());
    }
}

#[test]
fn the_least_recently_used_is_evicted_first_with_or_without_refs() {
    let named = Revision::model("org/named");
    let detached = Revision::model("org/detached").refs(&[]);
    let (_store, machine) = pushed(&[(&named, 30), (&detached, 3)]);
    let report = prune(&machine, &["--max-size", "400KB", "--require-remote"]).json();
    assert_eq!((evicted(&report), &report["evicted"][0]["reason"]), (vec!["org/named"], &"referenced".into()));
    assert_eq!(evicted(&prune_all(&machine)), ["org/detached"]);
}

/// Each case lacks one thing that a pull would need.
#[test]
fn revisions_that_the_bucket_lacks_are_kept_and_named() {
    type Spoil = fn(&Store, &Machine, &Revision);
    let cases: [(&str, Spoil); 14] = [
        ("manifest", |store, _, one| store.remove(&one.manifest_key())),
        ("valid-manifest", |store, _, one| store.put(&one.manifest_key(), "{}")),
        ("own-manifest", |store, _, one| {
            let mut manifest = one.manifest();
            manifest["repo_type"] = "dataset".into();
            store.put(&one.manifest_key(), manifest.to_string());
        }),
        ("files", |store, _, one| {
            let mut manifest = one.manifest();
            manifest["files"].as_array_mut().unwrap().pop();
            store.put(&one.manifest_key(), manifest.to_string());
        }),
        ("files", |store, _, one| {
            let mut manifest = one.manifest();
            manifest["files"][0]["blob"] = "ab".repeat(20).into();
            store.put(&format!("blobs/{}", "ab".repeat(20)), &one.file("config.json").bytes);
            store.put(&one.manifest_key(), manifest.to_string());
        }),
        ("blobs", |store, _, one| store.remove(&one.blob_key("model.safetensors"))),
        ("blobs", |store, _, one| store.put(&one.blob_key("model.safetensors"), "short")),
        // A file that is not even here: a pull of the revision would fail.
        ("blobs", |store, _, one| {
            let mut manifest = one.manifest();
            let more = serde_json::json!({"path": "z.bin", "blob": "cd".repeat(32), "size": 5});
            manifest["files"].as_array_mut().unwrap().push(more);
            store.put(&one.manifest_key(), manifest.to_string());
        }),
        ("ref", |store, _, _| store.remove("refs/org__one/main")),
        ("ref", |store, _, _| store.put("refs/org__one/v1.0", "not a commit")),
        ("ref", |_, machine, one| {
            fs::write(one.dir(&machine.hub()).join("refs/new"), &one.commit).unwrap();
            one.age(&machine.hub(), 30);
        }),
        ("strays", |_, machine, one| {
            fs::write(one.snapshot(&machine.hub()).join("engine.plan"), "built here").unwrap();
            one.age(&machine.hub(), 30);
        }),
        ("gated", |_, machine, one| {
            let licence = "Llama 3 COMMUNITY LICENSE AGREEMENT";
            fs::write(one.snapshot(&machine.hub()).join("LICENSE"), licence).unwrap();
            one.age(&machine.hub(), 30);
        }),
        ("damaged", |_, machine, one| {
            let tree = one.tree_json();
            let tree = String::from_utf8(tree).unwrap().replace(&one.etag("model.safetensors"), &"ef".repeat(32));
            fs::create_dir_all(one.dir(&machine.hub()).join("trees")).unwrap();
            fs::write(one.dir(&machine.hub()).join(format!("trees/{COMMIT}.json")), tree).unwrap();
            one.age(&machine.hub(), 30);
        }),
    ];
    for (number, (what, spoil)) in cases.into_iter().enumerate() {
        let one = Revision::model("org/one").refs(&["main", "v1.0"]);
        let two = Revision::model("org/another").at(OTHER);
        let (store, machine) = pushed(&[(&one, 30), (&two, 3)]);
        spoil(&store, &machine, &one);
        let before = contents(&one.dir(&machine.hub()));
        let planned = prune(&machine, &["--max-size", "0B", "--require-remote", "--dry-run"]).json();
        let report = prune_all(&machine);
        assert_eq!(lacks(&report), [("org/one", what)], "{number}: {report:#}");
        assert_eq!((evicted(&report), &planned["skipped"]), (vec!["org/another"], &report["skipped"]), "{number}");
        assert!(report["over_budget"].as_u64().unwrap() > 300_000 && !is_here(&machine, &two), "{number}");
        assert_eq!(contents(&one.dir(&machine.hub())), before, "{number}");
        let said = machine.run(&["prune", "--max-size", "0B", "--require-remote"]);
        assert!(said.code == 0 && said.stderr.contains(&format!("kept org/one@{}", &COMMIT[..12])), "{said:#?}");
        said.nothing_internal();
        let fails = machine.run(&["prune", "--max-size", "0B", "--require-remote", "--fail-over-budget", "-q"]);
        assert!(fails.code == 1 && fails.stderr.contains("revisions that the bucket does not hold"), "{fails:#?}");
    }
}

/// Another machine has pushed a later `main`, which is what a pull would get.
#[test]
fn a_ref_that_leads_elsewhere_in_the_bucket_keeps_its_revision() {
    let old = Revision::model("org/one");
    let (store, machine) = pushed(&[(&old, 30)]);
    let new = Revision::new("model", "org/one").at(OTHER).git("new.txt", "new");
    let other = Machine::new(&store);
    new.write(&other.hub());
    other.ok(&["push", "-q"]);
    let report = prune_all(&machine);
    assert_eq!(lacks(&report), [("org/one", "ref")], "{report:#}");
    assert_eq!(report["skipped"][0]["lacks"]["remote"], OTHER);
    let said = machine.run(&["prune", "--max-size", "0B", "--require-remote"]).stderr;
    assert!(said.contains(&format!("main is {} in the bucket", &OTHER[..12])), "{said}");
    // Once this machine has it, too, nothing here names the old one.
    machine.ok(&["pull", "org/one"]);
    let report = prune(&machine, &["--older-than", "10d", "--require-remote"]).json();
    assert_eq!(report["evicted"][0]["revision"], COMMIT, "{report:#}");
    new.assert_pulled(&machine.hub());
}

/// A mirror's manifest names a file by sha256 that the Hub names by git's sha1.
#[test]
fn a_file_that_the_bucket_knows_by_its_other_hash_is_held() {
    let one = Revision::model("org/one");
    let (store, machine) = pushed(&[(&one, 30)]);
    let config = one.file("config.json");
    let name = crate::harness::sha256(&config.bytes);
    let mut manifest = one.manifest();
    manifest["files"][0]["blob"] = name.clone().into();
    store.put(&one.manifest_key(), manifest.to_string());
    store.put(&format!("blobs/{name}"), &config.bytes);
    assert_eq!(evicted(&prune_all(&machine)), ["org/one"]);
    // The same size, but different bytes.
    machine.ok(&["pull", "org/one"]);
    one.age(&machine.hub(), 30);
    manifest["files"][0]["blob"] = "ab".repeat(20).into();
    store.put(&format!("blobs/{}", "ab".repeat(20)), vec![b'x'; config.bytes.len()]);
    store.put(&one.manifest_key(), manifest.to_string());
    assert_eq!(lacks(&prune_all(&machine)), [("org/one", "files")]);
}

/// Python recreates these files by itself.
#[test]
fn compiled_python_does_not_keep_a_revision() {
    let one = Revision::model("org/one").git("code/model.py", "x = 1\n");
    let (_store, machine) = pushed(&[(&one, 30)]);
    let folder = one.snapshot(&machine.hub()).join("code/__pycache__");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("model.cpython-312.pyc"), "compiled").unwrap();
    one.age(&machine.hub(), 30);
    assert_eq!(evicted(&prune_all(&machine)), ["org/one"]);
}

#[test]
fn a_pointer_file_is_never_in_the_bucket() {
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n", "ab".repeat(32));
    let one = Revision::model("org/one").git("big.bin", pointer);
    let (_store, machine) = pushed(&[(&one, 30)]);
    let report = prune_all(&machine);
    assert_eq!(lacks(&report), [("org/one", "pointer")], "{report:#}");
    assert!(is_here(&machine, &one));
}

/// A partial revision is held if the bucket has that part.
#[test]
fn a_partial_snapshot_is_held_if_the_bucket_has_that_part() {
    let whole = Revision::model("org/one").with_tree();
    let partial = whole.clone().without(&["model.safetensors"]);
    let (store, machine) = pushed(&[(&partial, 30)]);
    let text = machine.run(&["prune", "--max-size", "0B", "--require-remote", "--dry-run"]).stdout;
    assert!(text.contains("least recently used (main); partial"), "{text}");
    let report = prune_all(&machine);
    assert_eq!((evicted(&report), &report["evicted"][0]["status"]), (vec!["org/one"], &"partial".into()));
    machine.ok(&["pull", "org/one"]);
    assert_eq!(fs::read(partial.snapshot(&machine.hub()).join("config.json")).unwrap(), partial.files[0].bytes);
    // The other part, which only this machine has.
    let other = Machine::new(&store);
    whole.write(&other.hub());
    whole.age(&other.hub(), 30);
    assert_eq!(lacks(&prune_all(&other)), [("org/one", "files")]);
}

/// Only data that does not need the proof is deleted.
#[test]
fn without_a_bucket_nothing_is_evicted_and_the_exit_code_says_why() {
    type Break = fn(&Store, &mut Machine);
    let cases: [(i32, Break); 6] = [
        (6, |store, _| {
            store.server.on_request(|seen| match seen.is_list() {
                true => Action::Refuse(503, "SlowDown", "Please slow down."),
                false => Action::Pass,
            })
        }),
        (3, |store, _| store.server.on_request(|_| Action::Refuse(403, "AccessDenied", "Access Denied"))),
        (3, |_, machine| machine.set("B2_APPLICATION_KEY", "wrong-secret")),
        (4, |_, machine| machine.set("B2_BUCKET", "another-bucket")),
        (6, |_, machine| machine.set("B2_ENDPOINT", "http://127.0.0.1:9")),
        (6, |store, _| {
            store.server.on_request(|seen| match seen.is_list() {
                true => Action::Page(200),
                false => Action::Pass,
            })
        }),
    ];
    for (number, (code, spoil)) in cases.into_iter().enumerate() {
        let one = Revision::model("org/one");
        let (store, mut machine) = pushed(&[(&one, 30)]);
        let orphan = one.dir(&machine.hub()).join("blobs").join("ab".repeat(32));
        fs::write(&orphan, "nobody's").unwrap();
        one.age(&machine.hub(), 30);
        spoil(&store, &mut machine);
        for args in [&["--dry-run"][..], &[]] {
            let ran = prune(&machine, &[&["--max-size", "0B", "--require-remote"], args].concat());
            assert_eq!(ran.code, code, "{number}: {ran:#?}");
            assert!(ran.stderr.contains("error: "), "{number}: {ran:#?}");
            ran.nothing_internal();
            let report = ran.json();
            assert_eq!((evicted(&report), lacks(&report)), (vec![], vec![("org/one", "unknown")]), "{number}");
            assert_eq!(report["orphans"]["blobs"], 1, "{number}: {report:#}");
        }
        // A busy store is retried for a while.
        if number > 0 {
            let ran = machine.run(&["prune", "--max-size", "0B", "--require-remote"]);
            let reason = if code == 6 { "reached" } else { "checked" };
            let words = format!("the bucket could not be {reason}, so nothing was evicted");
            assert!(ran.stdout.contains(&words) && ran.stdout.contains("everything was kept"), "{ran:#?}");
            assert!(!format!("{ran:?}").contains("does not hold"), "{ran:#?}");
        }
        assert!(is_here(&machine, &one) && !orphan.exists(), "{number}");
    }
}

#[test]
fn an_incomplete_listing_of_anything_evicts_nothing() {
    for part in ["blobs/", "manifests/", "refs"] {
        let one = Revision::model("org/one");
        let (store, machine) = pushed(&[(&one, 30)]);
        store.server.on_request(move |seen| match seen.is_list() {
            true => Action::Omit(part),
            false => Action::Pass,
        });
        let report = prune_all(&machine);
        assert_eq!(evicted(&report), Vec::<&str>::new(), "{part}: {report:#}");
    }
}

/// An unreachable bucket or a slow listing then does not matter.
#[test]
fn within_the_budget_the_bucket_is_not_contacted() {
    let one = Revision::model("org/one");
    let (store, mut machine) = pushed(&[(&one, 30)]);
    for args in [&["--max-gb", "1"][..], &["--older-than", "31d"]] {
        let ran = prune(&machine, &[&["--require-remote"], args].concat());
        assert_eq!((ran.code, evicted(&ran.json())), (0, vec![]), "{ran:#?}");
    }
    assert_eq!(store.server.take_seen().len(), 0);
    // A missing bucket is a mistake, whether or not it is needed this time.
    machine.unset("B2_BUCKET");
    machine.run(&["prune", "--max-gb", "1", "--require-remote"]).refused(2, &["no bucket is configured"]);
}

#[test]
fn the_setting_and_the_flags_agree() {
    let one = Revision::model("org/one");
    let (store, mut machine) = pushed(&[(&one, 30)]);
    store.remove(&one.manifest_key());
    let is_required = |machine: &Machine, args: &[&str]| {
        let ran = prune(machine, &[&["--dry-run", "--max-size", "0B", "--include-referenced"], args].concat());
        assert_eq!(ran.code, 0, "{ran:#?}");
        let report = ran.json();
        assert_eq!(report["require_remote"] == true, evicted(&report).is_empty(), "{report:#}");
        report["require_remote"] == true
    };
    assert!(!is_required(&machine, &[]) && is_required(&machine, &["--require-remote"]));
    machine.configure("cache:\n  prune_require_remote: true\n");
    assert!(is_required(&machine, &[]) && !is_required(&machine, &["--no-require-remote"]));
    assert!(is_required(&machine, &["--no-require-remote", "--require-remote"]), "the last one counts");
    machine.set("HF_CACHE_SYNC_PRUNE_REQUIRE_REMOTE", "off");
    assert!(!is_required(&machine, &[]));
    machine.configure("");
    machine.set("HF_CACHE_SYNC_PRUNE_REQUIRE_REMOTE", "1");
    assert!(is_required(&machine, &[]));
}

/// A `remote rm` on another machine, between the listing and the deletion.
#[test]
fn revisions_that_disappear_from_the_bucket_are_kept() {
    for gone in ["manifest", "ref"] {
        let (one, two) = (Revision::model("org/one"), Revision::model("org/two").at(OTHER));
        let (store, machine) = pushed(&[(&one, 30), (&two, 3)]);
        let key = if gone == "manifest" { one.manifest_key() } else { "refs/org__one/main".into() };
        let path = store.path(&key);
        // The listing has it; it is first read right before the deletion.
        store.server.on_request(move |seen| {
            if seen.method == "GET" && seen.key.ends_with(&key) {
                let _ = fs::remove_file(&path);
            }
            Action::Pass
        });
        let report = prune_all(&machine);
        assert_eq!(lacks(&report), [("org/one", "changed")], "{gone}: {report:#}");
        assert_eq!(evicted(&report), ["org/two"], "{gone}");
        assert!(is_here(&machine, &one) && one.blob(&machine.hub(), "config.json").exists(), "{gone}");
    }
}

#[test]
fn a_store_that_fails_before_the_deletion_keeps_the_revision() {
    let (one, two) = (Revision::model("org/one"), Revision::model("org/two").at(OTHER));
    let (store, machine) = pushed(&[(&one, 30), (&two, 3)]);
    store.server.on_request(|seen| match seen.is_list() {
        true => Action::Pass,
        false => Action::Refuse(403, "AccessDenied", "Access Denied"),
    });
    let before = visible(&machine.hub());
    // Reading the blobs counted as their last use.
    for (revision, days) in [(&one, 30), (&two, 3)] {
        for blob in fs::read_dir(revision.dir(&machine.hub()).join("blobs")).unwrap() {
            let accessed = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
            let blob = fs::File::open(blob.unwrap().path()).unwrap();
            blob.set_times(fs::FileTimes::new().set_accessed(accessed)).unwrap();
        }
    }
    let ran = prune(&machine, &["--max-size", "0B", "--require-remote"]);
    let report = ran.json();
    assert_eq!((ran.code, evicted(&report)), (3, vec![]), "{ran:#?}");
    assert_eq!(lacks(&report), [("org/one", "unknown"), ("org/two", "unknown")]);
    assert_eq!(report["failures"].as_array().unwrap().len(), 1, "{report:#}");
    assert_eq!(visible(&machine.hub()), before);
}

#[test]
fn an_age_alone_evicts_everything_older() {
    let revisions = [("org/a", 60), ("org/b", 31), ("org/c", 29)];
    let revisions: Vec<_> = revisions.iter().map(|(id, days)| (Revision::model(id), *days)).collect();
    let with_days: Vec<(&Revision, u64)> = revisions.iter().map(|(one, days)| (one, *days)).collect();
    let (_store, machine) = pushed(&with_days);
    let report = prune(&machine, &["--older-than", "30d"]).json();
    assert_eq!((evicted(&report), &report["budget"], &report["older_than"]), (vec![], &Value::Null, &2_592_000.into()));
    let referenced: Vec<&str> =
        report["skipped"].as_array().unwrap().iter().map(|skip| skip["reason"].as_str().unwrap()).collect();
    assert_eq!(referenced, ["referenced"; 2], "what is older has refs, which is said: {report:#}");
    // With a budget as well, only as much as necessary.
    let report = prune(&machine, &["--older-than", "30d", "--require-remote", "--max-size", "700KB"]).json();
    assert_eq!(evicted(&report), ["org/a"]);
    let report = prune(&machine, &["--older-than", "30d", "--require-remote", "--max-size", "0B"]).json();
    assert_eq!(evicted(&report), ["org/b"]);
    assert_eq!(report["skipped"][0]["reason"], "recent", "{report:#}");
    let ran = machine.run(&["prune", "--older-than", "4 weeks", "--require-remote", "--dry-run"]);
    assert!(ran.code == 0 && ran.stdout.contains("org/c") && ran.stdout.contains("that leaves 0 B."), "{ran:#?}");
    assert_eq!(prune(&machine, &["--older-than", "soon"]).code, 2);
}

#[test]
fn pins_keep_revisions_and_are_named_when_they_matter() {
    let (a, b) = (Revision::model("org/a"), Revision::model("org/b"));
    let c = Revision::new("dataset", "org/c").git("c.txt", "c").at(OTHER);
    let (_store, machine) = pushed(&[(&a, 60), (&b, 31), (&c, 29)]);
    let kept = |machine: &Machine, args: &[&str]| {
        let ran = prune(machine, &[&["--dry-run", "--max-size", "0B", "--require-remote"], args].concat());
        let report = ran.json();
        let skips = report["skipped"].as_array().unwrap().iter();
        let pinned = skips.filter(|skip| skip["reason"] == "pinned");
        pinned.map(|skip| skip["repo"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(kept(&machine, &["--keep", "org/a"]), ["org/a"]);
    assert_eq!(kept(&machine, &["--keep", "model:org/*", "--keep", "*/c@main"]), ["org/a", "org/b", "org/c"]);
    assert_eq!(kept(&machine, &["--keep", "*@v*", "--keep", &format!("*@{}", &OTHER[..8])]), ["org/c"]);
    let report = prune(&machine, &["--keep", "*", "--max-gb", "1"]).json();
    assert_eq!(report["skipped"], serde_json::json!([]), "nothing was to be evicted");
    assert_eq!(report["notes"], serde_json::json!([]));
    let note = "--keep 'orgg/*' matches no revision in this cache";
    for args in [&["--dry-run", "--max-gb", "1"][..], &["--max-size", "1GB", "--require-remote"]] {
        let line = [&["--keep", "org/a@main", "--keep", "orgg/*"], args].concat();
        assert_eq!(prune(&machine, &line).json()["notes"], serde_json::json!([note]));
        let ran = machine.run(&[&["prune"], &line[..]].concat());
        assert!(ran.code == 0 && ran.stderr == format!("note: {note}\n"), "{ran:#?}");
    }
    machine.configure("cache:\n  keep: orgg/*\n");
    let ran = machine.run(&["prune", "--dry-run", "--max-gb", "1"]);
    assert!(ran.code == 0 && ran.stderr.is_empty(), "a shared configuration need not match: {ran:#?}");
    machine.configure("cache:\n  keep: [\"*/b\", 'dataset:*']\n");
    assert_eq!(kept(&machine, &["--keep", "org/a"]), ["org/a", "org/b", "org/c"]);
    let ran = machine.run(&["prune", "--max-size", "0B", "--require-remote"]);
    assert!(ran.stderr.contains("kept org/b@") && ran.stderr.contains("it matches --keep or cache.keep"), "{ran:#?}");
    assert!(!is_here(&machine, &a) && is_here(&machine, &b) && is_here(&machine, &c));
    machine.run(&["prune", "--keep", "org/["]).refused(2, &["--keep 'org/['"]);
    machine.configure("cache:\n  keep: org/*@\n");
    machine.run(&["prune"]).refused(2, &["cache.keep", "line 2"]);
    machine.configure("cache:\n  keep: {a: b}\n");
    machine.run(&["prune"]).refused(2, &["expected a list"]);
}

/// The user confirms exactly what the table shows.
#[test]
fn the_plan_says_that_the_bucket_holds_it() {
    let one = Revision::model("org/one");
    let (_store, machine) = pushed(&[(&one, 30)]);
    let ran = machine.run(&["prune", "--max-size", "0B", "--require-remote", "--dry-run"]);
    assert!(ran.stdout.contains("1 revision that the bucket holds"), "{ran:#?}");
    assert!(Path::new(&one.dir(&machine.hub())).exists());
}

/// A partial revision is not damaged: it is evicted like any other, and both reports say so.
#[test]
fn kept_revisions_show_their_completeness() {
    let partial = Revision::model("org/one").with_tree().without(&["model.safetensors"]);
    let (store, machine) = pushed(&[(&partial, 30)]);
    store.clear();
    let report = prune_all(&machine);
    assert_eq!((lacks(&report), &report["skipped"][0]["status"]), (vec![("org/one", "manifest")], &"partial".into()));
    let ran = machine.run(&["prune", "--max-size", "0B", "--require-remote"]);
    assert!(ran.stderr.contains("B, partial): the bucket has no manifest of it"), "{ran:#?}");
    let removed = machine.ok_json(&["rm", "org/one", "--json"]);
    assert_eq!(removed["evicted"][0]["status"], "partial", "{removed:#}");
}

/// The next revisions are checked while the first one waits, and each is checked once.
#[test]
fn several_revisions_are_checked_concurrently() {
    let names: Vec<String> = (0..6).map(|number| format!("org/name-{number}")).collect();
    let revisions: Vec<Revision> = names.iter().map(|name| Revision::model(name)).collect();
    let (store, machine) = pushed(&revisions.iter().map(|revision| (revision, 30)).collect::<Vec<_>>());
    let gate = store.server.hold(|seen| seen.is("GET", "refs/"));
    let prune = machine.start(&["prune", "--max-size", "0B", "--require-remote", "--json"]);
    let refs = |seen: &[S3Request]| seen.iter().filter(|seen| seen.is("GET", "refs/")).count();
    store.server.wait_for("one request for each revision", |seen| refs(seen) == revisions.len());
    assert!(revisions.iter().all(|revision| is_here(&machine, revision)), "nothing goes before its answer");
    gate.open();
    let ran = prune.finish();
    assert_eq!((ran.code, evicted(&ran.json()).len()), (0, 6), "{ran:#?}");
    let seen = store.server.take_seen();
    let manifests = seen.iter().filter(|seen| seen.is("GET", "manifests/")).count();
    assert_eq!((refs(&seen), manifests), (6, 6));
}

/// Revisions proven before the failure are evicted, and none after it.
#[test]
fn a_store_failure_halfway_stops_the_eviction() {
    let names = ["org/a", "org/b", "org/c", "org/d"];
    let revisions = names.map(Revision::model);
    let (store, machine) =
        pushed(&[(&revisions[0], 40), (&revisions[1], 30), (&revisions[2], 20), (&revisions[3], 10)]);
    store.server.on_request(|seen| match seen.is("GET", "refs/org__c/") {
        true => Action::Refuse(403, "AccessDenied", "Access Denied"),
        false => Action::Pass,
    });
    let ran = prune(&machine, &["--max-size", "0B", "--require-remote"]);
    let report = ran.json();
    assert_eq!((ran.code, evicted(&report)), (3, vec!["org/a", "org/b"]), "{ran:#?}");
    assert_eq!(lacks(&report), [("org/c", "unknown"), ("org/d", "unknown")]);
    assert_eq!(report["failures"].as_array().unwrap().len(), 1, "{report:#}");
    assert!(is_here(&machine, &revisions[2]) && is_here(&machine, &revisions[3]));
}

/// One sentence, not one failure per revision; and nothing is deleted.
#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_to_is_refused_at_once() {
    let one = Revision::model("org/one");
    let (_store, machine) = pushed(&[(&one, 30)]);
    let before = visible(&machine.hub());
    let line = ["prune", "--max-size", "0B", "--require-remote", "--yes"];
    machine.run_read_only(&line).refused(3, &["cannot write to", "--dry-run"]);
    let ran = machine.run_read_only(&["prune", "--max-size", "0B", "--require-remote", "--dry-run"]);
    assert!(ran.code == 0 && ran.stdout.contains("Would free"), "{ran:#?}");
    assert_eq!(visible(&machine.hub()), before);
}
