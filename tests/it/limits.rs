//! Transfer limits: they are respected, and every byte arrives and is counted. That bytes wait according to the rate is
//! tested with a simulated clock in src/transfer/rate.rs.

use std::fs;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::cache::{Content, Revision};
use crate::harness::machine::Machine;
#[cfg(unix)]
use crate::harness::machine::run;
use crate::harness::s3::{Action, Gate, S3Request};
use crate::harness::store::Store;
use crate::harness::weights;
use hf_cache_sync::internals::model::ids::RepoName;
use hf_cache_sync::internals::transfer::download::{Fetch, download};
use hf_cache_sync::internals::transfer::limit::Caps;
use hf_cache_sync::internals::transfer::source::Source;
use hf_cache_sync::internals::transfer::upload::{Upload, upload};
use hf_cache_sync::internals::transfer::{Context, HashPool};

/// A blob for each kind of transfer (from memory, streamed, in parts), and their total size.
fn revision() -> (Revision, u64) {
    let sizes = [10_000, 700_000, 20 << 20];
    let revision = Revision::model("org/name");
    let files = ["small.bin", "middle.bin", "large.bin"].into_iter().zip(sizes).enumerate();
    let revision = files.fold(revision, |all, (n, (name, size))| all.lfs(name, weights(n as u64, size)));
    let bytes = revision.files.iter().map(|file| file.bytes.len() as u64).sum();
    (revision, bytes)
}

/// Runs `work` with the transfer context of this machine and these caps.
fn with_context<T>(store: &Store, machine: &Machine, caps: Caps, work: impl AsyncFnOnce(&Context) -> T) -> T {
    let session = store.session(&machine.hub(), &machine.work());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bucket = session.bucket().await.unwrap();
        work(&session.transfers(&bucket, caps, false)).await
    })
}

fn to_upload(revision: &Revision, machine: &Machine, file: &Content) -> Upload {
    Upload {
        id: file.etag().parse().unwrap(),
        size: file.bytes.len() as u64,
        source: revision.blob(&machine.hub(), &file.path),
        label: file.path.clone(),
    }
}

fn to_fetch(revision: &Revision, context: &Context, file: &Content) -> Fetch {
    Fetch {
        id: file.etag().parse().unwrap(),
        size: file.bytes.len() as u64,
        repo: RepoName::from_folder("models--org--name").unwrap(),
        commit: revision.commit.parse().unwrap(),
        path: file.path.parse().unwrap(),
        source: Source::Bucket(context.bucket.clone()),
    }
}

#[test]
fn the_rate_limit_counts_every_byte_in_both_directions() {
    let (store, machine) = (Store::new(), Machine::unconfigured());
    let (revision, bytes) = revision();
    revision.write(&machine.hub());
    let caps = Caps { rate: NonZeroU64::new(60_000_000), ..Caps::default() };
    let counted = with_context(&store, &machine, caps, async |context| {
        for file in &revision.files {
            upload(context, &to_upload(&revision, &machine, file)).await.unwrap();
        }
        context.limits.rate.total()
    });
    assert_eq!(counted, bytes);

    let target = Machine::unconfigured();
    let counted = with_context(&store, &target, caps, async |context| {
        for file in &revision.files {
            let fetched = download(context, &to_fetch(&revision, context, file)).await.unwrap();
            assert!(fs::read(fetched).unwrap() == file.bytes, "{}", file.path);
        }
        context.limits.rate.total()
    });
    assert_eq!(counted, bytes);
}

/// The speed of the processor determines the mode. Both must transfer blobs in parts and refuse corrupt ones.
#[test]
fn large_blobs_are_verified_inline_and_in_lockstep() {
    for lanes in [1, 4] {
        let (store, machine, target) = (Store::new(), Machine::unconfigured(), Machine::unconfigured());
        let revision = ["one.bin", "two.bin"]
            .into_iter()
            .enumerate()
            .fold(Revision::model("org/name"), |all, (n, name)| all.lfs(name, weights(n as u64, 20 << 20)));
        revision.write(&machine.hub());
        let (one, two) = (revision.file("one.bin"), revision.file("two.bin"));
        let forced = |context: &Context| Context { hash_pool: HashPool::with_lanes(lanes).into(), ..context.clone() };
        with_context(&store, &machine, Caps::default(), async |context| {
            let context = &forced(context);
            upload(context, &to_upload(&revision, &machine, one)).await.unwrap();
            // These bytes do not match the blob name.
            let wrong = Upload { id: two.etag().parse().unwrap(), ..to_upload(&revision, &machine, one) };
            let refused = upload(context, &wrong).await.unwrap_err().to_string();
            assert!(refused.contains("is corrupt in this cache"), "{refused}");
        });
        assert_eq!(store.keys(), [format!("blobs/{}", one.etag())]);

        store.put(&format!("blobs/{}", two.etag()), &one.bytes);
        with_context(&store, &target, Caps::default(), async |context| {
            let context = &forced(context);
            let fetched = download(context, &to_fetch(&revision, context, one)).await.unwrap();
            assert!(fs::read(fetched).unwrap() == one.bytes);
            let refused = download(context, &to_fetch(&revision, context, two)).await.unwrap_err().to_string();
            assert!(refused.contains("is corrupt in the bucket"), "{refused}");
        });
    }
}

