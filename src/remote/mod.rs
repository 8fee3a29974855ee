//! The bucket: keys ([`keys`]), requests ([`client`]), what their failures mean ([`error`]), finding a revision
//! ([`lookup`]) and listing all of them ([`catalog`]), how many at once ([`limit`]), and moving blobs ([`transfer`]),
//! whose requests take a fast path (`wire`).

pub mod catalog;
pub mod client;
pub mod error;
pub mod hub;
pub mod keys;
pub mod limit;
pub mod lookup;
pub mod mains;
pub mod transfer;
mod wire;
