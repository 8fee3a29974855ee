//! Linux, macOS and their relatives.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Inode, Opening};

/// Flags of open(2).
pub type Flags = i32;
/// Fails when the last part of the path is a link.
pub const NO_FOLLOW: Flags = OFlags::NOFOLLOW.bits() as i32;
/// Does not wait for the other end of a FIFO, and takes no terminal over.
pub const NO_WAIT: Flags = (OFlags::NONBLOCK.bits() | OFlags::NOCTTY.bits()) as i32;
/// Reading is no access, where the system allows that: for [`for_quiet_reading`].
#[cfg(target_os = "linux")]
pub const NO_ACCESS_TIME: Flags = OFlags::NOATIME.bits() as i32;
/// Reading is no access, where the system allows that: for [`for_quiet_reading`].
#[cfg(not(target_os = "linux"))]
pub const NO_ACCESS_TIME: Flags = 0;

/// Whether some names cannot be stored, or not as they are.
pub const RESTRICTS_NAMES: bool = false;
/// What helps when a path must not be read or written.
pub const PERMISSION_HINT: &str = "check the owner and the mode of that path";

/// Sets the flags with which a file is opened.
pub fn set_flags(options: &mut OpenOptions, flags: Flags) {
    options.custom_flags(flags);
}

/// Sets the mode of a file that is created, which the umask narrows.
pub fn set_mode(options: &mut OpenOptions, bits: u32) {
    options.mode(bits);
}

/// Gives a file at least these mode bits. Best effort: only the owner may.
pub fn widen_mode(file: &File, bits: u32) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    if mode & bits != bits {
        let _ = file.set_permissions(Permissions::from_mode((mode & 0o7777) | bits));
    }
    Ok(())
}

/// Gives a folder of the cache-wide store the mode of the cache root, as huggingface_hub does.
pub fn copy_folder_mode(root: &Path, folder: &Folder) -> io::Result<()> {
    let mode = fs::metadata(root)?.permissions().mode() & 0o3777;
    let folder = folder.listing()?;
    if folder.metadata()?.permissions().mode() & 0o7777 != mode {
        folder.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Makes a file a payload of the cache-wide store, as huggingface_hub does: read-only, readable by everybody who can enter
/// the cache root, and of the group of its folder.
pub fn make_payload(root: &Path, folder: &Folder, file: &File) -> io::Result<()> {
    let root_mode = fs::metadata(root)?.permissions().mode();
    let readers = if root_mode & 0o010 != 0 { 0o040 } else { 0 } | if root_mode & 0o001 != 0 { 0o004 } else { 0 };
    file.set_permissions(Permissions::from_mode(0o400 | readers))?;
    let group = folder.listing()?.metadata()?.gid();
    match file.metadata()?.gid() == group {
        true => Ok(()),
        // With the wrong group, others may be unable to read it.
        false => std::os::unix::fs::fchown(file, None, Some(group)).or_else(|error| match readers {
            0o040 => Err(error),
            _ => Ok(()),
        }),
    }
}

/// Options to read a file without that counting as a use of it; what they open goes to [`keep_access_time`].
pub fn for_quiet_reading() -> OpenOptions {
    OpenOptions::new().read(true).clone()
}

/// Reading from this file shall not change when it was last used. The flag has done that.
pub fn keep_access_time(_: &File) {}

/// The file behind a name, where the system tells; `meta` is that of `path`, or of what a link there leads to.
pub fn inode(_: &Path, meta: &Metadata) -> Option<Inode> {
    Some(Inode { id: (meta.dev(), meta.ino()), links: meta.nlink(), allocated: allocated(meta) })
}

/// Returns the number of hard links to an open file, where the system tells.
pub fn links(file: &File) -> Option<u64> {
    file.metadata().ok().map(|meta| meta.nlink())
}

/// Whether `path` (no link) is still the name of this open file.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Bytes that a file takes on disk: fewer than its length where it has holes.
pub fn allocated(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

/// Last change of a file or of what is known about it.
pub fn changed(meta: &Metadata) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(meta.ctime()).ok()?))
}

