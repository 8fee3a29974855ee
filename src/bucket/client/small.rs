//! Reads small objects, such as manifests, refs and notices, into memory. Anyone who can write to the bucket determines
//! their number and size, so large ones wait for each other.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::answer;
use super::super::request::{Op, Request};
use super::{Bucket, Download, etag, length};
use crate::error::{Cause, Failure};
use crate::hash::{is_md5_hex, md5_hex};
use crate::pace::Pace;

/// Size up to which objects do not wait for each other, in bytes.
const FREE: u64 = 1 << 20;
/// Total size of the others that are read at the same time, in bytes. A larger one is read alone.
const AT_ONCE: u64 = 64 << 20;
/// Bytes for which one permit stands.
const UNIT: u64 = 1 << 16;

/// A small object with its whole content.
#[derive(Debug, Clone)]
pub struct Small {
    /// Content.
    pub bytes: Bytes,
    /// ETag without quotes.
    pub etag: Option<String>,
    /// When it was last modified, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// The memory for objects that are larger than [`FREE`].
#[derive(Debug)]
pub(super) struct Room(Semaphore);

impl Room {
    pub(super) fn new() -> Room {
        Room(Semaphore::new((AT_ONCE / UNIT) as usize))
    }

    fn permits(bytes: u64) -> u32 {
        bytes.min(AT_ONCE).div_ceil(UNIT) as u32
    }

    fn try_reserve(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        self.0.try_acquire_many(Room::permits(bytes)).ok()
    }

    async fn reserve(&self, bytes: u64) -> SemaphorePermit<'_> {
        self.0.acquire_many(Room::permits(bytes)).await.expect("it is never closed")
    }
}

impl Bucket {
    /// Reads a small object; `None` if there is no such key.
    ///
    /// # Errors
    /// [`Cause::TooLarge`] if it is larger than `limit` bytes, or if the request fails permanently.
    pub async fn get_small(&self, key: &str, limit: u64) -> Result<Option<Small>, Failure> {
        let full = self.key(key);
        let doubtful = Mutex::new(None);
        let read = || async {
            let small = self.read_small(&full, limit).await?;
            match self.may_be_damaged(&small, &doubtful) {
                true => Err(Failure::new(Cause::Damaged, "they do not match their ETag")),
                false => Ok(small),
            }
        };
        match self.retried(Op::Read, read).await {
            Ok(small) => Ok(Some(small)),
            Err(failure) if failure.cause == Cause::NoSuchKey => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Reads an object once. If it has to wait for others, it is requested again afterwards: a store may abort a response
    /// that is not read.
    async fn read_small(&self, full: &str, limit: u64) -> Result<Small, Failure> {
        let request = Request::new(Op::Read, full);
        let room = &self.shared.room;
        let (mut allowed, mut reserved) = (FREE, None);
        loop {
            let response = self.wire.send(&request).await?;
            let expected = length(&response).unwrap_or(0);
            if expected > limit {
                return Err(too_large(limit));
            }
            let mut needed = expected;
            if expected > allowed && reserved.is_none() {
                reserved = room.try_reserve(expected);
                allowed = reserved.as_ref().map_or(allowed, |_| expected);
            }
            if expected > allowed {
                drop(response);
            } else if let Some(small) = self.read_body(response, limit, allowed).await? {
                return Ok(small);
            } else {
                // The store did not say how large it is.
                needed = limit;
            }
            drop(reserved.take());
            reserved = Some(room.reserve(needed).await);
            allowed = needed;
        }
    }

    /// Reads the body of a response; `None` if it has more than `allowed` bytes.
    async fn read_body(&self, mut response: HttpResponse, limit: u64, allowed: u64) -> Result<Option<Small>, Failure> {
        let modified = response.headers().get("last-modified").and_then(answer::time);
        let (expected, etag) = (length(&response), etag(&response));
        let body = ByteStream::new(std::mem::replace(response.body_mut(), SdkBody::empty()));
        let mut download = Download { body, pace: Pace::new(self.wire.timeout()), object_size: None, etag: None };
        // A buffer that grows is copied, and then takes twice the memory.
        let mut bytes = Vec::with_capacity(expected.unwrap_or_default() as usize);
        while let Some(piece) = download.next().await? {
            let length = bytes.len() as u64 + piece.len() as u64;
            if length > limit {
                return Err(too_large(limit));
            }
            if length > allowed {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
        if expected.is_some_and(|expected| expected != bytes.len() as u64) {
            return Err(Failure::new(Cause::Broken, "the download ended early"));
        }
        // Nothing that is read here is such a document. If it counted as an invalid manifest, a push would replace it.
        if let Some(refusal) = answer::find_refusal(&bytes) {
            return Err(Failure::refused(400, &refusal));
        }
        Ok(Some(Small { bytes: bytes.into(), etag, modified }))
    }

    /// Whether an object may have been damaged on its way, from which nothing but TLS protects it: its ETag looks like the
    /// MD5 of other bytes. Stores that encrypt send such ETags, too. So `doubtful` keeps the bytes, and if the same ones come
    /// again, ETags are not MD5s in this bucket.
    fn may_be_damaged(&self, small: &Small, doubtful: &Mutex<Option<Bytes>>) -> bool {
        if self.wire.route().uses_tls() || self.shared.has_other_etags.load(Ordering::Relaxed) {
            return false;
        }
        let Some(etag) = small.etag.as_ref().filter(|etag| is_md5_hex(etag)) else { return false };
        if md5_hex(&small.bytes).eq_ignore_ascii_case(etag) {
            return false;
        }
        let before = doubtful.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).replace(small.bytes.clone());
        let is_same = before.is_some_and(|before| before == small.bytes);
        if is_same {
            self.shared.has_other_etags.store(true, Ordering::Relaxed);
        }
        !is_same
    }
}

fn too_large(limit: u64) -> Failure {
    let most = if limit < 1 << 20 { format!("{limit} bytes") } else { format!("{} MiB", limit >> 20) };
    Failure::new(Cause::TooLarge, format!("it is larger than {most}"))
}