#[test]
fn commands_with_limits_complete_their_work() {
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

/// The runtime and libraries panic when they cannot open a file.
#[cfg(unix)]
#[test]
fn a_low_limit_of_open_files_is_an_error_of_its_own() {
    let store = Store::new();
    let machine = Machine::new(&store);
    for limit in [6, 7, 9, 12, 32] {
        for command in ["list", "push", "verify --remote"] {
            let script = format!("ulimit -n {limit}; exec \"$0\" {command}");
            let words = format!("the limit of open files (ulimit -n) is {limit}, which is too low\n  raise it");
            run(machine.script(&script)).refused(1, &[&words]);
        }
    }
    Revision::model("org/name").write(&machine.hub());
    let output = run(machine.script("ulimit -n 64; exec \"$0\" push"));
    assert_eq!(output.code, 0, "{output:#?}");
}

/// Every blob request is held: exactly as many arrive as the limit allows, and one more for each one that is answered.
#[test]
fn requests_in_flight_stay_within_the_limits() {
    let cases: [(usize, &str, &[&str]); 4] = [
        (2, "org/mixed", &["--workers", "2"]),
        (3, "org/mixed", &["--max-memory", "34MiB"]),
        (2, "org/mixed", &["--max-memory", "33MiB", "--workers", "8"]),
        // Each gets 64 KiB a second. A multipart part would take minutes.
        (3, "org/small", &["--bwlimit", "200kB/s"]),
    ];
    // More than the limit of both kinds: blobs that take a single request, and parts.
    let small = |all: Revision, n: u64| all.lfs(&format!("small-{n}.bin"), weights(n, 1000));
    let large = |all: Revision, n: u64| all.lfs(&format!("large-{n}.bin"), weights(10 + n, 17 << 20));
    let mixed = (1..=2).fold((1..=6).fold(Revision::new("model", "org/mixed"), small), large);
    let revisions = [mixed, (11..=16).fold(Revision::new("model", "org/small"), small)];

    let store = Store::new();
    revisions.iter().for_each(|revision| revision.publish(&store));
    for (expected, repo, limits) in cases {
        assert_limit(&store, &Machine::new(&store), ("GET", &["pull", repo]), limits, expected);
    }
    let store = Store::new();
    let source = Machine::new(&store);
    revisions.iter().for_each(|revision| revision.write(&source.hub()));
    for (expected, repo, limits) in cases {
        assert_limit(&store, &source, ("PUT", &["push", repo]), limits, expected);
    }
}

#[track_caller]
fn assert_limit(
    store: &Store,
    machine: &Machine,
    (method, line): (&'static str, &[&str]),
    limits: &[&str],
    expected: usize,
) {
    let is_held = move |request: &S3Request| request.is(method, "blobs/");
    let (first, others, number) = (Gate::new(), Gate::new(), AtomicUsize::new(0));
    let gates = [first.clone(), others];
    store.server.on_request(move |request| match is_held(request) {
        true => Action::Hold(gates[number.fetch_add(1, Ordering::SeqCst).min(1)].clone()),
        false => Action::Pass,
    });
    let line = [line, limits].concat();
    let running = machine.start(&line);
    let wait_for_held = |count: usize| {
        let held = |seen: &[S3Request]| seen.iter().filter(|request| is_held(request)).count();
        store.server.wait_for(&format!("{count} blob requests of {line:?}"), |seen| held(seen) >= count);
        // Meanwhile, the store serves another command from start to finish.
        machine.ok(&["doctor"]);
        assert_eq!(held(&store.server.take_seen()), count, "requests in flight of {line:?}");
    };
    wait_for_held(expected);
    first.open();
    wait_for_held(1);
    running.kill();
    store.server.take_seen();
}
