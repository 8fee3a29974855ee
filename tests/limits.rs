//! Limits on transfers: whatever they are, every byte arrives, and every byte is counted.
#![cfg(unix)]

mod common;

use std::fs;
use std::num::NonZeroU64;

use common::cache::Revision;
use common::machine::Machine;
use common::store::Store;
use common::weights;
use hf_cache_sync::remote::limit::Caps;
use hf_cache_sync::remote::transfer::Context;
use hf_cache_sync::remote::transfer::download::{Fetch, download};
use hf_cache_sync::remote::transfer::upload::{Upload, upload};

/// A blob of each way of moving one, and their bytes together: from memory, as a stream, in parts.
fn revision() -> (Revision, u64) {
    let sizes = [10_000, 700_000, 20 << 20];
    let revision = Revision::model("org/name");
    let files = ["small.bin", "middle.bin", "large.bin"].into_iter().zip(sizes).enumerate();
    let revision = files.fold(revision, |all, (n, (name, size))| all.lfs(name, weights(n as u64, size)));
    let bytes = revision.files.iter().map(|file| file.bytes.len() as u64).sum();
    (revision, bytes)
}

/// Runs work with what transfers of this machine need, within these caps.
fn with_context<T>(store: &Store, machine: &Machine, caps: Caps, work: impl AsyncFnOnce(&Context) -> T) -> T {
    let session = store.session(&machine.hub(), &machine.work());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bucket = session.bucket().await.unwrap();
        work(&session.transfers(&bucket, caps, false)).await
    })
}

#[test]
fn a_limited_rate_counts_every_byte_both_ways() {
    let (store, machine) = (Store::new(), Machine::unconfigured());
    let (revision, bytes) = revision();
    revision.write(&machine.hub());
    let caps = Caps { rate: NonZeroU64::new(60_000_000), ..Caps::default() };
    let taken = with_context(&store, &machine, caps, async |context| {
        for file in &revision.files {
            let source = revision.blob(&machine.hub(), &file.path);
            let id = file.etag().parse().unwrap();
            let blob = Upload { id, size: file.bytes.len() as u64, source, label: file.path.clone() };
            upload(context, &blob).await.unwrap();
        }
        context.limits.rate.taken()
    });
    assert_eq!(taken, bytes);

    let target = Machine::unconfigured();
    let taken = with_context(&store, &target, caps, async |context| {
        for file in &revision.files {
            let fetch = Fetch {
                id: file.etag().parse().unwrap(),
                size: file.bytes.len() as u64,
                repo: hf_cache_sync::ids::RepoName::from_folder("models--org--name").unwrap(),
                commit: revision.commit.parse().unwrap(),
                path: file.path.parse().unwrap(),
            };
            let fetched = download(context, &fetch).await.unwrap();
            assert!(fs::read(fetched).unwrap() == file.bytes, "{}", file.path);
        }
        context.limits.rate.taken()
    });
    assert_eq!(taken, bytes);
}

#[test]
fn limited_commands_do_all_their_work() {
    let store = Store::new();
    let (source, target) = (Machine::new(&store), Machine::new(&store));
    let (revision, _) = revision();
    let revision = revision.refs(&["main"]);
    revision.write(&source.hub());
    let limits = ["--bwlimit", "80MB/s", "--max-memory", "33MiB"];
    source.ok(&[&["push"], &limits[..]].concat());
    target.ok(&[&["pull", "org/name"], &limits[..]].concat());
    for file in &revision.files {
        assert!(fs::read(revision.snapshot(&target.hub()).join(&file.path)).unwrap() == file.bytes, "{}", file.path);
    }
    let again = Machine::new(&store);
    again.ok(&[&["pull-all"], &limits[..]].concat());
    assert!(revision.snapshot(&again.hub()).join("large.bin").exists());
}
