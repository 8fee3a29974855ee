//! Free disk space.

use std::path::Path;

use crate::platform;

/// Returns the number of bytes that this user can still write to the file system of `path` (or of its nearest existing
/// parent); `None` if unknown. Mounts of buckets and of other machines often report nothing (no blocks at all), and some
/// report 0 although they are unlimited.
pub fn available(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|part| part.exists())?;
    platform::available(existing)
}
