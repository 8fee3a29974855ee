//! Carrying out what was planned: takes locks, moves blobs, writes what names them last, and counts.
//!
//! [`survey`] looks at cache and bucket before a push or a comparison. [`publish`] carries out a push, and [`confirm`]
//! asks the bucket in between whether the blobs are really there. [`pull`] takes revisions from being found to a filled
//! cache, through [`hydrate`]. [`evict`] carries out a prune. [`delete`] deletes from a bucket, and [`announce`] keeps that
//! and pushes apart. [`rehash`] hashes files of the cache, [`verify`] checks and repairs cache and bucket. [`remembered`]
//! spares `pull-all` from reading manifests again. [`fallback`] says when the Hub is asked.

pub mod announce;
pub mod confirm;
pub mod delete;
pub mod evict;
pub mod fallback;
pub mod held;
pub mod hydrate;
pub mod publish;
pub mod pull;
pub mod rehash;
pub mod remembered;
pub mod session;
pub mod survey;
pub mod verify;

pub use session::Session;
