//! Tests of the internals that choose the kind of link: pulls into caches without symbolic links, or without any links.

use std::fs;
use std::path::Path;

use crate::harness::cache::{OTHER, Revision};
use crate::harness::machine::Machine;
use crate::harness::store::Store;
use crate::harness::{can_link, git_sha1, is_same_file, visible, weights};
use hf_cache_sync::internals::bucket::lookup;
use hf_cache_sync::internals::cache::layout::Layout;
use hf_cache_sync::internals::cache::snapshot::LinkKind;
use hf_cache_sync::internals::cache::state::LocalState;
use hf_cache_sync::internals::cache::{donors, presence};
use hf_cache_sync::internals::engine::fallback::Fallback;
use hf_cache_sync::internals::engine::hydrate::{Planned, hydrate};
use hf_cache_sync::internals::plan::pull as plan;
use hf_cache_sync::internals::transfer::limit::Caps;

/// The kinds that every file system of this platform supports.
#[cfg(unix)]
const KINDS: [LinkKind; 3] = [LinkKind::Symlink, LinkKind::Hardlink, LinkKind::Real];
#[cfg(windows)]
const KINDS: [LinkKind; 2] = [LinkKind::Hardlink, LinkKind::Real];

/// Pulls the revisions one after the other, or together, into a cache with links of this kind. Returns the number of
/// downloaded blobs.
fn pull(store: &Store, hub: &Path, kind: LinkKind, together: bool, revisions: &[&Revision]) -> u64 {
    let session = store.session(hub, hub.parent().unwrap());
    let layout = Layout::new(hub);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bucket = session.bucket().await.unwrap();
        let context = session.transfers(&bucket, Caps::default(), false);
        let mut downloaded = 0;
        let groups: Vec<&[&Revision]> = if together { vec![revisions] } else { revisions.chunks(1).collect() };
        for group in groups {
            let mut plans = Vec::new();
            for revision in group {
                let found =
                    lookup::find(&bucket, &revision.id.parse().unwrap(), Some(&revision.refs[0])).await.unwrap();
                let state = presence::inspect(&LocalState::unscanned(layout.clone()), &found, false);
                plans.push(plan::plan(&layout, &found, &state));
            }
            let missing = |plan: &plan::Plan| plan.fetch.iter().map(|fetch| (fetch.blob, fetch.size)).collect();
            let missing: Vec<_> = plans.iter().map(|plan| (plan.manifest.repo(), missing(plan))).collect();
            let donors = donors::find(&LocalState::unscanned(layout.clone()), &missing);
            plans.iter_mut().for_each(|plan| plan.use_donors(&layout, &donors));
            let planned = plans.into_iter().map(|plan| Planned { plan, from_hub: false }).collect();
            for outcome in hydrate(&context, &Fallback::none(), planned, kind, session.now).await {
                assert_eq!(outcome.failures, []);
                downloaded += outcome.downloaded.blobs;
            }
        }
        downloaded
    })
}

fn two_revisions() -> [Revision; 2] {
    let shared = weights(1, 9 << 20);
    let one = Revision::new("model", "org/name").git("config.json", "{}\n").lfs("model.bin", &shared).refs(&["main"]);
    let two = Revision::new("model", "org/name").git("config.json", "{\"v\": 2}\n").lfs("d/e/model.bin", &shared);
    [one, two.at(OTHER).refs(&["v2"])]
}

fn assert_reads(revision: &Revision, hub: &Path, kind: LinkKind) {
    for file in &revision.files {
        let path = revision.snapshot(hub).join(&file.path);
        assert!(fs::read(&path).unwrap() == file.bytes, "{}", file.path);
        let meta = fs::symlink_metadata(&path).unwrap();
        assert_eq!(meta.is_symlink(), kind == LinkKind::Symlink, "{kind:?}");
        // A regular file has no blob.
        let is_blob = is_same_file(&path, &revision.blob(hub, &file.path));
        assert_eq!(is_blob, kind == LinkKind::Hardlink, "{kind:?}");
    }
    assert_eq!(fs::read_to_string(revision.dir(hub).join("refs").join(&revision.refs[0])).unwrap(), revision.commit);
}

