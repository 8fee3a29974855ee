//! Lists of files, which manifests and trees have in common, and the rules for them.

use serde::Serialize;

use super::ids::{BlobId, RepoPath};

/// Maximum size of a manifest, and of a tree, which a manifest may contain, in bytes.
pub const MAX_SIZE: u64 = 256 << 20;

/// Maximum number of files in a manifest, and of entries in a tree.
pub const MAX_FILES: usize = 1_000_000;

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManifestFile {
    /// Its path in the repo.
    pub path: RepoPath,
    /// The blob with its content.
    pub blob: BlobId,
    /// Size in bytes.
    pub size: u64,
}

/// Checks that a list is not too long.
///
/// # Errors
/// The reason.
pub(super) fn check_count(files: usize) -> Result<(), String> {
    match files {
        0..=MAX_FILES => Ok(()),
        _ => Err(format!("it lists more than {MAX_FILES} files")),
    }
}

/// Checks that all paths are distinct, and that none is a folder of another. They must be sorted.
///
/// # Errors
/// The reason.
pub(super) fn check_paths<'a>(paths: impl Iterator<Item = &'a RepoPath>) -> Result<(), String> {
    // The earlier paths with which this one begins: each begins with the one before it. Sorted paths that begin with the
    // same text are next to each other.
    let mut beginnings: Vec<&str> = Vec::new();
    for path in paths.map(RepoPath::as_str) {
        while beginnings.last().is_some_and(|beginning| !path.starts_with(beginning)) {
            beginnings.pop();
        }
        if beginnings.last() == Some(&path) {
            return Err(format!("it lists '{path}' twice"));
        }
        if let Some(folder) = beginnings.iter().find(|folder| path.as_bytes()[folder.len()] == b'/') {
            return Err(format!("'{folder}' is both a file and a folder"));
        }
        beginnings.push(path);
    }
    Ok(())
}
