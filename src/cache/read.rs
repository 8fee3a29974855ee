//! Opening a blob for reading, without that counting as a use of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Opens `path` without changing its access time, where the system allows it (O_NOATIME: Linux, own files), since
/// `prune` takes the access time for the last use.
pub fn open_quietly(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let no_atime = rustix::fs::OFlags::NOATIME.bits() as i32;
        match OpenOptions::new().read(true).custom_flags(no_atime).open(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => return result,
        }
    }
    OpenOptions::new().read(true).open(path)
}

/// Reads up to `limit` bytes of a small file; `None` when it is longer.
pub fn read_small(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    open_quietly(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}