#[test]
fn revisions_can_share_a_blob_with_every_kind_of_link() {
    for kind in KINDS {
        for together in [false, true] {
            let store = Store::new();
            let revisions = two_revisions();
            revisions.iter().for_each(|revision| revision.publish(&store));
            let machine = Machine::new(&store);
            let all: Vec<&Revision> = revisions.iter().collect();
            assert_eq!(
                pull(&store, &machine.hub(), kind, together, &all),
                3,
                "{kind:?}: the shared blob is downloaded once"
            );
            revisions.iter().for_each(|revision| assert_reads(revision, &machine.hub(), kind));
            // The cache is complete, whatever the kind: nothing is downloaded or written.
            let before = visible(&machine.hub());
            assert_eq!(pull(&store, &machine.hub(), kind, together, &all), 0);
            machine.ok(&["pull", "org/name"]);
            machine.ok(&["pull", "org/name", "-r", "v2", "--verify"]);
            assert_eq!(visible(&machine.hub()), before, "{kind:?}");
            // The next push accepts the cache.
            let empty = Store::new();
            let mut pusher = Machine::new(&empty);
            pusher.set("HF_HUB_CACHE", &machine.hub().display().to_string());
            pusher.ok(&["push"]);
            revisions.iter().for_each(|revision| revision.assert_published(&empty));
        }
    }
}

/// Both pulls have found an empty cache, so the second one finds every file in place when it creates its links.
#[test]
fn concurrent_pulls_work_with_every_kind_of_link() {
    for kind in KINDS {
        for at_once in [false, true] {
            let store = Store::new();
            let revision = Revision::new("model", "org/name")
                .git("config.json", "{}\n")
                .git("copy/config.json", "{}\n")
                .lfs("d/model.bin", weights(1, 9 << 20))
                .lfs("e/small.bin", weights(2, 3000));
            revision.publish(&store);
            let machine = Machine::new(&store);
            let hub = machine.hub();
            let session = store.session(&hub, &machine.home());
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let outcomes = runtime.block_on(async {
                let bucket = session.bucket().await.unwrap();
                let contexts = [(); 2].map(|()| session.transfers(&bucket, Caps::default(), false));
                let layout = Layout::new(&hub);
                let found = lookup::find(&bucket, &revision.id.parse().unwrap(), None).await.unwrap();
                let plan = || {
                    plan::plan(
                        &layout,
                        &found,
                        &presence::inspect(&LocalState::unscanned(layout.clone()), &found, false),
                    )
                };
                let plans = [(); 2].map(|()| vec![Planned { plan: plan(), from_hub: false }]);
                let nowhere = Fallback::none();
                let mut plans = plans.into_iter();
                let [one, two] = contexts
                    .each_ref()
                    .map(|context| hydrate(context, &nowhere, plans.next().unwrap(), kind, session.now));
                match at_once {
                    true => tokio::join!(one, two),
                    false => (one.await, two.await),
                }
            });
            assert_eq!(outcomes.0[0].failures, [], "{kind:?}");
            assert_eq!(outcomes.1[0].failures, [], "{kind:?}");
            assert_eq!(outcomes.0[0].lost() + outcomes.1[0].lost(), 0);
            for file in &revision.files {
                let path = revision.snapshot(&hub).join(&file.path);
                assert!(fs::read(&path).unwrap() == file.bytes, "{}", file.path);
            }
            machine.ok(&["pull", "org/name", "--verify"]);
            let staging = hub.join(".locks/.hf-cache-sync/staging");
            assert_eq!(fs::read_dir(staging).unwrap().count(), 0, "{kind:?}");
        }
    }
}

#[test]
fn the_kind_of_link_depends_on_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let best = LinkKind::probe(&Layout::new(dir.path().join("hub")), false).unwrap();
    assert_eq!(best == LinkKind::Symlink, can_link(dir.path()), "{best:?}");
    assert_eq!(LinkKind::probe(&Layout::new(dir.path().join("hub")), true).unwrap(), LinkKind::Real);
}

