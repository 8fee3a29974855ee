//! How much the disk can still take.

use std::path::Path;

use crate::platform;

/// Bytes that this user can still write to the file system of `path` (or of its nearest existing parent); `None`
/// where the system does not tell. Mounts of buckets and of other machines often say nothing (no blocks at all), and
/// some of them say 0 of what has no end.
pub fn available(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|part| part.exists())?;
    platform::available(existing)
}
