//! The Hugging Face Hub as the source of what the bucket does not give: a revision's listing becomes a manifest, its
//! files are read as blobs are read from a bucket, and everything after that (plan, verification, places, locks) is
//! the same.
//!
//! Of the hf-hub crate only the reading of files is used. Its `snapshot_download` writes answers into blobs without
//! a look at their status or hash, leaves `*.incomplete` files behind, and takes paths and etags as they come; its
//! tree listing loses the sha256 of LFS files, without which no blob of theirs has a name.

#[cfg(not(feature = "fallback"))]
mod absent;
#[cfg(feature = "fallback")]
mod client;
#[cfg(feature = "fallback")]
mod listing;

#[cfg(not(feature = "fallback"))]
pub use absent::{Body, Hub};
#[cfg(feature = "fallback")]
pub use client::{Body, Hub};
