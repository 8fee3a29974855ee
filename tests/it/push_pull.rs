//! Caches in every layout are pushed and pulled completely, and nothing is transferred twice.

use std::fs;

use crate::harness::cache::{COMMIT, Layout, OTHER, Revision, count_files};
use crate::harness::machine::{self, Machine};
use crate::harness::s3::Action;
use crate::harness::store::Store;
use crate::harness::{contents, listing, sha256, visible, weights};
use serde_json::{Value, json};

/// A revision with everything that a repo can contain.
fn full_revision(kind: &str, id: &str) -> Revision {
    Revision::new(kind, id)
        .git("config.json", "{}\n")
        .git("empty.txt", "")
        .lfs("empty.bin", "")
        .lfs("model.safetensors", weights(1, 700_000))
        .lfs("a/b/c/d/e/f/deep.bin", weights(2, 1000))
        .git("ordner/größe 漢字.txt", "non-ASCII\n")
        .lfs("twice/model.safetensors", weights(1, 700_000))
        .refs(&["main", "v1.0", "refs/pr/1", "feature/x"])
}

/// Pushes the revisions from one machine, and pulls each of their refs on another. Returns the store and both machines.
fn round_trip(revisions: &[Revision]) -> (Store, Machine, Machine) {
    let store = Store::new();
    let (source, target) = (Machine::new(&store), Machine::new(&store));
    revisions.iter().for_each(|revision| revision.write(&source.hub()));
    let before = visible(&source.hub());
    source.ok(&["push"]);
    assert_eq!(visible(&source.hub()), before, "a push must not change the cache");
    for revision in revisions {
        revision.assert_published(&store);
        for name in &revision.refs {
            let printed = target.ok(&["pull", &revision.id, "--repo-type", &revision.kind, "-r", name]);
            assert_eq!(printed, format!("{}\n", revision.snapshot(&target.hub()).display()));
        }
        revision.assert_pulled(&target.hub());
    }
    (store, source, target)
}

#[test]
fn repos_of_every_type_make_the_round_trip() {
    let revisions = ["model", "dataset", "space", "kernel"].map(|kind| full_revision(kind, "org/name").with_tree());
    let (store, source, target) = round_trip(&revisions[..1]);
    // In the bucket, repos with the same id but different types cannot have the same commit. As on the Hub, each gets
    // its own.
    drop((store, source, target));
    let revisions: Vec<Revision> =
        revisions.into_iter().enumerate().map(|(n, revision)| revision.at(&format!("{n}{}", &COMMIT[1..]))).collect();
    let (store, source, target) = round_trip(&revisions);
    let (mut before, mut after) = (contents(&source.hub()), contents(&target.hub()));
    before.remove("CACHEDIR.TAG");
    after.remove("CACHEDIR.TAG");
    assert_eq!(after, before, "both caches must be identical");
    // 0.1.0 would install a kernel as a model.
    assert!(!store.keys().iter().any(|key| key.starts_with("refs/") && store.text(key) == revisions[3].commit));
}

/// hf-hub before 1.0 finds a pinned commit offline through a ref with the commit's own name. Such a ref is pushed and
/// pulled with the commit, and is not shown anywhere.
#[test]
fn a_ref_named_after_its_commit_makes_the_round_trip() {
    let store = Store::new();
    let (source, plain) = (Machine::new(&store), Machine::new(&store));
    let (pinned, other) =
        (full_revision("model", "org/name").refs(&["main"]), full_revision("dataset", "org/data").at(OTHER).refs(&[]));
    pinned.write(&source.hub());
    other.write(&source.hub());
    let pin = |machine: &Machine, revision: &Revision| revision.dir(&machine.hub()).join("refs").join(&revision.commit);
    fs::create_dir_all(pin(&source, &other).parent().unwrap()).unwrap();
    fs::write(pin(&source, &other), OTHER).unwrap();
    fs::write(pin(&source, &pinned), COMMIT).unwrap();
    // A ref whose commit is not in the cache is ignored.
    fs::write(pin(&source, &pinned).with_file_name("ab".repeat(20)), "ab".repeat(20)).unwrap();
    let stdout = source.ok(&["push"]);
    assert!(!stdout.contains("skipped"), "{stdout}");
    assert_eq!(store.text(&format!("refs-v2/datasets--org--data/{OTHER}")), OTHER);

    for (revision, commit) in [(&other, OTHER), (&pinned, COMMIT)] {
        let target = Machine::new(&store);
        let line = ["pull", &revision.id, "--repo-type", &revision.kind, "-r", commit];
        target.ok(&line);
        assert_eq!(fs::read_to_string(pin(&target, revision)).unwrap(), commit);
        // The ref is also added to a cache that has everything else.
        fs::remove_file(pin(&target, revision)).unwrap();
        target.ok(&line);
        assert_eq!(fs::read_to_string(pin(&target, revision)).unwrap(), commit);
    }
    source.ok(&["diff", "--exit-code"]);
    // As in huggingface_hub, no such ref is created on its own.
    let alone = full_revision("model", "org/alone").at(&format!("9{}", &COMMIT[1..])).refs(&[]);
    alone.write(&plain.hub());
    plain.ok(&["push"]);
    let target = Machine::new(&store);
    target.ok(&["pull", &alone.id, "-r", &alone.commit]);
    assert!(!pin(&target, &alone).exists());

    let listed = source.ok_json(&["list", "--revisions", "--json"]);
    let remote = source.ok_json(&["list", "--remote", "--revisions", "--json"]);
    for json in [listed, remote] {
        let repos = json["repos"].as_array().unwrap().iter();
        let rows: Vec<&Value> = repos.flat_map(|repo| repo["revisions"].as_array().unwrap()).collect();
        let refs_of = |commit: &str| rows.iter().find(|row| row["revision"] == commit).unwrap()["refs"].clone();
        assert_eq!((refs_of(COMMIT), refs_of(OTHER)), (json!(["main"]), json!([])), "{json:#}");
    }
}

