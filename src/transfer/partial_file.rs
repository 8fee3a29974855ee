//! The disk as a sink: a partial file of our own, and beside it a journal of the parts that have arrived.
//!
//! Parts are written to their offsets, in any order. How far the file is complete from its start is known by the hash
//! (`hashing.rs`), and that it is the right blob when the hash has matched.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use super::Context;
use super::parts;
use crate::cache::inside::{self, open_in, with_folder};
use crate::cache::place::{flushed, is_refused};
use crate::error::{Error, Result};
use crate::model::ids::BlobId;
use crate::platform::{self, Folder, Opening};

/// Mode of new files, which the umask narrows.
const MODE: u32 = 0o666;
/// Bytes after which a large blob starts to be flushed while more of it arrives.
const FLUSH: u64 = 64 << 20;

/// A file that a blob is written to.
#[derive(Clone)]
pub(super) struct PartialFile {
    root: Arc<Path>,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// Set once the file system has refused to write anywhere but at the end, or to read what was written.
    is_append_only: Arc<AtomicBool>,
}

impl PartialFile {
    /// Creates a file that must not exist.
    pub(super) fn create(context: &Context, path: PathBuf) -> Result<Self> {
        let file = with_folder(context.layout.root(), &path, "cannot write", |folder, name| {
            // Some file systems open files either for reading or for writing.
            open_in(folder, name, Opening::New, MODE).or_else(|error| match is_refused(&error) {
                true => open_in(folder, name, Opening::NewToWrite, MODE),
                false => Err(error),
            })
        })?;
        Ok(Self::new(context, path, file))
    }

    fn new(context: &Context, path: PathBuf, file: File) -> Self {
        PartialFile { root: context.layout.root().into(), path, file: Arc::new(file), is_append_only: Arc::default() }
    }

    /// Opens a file that an earlier run may have left. Anything that is not a file, or cannot be opened, is removed:
    /// nothing else should be there. So is a file that has another name, under which it is not to be changed.
    pub(super) fn resume(context: &Context, path: PathBuf) -> Result<Self> {
        let open = |folder: &Folder, name: &OsStr| {
            let opened = match open_in(folder, name, Opening::Any, MODE) {
                Ok(file) if platform::links(&file).is_none_or(|links| links == 1) => return Ok(file),
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error),
                opened => opened,
            };
            // A folder only if it is empty, since this tool put nothing into it.
            let removed = folder.remove_file(name).or_else(|_| folder.remove_folder(name));
            match (removed, opened) {
                (Ok(()), _) => open_in(folder, name, Opening::New, MODE),
                (Err(_), Err(error)) | (Err(error), Ok(_)) => Err(error),
            }
        };
        let file = with_folder(context.layout.root(), &path, "cannot write", open)?;
        Ok(Self::new(context, path, file))
    }

    /// Writes a piece of the blob to its offset.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        platform::write_all_at(&self.file, bytes, offset).map_err(|e| self.explain("cannot write", &e))
    }

    /// Writes after what has been written before.
    pub(super) fn append(&self, bytes: &[u8]) -> Result<()> {
        (&*self.file).write_all(bytes).map_err(|e| Error::io("cannot write", &self.path, &e))
    }

    /// Turns a failure of a random access into an error, and remembers if the file system does not support it.
    pub(super) fn explain(&self, what: &str, error: &io::Error) -> Error {
        if is_refused(error) {
            self.is_append_only.store(true, Ordering::Relaxed);
        }
        Error::io(what, &self.path, error)
    }

    /// Returns whether the file system has turned out to take bytes only in order.
    pub(super) fn is_append_only(&self) -> bool {
        self.is_append_only.load(Ordering::Relaxed)
    }

    fn journal_path(&self) -> PathBuf {
        self.path.with_extension("parts")
    }

    /// Removes the file and its journal.
    pub(super) fn discard(&self) {
        let _ = inside::remove_file(&self.root, &self.journal_path());
        let _ = inside::remove_file(&self.root, &self.path);
    }
}

/// Returns the path of a partial file that is used by this run alone and cannot be resumed.
pub(super) fn single_use_path(context: &Context, blob: &BlobId) -> PathBuf {
    context.layout.partial(blob).with_file_name(format!("{blob}.{:08x}.small", fastrand::u32(..)))
}

/// Removes a file unless it is kept.
pub(super) struct RemoveOnDrop {
    root: Arc<Path>,
    path: Option<PathBuf>,
}

impl RemoveOnDrop {
    pub(super) fn new(file: &PartialFile) -> Self {
        RemoveOnDrop { root: file.root.clone(), path: Some(file.path.clone()) }
    }

