//! Hashes large blobs while their parts are moved in any order, in either direction.
//!
//! A hash has to see bytes in order: up to the *frontier*, all bytes of the blob are in the file and hashed. There are
//! two strategies to advance it, and the processor decides which one is used ([`crate::hash::lockstep_pays`]):
//!
//! - *Inline:* a chunk at the frontier is hashed by the task that moves it, while the chunk is in the CPU cache. Only what
//!   arrived out of order is read back from the page cache, by a thread.
//! - *Lockstep:* everything is read back, by a thread that hashes several blobs at once.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};

use tokio::sync::Notify;

use super::arrival::Arrival;
use crate::cache::read::Buffer;
use crate::hash::{self, BlobHasher, MAX_LANES};
use crate::model::ids::BlobId;
use crate::platform;

/// Number of bytes read at a time from each blob: those of all blobs in lockstep fit into the L2 cache.
const SLICE: usize = 64 << 10;
/// Number of waiting bytes at which a thread starts, so that other blobs have some, too.
const WORTH_STARTING: u64 = 256 << 10;
/// Number of waiting bytes at which a thread does not wait for other blobs; also the most that it hashes in one go.
const PLENTY: u64 = 1 << 20;

/// The large blobs of a run that are being hashed, and the threads that read them back.
#[derive(Default)]
pub struct HashPool {
    /// Number of blobs hashed in lockstep; with 1, chunks are hashed inline. Decided when the first large blob is moved.
    lanes: OnceLock<usize>,
    active: Mutex<Active>,
}

#[derive(Default)]
struct Active {
    blobs: Vec<Weak<OrderedHash>>,
    /// Number of running threads.
    threads: usize,
    /// Buffers of threads that have ended.
    buffers: Vec<Vec<Buffer>>,
}

/// The hash of one blob.
pub(super) struct OrderedHash {
    pool: Arc<HashPool>,
    id: BlobId,
    size: u64,
    part_size: u64,
    file: Arc<File>,
    state: Mutex<State>,
    idle: Condvar,
    advanced: Notify,
    /// The readers of the blob while it arrives.
    arrival: OnceLock<Arc<Arrival>>,
}

struct State {
    /// `None` while in use.
    hasher: Option<BlobHasher>,
    /// The number of bytes, from the start of the blob, that are in the file and hashed. What reads a partial file while
    /// it grows has to stay behind the frontier, and must not see the end before [`OrderedHash::finish`] has returned the
    /// right name.
    frontier: u64,
    /// The end of what is in the file, for each part.
    part_ends: Vec<u64>,
    /// Why the file could not be read back.
    error: Option<io::Error>,
    /// Whether [`OrderedHash::finish`] is waiting.
    is_awaited: bool,
}

/// Bytes of a blob that a thread is hashing, with exclusive use of the hasher.
struct Work {
    blob: Arc<OrderedHash>,
    hasher: BlobHasher,
    start: u64,
    end: u64,
}

impl HashPool {
    /// Creates a pool that hashes this many blobs in lockstep, or inline with 1, regardless of what suits the processor.
    pub fn with_lanes(lanes: usize) -> Self {
        HashPool { lanes: lanes.clamp(1, MAX_LANES).into(), active: Mutex::default() }
    }

    fn lanes(&self) -> usize {
        *self.lanes.get_or_init(hash::lanes)
    }

    fn hashes_inline(&self) -> bool {
        self.lanes() == 1
    }

    fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the next bytes to hash, of as many blobs as there are lanes. Each blob must have at least `least` bytes.
    /// Returns nothing if it is better to wait for more blobs.
    fn take_work(&self, active: &Active, least: u64) -> Vec<Work> {
        let blobs: Vec<_> = active.blobs.iter().filter_map(Weak::upgrade).collect();
        let waiting = blobs.iter().map(|blob| (blob, blob.waiting()));
        let ready: Vec<_> = waiting.filter(|(_, bytes)| *bytes >= least).collect();
        if ready.len() < self.lanes().min(blobs.len()) && !ready.iter().any(|(_, bytes)| *bytes >= PLENTY) {
            return Vec::new();
        }
        ready.into_iter().take(self.lanes()).filter_map(|(blob, _)| blob.take_work()).collect()
    }

