//! The quarantine: the folder into which a repair moves bad bytes, since they are never deleted.
//!
//! `hub/.locks/.hf-cache-sync/quarantine/` has the layout of the cache itself, which shows where everything came from:
//! `models--org--name/blobs/<etag>`. huggingface_hub ignores it, and no command of this tool deletes from it: its contents
//! stay until a user has reviewed them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::inside::{self, ensure_dir};
use super::layout::Layout;
use super::staging::Staging;
use super::{read, remove};
use crate::error::{Error, Result};
use crate::platform;

/// Maximum number of entries with the same name.
const MAX_SAME: u32 = 10_000;

/// A quarantine entry that is a second name, or a copy, of a file that is still in place.
#[derive(Debug)]
pub struct Kept {
    root: PathBuf,
    path: PathBuf,
    is_new: bool,
    /// The file, and its identity when it was kept.
    file: PathBuf,
    id: Option<(u64, u64)>,
}

impl Kept {
    /// Returns its location.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the second name, because the file stays in place after all. If another program has replaced the file in the
    /// meantime, this is the only name of its bytes, and it stays.
    pub fn forget(self) {
        if self.is_new && self.id.is_some() && inode_of(&self.file) == self.id {
            let _ = inside::remove_file(&self.root, &self.path);
        }
    }
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    platform::inode(path, &meta).map(|inode| inode.id)
}

/// Gives a file a second name in the quarantine, so that its bytes survive when it is replaced. Copies it if hard links are
/// not supported. Returns `None` if there is no such file, or if it is a link, since replacing a link leaves its target
/// intact.
///
/// # Errors
/// If it cannot be kept. Then it must not be replaced.
pub fn keep(layout: &Layout, file: &Path) -> Result<Option<Kept>> {
    let failed = |error: &io::Error| Error::io("cannot quarantine", file, error);
    let meta = match fs::symlink_metadata(file) {
        Ok(meta) if meta.is_file() => meta,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let id = platform::inode(file, &meta).map(|inode| inode.id);
    let is_same = |path: &Path| id.is_some() && inode_of(path) == id;
    let root = layout.root();
    let kept = |path, is_new| Some(Kept { root: root.to_path_buf(), path, is_new, file: file.to_path_buf(), id });
    let staging = Staging::new(layout)?;
    for path in names(layout, file)? {
        // Left by an interrupted run.
        if is_same(&path) {
            return Ok(kept(path, false));
        }
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match platform::patiently(|| inside::hard_link(root, file, &path)) {
            Ok(()) => return Ok(kept(path, true)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(_) => {}
        }
        let (folder, copy) = (staging.folder()?, "kept".as_ref());
        let copied = folder.clone_file(file, copy).or_else(|_| read::copy_quietly(file, &folder, copy));
        let renamed = copied.and_then(|()| inside::rename(root, &staging.path().join(copy), &path));
        renamed.map_err(|e| failed(&e))?;
        return Ok(kept(path, true));
    }
    Err(full(file))
}

/// Moves a file or link out of the cache into the quarantine; `None` if it is not there.
///
/// # Errors
/// If it cannot be moved. It then stays in place.
pub fn set_aside(layout: &Layout, file: &Path) -> Result<Option<PathBuf>> {
    for path in names(layout, file)? {
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        return match platform::patiently(|| inside::rename(layout.root(), file, &path)) {
            Ok(()) => Ok(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // The repo is a separate mount.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let Some(kept) = keep(layout, file)? else { return Err(Error::io("cannot quarantine", file, &error)) };
                inside::remove_file(layout.root(), file).map_err(|e| Error::io("cannot remove", file, &e))?;
                Ok(Some(kept.path))
            }
            Err(error) => Err(Error::io("cannot quarantine", file, &error)),
        };
    }
    Err(full(file))
}

/// Returns the candidate names for a file of the cache, the plain one first. Creates their folder.
fn names(layout: &Layout, file: &Path) -> Result<impl Iterator<Item = PathBuf> + use<>> {
    let inside = file.strip_prefix(layout.root()).map_err(|_| {
        Error::invalid(format!("refusing to quarantine {}", crate::error::shown(file)))
            .because("it is outside the cache")
    })?;
    if !remove::is_inside(layout.root(), file) {
        return Err(Error::failed(format!("refusing to quarantine {}", crate::error::shown(file)))
            .because("part of its path is a link"));
    }
    let plain = layout.quarantine().join(inside);
    ensure_dir(layout.root(), plain.parent().unwrap_or(&plain))?;
    let others = {
        let plain = plain.clone();
        (1..MAX_SAME).map(move |number| {
            let mut name = plain.file_name().unwrap_or_default().to_os_string();
            name.push(format!(".{number}"));
            plain.with_file_name(name)
        })
    };
    Ok(std::iter::once(plain).chain(others))
}

fn full(file: &Path) -> Error {
    Error::failed(format!("cannot quarantine {}", crate::error::shown(file)))
        .because("the quarantine has too many files of this name")
        .hint("review them, then delete those that are not needed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeping_leaves_a_file_in_place_and_setting_aside_moves_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let file = layout.root().join("models--a--b/blobs/x");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        assert!(keep(&layout, &file).unwrap().is_none() && set_aside(&layout, &file).unwrap().is_none());

        fs::write(&file, "one").unwrap();
        let kept = keep(&layout, &file).unwrap().unwrap();
        assert_eq!(kept.path(), layout.quarantine().join("models--a--b/blobs/x"));
        assert!(file.exists() && fs::read(kept.path()).unwrap() == b"one");
        // An earlier run was interrupted: the same file is not kept twice.
        let again = keep(&layout, &file).unwrap().unwrap();
        assert_eq!(again.path(), kept.path());
        again.forget();
        assert!(kept.path().exists(), "only what a run has added is removed by it");
        kept.forget();
        assert!(file.exists() && !layout.quarantine().join("models--a--b/blobs/x").exists());

        // The file was replaced, so these bytes have no other name.
        let kept = keep(&layout, &file).unwrap().unwrap();
        let only = kept.path().to_path_buf();
        fs::rename(&file, file.with_extension("old")).unwrap();
        fs::write(&file, "new").unwrap();
        kept.forget();
        assert_eq!(fs::read(&only).unwrap(), b"one");
        fs::remove_file(&only).unwrap();
        fs::rename(file.with_extension("old"), &file).unwrap();

        assert!(set_aside(&layout, &file).unwrap().is_some() && !file.exists());
        fs::write(&file, "two").unwrap();
        let second = set_aside(&layout, &file).unwrap().unwrap();
        assert_eq!((second.file_name().unwrap(), fs::read(&second).unwrap()), ("x.1".as_ref(), b"two".to_vec()));
        assert!(set_aside(&layout, &dir.path().join("elsewhere")).is_err());
    }
}