/// With `HF_HUB_DISABLE_SYMLINKS`, the client moves downloads into the snapshot and leaves `blobs/` empty.
#[test]
fn without_symlinks_snapshots_have_regular_files_and_no_blobs() {
    for command in [&["pull", "org/name"][..], &["pull-all"]] {
        for (value, real) in [("1", true), ("ON", true), ("yes", true), ("True", true), ("0", false), ("off", false)] {
            let store = Store::new();
            let revision = Revision::new("model", "org/name")
                .git("config.json", "{}\n")
                .lfs("d/model.bin", weights(1, 9 << 20))
                .with_tree();
            let mut manifest = revision.manifest();
            revision.publish(&store);
            manifest["tree"] = serde_json::from_slice(&revision.tree_json()).unwrap();
            store.put(&revision.manifest_key(), serde_json::to_vec(&manifest).unwrap());
            let mut machine = Machine::new(&store);
            machine.set("HF_HUB_DISABLE_SYMLINKS", value);
            machine.set("HF_HUB_DISABLE_SYMLINKS_WARNING", "1");
            machine.ok(command);
            for file in &revision.files {
                let path = revision.snapshot(&machine.hub()).join(&file.path);
                let linked = is_same_file(&path, &revision.blob(&machine.hub(), &file.path));
                let is_real = fs::symlink_metadata(&path).unwrap().is_file() && !linked;
                assert_eq!(is_real, real, "{value}");
                assert!(fs::read(&path).unwrap() == file.bytes);
            }
            let blobs = fs::read_dir(revision.dir(&machine.hub()).join("blobs")).unwrap().count();
            assert_eq!(blobs, if real { 0 } else { 2 }, "{value}");
            // The revision is complete for pull, push and status.
            let before = visible(&machine.hub());
            store.server.take_seen();
            machine.ok(command);
            assert!(!store.server.take_seen().iter().any(|seen| seen.key.starts_with("blobs/")));
            assert_eq!(visible(&machine.hub()), before);
            let status = machine.ok_json(&["status", "--json"]);
            assert_eq!(status["size"], (9 << 20) + 3, "{status:#}");
            let empty = Store::new();
            let mut pusher = Machine::new(&empty);
            pusher.set("HF_HUB_CACHE", &machine.hub().display().to_string());
            pusher.ok(&["push"]);
            revision.assert_published(&empty);
        }
    }
}

/// The second revision copies from the first, and both have their own files.
#[test]
fn without_symlinks_a_second_revision_copies_from_the_first() {
    for tree in [true, false] {
        let store = Store::new();
        let revisions = two_revisions().map(|mut revision| {
            revision.tree = tree;
            revision
        });
        for revision in &revisions {
            revision.publish(&store);
            let mut manifest = revision.manifest();
            if tree {
                manifest["tree"] = serde_json::from_slice(&revision.tree_json()).unwrap();
            }
            store.put(&revision.manifest_key(), serde_json::to_vec(&manifest).unwrap());
        }
        let mut machine = Machine::new(&store);
        machine.set("HF_HUB_DISABLE_SYMLINKS", "1");
        machine.ok(&["pull", "org/name"]);
        store.server.take_seen();
        machine.ok(&["pull", "org/name", "-r", "v2"]);
        let fetched = store.server.take_seen().iter().filter(|seen| seen.is("GET", "blobs/")).count();
        assert_eq!(fetched, 1, "the weights are already in the cache");
        let paths =
            revisions.each_ref().map(|revision| revision.snapshot(&machine.hub()).join(&revision.files[1].path));
        assert!(paths.iter().all(|path| fs::symlink_metadata(path).unwrap().is_file()));
        assert!(!is_same_file(&paths[0], &paths[1]));
        assert!(paths.iter().all(|path| fs::read(path).unwrap() == revisions[0].files[1].bytes));
        assert_eq!(fs::read_dir(revisions[0].dir(&machine.hub()).join("blobs")).unwrap().count(), 0);
    }
}

/// A cache in which `config.json` is named by sha256, as mirrors do, while the Hub's tree names it by git's sha1.
fn write_mirrored(hub: &Path, tree: bool) -> (Revision, Revision) {
    let bytes = "{\"from\": \"a mirror\"}\n";
    let weights = weights(3, 30_000);
    let by_hub = Revision::new("model", "org/name").git("config.json", bytes).lfs("model.bin", &weights);
    let by_mirror = Revision::new("model", "org/name").lfs("config.json", bytes).lfs("model.bin", &weights);
    by_mirror.write(hub);
    if tree {
        let trees = by_hub.dir(hub).join("trees");
        fs::create_dir_all(&trees).unwrap();
        fs::write(trees.join(format!("{}.json", by_hub.commit)), by_hub.tree_json()).unwrap();
    }
    (by_hub, by_mirror)
}

