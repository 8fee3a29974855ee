//! The integration tests: one binary, because each links the whole program. A module for each subject, and [`harness`]
//! for what they share.

mod examples;

mod bad_input;
#[cfg(target_os = "linux")]
mod bounds;
#[cfg(unix)]
mod cli;
#[cfg(unix)]
mod concurrency;
mod contract;
#[cfg(target_os = "linux")]
mod disk;
#[cfg(feature = "fallback")]
mod fallback;
mod faults;
mod faulty_network;
mod harness;
mod interrupt;
mod kills;
mod layers;
mod limits;
mod links;
#[cfg(unix)]
mod model;
#[cfg(unix)]
mod odd_caches;
#[cfg(unix)]
mod partial;
mod promises;
mod prune;
mod prune_remote;
mod pull_all;
mod push_pull;
#[cfg(unix)]
mod remote;
mod rm;
#[cfg(unix)]
mod secrets;
#[cfg(unix)]
mod serve;
#[cfg(unix)]
mod shared_store;
mod stores;
#[cfg(target_os = "linux")]
mod swaps;
#[cfg(unix)]
mod verify;
#[cfg(unix)]
mod views;
#[cfg(unix)]
mod watch;
