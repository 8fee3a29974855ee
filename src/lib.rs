//! placeholder
pub mod cache;
pub mod config;
pub mod error;
pub mod hash;
pub mod ids;
pub mod manifest;
pub mod progress;
pub mod remote;
