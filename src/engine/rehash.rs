//! Hashes files of the cache, as fast as the disk and the processor allow.
//!
//! Each thread reads a few files in slices and hashes them in lockstep; memory is bounded by threads times files times a
//! slice, regardless of file sizes. A disk that has to move its head reads one file at a time, in order.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::cache::integrity::{Hashed, Job};
use crate::cache::read::{Buffer, open_quietly};
use crate::error::Error;
use crate::files::read_full;
use crate::hash::{self, BlobHasher};
use crate::model::ids::BlobId;
use crate::platform;
use crate::progress::{self, Event, Progress};
use crate::task::blocking;

/// Bytes of a file that are read at a time: few enough that the slices of all lanes fit into the processor's cache.
const SLICE: usize = 256 << 10;
/// Bytes after which progress is reported.
const REPORT: u64 = 4 << 20;
/// How often a file that changes while it is read is read again.
const TRIES: u32 = 2;

/// Hashes the files; the results are in the order of the jobs. `root` is the cache, whose disk decides how many files
/// are read at once.
pub async fn hash_all(root: &Path, jobs: Vec<Job>, progress: &Arc<dyn Progress>) -> Vec<(Job, Hashed)> {
    let display = Display::new(&jobs, progress);
    let is_slow = platform::is_rotational(root);
    // If the caller is dropped, the threads stop.
    let stop = Arc::new(AtomicBool::new(false));
    let _guard = StopOnDrop(stop.clone());
    blocking(move || {
        let results = run(&jobs, is_slow, &display, &stop);
        jobs.into_iter().zip(results).collect()
    })
    .await
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn run(jobs: &[Job], is_slow: bool, display: &Display, stop: &AtomicBool) -> Vec<Hashed> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = if is_slow { 1 } else { hash::lanes() };
    let threads = if is_slow { 1 } else { cores.min(jobs.len().div_ceil(lanes)).max(1) };
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Hashed>> = Mutex::new(vec![Hashed::InUse; jobs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let take = || {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(index).filter(|_| !stop.load(Ordering::Relaxed)).map(|job| (index, job))
                };
                hash_in_lockstep(lanes, take, display, |index, hashed| {
                    results.lock().unwrap_or_else(PoisonError::into_inner)[index] = hashed;
                });
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A file that is being hashed.
struct Lane<'a> {
    index: usize,
    job: &'a Job,
    file: File,
    size: u64,
    modified: Option<SystemTime>,
    hashers: Vec<BlobHasher>,
    read: u64,
    /// Bytes that were read and not yet reported.
    unreported: u64,
    tries: u32,
}

fn hash_in_lockstep<'a>(
    lanes: usize,
    take: impl Fn() -> Option<(usize, &'a Job)>,
    display: &Display,
    mut done: impl FnMut(usize, Hashed),
) {
    let mut active: Vec<Lane<'a>> = Vec::with_capacity(lanes);
    let mut buffers: Vec<Buffer> = (0..lanes).map(|_| Buffer::new(SLICE)).collect();
    loop {
        while active.len() < lanes
            && let Some((index, job)) = take()
        {
            display.start(job);
            match Lane::open(index, job, 1) {
                Ok(lane) => active.push(lane),
                Err(hashed) => {
                    display.finish(job);
                    done(index, hashed);
                }
            }
        }
        if active.is_empty() {
            return;
        }
        let reads: Vec<io::Result<usize>> =
            active.iter_mut().zip(&mut buffers).map(|(lane, buffer)| read_full(&mut lane.file, buffer)).collect();
        let mut feeds: Vec<(&mut BlobHasher, &[u8])> = Vec::with_capacity(2 * lanes);
        for ((lane, buffer), read) in active.iter_mut().zip(&buffers).zip(&reads) {
            let length = *read.as_ref().unwrap_or(&0);
            lane.read += length as u64;
            lane.unreported += length as u64;
            feeds.extend(lane.hashers.iter_mut().map(|hasher| (hasher, &buffer[..length])));
        }
        BlobHasher::update_together(&mut feeds);
        let mut left = Vec::with_capacity(lanes);
        for (mut lane, read) in active.into_iter().zip(reads) {
            if lane.unreported >= REPORT || !matches!(read, Ok(SLICE)) {
                display.moved(lane.job, std::mem::take(&mut lane.unreported));
            }
            match read {
                Ok(SLICE) => left.push(lane),
                Ok(_) => {
                    let (index, job) = (lane.index, lane.job);
                    match lane.finish(display) {
                        Ok(again) => left.push(again),
                        Err(hashed) => {
                            display.finish(job);
                            done(index, hashed);
                        }
                    }
                }
                Err(error) => {
                    display.finish(lane.job);
                    done(lane.index, Hashed::Unreadable(Error::io("cannot read", &lane.job.path, &error)));
                }
            }
        }
        active = left;
    }
}

impl<'a> Lane<'a> {
    fn open(index: usize, job: &'a Job, tries: u32) -> Result<Lane<'a>, Hashed> {
        let opened = open_quietly(&job.path).and_then(|file| Ok((file.metadata()?, file)));
        let (meta, file) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Hashed::InUse),
            Err(error) => return Err(Hashed::Unreadable(Error::io("cannot read", &job.path, &error))),
        };
        let size = meta.len();
        let wanted = [job.sha1.then(|| BlobHasher::git(size)), job.sha256.then(BlobHasher::sha256)];
        let hashers = wanted.into_iter().flatten().collect();
        let modified = meta.modified().ok();
        Ok(Lane { index, job, file, size, modified, hashers, read: 0, unreported: 0, tries })
    }

    /// Returns the names of the whole file, or begins again if it changed meanwhile.
    fn finish(self, display: &Display) -> Result<Lane<'a>, Hashed> {
        let after = self.file.metadata().ok();
        let is_same = |meta: std::fs::Metadata| meta.len() == self.size && meta.modified().ok() == self.modified;
        if self.read != self.size || !after.is_some_and(is_same) {
            display.lost(self.job, self.read);
            return match self.tries {
                TRIES.. => Err(Hashed::InUse),
                tries => Lane::open(self.index, self.job, tries + 1),
            };
        }
        let (mut sha1, mut sha256) = (None, None);
        for name in self.hashers.into_iter().map(BlobHasher::finish) {
            match name {
                BlobId::Sha1(_) => sha1 = Some(name),
                BlobId::Sha256(_) => sha256 = Some(name),
            }
        }
        Err(Hashed::Names { sha1, sha256, size: self.size })
    }
}