/// Unfinished downloads, locks and folders of other clients are neither pushed nor reported.
#[test]
fn files_of_other_clients_are_ignored() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = full_revision("model", "org/name").refs(&["main"]);
    revision.write(&machine.hub());
    let (hub, blobs) = (machine.hub(), revision.dir(&machine.hub()).join("blobs"));
    let etag = "cd".repeat(32);
    let ends =
        ["part", ".part", "sync.part", "downloadInProgress", "incomplete", "0a1b2c3d.incomplete", "lock", "etag"];
    let mut traces: Vec<_> = ends.iter().map(|end| blobs.join(format!("{etag}.{end}"))).collect();
    traces.push(revision.snapshot(&hub).join("model.gguf.downloadInProgress"));
    traces.push(revision.dir(&hub).join("refs/main.tmp"));
    for name in ["tmpa1b2c3d4", "tmp/aB3dE5f", ".metadata/models--org--name/x.json", ".locks/models--org--name/x.lock"]
    {
        traces.push(hub.join(name));
    }
    for path in &traces {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    for line in [&["push"][..], &["list"], &["status"], &["diff", "--exit-code"]] {
        let output = machine.run(line);
        let text = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(output.code, 0, "{line:?}: {text}");
        let names = traces.iter().map(|path| path.file_name().unwrap().to_str().unwrap());
        for word in names.chain(["1 problem", "warning", "not part of", "not a hash"]) {
            assert!(!text.contains(word), "{line:?}: {word} in {text}");
        }
    }
    revision.assert_published(&store);
    assert!(!store.keys().iter().any(|key| key.contains(&etag) || key.contains("main.tmp")), "{:?}", store.keys());
    assert!(traces.iter().all(|path| path.exists()));
}

#[test]
fn caches_in_every_layout_are_pulled_as_links() {
    for layout in [Layout::Links, Layout::Shared, Layout::Hardlinks] {
        let revision = full_revision("model", "org/name").refs(&["main"]).layout(layout);
        round_trip(std::slice::from_ref(&revision));
        round_trip(&[revision.with_tree()]);
    }
    // Without links, blobs or a tree, the hash is guessed as the Hub decides: git's for text, sha256 (LFS) for binary
    // files.
    let plain = |layout| {
        let revision = Revision::new("model", "org/name").git("config.json", "{}\n");
        revision.lfs("model.safetensors", weights(3, 400_000)).layout(layout)
    };
    round_trip(&[plain(Layout::Real)]);
    round_trip(&[full_revision("model", "org/name").refs(&["main"]).layout(Layout::Real).with_tree()]);
}

#[test]
fn ids_with_similar_keys_are_kept_apart() {
    let ids = ["a_/b", "a/_b", "team__a/under__score", "a__b", "gpt2", "a/b"];
    let revisions: Vec<Revision> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| Revision::model(id).git("id.txt", id).at(&format!("{n}{}", &COMMIT[1..])))
        .collect();
    let (store, ..) = round_trip(&revisions);
    // Simple ids use only the key of 0.1.0.
    assert_eq!(store.text("refs/a__b/main"), revisions[5].commit);
    assert_eq!(store.text("refs/gpt2/main"), revisions[4].commit);
    assert!(!store.has("refs-v2/models--gpt2/main") && !store.has("refs-v2/models--a--b/main"));
    assert_eq!(store.text("refs-v2/models--team__a--under__score/main"), revisions[2].commit);
}

#[test]
fn a_dataset_uses_the_old_ref_key_only_if_no_model_needs_it() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let dataset = Revision::new("dataset", "org/name").git("data.csv", "1\n").at(OTHER);
    dataset.write(&machine.hub());
    machine.ok(&["push"]);
    assert_eq!(store.text("refs/org__name/main"), OTHER, "0.1.0 can pull it");
    assert_eq!(store.text("refs-v2/datasets--org--name/main"), OTHER);

    let model = Revision::model("org/name");
    model.write(&machine.hub());
    machine.ok(&["push"]);
    machine.ok(&["push", "dataset:org/name"]);
    assert_eq!(store.text("refs/org__name/main"), COMMIT, "the old key belongs to the model");
    let other = Machine::new(&store);
    other.ok(&["pull", "org/name"]);
    other.ok(&["pull", "dataset:org/name"]);
    model.assert_pulled(&other.hub());
    dataset.assert_pulled(&other.hub());
}

