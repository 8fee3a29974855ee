//! How much the disk can still take.

use std::path::Path;

/// Bytes that this user can still write to the file system of `path` (or of its nearest existing parent); `None`
/// where the system does not tell. Mounts of buckets and of other machines often say nothing (no blocks at all), and
/// some of them say 0 of what has no end.
pub fn available(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|part| part.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(existing).ok()?;
        told(stat.f_blocks, stat.f_bavail, [stat.f_frsize, stat.f_bsize], || is_fuse(existing))
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}

/// What these numbers of statvfs(3) tell. Block sizes are in the order in which they count.
#[cfg(unix)]
fn told(blocks: u64, free: u64, block_sizes: [u64; 2], is_fuse: impl Fn() -> bool) -> Option<u64> {
    let block_size = block_sizes.into_iter().find(|size| *size > 0)?;
    if blocks == 0 || (free == 0 && is_fuse()) {
        return None;
    }
    Some(free.saturating_mul(block_size))
}

/// Whether a program in user space is the file system (FUSE_SUPER_MAGIC).
#[cfg(unix)]
fn is_fuse(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == 0x6573_5546);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
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

    #[cfg(unix)]
    #[test]
    fn what_a_mount_does_not_know_is_not_zero() {
        let (disk, fuse) = (|| false, || true);
        assert_eq!(told(1000, 10, [4096, 4096], disk), Some(40_960));
        assert_eq!(told(1000, 0, [4096, 4096], disk), Some(0), "a full disk is full");
        assert_eq!(told(1000, 0, [4096, 4096], fuse), None);
        assert_eq!(told(1000, 10, [4096, 4096], fuse), Some(40_960));
        assert_eq!(told(0, 0, [512, 512], disk), None);
        assert_eq!(told(1000, 10, [0, 512], disk), Some(5120));
        assert_eq!(told(1000, 10, [0, 0], disk), None);
        assert_eq!(told(u64::MAX, u64::MAX, [4096, 4096], fuse), Some(u64::MAX));
    }

    #[test]
    fn the_innermost_and_last_mount_decides() {
        let noatime = |path: &str| is_noatime(TABLE, Path::new(path));
        assert!(noatime("/data/hub") && noatime("/over/hub"));
        assert!(!noatime("/home/hub") && !noatime("/data/with blank/hub") && !noatime("/database"));
        assert!(!is_noatime("", Path::new("/data")));
    }
}