/// Reports progress by blob. Several repos may have files of one name, which count as one there.
struct Display {
    progress: Arc<dyn Progress>,
    /// Files that are not finished, by the name of their blob.
    left: Mutex<HashMap<BlobId, usize>>,
    sizes: HashMap<BlobId, u64>,
}

impl Display {
    fn new(jobs: &[Job], progress: &Arc<dyn Progress>) -> Display {
        let (mut left, mut sizes, mut repos) = (HashMap::new(), HashMap::new(), HashMap::new());
        for job in jobs {
            *left.entry(job.blob).or_insert(0) += 1;
            *sizes.entry(job.blob).or_insert(0) += job.size;
            repos.entry(job.blob).or_insert(job.repo);
        }
        let planned = sizes.iter().map(|(blob, size)| progress::Job { blob: *blob, size: *size, repo: repos[blob] });
        progress.event(Event::Planned(planned.collect()));
        Display { progress: progress.clone(), left: Mutex::new(left), sizes }
    }

    fn start(&self, job: &Job) {
        let size = self.sizes.get(&job.blob).copied().unwrap_or(job.size);
        self.progress.event(Event::Started { blob: job.blob, name: job.label.clone(), size });
    }

    fn moved(&self, job: &Job, bytes: u64) {
        if bytes > 0 {
            self.progress.event(Event::Moved { blob: job.blob, bytes });
        }
    }

    fn lost(&self, job: &Job, bytes: u64) {
        self.progress.event(Event::Lost { blob: job.blob, bytes });
    }

    fn finish(&self, job: &Job) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let count = left.entry(job.blob).or_insert(1);
        *count -= 1;
        if *count == 0 {
            self.progress.event(Event::Finished { blob: job.blob });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::blob_id_of;
    use crate::progress::Silent;
    use std::path::PathBuf;

    fn job(path: PathBuf, size: u64, both: bool) -> Job {
        Job::new(path, size, BlobId::Sha256([0; 32]), both, true)
    }

    #[tokio::test]
    async fn files_of_any_size_get_their_names_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE, 5 * SLICE + 17, 2, 700, SLICE];
        let contents: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(n, size)| (0..*size).map(|at| (at * 7 + n) as u8).collect()).collect();
        let mut jobs = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            let path = dir.path().join(number.to_string());
            std::fs::write(&path, content).unwrap();
            jobs.push(job(path, content.len() as u64, number % 2 == 0));
        }
        jobs.push(job(dir.path().join("gone"), 1, false));
        jobs.push(job(dir.path().to_path_buf(), 1, false));
        let progress: Arc<dyn Progress> = Arc::new(Silent);
        let results = hash_all(dir.path(), jobs, &progress).await;
        for (number, content) in contents.iter().enumerate() {
            let Hashed::Names { sha1, sha256, size } = &results[number].1 else { panic!("{:?}", results[number]) };
            assert_eq!(*size, content.len() as u64);
            assert_eq!(*sha256, Some(blob_id_of(&BlobId::Sha256([0; 32]), content)));
            assert_eq!(*sha1, (number % 2 == 0).then(|| blob_id_of(&BlobId::Sha1([0; 20]), content)));
        }
        assert!(matches!(results[sizes.len()].1, Hashed::InUse));
        assert!(matches!(results[sizes.len() + 1].1, Hashed::Unreadable(_)));
    }
}
