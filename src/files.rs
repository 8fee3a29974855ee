//! Opens files without ever blocking. A FIFO, a socket or a device in place of a file is an error that says so, whether or
//! not anything is at its other end.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

use crate::platform::{self, Flags};

/// Describes what is in place of a regular file.
fn describe_kind(meta: &Metadata) -> &'static str {
    platform::special_kind(meta).unwrap_or(if meta.is_dir() { "a folder" } else { "something else" })
}

/// Returns the reason for an error about a path that is not a regular file: "it is a named pipe, not a file".
pub fn not_a_file(meta: &Metadata) -> String {
    format!("it is {}, not a file", describe_kind(meta))
}

/// Whether this is neither a file, a folder nor a link, and so must not be opened or replaced.
pub fn is_special(meta: &Metadata) -> bool {
    !meta.is_file() && !meta.is_dir() && !meta.is_symlink()
}

/// Whether nothing is at this path, not even a link.
pub fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Returns when a file, a folder or a link itself was last modified; `None` if unknown.
pub fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Opens a regular file. Links are followed unless the options forbid it.
///
/// # Errors
/// When it cannot be opened, or is not a regular file.
pub fn open_with(options: &OpenOptions, path: &Path) -> io::Result<File> {
    open_flagged(options, 0, path)
}

/// Like [`open_with`], with additional flags of [`crate::platform`].
///
/// # Errors
/// When it cannot be opened, or is not a regular file.
pub fn open_flagged(options: &OpenOptions, flags: Flags, path: &Path) -> io::Result<File> {
    let opened = match platform::flagged(options, flags | platform::NO_WAIT).open(path) {
        // Without waiting, opening a file that is leased to another process fails. Waiting is fine here: the lease is
        // broken soon.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && path.is_file() => {
            platform::flagged(options, flags).open(path)
        }
        opened => opened,
    };
    check_regular(opened, path)
}

/// Passes a file on if it is a regular one. If it is not, or could not be opened for that reason, the error says so.
///
/// # Errors
/// When it is not a regular file, or could not be opened.
pub fn check_regular(opened: io::Result<File>, path: &Path) -> io::Result<File> {
    let file = opened.map_err(|error| explain(error, path))?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok(file) } else { Err(io::Error::other(not_a_file(&meta))) }
}

/// Fills the buffer, unless the file ends before. Returns the number of bytes.
///
/// # Errors
/// When reading fails.
pub fn read_full(mut file: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Replaces "No such device or address", the system's error for a socket, a device without a driver and a FIFO opened for
/// writing.
fn explain(error: io::Error, path: &Path) -> io::Error {
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::AlreadyExists)
    {
        return error;
    }
    match std::fs::metadata(path) {
        Ok(meta) if is_special(&meta) => io::Error::other(not_a_file(&meta)),
        _ => error,
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// When it cannot be opened, or is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path)
}

/// Reads the rest of a file, or returns `None` if it is longer than `limit` bytes. A file known to be longer is not read at
/// all.
///
/// # Errors
/// When it cannot be read.
pub fn read_rest(file: &mut File, limit: u64) -> io::Result<Option<Vec<u8>>> {
    if file.metadata()?.len() > limit {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Opens a file that the user named. Apart from regular files, it may be `/dev/null`, or what a shell passes as
/// `/dev/fd/63` or `/dev/stdin`, which the user is responsible for.
///
/// # Errors
/// When it cannot be opened, or is something else that could block.
pub fn open_named(path: &Path) -> io::Result<File> {
    let is_passed = ["/dev/fd", "/proc/self/fd", "/dev/stdin", "/dev/null"].iter().any(|place| path.starts_with(place));
    if is_passed { File::open(path) } else { open(path) }
}

/// Reads a small text file that the user named; see [`open_named`].
///
/// # Errors
/// When it cannot be read, is longer than `limit` bytes, is not UTF-8, or is something that could block.
pub fn read_named_text(path: &Path, limit: u64) -> io::Result<String> {
    let bytes = read_rest(&mut open_named(path)?, limit)?.ok_or_else(|| io::Error::other("it is too large"))?;
    String::from_utf8(bytes).map_err(|_| io::Error::other("stream did not contain valid UTF-8"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_files_are_opened_and_nothing_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        fs::write(place("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", place("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_rest(&mut open(&place(name)).unwrap(), 4).unwrap().unwrap(), b"text", "{name}");
            assert_eq!(read_rest(&mut open(&place(name)).unwrap(), 3).unwrap(), None, "{name}");
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, place("fifo"), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place("endless")).unwrap();
        std::os::unix::fs::symlink("fifo", place("led")).unwrap();
        let cases =
            [("fifo", "a named pipe"), ("led", "a named pipe"), ("socket", "a socket"), ("endless", "a device")];
        for (name, what) in cases.into_iter().chain([(".", "a folder")]) {
            let reading = open(&place(name)).unwrap_err().to_string();
            assert_eq!(reading, format!("it is {what}, not a file"), "{name}");
            let writing = open_with(OpenOptions::new().read(true).write(true), &place(name));
            assert!(writing.is_err(), "{name}");
        }
        let writing = open_with(OpenOptions::new().write(true), &place("fifo")).unwrap_err();
        assert!(writing.to_string().contains("a named pipe"), "{writing}");
    }

    #[test]
    fn a_named_text_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read_named_text(&path, 1 << 20).unwrap_err().to_string().contains("too large"));
        assert_eq!(read_named_text(Path::new("/dev/null"), 1 << 20).unwrap(), "");
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("endless")).unwrap();
        assert!(read_named_text(&dir.path().join("endless"), 1 << 20).is_err());
    }
}
