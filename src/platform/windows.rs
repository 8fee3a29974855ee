//! Windows 10 1809 and later.
//!
//! Two differences run through all of this. A file that another program has open cannot always be replaced or deleted,
//! and one that is being deleted cannot be opened: see [`patiently`]. And who may write is in access lists, which no
//! mode says.
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
/// Opens a link itself, which then is no regular file.
pub const NO_FOLLOW: Flags = FILE_FLAG_OPEN_REPARSE_POINT;
/// Nothing here makes an open wait.
pub const NO_WAIT: Flags = 0;
/// [`for_quiet_reading`] needs no flag.
pub const NO_ACCESS_TIME: Flags = 0;

/// Whether some names cannot be stored, or not as they are.
pub const RESTRICTS_NAMES: bool = true;
/// What helps when a path must not be read or written.
pub const PERMISSION_HINT: &str = "check who may write there, and whether another program has it open";

/// How often something is tried that another program may be in the way of, and how long is waited after the first time;
/// each further wait is twice as long, which makes about half a second.
const TRIES: u32 = 7;
const FIRST_WAIT: Duration = Duration::from_millis(8);

/// Sets the flags with which a file is opened.
pub fn set_flags(options: &mut OpenOptions, flags: Flags) {
    options.custom_flags(flags);
}

/// Files get the access list of their folder: nothing is set.
pub fn set_mode(_: &mut OpenOptions, _: u32) {}

/// Files have the access list of their folder: nothing is added.
pub fn widen_mode(_: &File, _: u32) -> io::Result<()> {
    Ok(())
}

/// Folders have the access list of their parent: nothing is changed.
pub fn copy_folder_mode(_: &Path, _: &Folder) -> io::Result<()> {
    Ok(())
}

/// Files have the access list of their folder: nothing is changed.
pub fn make_payload(_: &Path, _: &Folder, _: &File) -> io::Result<()> {
    Ok(())
}

/// Options to read a file without that counting as a use of it; what they open goes to [`keep_access_time`].
pub fn for_quiet_reading() -> OpenOptions {
    OpenOptions::new().access_mode(GENERIC_READ | FILE_WRITE_ATTRIBUTES).clone()
}

/// Reading from this file shall not change when it was last used. Best effort.
pub fn keep_access_time(file: &File) {
    // "The last access time is not to be changed by what is done with this handle", in the words of SetFileTime.
    let keep = FILETIME { dwLowDateTime: u32::MAX, dwHighDateTime: u32::MAX };
    // SAFETY: the handle is open as long as `file` is borrowed, `keep` lives as long, and the null pointers mean "leave
    // as it is".
    unsafe { SetFileTime(file.as_raw_handle(), std::ptr::null(), &keep, std::ptr::null()) };
}

/// The file behind a name, where the system tells; `meta` is that of `path`, or of what a link there leads to. The file
/// index is that of NTFS: on ReFS, which has longer ones, it may be that of two files.
pub fn inode(path: &Path, meta: &Metadata) -> Option<Inode> {
    // No access is asked for, so that nobody who has the file open is in the way; a folder needs the first flag.
    let link = if meta.is_symlink() { FILE_FLAG_OPEN_REPARSE_POINT } else { 0 };
    let file = OpenOptions::new().access_mode(0).custom_flags(FILE_FLAG_BACKUP_SEMANTICS | link).open(path).ok()?;
    inode_of(&file).map(|inode| Inode { allocated: allocated(meta), ..inode })
}

fn inode_of(file: &File) -> Option<Inode> {
    let known = winapi_util::file::information(file).ok()?;
    let id = (known.volume_serial_number(), known.file_index());
    Some(Inode { id, links: known.number_of_links(), allocated: known.file_size() })
}

/// Returns the number of hard links to an open file, where the system tells.
pub fn links(file: &File) -> Option<u64> {
    inode_of(file).map(|inode| inode.links)
}

/// Whether `path` (no link) is still the name of this open file.
pub fn is_at(file: &File, path: &Path) -> bool {
    let named = std::fs::symlink_metadata(path).ok().and_then(|meta| inode(path, &meta));
    inode_of(file).zip(named).is_some_and(|(held, named)| held.id == named.id)
}

/// Bytes that a file takes on disk: all of it, since nothing here makes holes.
pub fn allocated(meta: &Metadata) -> u64 {
    meta.len()
}

/// Last change of a file or of what is known about it: no stable part of the standard library tells.
pub fn changed(_: &Metadata) -> Option<SystemTime> {
    None
}

/// What stands in the place of a file, when it is none of the usual things: nothing that has a name.
pub fn special_kind(_: &Metadata) -> Option<&'static str> {
    None
}

fn is_any(error: &io::Error, codes: &[u32]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&code.cast_unsigned()))
}

/// Whether the file system says that it does not know such an operation, in words of its own.
pub fn is_refused(error: &io::Error) -> bool {
    is_any(error, &[ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED])
}

/// Whether a file server has no locks.
pub fn lacks_lock_service(error: &io::Error) -> bool {
    is_refused(error)
}

/// Whether another program keeps a file from being opened, replaced or deleted.
pub fn is_in_use(error: &io::Error) -> bool {
    is_any(error, &[ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION, ERROR_USER_MAPPED_FILE])
}

