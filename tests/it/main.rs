//! The integration tests: one binary, because each links the whole program. A module for each subject, and [`harness`]
//! for what they share.

mod examples;

#[cfg(unix)]
mod bad_input;
#[cfg(unix)]
mod cli;
#[cfg(all(unix, feature = "fallback"))]
mod fallback;
#[cfg(unix)]
mod faults;
#[cfg(unix)]
mod harness;
#[cfg(unix)]
mod interrupt;
#[cfg(unix)]
mod limits;
#[cfg(unix)]
mod links;
#[cfg(unix)]
mod odd_caches;
#[cfg(unix)]
mod prune;
#[cfg(unix)]
mod pull_all;
#[cfg(unix)]
mod push_pull;
#[cfg(unix)]
mod stores;
#[cfg(unix)]
mod views;
#[cfg(unix)]
mod watch;
