//! Sending a blob: verified against its name while it is read, and never published when it does not match.
//!
//! Up to `IN_MEMORY` bytes: read, hashed, sent. Up to [`SINGLE_PUT`]: streamed from the file and hashed on the way;
//! the last slice is held back until the hash matched, so that the store never gets a complete wrong object.
//! Larger: parallel parts, with the file hashed beside (`hashing.rs`), and the object completed only when the hash
//! matched and the file was not changed meanwhile. The parts of an interrupted upload are found again through a small
//! record in our own state folder. Whatever has become of that upload in the store: it costs one fresh start at most.

use std::fs::{File, Metadata};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::SystemTime;

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body::{Body, Frame, SizeHint};
use md5::Digest;
use tokio::task::JoinSet;

use super::hashing::Hashing;
use super::parts::SINGLE_PUT;
use super::rate::Pace;
use super::{Context, parts};
use crate::bucket::client::{Part, Pulse};
use crate::bucket::error::{Cause, Failure};
use crate::bucket::keys;
use crate::cache::read::{open_quietly, read_at, read_small};
use crate::error::{Error, Result};
use crate::hash::{BlobHasher, blob_id_of};
use crate::model::ids::BlobId;
use crate::progress::{Event, Meter};
use crate::task::blocking;

/// Blobs up to this size are sent from memory.
const IN_MEMORY: u64 = 256 << 10;
/// Largest record of an upload, in bytes.
const MAX_RECORD: u64 = 64 << 10;
/// Bytes read from a file at a time.
const SLICE: u64 = 256 << 10;

/// A blob to send.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Its name.
    pub id: BlobId,
    /// Its size in bytes, as scanned.
    pub size: u64,
    /// Where its bytes are.
    pub source: std::path::PathBuf,
    /// A file name for people.
    pub label: String,
}

/// Sends one blob. The caller holds the lock on the upload of a large one.
///
/// # Errors
/// [`Cause::Corrupt`] when the bytes do not match the name: nothing is published then.
pub async fn upload(context: &Context, blob: &Upload) -> Result<()> {
    context.progress.event(Event::Started { blob: blob.id, name: blob.label.clone(), size: blob.size });
    let sent = if blob.size <= IN_MEMORY {
        from_memory(context, blob).await
    } else if blob.size <= SINGLE_PUT {
        streamed(context, blob).await
    } else {
        // In a box, so that small blobs do not carry it along.
        Box::pin(in_parts(context, blob)).await
    };
    context.progress.event(Event::Finished { blob: blob.id });
    let (_, pushed_back) = context.bucket.counts();
    context.limits.pushed_back(pushed_back);
    sent
}

fn doing(blob: &Upload) -> String {
    format!("cannot push blob {} ({})", blob.id, blob.label)
}

fn wrong_bytes(blob: &Upload, found: &BlobId) -> Error {
    Error::corrupt(format!("blob {} ({}) is corrupt in this cache and was not pushed", blob.id, blob.label))
        .because(format!("its bytes hash to {found}"))
        .hint(format!("delete {} and download it again", blob.source.display()))
}

fn unreadable(blob: &Upload, error: &std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Error::corrupt(format!("blob {} ({}) became shorter while it was read", blob.id, blob.label));
    }
    Error::io("cannot read", &blob.source, error)
}

async fn from_memory(context: &Context, blob: &Upload) -> Result<()> {
    let mut permit = context.limits.objects.permit(blob.size).await;
    let task = blob.clone();
    let bytes: Bytes = blocking(move || -> Result<Bytes> {
        let file = open_quietly(&task.source).map_err(|e| unreadable(&task, &e))?;
        let bytes = read_at(&file, task.size as usize, 0).map_err(|e| unreadable(&task, &e))?;
        match blob_id_of(&task.id, &bytes) {
            found if found == task.id => Ok(bytes),
            found => Err(wrong_bytes(&task, &found)),
        }
    })
    .await?;
    context.limits.rate.wait(blob.size).await;
    let sent =
        context.bucket.put(&keys::blob(&blob.id), blob.size, Some(&blob.id), &|_| SdkBody::from(bytes.clone())).await;
    sent.map_err(|failure| context.bucket.explain(failure, &doing(blob)))?;
    permit.moved(blob.size);
    context.progress.event(Event::Moved { blob: blob.id, bytes: blob.size });
    Ok(())
}