#[test]
fn the_newest_ref_wins_whichever_version_wrote_it() {
    let store = Store::new();
    let old = Revision::new("dataset", "org/name").git("data.csv", "old\n");
    let new = Revision::new("dataset", "org/name").git("data.csv", "new\n").at(OTHER);
    old.publish(&store);
    new.publish(&store);
    for (newer, age) in [(&new, -60), (&old, 60)] {
        store.put("refs/org__name/main", OTHER);
        store.put("refs-v2/datasets--org--name/main", COMMIT);
        store.age("refs-v2/datasets--org--name/main", age);
        let machine = Machine::new(&store);
        machine.ok(&["pull", "org/name"]);
        newer.assert_pulled(&machine.hub());
    }
}

#[test]
fn without_a_type_the_only_other_type_is_pulled() {
    let store = Store::new();
    let dataset = Revision::new("dataset", "org/name").git("data.csv", "1\n");
    dataset.publish(&store);
    let machine = Machine::new(&store);
    let output = machine.run(&["pull", "org/name"]);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stderr.contains("note: org/name is a dataset"), "{output:#?}");
    dataset.assert_pulled(&machine.hub());

    let space = Revision::new("space", "org/name").git("app.py", "1\n").at(OTHER).refs(&[]);
    space.publish(&store);
    store.put("refs-v2/datasets--org--name/main", COMMIT);
    store.put("refs-v2/spaces--org--name/main", OTHER);
    let output = Machine::new(&store).run(&["pull", "org/name"]);
    output.refused(2, &["ambiguous", "dataset", "space", "--repo-type"]);
}

#[test]
fn revisions_are_found_by_ref_commit_and_short_commit() {
    let store = Store::new();
    let one = Revision::model("org/name").refs(&["main", "v1"]);
    let two = Revision::model("org/name").git("new.txt", "2").at(OTHER).refs(&["refs/pr/7"]);
    one.publish(&store);
    two.publish(&store);
    for (revision, found, refs) in [
        ("v1", &one, vec!["v1"]),
        (COMMIT, &one, vec![]),
        ("0123456", &one, vec![]),
        ("refs/pr/7", &two, vec!["refs/pr/7"]),
        (&OTHER[..8], &two, vec![]),
    ] {
        let machine = Machine::new(&store);
        let printed = machine.ok(&["pull", "org/name", "-r", revision]);
        assert_eq!(printed.trim_end(), found.snapshot(&machine.hub()).display().to_string());
        found.clone().refs(&refs).assert_pulled(&machine.hub());
        // Only the requested ref is written.
        let there = found.dir(&machine.hub()).join("refs");
        assert_eq!(if there.exists() { count_files(&there) } else { 0 }, refs.len(), "{revision}");
    }
}

#[cfg(unix)]
#[test]
fn only_the_path_is_printed_on_stdout() {
    let store = Store::new();
    Revision::model("org/name").publish(&store);
    let machine = Machine::new(&store);
    let line = "MODEL=$(\"$0\" pull org/name) && cat \"$MODEL/config.json\" && \"$0\" pull org/name 2>/dev/null";
    let shell = machine.script(line);
    let output = machine::run(shell);
    let snapshot = Revision::model("org/name").snapshot(&machine.hub());
    assert_eq!(output.stdout, format!("{{\"model_type\": \"bert\"}}\n{}\n", snapshot.display()));
}

#[test]
fn a_second_push_only_lists_the_bucket() {
    let store = Store::new();
    let machine = Machine::new(&store);
    for n in 0..20 {
        let revision = Revision::model(&format!("org/name-{n}")).refs(&["main", "v1"]);
        revision.lfs("own.bin", weights(100 + n, 5000)).with_tree().write(&machine.hub());
    }
    machine.ok(&["push"]);
    let before = store.objects();
    store.server.take_seen();
    let stdout = machine.ok(&["push"]);
    let seen = store.server.take_seen();
    assert!(seen.len() == 3 && seen.iter().all(|request| request.is_list()), "{seen:#?}");
    assert_eq!(store.objects(), before);
    assert!(stdout.lines().last().is_some_and(|line| line.contains("Z  Uploaded 0 blobs")), "{stdout}");
}

#[test]
fn a_store_without_etags_needs_no_request_per_blob() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let mut revision = Revision::model("org/name");
    for n in 0..40 {
        revision = revision.lfs(&format!("{n}.bin"), weights(n, 100));
    }
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    // An ETag that is not an MD5, as for encrypted objects, so only the content can be compared.
    store.put(&revision.manifest_key(), [store.get(&revision.manifest_key()).as_slice(), b"\n"].concat());
    store.server.take_seen();
    machine.ok(&["push"]);
    let seen = store.server.take_seen();
    assert!(seen.len() <= 5 && !seen.iter().any(|s| s.key.starts_with("blobs/")), "{seen:#?}");
}

