//! What a running transfer tells: plain events. Bars, lines and JSON are drawn elsewhere.

use std::sync::Arc;

use crate::ids::BlobId;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step without a known length began, such as "scanning the cache".
    Step(&'static str),
    /// This much is to be moved.
    Planned {
        /// Blobs to move.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A blob is being moved now.
    Started {
        /// Which.
        blob: BlobId,
        /// A file name that people know it by.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Bytes of a blob went over the wire, or were found from an earlier run.
    Moved {
        /// Which.
        blob: BlobId,
        /// How many.
        bytes: u64,
    },
    /// Bytes that were reported as moved have to be moved again.
    Lost {
        /// Which.
        blob: BlobId,
        /// How many.
        bytes: u64,
    },
    /// A blob is done, well or not.
    Finished {
        /// Which.
        blob: BlobId,
    },
    /// Something that a user who waits should know.
    Note(String),
}

/// Takes events. Called from many threads.
pub trait Progress: Send + Sync {
    /// One event.
    fn event(&self, event: Event);
}

/// Takes events and drops them.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}

/// Counts the bytes of one attempt, and takes them back unless the attempt is kept.
pub struct Meter {
    progress: Arc<dyn Progress>,
    blob: BlobId,
    counted: u64,
}

impl Meter {
    /// A meter at zero.
    pub fn new(progress: &Arc<dyn Progress>, blob: BlobId) -> Self {
        Meter { progress: progress.clone(), blob, counted: 0 }
    }

    /// Counts bytes.
    pub fn add(&mut self, bytes: u64) {
        self.counted += bytes;
        self.progress.event(Event::Moved { blob: self.blob, bytes });
    }

    /// The attempt succeeded: what was counted stays.
    pub fn keep(mut self) {
        self.counted = 0;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.counted > 0 {
            self.progress.event(Event::Lost { blob: self.blob, bytes: self.counted });
        }
    }
}
