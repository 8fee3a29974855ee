//! hf-cache-sync makes the Hugging Face Hub cache a two-tier cache: local disk plus a bucket on Backblaze B2 or any
//! S3-compatible store.
//!
//! The way of the data:
//!
//! ```text
//!            cache::scan       plan::push           engine::publish
//!  hub/ ───────────────► Inventory ───────► Plan ───────────────────► blobs/, then manifests/, then refs/
//!                                   ▲                                    │
//!                                   │ engine::survey                     │ bucket::lookup
//!                              RemoteState of the bucket                 ▼
//!  hub/ ◄─────────────── cache::place ◄──── Plan ◄────────────── Manifest of a revision
//!        blobs, tree, snapshot, ref    engine::hydrate   plan::pull
//! ```
//!
//! Layers, each importing only those before it:
//!
//! - [`escape`], [`error`], [`files`], [`hash`], [`interrupt`], [`lossy`], [`progress`], `retry`, [`suggest`], [`task`], [`when`];
//! - [`model`]: names, manifests;
//! - [`config`], [`net`]; [`cache`]; [`bucket`], [`hub`]; [`transfer`];
//! - [`plan`] (pure), [`engine`] (carries plans out and decides no policy);
//! - [`commands`]; [`cli`] and [`ui`]; [`complete`]; then `main.rs`.
//!
//! Only [`ui`] prints, only `main.rs` exits.

pub mod bucket;
pub mod cache;
pub mod cli;
pub mod commands;
pub mod complete;
pub mod config;
pub mod engine;
pub mod error;
pub mod escape;
pub mod files;
pub mod hash;
pub mod hub;
pub mod interrupt;
pub mod lossy;
pub mod model;
pub mod net;
pub mod plan;
pub mod progress;
mod retry;
pub mod suggest;
pub mod task;
pub mod transfer;
pub mod ui;
pub mod when;
