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
/// Fails if the last part of the path is a link.
pub const NO_FOLLOW: Flags = OFlags::NOFOLLOW.bits() as i32;
/// Does not wait for the other end of a FIFO, and does not make a terminal the controlling one.
pub const NO_WAIT: Flags = (OFlags::NONBLOCK.bits() | OFlags::NOCTTY.bits()) as i32;
/// Reading does not count as an access, if the system allows that: for [`for_quiet_reading`].
#[cfg(target_os = "linux")]
pub const NO_ACCESS_TIME: Flags = OFlags::NOATIME.bits() as i32;
/// Reading does not count as an access, if the system allows that: for [`for_quiet_reading`].
#[cfg(not(target_os = "linux"))]
pub const NO_ACCESS_TIME: Flags = 0;

/// Whether the system cannot store some names, or changes them.
pub const RESTRICTS_NAMES: bool = false;
/// The hint for a path that may not be read or written.
pub const PERMISSION_HINT: &str = "check the owner and the mode of that path";

/// Sets the flags with which a file is opened.
pub fn set_flags(options: &mut OpenOptions, flags: Flags) {
    options.custom_flags(flags);
}

/// Sets the mode of a new file, before the umask.
pub fn set_mode(options: &mut OpenOptions, bits: u32) {
    options.mode(bits);
}

/// Adds these mode bits to a file. Best effort: only the owner may do so.
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

/// Makes a file a payload of the cache-wide store, as huggingface_hub does: read-only, readable by everyone who can enter
/// the cache root, and with the group of its folder.
pub fn make_payload(root: &Path, folder: &Folder, file: &File) -> io::Result<()> {
    let root_mode = fs::metadata(root)?.permissions().mode();
    let readers = if root_mode & 0o010 != 0 { 0o040 } else { 0 } | if root_mode & 0o001 != 0 { 0o004 } else { 0 };
    file.set_permissions(Permissions::from_mode(0o400 | readers))?;
    let group = folder.listing()?.metadata()?.gid();
    match file.metadata()?.gid() == group {
        true => Ok(()),
        // With the wrong group, others might not be able to read it.
        false => std::os::unix::fs::fchown(file, None, Some(group)).or_else(|error| match readers {
            0o040 => Err(error),
            _ => Ok(()),
        }),
    }
}

/// Returns options to read a file without counting as a use of it. Pass the opened file to [`keep_access_time`].
pub fn for_quiet_reading() -> OpenOptions {
    OpenOptions::new().read(true).clone()
}

/// Keeps reads of this file from changing its access time: the flag has done that.
pub fn keep_access_time(_: &File) {}

/// Returns the file behind a name, if the system reports it. `meta` is that of `path`, or of the target of a link there.
pub fn inode(_: &Path, meta: &Metadata) -> Option<Inode> {
    Some(Inode { id: (meta.dev(), meta.ino()), links: meta.nlink(), allocated: allocated(meta) })
}

/// Returns the number of hard links to an open file, if the system reports it.
pub fn links(file: &File) -> Option<u64> {
    file.metadata().ok().map(|meta| meta.nlink())
}

/// Whether `path`, which is not a link, is still the name of this open file.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Returns the bytes that a file takes on disk: fewer than its length if it has holes.
pub fn allocated(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

/// Returns the last change of a file or its metadata (ctime).
pub fn changed(meta: &Metadata) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(meta.ctime()).ok()?))
}

/// Describes an entry that is neither a file, a folder nor a link.
pub fn special_kind(meta: &Metadata) -> Option<&'static str> {
    match meta.file_type() {
        kind if kind.is_fifo() => Some("a named pipe"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_char_device() || kind.is_block_device() => Some("a device"),
        _ => None,
    }
}

/// Whether this error of the system means that the file system does not support the operation.
pub fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::PERM.raw_os_error())
}

/// Whether this is the error of NFS without its lock service.
pub fn lacks_lock_service(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOLCK.raw_os_error())
}

