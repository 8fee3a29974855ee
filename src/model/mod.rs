//! What the program is about, as types: names that cannot hold an invalid value ([`ids`]), the [`manifest`] of a
//! revision, a revision that was [`found`], which repos are meant ([`filter`]), and sums ([`amount`]). No I/O.

pub mod amount;
pub mod filter;
pub mod found;
pub mod ids;
pub mod manifest;
