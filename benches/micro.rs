//! Measures what takes time before the first byte is moved: the scan, the plans, and manifests; and hashing, which takes
//! most of the time after that. `cargo bench --bench micro`.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, SystemTime};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hf_cache_sync::internals::bucket::client::Object;
use hf_cache_sync::internals::bucket::keys;
use hf_cache_sync::internals::bucket::state::RemoteState;
use hf_cache_sync::internals::cache::layout::{self, Layout};
use hf_cache_sync::internals::cache::scan::scan;
use hf_cache_sync::internals::cache::state::LocalState;
use hf_cache_sync::internals::cache::{presence, prune_facts, pushable};
use hf_cache_sync::internals::hash::{BlobHasher, MAX_LANES, blob_id_of, md5_hex};
use hf_cache_sync::internals::model::found::Found;
use hf_cache_sync::internals::model::ids::{BlobId, Commit, RepoName};
use hf_cache_sync::internals::model::manifest::{Manifest, ManifestFile};
use hf_cache_sync::internals::plan;

const REPOS: usize = 200;
const FILES: usize = 50;
const MANIFESTS: [usize; 2] = [1_000, 10_000];

/// Returns the name of these bytes in git.
fn git(bytes: &[u8]) -> BlobId {
    blob_id_of(&BlobId::Sha1([0; 20]), bytes)
}

fn commit(of: &str) -> Commit {
    git(of.as_bytes()).to_string().parse().expect("a sha1 is a commit's name")
}

/// Creates a manifest with this many files, some of them in folders, every tenth in LFS.
fn manifest(repo: &str, files: usize) -> Manifest {
    let file = |number: usize| {
        let content = content(repo, number);
        let folder = if number.is_multiple_of(4) { "data/train/" } else { "" };
        let blob = match number.is_multiple_of(10) {
            true => blob_id_of(&BlobId::Sha256([0; 32]), content.as_bytes()),
            false => git(content.as_bytes()),
        };
        let path = format!("{folder}part-{number:05}.json").parse().expect("a plain path");
        ManifestFile { path, blob, size: content.len() as u64 }
    };
    let mut files: Vec<_> = (0..files).map(file).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let repo: RepoName = RepoName::from_folder(&format!("models--{}", repo.replace('/', "--"))).expect("a plain name");
    Manifest::new(repo.clone(), commit(&repo.to_string()), files, None).unwrap()
}

fn content(repo: &str, number: usize) -> String {
    format!("file {number} of {repo}\n")
}

fn repos() -> impl Iterator<Item = String> {
    (0..REPOS).map(|number| format!("org-{}/model-{number}", number % 20))
}

/// Creates a cache like that of huggingface_hub: one revision per repo, with the ref `main`.
#[cfg(unix)]
fn make_cache(root: &Path) {
    let layout = Layout::new(root);
    for repo in repos() {
        let manifest = manifest(&repo, FILES);
        let (name, commit) = (manifest.repo(), manifest.revision());
        fs::create_dir_all(layout.blobs(name)).unwrap();
        fs::create_dir_all(layout.snapshot(name, commit)).unwrap();
        fs::create_dir_all(layout.repo(name).join("refs")).unwrap();
        fs::write(layout.repo(name).join("refs/main"), commit.as_str()).unwrap();
        for number in 0..FILES {
            let content = content(&repo, number);
            let file = manifest.files().iter().find(|file| file.path.as_str().ends_with(&format!("{number:05}.json")));
            let file = file.expect("made above");
            fs::write(layout.blob(name, &file.blob), content).unwrap();
            let link = layout.snapshot_file(name, commit, &file.path);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(layout::link_text(&file.path, &file.blob), link).unwrap();
        }
    }
}

/// Without links the scan is another one; these benchmarks are run where there are links.
#[cfg(not(unix))]
fn make_cache(_: &Path) {}

