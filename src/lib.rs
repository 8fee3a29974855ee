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
//!  hub/ ◄─────────────── cache::snapshot ◄─ Plan ◄────────────── Manifest of a revision
//!        blobs, tree, snapshot, ref    engine::hydrate   plan::pull
//! ```
//!
//! Layers, each importing only those before it:
//!
//! - [`platform`], [`escape`], [`error`], [`files`], [`lossy`], [`pace`], [`retry`], [`suggest`], [`task`], [`when`];
//! - [`model`]: names, manifests, selections; [`hash`], [`progress`];
//! - [`config`], [`net`]; [`cache`]; [`bucket`], [`hub`]; [`transfer`];
//! - [`plan`] (pure), [`engine`] (carries plans out and decides no policy);
//! - [`commands`]; [`cli`] and [`ui`]; [`complete`]; then `main.rs`.
//!
//! Only [`ui`] prints, only `main.rs` exits.
//!
//! The library is an implementation detail of the binary: nothing of it is stable. Only what `main.rs` needs is public, and,
//! in `internals`, what tests, benchmarks and examples need; the compiler reports unused items among the rest.

// Written for contributors: `cargo doc --document-private-items` has all of it.
#![allow(rustdoc::private_intra_doc_links)]

mod bucket;
mod cache;
pub mod cli;
mod commands;
pub mod complete;
mod config;
mod engine;
pub mod error;
mod escape;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hash;
mod hub;
mod lossy;
mod model;
mod net;
mod pace;
mod plan;
pub mod platform;
mod progress;
mod retry;
mod suggest;
mod task;
mod transfer;
pub mod ui;
mod when;

pub use config::values::clean;

/// The version, with the commit if known.
pub const VERSION: &str = env!("HF_CACHE_SYNC_VERSION");

/// For tests, benchmarks and examples, under the names that these things have inside.
#[doc(hidden)]
pub mod internals {
    pub mod bucket {
        pub mod client {
            pub use crate::bucket::client::Object;
        }
        pub mod keys {
            pub use crate::bucket::keys::{blob, manifest};
        }
        pub mod lookup {
            pub use crate::bucket::lookup::find;
        }
        pub mod state {
            pub use crate::bucket::state::RemoteState;
        }
    }
    pub mod cache {
        pub mod donors {
            pub use crate::cache::donors::find;
        }
        pub mod layout {
            pub use crate::cache::layout::{Layout, link_text};
        }
        pub mod presence {
            pub use crate::cache::presence::{BlobState, State, inspect};
        }
        pub mod prune_facts {
            pub use crate::cache::prune_facts::gather;
        }
        pub mod pushable {
            pub use crate::cache::pushable::{Options, gather};
        }
        pub mod scan {
            pub use crate::cache::scan::scan;
        }
        pub mod snapshot {
            pub use crate::cache::snapshot::LinkKind;
        }
        pub mod state {
            pub use crate::cache::state::LocalState;
        }
    }
    pub mod config {
        pub use crate::config::{Config, Environment, Overrides, Secret};
    }
    pub mod engine {
        pub use crate::engine::Session;
        pub mod fallback {
            pub use crate::engine::fallback::Fallback;
        }
        pub mod hydrate {
            pub use crate::engine::hydrate::{Planned, hydrate};
        }
    }
    pub mod escape {
        pub use crate::escape::{Keep, escape};
    }
    pub mod hash {
        pub use crate::hash::{BlobHasher, MAX_LANES, blob_id_of, md5_hex, xet_hash};
    }
    pub mod hub {
        pub use crate::hub::Hub;
    }
    pub mod model {
        pub mod found {
            pub use crate::model::found::Found;
        }
        pub mod ids {
            pub use crate::model::ids::{BlobId, Commit, RepoName, RepoType};
        }
        pub mod manifest {
            pub use crate::model::manifest::{Manifest, ManifestFile};
        }
    }
    pub mod plan {
        pub mod prune {
            pub use crate::plan::prune::{Options, plan};
        }
        pub mod pull {
            pub use crate::plan::pull::{Plan, plan};
        }
        pub mod push {
            pub use crate::plan::push::plan;
        }
    }
    pub mod progress {
        pub use crate::progress::Silent;
    }
    pub mod transfer {
        pub use crate::transfer::{Context, HashPool};
        pub mod download {
            pub use crate::transfer::download::{Fetch, download};
        }
        pub mod limit {
            pub use crate::transfer::limit::Caps;
        }
        pub mod source {
            pub use crate::transfer::source::Source;
        }
        pub mod upload {
            pub use crate::transfer::upload::{Upload, upload};
        }
    }
}