/// Both names are valid for the same file.
#[test]
fn a_file_under_a_mirrors_name_is_pushed() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (by_hub, by_mirror) = write_mirrored(&machine.hub(), true);
    machine.ok(&["push"]);
    by_hub.assert_published(&store);
    let before = store.objects();
    machine.ok(&["push"]);
    assert_eq!(store.objects(), before);
    machine.ok(&["diff", "--exit-code"]);
    machine.ok(&["status"]);
    // Nothing is downloaded again.
    store.server.take_seen();
    machine.ok(&["pull", "org/name"]);
    machine.ok(&["pull", "org/name", "--verify"]);
    assert!(!store.server.take_seen().iter().any(|seen| seen.is("GET", "blobs/")));
    assert!(by_mirror.blob(&machine.hub(), "config.json").is_file());
    // Another machine gets it under the Hub's names.
    let other = Machine::new(&store);
    other.ok(&["pull", "org/name"]);
    by_hub.assert_pulled(&other.hub());
}

#[test]
fn a_different_blob_name_in_the_bucket_is_not_a_difference() {
    for hub_is_published in [true, false] {
        for tree in [true, false] {
            let store = Store::new();
            let machine = Machine::new(&store);
            let (by_hub, by_mirror) = match hub_is_published {
                true => write_mirrored(&machine.hub(), tree),
                false => {
                    let (by_hub, by_mirror) = write_mirrored(&machine.home().join("elsewhere"), tree);
                    let mut by_hub = by_hub;
                    by_hub.tree = tree;
                    by_hub.write(&machine.hub());
                    (by_hub, by_mirror)
                }
            };
            let published = if hub_is_published { &by_hub } else { &by_mirror };
            published.publish(&store);
            let what = format!("{hub_is_published} {tree}");
            let output = machine.run(&["diff"]);
            assert_eq!(output.code, 0, "{what}: {output:#?}");
            assert!(!output.stdout.contains("config.json"), "{what}: {output:#?}");
            store.server.take_seen();
            let before = visible(&machine.hub());
            machine.ok(&["pull", "org/name"]);
            assert_eq!(visible(&machine.hub()), before, "{what}");
            assert!(!store.server.take_seen().iter().any(|seen| seen.is("GET", "blobs/")), "{what}");
            let output = machine.run(&["push"]);
            assert_eq!(output.code, 0, "{what}: {output:#?}");
            let other = Machine::new(&store);
            other.ok(&["pull", "org/name"]);
            let config = by_hub.snapshot(&other.hub()).join("config.json");
            assert_eq!(fs::read(config).unwrap(), by_hub.file("config.json").bytes, "{what}");
        }
    }
}

/// A manifest names a file by sha256, but its tree by sha1: the contents decide.
#[test]
fn a_manifest_and_its_tree_may_use_different_blob_names() {
    for is_consistent in [true, false] {
        let store = Store::new();
        let machine = Machine::new(&store);
        let (by_hub, by_mirror) = write_mirrored(&machine.home().join("elsewhere"), false);
        by_mirror.publish(&store);
        let mut manifest = by_mirror.manifest();
        let mut tree: serde_json::Value = serde_json::from_slice(&by_hub.tree_json()).unwrap();
        if !is_consistent {
            tree["files"]["config.json"]["blob_id"] = git_sha1(b"something else").into();
        }
        manifest["tree"] = tree;
        store.put(&by_mirror.manifest_key(), serde_json::to_vec(&manifest).unwrap());
        let output = machine.run(&["pull", "org/name"]);
        assert_eq!(output.code, if is_consistent { 0 } else { 5 }, "{output:#?}");
        assert_eq!(by_hub.dir(&machine.hub()).join("refs/main").exists(), is_consistent);
    }
}

/// The same size with different contents is not just another name.
#[test]
fn a_changed_file_under_another_name_is_refused() {
    let store = Store::new();
    let machine = Machine::new(&store);
    let (by_hub, _) = write_mirrored(&machine.hub(), true);
    let changed = Revision::new("model", "org/name").lfs("config.json", "{\"from\": \"a tamper\"}\n");
    let link = by_hub.snapshot(&machine.hub()).join("config.json");
    fs::remove_file(&link).unwrap();
    changed.write(&machine.hub());
    assert_eq!(changed.files[0].bytes.len(), by_hub.file("config.json").bytes.len());
    let output = machine.run(&["push"]);
    assert_eq!(output.code, 5, "{output:#?}");
    assert!(!store.has("refs/org__name/main"));
}
