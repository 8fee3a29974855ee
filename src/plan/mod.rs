//! Decisions, all pure: what is here and what is there in, ordered actions with their reasons out. No I/O, no clock.
//!
//! [`push`], [`pull`] and [`prune`] plan what the engine carries out; [`deletion`] plans
//! what goes from a bucket. [`diff`] only compares, and [`bucket_usage`] only counts.

pub mod bucket_usage;
pub mod deletion;
pub mod diff;
pub mod prune;
pub mod pull;
pub mod push;
pub mod verify;