/// What stands in the place of a file, when it is none of the usual things.
pub fn special_kind(meta: &Metadata) -> Option<&'static str> {
    match meta.file_type() {
        kind if kind.is_fifo() => Some("a named pipe"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_char_device() || kind.is_block_device() => Some("a device"),
        _ => None,
    }
}

/// Whether the file system says that it does not know such an operation, in words of its own.
pub fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::PERM.raw_os_error())
}

/// Whether this is what NFS says without its lock service.
pub fn lacks_lock_service(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOLCK.raw_os_error())
}

/// Whether another program keeps a file from being opened, replaced or deleted: never here.
pub fn is_in_use(_: &io::Error) -> bool {
    false
}

/// Whether a file could not be opened because too many are open.
pub fn lacks_handles(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Does what may fail for a moment while another program looks at the file: not here.
pub fn patiently<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    attempt()
}

/// Reads exactly `buffer.len()` bytes at `offset`, without moving any file position.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

/// Reads from `offset` on into the spare capacity, which need not be cleared before; returns how much came.
pub fn read_spare_at(file: &File, bytes: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
    Ok(rustix::io::pread(file, rustix::buffer::spare_capacity(bytes), offset)?)
}

/// Reads from `offset` on what is in memory anyway, without waiting for the disk; `None` if nothing is.
pub fn read_cached_at(file: &File, buffer: &mut [u8], offset: u64) -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        let mut buffers = [std::io::IoSliceMut::new(buffer)];
        let read = rustix::io::preadv2(file, &mut buffers, offset, rustix::io::ReadWriteFlags::NOWAIT);
        read.ok().filter(|length| *length > 0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, buffer, offset);
        None
    }
}

/// Writes all of `bytes` at `offset`, without moving any file position.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

/// Makes room for the whole file at once, which is faster than growing it and keeps it in one piece.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Ok(()) => return file.set_len(size),
        Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
        Err(_) => {}
    }
    file.set_len(size)
}

/// Bytes that this user can still write to the file system of `path`, which exists; `None` where the system does not
/// tell.
pub fn available(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    told(stat.f_blocks, stat.f_bavail, [stat.f_frsize, stat.f_bsize], || is_fuse(path))
}

/// Whether the file system of `path`, which need not exist itself, cannot hold more files.
pub fn lacks_inodes(path: &Path) -> bool {
    let stat = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok());
    // Without such a limit, all is zero.
    stat.is_some_and(|stat| stat.f_files > 0 && stat.f_favail == 0)
}

