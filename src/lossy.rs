//! Serializers for paths in JSON. A file name need not be valid UTF-8, but JSON must be. Invalid bytes become replacement
//! characters, as in messages for people, instead of failing the whole report.

use std::path::{Path, PathBuf};

use serde::Serializer;

/// Serializes a path as text.
///
/// # Errors
/// The serializer's error.
pub fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Serializes an optional path as text or null.
///
/// # Errors
/// The serializer's error.
pub fn optional<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.collect_str(&path.display()),
        None => serializer.serialize_none(),
    }
}

/// Serializes paths as a list of texts.
///
/// # Errors
/// The serializer's error.
pub fn all<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}
