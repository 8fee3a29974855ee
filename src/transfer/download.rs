//! Fetching a blob into a partial file of our own, complete only after its hash matched.
//!
//! Up to [`SINGLE_GET`]: one request into a file of its own. Larger: parallel ranges, each chunk written at its offset
//! as it comes, into `partial/<etag>`; a journal beside it says which parts are there, so that an interrupted download
//! goes on where it was. The hash follows in the file (`hashing.rs`), so that it is done soon after the last part. The
//! caller holds the blob's locks and moves the file into place.
//!
//! Whatever an earlier run has left: it costs fetching again what is not right of it, in the same run. On a file system
//! that takes bytes only one after the other, a large blob is fetched that way too, and read back.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use bytes::Bytes;
use tokio::task::{JoinHandle, JoinSet};

use super::Context;
use super::hashing::Hashing;
use super::parts::{self, SINGLE_GET};
use super::source::Source;
use crate::bucket::error::{Cause, Failure};
use crate::cache::place::{flushed, is_refused, with_folder};
use crate::cache::read::matches_name;
use crate::error::{Error, Result};
use crate::hash::BlobHasher;
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};
use crate::platform;
use crate::progress::{Event, Meter};
use crate::retry::Try;
use crate::task::blocking;

/// No store has larger objects: what a manifest says is not believed any further, since room is made for it.
const LARGEST: u64 = 1 << 47;
/// Bytes after which a large blob begins to be flushed while more of it comes.
const FLUSH: u64 = 64 << 20;

/// A blob to fetch.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Its name.
    pub id: BlobId,
    /// Its size in bytes, as the manifest says.
    pub size: u64,
    /// A repo that has it,
    pub repo: RepoName,
    /// in this revision,
    pub commit: Commit,
    /// as this file.
    pub path: RepoPath,
    /// Where it is to come from.
    pub source: Source,
}

impl Fetch {
    /// A file name for people.
    pub fn label(&self) -> String {
        format!("{}/{}", self.repo, self.path)
    }
}

/// Fetches one blob; returns the file with the verified, flushed bytes. Once it is in its place, [`forget`] the rest.
///
/// # Errors
/// [`Cause::NoSuchKey`] when the bucket lacks it, [`Cause::WrongSize`] and [`Cause::Corrupt`] when it has another one,
/// [`Cause::Damaged`] when the way damages its bytes again and again.
pub async fn download(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    if blob.size > LARGEST {
        return Err(Error::invalid(format!("blob {} ({}) cannot be that large", blob.id, blob.label()))
            .because(format!("the manifest says {} bytes", blob.size)));
    }
    context.progress.event(Event::Started { blob: blob.id, name: blob.label(), size: blob.size });
    let fetched = match blob.size {
        0..=SINGLE_GET => whole(context, blob).await,
        // In a box, so that small blobs do not carry it along.
        _ => Box::pin(in_parts(context, blob)).await,
    };
    context.progress.event(Event::Finished { blob: blob.id });
    if let Source::Bucket(bucket) = &blob.source {
        context.limits.pushed_back(bucket.counts().1);
    }
    fetched
}

/// Removes what stands beside the partial file of a large blob, once that has moved to its place. Until then an
/// interrupted run finds all of it again.
pub fn forget(layout: &crate::cache::layout::Layout, blob: &BlobId) {
    for extension in ["parts", "lock"] {
        let _ = std::fs::remove_file(layout.partial(blob).with_extension(extension));
    }
}

/// Bytes of this blob that an earlier run has left, which need no space any more: of a large one, since small ones are
/// fetched anew.
pub fn already_there(layout: &crate::cache::layout::Layout, blob: &BlobId, size: u64) -> u64 {
    if size <= SINGLE_GET {
        return 0;
    }
    std::fs::symlink_metadata(layout.partial(blob)).map_or(0, |meta| platform::allocated(&meta))
}

/// A file on its way in.
#[derive(Clone)]
struct Target {
    path: PathBuf,
    file: Arc<File>,
    /// Set once the file system has refused to write somewhere else than at the end, or to read what was written.
    in_order_only: Arc<AtomicBool>,
}

impl Target {
    /// A file that is not there yet.
    fn create(context: &Context, path: PathBuf) -> Result<Self> {
        let file = with_folder(context.layout.root(), &path, "cannot write", || {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            // Some file systems open for one of the two only.
            options.clone().read(true).open(&path).or_else(|error| match is_refused(&error) {
                true => options.open(&path),
                false => Err(error),
            })
        })?;
        Ok(Target { path, file: Arc::new(file), in_order_only: Arc::default() })
    }