#[test]
fn every_object_is_read_at_most_once() {
    let store = Store::new();
    let [source, other, empty] = [(); 3].map(|()| Machine::new(&store));
    // 0.1.0's keys for a dataset may belong to a model; only the manifest that they lead to can tell.
    let old = Revision::new("dataset", "org/name").git("data.csv", "old\n").refs(&["main", "v1", "v2"]);
    old.write(&source.hub());
    old.at(OTHER).git("more.csv", "new\n").write(&other.hub());
    source.ok(&["push"]);
    for (machine, line) in [
        (&other, &["push", "--dry-run"][..]),
        (&other, &["diff", "--deep"]),
        (&empty, &["list", "--remote", "--sizes"]),
        (&empty, &["pull", "org/name", "--dry-run"]),
        (&empty, &["pull-all", "--dry-run"]),
    ] {
        store.server.take_seen();
        machine.ok(line);
        let seen = store.server.take_seen();
        let mut read: Vec<_> = seen.iter().filter(|seen| seen.method == "GET" && !seen.is_list()).collect();
        read.sort_by_key(|seen| &seen.key);
        assert!(!read.is_empty() && !read.windows(2).any(|pair| pair[0].key == pair[1].key), "{line:?}: {read:#?}");
    }
}

#[test]
fn every_request_has_the_user_agent() {
    let store = Store::new();
    let (source, target) = (Machine::new(&store), Machine::new(&store));
    Revision::model("org/name").lfs("large.bin", weights(5, 17 << 20)).write(&source.hub());
    source.ok(&["push"]);
    target.ok(&["pull", "org/name"]);
    target.ok(&["doctor"]);
    let agent = concat!("hf-cache-sync/", env!("CARGO_PKG_VERSION"));
    let seen = store.server.take_seen();
    assert!(seen.iter().any(|request| request.part().is_some()) && seen.iter().any(|request| request.range.is_some()));
    for request in seen {
        assert_eq!(request.agent.split(' ').next(), Some(agent), "{request:?}");
    }
}

#[test]
fn partial_and_full_snapshots_are_merged_into_one_manifest() {
    let full = full_revision("model", "org/name").refs(&["main"]);
    for first_is_partial in [true, false] {
        let store = Store::new();
        let (one, two) = (Machine::new(&store), Machine::new(&store));
        let part = full.clone().without(&["model.safetensors", "a/b/c/d/e/f/deep.bin", "twice/model.safetensors"]);
        let (first, second) = if first_is_partial { (&part, &full) } else { (&full, &part) };
        first.write(&one.hub());
        second.write(&two.hub());
        one.ok(&["push"]);
        two.ok(&["push"]);
        full.assert_published(&store);
        let target = Machine::new(&store);
        target.ok(&["pull", "org/name"]);
        full.assert_pulled(&target.hub());
    }
}

/// Pushes by this tool take turns (tests/it/concurrency.rs); 0.1.0 does not.
#[test]
fn a_concurrent_push_by_another_program_loses_nothing() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let full = Revision::model("org/name").git("only-one.txt", "1").git("only-two.txt", "2");
    full.clone().without(&["only-two.txt"]).write(&machine.hub());
    // The push has found no manifest, and is held while it writes its own; the other one overtakes it.
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let gate = store.server.hold(move |request| {
        request.is("PUT", "manifests/") && is_first.swap(false, std::sync::atomic::Ordering::SeqCst)
    });
    let running = machine.start(&["push"]);
    store.server.wait_for("a manifest", |seen| seen.iter().any(|request| request.is("PUT", "manifests/")));
    full.clone().without(&["only-one.txt"]).publish(&store);
    gate.open();
    let output = running.finish();
    assert_eq!(output.code, 0, "{output:#?}");
    // The write is rejected, because the manifest now exists. (The other one's write would be lost on a store without
    // conditional writes, but this one has them.)
    full.assert_published(&store);
}

/// Stores without conditional writes reject (B2) or ignore them. Pushes work nevertheless.
#[test]
fn a_store_without_conditional_writes_is_supported() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    store.server.on_request(|request| match request.conditional {
        true => Action::Refuse(501, "NotImplemented", "A header you provided implies functionality not implemented"),
        false => Action::Pass,
    });
    machine.ok(&["push"]);
    revision.assert_published(&store);
    // Extending an existing manifest works, too.
    revision.clone().git("more.txt", "more").write(&machine.hub());
    machine.ok(&["push"]);
    revision.git("more.txt", "more").assert_published(&store);
}

