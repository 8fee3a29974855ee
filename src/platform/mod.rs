//! What differs between operating systems: `unix.rs` and `windows.rs` have the same functions, and no other code checks
//! which system it runs on.

use std::fs::OpenOptions;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

/// A file as such, which all its hard links share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Device and inode number; on Windows, the volume's serial number and the file index.
    pub id: (u64, u64),
    /// Number of hard links to it.
    pub links: u64,
    /// Bytes allocated on disk.
    pub allocated: u64,
}

/// How a [`Folder`] opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A file that must not exist, for writing and for reading back.
    New,
    /// A file that must not exist, for writing only.
    NewToWrite,
    /// A file for reading and writing, which is created if it is missing.
    Any,
    /// An existing file, for reading.
    Existing,
    /// A file for appending, which is created if it is missing.
    Append,
}

/// Returns the same options with these flags: [`NO_FOLLOW`], [`NO_WAIT`], [`NO_ACCESS_TIME`], or several of them.
pub fn flagged(options: &OpenOptions, flags: Flags) -> OpenOptions {
    let mut options = options.clone();
    set_flags(&mut options, flags);
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::path::Path;

    fn inode_at(path: &Path) -> Inode {
        inode(path, &fs::metadata(path).unwrap()).unwrap()
    }

    #[test]
    fn a_file_is_known_by_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("one"), "text").unwrap();
        assert_eq!(inode_at(&at("one")).links, 1);
        fs::hard_link(at("one"), at("two")).unwrap();
        fs::write(at("copy"), "text").unwrap();
        fs::create_dir(at("folder")).unwrap();
        assert_eq!((inode_at(&at("one")), inode_at(&at("one")).links), (inode_at(&at("two")), 2));
        let ids = ["one", "copy", "folder", "."].map(|name| inode_at(&at(name)).id);
        assert_eq!(std::collections::HashSet::from(ids).len(), ids.len());

        let file = File::open(at("one")).unwrap();
        assert!(is_at(&file, &at("one")) && is_at(&file, &at("two")));
        assert!(!is_at(&file, &at("copy")) && !is_at(&file, &at("none")));
        fs::rename(at("copy"), at("two")).unwrap();
        assert!(!is_at(&file, &at("two")));
    }

    #[test]
    fn bytes_go_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        preallocate(&file, 10).unwrap();
        write_all_at(&file, b"def", 3).unwrap();
        write_all_at(&file, b"abc", 0).unwrap();
        let mut buffer = [0; 4];
        read_exact_at(&file, &mut buffer, 2).unwrap();
        assert_eq!(&buffer, b"cdef");
        assert!(read_exact_at(&file, &mut buffer, 8).is_err());
        let mut bytes = Vec::with_capacity(64);
        bytes.push(b'x');
        assert_eq!(read_spare_at(&file, &mut bytes, 4).unwrap(), 6);
        assert_eq!(bytes, b"xef\0\0\0\0");
        assert_eq!(read_spare_at(&file, &mut bytes, 10).unwrap(), 0);
        assert_eq!(bytes.len(), 7);
        assert_eq!(fs::metadata(&path).unwrap().len(), 10);
    }

    #[test]
    fn a_folder_is_the_same_wherever_its_path_leads() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let root = Folder::open(dir.path()).unwrap();
        root.create_folder("inner".as_ref()).unwrap();
        fs::write(at("file"), "text").unwrap();
        assert_eq!(root.folder("file".as_ref()).unwrap_err().kind(), std::io::ErrorKind::NotADirectory);
        assert_eq!(root.folder("none".as_ref()).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        let inner = root.folder("inner".as_ref()).unwrap();
        inner.open_file("one".as_ref(), Opening::New, 0o666).unwrap();
        assert!(inner.open_file("one".as_ref(), Opening::New, 0o666).is_err());
        assert_eq!(links(&inner.open_file("one".as_ref(), Opening::Any, 0o666).unwrap()), Some(1));
        inner.hard_link(&at("file"), "two".as_ref()).unwrap();
        assert_eq!(links(&inner.open_file("two".as_ref(), Opening::Existing, 0).unwrap()), Some(2));
        inner.rename("two".as_ref(), &root, "three".as_ref()).unwrap();
        assert_eq!(fs::read(at("three")).unwrap(), b"text");
        inner.create_folder("deep".as_ref()).unwrap();
        fs::write(at("inner/deep/x"), "12345").unwrap();
        #[cfg(unix)]
        {
            // The path now leads elsewhere.
            fs::rename(at("inner"), at("moved")).unwrap();
            fs::create_dir(at("elsewhere")).unwrap();
            std::os::unix::fs::symlink(at("elsewhere"), at("inner")).unwrap();
            inner.symlink("text", "link".as_ref()).unwrap();
            inner.open_file("more".as_ref(), Opening::Append, 0o666).unwrap();
            inner.remove_file("one".as_ref()).unwrap();
            assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 0);
            assert!(inner.open_file("link".as_ref(), Opening::Any, 0o666).is_err(), "no link is followed");
            assert_eq!(root.folder("inner".as_ref()).unwrap_err().kind(), std::io::ErrorKind::NotADirectory);
            fs::remove_file(at("inner")).unwrap();
            fs::rename(at("moved"), at("inner")).unwrap();
        }
        assert_eq!(root.delete_tree("inner".as_ref()).unwrap(), 5);
        assert!(!at("inner").exists());
    }

    #[test]
    fn ones_own_folder_is_writable() {
        let dir = tempfile::tempdir().unwrap();
        check_writable(dir.path()).unwrap();
        check_writable(&dir.path().join("none")).unwrap();
        sync_dir(dir.path()).unwrap();
        assert!(available(dir.path()).unwrap() > 0);
    }
}
