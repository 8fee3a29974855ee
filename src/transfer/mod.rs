//! Moving blobs, with every byte verified against the blob's name on the way.
//!
//! [`upload`] sends a blob in one request or in parallel parts while it is hashed; [`download`] fetches it in one
//! request or in parallel ranges, from its [`source`], into a partial file of our own, and says that it is complete only after its hash
//! matched. Both run under the same [`Limits`]. Memory is bounded by requests in flight times a read slice, whatever
//! the size of the blobs.

pub mod download;
mod flush;
mod hashing;
pub mod limit;
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
pub use flush::Flushes;
pub use hashing::Hashes;
use limit::Limits;
use parts::Cut;

/// What every transfer needs.
#[derive(Clone)]
pub struct Context {
    /// The bucket.
    pub bucket: Bucket,
    /// Requests in flight.
    pub limits: Limits,
    /// Large blobs that are hashed now.
    pub hashes: Arc<Hashes>,
    /// Where events go.
    pub progress: Arc<dyn Progress>,
    /// The cache, for state of our own.
    pub layout: Layout,
    /// Small blobs that are flushed now.
    pub flushes: Arc<Flushes>,
    /// Parts that an upload has at the most.
    pub max_parts: u64,
    /// Bytes that are to be moved; 0 where nobody has said.
    pub bytes: u64,
    /// Whether a blob is flushed to the disk before it becomes visible.
    pub sync: bool,
    /// What was moved before this run.
    pub earlier: Arc<Earlier>,
}

/// Bytes of blobs that an earlier run has moved: this one neither moves nor counts them.
#[derive(Debug, Default)]
pub struct Earlier(Mutex<HashMap<BlobId, u64>>);

impl Earlier {
    fn all(&self) -> MutexGuard<'_, HashMap<BlobId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context {
    /// The same, for moving so many bytes.
    pub fn moving(&self, bytes: u64) -> Context {
        Context { bytes, ..self.clone() }
    }

    /// How blobs are cut now.
    pub fn cut(&self) -> Cut {
        Cut { bytes: self.bytes, streams: self.limits.parts.reach() }
    }

    /// These bytes of the blob were moved by an earlier run.
    pub(crate) fn found(&self, blob: BlobId, bytes: u64) {
        *self.earlier.all().entry(blob).or_default() += bytes;
        self.progress.event(Event::Found { blob, bytes });
    }

    /// All of the blob has to be moved again.
    pub(crate) fn restarted(&self, blob: BlobId) {
        self.earlier.all().remove(&blob);
        self.progress.event(Event::Restarted { blob });
    }

    /// What this run has moved of a blob of this size that is there now.
    pub fn moved(&self, blob: &BlobId, size: u64) -> u64 {
        size.saturating_sub(self.earlier.all().get(blob).copied().unwrap_or_default())
    }
}
