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

/// Copies a blob to a file that is not there yet, which gets the mode that the umask gives. Not a use of it either.
///
/// # Errors
/// When one cannot be read or the other not be written.
pub fn copy_quietly(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = open_quietly(from)?;
    io::copy(&mut source, &mut File::create_new(to)?).map(drop)
}

/// Reads up to `limit` bytes of a small file; `None` when it is longer.
pub fn read_small(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    open_quietly(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::fs::{self, FileTimes};
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_copy_is_no_use_and_takes_no_mode_along() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "bytes").unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let times = FileTimes::new().set_accessed(then).set_modified(then);
        File::options().write(true).open(&from).unwrap().set_times(times).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o400)).unwrap();
        copy_quietly(&from, &to).unwrap();
        assert_eq!(fs::metadata(&from).unwrap().accessed().unwrap(), then);
        assert_eq!(fs::read(&to).unwrap(), b"bytes");
        assert_ne!(fs::metadata(&to).unwrap().permissions().mode() & 0o200, 0);
        assert!(copy_quietly(&from, &to).is_err(), "nothing is written over");
    }
}
