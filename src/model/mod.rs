//! The domain model, as types: names that cannot hold an invalid value ([`ids`]), the [`manifest`] of a revision, a
//! revision that was looked up ([`found`]), include and exclude patterns for repos ([`filter`]), and totals
//! ([`amount`]). No I/O.

pub mod amount;
pub mod filter;
pub mod found;
pub mod ids;
pub mod manifest;
