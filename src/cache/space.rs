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

/// Whether the file system of `path` keeps no access times (mounted with `noatime`), so that only changes tell when a
/// file was used; `false` where the system does not tell.
pub fn lacks_access_times(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    path.canonicalize().is_ok_and(|path| is_noatime(&table, &path))
}

/// Looks up the mount of an absolute path in a table as of proc_pid_mountinfo(5); of several mounts on one folder the
/// last counts.
fn is_noatime(table: &str, path: &Path) -> bool {
    let mut best = (0, false);
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(folder), Some(options)) = (fields.get(4), fields.get(5)) else { continue };
        // Octal escapes: the table is separated by blanks and newlines.
        let folder = folder.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        let depth = Path::new(&folder).components().count();
        if path.starts_with(&folder) && depth >= best.0 {
            best = (depth, options.split(',').any(|option| option == "noatime"));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:30 / /data rw,noatime - xfs /dev/vdb rw,noatime
31 30 0:31 / /data/with\\040blank rw,nodev - ext4 /dev/vdc rw
32 27 0:32 / /over rw,relatime - tmpfs one rw
33 27 0:33 / /over rw,noatime - tmpfs two rw";

    #[test]
    fn the_innermost_and_last_mount_decides() {
        let noatime = |path: &str| is_noatime(TABLE, Path::new(path));
        assert!(noatime("/data/hub") && noatime("/over/hub"));
        assert!(!noatime("/home/hub") && !noatime("/data/with blank/hub") && !noatime("/database"));
        assert!(!is_noatime("", Path::new("/data")));
    }
}