/// Ceph compares the ETag of an `If-Match` together with its quotes, and refuses every write that has them.
#[test]
fn a_manifest_is_extended_where_etags_are_compared_with_their_quotes() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revisions = [Revision::model("org/one"), Revision::model("org/two")];
    revisions.iter().for_each(|one| one.write(&machine.hub()));
    machine.ok(&["push"]);
    store.server.on_request(|request| match request.is_quoted_write() {
        true => Action::Refuse(412, "PreconditionFailed", ""),
        false => Action::Pass,
    });
    store.server.take_seen();
    for one in revisions.map(|one| one.git("more.txt", "more")) {
        one.write(&machine.hub());
        machine.ok(&["push"]);
        one.assert_published(&store);
        let seen = store.server.take_seen();
        let writes: Vec<_> = seen.iter().filter(|request| request.is("PUT", "manifests/")).collect();
        // The write stays conditional.
        assert!(matches!(writes[..], [first, second] if first.is_quoted_write() && second.conditional), "{writes:#?}");
    }
}

/// A store's rejection of a condition is ignored if the object is unchanged.
#[test]
fn a_store_that_refuses_every_condition_is_supported() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    store.server.on_request(|request| match request.conditional {
        true => Action::Refuse(412, "PreconditionFailed", ""),
        false => Action::Pass,
    });
    for revision in [revision.clone(), revision.git("more.txt", "more")] {
        revision.write(&machine.hub());
        machine.ok(&["push"]);
        revision.assert_published(&store);
    }
}

#[test]
fn prefixes_keep_teams_apart() {
    let store = Store::new();
    let (one, two) = (Machine::new(&store), Machine::new(&store));
    let (ours, theirs) = (Revision::model("org/name").git("a", "1"), Revision::model("org/name").git("a", "2"));
    ours.write(&one.hub());
    theirs.write(&two.hub());
    one.ok(&["push", "--prefix", "team/a"]);
    let before = store.objects();
    assert!(before.keys().all(|key| key.starts_with("team/a/")), "{before:#?}");
    two.ok(&["--prefix", "/team/ab/", "push"]);
    let mut after = store.objects();
    after.retain(|key, _| !key.starts_with("team/ab/"));
    assert_eq!(after, before);
    let target = Machine::new(&store);
    target.run(&["pull", "org/name"]).refused(4, &["org/name", "team.prefix"]);
    target.ok(&["pull", "org/name", "--prefix", "team/a"]);
    ours.assert_pulled(&target.hub());
}

#[test]
fn all_pages_of_a_listing_are_read() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&machine.hub());
    machine.ok(&["push"]);
    // Make our blobs and manifest end up on the last pages.
    for n in 0..1100 {
        store.put(&format!("blobs/{}", sha256(format!("{n}").as_bytes())), "");
        store.put(&format!("manifests/aaa__x{n}@{COMMIT}.json"), "{}");
        store.put(&format!("refs/aaa__x{n}/main"), COMMIT);
    }
    let before = store.objects();
    store.server.take_seen();
    machine.ok(&["push"]);
    let seen = store.server.take_seen();
    assert!(seen.len() == 6 && seen.iter().all(|request| request.is_list()), "{seen:#?}");
    assert_eq!(store.objects(), before);
    let target = Machine::new(&store);
    target.ok(&["pull", "org/name"]);
    revision.assert_pulled(&target.hub());
}

#[test]
fn many_blobs_are_listed_concurrently() {
    const BLOBS: usize = 300;
    let store = Store::new();
    let machine = Machine::new(&store);
    for n in 0..BLOBS {
        store.put(&format!("blobs/{}", sha256(format!("{n}").as_bytes())), "x");
    }
    // Not the names of blobs: before and after all of them, and where one segment of the listing may end.
    let others = ["blobs/!", "blobs/8000", "blobs/zz", "blobs/zzz"];
    others.iter().for_each(|key| store.put(key, "12"));
    store.server.set_page_size(30);
    let count = || {
        store.server.take_seen();
        let report = machine.ok_json(&["remote", "du", "--json"]);
        assert_eq!(report["blobs"], json!({"blobs": BLOBS, "bytes": BLOBS}));
        assert_eq!(report["foreign"], json!({"keys": 4, "bytes": 8}));
        let listings: Vec<String> = store.server.take_seen().into_iter().map(|request| request.query).collect();
        ["start-after", "continuation-token"].map(|name| listings.iter().filter(|query| query.contains(name)).count())
    };
    let [segments, pages] = count();
    assert!(segments >= 5 && pages == 0, "{segments} {pages}");
    // A store that ignores `start-after`, one that lists nothing, and those that start too early or too late.
    for other in ["", "~", "blobs/4", "blobs/c", "blobs/f"] {
        store.server.replace_start_after(other);
        let [segments, pages] = count();
        assert!(segments >= 5 && pages >= BLOBS / 30, "{other} {segments} {pages}");
    }
    // A store that rejects it, and is not busy because of that.
    store.server.on_request(|request| match request.query.contains("start-after") {
        true => Action::Refuse(501, "NotImplemented", "start-after is not implemented"),
        false => Action::Pass,
    });
    count();
}

