//! What the integration tests share: a machine that runs the real binary ([`machine`]), its cache, as a revision in any
//! layout that huggingface_hub makes ([`cache`]) or file by file ([`cache_dir`]), a bucket on an S3 server ([`store`],
//! [`s3`]), a store that answers by a script ([`scripted`]), and a look-alike of the Hub (`hub_server`).

pub mod cache;
pub mod cache_dir;
#[cfg(feature = "fallback")]
pub mod hub_server;
pub mod machine;
pub mod s3;
pub mod scripted;
pub mod store;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::Digest;

/// Waits for what shows on the disk or in a bucket, and makes a failure of what never comes.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < machine::LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file of `tests/it/harness/tls`.
pub fn tls_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness/tls").join(name)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sha256 of some bytes: the name of an LFS or Xet file's blob.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// git's blob hash of some bytes: the name of any other file's blob.
pub fn git_sha1(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    hex(&sha1::Sha1::new().chain_update(header).chain_update(bytes).finalize())
}

/// Bytes that look like weights: not compressible, not text, different for each seed.
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

/// Makes the client's link, as text, to a file that is there: where links cannot be had, on Windows, a hard link.
pub fn link(text: &str, at: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(text, at);
    #[cfg(windows)]
    fs::hard_link(at.with_file_name(text), at)
}

/// Whether this folder can have symbolic links: on Windows only in developer mode, or with a privilege.
pub fn can_link(folder: &Path) -> bool {
    let at = folder.join("can it link");
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink("nowhere", &at);
    #[cfg(windows)]
    let made = std::os::windows::fs::symlink_file("nowhere", &at);
    made.and_then(|()| fs::remove_file(&at)).is_ok()
}

/// Whether two names are those of one file. Links are not followed.
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

/// Everything below a folder: kind, mode, time of the last change, and content or link text. Nothing is followed.
pub fn listing(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    list_into(dir, "", &mut found);
    found
}

/// The listing of a cache without `.locks`: what huggingface_hub and people look at.
pub fn visible(hub: &Path) -> BTreeMap<String, String> {
    let mut found = listing(hub);
    found.retain(|path, _| path != ".locks" && !path.starts_with(".locks/"));
    // The root changes when `.locks` appears in it.
    found.remove("");
    found
}

/// The files and links of a cache without `.locks` and without times.
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
        // Of another user, or as if.
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