async fn streamed(context: &Context, blob: &Upload) -> Result<()> {
    let mut permit = context.limits.objects.permit(blob.size).await;
    let file = Arc::new(open_quietly(&blob.source).map_err(|e| unreadable(blob, &e))?);
    let local_error: Slot = Arc::default();
    let body = |pulse: &Pulse| {
        let hasher = Some(BlobHasher::like(&blob.id, blob.size));
        FileBody::new(context, blob, &file, 0, blob.size, hasher, pulse, &local_error)
    };
    let sent = context.bucket.put(&keys::blob(&blob.id), blob.size, Some(&blob.id), &body).await;
    if let Some(error) = take(&local_error) {
        return Err(error);
    }
    sent.map_err(|failure| context.bucket.explain(failure, &doing(blob)))?;
    permit.moved(blob.size);
    Ok(())
}

/// Why the parts of a blob did not become an object.
enum Stop {
    /// The local bytes cannot be sent. With the parts that were, nothing can be done any more.
    Local(Error),
    /// The store refused a request.
    Store {
        failure: Failure,
        /// Whether the store took a part, in this run, and so knows the upload.
        alive: bool,
    },
}

impl Stop {
    /// Whether the upload itself is what is wrong, so that a fresh one may go well. One that goes on from an earlier run
    /// is suspected as long as the store has taken nothing for it: stores that have cleaned it up say so in many ways.
    fn spoils(&self, resumed: bool) -> bool {
        let Stop::Store { failure, alive } = self else { return false };
        is_lost(failure) || (resumed && !alive && may_be_lost(failure))
    }
}

/// Whether a store that broke off the connection for every part does so because it refuses this upload: an answer that
/// comes before the body was sent is easily lost, and one to a single byte is not. Its part is none of the object's.
async fn is_refused(context: &Context, record: &Record, stop: &Stop) -> bool {
    let Stop::Store { failure, alive: false } = stop else { return false };
    if !matches!(failure.cause, Cause::Broken | Cause::Unreachable) {
        return false;
    }
    let number = (record.count() + 1).min(context.max_parts) as i32;
    let body = |_: &Pulse| SdkBody::from("?");
    let answer = context.bucket.put_part(&record.key, &record.upload, number, 1, &body).await;
    answer.is_err_and(|failure| is_lost(&failure) || may_be_lost(&failure))
}

/// Whether the store says that an upload, or a part of it, is not there or not as it should be.
fn is_lost(failure: &Failure) -> bool {
    let is =
        |code: &str| failure.detail.strip_prefix(code).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    matches!(failure.cause, Cause::NoSuchUpload | Cause::NoSuchKey)
        || ["InvalidPart", "InvalidPartOrder", "EntityTooSmall"].into_iter().any(is)
}

/// Whether a store may say this of an upload that it has cleaned up. Not what concerns every request, nor what passes;
/// but some stores break on what they do not find.
fn may_be_lost(failure: &Failure) -> bool {
    match failure.cause {
        Cause::Busy => failure.detail.starts_with("InternalError") || failure.detail == "HTTP status 500",
        // A page of whatever stands before the store, too: its own answers to other requests are S3's.
        Cause::NoSuchUpload
        | Cause::NoSuchKey
        | Cause::Denied
        | Cause::Changed
        | Cause::Unsupported
        | Cause::NotS3
        | Cause::Other => true,
        _ => false,
    }
}

async fn in_parts(context: &Context, blob: &Upload) -> Result<()> {
    let file = open_quietly(&blob.source).map_err(|e| unreadable(blob, &e))?;
    let before = file.metadata().map_err(|e| unreadable(blob, &e))?;
    let file = Arc::new(file);
    let fresh = Record::new(context, blob, before.modified().ok());
    let earlier = Record::read(context, blob);
    let mut known = match &earlier {
        Some(earlier) if earlier.continues(&fresh, context.max_parts) => {
            find_parts(context, blob, &file, earlier).await?
        }
        _ => Vec::new(),
    };
    let mut resumed = !known.is_empty();
    let mut record = match earlier {
        Some(earlier) if resumed => earlier,
        earlier => begin(context, blob, &fresh, earlier).await?,
    };
    let mut tried_afresh = false;
    loop {
        let stop = match send_and_finish(context, blob, &file, &before, &record, known).await {
            Ok(()) => break,
            Err(stop) => stop,
        };
        let spoilt = !tried_afresh && (stop.spoils(resumed) || (resumed && is_refused(context, &record, &stop).await));
        match stop {
            stop if spoilt => {
                let Stop::Store { failure, .. } = stop else { unreachable!("only a store's answer spoils an upload") };
                tracing::debug!(blob = %blob.id, reason = %failure.detail, "an upload is begun anew");
                // The old record stays until there is something better.
                record = begin(context, blob, &fresh, Some(record))
                    .await
                    .map_err(|_| context.bucket.explain(failure, &doing(blob)))?;
                context.restarted(blob.id);
                (known, resumed, tried_afresh) = (Vec::new(), false, true);
            }
            Stop::Local(error) => {
                if error.cause == Cause::Corrupt {
                    give_up(context, blob, &record).await;
                }
                return Err(error);
            }
            // What the store has stays there for the next run.
            Stop::Store { failure, .. } => return Err(context.bucket.explain(failure, &doing(blob))),
        }
    }
    let _ = std::fs::remove_file(context.layout.upload(&blob.id));
    Ok(())
}

