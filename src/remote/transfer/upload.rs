//! Sending a blob: verified against its name while it is read, and never published when it does not match.
//!
//! Up to `IN_MEMORY` bytes: read, hashed, sent. Up to [`SINGLE_PUT`]: streamed from the file and hashed on the way;
//! the last slice is held back until the hash matched, so that the store never gets a complete wrong object.
//! Larger: parallel parts, with the file hashed beside (`hashing.rs`), and the object completed only when the hash
//! matched and the file was not changed meanwhile. The parts of an interrupted upload are found again through a small
//! record in our own state folder.

use std::fs::File;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::SystemTime;

use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinSet;

use super::hashing::Hashing;
use super::rate::Pace;
use super::{Context, blocking};
use crate::cache::read::{open_quietly, read_at, read_small};
use crate::error::{Error, Result};
use crate::hash::{BlobHasher, blob_id_of};
use crate::ids::BlobId;
use crate::progress::{Event, Meter};
use crate::remote::client::{Part, Pulse};
use crate::remote::keys;

/// Blobs up to this size are sent from memory.
const IN_MEMORY: u64 = 256 << 10;
/// Blobs up to this size are sent in one request.
pub const SINGLE_PUT: u64 = 16 << 20;
/// Part size, unless the blob has more than [`MAX_PARTS`] of them.
const PART: u64 = 16 << 20;
/// Part size of blobs from [`LARGE`] on, which have enough of them all the same: fewer are less work for a store.
const LARGE_PART: u64 = 32 << 20;
/// Where larger parts begin.
const LARGE: u64 = 256 << 20;
/// S3's limit.
const MAX_PARTS: u64 = 10_000;
/// Longest record of an interrupted upload, in bytes.
const MAX_RECORD: u64 = 1 << 20;
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
/// [`crate::error::Kind::Integrity`] when the bytes do not match the name: nothing is published then.
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

/// How many requests a blob can have in flight, when it is large; 0 for one that is a single request.
pub fn requests(size: u64) -> u64 {
    if size <= SINGLE_PUT { 0 } else { size.div_ceil(part_size(size)) }
}

fn doing(blob: &Upload) -> String {
    format!("cannot push blob {} ({})", blob.id, blob.label)
}

fn wrong_bytes(blob: &Upload, found: &BlobId) -> Error {
    Error::integrity(format!("blob {} ({}) is corrupt in this cache and was not pushed", blob.id, blob.label))
        .because(format!("its bytes hash to {found}"))
        .hint(format!("delete {} and download it again", blob.source.display()))
}

fn unreadable(blob: &Upload, error: &std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Error::integrity(format!("blob {} ({}) became shorter while it was read", blob.id, blob.label));
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

/// Part size for a blob: equal parts (R2 wants that), at most [`MAX_PARTS`], whole MiB.
fn part_size(size: u64) -> u64 {
    let needed = size.div_ceil(MAX_PARTS);
    let usual = if size < LARGE { PART } else { LARGE_PART };
    usual.max(needed.div_ceil(1 << 20) << 20)
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

async fn in_parts(context: &Context, blob: &Upload) -> Result<()> {
    let file = open_quietly(&blob.source).map_err(|e| unreadable(blob, &e))?;
    let before = file.metadata().map_err(|e| unreadable(blob, &e))?;
    let file = Arc::new(file);
    let (record, known) = open_upload(context, blob, before.modified().ok()).await?;
    let sent = send_parts(context, blob, &file, &record, known).await;
    let (parts, found) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            if error.kind == crate::error::Kind::Integrity {
                give_up(context, blob, &record).await;
            }
            return Err(error);
        }
    };
    let after = file.metadata().map_err(|e| unreadable(blob, &e))?;
    let changed = after.len() != before.len() || after.modified().ok() != before.modified().ok();
    if found != blob.id || changed {
        give_up(context, blob, &record).await;
        return Err(match found == blob.id {
            true => Error::integrity(format!("blob {} ({}) was changed while it was pushed", blob.id, blob.label)),
            false => wrong_bytes(blob, &found),
        });
    }
    let done = context.bucket.finish_parts(&record.key, &record.upload, &parts).await;
    done.map_err(|failure| context.bucket.explain(failure, &doing(blob)))?;
    let _ = std::fs::remove_file(context.layout.upload(&blob.id));
    Ok(())
}

async fn give_up(context: &Context, blob: &Upload, record: &Record) {
    context.bucket.abort_parts(&record.key, &record.upload).await;
    let _ = std::fs::remove_file(context.layout.upload(&blob.id));
}

