//! Windows 10 1809 and later.
//!
//! Two differences matter everywhere. A file that another program has open cannot always be replaced or deleted, and one
//! that is being deleted cannot be opened: see [`patiently`]. And permissions are in access lists instead of modes.
#![expect(unsafe_code, reason = "two calls that no crate in the tree wraps")]

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_INVALID_FUNCTION, ERROR_LOCK_VIOLATION, ERROR_NOT_SUPPORTED, ERROR_SHARING_VIOLATION,
    ERROR_TOO_MANY_OPEN_FILES, ERROR_USER_MAPPED_FILE, FILETIME, GENERIC_READ,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ADD_FILE, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_WRITE_ATTRIBUTES,
    GetDiskFreeSpaceExW, SetFileTime,
};

use super::{Inode, Opening};

/// Flags of CreateFileW.
pub type Flags = u32;
/// Opens a link itself, which is not a regular file.
pub const NO_FOLLOW: Flags = FILE_FLAG_OPEN_REPARSE_POINT;
/// Not needed: opening never blocks on Windows.
pub const NO_WAIT: Flags = 0;
/// Not needed for [`for_quiet_reading`].
pub const NO_ACCESS_TIME: Flags = 0;

/// Whether the system cannot store some names, or changes them.
pub const RESTRICTS_NAMES: bool = true;
/// The hint for a path that may not be read or written.
pub const PERMISSION_HINT: &str = "check who may write there, and whether another program has it open";

/// The number of attempts if another program is in the way, and the first wait. Each further wait is twice as long, which
/// adds up to about half a second.
const TRIES: u32 = 7;
const FIRST_WAIT: Duration = Duration::from_millis(8);

/// Sets the flags with which a file is opened.
pub fn set_flags(options: &mut OpenOptions, flags: Flags) {
    options.custom_flags(flags);
}

/// Does nothing: files get the access list of their folder.
pub fn set_mode(_: &mut OpenOptions, _: u32) {}

/// Does nothing: files have the access list of their folder.
pub fn widen_mode(_: &File, _: u32) -> io::Result<()> {
    Ok(())
}

/// Does nothing: folders have the access list of their parent.
pub fn copy_folder_mode(_: &Path, _: &Folder) -> io::Result<()> {
    Ok(())
}

/// Does nothing: files have the access list of their folder.
pub fn make_payload(_: &Path, _: &Folder, _: &File) -> io::Result<()> {
    Ok(())
}

/// Returns options to read a file without counting as a use of it. Pass the opened file to [`keep_access_time`].
pub fn for_quiet_reading() -> OpenOptions {
    OpenOptions::new().access_mode(GENERIC_READ | FILE_WRITE_ATTRIBUTES).clone()
}

/// Keeps reads of this file from changing its access time. Best effort.
pub fn keep_access_time(file: &File) {
    // For SetFileTime, this value means that operations on this handle do not change the last access time.
    let keep = FILETIME { dwLowDateTime: u32::MAX, dwHighDateTime: u32::MAX };
    // SAFETY: the handle is open as long as `file` is borrowed, `keep` outlives the call, and the null pointers mean
    // "leave unchanged".
    unsafe { SetFileTime(file.as_raw_handle(), std::ptr::null(), &keep, std::ptr::null()) };
}

/// Returns the file behind a name, if the system reports it. `meta` is that of `path`, or of the target of a link there.
/// The file index is that of NTFS: on ReFS, whose indexes are longer, two files may have the same.
pub fn inode(path: &Path, meta: &Metadata) -> Option<Inode> {
    // Requests no access, so that a program that has the file open is not in the way. A folder needs the first flag.
    let link = if meta.is_symlink() { FILE_FLAG_OPEN_REPARSE_POINT } else { 0 };
    let file = OpenOptions::new().access_mode(0).custom_flags(FILE_FLAG_BACKUP_SEMANTICS | link).open(path).ok()?;
    inode_of(&file).map(|inode| Inode { allocated: allocated(meta), ..inode })
}

fn inode_of(file: &File) -> Option<Inode> {
    let known = winapi_util::file::information(file).ok()?;
    let id = (known.volume_serial_number(), known.file_index());
    Some(Inode { id, links: known.number_of_links(), allocated: known.file_size() })
}

/// Returns the number of hard links to an open file, if the system reports it.
pub fn links(file: &File) -> Option<u64> {
    inode_of(file).map(|inode| inode.links)
}

/// Whether `path`, which is not a link, is still the name of this open file.
pub fn is_at(file: &File, path: &Path) -> bool {
    let named = std::fs::symlink_metadata(path).ok().and_then(|meta| inode(path, &meta));
    inode_of(file).zip(named).is_some_and(|(held, named)| held.id == named.id)
}

/// Returns the bytes that a file takes on disk: its length, since this tool makes no holes on Windows.
pub fn allocated(meta: &Metadata) -> u64 {
    meta.len()
}

/// Returns the last change of a file or its metadata: unknown, since no stable part of the standard library reports it.
pub fn changed(_: &Metadata) -> Option<SystemTime> {
    None
}

