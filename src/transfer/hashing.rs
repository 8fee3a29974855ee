//! The hashes of large blobs while their parts are moved in any order, in either direction.
//!
//! The hash follows in the file, on a thread of its own: what has just been moved is read back from the page cache,
//! which costs little beside hashing it. In return it does not matter in which order parts come, and several blobs can
//! be hashed in step, which takes much less time than one after the other.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};

use tokio::sync::Notify;

use crate::cache::read::Buffer;
use crate::hash::{BlobHasher, MOST_TOGETHER, is_faster_together};
use crate::model::ids::BlobId;
use crate::platform;

/// Bytes of a blob that are read at a time: those of all blobs in step fit into the processor's second cache.
const SLICE: usize = 64 << 10;
/// Bytes that a blob waits for, so that there are some of other blobs too.
const WORTH_IT: u64 = 256 << 10;
/// Bytes for which no blob waits for others.
const ENOUGH: u64 = 1 << 20;

/// The hashes of a run.
pub struct Hashes {
    /// Blobs that are hashed in step.
    lanes: usize,
    active: Mutex<Active>,
}

#[derive(Default)]
struct Active {
    blobs: Vec<Weak<Hashing>>,
    /// Threads that hash.
    threads: usize,
    /// Memory of threads that have ended.
    buffers: Vec<Vec<Buffer>>,
}

/// The hash of one blob.
pub(super) struct Hashing {
    hashes: Arc<Hashes>,
    id: BlobId,
    size: u64,
    part_size: u64,
    file: Arc<File>,
    state: Mutex<State>,
    idle: Condvar,
    advanced: Notify,
}

struct State {
    /// `None` while somebody hashes.
    hasher: Option<BlobHasher>,
    /// Bytes hashed so far.
    at: u64,
    /// How far each part is in the file.
    moved: Vec<u64>,
    /// Why it cannot go on.
    error: Option<io::Error>,
    /// Whether all parts are in the file, and somebody waits for the hash.
    awaited: bool,
}

/// What somebody hashes of a blob, exclusively.
struct Work {
    blob: Arc<Hashing>,
    hasher: BlobHasher,
    at: u64,
    end: u64,
}

impl Default for Hashes {
    /// In step where the processor is good at it and cores are few; with many of them each blob can have its own.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = if is_faster_together() { (2 * MOST_TOGETHER / cores).clamp(1, MOST_TOGETHER) } else { 1 };
        Hashes { lanes, active: Mutex::default() }
    }
}

impl Hashes {
    fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes what is to be hashed next, of as many blobs as go in step; nothing while it is better to wait for more.
    fn take(&self, active: &Active) -> Vec<Work> {
        let blobs: Vec<_> = active.blobs.iter().filter_map(Weak::upgrade).collect();
        let waiting = blobs.iter().map(|blob| (blob, blob.waiting()));
        let ready: Vec<_> = waiting.filter(|(_, bytes)| *bytes >= WORTH_IT).collect();
        if ready.len() < self.lanes.min(blobs.len()) && !ready.iter().any(|(_, bytes)| *bytes >= ENOUGH) {
            return Vec::new();
        }
        ready.into_iter().take(self.lanes).filter_map(|(blob, _)| blob.take()).collect()
    }

    /// Starts a thread that hashes, if there is enough for it to do. Threads that are there look for more by
    /// themselves.
    fn start(self: &Arc<Self>) {
        let mut active = self.lock();
        if active.threads < MOST_TOGETHER.div_ceil(self.lanes) {
            let work = self.take(&active);
            if !work.is_empty() {
                active.threads += 1;
                let this = self.clone();
                tokio::task::spawn_blocking(move || this.run(work));
            }
        }
    }

    /// Hashes the work, and more as long as there is some. Blocks.
    fn run(&self, mut work: Vec<Work>) {
        let mut buffers = self.lock().buffers.pop().unwrap_or_default();
        buffers.resize_with(self.lanes, || Buffer::new(SLICE));
        while !work.is_empty() {
            hash_in_step(work, &mut buffers);
            let mut active = self.lock();
            work = self.take(&active);
            if work.is_empty() {
                active.threads -= 1;
                active.buffers.push(std::mem::take(&mut buffers));
            }
        }
    }
}

