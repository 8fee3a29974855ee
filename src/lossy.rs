//! Paths in JSON. A file name need not be UTF-8, JSON must be: what is not is shown by replacement characters, as in
//! messages for people, instead of losing the whole report.

use std::path::{Path, PathBuf};

use serde::Serializer;

/// A path, as text.
///
/// # Errors
/// The serializer's own.
pub fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// A path that may not be there, as text or null.
///
/// # Errors
/// The serializer's own.
pub fn optional<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.collect_str(&path.display()),
        None => serializer.serialize_none(),
    }
}

/// Paths, as texts.
///
/// # Errors
/// The serializer's own.
pub fn all<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}
