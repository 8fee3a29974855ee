//! The bucket.
//!
//! - Names: [`keys`] builds and parses keys, [`refs`] says which repo a ref key means and which of two keys counts.
//! - Requests: [`client`] says what the bucket can be asked, `wire` is the one way on which requests go, with what is
//!   learned of the store; `endpoint` says where that leads, `credentials` who asks, `connection` how it is
//!   connected, `answer` reads what comes back, [`error`] says what failures mean.
//! - The picture: [`state`] has what is in the bucket, by its listing, and what was read of it; [`read`] reads.
//! - Finding in it: [`lookup`] one revision, [`main_revisions`] that of `main` of every repo, [`catalog`] all repos with
//!   their revisions and refs.
//! - Deleting from it: [`census`] knows what every manifest needs, [`notices`] is how pushes and deletions, on any
//!   machine, know of each other.

mod answer;
pub mod catalog;
pub mod census;
pub mod client;
mod connection;
mod credentials;
mod endpoint;
pub mod error;
pub mod keys;
pub mod lookup;
pub mod main_revisions;
pub mod notices;
pub mod read;
pub mod refs;
pub mod state;
mod wire;
