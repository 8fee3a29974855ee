//! How much the disk can still take.

use std::path::Path;

/// Bytes that this user can still write to the file system of `path` (or of its nearest existing parent); `None`
/// where the system does not tell.
pub fn available(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|part| part.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(existing).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}