    /// Starts a thread if there is enough work for one more. Running threads look for more work themselves.
    fn start_thread(self: &Arc<Self>) {
        let mut active = self.lock();
        if active.threads < MAX_LANES.div_ceil(self.lanes()) {
            let work = self.take_work(&active, WORTH_STARTING);
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
        buffers.resize_with(self.lanes(), || Buffer::new(SLICE));
        // A thread that is to catch up with inline hashing must not leave anything: the chunks that follow would not be
        // at the frontier.
        let least = if self.hashes_inline() { 1 } else { WORTH_STARTING };
        while !work.is_empty() {
            hash_in_lockstep(work, &mut buffers);
            let mut active = self.lock();
            work = self.take_work(&active, least);
            if work.is_empty() {
                active.threads -= 1;
                active.buffers.push(std::mem::take(&mut buffers));
            }
        }
    }
}

/// Hashes the same number of bytes of each blob: as many as all of them have.
fn hash_in_lockstep(mut work: Vec<Work>, buffers: &mut [Buffer]) {
    let mut left = work.iter().map(|work| work.end - work.start).min().unwrap_or(0);
    while left > 0 {
        let length = left.min(SLICE as u64) as usize;
        let mut feeds: Vec<(&mut BlobHasher, &[u8])> = Vec::with_capacity(work.len());
        for (work, buffer) in work.iter_mut().zip(&mut *buffers) {
            let slice = &mut buffer[..length];
            match platform::read_exact_at(&work.blob.file, slice, work.start) {
                Ok(()) => feeds.push((&mut work.hasher, slice)),
                Err(error) => work.blob.lock().error = Some(error),
            }
            work.start += length as u64;
        }
        BlobHasher::update_together(&mut feeds);
        left -= length as u64;
    }
    for Work { blob, hasher, start, .. } in work {
        blob.put_back(hasher, start);
    }
}

impl OrderedHash {
    /// Starts to hash a blob of `size` bytes. `done` marks the parts of `part_size` that are already in `file`.
    pub(super) fn new(
        pool: &Arc<HashPool>,
        id: BlobId,
        size: u64,
        file: &Arc<File>,
        part_size: u64,
        done: impl Iterator<Item = bool>,
    ) -> Arc<Self> {
        let part_ends = done.enumerate().map(|(part, is_done)| {
            let start = part as u64 * part_size;
            if is_done { (start + part_size).min(size) } else { start }
        });
        let hasher = Some(BlobHasher::like(&id, size));
        let state = State { hasher, frontier: 0, part_ends: part_ends.collect(), error: None, is_awaited: false };
        let hash = Arc::new(OrderedHash {
            pool: pool.clone(),
            id,
            size,
            part_size,
            file: file.clone(),
            state: Mutex::new(state),
            idle: Condvar::new(),
            advanced: Notify::new(),
            arrival: OnceLock::new(),
        });
        let mut active = pool.lock();
        active.blobs.retain(|blob| blob.strong_count() > 0);
        active.blobs.push(Arc::downgrade(&hash));
        drop(active);
        pool.start_thread();
        hash
    }