/// Describes an entry that is neither a file, a folder nor a link: Windows has none.
pub fn special_kind(_: &Metadata) -> Option<&'static str> {
    None
}

fn is_any(error: &io::Error, codes: &[u32]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&code.cast_unsigned()))
}

/// Whether this error of the system means that the file system does not support the operation.
pub fn is_refused(error: &io::Error) -> bool {
    is_any(error, &[ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED])
}

/// Whether this is the error of a file server without locks.
pub fn lacks_lock_service(error: &io::Error) -> bool {
    is_refused(error)
}

/// Whether another program prevents a file from being opened, replaced or deleted.
pub fn is_in_use(error: &io::Error) -> bool {
    is_any(error, &[ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION, ERROR_USER_MAPPED_FILE])
}

/// Whether a file could not be opened because too many are open.
pub fn lacks_handles(error: &io::Error) -> bool {
    is_any(error, &[ERROR_TOO_MANY_OPEN_FILES])
}

/// Retries an operation that may fail for a moment while the file is being deleted, or while another program reads it, such
/// as a virus scanner. Either may also appear as "access denied", so that a missing permission is reported late on Windows.
pub fn patiently<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut wait = FIRST_WAIT;
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if is_in_use(&error) || is_any(&error, &[ERROR_ACCESS_DENIED]) => std::thread::sleep(wait),
            done => return done,
        }
        wait *= 2;
    }
    attempt()
}

/// Reads exactly `buffer.len()` bytes at `offset`. This moves the file position.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.seek_read(&mut buffer[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => done += length,
        }
    }
    Ok(())
}

/// Reads at `offset` into the spare capacity, and returns the number of bytes.
pub fn read_spare_at(file: &File, bytes: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
    let start = bytes.len();
    bytes.resize(bytes.capacity(), 0);
    let read = file.seek_read(&mut bytes[start..], offset);
    bytes.truncate(start + read.as_ref().map_or(0, |length| *length));
    read
}

/// Returns `None`: Windows does not report what is in memory.
pub fn read_cached_at(_: &File, _: &mut [u8], _: u64) -> Option<usize> {
    None
}

/// Writes all of `bytes` at `offset`. This moves the file position.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        done += file.seek_write(&bytes[done..], offset + done as u64)?;
    }
    Ok(())
}

/// Allocates space for the whole file: NTFS allocates everything that is not declared a hole.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)
}

/// Whether the disk of `path` is a rotating one; `false` if unknown.
pub fn is_rotational(_: &Path) -> bool {
    false
}

/// Whether the volume cannot hold more files: never until it is full.
pub fn lacks_inodes(_: &Path) -> bool {
    false
}

/// Whether the file system records no access times: unknown, since Windows does not report it for a volume.
pub fn lacks_access_times(_path: &Path) -> bool {
    false
}

/// Returns the bytes that this user can still write to the volume of `path`, which exists; `None` if unknown.
pub fn available(path: &Path) -> Option<u64> {
    // Verbatim, so that the path may be long.
    let folder = path.canonicalize().ok()?;
    let folder = if folder.is_dir() { folder.as_path() } else { folder.parent()? };
    let name: Vec<u16> = folder.as_os_str().encode_wide().chain([0]).collect();
    let mut free = 0;
    // SAFETY: `name` ends with a zero, `free` is a u64 that the call writes to, and both outlive it. The null pointers
    // mean that the other two numbers are not needed.
    let done = unsafe { GetDiskFreeSpaceExW(name.as_ptr(), &mut free, std::ptr::null_mut(), std::ptr::null_mut()) };
    (done != 0).then_some(free)
}

/// Checks that this user may create entries in a folder. A missing folder is not an error.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    // Requests the right to create files, without creating one.
    let mut options = OpenOptions::new();
    match options.access_mode(FILE_ADD_FILE).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && !is_in_use(&error) => Err(error),
        _ => Ok(()),
    }
}

