//! The bucket, and the Hub where the bucket fails.
//!
//! - Names: [`keys`] builds and parses keys, [`refs`] says which repo a ref key means and which of two keys counts.
//! - Requests: [`client`] says what the bucket can be asked, `wire` is the one way on which requests go, with what is
//!   learned of the store; `endpoint` says where that leads, `credentials` who asks, `net` how it is
//!   connected, `answer` reads what comes back, `told` logs it. [`limit`] says how many at once, [`error`] what failures mean.
//! - Finding: [`lookup`] one revision, [`main_revisions`] that of `main` of every repo, [`catalog`] all repos with
//!   their revisions and refs.
//! - Moving blobs: [`transfer`].
//! - [`hub`] finds a revision in the Hub instead, for `--fallback hf-hub`.

mod answer;
pub mod catalog;
pub mod client;
mod credentials;
mod endpoint;
pub mod error;
pub mod hub;
pub mod keys;
pub mod limit;
pub mod lookup;
pub mod main_revisions;
mod net;
pub mod refs;
mod told;
pub mod transfer;
mod wire;
