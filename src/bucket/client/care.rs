//! Maintenance requests: deleting many objects, finding unfinished uploads, and finding out whether earlier versions are
//! kept. Not all stores support them: then objects are deleted one by one, and the rest is unknown.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use md5::Digest;

use super::Bucket;
use crate::bucket::answer::{self, Deletions, Element, Refusal};
use crate::bucket::request::{Op, Payload, Request};
use crate::bucket::wire::{base64, body_failure, parse_failure};
use crate::error::{Cause, Failure};

/// Objects that S3 deletes in one request.
const DELETE_BATCH: usize = 1000;
/// Objects deleted per batch if each takes a request of its own.
const SINGLY: usize = 100;
/// Concurrent requests when objects are deleted one by one.
const AT_ONCE: usize = 16;
/// Maximum number of pages of unfinished uploads.
const MOST_PAGES: usize = 1000;

/// An unfinished multipart upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The key, without the team prefix.
    pub key: String,
    /// The store's id of the upload.
    pub id: String,
    /// When it was started, by the store's clock.
    pub started: Option<SystemTime>,
}

impl Bucket {
    /// Returns the time by the store's clock; `None` before its first response.
    pub fn store_time(&self) -> Option<SystemTime> {
        let now = SystemTime::now();
        match self.wire.clock_offset()? {
            ahead @ 0.. => now.checked_add(Duration::from_secs(ahead.unsigned_abs())),
            behind => now.checked_sub(Duration::from_secs(behind.unsigned_abs())),
        }
    }

    /// Returns how many objects to delete per batch.
    pub fn delete_batch(&self) -> usize {
        if self.shared.deletes_singly.load(Ordering::Relaxed) { SINGLY } else { DELETE_BATCH }
    }

    /// Deletes up to [`DELETE_BATCH`] objects. Returns those that could not be deleted, with the reason. An object that does
    /// not exist counts as deleted.
    pub async fn delete_many(&self, keys: &[String]) -> BTreeMap<String, Failure> {
        if keys.len() == 1 || self.shared.deletes_singly.load(Ordering::Relaxed) {
            return self.delete_singly(keys.to_vec()).await;
        }
        let answer = self.retried(Op::DeleteMany, || self.send_deletions(keys)).await;
        let deletions = match answer {
            Ok(deletions) => deletions,
            Err(failure) if is_unknown(&failure) => {
                tracing::debug!(reason = failure.detail, "the store does not delete many objects at once");
                self.shared.deletes_singly.store(true, Ordering::Relaxed);
                return self.delete_singly(keys.to_vec()).await;
            }
            Err(failure) => return keys.iter().map(|key| (key.clone(), failure.clone())).collect(),
        };
        let mut left = BTreeMap::new();
        let mut unsure: HashMap<String, &String> = keys.iter().map(|key| (self.key(key), key)).collect();
        let full = |listed: &str| answer::key(listed, false, &self.prefix);
        for listed in &deletions.deleted {
            full(listed).and_then(|full| unsure.remove(&full));
        }
        for (listed, refusal) in &deletions.refused {
            let failure = Failure::refused(refused_status(refusal), refusal);
            // Transient failures are retried one by one.
            if failure.cause.is_transient() {
                continue;
            }
            if let Some(key) = full(listed).and_then(|full| unsure.remove(&full))
                && !failure.cause.is_missing()
            {
                left.insert(key.clone(), failure);
            }
        }
        // Keys that the response does not mention may not have been deleted.
        left.extend(self.delete_singly(unsure.into_values().cloned().collect()).await);
        left
    }

    async fn send_deletions(&self, keys: &[String]) -> Result<Deletions, Failure> {
        let body = deletion(keys.iter().map(|key| self.key(key)));
        let md5 = base64(&md5::Md5::digest(&body));
        let request = Request::new(Op::DeleteMany, "").query("delete", "");
        let request = request.header("content-type", "application/xml").header("content-md5", md5);
        let request = request.payload(Payload::Bytes(body));
        let (body, who) = self.wire.send_for_xml(&request).await?;
        answer::deletions(&body).map_err(|why| body_failure(why, &body, &who, 400))
    }