#[cfg(unix)]
#[test]
fn a_complete_revision_can_be_pulled_in_a_read_only_cache() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = full_revision("model", "org/name").with_tree();
    revision.publish(&store);
    let tree: Value = serde_json::from_slice(&revision.tree_json()).unwrap();
    let mut manifest = revision.manifest();
    manifest["tree"] = tree;
    store.put(&revision.manifest_key(), serde_json::to_vec(&manifest).unwrap());
    machine.ok(&["pull", "org/name"]);
    fs::remove_dir_all(machine.hub().join(".locks")).unwrap();
    let before = listing(&machine.hub());
    store.server.take_seen();
    for line in [&["pull", "org/name"][..], &["pull", "org/name", "--verify"], &["pull", "org/name", "--dry-run"]] {
        let output = machine.run_read_only(line);
        assert_eq!(output.code, 0, "{output:#?}");
        assert_eq!(listing(&machine.hub()), before, "no file, mode or timestamp may change");
    }
    let seen = store.server.take_seen();
    assert!(!seen.iter().any(|request| request.key.starts_with("blobs/")), "{seen:#?}");
}

#[test]
fn a_pull_does_not_change_a_complete_cache() {
    for layout in [Layout::Links, Layout::Shared, Layout::Hardlinks, Layout::Real] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = full_revision("model", "org/name").refs(&["main"]).with_tree().layout(layout);
        revision.publish(&store);
        revision.write(&machine.hub());
        let before = visible(&machine.hub());
        for line in [&["pull", "org/name"][..], &["pull", "org/name", "--verify"]] {
            machine.ok(line);
            assert_eq!(visible(&machine.hub()), before, "{layout:?} {line:?}");
        }
        assert!(!store.server.take_seen().iter().any(|seen| seen.key.starts_with("blobs/")), "{layout:?}");

        // A missing file is restored, and nothing else is downloaded.
        fs::remove_file(revision.snapshot(&machine.hub()).join("config.json")).unwrap();
        machine.ok(&["pull", "org/name"]);
        let restored = fs::read(revision.snapshot(&machine.hub()).join("config.json")).unwrap();
        assert_eq!(restored, b"{}\n");
        let fetched = store.server.take_seen().iter().filter(|seen| seen.is("GET", "blobs/")).count();
        assert_eq!(fetched, usize::from(layout == Layout::Real), "{layout:?}");
    }
}

#[test]
fn verify_repairs_blobs_in_every_layout() {
    for layout in [Layout::Links, Layout::Shared, Layout::Hardlinks, Layout::Real] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let revision = Revision::model("org/name").layout(layout);
        revision.publish(&store);
        revision.write(&machine.hub());
        let path = revision.snapshot(&machine.hub()).join("model.safetensors");
        let mut bytes = revision.file("model.safetensors").bytes.clone();
        bytes[7] ^= 1;
        fs::write(&path, &bytes).unwrap();
        machine.ok(&["pull", "org/name", "--verify"]);
        assert!(fs::read(&path).unwrap() == revision.file("model.safetensors").bytes, "{layout:?}");
        let blob = revision.blob(&machine.hub(), "model.safetensors");
        assert!(fs::read(blob).unwrap() == revision.file("model.safetensors").bytes, "{layout:?}");
    }
}

/// Large disks are often used as a cache through a link.
#[cfg(unix)]
#[test]
fn a_cache_can_be_a_link_to_a_folder() {
    let store = Store::new();
    let (source, target) = (Machine::new(&store), Machine::new(&store));
    let revision = full_revision("model", "org/name").refs(&["main"]);
    for machine in [&source, &target] {
        let disk = machine.home().join("disk");
        fs::create_dir(&disk).unwrap();
        fs::create_dir_all(machine.hub().parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&disk, machine.hub()).unwrap();
    }
    revision.write(&source.hub());
    source.ok(&["push"]);
    target.ok(&["pull", "org/name"]);
    revision.assert_pulled(&target.home().join("disk"));
}

#[test]
fn pulling_a_cached_revision_counts_as_use() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.publish(&store);
    machine.ok(&["pull", "org/name"]);
    let blob = revision.blob(&machine.hub(), "model.safetensors");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = fs::File::options().write(true).open(&blob).unwrap();
    file.set_times(fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago)).unwrap();
    machine.ok(&["pull", "org/name"]);
    let meta = fs::metadata(&blob).unwrap();
    assert!(meta.accessed().unwrap() > long_ago);
    assert_eq!(meta.modified().unwrap(), long_ago);
}