/// A folder, by its path: only its entries are checked not to be links when they are opened. On Windows, creating links
/// needs a privilege.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Opens a folder by its path, and follows links.
    pub fn open(path: &Path) -> io::Result<Folder> {
        match fs::metadata(path)?.is_dir() {
            true => Ok(Folder(path.to_path_buf())),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Returns the path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens a folder in this one. If a link is in its place, the error is [`io::ErrorKind::NotADirectory`].
    pub fn folder(&self, name: &OsStr) -> io::Result<Folder> {
        let path = self.0.join(name);
        match fs::symlink_metadata(&path)?.is_dir() {
            true => Ok(Folder(path)),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Returns `None`: Windows cannot do that in one step without following links.
    pub fn below(&self, _: &Path) -> Option<Folder> {
        None
    }

    /// Creates a folder in it.
    pub fn create_folder(&self, name: &OsStr) -> io::Result<()> {
        fs::create_dir(self.0.join(name))
    }

    /// Opens a file in it, without following a link. It gets the access list of the folder.
    pub fn open_file(&self, name: &OsStr, opening: Opening, _mode: u32) -> io::Result<File> {
        let mut options = OpenOptions::new();
        match opening {
            Opening::New => options.read(true).write(true).create_new(true),
            Opening::NewToWrite => options.write(true).create_new(true),
            Opening::Any => options.read(true).write(true).create(true).truncate(false),
            Opening::Existing => options.read(true),
            Opening::Append => options.append(true).create(true),
        };
        options.custom_flags(NO_FOLLOW).open(self.0.join(name))
    }

    /// Renames an entry, and replaces an existing target.
    pub fn rename(&self, name: &OsStr, to: &Folder, new: &OsStr) -> io::Result<()> {
        fs::rename(self.0.join(name), to.0.join(new))
    }

    /// Creates a symbolic link to a file; `text` has slashes. Needs developer mode or a privilege.
    pub fn symlink(&self, text: &str, name: &OsStr) -> io::Result<()> {
        std::os::windows::fs::symlink_file(text.replace('/', "\\"), self.0.join(name))
    }

    /// Gives a file a second name here.
    pub fn hard_link(&self, source: &Path, name: &OsStr) -> io::Result<()> {
        fs::hard_link(source, self.0.join(name))
    }

    /// Creates a new file that shares its blocks with `source`, on file systems that support it.
    pub fn clone_file(&self, source: &Path, name: &OsStr) -> io::Result<()> {
        reflink_copy::reflink(source, self.0.join(name))
    }

    /// Deletes a file or a link.
    pub fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    /// Deletes an empty folder.
    pub fn remove_folder(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_dir(self.0.join(name))
    }

    /// Deletes a folder with everything in it, and returns the number of bytes freed. Links are deleted, not followed.
    pub fn delete_tree(&self, name: &OsStr) -> io::Result<u64> {
        let folder = self.folder(name)?;
        let mut freed = 0;
        for entry in fs::read_dir(folder.path())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                freed += folder.delete_tree(&entry.file_name())?;
                continue;
            }
            let (path, meta) = (entry.path(), entry.metadata()?);
            let is_last = inode(&path, &meta).is_none_or(|inode| inode.links <= 1);
            patiently(|| fs::remove_file(&path))?;
            freed += if meta.is_file() && is_last { meta.len() } else { 0 };
        }
        self.remove_folder(name)?;
        Ok(freed)
    }
}

/// Flushes a folder, so that a rename in it survives a power failure.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(path)?.sync_all()
}

/// Reads the links of one folder.
#[derive(Debug, Default)]
pub struct LinkReader {
    target: PathBuf,
}

impl LinkReader {
    /// Returns the target of the link with this name in `dir`, which is the same folder each time.
    ///
    /// # Errors
    /// If it is not a link, or cannot be read.
    pub fn read(&mut self, dir: &Path, name: &str) -> io::Result<&Path> {
        self.target = std::fs::read_link(dir.join(name))?;
        Ok(&self.target)
    }
}

/// Signals to stop: ctrl-c, ctrl-break, a closed console window, or a shutdown.
#[derive(Debug)]
pub struct Interruption {
    interrupt: Option<CtrlC>,
    terminate: Option<CtrlBreak>,
    close: Option<CtrlClose>,
    shutdown: Option<CtrlShutdown>,
}

impl Interruption {
    /// Starts to listen. From now on, ctrl-c and ctrl-break do not end the process by themselves. After the other two, the
    /// system gives it a few seconds.
    pub fn listen() -> Self {
        Interruption {
            interrupt: ctrl_c().ok(),
            terminate: ctrl_break().ok(),
            close: ctrl_close().ok(),
            shutdown: ctrl_shutdown().ok(),
        }
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        self.next_is_terminate().await;
    }

    /// Waits for the next one, and returns whether it is one other than ctrl-c.
    pub async fn next_is_terminate(&mut self) -> bool {
        macro_rules! wait {
            ($signal:expr) => {
                async {
                    let came = match $signal {
                        Some(signal) => signal.recv().await,
                        None => None,
                    };
                    if came.is_none() {
                        std::future::pending().await
                    }
                }
            };
        }
        tokio::select! {
            () = wait!(&mut self.interrupt) => false,
            () = wait!(&mut self.terminate) => true,
            () = wait!(&mut self.close) => true,
            () = wait!(&mut self.shutdown) => true,
        }
    }
}

/// Does nothing: a second process would not be the one that other programs wait for or stop.
pub fn start_again(_: Vec<(&str, String)>) {}

/// Does nothing: there is no limit to raise.
pub fn raise_file_limit() {}

/// Does nothing: there is no limit on the size of files.
pub fn survive_file_size_limit() {}

/// Returns how many files this process may have open; `None` if that is not limited.
pub fn file_limit() -> Option<usize> {
    None
}

/// Returns the exit code of a process, if it fits.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    status.code().map_or(1, |code| u8::try_from(code).unwrap_or(1))
}

/// Always the case on Windows, where the option of that name would let two servers share a port.
pub const REUSES_ADDRESSES: bool = false;

/// A child process gets ctrl-c from the console itself.
pub fn pass_on(_: u32, _: bool) {}
