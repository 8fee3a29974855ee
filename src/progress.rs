//! Progress events of a running transfer. They are displayed elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::ids::BlobId;

/// A progress event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step of unknown length started, such as "scanning the cache".
    Step(&'static str),
    /// These blobs will be transferred.
    Planned(Vec<Job>),
    /// The transfer of a blob started.
    Started {
        /// The blob.
        blob: BlobId,
        /// A file name for display.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Bytes of a blob that an earlier run has transferred.
    Found {
        /// The blob.
        blob: BlobId,
        /// Number of bytes.
        bytes: u64,
    },
    /// Bytes of a blob were transferred.
    Moved {
        /// The blob.
        blob: BlobId,
        /// Number of bytes.
        bytes: u64,
    },
    /// Bytes that were reported as transferred have to be transferred again.
    Lost {
        /// The blob.
        blob: BlobId,
        /// Number of bytes.
        bytes: u64,
    },
    /// The whole blob has to be transferred again, including what an earlier run had transferred.
    Restarted {
        /// The blob.
        blob: BlobId,
    },
    /// The transfer of a blob ended, successfully or not. May be sent twice.
    Finished {
        /// The blob.
        blob: BlobId,
    },
    /// Something the waiting user should know.
    Note(String),
}

/// A blob to transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// The blob.
    pub blob: BlobId,
    /// Its size in bytes.
    pub size: u64,
    /// Index of its repo within this run.
    pub repo: usize,
}

/// Receives events, from many threads.
pub trait Progress: Send + Sync {
    /// Receives an event.
    fn event(&self, event: Event);
}

/// Discards all events.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}

/// Counts the bytes of an attempt, and reports them as lost unless the attempt succeeds.
pub struct Meter {
    progress: Arc<dyn Progress>,
    blob: BlobId,
    counted: u64,
}

impl Meter {
    /// Creates a meter at zero.
    pub fn new(progress: &Arc<dyn Progress>, blob: BlobId) -> Self {
        Meter { progress: progress.clone(), blob, counted: 0 }
    }

    /// Counts bytes.
    pub fn add(&mut self, bytes: u64) {
        self.counted += bytes;
        self.progress.event(Event::Moved { blob: self.blob, bytes });
    }

    /// Keeps the count, since the attempt succeeded.
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

/// The things this process is waiting for, oldest first. It is global, like a log, so that code can report a wait without a
/// handle to the user interface.
static WAITS: Mutex<Waits> = Mutex::new(Waits { next: 0, all: BTreeMap::new() });

struct Waits {
    next: u64,
    all: BTreeMap<u64, (Instant, Cow<'static, str>)>,
}

fn waits() -> MutexGuard<'static, Waits> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A wait in progress, which ends when this is dropped.
#[must_use = "the wait ends when this is dropped"]
#[derive(Debug)]
pub struct Waiting(u64);

/// Starts a wait for `what`, such as "the store". The user sees it if it takes long.
pub fn waiting(what: impl Into<Cow<'static, str>>) -> Waiting {
    let mut waits = waits();
    let number = waits.next;
    waits.next += 1;
    waits.all.insert(number, (Instant::now(), what.into()));
    Waiting(number)
}

impl Waiting {
    /// Changes what is waited for, without resetting the time.
    pub fn update(&self, what: impl Into<Cow<'static, str>>) {
        if let Some((_, text)) = waits().all.get_mut(&self.0) {
            *text = what.into();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        waits().all.remove(&self.0);
    }
}

/// The reason for waiting for any request; shown only if there is no more specific one.
pub const ANY_REQUEST: &str = "the store";

/// Returns the longest wait and its reason, if it has lasted at least `least`.
pub fn longest_wait(least: Duration) -> Option<(Duration, String)> {
    let waits = waits();
    let long = || waits.all.values().filter(|(since, _)| since.elapsed() >= least);
    let (since, what) = long().find(|(_, what)| what != ANY_REQUEST).or_else(|| long().next())?;
    Some((since.elapsed(), what.to_string()))
}
