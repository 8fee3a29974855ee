//! The bucket as a sink: a multipart upload, which an interrupted push resumes.
//!
//! A small record in our own state folder names the upload, and the store lists the parts that it has. In the worst case, if
//! the upload is gone or unusable in the store, it starts again once.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use aws_smithy_types::body::SdkBody;
use futures_util::{StreamExt, TryStreamExt, stream};
use md5::Digest;

use super::local_file::{BodyMaker, Check, LocalError, SLICE, Upload};
use super::{Context, parts};
use crate::bucket::client::{Part, Pulse};
use crate::bucket::keys;
use crate::cache::read::{read_at, read_small};
use crate::error::{Cause, Error, Failure, Result};
use crate::hash::{hex, is_md5_hex};
use crate::task::blocking;

/// Maximum size of a record, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// Why the parts of a blob did not become an object.
pub(super) enum Stop {
    /// The local bytes cannot be sent, so the parts in the store are useless.
    Local(Error),
    /// The store refused a request.
    Store {
        failure: Failure,
        /// Whether the store has accepted a part in this run, and therefore knows the upload.
        is_known: bool,
    },
}

impl Stop {
    /// Returns whether the upload itself is the problem, so that a fresh one may succeed. One that was `resumed` is
    /// suspect as long as the store has accepted nothing for it: stores that have cleaned it up report that in many ways.
    pub(super) fn blames_upload(&self, resumed: bool) -> bool {
        let Stop::Store { failure, is_known } = self else { return false };
        is_lost(failure) || (resumed && !is_known && may_be_lost(failure))
    }
}

/// Returns whether the store says that an upload, or a part of it, is missing or unexpected.
fn is_lost(failure: &Failure) -> bool {
    let has_code =
        |code: &str| failure.detail.strip_prefix(code).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    matches!(failure.cause, Cause::NoSuchUpload | Cause::NoSuchKey)
        || ["InvalidPart", "InvalidPartOrder", "EntityTooSmall"].into_iter().any(has_code)
}

