//! Links, by the seam where their kind is chosen: what a cache without symbolic links, or without any, gets from a
//! pull.
#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::cache::{OTHER, Revision};
use common::machine::Machine;
use common::store::Store;
use common::weights;
use hf_cache_sync::cache::layout::Layout;
use hf_cache_sync::cache::place::LinkKind;
use hf_cache_sync::commands::pull::{hydrate, local, plan};
use hf_cache_sync::remote::limit::Caps;
use hf_cache_sync::remote::lookup;

/// Pulls these one after the other, or together, into a cache that allows links of this kind.
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
                let state = local::look(&layout, &found, false);
                plans.push(plan::plan(&layout, &found, &state));
            }
            for outcome in hydrate::hydrate(&context, &plans, kind, session.now).await {
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
        let blob = fs::metadata(revision.blob(hub, &file.path)).unwrap();
        assert_eq!(meta.ino() == blob.ino(), kind == LinkKind::Hardlink, "{kind:?}");
    }
    assert_eq!(fs::read_to_string(revision.dir(hub).join("refs").join(&revision.refs[0])).unwrap(), revision.commit);
}

#[test]
fn every_kind_of_link_serves_two_revisions_that_share_a_blob() {
    for kind in [LinkKind::Symlink, LinkKind::Hardlink, LinkKind::Copy] {
        for together in [false, true] {
            let store = Store::new();
            let revisions = two_revisions();
            revisions.iter().for_each(|revision| revision.publish(&store));
            let machine = Machine::new(&store);
            let all: Vec<&Revision> = revisions.iter().collect();
            assert_eq!(pull(&store, &machine.hub(), kind, together, &all), 3, "{kind:?}: the shared one comes once");
            revisions.iter().for_each(|revision| assert_reads(revision, &machine.hub(), kind));
            // What is there is complete for every kind: nothing is fetched, nothing is written.
            let before = common::visible(&machine.hub());
            assert_eq!(pull(&store, &machine.hub(), kind, together, &all), 0);
            machine.ok(&["pull", "org/name"]);
            machine.ok(&["pull", "org/name", "-r", "v2", "--verify"]);
            assert_eq!(common::visible(&machine.hub()), before, "{kind:?}");
            // And the next push finds it.
            let empty = Store::new();
            let mut pusher = Machine::new(&empty);
            pusher.set("HF_HUB_CACHE", &machine.hub().display().to_string());
            pusher.ok(&["push"]);
            revisions.iter().for_each(|revision| revision.assert_published(&empty));
        }
    }
}

#[test]
fn the_kind_is_chosen_by_what_the_cache_allows() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(LinkKind::probe(&Layout::new(dir.path().join("hub"))).unwrap(), LinkKind::Symlink);
}
