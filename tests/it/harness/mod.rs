//! Shared by the integration tests: a machine that runs the real binary ([`machine`]), its cache, built as a revision in any
//! layout that huggingface_hub creates ([`cache`]) or file by file ([`cache_dir`]), a bucket on an S3 server ([`store`],
//! [`s3`], [`server_process`]), a scripted store ([`scripted`]), a faulty network ([`proxy`]), an imitation of the Hub
//! (`hub_server`), and invariants of every cache and bucket ([`sound`]).

pub mod cache;
pub mod cache_dir;
#[cfg(feature = "fallback")]
pub mod hub_server;
pub mod machine;
#[cfg(target_os = "linux")]
pub mod mount;
pub mod proxy;
pub mod s3;
pub mod scripted;
pub mod server_process;
pub mod sound;
pub mod store;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::Digest;

/// Returns the seed of a test's random choices, and prints it: `SEED` repeats them.
#[expect(clippy::print_stdout, reason = "the output of a failed test has the seed")]
pub fn seed() -> u64 {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("{}: SEED={seed}", std::thread::current().name().unwrap_or_default());
    seed
}

/// Reports that something is not tested, because this user or system does not allow it. If everything must be tested, as in
/// CI, that is a failure.
#[track_caller]
#[expect(clippy::print_stderr, reason = "a skipped test must not look like one that passed")]
pub fn skip(what: &str, why: &str) {
    let must_run = std::env::var_os("HF_CACHE_SYNC_TESTS_COMPLETE").is_some_and(|value| !value.is_empty());
    assert!(!must_run, "HF_CACHE_SYNC_TESTS_COMPLETE is set, but {what} was skipped: {why}");
    eprintln!("SKIPPED {what}: {why}");
}

/// Waits for a condition on the disk or in a bucket, and fails if it is never met.
#[track_caller]
pub fn wait_until(what: &str, mut is_met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed() < machine::LIMIT, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the path of a file in `tests/it/harness/tls`.
pub fn tls_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness/tls").join(name)
}

/// Returns lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the sha256 of some bytes: the name of the blob of an LFS or Xet file.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// Returns git's blob hash of some bytes: the name of the blob of any other file.
pub fn git_sha1(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    hex(&sha1::Sha1::new().chain_update(header).chain_update(bytes).finalize())
}

/// Returns bytes that resemble weights: incompressible, not text, different for each seed.
pub fn weights(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    if let Some(first) = bytes.first_mut() {
        *first = 0;
    }
    bytes
}

/// Creates a link with this target, as the client does, to an existing file; on Windows, a hard link.
pub fn link(text: &str, at: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(text, at);
    #[cfg(windows)]
    fs::hard_link(at.with_file_name(text), at)
}

/// Whether symbolic links can be created in this folder. Windows allows them only in developer mode or with a
/// privilege.
pub fn can_link(folder: &Path) -> bool {
    let at = folder.join("link probe");
    #[cfg(unix)]
    let created = std::os::unix::fs::symlink("nowhere", &at);
    #[cfg(windows)]
    let created = std::os::windows::fs::symlink_file("nowhere", &at);
    created.and_then(|()| fs::remove_file(&at)).is_ok()
}

/// Whether two names refer to the same file. Links are not followed.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let meta = fs::symlink_metadata(path).ok()?;
        hf_cache_sync::platform::inode(path, &meta).map(|inode| inode.id)
    };
    id(one).is_some_and(|one| id(other) == Some(one))
}

#[cfg(unix)]
fn mode(meta: &fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(meta) & 0o7777
}

#[cfg(windows)]
fn mode(meta: &fs::Metadata) -> u32 {
    if meta.permissions().readonly() { 0o444 } else { 0o666 }
}

/// Returns every entry below a folder with its kind, mode, modification time, and content or link target. Links are not
/// followed.
pub fn listing(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    list_into(dir, "", &mut found);
    found
}

/// Returns the listing of a cache without `.locks`: everything that huggingface_hub and users see.
pub fn visible(hub: &Path) -> BTreeMap<String, String> {
    let mut found = listing(hub);
    found.retain(|path, _| path != ".locks" && !path.starts_with(".locks/"));
    // The root changes when `.locks` is created in it.
    found.remove("");
    found
}

/// Returns the files and links of a cache without `.locks` and without timestamps.
pub fn contents(hub: &Path) -> BTreeMap<String, String> {
    let mut found = visible(hub);
    found.retain(|_, what| !what.starts_with("dir"));
    found.values_mut().for_each(|what| *what = what.split_once(" @ ").map_or(String::new(), |(_, rest)| rest.into()));
    found
}

fn list_into(path: &Path, name: &str, found: &mut BTreeMap<String, String>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let changed = meta.modified().unwrap().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stamp = format!("{:o} {}.{}", mode(&meta), changed.as_secs(), changed.subsec_nanos());
    let what = if meta.is_symlink() {
        format!("link @ -> {}", fs::read_link(path).unwrap().display())
    } else if meta.is_dir() {
        format!("dir {stamp}")
    } else {
        // May belong to another user.
        let content = fs::read(path).map_or("unreadable".into(), |bytes| sha256(&bytes));
        format!("file {stamp} @ {} {content}", meta.len())
    };
    found.insert(name.to_string(), what);
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let inner = entry.file_name().to_string_lossy().into_owned();
            let inner = if name.is_empty() { inner } else { format!("{name}/{inner}") };
            list_into(&entry.path(), &inner, found);
        }
    }
}