    /// Reports the frontier to those who read the blob while it arrives.
    pub(super) fn report_to(&self, arrival: Arc<Arrival>) {
        let state = self.lock();
        self.arrival.get_or_init(|| arrival).advance(state.frontier);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the end of the bytes that are in the file without a gap after the frontier.
    fn contiguous_end(&self, state: &State) -> u64 {
        let mut end = state.frontier;
        loop {
            let part = (end / self.part_size) as usize;
            match state.part_ends.get(part) {
                Some(part_end) if *part_end > end => end = *part_end,
                _ => return end.min(self.size),
            }
        }
    }

    /// Notes that these bytes at `offset` are in the file, after those before them in the same part, and hashes them if
    /// they are at the frontier and hashing is inline. Bytes that come again are ignored.
    pub(super) fn advance(&self, bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        let mut state = self.lock();
        self.note_in(&mut state, offset, end);
        let frontier = state.frontier;
        let is_next = (offset..end).contains(&frontier) && self.pool.hashes_inline() && state.error.is_none();
        let hasher = if is_next { state.hasher.take() } else { None };
        drop(state);
        if let Some(mut hasher) = hasher {
            hasher.update(&bytes[(frontier - offset) as usize..]);
            self.put_back(hasher, end);
        }
        if self.waiting() >= WORTH_STARTING {
            self.pool.start_thread();
        }
    }

    /// Notes that the bytes from `offset` to `end`, which will be moved next, are in the file already. In lockstep they
    /// can be hashed at once, so that no blob has to wait for others; inline, they are hashed while they are moved.
    pub(super) fn announce(&self, offset: u64, end: u64) {
        if !self.pool.hashes_inline() {
            self.note(offset, end);
        }
    }

    /// Notes that the bytes from `offset` to `end` are in the file.
    pub(super) fn note(&self, offset: u64, end: u64) {
        self.note_in(&mut self.lock(), offset, end);
        if self.waiting() >= WORTH_STARTING {
            self.pool.start_thread();
        }
    }

    fn note_in(&self, state: &mut State, offset: u64, end: u64) {
        let parts = (offset / self.part_size) as usize..end.div_ceil(self.part_size) as usize;
        for (part, part_end) in parts.clone().zip(&mut state.part_ends[parts]) {
            *part_end = end.min((part as u64 + 1) * self.part_size).max(*part_end);
        }
    }

    /// Returns the hasher, which has seen all bytes up to the new `frontier`.
    fn put_back(&self, hasher: BlobHasher, frontier: u64) {
        let mut state = self.lock();
        state.hasher = Some(hasher);
        state.frontier = frontier;
        if state.is_awaited {
            self.idle.notify_all();
        }
        // Under the lock, so that the frontier is never reported as an earlier one.
        if let Some(arrival) = self.arrival.get() {
            arrival.advance(frontier);
        }
        drop(state);
        self.advanced.notify_one();
    }

    /// Returns the number of bytes that can be hashed now. If [`finish`](Self::finish) is waiting, it is worth a thread,
    /// however small.
    fn waiting(&self) -> u64 {
        let state = self.lock();
        if state.hasher.is_none() || state.error.is_some() {
            return 0;
        }
        let bytes = self.contiguous_end(&state) - state.frontier;
        if state.is_awaited && bytes > 0 { bytes.max(PLENTY) } else { bytes }
    }

    /// Takes what can be hashed now, unless the hasher is in use.
    fn take_work(self: &Arc<Self>) -> Option<Work> {
        let mut state = self.lock();
        let (start, end) = (state.frontier, self.contiguous_end(&state).min(state.frontier + PLENTY));
        let hasher = state.hasher.take()?;
        Some(Work { blob: self.clone(), hasher, start, end })
    }

    /// Returns whether more than twice the bytes that `streams` requests have in flight wait to be hashed. Moving more
    /// would only delay the end, when the hash would have to read what is no longer cached.
    pub(super) fn is_behind(&self, streams: usize) -> bool {
        let state = self.lock();
        state.error.is_none() && self.contiguous_end(&state) - state.frontier > 2 * streams as u64 * self.part_size
    }

    /// Waits until the frontier has advanced, while the hash [is behind](Self::is_behind).
    pub(super) async fn advanced(&self) {
        self.pool.start_thread();
        self.advanced.notified().await;
    }

    /// Returns the name of the whole blob, all of whose parts are in the file. Blocks.
    ///
    /// # Errors
    /// If the file cannot be read back, or parts are missing.
    pub(super) fn finish(&self) -> io::Result<BlobId> {
        {
            let mut state = self.lock();
            if self.contiguous_end(&state) < self.size {
                return Err(io::Error::other("some parts have not been moved"));
            }
            state.is_awaited = true;
        }
        self.pool.start_thread();
        let is_running =
            |state: &mut State| state.hasher.is_none() || (state.frontier < self.size && state.error.is_none());
        let state = self.idle.wait_while(self.lock(), is_running);
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

    /// Returns the name of these bytes.
    fn name_of(bytes: &[u8]) -> BlobId {
        blob_id_of(&BlobId::Sha256([0; 32]), bytes)
    }

    fn file_with(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    fn pool(lanes: usize) -> Arc<HashPool> {
        Arc::new(HashPool::with_lanes(lanes))
    }

    async fn finish(hash: Arc<OrderedHash>) -> io::Result<BlobId> {
        tokio::task::spawn_blocking(move || hash.finish()).await.unwrap()
    }

    proptest! {
        /// For any order of parts, any existing parts and any repeated ones, the hashes are those of the bytes, inline (one
        /// lane) and in lockstep.
        #[test]
        fn any_order_gives_the_same_name(
            blobs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..700), 1..6),
            lanes in 1..5usize,
            chunk in 1..200usize,
            parts_per_range in 1..4usize,
            order in any::<u64>(),
            done in any::<u16>(),
            repeated in 0..100usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _entered = runtime.enter();
            let pool = pool(lanes);
            let is_done = |part: u64| done & (1 << part) != 0;
            let mut started = Vec::new();
            for bytes in &blobs {
                let size = bytes.len() as u64;
                let parts = size.div_ceil(PART);
                let name = name_of(bytes);
                let hash = OrderedHash::new(&pool, name, size, &file_with(bytes), PART, (0..parts).map(is_done));
                let mut ranges: Vec<u64> = (0..parts).step_by(parts_per_range).collect();
                ranges.sort_by_key(|part| part.wrapping_mul(order | 1).rotate_left(17));
                started.push((hash, name, bytes, ranges));
            }
            for turn in 0..11 {
                for (hash, _, bytes, ranges) in &started {
                    let Some(part) = ranges.get(turn) else { continue };
                    let start = *part as usize * PART as usize;
                    let end = (start + parts_per_range * PART as usize).min(bytes.len());
                    for at in (start..end).step_by(chunk) {
                        let from = at.saturating_sub(repeated).max(start);
                        hash.advance(&bytes[from..(at + chunk).min(end)], from as u64);
                    }
                }
            }
            for (hash, name, ..) in started {
                prop_assert_eq!(hash.finish().unwrap(), name);
            }
        }
    }

    /// Moves six blobs in parts of 1 MiB, in chunks of 100 kB.
    async fn move_six_blobs(lanes: usize, parts: [usize; 3]) -> Arc<HashPool> {
        let pool = pool(lanes);
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let blobs: Vec<&[u8]> = (0..6).map(|n| &bytes[n..]).collect();
        let start = |blob: &&[u8]| {
            let done = [false; 3].into_iter();
            OrderedHash::new(&pool, name_of(blob), blob.len() as u64, &file_with(blob), 1 << 20, done)
        };
        let hashes: Vec<_> = blobs.iter().map(start).collect();
        for part in parts {
            for at in (part << 20..(part + 1) << 20).step_by(100_000) {
                for (hash, blob) in hashes.iter().zip(&blobs) {
                    let end = (at + 100_000).min((part + 1) << 20).min(blob.len());
                    hash.advance(&blob[at.min(end)..end], at.min(end) as u64);
                }
            }
        }
        for (hash, blob) in hashes.into_iter().zip(blobs) {
            assert_eq!(finish(hash).await.unwrap(), name_of(blob));
        }
        pool
    }

    #[tokio::test]
    async fn large_blobs_are_hashed_while_they_are_moved() {
        for parts in [[0, 1, 2], [2, 0, 1], [2, 1, 0]] {
            let pool = move_six_blobs(4, parts).await;
            assert!(pool.lock().threads <= 1);
            move_six_blobs(1, parts).await;
        }
    }

    #[tokio::test]
    async fn nothing_is_read_back_that_arrives_in_order() {
        let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n / 11) as u8).collect();
        let part_size = 1 << 20;
        // The file is empty: reading it back would fail.
        let hash = OrderedHash::new(
            &pool(1),
            name_of(&bytes),
            bytes.len() as u64,
            &file_with(b""),
            part_size,
            [false; 5].into_iter(),
        );
        for (n, chunk) in bytes.chunks(300_000).enumerate() {
            hash.advance(chunk, n as u64 * 300_000);
            assert!(!hash.is_behind(1));
        }
        assert_eq!(finish(hash).await.unwrap(), name_of(&bytes));
    }

