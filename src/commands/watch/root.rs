//! The watched cache folder, which has to exist at the start and remain the same folder.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, plain_io};
use crate::platform;

/// A cache folder and its identity.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl Root {
    /// Opens an existing folder.
    ///
    /// # Errors
    /// [`crate::error::Cause::NotFound`] when it does not exist, since a wrong path is more likely than a cache
    /// yet to be created.
    pub fn open(path: &Path) -> Result<Root> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Root { path: path.to_path_buf(), id: id(path, &meta) }),
            Ok(_) => Err(Error::usage(format!("the cache directory {} is not a directory", path.display()))
                .hint("set HF_HUB_CACHE, cache.hf_cache_dir or --cache-dir to the `hub` folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::not_found(format!("there is no cache to watch at {}", path.display())).hint(
                    "create that folder, or set HF_HUB_CACHE, cache.hf_cache_dir or --cache-dir to the `hub` folder",
                ))
            }
            Err(error) => Err(Error::io("cannot read the cache directory", path, &error)),
        }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the folder is still there. A temporary failure to access it is ignored.
    ///
    /// # Errors
    /// [`crate::error::Cause::NotFound`] when it was deleted, moved, replaced or unmounted. A new folder in its place would
    /// not be watched.
    pub fn check(&self) -> Result<()> {
        let why = match std::fs::metadata(&self.path) {
            Ok(meta) if meta.is_dir() && (self.id.is_none() || id(&self.path, &meta) == self.id) => return Ok(()),
            Ok(_) => "another folder has taken its place".to_string(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                plain_io(&error)
            }
            Err(_) => return Ok(()),
        };
        Err(Error::not_found(format!("the watched cache {} is gone", self.path.display()))
            .because(why)
            .hint("start `hf-cache-sync watch` again when it is back"))
    }
}

fn id(path: &Path, meta: &Metadata) -> Option<(u64, u64)> {
    platform::inode(path, meta).map(|inode| inode.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;
    use std::fs;

    #[test]
    fn a_missing_or_replaced_folder_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub");
        assert_eq!(Root::open(&path).unwrap_err().cause, Cause::NotFound);
        fs::write(&path, "").unwrap();
        assert_eq!(Root::open(&path).unwrap_err().cause, Cause::Usage);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        root.check().unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        assert_eq!(root.check().unwrap_err().cause, Cause::NotFound);
        fs::create_dir(&path).unwrap();
        assert_eq!(root.check().unwrap_err().cause, Cause::NotFound);
    }
}
