//! The domain model, as types: names that cannot hold an invalid value ([`ids`]), the [`manifest`] of a revision and the
//! [`tree`] of its commit, which are both lists of files ([`file_list`]), a revision that was looked up ([`found`]), what a
//! command applies to ([`selection`]), include and exclude patterns ([`filter`], [`mod@glob`]), totals ([`amount`]), and JSON
//! from outside ([`json`]). No I/O.

pub mod amount;
pub mod file_list;
pub mod filter;
pub mod found;
pub mod glob;
pub mod ids;
pub mod json;
pub mod manifest;
pub mod pins;
pub mod selection;
pub mod tree;