    /// A file that may be there. What is no file there, or cannot be opened, belongs to nobody who needs it: it makes way.
    fn resume(context: &Context, path: PathBuf) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        platform::set_flags(&mut options, platform::NO_FOLLOW | platform::NO_WAIT);
        let file = with_folder(context.layout.root(), &path, "cannot write", || {
            let opened = options.open(&path);
            match opened {
                Ok(file) if file.metadata()?.is_file() => Ok(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
                Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(error),
                opened => {
                    // Of a folder only an empty one: nothing of ours is in it.
                    let removed = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
                    match (removed, opened) {
                        (Ok(()), _) => options.open(&path),
                        (Err(_), Err(error)) => Err(error),
                        (Err(error), Ok(_)) => Err(error),
                    }
                }
            }
        })?;
        Ok(Target { path, file: Arc::new(file), in_order_only: Arc::default() })
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        platform::write_all_at(&self.file, bytes, offset).map_err(|e| self.failed("cannot write", &e))
    }

    /// Writes after what was written before.
    fn append(&self, bytes: &[u8]) -> Result<()> {
        (&*self.file).write_all(bytes).map_err(|e| Error::io("cannot write", &self.path, &e))
    }

    fn failed(&self, what: &str, error: &io::Error) -> Error {
        if is_refused(error) {
            self.in_order_only.store(true, Ordering::Relaxed);
        }
        Error::io(what, &self.path, error)
    }
}

/// Fetches the bytes from `from` to `to`, taking up a broken body where it ended. `each` gets every chunk with its
/// offset.
async fn range(
    context: &Context,
    blob: &Fetch,
    (from, to): (u64, u64),
    mut each: impl FnMut(&Bytes, u64) -> Result<()>,
) -> Result<()> {
    let mut at = from;
    let mut etag: Option<String> = None;
    let mut broken = 0;
    loop {
        let whole = (at, to) == (0, blob.size);
        let wanted = (!whole).then_some((at, to));
        let mut download = match blob.source.open(blob, wanted, etag.as_deref()).await {
            Ok(download) => download,
            // Replaced meanwhile, by the same bytes for all we know: the hash will tell.
            Err(failure) if failure.cause == Cause::Changed && etag.is_some() => {
                etag = None;
                continue;
            }
            Err(failure) if failure.detail.starts_with("InvalidRange") || failure.detail == "HTTP status 416" => {
                return Err(blob.source.too_short(blob));
            }
            Err(failure) => return Err(blob.source.explain(blob, failure)),
        };
        if let Some(size) = download.object_size().filter(|size| *size != blob.size) {
            return Err(blob.source.wrong_size(blob, size));
        }
        etag = download.take_etag();
        let started = at;
        let failure = loop {
            match download.next().await {
                Ok(Some(chunk)) if at + chunk.len() as u64 > to => {
                    return Err(blob.source.wrong_size(blob, at + chunk.len() as u64));
                }
                Ok(Some(chunk)) => {
                    each(&chunk, at)?;
                    at += chunk.len() as u64;
                    context.limits.rate.wait(chunk.len() as u64).await;
                }
                Ok(None) if at == to => return Ok(()),
                Ok(None) => break Failure::new(Cause::Broken, "the download ended early"),
                Err(failure) => break failure,
            }
        };
        if at == to {
            return Ok(());
        }
        broken = if at > started { 1 } else { broken + 1 };
        let Some(pause) = Try::Body.again(failure.cause, broken, None, fastrand::f64()) else {
            return Err(blob.source.explain(blob, failure));
        };
        tracing::debug!(blob = %blob.id, offset = at, "a download broke off and is taken up again");
        tokio::time::sleep(pause).await;
    }
}

/// Fetches all of a blob into an empty file, in order; returns what its bytes hash to.
async fn append_all(context: &Context, blob: &Fetch, target: &Target, meter: &mut Meter) -> Result<BlobId> {
    let mut hasher = BlobHasher::like(&blob.id, blob.size);
    if blob.size > 0 {
        range(context, blob, (0, blob.size), |chunk, _| {
            hasher.update(chunk);
            target.append(chunk)?;
            meter.add(chunk.len() as u64);
            Ok(())
        })
        .await?;
    }
    Ok(hasher.finish())
}

