//! The result of looking up a revision in the bucket or on the Hub.

use std::time::SystemTime;

use super::ids::RefName;
use super::manifest::Manifest;

/// A revision that was found in the bucket or on the Hub.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its manifest, which is valid and belongs to the requested repo.
    pub manifest: Manifest,
    /// The ref that was followed; `None` if a commit was requested.
    pub reference: Option<RefName>,
    /// Whether the machine that pushed it has a ref named after the commit, as hf-hub before 1.0 writes for a requested
    /// commit.
    pub pinned: bool,
    /// When the manifest was last written, by the store's clock; `None` if unknown.
    pub modified: Option<SystemTime>,
    /// Notes for the user.
    pub notes: Vec<String>,
}