/// A pull only checks the licence that is already in the cache: the first pull is never refused, and neither is one
/// that has nothing to download.
#[test]
fn a_gated_repo_is_updated_only_if_that_is_allowed() {
    let store = Store::new();
    let first = Revision::model("org/gated").git("LICENSE", "You must accept this agreement.\n");
    first.publish(&store);
    for line in [&["pull", "org/gated"][..], &["pull-all"]] {
        let machine = Machine::new(&store);
        machine.ok(line);
        first.assert_pulled(&machine.hub());
    }
    let machine = Machine::new(&store);
    let pulled = machine.ok(&["pull", "org/gated"]);
    let second = first.clone().git("more.json", "{}\n").at(OTHER);
    second.publish(&store);
    let before = visible(&machine.hub());
    store.server.take_seen();
    machine.run(&["pull", "org/gated"]).refused(1, &["org/gated", "LICENSE", "agreement", "team.allow_gated"]);
    assert!(!store.server.take_seen().iter().any(|request| request.is("GET", "blobs/")));
    assert_eq!(visible(&machine.hub()), before, "neither files nor the ref may change");
    assert_eq!(machine.ok(&["pull", "org/gated", "-r", COMMIT]), pulled);
    machine.configure("team:\n  allow_gated: true\n");
    machine.ok(&["pull", "org/gated"]);
    second.assert_pulled(&machine.hub());
}

#[test]
fn repos_can_be_given_in_every_common_form() {
    let store = Store::new();
    let source = Machine::new(&store);
    let revision = Revision::new("dataset", "org/name").git("a.txt", "a").refs(&["main", "refs/pr/1"]);
    revision.write(&source.hub());
    source.ok(&["push", "https://huggingface.co/datasets/org/name/tree/main"]);
    let short = format!("dataset:org/name@{}", &revision.commit[..12]);
    let snapshot = format!("datasets--org--name/snapshots/{}", revision.commit);
    for name in [
        "datasets/org/name",
        " org/name/ ",
        "https://huggingface.co/datasets/org/name/resolve/refs%2Fpr%2F1/a.txt?download=true#x",
        "hf.co/datasets/org/name",
        "hf://datasets/org/name@main/a.txt",
        "datasets--org--name",
        &snapshot,
        &short,
        "Org/NAME",
        "org/name@refs/pr/1",
    ] {
        let machine = Machine::new(&store);
        let path = machine.ok(&["pull", name]);
        assert_eq!(path.trim(), revision.snapshot(&machine.hub()).to_str().unwrap(), "{name}");
        assert!(revision.blob(&machine.hub(), "a.txt").exists(), "{name}");
    }
    let mut machine = Machine::new(&store);
    let output = machine.run(&["pull", "ORG/name"]);
    assert!(output.code == 0 && output.stderr.contains("ORG/name is org/name in bucket"), "{output:#?}");
    machine.set("HF_ENDPOINT", "http://mirror.corp:8080/hf");
    machine.ok(&["pull", "http://mirror.corp:8080/hf/datasets/org/name"]);
    // The revision may be given twice if it is the same.
    machine.ok(&["pull", "org/name@main", "-r", "main"]);
    machine.run(&["pull", "org/name@main", "-r", "v1"]).refused(2, &["'main'", "'v1'"]);
    for name in
        ["https://github.com/org/name", "https://huggingface.co/docs/hub", "org/name@", "a/b/c", "org/name:v1", ""]
    {
        assert_eq!(machine.run(&["pull", name]).code, 2, "{name}");
        assert_eq!(machine.run(&["push", name]).code, 2, "{name}");
    }
    for pattern in ["datasets/org/*", "https://huggingface.co/datasets/org/name", "hf://datasets/org/*"] {
        let machine = Machine::new(&store);
        machine.ok(&["pull-all", "--include", pattern]);
        assert!(revision.blob(&machine.hub(), "a.txt").exists(), "{pattern}");
    }
    assert_eq!(machine.run(&["pull-all", "--include", "https://github.com/org/*"]).code, 2);
}

#[test]
fn push_accepts_a_revision_and_ignores_case() {
    let store = Store::new();
    let source = Machine::new(&store);
    let other = format!("f{}", &COMMIT[1..]);
    let one = Revision::model("org/name").refs(&["main"]);
    let two = Revision::model("org/name").git("b.txt", "b").at(&other).refs(&["v2"]);
    [&one, &two].iter().for_each(|revision| revision.write(&source.hub()));
    source.run(&["push", "org/name@v3"]).refused(4, &["v3", "main", "v2"]);
    let output = source.run(&["push", "Org/Name@v2"]);
    assert!(output.code == 0 && output.stderr.contains("Org/Name is org/name in this cache"), "{output:#?}");
    two.assert_published(&store);
    assert!(!store.keys().contains(&one.manifest_key()), "{:?}", store.keys());
    source.ok(&["push", "org/name@main", "org/name"]);
    one.assert_published(&store);
}

