//! The hash of a large blob while its parts are moved in any order, in either direction.
//!
//! A chunk that continues what is hashed so far is hashed as it passes, while it is still in the processor's cache. What
//! came out of order is read back from the file once it can be reached, on a thread of its own.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::Notify;

use crate::cache::read::{Buffer, read_exact_at};
use crate::hash::BlobHasher;
use crate::ids::BlobId;

/// Bytes that are read back at a time.
const SLICE: usize = 256 << 10;

/// The hash of one blob.
pub(super) struct Hashing {
    id: BlobId,
    size: u64,
    part_size: u64,
    state: Mutex<State>,
    idle: Condvar,
    caught_up: Notify,
}

struct State {
    /// `None` while somebody hashes.
    hasher: Option<BlobHasher>,
    /// Bytes hashed so far.
    at: u64,
    /// How far each part has been moved.
    moved: Vec<u64>,
    /// Why it cannot go on.
    error: Option<io::Error>,
    /// Whether somebody waits for the hasher.
    awaited: bool,
}

impl State {
    /// How far the parts are complete from where the hash is.
    fn reachable(&self, part_size: u64, size: u64) -> u64 {
        let mut end = self.at;
        loop {
            let part = (end / part_size) as usize;
            match self.moved.get(part) {
                Some(moved) if *moved > end => end = *moved,
                _ => return end.min(size),
            }
        }
    }
}

impl Hashing {
    /// Begins to hash a blob of `size` bytes in parts of `part_size`, of which some are `done` already.
    pub(super) fn new(id: BlobId, size: u64, part_size: u64, done: impl Iterator<Item = bool>) -> Arc<Self> {
        let moved = done.enumerate().map(|(part, done)| {
            let from = part as u64 * part_size;
            if done { (from + part_size).min(size) } else { from }
        });
        let hasher = Some(BlobHasher::like(&id, size));
        let state = State { hasher, at: 0, moved: moved.collect(), error: None, awaited: false };
        Arc::new(Hashing {
            id,
            size,
            part_size,
            state: Mutex::new(state),
            idle: Condvar::new(),
            caught_up: Notify::new(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn reachable(&self, state: &State) -> u64 {
        state.reachable(self.part_size, self.size)
    }

    /// A chunk has been moved, and is in the file; it is hashed at once when it continues the hash.
    pub(super) fn moved(&self, offset: u64, chunk: &[u8]) {
        let end = offset + chunk.len() as u64;
        let taken = {
            let mut state = self.lock();
            let part = &mut state.moved[(offset / self.part_size) as usize];
            *part = end.max(*part);
            if state.at == offset { state.hasher.take() } else { None }
        };
        if let Some(mut hasher) = taken {
            hasher.update(chunk);
            self.put_back(hasher, end);
        }
    }

    fn put_back(&self, hasher: BlobHasher, at: u64) {
        let mut state = self.lock();
        state.hasher = Some(hasher);
        state.at = at;
        if state.awaited {
            self.idle.notify_all();
        }
    }

    /// Whether twice as much waits to be hashed as `streams` requests have in flight: then moving more would only make
    /// the hash what is waited for at the end, reading what is in no cache any more.
    pub(super) fn is_behind(&self, streams: usize) -> bool {
        let state = self.lock();
        state.error.is_none() && self.reachable(&state) - state.at > 2 * streams as u64 * self.part_size
    }

    /// Waits until what could be reached is hashed.
    pub(super) async fn caught_up(&self) {
        self.caught_up.notified().await;
    }

    /// Starts reading back what can be reached and was not hashed as it passed.
    pub(super) fn catch_up(self: &Arc<Self>, file: &Arc<File>) {
        let worth_it = {
            let state = self.lock();
            state.hasher.is_some() && self.reachable(&state) > state.at
        };
        if worth_it {
            let (this, file) = (self.clone(), file.clone());
            tokio::task::spawn_blocking(move || this.read_back(&file));
        }
    }

    /// Hashes from the file as far as it is complete.
    fn read_back(&self, file: &File) {
        let mut buffer = Buffer::new(SLICE);
        loop {
            let (mut hasher, at, end) = {
                let mut state = self.lock();
                let end = self.reachable(&state).min(state.at + SLICE as u64);
                match (end > state.at, state.hasher.take()) {
                    (true, Some(hasher)) => (hasher, state.at, end),
                    (_, hasher) => {
                        state.hasher = hasher.or(state.hasher.take());
                        self.caught_up.notify_one();
                        return;
                    }
                }
            };
            let slice = &mut buffer[..(end - at) as usize];
            match read_exact_at(file, slice, at) {
                Ok(()) => {
                    hasher.update(slice);
                    self.put_back(hasher, end);
                }
                Err(error) => {
                    self.lock().error = Some(error);
                    self.put_back(hasher, at);
                    self.caught_up.notify_one();
                    return;
                }
            }
        }
    }

    /// The name of the whole blob, all of whose parts have been moved. Blocks.
    ///
    /// # Errors
    /// When the file could not be read back.
    pub(super) fn finish(&self, file: &File) -> io::Result<BlobId> {
        self.lock().awaited = true;
        loop {
            self.read_back(file);
            let state = self.lock();
            let state = self.idle.wait_while(state, |state| state.hasher.is_none());
            let mut state = state.unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if state.at == self.size {
                let hasher = state.hasher.take().unwrap_or_else(|| BlobHasher::like(&self.id, self.size));
                return Ok(hasher.finish());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::blob_id_of;
    use proptest::prelude::*;
    use std::io::Write;

    const PART: u64 = 64;

    proptest! {
        /// Whatever the order of the chunks, and whatever was there already, the hash is that of the bytes.
        #[test]
        fn any_order_gives_the_same_name(
            bytes in proptest::collection::vec(any::<u8>(), 1..700),
            chunk in 1..100usize,
            order in any::<u64>(),
            done in any::<u16>(),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let name = blob_id_of(&"ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap(), &bytes);
            let parts = (bytes.len() as u64).div_ceil(PART);
            let is_done = |part: u64| done & (1 << part) != 0;
            let hashing = Hashing::new(name, bytes.len() as u64, PART, (0..parts).map(is_done));
            let mut missing: Vec<u64> = (0..parts).filter(|part| !is_done(*part)).collect();
            missing.sort_by_key(|part| part.wrapping_mul(order | 1).rotate_left(17));
            for part in missing {
                let (from, to) = ((part * PART) as usize, ((part + 1) * PART).min(bytes.len() as u64) as usize);
                let mut at = from;
                while at < to {
                    let end = (at + chunk).min(to);
                    hashing.moved(at as u64, &bytes[at..end]);
                    at = end;
                }
                if order & part != 0 {
                    hashing.read_back(&file);
                }
            }
            prop_assert_eq!(hashing.finish(&file).unwrap(), name);
        }
    }

    #[test]
    fn a_part_that_is_sent_again_changes_nothing() {
        let bytes = vec![7; 3 * PART as usize];
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let name = blob_id_of(&"ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap(), &bytes);
        let hashing = Hashing::new(name, bytes.len() as u64, PART, [false; 3].into_iter());
        hashing.moved(0, &bytes[..40]);
        hashing.moved(0, &bytes[..20]);
        hashing.moved(20, &bytes[20..64]);
        hashing.moved(64, &bytes[64..192]);
        assert_eq!(hashing.finish(&file).unwrap(), name);
    }
}
