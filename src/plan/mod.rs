//! Decisions, all pure: what is here and what is there in, ordered actions with their reasons out. No I/O, no clock.
//!
//! [`push`], [`pull`] and [`prune`] plan what the engine carries out; [`diff`] only compares.

pub mod bucket_usage;
pub mod diff;
pub mod prune;
pub mod pull;
pub mod push;
pub mod verify;
