//! Uploads a blob: it is verified against its name while it is read, and never published if it does not match.
//!
//! Up to `IN_MEMORY` bytes, a blob is read, hashed and sent. Up to [`SINGLE_PUT`], it is streamed from the file and hashed
//! on the way; the last slice is held back until the hash has matched, so that the store never gets a complete wrong
//! object. A larger one is sent in parallel parts while the file is hashed (`hashing.rs`), and the object is completed
//! only if the hash has matched and the file has not been changed meanwhile.

use std::fs::{File, Metadata};
use std::sync::Arc;

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use super::Context;
use super::hashing::OrderedHash;
pub use super::local_file::Upload;
use super::local_file::{BodyMaker, Check, LocalError};
use super::move_parts::move_parts;
use super::multipart::{self, Record, Stop, find_parts, is_refused, send_part};
use super::parts::SINGLE_PUT;
use crate::bucket::client::{Part, Pulse};
use crate::bucket::keys;
use crate::cache::read::{open_quietly, read_at};
use crate::error::{Cause, Error, Result};
use crate::hash::{BlobHasher, blob_id_of};
use crate::model::ids::BlobId;
use crate::progress::Event;
use crate::task::blocking;

/// Blobs up to this size are sent from memory.
const IN_MEMORY: u64 = 256 << 10;

/// Uploads one blob. The caller holds the upload lock of a large one.
///
/// # Errors
/// [`Cause::Corrupt`] if the bytes do not match the name: nothing is published then.
pub async fn upload(context: &Context, blob: &Upload) -> Result<()> {
    context.progress.event(Event::Started { blob: blob.id, name: blob.label.clone(), size: blob.size });
    let sent = if blob.size <= IN_MEMORY {
        from_memory(context, blob).await
    } else if blob.size <= SINGLE_PUT {
        streamed(context, blob).await
    } else {
        // Boxed, so that the futures of small blobs stay small.
        Box::pin(in_parts(context, blob)).await
    };
    context.progress.event(Event::Finished { blob: blob.id });
    let (_, push_backs) = context.bucket.counts();
    context.limits.report_push_backs(push_backs);
    sent
}

async fn from_memory(context: &Context, blob: &Upload) -> Result<()> {
    let mut permit = context.limits.objects.permit(blob.size).await;
    let _admission = context.limits.rate.admit_upload(blob.size).await;
    let task = blob.clone();
    let bytes: Bytes = blocking(move || -> Result<Bytes> {
        let file = open_quietly(&task.source).map_err(|e| task.unreadable(&e))?;
        let bytes = read_at(&file, task.size as usize, 0).map_err(|e| task.unreadable(&e))?;
        match blob_id_of(&task.id, &bytes) {
            found if found == task.id => Ok(bytes),
            found => Err(task.wrong_bytes(&found)),
        }
    })
    .await?;
    context.limits.rate.wait(blob.size).await;
    let sent =
        context.bucket.put(&keys::blob(&blob.id), blob.size, Some(&blob.id), &|_| SdkBody::from(bytes.clone())).await;
    sent.map_err(|failure| context.bucket.explain(failure, &blob.doing()))?;
    permit.count(blob.size);
    context.progress.event(Event::Moved { blob: blob.id, bytes: blob.size });
    Ok(())
}

async fn streamed(context: &Context, blob: &Upload) -> Result<()> {
    let mut permit = context.limits.objects.permit(blob.size).await;
    let _admission = context.limits.rate.admit_upload(blob.size).await;
    let file = Arc::new(open_quietly(&blob.source).map_err(|e| blob.unreadable(&e))?);
    let check = Check::Whole(BlobHasher::like(&blob.id, blob.size));
    let local_error = LocalError::default();
    let bodies = BodyMaker { context, blob, file: &file, offset: 0, size: blob.size, check, local_error };
    let body = |pulse: &Pulse| bodies.make(pulse);
    let sent = context.bucket.put(&keys::blob(&blob.id), blob.size, Some(&blob.id), &body).await;
    if let Some(error) = bodies.local_error.take() {
        return Err(error);
    }
    sent.map_err(|failure| context.bucket.explain(failure, &blob.doing()))?;
    permit.count(blob.size);
    Ok(())
}

