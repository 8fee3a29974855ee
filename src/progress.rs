//! What a running transfer tells: plain events. Bars, lines and JSON are drawn elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::ids::BlobId;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step without a known length began, such as "scanning the cache".
    Step(&'static str),
    /// These are to be moved.
    Planned(Vec<Job>),
    /// A blob is being moved now.
    Started {
        /// Which.
        blob: BlobId,
        /// A file name that people know it by.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Bytes of a blob that an earlier run has moved.
    Found {
        /// Which.
        blob: BlobId,
        /// How many.
        bytes: u64,
    },
    /// Bytes of a blob went over the wire.
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
    /// All of a blob has to be moved again, with what was found.
    Restarted {
        /// Which.
        blob: BlobId,
    },
    /// A blob is done, well or not. May come twice.
    Finished {
        /// Which.
        blob: BlobId,
    },
    /// Something that a user who waits should know.
    Note(String),
}

/// A blob that is to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Which.
    pub blob: BlobId,
    /// Its size in bytes.
    pub size: u64,
    /// The number of its repo, among those of this run.
    pub repo: usize,
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

/// What this process waits for, oldest first. Of the process and not of a run, as a log is: whoever waits need not know
/// who tells it.
static WAITS: Mutex<Waits> = Mutex::new(Waits { next: 0, all: BTreeMap::new() });

struct Waits {
    next: u64,
    all: BTreeMap<u64, (Instant, Cow<'static, str>)>,
}

fn waits() -> MutexGuard<'static, Waits> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something is waited for until this is dropped.
#[must_use = "the wait ends when this is dropped"]
#[derive(Debug)]
pub struct Waiting(u64);

/// Begins to wait for `what`, such as "the store": told to the user once it takes long.
pub fn waiting(what: impl Into<Cow<'static, str>>) -> Waiting {
    let mut waits = waits();
    let number = waits.next;
    waits.next += 1;
    waits.all.insert(number, (Instant::now(), what.into()));
    Waiting(number)
}

impl Waiting {
    /// Says anew what is waited for, as long as before.
    pub fn now_for(&self, what: impl Into<Cow<'static, str>>) {
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

/// What every request waits for; told only where nothing more precise is waited for.
pub const ANSWER: &str = "the store";

/// What has been waited for the longest, when that is at least so long.
pub fn longest_wait(least: Duration) -> Option<(Duration, String)> {
    let waits = waits();
    let long = || waits.all.values().filter(|(since, _)| since.elapsed() >= least);
    let (since, what) = long().find(|(_, what)| what != ANSWER).or_else(|| long().next())?;
    Some((since.elapsed(), what.to_string()))
}
