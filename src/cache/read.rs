//! Opens blobs for reading without marking them as used, and provides aligned buffers to read them into. Only regular
//! files are opened: see [`crate::files`].

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use bytes::Bytes;

use crate::files;
use crate::hash::BlobHasher;
use crate::model::ids::BlobId;
use crate::platform::{self, Folder, Opening};

/// Opens the regular file `path` without changing its access time if the system allows it (on Linux for
/// own files, and on Windows). `prune` treats the access time as the last use.
///
/// # Errors
/// If the file cannot be opened, or is not a regular file.
pub fn open_quietly(path: &Path) -> io::Result<File> {
    let opened = files::open_flagged(&platform::for_quiet_reading(), platform::NO_ACCESS_TIME, path);
    match opened.inspect(platform::keep_access_time) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => files::open(path),
        opened => opened,
    }
}

/// Copies a blob to a new file, whose mode follows the umask. The blob is not marked as used.
///
/// # Errors
/// If the source cannot be read or the target cannot be written.
pub fn copy_quietly(from: &Path, folder: &Folder, name: &OsStr) -> io::Result<()> {
    let mut source = open_quietly(from)?;
    let mut target = super::inside::open_in(folder, name, Opening::NewToWrite, 0o666)?;
    io::copy(&mut source, &mut target).map(drop).inspect_err(|_| drop(folder.remove_file(name)))
}

/// Returns whether the hash of the file's bytes is the blob's name.
pub fn matches_name(path: &Path, id: &BlobId, size: u64) -> bool {
    use std::io::Read;
    let Ok(mut file) = open_quietly(path) else { return false };
    let mut hasher = BlobHasher::like(id, size);
    let mut buffer = Buffer::new(256 << 10);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hasher.finish() == *id,
            Ok(length) => hasher.update(&buffer[..length]),
            Err(_) => return false,
        }
    }
}

/// Reads a small file; `None` if it is longer than `limit` bytes.
///
/// # Errors
/// If the file cannot be read, or is not a regular file.
pub fn read_small(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    files::read_rest(&mut open_quietly(path)?, limit)
}

/// Alignment of read buffers, in bytes. Allocators place large blocks 16 bytes into a page, and copying from the page
/// cache to such an address is four times slower on some processors (`rep movsb` on AMD Zen 3, whenever the page offset
/// of the target is 1 to 31 bytes past that of the source).
const ALIGNED: usize = 64;

/// An aligned buffer for reading a file slice by slice.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Allocates a buffer of `length` zero bytes.
    pub fn new(length: usize) -> Self {
        let mut bytes = vec![0; length + ALIGNED];
        let start = bytes_until_aligned(bytes.as_ptr());
        bytes.truncate(start + length);
        Buffer { bytes, start }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

/// Returns the number of bytes to skip at the start of an allocation.
fn bytes_until_aligned(start: *const u8) -> usize {
    start.addr().next_multiple_of(ALIGNED) - start.addr()
}

/// Reads exactly `length` bytes at `offset`.
pub fn read_at(file: &File, length: usize, offset: u64) -> io::Result<Bytes> {
    // Uninitialised memory, since this runs once for every 256 KiB sent.
    let mut bytes = Vec::with_capacity(length + ALIGNED);
    let start = bytes_until_aligned(bytes.as_ptr());
    bytes.resize(start, 0);
    while bytes.len() < start + length {
        let at = offset + (bytes.len() - start) as u64;
        match platform::read_spare_at(file, &mut bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Bytes::from(bytes).slice(start..start + length))
}

#[cfg(test)]
mod buffers {
    use super::*;
    use std::io::Write;

    #[test]
    fn reads_are_aligned_and_have_exactly_the_requested_length() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        file.write_all(&content).unwrap();
        for (offset, length) in [(0, 0), (0, 1), (7, 63), (100, 20_000), (1, 262_144), (299_999, 1)] {
            let wanted = &content[offset..offset + length];
            let bytes = read_at(&file, length, offset as u64).unwrap();
            assert_eq!(bytes, wanted);
            let mut buffer = Buffer::new(length);
            platform::read_exact_at(&file, &mut buffer, offset as u64).unwrap();
            assert_eq!(*buffer, *wanted);
            let starts = [buffer.as_ptr().addr(), bytes.as_ptr().addr()];
            assert!(length == 0 || starts.iter().all(|start| start % ALIGNED == 0), "{starts:?}");
        }
        assert!(read_at(&file, 2, 299_999).is_err());
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::fs::{self, FileTimes};
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_copy_does_not_count_as_a_use_and_gets_a_default_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "bytes").unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let times = FileTimes::new().set_accessed(then).set_modified(then);
        File::options().write(true).open(&from).unwrap().set_times(times).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o400)).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        copy_quietly(&from, &folder, "to".as_ref()).unwrap();
        assert_eq!(fs::metadata(&from).unwrap().accessed().unwrap(), then);
        assert_eq!(fs::read(&to).unwrap(), b"bytes");
        assert_ne!(fs::metadata(&to).unwrap().permissions().mode() & 0o200, 0);
        assert!(copy_quietly(&from, &folder, "to".as_ref()).is_err() && to.exists(), "nothing is overwritten");
    }
}