    pub(super) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    pub(super) fn keep(mut self) -> PathBuf {
        self.path.take().expect("kept once")
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = inside::remove_file(&self.root, path);
        }
    }
}

/// The journal of a partial file: a header with the sizes, then one byte per unit, which is set after the unit's data
/// has been written. A request covers one unit or several neighbours.
pub(super) struct Journal {
    path: PathBuf,
    file: Arc<File>,
    /// Size of the partial file in bytes.
    size: u64,
    /// Size of a unit in bytes.
    pub(super) unit: u64,
    /// Which units have arrived.
    pub(super) done: Vec<bool>,
}

impl Journal {
    const MAGIC: &[u8; 8] = b"hfcs-p1\n";
    const HEADER: u64 = 24;

    fn header(size: u64, unit: u64) -> [u8; Self::HEADER as usize] {
        let mut header = [0; Self::HEADER as usize];
        header[..8].copy_from_slice(Self::MAGIC);
        header[8..16].copy_from_slice(&size.to_le_bytes());
        header[16..].copy_from_slice(&unit.to_le_bytes());
        header
    }

    /// Opens the journal of `data`, with any unit. If it belongs to another size, or its data is missing, a new one with
    /// this `unit` replaces it.
    pub(super) fn open(context: &Context, data: &PartialFile, size: u64, unit: u64) -> Result<Self> {
        let PartialFile { path, file, .. } = PartialFile::resume(context, data.journal_path())?;
        let explain = |e: io::Error| data.explain("cannot write", &e);
        let data_size = data.file.metadata().map_err(explain)?.len();
        let earlier = if data_size == size { Self::read(&file, size) } else { None };
        let (unit, done) = match earlier {
            Some(earlier) => earlier,
            None => {
                let done = vec![false; size.div_ceil(unit) as usize];
                let mut content = Self::header(size, unit).to_vec();
                content.resize(content.len() + done.len(), 0);
                file.set_len(0).map_err(explain)?;
                platform::write_all_at(&file, &content, 0).map_err(explain)?;
                platform::preallocate(&data.file, size).map_err(explain)?;
                (unit, done)
            }
        };
        Ok(Journal { path, file, size, unit, done })
    }

    /// Reads the unit, and which units have arrived, if the journal belongs to a blob of this size.
    fn read(file: &File, size: u64) -> Option<(u64, Vec<bool>)> {
        let mut header = [0; Self::HEADER as usize];
        platform::read_exact_at(file, &mut header, 0).ok()?;
        let unit = u64::from_le_bytes(header[16..].try_into().ok()?);
        if header != Self::header(size, unit) || !parts::is_unit(unit) {
            return None;
        }
        let mut flags = vec![0; size.div_ceil(unit) as usize];
        platform::read_exact_at(file, &mut flags, Self::HEADER).ok()?;
        Some((unit, flags.into_iter().map(|flag| flag == 1).collect()))
    }

    /// Returns the bytes of a unit.
    pub(super) fn bytes_of(&self, unit: usize) -> Range<u64> {
        let start = unit as u64 * self.unit;
        start..(start + self.unit).min(self.size)
    }

    /// Returns the bytes of all missing units, in ranges of up to `largest` bytes.
    pub(super) fn missing(&self, largest: u64) -> Vec<Range<u64>> {
        let most = (largest / self.unit).max(1) * self.unit;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for bytes in (0..self.done.len()).filter(|unit| !self.done[*unit]).map(|unit| self.bytes_of(unit)) {
            match ranges.last_mut() {
                Some(range) if range.end == bytes.start && range.end - range.start < most => range.end = bytes.end,
                _ => ranges.push(bytes),
            }
        }
        ranges
    }

    /// Notes that the units of a range have arrived.
    pub(super) fn mark_done(&mut self, range: &Range<u64>) -> io::Result<()> {
        units(range, self.unit).try_for_each(|unit| self.mark(unit, true))
    }

    /// Notes that a unit has to be fetched again.
    pub(super) fn mark_missing(&mut self, unit: usize) -> Result<()> {
        self.mark(unit, false).map_err(|e| Error::io("cannot write", &self.path, &e))
    }

    fn mark(&mut self, unit: usize, done: bool) -> io::Result<()> {
        self.done[unit] = done;
        platform::write_all_at(&self.file, &[u8::from(done)], Self::HEADER + unit as u64)
    }
}

/// Returns the units that a range of bytes consists of.
fn units(range: &Range<u64>, unit: u64) -> Range<usize> {
    (range.start / unit) as usize..range.end.div_ceil(unit) as usize
}

/// Compares a range that is fetched again with what is in the file.
pub(super) struct Comparison {
    file: Arc<File>,
    /// Size of a unit in bytes.
    unit: u64,
    buffer: Vec<u8>,
    /// Units of which some bytes differ.
    changed: Vec<usize>,
}

