//! Downloads a blob into a partial file of our own, which is complete only after its hash has matched.
//!
//! Up to [`SINGLE_GET`], a blob is one request. A larger one is fetched in parallel ranges, and each chunk is written to its
//! offset in `partial/<etag>`; a journal beside it notes which parts have arrived, so that an interrupted download
//! resumes. The hash keeps up with the parts (`hashing.rs`), so that it is known soon after the last one. The caller
//! holds the blob's locks and moves the file into place.
//!
//! Damaged leftovers of an earlier run are fetched again in the same run. On a file system that takes bytes only in order,
//! even a large blob is fetched in one request, and read back.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Once};

use bytes::Bytes;

use super::Context;
use super::arrival::Arrival;
use super::hashing::OrderedHash;
use super::move_parts::move_parts;
use super::partial_file::{Comparison, Flusher, Journal, PartialFile, RemoveOnDrop, single_use_path};
use super::parts::{self, SINGLE_GET};
pub use super::source::Fetch;
use super::source::Source;
use crate::cache::inside;
use crate::cache::place::{self, flushed};
use crate::cache::read::matches_name;
use crate::error::{Cause, Error, Failure, Result};
use crate::hash::BlobHasher;
use crate::model::ids::BlobId;
use crate::platform;
use crate::progress::{Event, Meter};
use crate::retry::{Try, is_progress};
use crate::task::blocking;

/// No store has larger objects. Space is allocated by the size in the manifest, which is not trusted beyond this.
const MAX_SIZE: u64 = 1 << 47;

/// Downloads a blob, and returns the path of the file with the verified and flushed bytes. Once it has been moved into
/// place, [`forget`] the rest.
///
/// # Errors
/// [`Cause::NoSuchKey`] if the bucket does not have it, [`Cause::WrongSize`] and [`Cause::Corrupt`] if the bucket has
/// something else, [`Cause::Damaged`] if its bytes are damaged on the way again and again.
pub async fn download(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    if blob.size > MAX_SIZE {
        return Err(Error::invalid(format!("blob {} ({}) cannot be that large", blob.id, blob.label()))
            .because(format!("the manifest says {} bytes", blob.size)));
    }
    context.progress.event(Event::Started { blob: blob.id, name: blob.label(), size: blob.size });
    let downloaded = match blob.size {
        0..=SINGLE_GET => in_one_request(context, blob).await,
        // Boxed, so that the futures of small blobs stay small.
        _ => Box::pin(in_parts(context, blob)).await,
    };
    context.progress.event(Event::Finished { blob: blob.id });
    if let Source::Bucket(bucket) = &blob.source {
        context.limits.report_push_backs(bucket.counts().1);
    }
    downloaded
}

/// Removes what is beside the partial file of a large blob, once that has been moved into place. Until then, an
/// interrupted run can resume.
pub fn forget(layout: &crate::cache::layout::Layout, blob: &BlobId) {
    for extension in ["parts", "lock"] {
        let _ = inside::remove_file(layout.root(), &layout.partial(blob).with_extension(extension));
    }
}

/// Returns the bytes already allocated for this blob by an earlier run, which need no more space. Small blobs are
/// always downloaded from the start.
pub fn allocated_bytes(layout: &crate::cache::layout::Layout, blob: &BlobId, size: u64) -> u64 {
    if size <= SINGLE_GET {
        return 0;
    }
    std::fs::symlink_metadata(layout.partial(blob)).map_or(0, |meta| platform::allocated(&meta))
}