/// Fetches a small blob. Bytes that are not what they should be are fetched once more: they may have been damaged on
/// the way. When the same ones come again, they were not.
async fn whole(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    let mut before = None;
    for _ in 0..Try::Blob.most(Cause::Damaged) {
        let found = match whole_once(context, blob).await? {
            Ok(path) => return Ok(path),
            Err(found) => found,
        };
        if before == Some(found) {
            return Err(blob.source.wrong_hash(blob, &found));
        }
        tracing::debug!(blob = %blob.id, %found, "wrong bytes came");
        before = Some(found);
    }
    Err(blob.source.damaged(blob))
}

/// The file, or what its bytes hash to when that is wrong.
async fn whole_once(context: &Context, blob: &Fetch) -> Result<Result<PathBuf, BlobId>> {
    let mut permit = context.limits.objects.permit(blob.size).await;
    let target = Target::create(context, nameless(context, blob))?;
    let remove = RemoveOnDrop(Some(target.path.clone()));
    let mut meter = Meter::new(&context.progress, blob.id);
    let found = append_all(context, blob, &target, &mut meter).await?;
    permit.moved(blob.size);
    // The connection goes back to the pool when its own task has its turn. Who gets the permit shall find it there.
    tokio::task::yield_now().await;
    drop(permit);
    if found != blob.id {
        return Ok(Err(found));
    }
    meter.keep();
    if context.sync {
        let synced = flushed(context.flushes.flush(target.file).await);
        synced.map_err(|e| Error::io("cannot flush", &target.path, &e))?;
    }
    Ok(Ok(remove.keep()))
}

/// A partial file of one run, which nobody can take up again.
fn nameless(context: &Context, blob: &Fetch) -> PathBuf {
    let name = format!("{}.{:08x}.small", blob.id, fastrand::u32(..));
    context.layout.partial(&blob.id).with_file_name(name)
}

/// Fetches a large blob where the file system takes bytes only one after the other.
async fn in_order(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        let folder = context.layout.root().display();
        let note =
            format!("the file system of {folder} takes bytes only in order: large files come in one stream each");
        context.progress.event(Event::Note(note));
    });
    let _permit = context.limits.parts.permit(blob.size).await;
    let target = Target::create(context, nameless(context, blob))?;
    let remove = RemoveOnDrop(Some(target.path.clone()));
    let mut meter = Meter::new(&context.progress, blob.id);
    let found = append_all(context, blob, &target, &mut meter).await?;
    if found != blob.id {
        return Err(blob.source.wrong_hash(blob, &found));
    }
    let (id, size, sync) = (blob.id, blob.size, context.sync);
    let Target { path, file, .. } = target;
    // Such a file system may tell nobody that it could not keep what it has taken.
    let kept = blocking(move || {
        let synced = if sync { flushed(file.sync_all()) } else { Ok(()) };
        drop(file);
        synced.map(|()| matches_name(&path, &id, size))
    });
    let file = remove.path();
    match kept.await {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::failed(format!("cannot keep blob {} ({})", blob.id, blob.label()))
                .because(format!(
                    "the file system does not give back the bytes that were written to {}",
                    file.display()
                ))
                .hint("use another cache directory: --cache-dir, or HF_HUB_CACHE"));
        }
        Err(error) => return Err(Error::io("cannot flush", file, &error)),
    }
    meter.keep();
    Ok(remove.keep())
}

