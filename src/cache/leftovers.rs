//! Removes what killed runs have left in the tool's own state, and what has not been used there for long.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::inventory::on_disk;
use super::layout::Layout;
use super::{inside, staging};

/// Leftovers younger than this may be in use by a process that holds no lock.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// How long the mark of an unverified blob is kept. After that, no client is expected to resume a download.
const OLD_MARK: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a remembered manifest stays after its last use.
const UNUSED_MANIFEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Returns the entries of a folder of the tool's own state, as far as they can be read.
fn entries(folder: PathBuf) -> impl Iterator<Item = fs::DirEntry> {
    // The files behind a link are not ours.
    let is_ours = fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir());
    is_ours.then(|| fs::read_dir(folder)).into_iter().flatten().flatten().filter_map(io::Result::ok)
}

/// Returns the bytes on disk of each blob that this tool has begun to pull.
pub fn partial_downloads(layout: &Layout) -> Vec<u64> {
    // The others are their journals.
    let partials = entries(layout.partials()).filter(|entry| entry.path().extension().is_none());
    partials
        .filter_map(|entry| entry.metadata().ok())
        .filter(|meta| meta.is_file())
        .map(|meta| on_disk(&meta))
        .collect()
}

/// Removes leftovers of killed runs that cannot be resumed: staging folders and small partial files. Partial files of
/// large blobs stay for their next pull. Also removes remembered manifests that have not been used for long, and old marks
/// of unverified blobs. Call this only while no other process uses the tool's state. Best effort.
pub fn remove(layout: &Layout, now: SystemTime) {
    let is_older = |entry: &fs::DirEntry, limit| {
        let modified = entry.metadata().and_then(|meta| meta.modified());
        modified.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > limit))
    };
    let is_old = |entry: &fs::DirEntry| is_older(entry, LEFTOVER_AGE);
    for file in entries(layout.manifests()).filter(|entry| is_older(entry, UNUSED_MANIFEST)) {
        let _ = inside::remove_file(layout.root(), &file.path());
    }
    for mark in entries(layout.unverified_marks()).filter(|entry| is_older(entry, OLD_MARK)) {
        let _ = inside::remove_file(layout.root(), &mark.path());
    }
    for staged in entries(layout.staging()).filter(is_old) {
        staging::remove(layout.root(), &staged.path());
    }
    let is_small = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.ends_with(".small"));
    for file in entries(layout.partials()).filter(is_small).filter(is_old) {
        let _ = inside::remove_file(layout.root(), &file.path());
    }
}