async fn in_parts(context: &Context, blob: &Upload) -> Result<()> {
    let file = open_quietly(&blob.source).map_err(|e| blob.unreadable(&e))?;
    let before = file.metadata().map_err(|e| blob.unreadable(&e))?;
    let file = Arc::new(file);
    let fresh = Record::new(context, blob, before.modified().ok());
    let earlier = Record::read(context, blob);
    let mut sent = match &earlier {
        Some(earlier) if earlier.can_continue(&fresh, context.max_parts) => {
            find_parts(context, blob, &file, earlier).await?
        }
        _ => Vec::new(),
    };
    let mut resumed = !sent.is_empty();
    let mut record = match earlier {
        Some(earlier) if resumed => earlier,
        earlier => multipart::start(context, blob, &fresh, earlier).await?,
    };
    let mut restarted = false;
    loop {
        let stop = match send_and_complete(context, blob, &file, &before, &record, sent).await {
            Ok(()) => break,
            Err(stop) => stop,
        };
        let starts_again =
            !restarted && (stop.blames_upload(resumed) || (resumed && is_refused(context, &record, &stop).await));
        match stop {
            Stop::Store { failure, .. } if starts_again => {
                tracing::debug!(blob = %blob.id, reason = %failure.detail, "an upload is started again");
                // The old record stays until there is a better one.
                record = multipart::start(context, blob, &fresh, Some(record))
                    .await
                    .map_err(|_| context.bucket.explain(failure, &blob.doing()))?;
                context.report_restarted(blob.id);
                (sent, resumed, restarted) = (Vec::new(), false, true);
            }
            Stop::Local(error) => {
                if error.cause == Cause::Corrupt {
                    multipart::abort(context, blob, &record).await;
                }
                return Err(error);
            }
            // The parts in the store remain for the next run.
            Stop::Store { failure, .. } => return Err(context.bucket.explain(failure, &blob.doing())),
        }
    }
    multipart::forget(context, blob);
    Ok(())
}

/// Sends the missing parts, and completes the object if all of them are what the blob's name says.
async fn send_and_complete(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    before: &Metadata,
    record: &Record,
    sent: Vec<Part>,
) -> Result<(), Stop> {
    let (parts, found, is_known) = send_missing(context, blob, file, record, sent).await?;
    let after = file.metadata().map_err(|e| Stop::Local(blob.unreadable(&e)))?;
    let has_changed = after.len() != before.len() || after.modified().ok() != before.modified().ok();
    if found != blob.id {
        return Err(Stop::Local(blob.wrong_bytes(&found)));
    }
    if has_changed {
        let what = format!("blob {} ({}) was changed while it was pushed", blob.id, blob.label);
        return Err(Stop::Local(Error::corrupt(what)));
    }
    let completed = context.bucket.finish_parts(&record.key, &record.upload, &parts).await;
    completed.map_err(|failure| Stop::Store { failure, is_known })
}

/// Sends the parts that are not among those already `sent`. Returns all parts, the name of the file's bytes, and whether
/// the store has accepted a part now.
async fn send_missing(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    record: &Record,
    sent: Vec<Part>,
) -> Result<(Vec<Part>, BlobId, bool), Stop> {
    let mut parts: Vec<Option<Part>> = vec![None; record.count() as usize];
    for part in sent {
        context.report_found(blob.id, part.size);
        let at = part.number as usize - 1;
        parts[at] = Some(part);
    }
    let done = parts.iter().map(Option::is_some);
    let hash = OrderedHash::new(&context.hash_pool, blob.id, blob.size, file, record.part_size, done);
    let missing = (1..=record.count()).filter(|number| parts[*number as usize - 1].is_none());
    let ranges = missing.map(|number| record.bytes_of(number)).collect();
    let mut moving = move_parts(&context.limits, &hash, ranges, |range| {
        let (context, blob, file, record) = (context.clone(), blob.clone(), file.clone(), record.clone());
        let hash = hash.clone();
        async move {
            let _admission = context.limits.rate.admit_upload(range.end - range.start).await;
            hash.announce(range.start, range.end);
            let (number, check) = (record.number_of(range.start), Check::Part(hash.clone()));
            let part = send_part(&context, &blob, &file, &record, number, check).await?;
            // A store may have answered without reading all of the body.
            hash.note(range.start, range.end);
            Ok::<_, Stop>(part)
        }
    });
    let mut is_known = false;
    while let Some(moved) = moving.next().await {
        match moved {
            Ok(part) => {
                is_known = true;
                let at = part.number as usize - 1;
                parts[at] = Some(part);
            }
            Err(Stop::Store { failure, .. }) => return Err(Stop::Store { failure, is_known }),
            Err(stop) => return Err(stop),
        }
    }
    drop(moving);
    let found = blocking(move || hash.finish()).await.map_err(|e| Stop::Local(blob.unreadable(&e)))?;
    Ok((parts.into_iter().flatten().collect(), found, is_known))
}