/// Sends the parts that are missing, and makes the object of all of them if they are what the blob's name says.
async fn send_and_finish(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    before: &Metadata,
    record: &Record,
    known: Vec<Part>,
) -> Result<(), Stop> {
    let (parts, found, alive) = send_parts(context, blob, file, record, known).await?;
    let after = file.metadata().map_err(|e| Stop::Local(unreadable(blob, &e)))?;
    let changed = after.len() != before.len() || after.modified().ok() != before.modified().ok();
    if found != blob.id {
        return Err(Stop::Local(wrong_bytes(blob, &found)));
    }
    if changed {
        let what = format!("blob {} ({}) was changed while it was pushed", blob.id, blob.label);
        return Err(Stop::Local(Error::corrupt(what)));
    }
    let done = context.bucket.finish_parts(&record.key, &record.upload, &parts).await;
    done.map_err(|failure| Stop::Store { failure, alive })
}

async fn give_up(context: &Context, blob: &Upload, record: &Record) {
    context.bucket.abort_parts(&record.key, &record.upload).await;
    let _ = std::fs::remove_file(context.layout.upload(&blob.id));
}

/// Starts an upload and notes it in the place of an earlier one, which is given up where that is in our power. Whatever
/// the state of that one: only a new one that cannot be started is a failure.
async fn begin(context: &Context, blob: &Upload, fresh: &Record, earlier: Option<Record>) -> Result<Record> {
    let started = context.bucket.start_parts(&fresh.key).await;
    let upload = started.map_err(|failure| context.bucket.explain(failure, &doing(blob)))?;
    let record = Record { upload, ..fresh.clone() };
    // Only needed to go on after an interruption: a cache that cannot be written to is pushed all the same.
    let bytes = serde_json::to_vec(&record).expect("plain data");
    let path = context.layout.upload(&blob.id);
    if let Err(error) = crate::cache::place::write_small(&context.layout, &path, &bytes, false) {
        tracing::debug!(%error, "an interrupted upload of this blob will start again");
    }
    if let Some(earlier) = earlier.filter(|earlier| earlier.is_in_the_same_place(fresh) && !earlier.upload.is_empty()) {
        context.bucket.abort_parts(&earlier.key, &earlier.upload).await;
    }
    Ok(record)
}

/// What is needed to go on with an interrupted multipart upload.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Record {
    bucket: String,
    endpoint: String,
    prefix: String,
    key: String,
    upload: String,
    size: u64,
    part_size: u64,
    /// Of the source file: other bytes since then make the parts useless.
    modified: Option<SystemTime>,
}

impl Record {
    /// Of an upload that is not begun.
    fn new(context: &Context, blob: &Upload, modified: Option<SystemTime>) -> Record {
        Record {
            bucket: context.bucket.name().to_string(),
            endpoint: context.bucket.place().url.to_string(),
            prefix: context.bucket.prefix().to_string(),
            key: keys::blob(&blob.id),
            upload: String::new(),
            size: blob.size,
            part_size: context.cut().part(blob.size, context.max_parts),
            modified,
        }
    }

