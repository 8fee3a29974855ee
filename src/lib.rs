//! hf-cache-sync makes the Hugging Face Hub cache a two-tier cache: local disk plus a bucket on Backblaze B2 or any
//! S3-compatible store.
//!
//! The way of the data:
//!
//! ```text
//!            cache::scan          commands::push::plan           remote::transfer
//!  hub/ ───────────────► Inventory ───────────────────► Plan ───────────────────► blobs/, then manifests/, then refs/
//!                                   ▲                                                │
//!                                   │ commands::push::state                          │ remote::lookup
//!                                bucket listing                                      ▼
//!  hub/ ◄─────────────── cache::place ◄──────────────── Plan ◄──────────────── Manifest of a revision
//!        blobs, tree, snapshot, ref    commands::pull::hydrate   commands::pull::plan
//! ```
//!
//! Layers, each importing only those before it: [`escape`], [`error`], [`files`], [`ids`], [`hash`], [`manifest`],
//! [`progress`], [`interrupt`], [`lossy`], [`net`]; then [`config`], [`cache`], [`remote`]; then [`commands`]; then
//! [`cli`] and [`ui`]; then [`complete`];
//! then `main.rs`. Plans are made by pure functions; executors carry them out and decide no policy; only [`ui`] prints, only
//! `main.rs` exits.

pub mod cache;
pub mod cli;
pub mod commands;
pub mod complete;
pub mod config;
pub mod error;
pub mod escape;
pub mod files;
pub mod hash;
pub mod ids;
pub mod interrupt;
pub mod lossy;
pub mod manifest;
pub mod net;
pub mod progress;
pub mod remote;
pub mod ui;