/// Whether a file could not be opened because too many are open.
pub fn lacks_handles(error: &io::Error) -> bool {
    is_any(error, &[ERROR_TOO_MANY_OPEN_FILES])
}

/// Does what may fail for a moment while another program looks at the file, such as a virus scanner at a new one, or
/// while it is being deleted. Both may say "access denied" as well, so that the lack of a permission is told later here.
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

/// Reads from `offset` on into the spare capacity; returns how much came.
pub fn read_spare_at(file: &File, bytes: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
    let start = bytes.len();
    bytes.resize(bytes.capacity(), 0);
    let read = file.seek_read(&mut bytes[start..], offset);
    bytes.truncate(start + read.as_ref().map_or(0, |length| *length));
    read
}

/// Windows does not tell what is in memory.
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

/// Makes room for the whole file at once: NTFS allocates what is not declared a hole.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)
}

/// Whether the disk of `path` has to move its head to read somewhere else; `false` where the system does not tell.
pub fn is_rotational(_: &Path) -> bool {
    false
}

/// Whether the volume cannot hold more files: never before it is full.
pub fn lacks_inodes(_: &Path) -> bool {
    false
}

/// Whether the file system keeps no access times: Windows does not tell of a volume.
pub fn lacks_access_times(_path: &Path) -> bool {
    false
}

/// Bytes that this user can still write to the volume of `path`, which exists; `None` where the system does not tell.
pub fn available(path: &Path) -> Option<u64> {
    // Verbatim, so that a long path is no obstacle.
    let folder = path.canonicalize().ok()?;
    let folder = if folder.is_dir() { folder.as_path() } else { folder.parent()? };
    let name: Vec<u16> = folder.as_os_str().encode_wide().chain([0]).collect();
    let mut free = 0;
    // SAFETY: `name` ends with a zero, `free` is a u64 that the call writes to, and both outlive it; the null pointers
    // say that the other two numbers are not wanted.
    let done = unsafe { GetDiskFreeSpaceExW(name.as_ptr(), &mut free, std::ptr::null_mut(), std::ptr::null_mut()) };
    (done != 0).then_some(free)
}

/// Whether this user may make entries in a folder. One that is not there yet is no error.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    // Asks for the right to make files, without making one.
    let mut options = OpenOptions::new();
    match options.access_mode(FILE_ADD_FILE).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && !is_in_use(&error) => Err(error),
        _ => Ok(()),
    }
}

/// A folder, by its path: only its entries are known not to be links when they are opened. Links need a privilege here.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Opens a folder by its path, through links.
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

    /// Windows cannot do that at once without following links.
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

    /// Renames an entry, replacing another one.
    pub fn rename(&self, name: &OsStr, to: &Folder, new: &OsStr) -> io::Result<()> {
        fs::rename(self.0.join(name), to.0.join(new))
    }

    /// Makes a symbolic link to a file; `text` has slashes. Needs developer mode or a privilege.
    pub fn symlink(&self, text: &str, name: &OsStr) -> io::Result<()> {
        std::os::windows::fs::symlink_file(text.replace('/', "\\"), self.0.join(name))
    }

    /// Gives a file a second name here.
    pub fn hard_link(&self, source: &Path, name: &OsStr) -> io::Result<()> {
        fs::hard_link(source, self.0.join(name))
    }

    /// Makes a new file that shares its blocks with `source`, on file systems that can do that.
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

/// Flushes a folder, so that a rename in it survives a power cut.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(path)?.sync_all()
}

/// Reads the links of one folder.
#[derive(Debug, Default)]
pub struct LinkReader {
    target: PathBuf,
}

impl LinkReader {
    /// What the link of this name in `dir`, the same folder each time, says.
    ///
    /// # Errors
    /// When it is no link, or cannot be read.
    pub fn read(&mut self, dir: &Path, name: &str) -> io::Result<&Path> {
        self.target = std::fs::read_link(dir.join(name))?;
        Ok(&self.target)
    }
}

/// Being told to stop: ctrl-c, ctrl-break, a closed console window, or the system's end.
#[derive(Debug)]
pub struct Interruption {
    interrupt: Option<CtrlC>,
    terminate: Option<CtrlBreak>,
    close: Option<CtrlClose>,
    shutdown: Option<CtrlShutdown>,
}

impl Interruption {
    /// Starts to listen; from now on ctrl-c and ctrl-break do not end the process by themselves. The system gives it
    /// some seconds after the other two.
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

    /// Waits for the next one, and returns whether it is not ctrl-c.
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

/// Does nothing: a second process would not be the one that others wait for, or stop.
pub fn start_again(_: Vec<(&str, String)>) {}

/// There is no limit to raise.
pub fn raise_file_limit() {}

/// There is no limit on the size of files.
pub fn survive_file_size_limit() {}

/// Returns how many files this process may have open; `None` if that is not limited.
pub fn file_limit() -> Option<usize> {
    None
}

/// Returns the exit code of a process, as far as it fits.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    status.code().map_or(1, |code| u8::try_from(code).unwrap_or(1))
}

/// Always so here; the option of that name would let two servers share a port.
pub const REUSES_ADDRESSES: bool = false;

/// A child process gets ctrl-c from the console itself.
pub fn pass_on(_: u32, _: bool) {}