    #[tokio::test]
    async fn inline_hashing_goes_on_after_what_arrived_out_of_order() {
        let bytes: Vec<u8> = (0..5 << 20).map(|n: u32| (n / 11) as u8).collect();
        let part = |number: usize| &bytes[number << 20..(number + 1) << 20];
        let part_size = 1 << 20;
        // The file ends before the last part: that one cannot be read back.
        let file = file_with(&bytes[..4 << 20]);
        let size = bytes.len() as u64;
        let hash = OrderedHash::new(&pool(1), name_of(&bytes), size, &file, part_size, [false; 5].into_iter());
        for number in [3, 1, 2, 0] {
            hash.advance(part(number), (number as u64) << 20);
        }
        while hash.lock().frontier < 4 << 20 {
            hash.advanced().await;
        }
        hash.advance(part(4), 4 << 20);
        assert_eq!(finish(hash).await.unwrap(), name_of(&bytes));
    }

    #[tokio::test]
    async fn what_was_there_before_is_hashed_before_more_is_moved() {
        for lanes in [1, 4] {
            let part = 64 << 10;
            let bytes = vec![9; 101 * part];
            let (name, size) = (name_of(&bytes), bytes.len() as u64);
            let done = (0..101).map(|at| at < 100);
            let hash = OrderedHash::new(&pool(lanes), name, size, &file_with(&bytes), part as u64, done);
            while hash.is_behind(1) {
                hash.advanced().await;
            }
            hash.advance(&bytes[100 * part..], 100 * part as u64);
            assert_eq!(finish(hash).await.unwrap(), name);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error() {
        for lanes in [1, 2] {
            let (file, name) = (file_with(&[7; 100]), name_of(&[7; 100]));
            let pool = pool(lanes);
            let start = |done: [bool; 3]| OrderedHash::new(&pool, name, 3 * PART, &file, PART, done.into_iter());
            assert!(start([true, false, true]).finish().is_err());
            let error = finish(start([true; 3])).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