/// Hashes the work as far as all of it reaches.
fn hash_in_step(mut work: Vec<Work>, buffers: &mut [Buffer]) {
    let mut left = work.iter().map(|work| work.end - work.at).min().unwrap_or(0);
    while left > 0 {
        let length = left.min(SLICE as u64) as usize;
        let mut feeds: Vec<(&mut BlobHasher, &[u8])> = Vec::with_capacity(work.len());
        for (work, buffer) in work.iter_mut().zip(&mut *buffers) {
            let slice = &mut buffer[..length];
            match platform::read_exact_at(&work.blob.file, slice, work.at) {
                Ok(()) => feeds.push((&mut work.hasher, slice)),
                Err(error) => work.blob.lock().error = Some(error),
            }
            work.at += length as u64;
        }
        BlobHasher::update_together(&mut feeds);
        left -= length as u64;
    }
    work.into_iter().for_each(Work::put_back);
}

impl Work {
    fn put_back(self) {
        let mut state = self.blob.lock();
        state.hasher = Some(self.hasher);
        state.at = self.at;
        if state.awaited {
            self.blob.idle.notify_all();
        }
        drop(state);
        self.blob.advanced.notify_one();
    }
}

impl Hashing {
    /// Begins to hash a blob of `size` bytes, which are in `file` as far as the parts of `part_size` are `done`.
    pub(super) fn new(
        hashes: &Arc<Hashes>,
        id: BlobId,
        size: u64,
        file: &Arc<File>,
        part_size: u64,
        done: impl Iterator<Item = bool>,
    ) -> Arc<Self> {
        let moved = done.enumerate().map(|(part, done)| {
            let from = part as u64 * part_size;
            if done { (from + part_size).min(size) } else { from }
        });
        let hasher = Some(BlobHasher::like(&id, size));
        let state = State { hasher, at: 0, moved: moved.collect(), error: None, awaited: false };
        let hashing = Arc::new(Hashing {
            hashes: hashes.clone(),
            id,
            size,
            part_size,
            file: file.clone(),
            state: Mutex::new(state),
            idle: Condvar::new(),
            advanced: Notify::new(),
        });
        let mut active = hashes.lock();
        active.blobs.retain(|blob| blob.strong_count() > 0);
        active.blobs.push(Arc::downgrade(&hashing));
        drop(active);
        hashes.start();
        hashing
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How far the parts are complete from where the hash is.
    fn reachable(&self, state: &State) -> u64 {
        let mut end = state.at;
        loop {
            let part = (end / self.part_size) as usize;
            match state.moved.get(part) {
                Some(moved) if *moved > end => end = *moved,
                _ => return end.min(self.size),
            }
        }
    }

    /// The bytes from `from` to `to` are in the file, after those before them in the same part.
    pub(super) fn moved(&self, from: u64, to: u64) {
        let mut state = self.lock();
        let parts = (from / self.part_size) as usize..to.div_ceil(self.part_size) as usize;
        for (part, moved) in parts.clone().zip(&mut state.moved[parts]) {
            *moved = to.min((part as u64 + 1) * self.part_size).max(*moved);
        }
        drop(state);
        if self.waiting() >= WORTH_IT {
            self.hashes.start();
        }
    }

    /// Bytes that can be hashed and that nobody hashes. The rest of the blob is enough, however little.
    fn waiting(&self) -> u64 {
        let state = self.lock();
        if state.hasher.is_none() || state.error.is_some() {
            return 0;
        }
        let bytes = self.reachable(&state) - state.at;
        if state.awaited && bytes > 0 { bytes.max(ENOUGH) } else { bytes }
    }

    /// Takes what can be hashed, unless somebody has.
    fn take(self: &Arc<Self>) -> Option<Work> {
        let mut state = self.lock();
        let (at, end) = (state.at, self.reachable(&state).min(state.at + ENOUGH));
        let hasher = state.hasher.take()?;
        Some(Work { blob: self.clone(), hasher, at, end })
    }

    /// Whether twice as much waits to be hashed as `streams` requests have in flight: then moving more would only make
    /// the hash what is waited for at the end, reading what is in no cache any more.
    pub(super) fn is_behind(&self, streams: usize) -> bool {
        let state = self.lock();
        state.error.is_none() && self.reachable(&state) - state.at > 2 * streams as u64 * self.part_size
    }

    /// Waits until more is hashed, while it [is behind](Self::is_behind).
    pub(super) async fn advanced(&self) {
        self.hashes.start();
        self.advanced.notified().await;
    }

    /// The name of the whole blob, all of whose parts are in the file. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read back, or parts are missing.
    pub(super) fn finish(&self) -> io::Result<BlobId> {
        {
            let mut state = self.lock();
            if self.reachable(&state) < self.size {
                return Err(io::Error::other("not all of it has been moved"));
            }
            state.awaited = true;
        }
        self.hashes.start();
        let is_at_work = |state: &mut State| state.hasher.is_none() || (state.at < self.size && state.error.is_none());
        let state = self.idle.wait_while(self.lock(), is_at_work);
        let mut state = state.unwrap_or_else(|poisoned| poisoned.into_inner());
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(state.hasher.take().unwrap_or_else(|| BlobHasher::like(&self.id, self.size)).finish()),
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

    /// A file with these bytes, and their name.
    fn blob(bytes: &[u8]) -> (Arc<File>, BlobId) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let like = BlobId::Sha256([0; 32]);
        (Arc::new(file), blob_id_of(&like, bytes))
    }

    fn hashes(lanes: usize) -> Arc<Hashes> {
        Arc::new(Hashes { lanes, active: Mutex::default() })
    }

    proptest! {
        /// Whatever the order of the parts, and whatever was there already, the hashes are those of the bytes.
        #[test]
        fn any_order_gives_the_same_name(
            blobs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..700), 1..6),
            lanes in 1..5usize,
            chunk in 1..200usize,
            at_once in 1..4usize,
            order in any::<u64>(),
            done in any::<u16>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _entered = runtime.enter();
            let hashes = hashes(lanes);
            let is_done = |part: u64| done & (1 << part) != 0;
            let mut begun = Vec::new();
            for bytes in &blobs {
                let ((file, name), size) = (blob(bytes), bytes.len() as u64);
                let parts = size.div_ceil(PART);
                let hashing = Hashing::new(&hashes, name, size, &file, PART, (0..parts).map(is_done));
                let mut missing: Vec<u64> = (0..parts).step_by(at_once).collect();
                missing.sort_by_key(|part| part.wrapping_mul(order | 1).rotate_left(17));
                begun.push((hashing, name, size, missing));
            }
            for turn in 0..11 {
                for (hashing, _, size, missing) in &begun {
                    let Some(part) = missing.get(turn) else { continue };
                    let (from, to) = (part * PART, ((part + at_once as u64) * PART).min(*size));
                    for from in (from..to).step_by(chunk) {
                        hashing.moved(from, (from + chunk as u64).min(to));
                    }
                }
            }
            for (hashing, name, ..) in begun {
                prop_assert_eq!(hashing.finish().unwrap(), name);
            }
        }
    }

    #[tokio::test]
    async fn large_blobs_are_hashed_while_they_come() {
        let hashes = hashes(4);
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let blobs: Vec<_> = (0..6).map(|n| blob(&bytes[n..])).collect();
        let size = |n: usize| (bytes.len() - n) as u64;
        let begun: Vec<_> = blobs
            .iter()
            .enumerate()
            .map(|(n, (file, name))| Hashing::new(&hashes, *name, size(n), file, 1 << 20, [false; 3].into_iter()))
            .collect();
        for end in (0..3_000_000u64).step_by(100_000) {
            begun.iter().enumerate().for_each(|(n, hashing)| hashing.moved(end, (end + 100_000).min(size(n))));
        }
        for (hashing, (_, name)) in begun.into_iter().zip(blobs) {
            let found = tokio::task::spawn_blocking(move || hashing.finish()).await.unwrap();
            assert_eq!(found.unwrap(), name);
        }
        assert!(hashes.lock().threads <= 1);
    }

    #[tokio::test]
    async fn what_was_there_before_is_hashed_before_more_comes() {
        let part = 64 << 10;
        let (file, name) = blob(&vec![9; 101 * part]);
        let done = (0..101).map(|at| at < 100);
        let hashing = Hashing::new(&hashes(4), name, 101 * part as u64, &file, part as u64, done);
        while hashing.is_behind(1) {
            hashing.advanced().await;
        }
        hashing.moved(100 * part as u64, 101 * part as u64);
        let found = tokio::task::spawn_blocking(move || hashing.finish()).await.unwrap();
        assert_eq!(found.unwrap(), name);
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error() {
        let (file, name) = blob(&[7; 100]);
        let hashes = hashes(2);
        let missing = Hashing::new(&hashes, name, 3 * PART, &file, PART, [true, false, true].into_iter());
        assert!(missing.finish().is_err());
        let hashing = Hashing::new(&hashes, name, 3 * PART, &file, PART, [true; 3].into_iter());
        let found = tokio::task::spawn_blocking(move || hashing.finish()).await.unwrap();
        assert_eq!(found.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