/// Finds the parts of an earlier, interrupted upload of the same bytes, or starts a new one.
async fn open_upload(context: &Context, blob: &Upload, modified: Option<SystemTime>) -> Result<(Record, Vec<Part>)> {
    let explain = |failure| context.bucket.explain(failure, &doing(blob));
    let path = context.layout.upload(&blob.id);
    let fresh = Record {
        bucket: context.bucket.name().to_string(),
        endpoint: context.bucket.place().url.to_string(),
        prefix: context.bucket.prefix().to_string(),
        key: keys::blob(&blob.id),
        upload: String::new(),
        size: blob.size,
        part_size: part_size(blob.size),
        modified,
    };
    let earlier =
        read_small(&path, MAX_RECORD).ok().flatten().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    if let Some(earlier) = earlier {
        if (Record { upload: earlier.upload.clone(), ..fresh.clone() }) == earlier {
            match context.bucket.parts(&earlier.key, &earlier.upload).await {
                Ok(Some(parts)) => return Ok((earlier, parts)),
                // What was sent is still there when the store answers again.
                Err(failure) if failure.cause.is_transient() => return Err(explain(failure)),
                // A store that cannot list parts, or has dropped the upload, costs a fresh start and no more.
                Ok(None) | Err(_) => {}
            }
        }
        let target = |record: &Record| (record.bucket.clone(), record.endpoint.clone(), record.prefix.clone());
        if target(&earlier) == target(&fresh) {
            context.bucket.abort_parts(&earlier.key, &earlier.upload).await;
        }
    }
    let upload = context.bucket.start_parts(&fresh.key).await.map_err(explain)?;
    let record = Record { upload, ..fresh };
    // Only needed to go on after an interruption: a cache that cannot be written to is pushed all the same.
    let bytes = serde_json::to_vec(&record).expect("plain data");
    if let Err(error) = crate::cache::place::write_small(&context.layout, &path, &bytes, false) {
        tracing::debug!(%error, "an interrupted upload of this blob will start again");
    }
    Ok((record, Vec::new()))
}

async fn send_parts(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    record: &Record,
    known: Vec<Part>,
) -> Result<(Vec<Part>, BlobId)> {
    let count = blob.size.div_ceil(record.part_size);
    let length = |number: u64| record.part_size.min(blob.size - (number - 1) * record.part_size);
    let mut parts: Vec<Option<Part>> = vec![None; count as usize];
    for part in known {
        let number = part.number as u64;
        if (1..=count).contains(&number) && part.size == length(number) {
            context.found(blob.id, part.size);
            parts[number as usize - 1] = Some(part);
        }
    }
    let done = parts.iter().map(Option::is_some);
    let hashing = Hashing::new(&context.hashes, blob.id, blob.size, file, record.part_size, done);
    let mut missing =
        (1..=count).filter(|number| parts[*number as usize - 1].is_none()).collect::<Vec<_>>().into_iter();
    let mut next = missing.next();
    let mut running: JoinSet<Result<Part>> = JoinSet::new();
    while next.is_some() || !running.is_empty() {
        let streams = context.limits.parts.streams();
        let behind = hashing.is_behind(streams);
        tokio::select! {
            permit = context.limits.parts.permit(PART), if next.is_some() && running.len() < streams && !behind => {
                let number = next.expect("checked by the branch");
                next = missing.next();
                let (context, blob, file) = (context.clone(), blob.clone(), file.clone());
                let (key, upload) = (record.key.clone(), record.upload.clone());
                let (offset, size) = ((number - 1) * record.part_size, length(number));
                hashing.moved(offset, offset + size);
                running.spawn(async move {
                    let mut permit = permit;
                    let local_error: Slot = Arc::default();
                    let body = |pulse: &Pulse| {
                        FileBody::new(&context, &blob, &file, offset, size, None, pulse, &local_error)
                    };
                    let sent = context.bucket.put_part(&key, &upload, number as i32, size, &body).await;
                    if let Some(error) = take(&local_error) {
                        return Err(error);
                    }
                    permit.moved(size);
                    sent.map_err(|failure| context.bucket.explain(failure, &doing(&blob)))
                });
            }
            () = hashing.advanced(), if next.is_some() && behind => {}
            Some(done) = running.join_next() => {
                let part = match done {
                    Ok(part) => part?,
                    Err(failed) => std::panic::resume_unwind(failed.into_panic()),
                };
                let at = part.number as usize - 1;
                parts[at] = Some(part);
            }
        }
    }
    let found = blocking(move || hashing.finish()).await.map_err(|e| unreadable(blob, &e))?;
    Ok((parts.into_iter().flatten().collect(), found))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_to_the_limits() {
        for size in [SINGLE_PUT + 1, LARGE, 1 << 30, 8 << 30, 5 << 40] {
            let part = part_size(size);
            assert!(
                size.div_ceil(part) <= MAX_PARTS && part.is_multiple_of(1 << 20) && (PART..=5 << 30).contains(&part),
                "{size}"
            );
        }
    }
}