/// Whether the file system of `path` keeps no access times (mounted with `noatime`), so that only changes tell when a
/// file was used; `false` where the system does not tell.
pub fn lacks_access_times(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOATIME));
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// Whether the disk of `path` has to move its head to read somewhere else; `false` where the system does not tell.
pub fn is_rotational(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        let Ok(meta) = std::fs::metadata(path) else { return false };
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // A partition has its settings in the folder of the whole disk, which is above its own.
        let settings = [device.join("queue/rotational"), device.join("../queue/rotational")];
        settings.iter().find_map(|path| std::fs::read(path).ok()).is_some_and(|text| text.starts_with(b"1"))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// What these numbers of statvfs(3) tell. Block sizes are in the order in which they count.
fn told(blocks: u64, free: u64, block_sizes: [u64; 2], is_fuse: impl Fn() -> bool) -> Option<u64> {
    let block_size = block_sizes.into_iter().find(|size| *size > 0)?;
    if blocks == 0 || (free == 0 && is_fuse()) {
        return None;
    }
    Some(free.saturating_mul(block_size))
}

/// Whether a program in user space is the file system (FUSE_SUPER_MAGIC).
fn is_fuse(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == 0x6573_5546);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// Whether this user may make entries in a folder. One that is not there yet is no error.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    match rustix::fs::access(folder, rustix::fs::Access::WRITE_OK) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A folder that is held open. Whatever is done through it happens in this very folder, wherever its path leads by then.
#[derive(Debug)]
pub struct Folder {
    handle: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// To pass through a folder, the permission to list it is not needed.
    #[cfg(target_os = "linux")]
    const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    #[cfg(not(target_os = "linux"))]
    const FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

    /// Opens a folder by its path, through links.
    pub fn open(path: &Path) -> io::Result<Folder> {
        let handle = retry_on_intr(|| rustix::fs::openat(CWD, path, Self::FLAGS, Mode::empty()))?;
        Ok(Folder { handle, path: path.to_path_buf() })
    }

    /// Returns the path by which it was opened, for messages and for reading.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a folder in this one. If a link is in its place, the error is [`io::ErrorKind::NotADirectory`].
    pub fn folder(&self, name: &OsStr) -> io::Result<Folder> {
        let flags = Self::FLAGS | OFlags::NOFOLLOW;
        let opened = retry_on_intr(|| rustix::fs::openat(&self.handle, name, flags, Mode::empty()));
        let handle = opened.map_err(|error| if error == Errno::LOOP { Errno::NOTDIR } else { error })?;
        Ok(Folder { handle, path: self.path.join(name) })
    }

    /// Opens the folder at a relative path below this one at once, if the system can do that without following links.
    pub fn below(&self, path: &Path) -> Option<Folder> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::ResolveFlags;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let handle = rustix::fs::openat2(&self.handle, path, Self::FLAGS, Mode::empty(), resolve).ok()?;
            Some(Folder { handle, path: self.path.join(path) })
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = path;
            None
        }
    }

    /// Opens the folder for reading its entries and changing its mode.
    fn listing(&self) -> io::Result<File> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| rustix::fs::openat(&self.handle, ".", flags, Mode::empty()))?.into())
    }

    /// Creates a folder in it.
    pub fn create_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.handle, name, Mode::from_raw_mode(0o777))?)
    }

    /// Opens a file in it, without following a link and without waiting for anybody. A new file gets this mode, which the
    /// umask narrows.
    pub fn open_file(&self, name: &OsStr, opening: Opening, mode: u32) -> io::Result<File> {
        let flags = match opening {
            Opening::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            Opening::NewToWrite => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
            Opening::Any => OFlags::RDWR | OFlags::CREATE,
            Opening::Existing => OFlags::RDONLY,
            Opening::Append => OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE,
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode as rustix::fs::RawMode);
        let open = |flags| retry_on_intr(|| rustix::fs::openat(&self.handle, name, flags, mode));
        match open(flags | OFlags::NONBLOCK) {
            // Leased to another process. Waiting is fine here: the lease is broken soon.
            Err(Errno::AGAIN) if self.is_file(name) => Ok(open(flags)?.into()),
            opened => Ok(opened?.into()),
        }
    }

    fn is_file(&self, name: &OsStr) -> bool {
        let stat = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    }

    /// Renames an entry, replacing another one.
    pub fn rename(&self, name: &OsStr, to: &Folder, new: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.handle, name, &to.handle, new)?)
    }

    /// Makes a symbolic link to a file; `text` has slashes.
    pub fn symlink(&self, text: &str, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(text, &self.handle, name)?)
    }

    /// Gives a file a second name here. A link is not followed.
    pub fn hard_link(&self, source: &Path, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, source, &self.handle, name, AtFlags::empty())?)
    }

    /// Makes a new file that shares its blocks with `source`, on file systems that can do that.
    pub fn clone_file(&self, source: &Path, name: &OsStr) -> io::Result<()> {
        let mut options = OpenOptions::new();
        set_flags(options.read(true), NO_WAIT);
        let source = options.open(source)?;
        #[cfg(target_os = "linux")]
        {
            let file = self.open_file(name, Opening::New, 0o666)?;
            let cloned = rustix::fs::ioctl_ficlone(&file, &source);
            Ok(cloned.inspect_err(|_| drop(self.remove_file(name)))?)
        }
        #[cfg(target_vendor = "apple")]
        {
            Ok(rustix::fs::fclonefileat(&source, &self.handle, name, rustix::fs::CloneFlags::empty())?)
        }
        #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
        {
            let _ = (source, name);
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Deletes a file or a link.
    pub fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())?)
    }

    /// Deletes an empty folder.
    pub fn remove_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::REMOVEDIR)?)
    }

    /// Deletes a folder with everything in it, and returns the number of bytes freed. Links are deleted, not followed.
    pub fn delete_tree(&self, name: &OsStr) -> io::Result<u64> {
        let folder = self.folder(name)?;
        let mut freed = 0;
        for entry in rustix::fs::Dir::read_from(folder.listing()?)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = rustix::fs::statat(&folder.handle, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => freed += folder.delete_tree(name)?,
                kind => {
                    folder.remove_file(name)?;
                    if kind == FileType::RegularFile && stat.st_nlink <= 1 {
                        freed += stat.st_size as u64;
                    }
                }
            }
        }
        self.remove_folder(name)?;
        Ok(freed)
    }
}