/// Fetches a range of bytes, and goes on where a body has broken off. `each` gets every chunk with its offset.
pub(super) async fn fetch_range(
    context: &Context,
    blob: &Fetch,
    range: Range<u64>,
    mut each: impl FnMut(&Bytes, u64) -> Result<()>,
) -> Result<()> {
    let (mut at, to) = (range.start, range.end);
    let mut etag: Option<String> = None;
    let mut broken = 0;
    loop {
        let is_whole = (at, to) == (0, blob.size);
        let wanted = (!is_whole).then_some((at, to));
        let mut download = match blob.source.open(blob, wanted, etag.as_deref()).await {
            Ok(download) => download,
            // The object was replaced, probably with the same bytes, which the hash will show.
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
        broken = if is_progress(at - started, to - range.start) { 1 } else { broken + 1 };
        let Some(pause) = Try::Body.pause(failure.cause, broken, None, fastrand::f64()) else {
            return Err(blob.source.explain(blob, failure));
        };
        tracing::debug!(blob = %blob.id, offset = at, "a download broke off and is resumed");
        tokio::time::sleep(pause).await;
    }
}

/// Fetches the whole blob in order into an empty file, and returns the name of the bytes that came.
async fn append_all(context: &Context, blob: &Fetch, target: &PartialFile, meter: &mut Meter) -> Result<BlobId> {
    let mut hasher = BlobHasher::like(&blob.id, blob.size);
    if blob.size > 0 {
        fetch_range(context, blob, 0..blob.size, |chunk, _| {
            hasher.update(chunk);
            target.append(chunk)?;
            meter.add(chunk.len() as u64);
            Ok(())
        })
        .await?;
    }
    Ok(hasher.finish())
}

/// Fetches a small blob. Wrong bytes are fetched once more, since they may have been damaged on the way. If the same ones
/// come again, they were not.
async fn in_one_request(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    let mut before = None;
    for _ in 0..Try::Blob.max_attempts(Cause::Damaged) {
        let found = match try_in_one_request(context, blob).await? {
            Ok(path) => return Ok(path),
            Err(found) => found,
        };
        if before == Some(found) {
            return Err(blob.source.wrong_hash(blob, &found));
        }
        tracing::debug!(blob = %blob.id, %found, "wrong bytes arrived");
        before = Some(found);
    }
    Err(blob.source.damaged(blob))
}

/// Returns the path of the file, or the name of its bytes if it is not the blob's.
async fn try_in_one_request(context: &Context, blob: &Fetch) -> Result<Result<PathBuf, BlobId>> {
    let mut permit = context.limits.objects.permit(blob.size).await;
    let target = PartialFile::create(context, single_use_path(context, &blob.id))?;
    let guard = RemoveOnDrop::new(&target);
    let mut meter = Meter::new(&context.progress, blob.id);
    let found = append_all(context, blob, &target, &mut meter).await?;
    permit.count(blob.size);
    // The connection returns to the pool when its own task has its turn, and the next holder of the permit should find
    // it there.
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
    Ok(Ok(guard.keep()))
}

/// Fetches a large blob in one request, since the file system takes bytes only in order.
async fn in_order(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    static REPORTED: Once = Once::new();
    REPORTED.call_once(|| {
        let folder = context.layout.root().display();
        let note =
            format!("the file system of {folder} takes bytes only in order: large files come in one stream each");
        context.progress.event(Event::Note(note));
    });
    // The file that others read from was given up.
    if let Some(arrival) = arrival_of(context, &blob.id) {
        arrival.retract();
    }
    let _permit = context.limits.parts.permit(blob.size).await;
    let target = PartialFile::create(context, single_use_path(context, &blob.id))?;
    let guard = RemoveOnDrop::new(&target);
    let mut meter = Meter::new(&context.progress, blob.id);
    let found = append_all(context, blob, &target, &mut meter).await?;
    if found != blob.id {
        return Err(blob.source.wrong_hash(blob, &found));
    }
    let (id, size, sync) = (blob.id, blob.size, context.sync);
    let PartialFile { path, file, .. } = target;
    // Such a file system may lose what it has accepted without reporting it.
    let verified = blocking(move || {
        let synced = if sync { flushed(file.sync_all()) } else { Ok(()) };
        drop(file);
        synced.map(|()| matches_name(&path, &id, size))
    });
    let path = guard.path();
    match verified.await {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::failed(format!("cannot keep blob {} ({})", blob.id, blob.label()))
                .because(format!(
                    "the file system does not give back the bytes that were written to {}",
                    path.display()
                ))
                .hint("use another cache directory: --cache-dir, or HF_HUB_CACHE"));
        }
        Err(error) => return Err(Error::io("cannot flush", path, &error)),
    }
    meter.keep();
    Ok(guard.keep())
}

