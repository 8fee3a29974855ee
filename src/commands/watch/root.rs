//! The cache folder that is watched: there at the start, and still the same one later.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, plain_io};

/// A cache folder, recognised again.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl Root {
    /// Remembers the folder.
    ///
    /// # Errors
    /// [`crate::error::Cause::NotFound`] when it is not there: a wrong path is more likely than a cache to come.
    pub fn open(path: &Path) -> Result<Root> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Root { path: path.to_path_buf(), id: id(&meta) }),
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

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// [`crate::error::Cause::NotFound`] when it was deleted, moved, replaced or unmounted: a new folder in its place
    /// would not be watched. A folder that cannot be looked at for the moment is taken for there.
    pub fn check(&self) -> Result<()> {
        let why = match std::fs::metadata(&self.path) {
            Ok(meta) if meta.is_dir() && (self.id.is_none() || id(&meta) == self.id) => return Ok(()),
            Ok(_) => "another one is in its place".to_string(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                plain_io(&error)
            }
            Err(_) => return Ok(()),
        };
        Err(Error::not_found(format!("the cache {} that was watched is gone", self.path.display()))
            .because(why)
            .hint("start `hf-cache-sync watch` again when it is back"))
    }
}

#[cfg(unix)]
fn id(meta: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
fn id(_: &Metadata) -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;
    use std::fs;

    #[test]
    fn a_folder_is_there_gone_or_another() {
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
        #[cfg(unix)]
        assert_eq!(root.check().unwrap_err().cause, Cause::NotFound);
    }
}