impl Comparison {
    pub(super) fn new(file: &Arc<File>, unit: u64) -> Self {
        Comparison { file: file.clone(), unit, buffer: Vec::new(), changed: Vec::new() }
    }

    /// Compares a chunk with the bytes in the file, before it replaces them.
    pub(super) fn compare(&mut self, chunk: &[u8], offset: u64) {
        self.buffer.resize(chunk.len(), 0);
        let is_read = platform::read_exact_at(&self.file, &mut self.buffer, offset).is_ok();
        let mut at = 0;
        while at < chunk.len() {
            let unit = (offset + at as u64) / self.unit;
            let end = chunk.len().min(((unit + 1) * self.unit - offset) as usize);
            if !is_read || self.buffer[at..end] != chunk[at..end] {
                self.changed.push(unit as usize);
            }
            at = end;
        }
    }

    /// Returns the units of the range that came again unchanged.
    pub(super) fn unchanged(&self, range: &Range<u64>) -> Vec<usize> {
        units(range, self.unit).filter(|unit| !self.changed.contains(unit)).collect()
    }
}

/// Flushes a large blob while it is still arriving, so that the disk is not idle until the end.
pub(super) struct Flusher {
    target: PartialFile,
    sync: bool,
    unflushed: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    pub(super) fn new(target: &PartialFile, sync: bool) -> Self {
        Flusher { target: target.clone(), sync, unflushed: 0, running: None }
    }

    /// Counts bytes that have been written, and starts a flush if they are many.
    pub(super) async fn wrote(&mut self, bytes: u64) -> Result<()> {
        self.unflushed += bytes;
        if self.sync && self.unflushed >= FLUSH && self.running.as_ref().is_none_or(JoinHandle::is_finished) {
            self.finish().await?;
            self.unflushed = 0;
            let file = self.target.file.clone();
            self.running = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    /// Waits for the running flush. Its failure counts, since the system reports it only once.
    pub(super) async fn finish(&mut self) -> Result<()> {
        let result = match self.running.take() {
            Some(running) => flushed(running.await.unwrap_or_else(|failed| Err(io::Error::other(failed)))),
            None => Ok(()),
        };
        result.map_err(|e| Error::io("cannot flush", &self.target.path, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(size: u64, unit: u64, done: &[bool]) -> Journal {
        let file = Arc::new(tempfile::tempfile().unwrap());
        Journal { path: PathBuf::new(), file, size, unit, done: done.to_vec() }
    }

    #[test]
    fn neighbouring_missing_units_are_fetched_together() {
        let missing = |done: &[bool], largest| journal(95, 10, done).missing(largest);
        let none = [false; 10];
        assert_eq!(missing(&none, 40), [0..40, 40..80, 80..95]);
        assert_eq!(missing(&none, 15), (0..10).map(|n| n * 10..(n * 10 + 10).min(95)).collect::<Vec<_>>());
        assert_eq!(missing(&none, 3)[..2], [0..10, 10..20]);
        let some = [true, false, false, true, false, true, true, false, false, false];
        assert_eq!(missing(&some, 20), [10..30, 40..50, 70..90, 90..95]);
        assert!(missing(&[true; 10], 40).is_empty());
    }

    #[test]
    fn a_journal_is_what_was_noted() {
        let mut journal = journal(5 << 20, 1 << 20, &[false; 5]);
        platform::write_all_at(&journal.file, &Journal::header(journal.size, journal.unit), 0).unwrap();
        (0..5).for_each(|unit| journal.mark(unit, false).unwrap());
        journal.mark_done(&(1 << 20..3 << 20)).unwrap();
        journal.mark_done(&(4 << 20..5 << 20)).unwrap();
        journal.mark_missing(2).unwrap();
        let done = vec![false, true, false, false, true];
        assert_eq!(Journal::read(&journal.file, journal.size), Some((1 << 20, done)));
        assert_eq!(Journal::read(&journal.file, journal.size + 1), None);
    }

    #[test]
    fn a_unit_is_unchanged_only_if_all_its_bytes_are() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        platform::write_all_at(&file, &[7; 40], 0).unwrap();
        let mut comparison = Comparison::new(&file, 10);
        comparison.compare(&[7; 15], 0);
        comparison.compare(&[7, 7, 7, 7, 8, 7, 7], 15);
        comparison.compare(&[7; 8], 22);
        // There is nothing to compare these with.
        comparison.compare(&[7; 11], 30);
        assert_eq!(comparison.unchanged(&(0..30)), [0, 2]);
        assert!(comparison.unchanged(&(30..41)).is_empty());
    }
}