/// Fetches a large blob in parallel ranges. If its bytes turn out to be wrong, those of an earlier run are fetched again
/// first, then all. What comes again is compared with what came before: a unit that comes twice as the same bytes was not
/// damaged on the way and is not fetched again. If that holds for all units, the object itself is wrong.
async fn in_parts(context: &Context, blob: &Fetch) -> Result<PathBuf> {
    let mut confirmed = Vec::new();
    let mut attempts = 0;
    loop {
        let target = PartialFile::resume(context, context.layout.partial(&blob.id))?;
        let unit = parts::unit(blob.source.range(context, blob.size));
        let mut journal = match Journal::open(context, &target, blob.size, unit) {
            Ok(journal) => journal,
            Err(_) if target.is_append_only() => {
                target.discard();
                return in_order(context, blob).await;
            }
            Err(error) => return Err(error),
        };
        let earlier = journal.done.clone();
        confirmed.resize(earlier.len(), false);
        match fetch_missing(context, blob, &target, &mut journal, attempts > 0).await {
            Ok((found, _)) if found == blob.id => {
                let (file, sync) = (target.file.clone(), context.sync);
                let synced = if sync { blocking(move || flushed(file.sync_all())).await } else { Ok(()) };
                return synced.map_err(|e| Error::io("cannot flush", &target.path, &e)).map(|()| target.path);
            }
            Ok((found, unchanged)) => {
                context.report_restarted(blob.id);
                if let Some(arrival) = arrival_of(context, &blob.id) {
                    arrival.retract();
                }
                attempts += 1;
                unchanged.iter().for_each(|unit| confirmed[*unit] = true);
                let only_earlier = attempts == 1 && earlier.contains(&true);
                let is_suspect = |unit: &usize| !confirmed[*unit] && (!only_earlier || earlier[*unit]);
                let suspects: Vec<usize> = (0..confirmed.len()).filter(is_suspect).collect();
                tracing::debug!(blob = %blob.id, %found, only_earlier, units = suspects.len(), "wrong bytes arrived");
                if suspects.is_empty() {
                    target.discard();
                    return Err(blob.source.wrong_hash(blob, &found));
                }
                suspects.into_iter().try_for_each(|unit| journal.mark_missing(unit))?;
                if attempts >= Try::Parts.max_attempts(Cause::Damaged) {
                    return Err(blob.source.damaged(blob));
                }
            }
            Err(_) if target.is_append_only() => {
                target.discard();
                return in_order(context, blob).await;
            }
            Err(error) => {
                // The received bytes may still be right. If there are none, no space stays allocated.
                if error.cause == Cause::WrongSize && !journal.done.contains(&true) {
                    target.discard();
                }
                return Err(error);
            }
        }
    }
}

/// Returns the arrival of a blob that others read meanwhile.
fn arrival_of(context: &Context, blob: &BlobId) -> Option<Arc<Arrival>> {
    context.arrivals.as_ref().and_then(|arrivals| arrivals.get(blob))
}

/// Fetches the missing units. Returns the name of the bytes in the file and, if they are fetched `again`, the units that
/// came unchanged.
async fn fetch_missing(
    context: &Context,
    blob: &Fetch,
    target: &PartialFile,
    journal: &mut Journal,
    again: bool,
) -> Result<(BlobId, Vec<usize>)> {
    let done = journal.done.iter().copied();
    let hash = OrderedHash::new(&context.hash_pool, blob.id, blob.size, &target.file, journal.unit, done);
    if let Some(arrival) = arrival_of(context, &blob.id) {
        // Before anybody can read.
        place::mark_unverified(&context.layout, &blob.id)?;
        arrival.offer(&target.file);
        hash.report_to(arrival);
    }
    for unit in (0..journal.done.len()).filter(|unit| journal.done[*unit]) {
        let bytes = journal.bytes_of(unit);
        context.report_found(blob.id, bytes.end - bytes.start);
    }
    let ranges = journal.missing(blob.source.range(context, blob.size));
    let unit = journal.unit;
    let mut moving = move_parts(&context.limits, &hash, ranges, |range| {
        let (context, blob, target, hash) = (context.clone(), blob.clone(), target.clone(), hash.clone());
        async move {
            let mut meter = Meter::new(&context.progress, blob.id);
            let mut comparison = again.then(|| Comparison::new(&target.file, unit));
            fetch_range(&context, &blob, range.clone(), |chunk, offset| {
                if let Some(comparison) = &mut comparison {
                    comparison.compare(chunk, offset);
                }
                target.write(chunk, offset)?;
                hash.advance(chunk, offset);
                meter.add(chunk.len() as u64);
                Ok(())
            })
            .await?;
            meter.keep();
            let unchanged = comparison.map_or(Vec::new(), |comparison| comparison.unchanged(&range));
            Ok::<_, Error>((range, unchanged))
        }
    });
    let mut unchanged = Vec::new();
    let mut flusher = Flusher::new(target, context.sync);
    while let Some(moved) = moving.next().await {
        let (range, came_again) = moved?;
        unchanged.extend(came_again);
        journal.mark_done(&range).map_err(|e| target.explain("cannot write", &e))?;
        flusher.wrote(range.end - range.start).await?;
    }
    drop(moving);
    let found = blocking(move || hash.finish()).await;
    flusher.finish().await?;
    found.map(|found| (found, unchanged)).map_err(|error| target.explain("cannot read back", &error))
}