/// Removes a file unless it is kept.
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    fn keep(mut self) -> PathBuf {
        self.0.take().expect("kept once")
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Which units of a partial file are there: a header with the sizes, then one byte a unit, written after its data. A
/// request is for one of them, or for some neighbours.
struct Journal {
    path: PathBuf,
    file: Arc<File>,
    /// Of the partial file, in bytes.
    size: u64,
    /// In bytes.
    unit: u64,
    done: Vec<bool>,
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

    /// Opens the journal beside `data`, whatever its unit; one of another size, or without its data, begins anew with
    /// this `unit`.
    fn open(context: &Context, data: &Target, size: u64, unit: u64) -> Result<Self> {
        let Target { path, file, .. } = Target::resume(context, data.path.with_extension("parts"))?;
        let failed = |e: io::Error| data.failed("cannot write", &e);
        let data_size = data.file.metadata().map_err(failed)?.len();
        let earlier = if data_size == size { Self::read(&file, size) } else { None };
        let (unit, done) = match earlier {
            Some(earlier) => earlier,
            None => {
                let done = vec![false; size.div_ceil(unit) as usize];
                let mut content = Self::header(size, unit).to_vec();
                content.resize(content.len() + done.len(), 0);
                file.set_len(0).map_err(failed)?;
                platform::write_all_at(&file, &content, 0).map_err(failed)?;
                platform::preallocate(&data.file, size).map_err(failed)?;
                (unit, done)
            }
        };
        Ok(Journal { path, file, size, unit, done })
    }

    /// What an earlier run has noted of a blob of this size: the unit, and which are there.
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

    /// The bytes of neighbouring units, from and to (exclusive).
    fn bounds(&self, units: &Range<usize>) -> (u64, u64) {
        (units.start as u64 * self.unit, (units.end as u64 * self.unit).min(self.size))
    }

    fn mark(&mut self, part: usize, done: bool) -> io::Result<()> {
        self.done[part] = done;
        platform::write_all_at(&self.file, &[u8::from(done)], Self::HEADER + part as u64)
    }
}

/// Of bytes that turn out to be wrong those of an earlier run are suspected first, then all of them. They are fetched
/// again and compared with what came before: a part that comes twice as the same bytes was not damaged on the way, and is
/// not fetched again. When that is so of all parts, the object itself is wrong.
async fn in_parts(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    let mut proven = Vec::new();
    let mut tried = 0;
    loop {
        let target = Target::resume(context, context.layout.partial(&blob.id))?;
        let discard = || {
            let _ = std::fs::remove_file(target.path.with_extension("parts"));
            let _ = std::fs::remove_file(&target.path);
        };
        let unit = parts::unit(blob.source.range(context, blob.size));
        let mut journal = match Journal::open(context, &target, blob.size, unit) {
            Ok(journal) => journal,
            Err(_) if target.in_order_only.load(Ordering::Relaxed) => {
                discard();
                return in_order(context, blob).await;
            }
            Err(error) => return Err(error),
        };
        let earlier = journal.done.clone();
        proven.resize(earlier.len(), false);
        match fetch_parts(context, blob, &target, &mut journal, tried > 0).await {
            Ok((found, _)) if found == blob.id => {
                let (file, sync) = (target.file.clone(), context.sync);
                let synced = if sync { blocking(move || flushed(file.sync_all())).await } else { Ok(()) };
                return synced.map_err(|e| Error::io("cannot flush", &target.path, &e)).map(|()| target.path);
            }
            Ok((found, same)) => {
                context.restarted(blob.id);
                tried += 1;
                same.iter().for_each(|part| proven[*part] = true);
                let only_earlier = tried == 1 && earlier.contains(&true);
                let suspects = (0..proven.len()).filter(|part| !proven[*part] && (!only_earlier || earlier[*part]));
                let suspects: Vec<usize> = suspects.collect();
                tracing::debug!(blob = %blob.id, %found, only_earlier, parts = suspects.len(), "wrong bytes came");
                if suspects.is_empty() {
                    discard();
                    return Err(blob.source.wrong_hash(blob, &found));
                }
                for part in suspects {
                    let marked = journal.mark(part, false);
                    marked.map_err(|e| Error::io("cannot write", &journal.path, &e))?;
                }
                if tried >= Try::Parts.most(Cause::Damaged) {
                    return Err(blob.source.damaged(blob));
                }
            }
            Err(_) if target.in_order_only.load(Ordering::Relaxed) => {
                discard();
                return in_order(context, blob).await;
            }
            Err(error) => {
                // What was finished may be right all the same. Where there is nothing, no room is kept for it.
                if error.cause == Cause::WrongSize && !journal.done.contains(&true) {
                    discard();
                }
                return Err(error);
            }
        }
    }
}

/// Fetches what is not there yet. Returns what all of it hashes to, and, where it comes `again`, the parts that are the
/// same bytes as before.
async fn fetch_parts(
    context: &Context,
    blob: &Fetch,
    target: &Target,
    journal: &mut Journal,
    again: bool,
) -> Result<(BlobId, Vec<usize>)> {
    let done = journal.done.iter().copied();
    let hashing = Hashing::new(&context.hashes, blob.id, blob.size, &target.file, journal.unit, done);
    for part in (0..journal.done.len()).filter(|part| journal.done[*part]) {
        let (from, to) = journal.bounds(&(part..part + 1));
        context.found(blob.id, to - from);
    }
    let range_size = blob.source.range(context, blob.size);
    let mut missing = runs(&journal.done, (range_size / journal.unit).max(1) as usize).into_iter();
    let mut next = missing.next();
    let mut running: JoinSet<Result<(Range<usize>, Vec<usize>)>> = JoinSet::new();
    let mut same = Vec::new();
    let mut flusher = Flusher { target: target.clone(), sync: context.sync, unflushed: 0, running: None };
    while next.is_some() || !running.is_empty() {
        let streams = context.limits.parts.streams();
        let behind = hashing.is_behind(streams);
        tokio::select! {
            permit = context.limits.parts.permit(range_size), if next.is_some() && running.len() < streams && !behind => {
                let parts = next.expect("checked by the branch");
                next = missing.next();
                let (context, blob, target, hashing) = (context.clone(), blob.clone(), target.clone(), hashing.clone());
                let ((from, to), unit) = (journal.bounds(&parts), journal.unit);
                running.spawn(async move {
                    let mut permit = permit;
                    let mut meter = Meter::new(&context.progress, blob.id);
                    let mut compared = again.then(|| Compared::new(&target.file, unit));
                    range(&context, &blob, (from, to), |chunk, offset| {
                        if let Some(compared) = &mut compared {
                            compared.with(chunk, offset);
                        }
                        target.write(chunk, offset)?;
                        hashing.moved(offset, offset + chunk.len() as u64);
                        meter.add(chunk.len() as u64);
                        Ok(())
                    })
                    .await?;
                    meter.keep();
                    permit.moved(to - from);
                    let same = compared.map_or(Vec::new(), |compared| compared.same(&parts));
                    Ok((parts, same))
                });
            }
            () = hashing.advanced(), if next.is_some() && behind => {}
            Some(done) = running.join_next() => {
                let (parts, unchanged) = match done {
                    Ok(parts) => parts?,
                    Err(failed) => std::panic::resume_unwind(failed.into_panic()),
                };
                let (from, to) = journal.bounds(&parts);
                same.extend(unchanged);
                let marked = parts.into_iter().try_for_each(|part| journal.mark(part, true));
                marked.map_err(|e| target.failed("cannot write", &e))?;
                flusher.written(to - from).await?;
            }
        }
    }
    let found = blocking(move || hashing.finish()).await;
    flusher.end().await?;
    found.map(|found| (found, same)).map_err(|error| target.failed("cannot read back", &error))
}

/// Bytes that come again, compared with those that are in the file.
struct Compared {
    file: Arc<File>,
    /// Size of the parts.
    unit: u64,
    there: Vec<u8>,
    changed: Vec<usize>,
}

impl Compared {
    fn new(file: &Arc<File>, unit: u64) -> Self {
        Compared { file: file.clone(), unit, there: Vec::new(), changed: Vec::new() }
    }

    fn with(&mut self, chunk: &[u8], offset: u64) {
        self.there.resize(chunk.len(), 0);
        let is_read = platform::read_exact_at(&self.file, &mut self.there, offset).is_ok();
        let mut at = 0;
        while at < chunk.len() {
            let part = (offset + at as u64) / self.unit;
            let end = chunk.len().min(((part + 1) * self.unit - offset) as usize);
            if !is_read || self.there[at..end] != chunk[at..end] {
                self.changed.push(part as usize);
            }
            at = end;
        }
    }

    /// Those of the parts that have not changed.
    fn same(&self, parts: &Range<usize>) -> Vec<usize> {
        parts.clone().filter(|part| !self.changed.contains(part)).collect()
    }
}

/// Lets the disk work while a large blob still comes.
struct Flusher {
    target: Target,
    sync: bool,
    unflushed: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    /// More bytes are in the file.
    async fn written(&mut self, bytes: u64) -> Result<()> {
        self.unflushed += bytes;
        if self.sync && self.unflushed >= FLUSH && self.running.as_ref().is_none_or(JoinHandle::is_finished) {
            self.end().await?;
            self.unflushed = 0;
            let file = self.target.file.clone();
            self.running = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    /// Waits for what was begun. Its failure counts: the system tells it only once.
    async fn end(&mut self) -> Result<()> {
        let flushed = match self.running.take() {
            Some(running) => flushed(running.await.unwrap_or_else(|failed| Err(io::Error::other(failed)))),
            None => Ok(()),
        };
        flushed.map_err(|e| Error::io("cannot flush", &self.target.path, &e))
    }
}

/// Runs of up to `most` neighbouring parts that are not there yet.
fn runs(done: &[bool], most: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for part in (0..done.len()).filter(|part| !done[*part]) {
        match runs.last_mut() {
            Some(run) if run.end == part && run.len() < most => run.end += 1,
            _ => runs.push(part..part + 1),
        }
    }
    runs
}
