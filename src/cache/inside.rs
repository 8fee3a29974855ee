//! Changes below the cache root that cannot leave it.
//!
//! Each path is walked from the root, with every folder on the way held open, and none of them may be a link. The last
//! step is taken through the open folder. So if a folder is swapped for a link while a command runs, the change fails, and
//! never happens elsewhere. The root itself may be a link, or be reached through one.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ids::RepoName;
use crate::platform::{self, Folder, Opening};

/// Something in place of a folder of the cache.
#[derive(Debug)]
struct NotAFolder {
    path: PathBuf,
    is_link: bool,
}

impl NotAFolder {
    fn describe(&self) -> &'static str {
        if self.is_link { "it is a symbolic link" } else { "it is not a folder" }
    }
}

impl fmt::Display for NotAFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_link { "a symbolic link" } else { "not a folder" };
        write!(f, "{} is {what}", crate::error::shown(&self.path))
    }
}

impl std::error::Error for NotAFolder {}

/// Turns an error of this module into one for users.
fn to_error(what: &str, path: &Path, error: &io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<NotAFolder>()) {
        Some(found) => Error::failed(format!("refusing to write below {}", crate::error::shown(&found.path)))
            .because(found.describe())
            .hint("remove or rename it, or use another cache directory"),
        None => Error::io(what, path, error),
    }
}

fn outside(path: &Path) -> io::Error {
    io::Error::other(format!("{} is outside the cache", crate::error::shown(path)))
}

/// Opens a folder at or below `root`; with `create`, missing ones are created.
fn walk(root: &Path, dir: &Path, create: bool) -> io::Result<Folder> {
    let inside = dir.strip_prefix(root).map_err(|_| outside(dir))?;
    if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(outside(dir));
    }
    let mut folder = match Folder::open(root) {
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(root)?;
            Folder::open(root)?
        }
        opened => opened?,
    };
    if inside.as_os_str().is_empty() {
        return Ok(folder);
    }
    // In one step, if the system can do that. If it fails, part by part.
    if let Some(folder) = folder.below(inside) {
        return Ok(folder);
    }
    for (depth, part) in inside.iter().enumerate() {
        folder = match folder.folder(part) {
            Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                let is_repo = depth == 0 && part.to_str().and_then(RepoName::from_folder).is_some();
                let created = match is_repo {
                    true => create_repo_folder(root, &folder, part),
                    false => folder.create_folder(part),
                };
                match created {
                    // The client may create one concurrently, which is fine.
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => folder.folder(part).map_err(|e| explain(&folder, part, e))?,
                }
            }
            opened => opened.map_err(|e| explain(&folder, part, e))?,
        };
    }
    Ok(folder)
}

fn explain(folder: &Folder, name: &OsStr, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::NotADirectory {
        return error;
    }
    let path = folder.path().join(name);
    let is_link = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink());
    io::Error::other(NotAFolder { path, is_link })
}

/// Creates the folder of a repo together with its `snapshots/`, by one rename: huggingface_hub's scan complains about a
/// repo without that folder, and would do so until a pull that was killed is run again.
fn create_repo_folder(root: &Path, parent: &Folder, name: &OsStr) -> io::Result<()> {
    // Not a `Staging`, which is built on this module.
    let staged = Layout::new(root).new_staged();
    open_dir(root, &staged).map_err(io::Error::other)?;
    let create = || {
        let (staging, temporary) = self::parent(root, &staged, false)?;
        staging.folder(temporary)?.create_folder("snapshots".as_ref())?;
        match staging.rename(temporary, parent, name) {
            // Another process was faster.
            Err(_) if fs::symlink_metadata(parent.path().join(name)).is_ok() => Ok(()),
            // `.locks` is a mount of its own, or the file system cannot rename folders.
            Err(_) => {
                parent.create_folder(name)?;
                parent.folder(name)?.create_folder("snapshots".as_ref())
            }
            renamed => renamed,
        }
    };
    let created = create();
    // It is still there unless it was renamed.
    let _ = delete_tree(root, &staged);
    created
}

/// Opens the folder that a path is in, and returns it with the path's last part.
///
/// # Errors
/// If it does not exist, or a part of it is a link.
pub fn parent<'a>(root: &Path, path: &'a Path, create: bool) -> io::Result<(Folder, &'a OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((walk(root, parent, create)?, name)),
        _ => Err(outside(path)),
    }
}