/// Whether another program prevents a file from being opened, replaced or deleted: never on Unix.
pub fn is_in_use(_: &io::Error) -> bool {
    false
}

/// Whether a file could not be opened because too many are open.
pub fn lacks_handles(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Retries an operation that another program may prevent for a moment: not needed on Unix.
pub fn patiently<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    attempt()
}

/// Reads exactly `buffer.len()` bytes at `offset`, without moving any file position.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

/// Reads at `offset` into the spare capacity, which may be uninitialised, and returns the number of bytes.
pub fn read_spare_at(file: &File, bytes: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
    Ok(rustix::io::pread(file, rustix::buffer::spare_capacity(bytes), offset)?)
}

/// Reads at `offset` as much as is in the page cache, without waiting for the disk; `None` if nothing is.
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

/// Allocates space for the whole file, which is faster than growing it and avoids fragmentation.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Ok(()) => return file.set_len(size),
        Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
        Err(_) => {}
    }
    file.set_len(size)
}

/// Returns the bytes that this user can still write to the file system of `path`, which exists; `None` if unknown.
pub fn available(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    free_space(stat.f_blocks, stat.f_bavail, [stat.f_frsize, stat.f_bsize], || is_fuse(path))
}

/// Whether the file system of `path`, which need not exist, has no inodes left.
pub fn lacks_inodes(path: &Path) -> bool {
    let stat = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok());
    // Without such a limit, all numbers are zero.
    stat.is_some_and(|stat| stat.f_files > 0 && stat.f_favail == 0)
}

/// Whether the file system of `path` records no access times (mounted with `noatime`), so that only changes show when a
/// file was used; `false` if unknown.
pub fn lacks_access_times(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOATIME));
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// Whether the disk of `path` is a rotating one; `false` if unknown.
pub fn is_rotational(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        let Ok(meta) = std::fs::metadata(path) else { return false };
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // The settings of a partition are in the folder of the whole disk, its parent.
        let settings = [device.join("queue/rotational"), device.join("../queue/rotational")];
        settings.iter().find_map(|path| std::fs::read(path).ok()).is_some_and(|text| text.starts_with(b"1"))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// Returns the free space according to statvfs(3), if its numbers mean anything. The first block size that is not zero
/// counts.
fn free_space(blocks: u64, free: u64, block_sizes: [u64; 2], is_fuse: impl Fn() -> bool) -> Option<u64> {
    let block_size = block_sizes.into_iter().find(|size| *size > 0)?;
    if blocks == 0 || (free == 0 && is_fuse()) {
        return None;
    }
    Some(free.saturating_mul(block_size))
}

/// Whether the file system runs in user space (FUSE_SUPER_MAGIC).
fn is_fuse(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == 0x6573_5546);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// Checks that this user may create entries in a folder. A missing folder is not an error.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    match rustix::fs::access(folder, rustix::fs::Access::WRITE_OK) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A folder that is held open. Operations through it affect this very folder, even if its path leads elsewhere by now.
#[derive(Debug)]
pub struct Folder {
    handle: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Passing through a folder does not need the permission to list it.
    #[cfg(target_os = "linux")]
    const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    #[cfg(not(target_os = "linux"))]
    const FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

    /// Opens a folder by its path, and follows links.
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

    /// Opens a file in it, without following a link and without blocking. A new file gets this mode, before the umask.
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

    /// Renames an entry, and replaces an existing target.
    pub fn rename(&self, name: &OsStr, to: &Folder, new: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.handle, name, &to.handle, new)?)
    }

    /// Creates a symbolic link to a file; `text` has slashes.
    pub fn symlink(&self, text: &str, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(text, &self.handle, name)?)
    }

    /// Gives a file a second name here. A link is not followed.
    pub fn hard_link(&self, source: &Path, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, source, &self.handle, name, AtFlags::empty())?)
    }

    /// Creates a new file that shares its blocks with `source`, on file systems that support it.
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

