//! Moves blobs, and verifies every byte against the blob's name on the way.
//!
//! | | source | sink |
//! |---|---|---|
//! | [`download`] | [`source`]: the bucket or the Hub | `partial_file.rs`: a file of our own on this disk |
//! | [`upload`] | `local_file.rs`: a file of this cache | `multipart.rs`: the bucket |
//! | [`check`] | [`source`]: the bucket or the Hub | none: the bytes are only hashed |
//!
//! Small blobs are moved in one request. The parts of large ones are moved in parallel by one loop for both directions
//! (`move_parts.rs`), and hashed in order (`hashing.rs`). Both directions share the same [`Limits`]. Memory is bounded by
//! requests in flight times a read slice, regardless of blob sizes.

pub mod arrival;
pub mod check;
pub mod download;
mod flush;
mod hashing;
pub mod limit;
mod local_file;
mod move_parts;
mod multipart;
mod partial_file;
pub mod parts;
pub mod pool;
pub mod rate;
pub mod source;
pub mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bucket::client::Bucket;
use crate::cache::layout::Layout;
use crate::model::ids::BlobId;
use crate::progress::{Event, Progress};
use arrival::Arrivals;
pub use flush::Flushes;
pub use hashing::HashPool;
use limit::Limits;
use parts::Cut;

/// The context that every transfer needs.
#[derive(Clone)]
pub struct Context {
    /// The bucket.
    pub bucket: Bucket,
    /// Limits of the requests in flight.
    pub limits: Limits,
    /// Large blobs that are being hashed.
    pub hash_pool: Arc<HashPool>,
    /// The receiver of events.
    pub progress: Arc<dyn Progress>,
    /// The cache, which contains our own state as well.
    pub layout: Layout,
    /// Small blobs that are being flushed.
    pub flushes: Arc<Flushes>,
    /// Maximum number of parts of an upload.
    pub max_parts: u64,
    /// Number of bytes that the run will move; 0 if unknown.
    pub bytes: u64,
    /// Whether a blob is flushed to the disk before it becomes visible.
    pub sync: bool,
    /// Bytes that were moved before this run.
    pub earlier: Arc<EarlierProgress>,
    /// Blobs that others read while they arrive; only in `serve`.
    pub arrivals: Option<Arc<Arrivals>>,
}

/// Bytes of blobs that an earlier run has moved, so that this run neither moves nor counts them.
#[derive(Debug, Default)]
pub struct EarlierProgress(Mutex<HashMap<BlobId, u64>>);

impl EarlierProgress {
    fn lock(&self) -> MutexGuard<'_, HashMap<BlobId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context {
    /// Returns the same context for moving this many bytes.
    pub fn moving(&self, bytes: u64) -> Context {
        Context { bytes, ..self.clone() }
    }

    /// Returns how large blobs are cut at present.
    pub fn cut(&self) -> Cut {
        Cut { bytes: self.bytes, streams: self.limits.parts.reach() }
    }

    /// Records that an earlier run has moved these bytes of the blob.
    pub(crate) fn report_found(&self, blob: BlobId, bytes: u64) {
        *self.earlier.lock().entry(blob).or_default() += bytes;
        self.progress.event(Event::Found { blob, bytes });
    }

    /// Records that the whole blob has to be moved again.
    pub(crate) fn report_restarted(&self, blob: BlobId) {
        self.earlier.lock().remove(&blob);
        self.progress.event(Event::Restarted { blob });
    }

    /// Returns how many bytes of a blob of this size were moved by this run, which has completed it.
    pub fn moved_bytes(&self, blob: &BlobId, size: u64) -> u64 {
        size.saturating_sub(self.earlier.lock().get(blob).copied().unwrap_or_default())
    }
}
