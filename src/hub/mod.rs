//! The Hugging Face Hub as the source of what the bucket does not give: a revision's listing becomes a manifest, its
//! files are read as blobs are read from a bucket, and everything after that (plan, verification, places, locks) is
//! the same.
//!
//! The requests are our own. The hf-hub crate asks twice for each range, tries a refusal for too many requests again at
//! once, follows redirects as they come, and its tree listing loses the sha256 of LFS files, without which no blob of
//! theirs has a name.

#[cfg(not(feature = "fallback"))]
mod absent;
#[cfg(feature = "fallback")]
mod address;
#[cfg(feature = "fallback")]
mod client;
#[cfg(feature = "fallback")]
mod http;
#[cfg(feature = "fallback")]
mod listing;
#[cfg(feature = "fallback")]
mod patience;

#[cfg(not(feature = "fallback"))]
pub use absent::{Body, Hub};
#[cfg(feature = "fallback")]
pub use client::Hub;
#[cfg(feature = "fallback")]
pub use http::Body;
