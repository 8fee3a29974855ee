//! Checks and repairs: [`local`] the cache, [`remote`] the bucket.

pub mod local;
pub mod remote;