/// Flushes a folder, so that a rename in it survives a power failure.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads the links of one folder through its handle: snapshots are deep, and resolving the whole path for each link would
/// be most of the cost of a scan.
#[derive(Debug, Default)]
pub struct LinkReader {
    handle: Option<Option<File>>,
    buffer: Vec<u8>,
    target: PathBuf,
}

impl LinkReader {
    /// Returns the target of the link with this name in `dir`, which is the same folder each time.
    ///
    /// # Errors
    /// If it is not a link, or cannot be read.
    pub fn read(&mut self, dir: &Path, name: &str) -> io::Result<&Path> {
        if let Some(handle) = self.handle.get_or_insert_with(|| File::open(dir).ok()) {
            self.buffer.resize(1024, 0);
            let length = rustix::fs::readlinkat_raw(&*handle, name, &mut self.buffer[..])?;
            // A target that fills the buffer may be truncated.
            if length < self.buffer.len() {
                return Ok(Path::new(OsStr::from_bytes(&self.buffer[..length])));
            }
        }
        self.target = std::fs::read_link(dir.join(name))?;
        Ok(&self.target)
    }
}

/// Signals to stop: ctrl-c, or SIGTERM, which systemd and CI runners send.
#[derive(Debug)]
pub struct Interruption([Option<Signal>; 2]);

impl Interruption {
    /// Starts to listen. From now on, these signals do not end the process by themselves.
    pub fn listen() -> Self {
        Interruption([SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).ok()))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        self.next_is_terminate().await;
    }

    /// Waits for the next one, and returns whether it is SIGTERM rather than ctrl-c.
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

/// Restarts this process with these variables, since it cannot safely change its own environment. Returns if that fails.
pub fn start_again(variables: Vec<(&str, String)>) {
    if let Ok(program) = std::env::current_exe() {
        let mut args = std::env::args_os();
        let mut again = std::process::Command::new(program);
        again.arg0(args.next().unwrap_or_default()).args(args).envs(variables);
        drop(again.exec());
    }
}

/// Raises the limit of open files: a distant store gets hundreds of requests at once, each with a socket and a file, and
/// some systems allow 256 by default.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    // The maximum that macOS accepts.
    const WANTED: u64 = 10_240;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < WANTED) {
        limit.current = Some(limit.maximum.map_or(WANTED, |most| most.min(WANTED)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Makes a write that exceeds the limit on the size of files (`ulimit -f`) fail, instead of ending the process. Call it
/// within the runtime.
pub fn survive_file_size_limit() {
    // The handler stays installed.
    let _ = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()));
}

/// Returns how many files this process may have open; `None` if that is not limited.
pub fn file_limit() -> Option<usize> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.map(|limit| limit as usize)
}

/// Returns the exit code of a process as shells do: 128 plus the number of the signal that ended it, if one did.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Whether a server may listen on a port whose last server has just ended, while its connections are still closing.
pub const REUSES_ADDRESSES: bool = true;

/// Passes a signal on to a child process: SIGTERM, or ctrl-c, which a terminal has already sent to it.
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
        assert_eq!(free_space(1000, 10, [4096, 4096], disk), Some(40_960));
        assert_eq!(free_space(1000, 0, [4096, 4096], disk), Some(0), "a full disk is full");
        assert_eq!(free_space(1000, 0, [4096, 4096], fuse), None);
        assert_eq!(free_space(1000, 10, [4096, 4096], fuse), Some(40_960));
        assert_eq!(free_space(0, 0, [512, 512], disk), None);
        assert_eq!(free_space(1000, 10, [0, 512], disk), Some(5120));
        assert_eq!(free_space(1000, 10, [0, 0], disk), None);
        assert_eq!(free_space(u64::MAX, u64::MAX, [4096, 4096], fuse), Some(u64::MAX));
    }
}
