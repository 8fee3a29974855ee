//! Invariants of every cache and every bucket at any moment, no matter what was interrupted, broken or killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::store::Store;
use super::{git_sha1, sha256};

/// Whether these bytes are those of the blob with this name.
fn is_blob(name: &str, bytes: &[u8]) -> bool {
    name == if name.len() == 64 { sha256(bytes) } else { git_sha1(bytes) }
}

/// Asserts that every blob of every manifest in the bucket exists, with bytes that match its name, and that every ref has a
/// manifest.
#[track_caller]
pub fn assert_sound_bucket(store: &Store) {
    assert_sound_bucket_except(store, &[]);
}

/// The same, but these keys may be missing, and their objects may have any bytes.
#[track_caller]
pub fn assert_sound_bucket_except(store: &Store, damaged: &[&str]) {
    let objects = store.contents();
    let is_there = |key: &String| objects.contains_key(key) || damaged.contains(&key.as_str());
    for (key, bytes) in objects.iter().filter(|(key, _)| !damaged.contains(&key.as_str())) {
        let (start, rest) = key.split_once('/').unwrap();
        let encoded = rest.split('/').next().unwrap();
        let encoded = match start {
            "refs" => Some(encoded.to_string()),
            "refs-v2" => Some(encoded.split_once("--").unwrap().1.replace("--", "__")),
            _ => None,
        };
        if let Some(encoded) = encoded {
            let manifest = format!("manifests/{encoded}@{}.json", String::from_utf8_lossy(bytes));
            assert!(is_there(&manifest), "{key} leads to no manifest: {:#?}", objects.keys());
        }
        if start == "manifests" && key.ends_with(".json") {
            let manifest: Value = serde_json::from_slice(bytes).unwrap();
            for file in manifest["files"].as_array().unwrap() {
                let name = file["blob"].as_str().unwrap();
                let blob = format!("blobs/{name}");
                assert!(is_there(&blob), "{key} needs {blob}: {:#?}", objects.keys());
                let is_good = || is_blob(name, &objects[&blob]);
                assert!(damaged.contains(&blob.as_str()) || is_good(), "{key} needs {blob}, which has other bytes");
            }
        }
    }
}

/// Asserts that the bytes of every blob in the bucket match its name, even if no manifest needs it.
#[track_caller]
pub fn assert_good_blobs(store: &Store, except: &[&str]) {
    for (key, bytes) in store.contents().iter().filter(|(key, _)| !except.contains(&key.as_str())) {
        assert!(key.strip_prefix("blobs/").is_none_or(|name| is_blob(name, bytes)), "{key} has other bytes");
    }
}

/// Asserts that the bytes of every visible blob in the cache match its name, that no link in a snapshot dangles, that every
/// ref has a snapshot, and that there is nothing else that a client could mistake for a file.
#[track_caller]
pub fn assert_sound_cache(hub: &Path) {
    assert_sound_cache_except(hub, &[]);
}

/// The same, but these blobs may be missing, and may have any bytes.
#[track_caller]
pub fn assert_sound_cache_except(hub: &Path, damaged: &[PathBuf]) {
    let Ok(entries) = fs::read_dir(hub) else { return };
    for entry in entries.map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap().to_string();
        match name.split_once("--") {
            Some(("models" | "datasets" | "spaces" | "kernels", _)) => assert_sound_repo(&entry, damaged),
            _ => assert!([".locks", "CACHEDIR.TAG", "blobs"].contains(&name.as_str()), "{name} is not a cache's"),
        }
    }
}

#[track_caller]
fn assert_sound_repo(repo: &Path, damaged: &[PathBuf]) {
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(repo.join(folder)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    for name in names("blobs") {
        let path = repo.join("blobs").join(&name);
        if damaged.contains(&path) {
            continue;
        }
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(is_blob(&name, &bytes), "{} has other bytes", path.display());
    }
    let snapshots = names("snapshots");
    let mut folders: Vec<_> = snapshots.iter().map(|name| repo.join("snapshots").join(name)).collect();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => folders.push(path),
                Ok(_) => {}
                Err(error) => {
                    let blob = repo.join("blobs").join(fs::read_link(&path).unwrap().file_name().unwrap());
                    assert!(damaged.contains(&blob), "{} dangles: {error}", path.display());
                }
            }
        }
    }
    let mut folders = vec![repo.join("refs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let commit = fs::read_to_string(&path).unwrap();
            assert!(snapshots.contains(&commit), "{} names '{commit}', which is not here", path.display());
        }
    }
}