/// Opens the folder `dir`, at or below `root`, and creates it if it does not exist.
///
/// # Errors
/// [`crate::error::Cause::Other`] if a part below `root` is a link or a file, or if it cannot be created.
pub fn open_dir(root: &Path, dir: &Path) -> Result<Folder> {
    walk(root, dir, true).map_err(|e| match root.is_dir() {
        true => to_error("cannot create", dir, &e),
        false => to_error("cannot create the cache directory", root, &e),
    })
}

/// Creates `dir`, at or below `root`, if it does not exist, and makes sure that no part below `root` is a link.
///
/// # Errors
/// See [`open_dir`].
pub fn ensure_dir(root: &Path, dir: &Path) -> Result<()> {
    open_dir(root, dir).map(drop)
}

/// Like [`ensure_dir`], but creates nothing: checks that the existing parts of `dir` are folders and not links.
///
/// # Errors
/// [`crate::error::Cause::Other`] if a part is a link or a file.
pub fn check_dir(root: &Path, dir: &Path) -> Result<()> {
    match walk(root, dir, false) {
        Err(error) if error.get_ref().is_some_and(|inner| inner.is::<NotAFolder>()) => {
            Err(to_error("cannot look at", dir, &error))
        }
        _ => Ok(()),
    }
}

/// Runs `attempt` on a file below `root`, given its folder, which is created if it is missing, and its name.
///
/// # Errors
/// If the attempt fails. `what` describes it, such as "cannot create".
pub fn with_folder<T>(
    root: &Path,
    path: &Path,
    what: &str,
    attempt: impl FnOnce(&Folder, &OsStr) -> io::Result<T>,
) -> Result<T> {
    let attempted = parent(root, path, true).and_then(|(folder, name)| attempt(&folder, name));
    attempted.map_err(|e| to_error(what, path, &e))
}

/// Opens a regular file in a folder. See [`Folder::open_file`].
///
/// # Errors
/// If it cannot be opened, or is not a regular file.
pub fn open_in(folder: &Folder, name: &OsStr, opening: Opening, mode: u32) -> io::Result<File> {
    files::check_regular(folder.open_file(name, opening, mode), &folder.path().join(name))
}

/// Opens a regular file whose folder exists.
///
/// # Errors
/// If it cannot be opened, or is not a regular file.
pub fn open_file(root: &Path, path: &Path, opening: Opening, mode: u32) -> io::Result<File> {
    let (folder, name) = parent(root, path, false)?;
    open_in(&folder, name, opening, mode)
}

/// Renames an entry of the cache.
///
/// # Errors
/// If it cannot be renamed, or one of the folders does not exist.
pub fn rename(root: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let ((source, name), (target, new)) = (parent(root, from, false)?, parent(root, to, false)?);
    source.rename(name, &target, new)
}

/// Makes a symbolic link; `text` has slashes.
///
/// # Errors
/// If it cannot be created.
pub fn symlink(root: &Path, text: &str, at: &Path) -> io::Result<()> {
    let (folder, name) = parent(root, at, false)?;
    folder.symlink(text, name)
}

/// Gives a file a second name below `root`.
///
/// # Errors
/// If it cannot be created.
pub fn hard_link(root: &Path, source: &Path, at: &Path) -> io::Result<()> {
    let (folder, name) = parent(root, at, false)?;
    folder.hard_link(source, name)
}

/// Deletes a file or a link.
///
/// # Errors
/// If it cannot be deleted.
pub fn remove_file(root: &Path, path: &Path) -> io::Result<()> {
    let (folder, name) = parent(root, path, false)?;
    platform::patiently(|| folder.remove_file(name))
}

/// Deletes an empty folder.
///
/// # Errors
/// If it cannot be deleted.
pub fn remove_dir(root: &Path, path: &Path) -> io::Result<()> {
    let (folder, name) = parent(root, path, false)?;
    folder.remove_folder(name)
}

/// Deletes a folder with everything in it, and returns the number of bytes freed. Links are deleted, not followed.
///
/// # Errors
/// The first entry that cannot be deleted. Earlier entries are gone.
pub fn delete_tree(root: &Path, path: &Path) -> io::Result<u64> {
    let (folder, name) = parent(root, path, false)?;
    folder.delete_tree(name)
}