    async fn delete_singly(&self, keys: Vec<String>) -> BTreeMap<String, Failure> {
        let deletions = stream::iter(keys).map(async |key| {
            let failure = self.delete(&key).await.err()?;
            Some((key, failure))
        });
        deletions.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// Returns the unfinished multipart uploads of keys that begin with `prefix`; `None` if the store does not list them, or
    /// not for this key.
    ///
    /// # Errors
    /// If the request fails for another reason.
    pub async fn unfinished_uploads(&self, prefix: &str) -> Result<Option<Vec<Unfinished>>, Failure> {
        let full = self.key(prefix);
        let mut found = Vec::new();
        let mut marker: Option<(String, String)> = None;
        for _ in 0..MOST_PAGES {
            let mut request = Request::new(Op::ListUploads, "").query("uploads", "").query("prefix", full.clone());
            if let Some((key, upload)) = &marker {
                request = request.query("key-marker", key.clone());
                if !upload.is_empty() {
                    request = request.query("upload-id-marker", upload.clone());
                }
            }
            let page = self.retried(Op::ListUploads, || async {
                let (body, who) = self.wire.send_for_xml(&request).await?;
                answer::uploads(&body).map_err(|why| match Element::parse(&body) {
                    // Stores that ignore the query parameter list objects instead.
                    Ok(root) if root.name() == "ListBucketResult" => Failure::new(Cause::Unsupported, ""),
                    _ => body_failure(why, &body, &who, 400),
                })
            });
            let page = match page.await {
                Ok(page) => page,
                // `rclone serve s3` means by this that the bucket has none.
                Err(failure) if failure.cause == Cause::NoSuchUpload => return Ok(Some(found)),
                Err(failure) if is_unavailable(&failure) => return Ok(None),
                Err(failure) => return Err(failure),
            };
            for upload in page.uploads {
                // Some stores ignore the prefix.
                let Some(key) = answer::key(&upload.key, page.encoded, &full) else { continue };
                let Some(key) = key.strip_prefix(&self.prefix) else { continue };
                found.push(Unfinished { key: key.to_string(), id: upload.id, started: upload.started });
            }
            match page.next {
                None => return Ok(Some(found)),
                Some(next) if marker.as_ref() == Some(&next) => break,
                Some(next) => marker = Some(next),
            }
        }
        Err(Failure::new(Cause::NotS3, "its listing of unfinished uploads has no end"))
    }

    /// Returns when the last part of an unfinished upload arrived, or when it was started, by the store's clock; `None` if
    /// the store does not report it, or not to this key.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn last_change(&self, upload: &Unfinished) -> Result<Option<SystemTime>, Failure> {
        let full = self.key(&upload.key);
        let mut last = upload.started;
        let mut marker: Option<String> = None;
        loop {
            let mut request = Request::new(Op::ListParts, &full).query("uploadId", upload.id.clone());
            if let Some(marker) = &marker {
                request = request.query("part-number-marker", marker.clone());
            }
            let page = self.retried(Op::ListParts, || async {
                let (body, who) = self.wire.send_for_xml(&request).await?;
                answer::part_times(&body).map_err(|why| parse_failure(why, &body, &who))
            });
            let (times, next) = match page.await {
                Ok(page) => page,
                Err(failure) if matches!(failure.cause, Cause::NoSuchUpload | Cause::NoSuchKey) => return Ok(last),
                Err(failure) if is_unavailable(&failure) => return Ok(None),
                Err(failure) => return Err(failure),
            };
            last = last.max(times.into_iter().max());
            match next {
                Some(next) if marker.as_ref() != Some(&next) => marker = Some(next),
                _ => return Ok(last),
            }
        }
    }

    /// Aborts a multipart upload. It is not an error if there is none.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn abort_upload(&self, upload: &Unfinished) -> Result<(), Failure> {
        let full = self.key(&upload.key);
        let request = Request::new(Op::AbortParts, &full).query("uploadId", upload.id.clone());
        match self.retried(Op::AbortParts, || self.wire.send(&request)).await {
            Ok(_) => Ok(()),
            Err(failure) if matches!(failure.cause, Cause::NoSuchUpload | Cause::NoSuchKey) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Returns whether the bucket keeps earlier versions of its objects; `None` if the store does not say.
    pub async fn is_versioned(&self) -> Option<bool> {
        let request = Request::new(Op::Versioning, "").query("versioning", "");
        let (body, _) = self.wire.send_for_xml(&request).await.ok()?;
        answer::is_versioned(&body).ok()
    }
}

/// Whether a store does not support the request. Some have no specific code for that.
fn is_unknown(failure: &Failure) -> bool {
    matches!(failure.cause, Cause::Unsupported | Cause::Other | Cause::NoSuchKey | Cause::NotS3 | Cause::ChecksumNeeded)
}

/// Whether a store does not support the request, or does not allow it to this key.
fn is_unavailable(failure: &Failure) -> bool {
    is_unknown(failure) || failure.cause == Cause::Denied
}

/// Returns the status that a refusal within a response would have as a response of its own.
fn refused_status(refusal: &Refusal) -> u16 {
    match refusal.code.as_deref() {
        Some("AccessDenied") => 403,
        Some("InternalError") => 500,
        Some("SlowDown" | "ServiceUnavailable") => 503,
        _ => 400,
    }
}

fn deletion(keys: impl Iterator<Item = String>) -> Bytes {
    let mut text = String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for key in keys {
        text += &format!("<Object><Key>{}</Key></Object>", quick_xml::escape::escape(key.as_str()));
    }
    text += "</Delete>";
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_to_delete_are_escaped() {
        let text = String::from_utf8(deletion(["a & b/blobs/0".to_string()].into_iter()).to_vec()).unwrap();
        assert!(text.contains("<Object><Key>a &amp; b/blobs/0</Key></Object></Delete>"), "{text}");
    }
}