/// Returns whether some store may answer like this if it has cleaned up an upload. Failures that concern every request,
/// and temporary ones, do not count, except that some stores break when they do not find something.
fn may_be_lost(failure: &Failure) -> bool {
    match failure.cause {
        Cause::Busy => failure.detail.starts_with("InternalError") || failure.detail == "HTTP status 500",
        // Also a page from a proxy in front of the store, since other responses were S3's.
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

/// Returns whether a store that broke the connection for every part does so because it refuses this upload: an answer
/// that arrives before the body was sent is easily lost, while one to a single byte is not. The part sent for this is
/// not part of the object.
pub(super) async fn is_refused(context: &Context, record: &Record, stop: &Stop) -> bool {
    let Stop::Store { failure, is_known: false } = stop else { return false };
    if !matches!(failure.cause, Cause::Broken | Cause::Stalled | Cause::Unreachable) {
        return false;
    }
    let number = (record.count() + 1).min(context.max_parts) as i32;
    let body = |_: &Pulse| SdkBody::from("?");
    let answer = context.bucket.put_part(&record.key, &record.upload, number, 1, &body).await;
    answer.is_err_and(|failure| is_lost(&failure) || may_be_lost(&failure))
}

/// Starts an upload, and records it in place of an earlier one, which is aborted if it went to the same place. Regardless of
/// the state of that one, only a failure to start the new one is an error.
pub(super) async fn start(context: &Context, blob: &Upload, fresh: &Record, earlier: Option<Record>) -> Result<Record> {
    let started = context.bucket.start_parts(&fresh.key).await;
    let upload = started.map_err(|failure| context.bucket.explain(failure, &blob.doing()))?;
    let record = Record { upload, ..fresh.clone() };
    // Only needed to resume: a read-only cache can be pushed without it.
    let bytes = serde_json::to_vec(&record).expect("plain data");
    let path = context.layout.upload(&blob.id);
    if let Err(error) = crate::cache::place::write_small(&context.layout, &path, &bytes, false) {
        tracing::debug!(%error, "an interrupted upload of this blob will start again");
    }
    if let Some(earlier) = earlier.filter(|earlier| earlier.is_in_same_place(fresh) && !earlier.upload.is_empty()) {
        context.bucket.abort_parts(&earlier.key, &earlier.upload).await;
    }
    Ok(record)
}

/// Aborts an upload, and forgets it.
pub(super) async fn abort(context: &Context, blob: &Upload, record: &Record) {
    context.bucket.abort_parts(&record.key, &record.upload).await;
    forget(context, blob);
}

/// Removes the record of an upload.
pub(super) fn forget(context: &Context, blob: &Upload) {
    let _ = crate::cache::inside::remove_file(context.layout.root(), &context.layout.upload(&blob.id));
}

/// The record needed to resume an interrupted multipart upload.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Record {
    bucket: String,
    endpoint: String,
    prefix: String,
    pub(super) key: String,
    pub(super) upload: String,
    size: u64,
    pub(super) part_size: u64,
    /// The modification time of the source file: if its bytes have changed, the parts are useless.
    modified: Option<SystemTime>,
}

impl Record {
    /// Describes an upload that has not been started.
    pub(super) fn new(context: &Context, blob: &Upload, modified: Option<SystemTime>) -> Record {
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

    /// Reads the record of an earlier run, if there is a readable one.
    pub(super) fn read(context: &Context, blob: &Upload) -> Option<Record> {
        let path = context.layout.upload(&blob.id);
        if !std::fs::symlink_metadata(&path).ok()?.is_file() {
            return None;
        }
        let bytes = read_small(&path, MAX_RECORD).ok().flatten()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Returns whether the parts of this upload can be used for `fresh`, which has not been started. Their size may
    /// differ.
    pub(super) fn can_continue(&self, fresh: &Record, max_parts: u64) -> bool {
        let is_same = Record { upload: String::new(), part_size: fresh.part_size, ..self.clone() } == *fresh;
        is_same && !self.upload.is_empty() && parts::is_possible(self.part_size, self.size, max_parts)
    }

    fn is_in_same_place(&self, other: &Record) -> bool {
        (&self.bucket, &self.endpoint, &self.prefix, &self.key)
            == (&other.bucket, &other.endpoint, &other.prefix, &other.key)
    }

    /// Returns the number of parts.
    pub(super) fn count(&self) -> u64 {
        self.size.div_ceil(self.part_size)
    }

    /// Returns the bytes of a part. Numbers start at 1.
    pub(super) fn bytes_of(&self, number: u64) -> Range<u64> {
        let start = (number - 1) * self.part_size;
        start..(start + self.part_size).min(self.size)
    }

    /// Returns the number of the part that starts at `offset`.
    pub(super) fn number_of(&self, offset: u64) -> u64 {
        offset / self.part_size + 1
    }

    /// Returns whether a part can be one of this upload.
    fn fits(&self, part: &Part) -> bool {
        let number = u64::try_from(part.number).unwrap_or_default();
        if !(1..=self.count()).contains(&number) {
            return false;
        }
        let bytes = self.bytes_of(number);
        part.size == bytes.end - bytes.start
    }
}

/// Sends one part.
pub(super) async fn send_part(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    record: &Record,
    number: u64,
    check: Check,
) -> Result<Part, Stop> {
    let Range { start: offset, end } = record.bytes_of(number);
    let (size, local_error) = (end - offset, LocalError::default());
    let bodies = BodyMaker { context, blob, file, offset, size, check, local_error };
    let body = |pulse: &Pulse| bodies.make(pulse);
    let sent = context.bucket.put_part(&record.key, &record.upload, number as i32, size, &body).await;
    match bodies.local_error.take() {
        Some(error) => Err(Stop::Local(error)),
        None => sent.map_err(|failure| Stop::Store { failure, is_known: false }),
    }
}

/// Returns the usable parts of an earlier upload: the store has them, with the right sizes and, as far as it reports them,
/// the right bytes. If it does not list them for any reason, there are none, and the upload starts again.
///
/// # Errors
/// If the local file cannot be read.
pub(super) async fn find_parts(
    context: &Context,
    blob: &Upload,
    file: &Arc<File>,
    record: &Record,
) -> Result<Vec<Part>> {
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
            let Some(expected) = md5_in(&part.etag) else { return Ok((part, None)) };
            let number = part.number as u64;
            md5_of_part(&file, &record, number).map(|found| (part, Some(expected == found)))
        })
    });
    let mut parts: Vec<(Part, Option<bool>)> =
        parts.buffer_unordered(2).try_collect().await.map_err(|e| blob.unreadable(&e))?;
    let is_right = |(_, right): &(Part, Option<bool>)| *right == Some(true);
    let wrong = parts.iter().position(|(_, right)| *right == Some(false));
    let mut etags_are_md5s = parts.iter().any(is_right);
    // If the store encrypts, ETags may look like MD5s and be something else. Sending one part again shows it.
    if let Some(wrong) = wrong.filter(|_| !etags_are_md5s) {
        let number = parts[wrong].0.number as u64;
        if let Ok(part) = send_part(context, blob, file, record, number, Check::Nobody).await {
            let (file, record, etag) = (file.clone(), record.clone(), part.etag.clone());
            let found = blocking(move || md5_of_part(&file, &record, number)).await;
            etags_are_md5s = md5_in(&etag) == Some(found.map_err(|e| blob.unreadable(&e))?);
            context.report_restarted(blob.id);
            parts[wrong] = (part, Some(true));
        }
    }
    let usable = parts.into_iter().filter(|(_, right)| !etags_are_md5s || *right != Some(false)).map(|(part, _)| part);
    Ok(usable.collect())
}

/// Returns the MD5 that an ETag seems to be, in lower case.
fn md5_in(etag: &str) -> Option<String> {
    let etag = etag.trim_matches('"');
    is_md5_hex(etag).then(|| etag.to_ascii_lowercase())
}

/// Returns the MD5 of a part's bytes in the file. Blocks.
fn md5_of_part(file: &File, record: &Record, number: u64) -> std::io::Result<String> {
    let Range { start: mut at, end } = record.bytes_of(number);
    let mut hasher = md5::Md5::new();
    while at < end {
        let length = SLICE.min(end - at);
        hasher.update(&read_at(file, length as usize, at)?);
        at += length;
    }
    Ok(hex(&hasher.finalize()))
}