#[test]
fn an_id_without_a_type_prefers_the_model() {
    let at = |digit: &str| format!("{digit}{}", &COMMIT[1..]);
    let model = Revision::model("org/name").at(&at("a")).refs(&["main", "v1.0"]);
    let dataset = Revision::new("dataset", "org/name").git("d.csv", "d").at(&at("b")).refs(&["main", "v2.0"]);
    let push = |line: &[&str]| {
        let store = Store::new();
        let source = Machine::new(&store);
        [&model, &dataset].iter().for_each(|revision| revision.write(&source.hub()));
        let output = source.run(line);
        assert_eq!(output.code, 0, "{line:?}: {output:#?}");
        let keys = store.keys();
        ([&model, &dataset].map(|revision| keys.contains(&revision.manifest_key())), output.stderr)
    };
    for (name, expected) in [
        ("org/name@v1.0", [true, false]),
        ("hf://org/name@v1.0", [true, false]),
        ("https://huggingface.co/org/name/tree/v1.0", [true, false]),
        ("https://huggingface.co/org/name", [true, false]),
        ("hf.co/org/name", [true, false]),
        ("https://huggingface.co/datasets/org/name", [false, true]),
        ("org/name@v2.0", [false, true]),
        ("hf://org/name@v2.0", [false, true]),
        ("Org/Name@v2.0", [false, true]),
        ("dataset:org/name", [false, true]),
    ] {
        assert_eq!(push(&["push", name]).0, expected, "{name}");
    }
    let (published, stderr) = push(&["push", "org/name"]);
    assert_eq!(published, [true, false]);
    assert!(stderr.contains("org/name is the model; this cache also has dataset:org/name"), "{stderr}");
    assert_eq!(push(&["push", "org/name", "dataset:org/name"]).0, [true, true]);
    assert_eq!(push(&["push"]).0, [true, true]);

    let store = Store::new();
    let source = Machine::new(&store);
    [&model, &dataset].iter().for_each(|revision| revision.write(&source.hub()));
    source.run(&["push", "org/name@v3"]).refused(4, &["'v3' of org/name is not in this cache", "v1.0"]);
    source.run(&["push", "https://huggingface.co/org/name/tree/v2.0"]).refused(4, &["'v2.0' of org/name"]);
    source.ok(&["push"]);
    for (pattern, expected) in [
        ("https://huggingface.co/org/name", [true, false]),
        ("https://huggingface.co/org/*", [true, false]),
        ("https://huggingface.co/datasets/org/name", [false, true]),
        ("org/name", [true, true]),
    ] {
        let machine = Machine::new(&store);
        machine.ok(&["pull-all", "--include", pattern]);
        assert_eq!([&model, &dataset].map(|one| one.snapshot(&machine.hub()).exists()), expected, "{pattern}");
    }
}

/// Both the result and the error name the file.
#[cfg(unix)]
#[test]
fn a_snapshot_with_a_broken_link_is_published_without_the_file() {
    let store = Store::new();
    let source = Machine::new(&store);
    let revision = Revision::model("org/name");
    revision.write(&source.hub());
    fs::remove_file(revision.blob(&source.hub(), "config.json")).unwrap();
    let dry = source.run(&["push", "--dry-run"]);
    assert!(dry.code == 1 && dry.stdout.contains("would be published without 1 file"), "{dry:#?}");
    let output = source.run(&["push"]);
    assert!(output.code == 1 && output.stdout.contains("published without 1 file"), "{output:#?}");
    assert!(output.stderr.contains("config.json") && output.stderr.contains("so it is not pushed"), "{output:#?}");
    assert!(!store.text(&revision.manifest_key()).contains("config.json"));
    // Once another machine has pushed the file, it is no longer missing from the bucket.
    let other = Machine::new(&store);
    revision.write(&other.hub());
    other.ok(&["push"]);
    let output = source.run(&["push"]);
    assert!(output.code == 1 && !output.stdout.contains("without 1 file"), "{output:#?}");
    assert!(store.text(&revision.manifest_key()).contains("config.json"));
}

#[test]
fn common_mistakes_on_the_command_line_get_a_hint() {
    let store = Store::new();
    let machine = Machine::new(&store);
    for (line, form) in [
        (&["pull", "org/name", "main"][..], "hf-cache-sync pull org/name -r main"),
        (&["pull", "--repo", "org/name"], "hf-cache-sync pull org/name"),
        (&["pull", "--repo-id=org/name"], "hf-cache-sync pull org/name"),
        (&["pull"], "hf-cache-sync pull org/name"),
        (&["pull", "org/name", "--revision="], "-r main"),
        (&["pull", "org/name", "--branch", "v1"], "hf-cache-sync pull org/name -r v1"),
        (&["push", "--repo", "org/name"], "hf-cache-sync push org/name"),
        (&["push", "org/name", "--branch", "v1"], "hf-cache-sync push org/name -r v1"),
        (&["push", "--tag=v1", "org/name"], "hf-cache-sync push org/name -r v1"),
        (&["push", "org/name", "--repo-type", "dataset"], "hf-cache-sync push dataset:org/name"),
        (&["pull-all", "org/*"], "hf-cache-sync pull-all --include 'org/*'"),
    ] {
        let output = machine.run(line);
        assert!(output.code == 2 && output.stderr.contains(form), "{line:?}: {output:#?}");
    }
}