    /// What an earlier run has noted; one that cannot be read is none.
    fn read(context: &Context, blob: &Upload) -> Option<Record> {
        let path = context.layout.upload(&blob.id);
        if !std::fs::symlink_metadata(&path).ok()?.is_file() {
            return None;
        }
        let bytes = read_small(&path, MAX_RECORD).ok().flatten()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Whether the parts of this upload are parts of what that one, which is not begun, is to send; of whatever size.
    fn continues(&self, fresh: &Record, max_parts: u64) -> bool {
        let same = Record { upload: String::new(), part_size: fresh.part_size, ..self.clone() } == *fresh;
        same && !self.upload.is_empty() && parts::is_possible(self.part_size, self.size, max_parts)
    }

    fn is_in_the_same_place(&self, other: &Record) -> bool {
        (&self.bucket, &self.endpoint, &self.prefix, &self.key)
            == (&other.bucket, &other.endpoint, &other.prefix, &other.key)
    }

    /// Parts in all.
    fn count(&self) -> u64 {
        self.size.div_ceil(self.part_size)
    }

    /// Size of a part, whose number is from 1 on.
    fn length(&self, number: u64) -> u64 {
        self.part_size.min(self.size - (number - 1) * self.part_size)
    }

    /// Whether a part can be one of this upload.
    fn fits(&self, part: &Part) -> bool {
        let number = u64::try_from(part.number).unwrap_or_default();
        (1..=self.count()).contains(&number) && part.size == self.length(number)
    }
}

/// The parts of an earlier upload that can be used: the store has them, with the right sizes and, as far as it tells, the
/// right bytes. None where it does not list them, for whatever reason: that costs a fresh start and no more.
///
/// # Errors
/// When the local file cannot be read.
async fn find_parts(context: &Context, blob: &Upload, file: &Arc<File>, record: &Record) -> Result<Vec<Part>> {
    let listed = match context.bucket.parts(&record.key, &record.upload).await {
        Ok(listed) => listed.unwrap_or_default(),
        Err(failure) => {
            tracing::debug!(blob = %blob.id, reason = %failure.detail, "the parts of an earlier upload are not listed");
            return Ok(Vec::new());
        }
    };
    let parts: Vec<Part> = listed.into_iter().filter(|part| record.fits(part)).collect();
    let parts = stream::iter(parts).map(|part| {
        let (file, record) = (file.clone(), record.clone());
        blocking(move || {
            let Some(told) = md5_of(&part.etag) else { return Ok((part, None)) };
            let number = part.number as u64;
            md5_of_part(&file, &record, number).map(|found| (part, Some(told == found)))
        })
    });
    let mut parts: Vec<(Part, Option<bool>)> =
        parts.buffer_unordered(2).try_collect().await.map_err(|e| unreadable(blob, &e))?;
    let is_right = |(_, right): &(Part, Option<bool>)| *right == Some(true);
    let wrong = parts.iter().position(|(_, right)| *right == Some(false));
    let mut are_md5s = parts.iter().any(is_right);
    // An ETag may also be something else than an MD5, where the store encrypts: a part that is sent again tells.
    if let Some(wrong) = wrong.filter(|_| !are_md5s) {
        let number = parts[wrong].0.number as u64;
        if let Ok(part) = send_part(context, blob, file, record, number).await {
            let (file, record, etag) = (file.clone(), record.clone(), part.etag.clone());
            let found = blocking(move || md5_of_part(&file, &record, number)).await;
            are_md5s = md5_of(&etag) == Some(found.map_err(|e| unreadable(blob, &e))?);
            context.restarted(blob.id);
            parts[wrong] = (part, Some(true));
        }
    }
    let usable = parts.into_iter().filter(|(_, right)| !are_md5s || *right != Some(false)).map(|(part, _)| part);
    Ok(usable.collect())
}

/// The MD5 that an ETag may be, in lower case.
fn md5_of(etag: &str) -> Option<String> {
    let etag = etag.trim_matches('"');
    let is_md5 = etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_md5.then(|| etag.to_ascii_lowercase())
}

/// The MD5 of a part's bytes here. Blocks.
fn md5_of_part(file: &File, record: &Record, number: u64) -> std::io::Result<String> {
    let mut at = (number - 1) * record.part_size;
    let end = at + record.length(number);
    let mut hasher = md5::Md5::new();
    while at < end {
        let length = SLICE.min(end - at);
        hasher.update(&read_at(file, length as usize, at)?);
        at += length;
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn send_part(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    record: &Record,
    number: u64,
) -> Result<Part, Stop> {
    let (offset, size) = ((number - 1) * record.part_size, record.length(number));
    let local_error: Slot = Arc::default();
    let body = |pulse: &Pulse| FileBody::new(context, blob, file, offset, size, None, pulse, &local_error);
    let sent = context.bucket.put_part(&record.key, &record.upload, number as i32, size, &body).await;
    if let Some(error) = take(&local_error) {
        return Err(Stop::Local(error));
    }
    sent.map_err(|failure| Stop::Store { failure, alive: false })
}

/// Sends what is missing beside the known parts. Returns all of them, what the file's bytes hash to, and whether the
/// store took one now.
async fn send_parts(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    record: &Record,
    known: Vec<Part>,
) -> Result<(Vec<Part>, BlobId, bool), Stop> {
    let count = record.count();
    let mut parts: Vec<Option<Part>> = vec![None; count as usize];
    for part in known {
        context.found(blob.id, part.size);
        let at = part.number as usize - 1;
        parts[at] = Some(part);
    }
    let done = parts.iter().map(Option::is_some);
    let hashing = Hashing::new(&context.hashes, blob.id, blob.size, file, record.part_size, done);
    let mut missing =
        (1..=count).filter(|number| parts[*number as usize - 1].is_none()).collect::<Vec<_>>().into_iter();
    let mut next = missing.next();
    let mut running: JoinSet<Result<Part, Stop>> = JoinSet::new();
    let mut alive = false;
    while next.is_some() || !running.is_empty() {
        let streams = context.limits.parts.streams();
        let behind = hashing.is_behind(streams);
        tokio::select! {
            permit = context.limits.parts.permit(record.part_size), if next.is_some() && running.len() < streams && !behind => {
                let number = next.expect("checked by the branch");
                next = missing.next();
                let (context, blob, file, record) = (context.clone(), blob.clone(), file.clone(), record.clone());
                let offset = (number - 1) * record.part_size;
                hashing.moved(offset, offset + record.length(number));
                running.spawn(async move {
                    let mut permit = permit;
                    let sent = send_part(&context, &blob, &file, &record, number).await?;
                    permit.moved(sent.size);
                    Ok(sent)
                });
            }
            () = hashing.advanced(), if next.is_some() && behind => {}
            Some(done) = running.join_next() => {
                let done = match done {
                    Ok(done) => done,
                    Err(failed) => std::panic::resume_unwind(failed.into_panic()),
                };
                match done {
                    Ok(part) => {
                        alive = true;
                        let at = part.number as usize - 1;
                        parts[at] = Some(part);
                    }
                    Err(Stop::Store { failure, .. }) => return Err(Stop::Store { failure, alive }),
                    Err(stop) => return Err(stop),
                }
            }
        }
    }
    let found = blocking(move || hashing.finish()).await.map_err(|e| Stop::Local(unreadable(blob, &e)))?;
    Ok((parts.into_iter().flatten().collect(), found, alive))
}

/// Where a body leaves the reason for ending itself: the SDK would only say that the body failed.
type Slot = Arc<Mutex<Option<Error>>>;

fn take(slot: &Slot) -> Option<Error> {
    slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
}

/// A request body that reads a range of a file, slice by slice, as the connection takes it.
struct FileBody {
    blob: Upload,
    file: Arc<File>,
    offset: u64,
    end: u64,
    /// Of all of the blob, whose last slice is sent only when its bytes match the name.
    hasher: Option<BlobHasher>,
    meter: Option<Meter>,
    pulse: Pulse,
    pace: Pace,
    local_error: Slot,
}

impl FileBody {
    #[allow(clippy::too_many_arguments)] // one caller each for a whole file and a part
    #[allow(clippy::new_ret_no_self)]
    fn new(
        context: &Context,
        blob: &Upload,
        file: &Arc<File>,
        offset: u64,
        size: u64,
        hasher: Option<BlobHasher>,
        pulse: &Pulse,
        local_error: &Slot,
    ) -> SdkBody {
        SdkBody::from_body_1_x(FileBody {
            blob: blob.clone(),
            file: file.clone(),
            offset,
            end: offset + size,
            hasher,
            meter: Some(Meter::new(&context.progress, blob.id)),
            pulse: pulse.clone(),
            pace: Pace::new(&context.limits.rate),
            local_error: local_error.clone(),
        })
    }

    fn slice(&mut self, length: u64) -> Result<Bytes> {
        let bytes = read_at(&self.file, length as usize, self.offset).map_err(|e| unreadable(&self.blob, &e))?;
        self.offset += length;
        self.hasher.iter_mut().for_each(|hasher| hasher.update(&bytes));
        if self.offset == self.end {
            let found = self.hasher.take().map(BlobHasher::finish);
            if let Some(found) = found.filter(|found| *found != self.blob.id) {
                return Err(wrong_bytes(&self.blob, &found));
            }
        }
        if let Some(meter) = &mut self.meter {
            meter.add(length);
        }
        Ok(bytes)
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.offset == self.end {
            return Poll::Ready(None);
        }
        self.pulse.beat();
        let length = self.pace.slice(SLICE).min(self.end - self.offset);
        ready!(self.pace.poll(length, task));
        match self.slice(length) {
            Ok(bytes) => {
                if self.offset == self.end {
                    self.meter.take().into_iter().for_each(Meter::keep);
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(error) => {
                self.pulse.poison();
                *self.local_error.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
                Poll::Ready(Some(Err(std::io::Error::other("the local bytes cannot be sent"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.offset)
    }
}