/// Flushes a folder, so that a rename in it survives a power cut.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads the links of one folder by the folder's handle: a snapshot lies deep, and a walk down the whole path for each
/// of its links is most of what a scan costs.
#[derive(Debug, Default)]
pub struct LinkReader {
    handle: Option<Option<File>>,
    buffer: Vec<u8>,
    target: PathBuf,
}

impl LinkReader {
    /// What the link of this name in `dir`, the same folder each time, says.
    ///
    /// # Errors
    /// When it is no link, or cannot be read.
    pub fn read(&mut self, dir: &Path, name: &str) -> io::Result<&Path> {
        if let Some(handle) = self.handle.get_or_insert_with(|| File::open(dir).ok()) {
            self.buffer.resize(1024, 0);
            let length = rustix::fs::readlinkat_raw(&*handle, name, &mut self.buffer[..])?;
            // What fills the buffer may go on after it.
            if length < self.buffer.len() {
                return Ok(Path::new(OsStr::from_bytes(&self.buffer[..length])));
            }
        }
        self.target = std::fs::read_link(dir.join(name))?;
        Ok(&self.target)
    }
}

/// Being told to stop: ctrl-c, or SIGTERM as systemd and CI runners send it.
#[derive(Debug)]
pub struct Interruption([Option<Signal>; 2]);

impl Interruption {
    /// Starts to listen; from now on these signals do not end the process by themselves.
    pub fn listen() -> Self {
        Interruption([SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).ok()))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        self.next_is_terminate().await;
    }

    /// Waits for the next one, and returns whether it asks to end (SIGTERM) and is not ctrl-c.
    pub async fn next_is_terminate(&mut self) -> bool {
        async fn wait(signal: &mut Option<Signal>) {
            let came = match signal {
                Some(signal) => signal.recv().await,
                None => None,
            };
            if came.is_none() {
                std::future::pending().await
            }
        }
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            () = wait(interrupt) => false,
            () = wait(terminate) => true,
        }
    }
}

/// Lets this process begin again with these variables: it cannot safely change its own environment. Returns where that
/// fails.
pub fn start_again(variables: Vec<(&str, String)>) {
    if let Ok(program) = std::env::current_exe() {
        let mut args = std::env::args_os();
        let mut again = std::process::Command::new(program);
        again.arg0(args.next().unwrap_or_default()).args(args).envs(variables);
        drop(again.exec());
    }
}

/// A far store gets hundreds of requests at once, each with a socket and a file, and some systems allow 256 by default.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    // The most that macOS accepts.
    const WANTED: u64 = 10_240;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < WANTED) {
        limit.current = Some(limit.maximum.map_or(WANTED, |most| most.min(WANTED)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Makes a limit on the size of files (`ulimit -f`) an error of the write that exceeds it, instead of the end of the
/// process. Call it within the runtime.
pub fn survive_file_size_limit() {
    // The handler stays.
    let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()));
}

/// Returns how many files this process may have open; `None` if that is not limited.
pub fn file_limit() -> Option<usize> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.map(|limit| limit as usize)
}

/// Returns the exit code of a process as shells do: for one that a signal has ended, 128 and the signal's number.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Whether a server may listen where another one has just ended, while connections of that are still closing.
pub const REUSES_ADDRESSES: bool = true;

/// Passes a signal on to a child process: SIGTERM, or ctrl-c, which a terminal has sent to it already.
pub fn pass_on(id: u32, is_terminate: bool) {
    use rustix::process::{Pid, Signal, kill_process};
    if !is_terminate && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return;
    }
    if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        let _ = kill_process(id, if is_terminate { Signal::TERM } else { Signal::INT });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
