//! The Hugging Face Hub as a fallback for the bucket. A revision's listing becomes a manifest, its files are read like
//! blobs from a bucket, and everything after that (plan, verification, placement, locks) is the same.
//!
//! The requests are our own. The hf-hub crate sends two requests for each range, retries immediately when it is rate
//! limited, follows any redirect, and drops the sha256 of LFS files from the tree listing, without which their blobs
//! have no name.

#[cfg(feature = "fallback")]
mod address;
#[cfg(feature = "fallback")]
mod client;
#[cfg(not(feature = "fallback"))]
mod disabled;
#[cfg(feature = "fallback")]
mod http;
#[cfg(feature = "fallback")]
pub(crate) mod listing;
#[cfg(feature = "fallback")]
mod rate_limit;

#[cfg(feature = "fallback")]
pub use client::Hub;
#[cfg(not(feature = "fallback"))]
pub use disabled::{Body, Hub};
#[cfg(feature = "fallback")]
pub use http::Body;
