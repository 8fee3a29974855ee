//! Lets others read a blob while it arrives: up to the frontier of its hash, and to the end once the hash has matched.
//!
//! `serve` reads this way. Until the hash has matched, the bytes are unverified: a reader must hold back the end until
//! [`State::outcome`] is a success, and give up if the [attempt](State::attempt) changes, since the bytes that it has passed
//! on may have been wrong.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::Result;
use crate::model::ids::BlobId;

/// Readers are woken each time that the frontier passes a multiple of this: a wake-up costs more than the few bytes that a
/// store sends at once.
const STEP: u64 = 1 << 20;

/// The blobs of a process that others may read while they arrive.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<HashMap<BlobId, Arc<Arrival>>>);

/// A blob that arrives.
#[derive(Debug)]
pub struct Arrival {
    /// Its size in bytes.
    pub size: u64,
    /// Its path once it has been verified.
    pub path: PathBuf,
    state: watch::Sender<State>,
}

/// How far a blob has come.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Whether the pull has begun: it has taken huggingface_hub's lock on the blob, if that was free.
    pub has_begun: bool,
    /// Counts how often the download has started over because of wrong bytes.
    pub attempt: u32,
    /// Whether a client may have wrong bytes of this blob from an earlier run.
    pub is_suspect: bool,
    /// The file with the bytes, if they can be read while they arrive. Valid up to the frontier.
    pub file: Option<Arc<File>>,
    /// The number of bytes, from the start, that are in the file and hashed.
    pub frontier: u64,
    /// Set at the end: a success if the blob has been verified and is in place.
    pub outcome: Option<Result<()>>,
}

impl Arrivals {
    /// Returns the arrival of a blob, if it is in flight.
    pub fn get(&self, blob: &BlobId) -> Option<Arc<Arrival>> {
        self.lock().get(blob).cloned()
    }

    /// Returns the arrival of a blob, and whether it is a new one, which the caller has to perform and to [end](Self::end).
    /// For a new one, `is_suspect` is whether a client may have wrong bytes from an earlier run.
    pub fn begin(&self, blob: BlobId, size: u64, path: &Path, is_suspect: bool) -> (Arc<Arrival>, bool) {
        let mut is_new = false;
        let mut arrivals = self.lock();
        let arrival = arrivals.entry(blob).or_insert_with(|| {
            is_new = true;
            let state = watch::Sender::new(State { is_suspect, ..State::default() });
            Arc::new(Arrival { size, path: path.to_path_buf(), state })
        });
        (arrival.clone(), is_new)
    }

    /// Ends an arrival: its readers learn the outcome, and the next request starts over.
    pub fn end(&self, blob: &BlobId, outcome: Result<()>) {
        if let Some(arrival) = self.lock().remove(blob) {
            arrival.state.send_modify(|state| state.outcome = Some(outcome));
        }
    }

    /// Returns the blobs on their way.
    pub fn all(&self) -> Vec<(BlobId, Arc<Arrival>)> {
        self.lock().iter().map(|(blob, arrival)| (*blob, arrival.clone())).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BlobId, Arc<Arrival>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    /// Subscribes to its state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Returns the number of the current attempt.
    pub fn attempt(&self) -> u32 {
        self.state.borrow().attempt
    }

    /// Returns whether whoever has bytes of this blob may have wrong ones, so that no download can be resumed.
    pub fn may_have_passed_on_wrong_bytes(&self) -> bool {
        let state = self.state.borrow();
        state.is_suspect || state.attempt > 0
    }

    /// Returns whether this very arrival has passed on bytes, which have all turned out to be right. Another server on the same
    /// cache may have passed on others.
    pub fn has_passed_on_right_bytes(&self) -> bool {
        self.state.borrow().file.is_some() && !self.may_have_passed_on_wrong_bytes()
    }

    /// Notes that the pull has begun.
    pub fn note_begin(&self) {
        self.state.send_modify(|state| state.has_begun = true);
    }

    /// Offers the file in which the bytes arrive.
    pub(super) fn offer(&self, file: &Arc<File>) {
        self.state.send_modify(|state| {
            state.file = Some(file.clone());
            state.frontier = 0;
        });
    }

    /// Notes that the bytes up to the frontier are in the file and hashed.
    pub(super) fn advance(&self, frontier: u64) {
        self.state.send_if_modified(|state| {
            let is_due = frontier / STEP > state.frontier / STEP || frontier == self.size;
            state.frontier = frontier;
            is_due
        });
    }

    /// Withdraws the file, if one was offered: its bytes were wrong, or it is given up for another file. Those who have read
    /// some must start again.
    pub(super) fn retract(&self) {
        self.state.send_if_modified(|state| {
            let was_offered = state.file.take().is_some();
            if was_offered {
                state.attempt += 1;
                state.frontier = 0;
            }
            was_offered
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_blob_arrives_once_and_its_readers_learn_the_outcome() {
        let arrivals = Arrivals::default();
        let blob: BlobId = "1".repeat(40).parse().unwrap();
        let (first, is_new) = arrivals.begin(blob, 10, Path::new("blob"), false);
        assert!(is_new);
        assert!(!arrivals.begin(blob, 10, Path::new("blob"), false).1);
        let reader = arrivals.get(&blob).unwrap().watch();
        first.retract();
        assert_eq!(first.attempt(), 0, "nobody can have read anything");
        first.offer(&Arc::new(tempfile::tempfile().unwrap()));
        first.advance(4);
        assert_eq!(reader.borrow().frontier, 4);
        first.retract();
        assert_eq!((first.attempt(), reader.borrow().frontier), (1, 0));
        assert!(reader.borrow().file.is_none() && first.may_have_passed_on_wrong_bytes());
        arrivals.end(&blob, Err(Error::corrupt("blob")));
        assert!(reader.borrow().outcome.as_ref().unwrap().is_err());
        assert!(arrivals.get(&blob).is_none());
        assert!(arrivals.begin(blob, 10, Path::new("blob"), false).1);
    }
}