fn cache(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    make_cache(dir.path());
    let mut group = c.benchmark_group(format!("cache of {REPOS} repos with {FILES} files"));
    group.sample_size(20).throughput(Throughput::Elements((REPOS * FILES) as u64));
    group.bench_function("scan", |b| b.iter(|| scan(dir.path()).unwrap()));

    let state = LocalState::scan(dir.path()).unwrap();
    let local = pushable::gather(&state, &pushable::Options::default()).unwrap();
    let empty = RemoteState::default();
    let object = |key: String, size: u64, etag: Option<String>| Object { key, size, etag, modified: None };
    let mut objects = Vec::new();
    let revisions: Vec<_> = local.repos.iter().flat_map(|repo| &repo.revisions).collect();
    for revision in &revisions {
        let files = revision.files.iter().map(|local| &local.file);
        objects.extend(files.map(|file| object(keys::blob(&file.blob), file.size, None)));
        let manifest = revision.manifest.as_ref().unwrap();
        let (key, bytes) = (keys::manifest(&manifest.repo().id, &revision.commit), manifest.to_json());
        objects.push(object(key, bytes.len() as u64, Some(md5_hex(&bytes))));
    }
    let full = RemoteState::new(objects);
    assert!(revisions.iter().all(|revision| full.prove_manifest(revision.manifest.as_ref().unwrap())));
    group.bench_function("push plan, empty bucket", |b| b.iter(|| plan::push::plan(&local, &empty)));
    group.bench_function("push plan, nothing to do", |b| b.iter(|| plan::push::plan(&local, &full)));

    let facts = prune_facts::gather(state.into_inventory());
    let hour = Duration::from_secs(3600);
    let options = |budget| plan::prune::Options {
        budget: Some(budget),
        include_referenced: true,
        orphan_grace: hour,
        temporary_grace: hour,
        ..Default::default()
    };
    let later = SystemTime::now() + 24 * hour;
    for (name, options) in [("within its budget", options(u64::MAX)), ("everything goes", options(0))] {
        group.bench_function(format!("prune plan, {name}"), |b| {
            b.iter(|| plan::prune::plan(&facts, &options, later));
        });
    }
    group.finish();
}

fn manifests(c: &mut Criterion) {
    let layout = Layout::new("/hub");
    let mut group = c.benchmark_group("manifest");
    for files in MANIFESTS {
        let manifest = manifest("org/name", files);
        let bytes = manifest.to_json();
        group.throughput(Throughput::Elements(files as u64));
        group.bench_function(BenchmarkId::new("encode", files), |b| b.iter(|| manifest.to_json()));
        group.bench_function(BenchmarkId::new("decode", files), |b| b.iter(|| Manifest::parse(black_box(&bytes))));

        let found = Found {
            manifest,
            reference: Some("main".parse().unwrap()),
            pinned: false,
            modified: None,
            notes: Vec::new(),
        };
        let state = |blob| presence::State {
            blobs: found.manifest.blobs().into_keys().map(|id| (id, blob)).collect::<BTreeMap<_, _>>(),
            in_place: vec![blob == presence::BlobState::Present; files],
            tree: true,
            reference: blob == presence::BlobState::Present,
            pin: true,
        };
        for (name, state) in [
            ("pull plan, empty cache", state(presence::BlobState::Missing)),
            ("pull plan, nothing to do", state(presence::BlobState::Present)),
        ] {
            group.bench_function(BenchmarkId::new(name, files), |b| {
                b.iter(|| plan::pull::plan(&layout, &found, &state));
            });
        }
    }
    group.finish();
}

/// Large blobs, one after another and in lockstep: which of the two is used depends on the difference.
fn hashing(c: &mut Criterion) {
    const SLICE: usize = 64 << 10;
    let blobs: Vec<Vec<u8>> = (0..MAX_LANES).map(|n| vec![n as u8; SLICE]).collect();
    let mut group = c.benchmark_group("sha256");
    group.throughput(Throughput::Bytes((MAX_LANES * SLICE) as u64));
    let hashers = || (0..MAX_LANES).map(|_| BlobHasher::sha256()).collect::<Vec<_>>();
    let mut one_by_one = hashers();
    group.bench_function("one after another", |b| {
        b.iter(|| one_by_one.iter_mut().zip(&blobs).for_each(|(hasher, blob)| hasher.update(black_box(blob))));
    });
    let mut together = hashers();
    group.bench_function("in lockstep", |b| {
        b.iter(|| {
            let feeds = together.iter_mut().zip(&blobs).map(|(hasher, blob)| (hasher, black_box(&blob[..])));
            BlobHasher::update_together(&mut feeds.collect::<Vec<_>>());
        });
    });
    group.finish();
}

criterion_group!(benches, cache, manifests, hashing);
criterion_main!(benches);
