//! A revision that a command asked for, as its source knows it.

use super::ids::RefName;
use super::manifest::Manifest;

/// A revision in the bucket or on the Hub.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its manifest, valid, of the repo that was asked for.
    pub manifest: Manifest,
    /// The ref that led to it; none when a commit was asked for.
    pub reference: Option<RefName>,
    /// Whether the machine that pushed it has a ref that is called like the commit, as hf-hub before 1.0 writes one for
    /// a commit that it was asked for.
    pub pinned: bool,
    /// What a user should know.
    pub notes: Vec<String>,
}
