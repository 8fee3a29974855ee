//! The bucket, and the Hub where the bucket fails.
//!
//! - Names: [`keys`] builds and parses keys, [`refs`] says which repo a ref key means and which of two keys counts.
//! - Requests: [`client`] sends them, `wire` is its fast path for blobs, [`limit`] says how many at once, [`error`]
//!   what
//!   their failures mean.
//! - Finding: [`lookup`] one revision, [`main_revisions`] that of `main` of every repo, [`catalog`] all repos with
//!   their
//!   revisions and refs.
//! - Moving blobs: [`transfer`].
//! - [`hub`] finds a revision in the Hub instead, for `--fallback hf-hub`.

pub mod catalog;
pub mod client;
pub mod error;
pub mod hub;
pub mod keys;
pub mod limit;
pub mod lookup;
pub mod main_revisions;
pub mod refs;
pub mod transfer;
mod wire;
