//! The async S3 client: the only place that imports the AWS SDK (with [`super::error`], which reads its errors).
//!
//! Decisions, each with its reason:
//! - Checksums only when required: the SDK's default trailers break older B2, Ceph, GCS and Garage. Blobs are verified
//!   by their names instead.
//! - Our own retries: the SDK's retry quota is shared and drains under parallelism, it does not retry 429, and it
//!   ignores Retry-After.
//! - Our own time limits: the SDK's stalled-stream protection kills healthy slow uploads.
//! - A partial listing is an error, never a shorter list.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use aws_config::BehaviorVersion;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;

use super::error::{Cause, Failure, Place};
use super::wire::{self, Payload, Request, Wire};
use crate::config::{Credentials, KeyPair, Storage, is_backblaze};
use crate::error::{Error, Kind, Result};
use crate::ids::BlobId;

/// A connection must be there within this time.
const CONNECT: Duration = Duration::from_secs(10);
/// A request without a body must be answered within this time.
const ANSWER: Duration = Duration::from_secs(60);
/// A body must move at least once within this time.
const STALL: Duration = Duration::from_secs(90);
/// A store that was found to work is not suspected again for this time.
const PROBE_AGAIN: Duration = Duration::from_secs(1);
/// Bytes of an upload that may still be on their way when the last of its body was taken, in buffers on this machine.
const BUFFERED: u64 = 512 << 10;
/// The slowest connection that they are waited for, in bytes per second.
const SLOWEST: u64 = 8 << 10;
/// How much of a body in memory is handed over at a time.
const SLICE: usize = 64 << 10;
/// Tries of one request once the store has answered before; about a minute with back-off.
const TRIES: u32 = 8;
/// Tries of the very first connection: a wrong endpoint should not take long to be told.
const FIRST_TRIES: u32 = 3;

/// One bucket, with the team prefix applied to every key.
#[derive(Debug, Clone)]
pub struct Bucket {
    s3: aws_sdk_s3::Client,
    wire: Arc<Wire>,
    name: String,
    prefix: String,
    url: String,
    region: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    answered: AtomicBool,
    requests: AtomicU64,
    pushed_back: AtomicU64,
    /// Fastest answer in microseconds; 0 before the first.
    fastest: AtomicU64,
    /// When it was last found out that the store works, for whoever suspects that it does not.
    probed: tokio::sync::Mutex<Option<Instant>>,
    /// Why nothing works any more, once that is certain.
    lost: Mutex<Option<Failure>>,
}

impl Shared {
    fn lost(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.lost.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn note_time(&self, time: Duration) {
        let micros = (time.as_micros() as u64).max(1);
        let fastest = self.fastest.load(Ordering::Relaxed);
        if fastest == 0 || micros < fastest {
            self.fastest.store(micros, Ordering::Relaxed);
        }
    }
}

/// An object in a listing. The key is without the team prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Key.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// ETag without quotes: for most stores the MD5 of what one PUT has sent.
    pub etag: Option<String>,
    /// Last modified, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// What must hold for a write to happen. Several stores refuse conditions, and some accept and ignore them: they save
/// work where they are real, and nothing may rest on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is no such object.
    Absent,
    /// The object has this ETag.
    Unchanged(String),
}

/// A small object, read whole.
#[derive(Debug, Clone)]
pub struct Small {
    /// Content.
    pub bytes: Bytes,
    /// ETag without quotes.
    pub etag: Option<String>,
    /// Last modified.
    pub modified: Option<SystemTime>,
}

/// An answer to a GET whose body is still to be read.
pub struct Download {
    body: ByteStream,
    /// Size of the whole object in bytes, when the store says it.
    pub object_size: Option<u64>,
    /// ETag, to make sure that later ranges are of the same object.
    pub etag: Option<String>,
}

impl Download {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Cause::Broken`] when the connection breaks, ends early or stalls.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(STALL, self.body.next()).await {
            Err(_) => Err(Failure::new(Cause::Broken, "the download stalled")),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(_))) => Err(Failure::new(Cause::Broken, "the download ended early")),
        }
    }
}

/// Shows that an upload body is moving, so that a slow one lives and a stalled one is given up.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    last: Arc<AtomicU64>,
    poisoned: Arc<AtomicBool>,
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { start: Instant::now(), last: Arc::default(), poisoned: Arc::default() }
    }
}

impl Pulse {
    /// Something moved.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// The body cannot go on: another try would end the same way.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    /// Gives up an upload of `size` bytes that does not move any more.
    async fn guard<T>(&self, size: u64, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let patience = STALL + Duration::from_secs(size.min(BUFFERED) / SLOWEST);
        self.beat();
        tokio::pin!(work);
        loop {
            match tokio::time::timeout(STALL / 3, &mut work).await {
                Ok(Err(_)) if self.poisoned.load(Ordering::Relaxed) => {
                    return Err(Failure::new(Cause::Other, "the local bytes cannot be sent"));
                }
                Ok(done) => return done,
                Err(_) => {
                    let quiet = self.start.elapsed().as_millis() as u64 - self.last.load(Ordering::Relaxed);
                    if u128::from(quiet) >= patience.as_millis() {
                        return Err(Failure::new(Cause::Broken, "the upload stalled"));
                    }
                }
            }
        }
    }
}

/// A body from memory. It goes in slices, so that a large one on a slow connection is seen to move.
struct MemoryBody {
    left: Bytes,
    pulse: Pulse,
}

impl MemoryBody {
    fn sdk_body(bytes: &Bytes, pulse: &Pulse) -> SdkBody {
        SdkBody::from_body_1_x(MemoryBody { left: bytes.clone(), pulse: pulse.clone() })
    }
}

impl http_body::Body for MemoryBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        self.pulse.beat();
        let length = self.left.len().min(SLICE);
        Poll::Ready(Some(Ok(http_body::Frame::data(self.left.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left.len() as u64)
    }
}

/// Makes the body of an upload, anew for each try.
pub type MakeBody<'a> = &'a (dyn Fn(&Pulse) -> SdkBody + Sync);

/// A finished part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// From 1.
    pub number: i32,
    /// As the store returned it.
    pub etag: String,
    /// Size in bytes.
    pub size: u64,
}

impl Bucket {
    /// Prepares the client; the only network access is the look-up of credentials where the AWS chain is used.
    ///
    /// # Errors
    /// [`Kind::Usage`] without a bucket or with half a credential pair, [`Kind::Credentials`] where none is found.
    pub async fn connect(storage: &Storage, prefix: &str) -> Result<Bucket> {
        let name = storage.bucket()?.to_string();
        let region = match &storage.region {
            Some(region) => region.clone(),
            None => profile_region().await.unwrap_or_else(|| "us-east-1".to_string()),
        };
        let url = storage.endpoint.clone().unwrap_or_default();
        let credentials = provider(&storage.credentials, &region).await?;
        let backblaze = is_backblaze(&url);
        let product = if backblaze { "b2ai-hfcache" } else { "hf-cache-sync" };
        let agent = format!("{product}/{}", env!("CARGO_PKG_VERSION"));
        let wire = Arc::new(Wire::new(&region, &agent, credentials.clone(), CONNECT));
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.clone()))
            .credentials_provider(credentials)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .interceptor(OnItsWay { agent, wire: wire.clone() });
        if !url.is_empty() {
            config = config.endpoint_url(format!("{url}/")).force_path_style(true);
        }
        let s3 = aws_sdk_s3::Client::from_conf(config.build());
        Ok(Bucket { s3, wire, name, prefix: prefix.to_string(), url, region, shared: Arc::default() })
    }

    /// The bucket's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The team prefix: empty, or ending in one `/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Endpoint URL, empty for AWS, and region in use.
    pub fn place(&self) -> Place<'_> {
        Place { bucket: &self.name, url: &self.url, region: &self.region }
    }

    /// Requests sent so far, and how many of them the store pushed back or lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.requests.load(Ordering::Relaxed), self.shared.pushed_back.load(Ordering::Relaxed))
    }

    /// The fastest answer so far: about one round trip to the store.
    pub fn round_trip(&self) -> Option<Duration> {
        let fastest = self.shared.fastest.load(Ordering::Relaxed);
        (fastest > 0).then(|| Duration::from_micros(fastest))
    }

    /// The error for the user. `doing` names what failed and on what.
    pub fn explain(&self, failure: Failure, doing: &str) -> Error {
        failure.into_error(doing, &self.place())
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Sends a request, and again with back-off while the failure is transient. Once the store is known to be lost,
    /// for whatever request, all of them fail at once: a run with thousands of blobs must not wait for each.
    async fn retried<T, F>(&self, send: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut tried = 0;
        let worked_before = self.shared.answered.load(Ordering::Relaxed);
        loop {
            if let Some(lost) = self.shared.lost().clone() {
                return Err(lost);
            }
            self.shared.requests.fetch_add(1, Ordering::Relaxed);
            let sent = Instant::now();
            let failure = match send().await {
                Ok(value) => {
                    self.shared.answered.store(true, Ordering::Relaxed);
                    self.shared.note_time(sent.elapsed());
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            tried += 1;
            if !failure.cause.is_transient() {
                // Credentials that were accepted before may have ended: then they will not begin to be right again.
                if failure.cause == Cause::BadCredentials && worked_before {
                    self.give_up_if_lost(&failure).await;
                }
                return Err(failure);
            }
            self.shared.pushed_back.fetch_add(1, Ordering::Relaxed);
            let answered = failure.cause == Cause::Busy || self.shared.answered.load(Ordering::Relaxed);
            if tried >= if answered { TRIES } else { FIRST_TRIES } {
                self.give_up_if_lost(&failure).await;
                return Err(failure);
            }
            let pause = back_off(tried, failure.retry_after);
            tracing::debug!(try_number = tried, pause_ms = pause.as_millis() as u64, reason = %failure.detail, "request is tried again");
            tokio::time::sleep(pause).await;
        }
    }

    /// A request failed for good. If the store does not even list one key, for such a reason, it is lost; otherwise only
    /// that request has a problem.
    async fn give_up_if_lost(&self, failure: &Failure) {
        // One finds out, and the others wait for it: none of them goes on to the next blob meanwhile.
        let mut probed = self.shared.probed.lock().await;
        if self.shared.lost().is_some() || probed.is_some_and(|time| time.elapsed() < PROBE_AGAIN) {
            return;
        }
        let request = self.s3.list_objects_v2().bucket(&self.name).prefix(&self.prefix).max_keys(1);
        match answer_within(CONNECT * 2, request.send()).await {
            Err(probe) if probe.cause.is_transient() || probe.cause == Cause::BadCredentials => {
                *self.shared.lost() = Some(failure.clone());
            }
            _ => *probed = Some(Instant::now()),
        }
    }

    /// All objects whose keys begin with `prefix`.
    ///
    /// # Errors
    /// Any page that fails fails the whole listing.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>, Failure> {
        let mut objects = Vec::new();
        let mut token = None;
        loop {
            let (page, next) = self.list_page(prefix, token, 1000).await?;
            objects.extend(page);
            match next {
                Some(next) => token = Some(next),
                None => return Ok(objects),
            }
        }
    }

    /// One page of a listing and the token of the next.
    ///
    /// # Errors
    /// When the request fails, or the store says that there is more without saying where.
    pub async fn list_page(
        &self,
        prefix: &str,
        token: Option<String>,
        max: i32,
    ) -> Result<(Vec<Object>, Option<String>), Failure> {
        let full = self.key(prefix);
        let output = self
            .retried(|| {
                let request = self.s3.list_objects_v2().bucket(&self.name).prefix(&full).max_keys(max);
                answer(request.set_continuation_token(token.clone()).send())
            })
            .await?;
        let next = output.next_continuation_token().filter(|next| !next.is_empty()).map(String::from);
        if output.is_truncated() == Some(true) && (next.is_none() || next == token) {
            return Err(Failure::new(Cause::Other, "the store sent a listing that ends in the middle"));
        }
        let objects = output.contents().iter().filter_map(|object| {
            Some(Object {
                key: object.key()?.strip_prefix(&self.prefix)?.to_string(),
                size: u64::try_from(object.size()?).ok()?,
                etag: object.e_tag().and_then(unquoted),
                modified: object.last_modified().and_then(|time| SystemTime::try_from(*time).ok()),
            })
        });
        Ok((objects.collect(), if output.is_truncated() == Some(true) { next } else { None }))
    }

    /// A small object, or `None` when there is no such key.
    ///
    /// # Errors
    /// Also [`Cause::TooLarge`], when it is larger than `limit` bytes.
    pub async fn get_small(&self, key: &str, limit: u64) -> Result<Option<Small>, Failure> {
        let full = self.key(key);
        let read = || async {
            let output = answer(self.s3.get_object().bucket(&self.name).key(&full).send()).await?;
            let modified = output.last_modified().and_then(|time| SystemTime::try_from(*time).ok());
            let expected = output.content_length().and_then(|length| u64::try_from(length).ok());
            let etag = output.e_tag().and_then(unquoted);
            let mut download = Download { body: output.body, object_size: None, etag: None };
            let mut bytes = Vec::new();
            while let Some(piece) = download.next().await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > limit {
                    return Err(Failure::new(Cause::TooLarge, format!("it is larger than {limit} bytes")));
                }
            }
            if expected.is_some_and(|expected| expected != bytes.len() as u64) {
                return Err(Failure::new(Cause::Broken, "the download ended early"));
            }
            Ok(Small { bytes: bytes.into(), etag, modified })
        };
        match self.retried(read).await {
            Ok(small) => Ok(Some(small)),
            Err(failure) if failure.cause == Cause::NoSuchKey => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Opens an object for reading: all of it, or the bytes from `range.0` to `range.1` (exclusive).
    ///
    /// # Errors
    /// [`Cause::NoSuchKey`], [`Cause::Changed`] when the object is no longer the one with `etag`, and the rest.
    pub async fn get(&self, key: &str, range: Option<(u64, u64)>, etag: Option<&str>) -> Result<Download, Failure> {
        let full = self.key(key);
        let range_text = range.map(|(from, to)| format!("bytes={from}-{}", to - 1));
        let condition = etag.map(|etag| format!("\"{etag}\""));
        let short = AtomicBool::new(true);
        let open = || async {
            if short.swap(false, Ordering::Relaxed) {
                let headers: Vec<_> = [("range", &range_text), ("if-match", &condition)]
                    .into_iter()
                    .filter_map(|(name, value)| Some((name, value.clone()?)))
                    .collect();
                let headers = headers.as_slice();
                let request = Request { method: "GET", key: &full, query: "", headers, payload: Payload::Empty };
                let sent = self.wire.send(request, SdkBody::empty);
                let sent = tokio::time::timeout(ANSWER, sent).await;
                if let Some(response) = sent.map_err(|_| Failure::new(Cause::Broken, "no answer in time"))?? {
                    return Ok(Opened::from_answer(response));
                }
            }
            let request = self.s3.get_object().bucket(&self.name).key(&full).set_range(range_text.clone());
            answer(request.set_if_match(condition.clone()).send()).await.map(Opened::from_sdk)
        };
        let opened = self.retried(open).await?;
        let object_size = match &opened.range {
            Some(text) => text.rsplit('/').next().and_then(|size| size.parse().ok()),
            // A store that ignores the range sends everything: never take that for the part.
            None if range.is_some_and(|(from, to)| opened.length != Some(to - from) || from != 0) => {
                return Err(Failure::new(Cause::Other, "the store does not honour ranges"));
            }
            None => opened.length,
        };
        Ok(Download { body: opened.body, object_size, etag: opened.etag })
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn put_small(&self, key: &str, bytes: Bytes) -> Result<(), Failure> {
        let size = bytes.len() as u64;
        self.put(key, size, None, &|pulse| MemoryBody::sdk_body(&bytes, pulse)).await
    }

    /// Writes a small object under a condition, which is dropped where the store does not know conditions.
    ///
    /// # Errors
    /// [`Cause::Changed`] when the condition does not hold. After a lost answer that may also be due to this very
    /// write: read what is there.
    pub async fn put_small_if(&self, key: &str, bytes: Bytes, condition: &Condition) -> Result<(), Failure> {
        let size = bytes.len() as u64;
        let body = |pulse: &Pulse| MemoryBody::sdk_body(&bytes, pulse);
        match self.put_with(key, size, None, Some(condition), &body).await {
            Err(failure) if failure.cause == Cause::Unsupported => self.put(key, size, None, &body).await,
            done => done,
        }
    }

    /// Writes an object in one request. For a blob named by its sha256 that name is the signed payload hash, so the
    /// store itself refuses other bytes.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn put(&self, key: &str, size: u64, name: Option<&BlobId>, body: MakeBody<'_>) -> Result<(), Failure> {
        self.put_with(key, size, name, None, body).await
    }

    async fn put_with(
        &self,
        key: &str,
        size: u64,
        name: Option<&BlobId>,
        condition: Option<&Condition>,
        body: MakeBody<'_>,
    ) -> Result<(), Failure> {
        let full = self.key(key);
        let hash = name.filter(|name| matches!(name, BlobId::Sha256(_))).map(BlobId::to_string);
        let (absent, unchanged) = match condition {
            None => (None, None),
            Some(Condition::Absent) => (Some("*".to_string()), None),
            Some(Condition::Unchanged(etag)) => (None, Some(format!("\"{etag}\""))),
        };
        // Whether the fast path is still to be tried: blobs alone take it.
        let short = AtomicBool::new(name.is_some() && condition.is_none());
        let send = || async {
            let pulse = Pulse::default();
            if short.swap(false, Ordering::Relaxed) {
                let headers = [("content-type", "application/octet-stream".to_string())];
                let payload = hash.clone().map_or(Payload::Unsigned, Payload::Sha256);
                let request = Request { method: "PUT", key: &full, query: "", headers: &headers, payload };
                let sent = self.wire.send(request, || body(&pulse));
                if pulse.guard(size, sent).await?.is_some() {
                    return Ok(());
                }
            }
            let request = self
                .s3
                .put_object()
                .set_if_none_match(absent.clone())
                .set_if_match(unchanged.clone())
                .bucket(&self.name)
                .key(&full)
                .content_type("application/octet-stream")
                .content_length(size as i64)
                .body(ByteStream::new(body(&pulse)))
                .customize();
            let request = match &hash {
                Some(hash) => request.interceptor(PayloadHash(hash.clone())),
                None => request.disable_payload_signing(),
            };
            pulse.guard(size, boxed(request.send())).await.map(|_| ())
        };
        self.retried(send).await
    }

    /// Deletes an object; one that is not there is no error.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn delete(&self, key: &str) -> Result<(), Failure> {
        let full = self.key(key);
        let send = || answer(self.s3.delete_object().bucket(&self.name).key(&full).send());
        match self.retried(send).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.cause == Cause::NoSuchKey => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Size of an object, or `None` when there is none.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn head(&self, key: &str) -> Result<Option<u64>, Failure> {
        let full = self.key(key);
        let send = || answer(self.s3.head_object().bucket(&self.name).key(&full).send());
        match self.retried(send).await {
            Ok(output) => Ok(output.content_length().and_then(|length| u64::try_from(length).ok())),
            Err(failure) if failure.cause == Cause::NoSuchKey => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the bucket is there and these credentials may see it, and how far the store's clock is ahead of
    /// ours in seconds.
    ///
    /// # Errors
    /// The reason in the store's words: HEAD has none, so a listing of one key follows a refusal.
    pub async fn head_bucket(&self) -> Result<Option<i64>, Failure> {
        let clock = Clock::default();
        let send = || answer(self.s3.head_bucket().bucket(&self.name).customize().interceptor(clock.clone()).send());
        match self.retried(send).await {
            Ok(_) => {}
            // HEAD cannot tell a missing bucket from a missing key.
            Err(failure)
                if matches!(failure.cause, Cause::NoSuchKey | Cause::Denied | Cause::Other | Cause::WrongRegion) =>
            {
                match self.list_page("", None, 1).await {
                    Ok(_) => {}
                    Err(reason) if reason.cause == Cause::NoSuchKey => {
                        return Err(Failure { cause: Cause::NoSuchBucket, ..reason });
                    }
                    Err(reason) => return Err(reason),
                }
            }
            Err(failure) => return Err(failure),
        }
        let ahead = clock.0.load(Ordering::Relaxed);
        Ok((ahead != i64::MIN as u64).then_some(ahead as i64))
    }

    /// Starts a multipart upload.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn start_parts(&self, key: &str) -> Result<String, Failure> {
        let full = self.key(key);
        let send = || {
            let request = self.s3.create_multipart_upload().bucket(&self.name).key(&full);
            answer(request.content_type("application/octet-stream").send())
        };
        let output = self.retried(send).await?;
        output.upload_id().map(String::from).ok_or_else(|| Failure::new(Cause::Other, "the store gave no upload id"))
    }

    /// Sends one part.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: i32,
        size: u64,
        body: MakeBody<'_>,
    ) -> Result<Part, Failure> {
        let full = self.key(key);
        let short = AtomicBool::new(wire::is_plain(upload));
        let send = || async {
            let pulse = Pulse::default();
            if short.swap(false, Ordering::Relaxed) {
                let query = format!("?partNumber={number}&uploadId={upload}");
                let payload = Payload::Unsigned;
                let request = Request { method: "PUT", key: &full, query: &query, headers: &[], payload };
                let sent = self.wire.send(request, || body(&pulse));
                if let Some(response) = pulse.guard(size, sent).await? {
                    return Ok(response.headers().get("etag").map(String::from));
                }
            }
            let request = self
                .s3
                .upload_part()
                .bucket(&self.name)
                .key(&full)
                .upload_id(upload)
                .part_number(number)
                .content_length(size as i64)
                .body(ByteStream::new(body(&pulse)))
                .customize()
                .disable_payload_signing();
            let sent = pulse.guard(size, boxed(request.send())).await?;
            Ok(sent.e_tag().map(String::from))
        };
        let etag = self.retried(send).await?;
        let etag = etag.ok_or_else(|| Failure::new(Cause::Other, "the store gave no part etag"))?;
        Ok(Part { number, etag, size })
    }

    /// The parts that the store has of an upload, or `None` when it does not know the upload any more.
    ///
    /// # Errors
    /// When the request fails for good.
    pub async fn parts(&self, key: &str, upload: &str) -> Result<Option<Vec<Part>>, Failure> {
        let full = self.key(key);
        let mut parts = Vec::new();
        let mut marker: Option<String> = None;
        loop {
            let send = || {
                let request = self.s3.list_parts().bucket(&self.name).key(&full).upload_id(upload);
                answer(request.set_part_number_marker(marker.clone()).send())
            };
            let output = match self.retried(send).await {
                Ok(output) => output,
                Err(failure) if matches!(failure.cause, Cause::NoSuchUpload | Cause::NoSuchKey) => return Ok(None),
                Err(failure) => return Err(failure),
            };
            parts.extend(output.parts().iter().filter_map(|part| {
                Some(Part {
                    number: part.part_number()?,
                    etag: part.e_tag()?.to_string(),
                    size: u64::try_from(part.size()?).ok()?,
                })
            }));
            let next = output.next_part_number_marker().map(String::from);
            if output.is_truncated() != Some(true) || next.is_none() || next == marker {
                return Ok(Some(parts));
            }
            marker = next;
        }
    }

    /// Makes an object of its parts. An answer that got lost is looked up before it counts as a failure.
    ///
    /// # Errors
    /// When the request fails for good and the object is not there with this size.
    pub async fn finish_parts(&self, key: &str, upload: &str, parts: &[Part]) -> Result<(), Failure> {
        let full = self.key(key);
        let completed =
            parts.iter().map(|part| CompletedPart::builder().part_number(part.number).e_tag(&part.etag).build());
        let all = CompletedMultipartUpload::builder().set_parts(Some(completed.collect())).build();
        let send = || {
            let request = self.s3.complete_multipart_upload().bucket(&self.name).key(&full).upload_id(upload);
            // Putting the parts together takes a store a while: allow more than for another answer.
            answer_within(ANSWER * 5, request.multipart_upload(all.clone()).send())
        };
        match self.retried(send).await {
            Ok(_) => Ok(()),
            Err(failure) => {
                let size: u64 = parts.iter().map(|part| part.size).sum();
                if self.head(key).await? == Some(size) { Ok(()) } else { Err(failure) }
            }
        }
    }

    /// Gives up a multipart upload, so that its parts are not billed. Best effort.
    pub async fn abort_parts(&self, key: &str, upload: &str) {
        let full = self.key(key);
        let sent =
            answer(self.s3.abort_multipart_upload().bucket(&self.name).key(&full).upload_id(upload).send()).await;
        if let Err(failure) = sent {
            tracing::debug!(key = full, reason = failure.detail, "an unfinished upload could not be aborted");
        }
    }
}

/// The answer to a GET, as far as it matters.
struct Opened {
    length: Option<u64>,
    range: Option<String>,
    etag: Option<String>,
    body: ByteStream,
}

impl Opened {
    fn from_sdk(output: GetObjectOutput) -> Self {
        Opened {
            length: output.content_length().and_then(|length| u64::try_from(length).ok()),
            range: output.content_range().map(String::from),
            etag: output.e_tag().and_then(unquoted),
            body: output.body,
        }
    }

    fn from_answer(response: HttpResponse) -> Self {
        let header = |name: &str| response.headers().get(name);
        Opened {
            length: header("content-length").and_then(|text| text.parse().ok()),
            range: header("content-range").map(String::from),
            etag: header("etag").and_then(unquoted),
            body: ByteStream::new(response.into_body()),
        }
    }
}

fn answer<T, E>(send: impl Future<Output = Result<T, SdkError<E>>>) -> impl Future<Output = Result<T, Failure>>
where
    E: ProvideErrorMetadata,
{
    answer_within(ANSWER, send)
}

fn answer_within<T, E>(
    limit: Duration,
    send: impl Future<Output = Result<T, SdkError<E>>>,
) -> impl Future<Output = Result<T, Failure>>
where
    E: ProvideErrorMetadata,
{
    let send = boxed(send);
    async move {
        match tokio::time::timeout(limit, send).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(Cause::Broken, "no answer in time")),
        }
    }
}

/// The SDK's futures are 10 kB each. In a box they do not make every future around them as large, which would be moved
/// several times for each blob even when it takes the fast path.
fn boxed<T, E>(send: impl Future<Output = Result<T, SdkError<E>>>) -> Pin<Box<impl Future<Output = Result<T, Failure>>>>
where
    E: ProvideErrorMetadata,
{
    Box::pin(async { send.await.map_err(|e| Failure::from_sdk(&e)) })
}

/// 0.25 s, doubling to 15 s, with full jitter; never less than the store asks for.
pub(super) fn back_off(tried: u32, asked: Option<Duration>) -> Duration {
    let most = Duration::from_millis(250) * 2u32.pow(tried.min(7) - 1);
    let pause = most.min(Duration::from_secs(15)).mul_f64(0.5 + rand::random::<f64>() / 2.0);
    pause.max(asked.unwrap_or_default())
}

/// An ETag without its quotes. A weak one, which proxies make, says nothing of the bytes and may not be in a condition.
fn unquoted(etag: &str) -> Option<String> {
    (!etag.starts_with("W/")).then(|| etag.trim_matches('"').to_string())
}

async fn profile_region() -> Option<String> {
    use aws_config::meta::region::ProvideRegion;
    let region = aws_config::profile::ProfileFileRegionProvider::new().region().await?;
    Some(region.as_ref().to_string())
}

async fn provider(credentials: &Credentials, region: &str) -> Result<SharedCredentialsProvider> {
    if let Credentials::Incomplete(why) = credentials {
        return Err(Error::usage("the credentials are incomplete")
            .because(why.clone())
            .hint("set both halves of the pair"));
    }
    if let Some(KeyPair { id, secret, session_token }) = credentials.pair() {
        let token = session_token.as_ref().map(|token| token.expose().to_string());
        let keys = aws_credential_types::Credentials::new(id.expose(), secret.expose(), token, None, "hf-cache-sync");
        return Ok(SharedCredentialsProvider::new(keys));
    }
    // Off the cloud nothing answers at the metadata address: one short try instead of seconds.
    let metadata = aws_config::imds::Client::builder()
        .connect_timeout(Duration::from_millis(500))
        .read_timeout(Duration::from_millis(1000))
        .max_attempts(1)
        .build();
    let chain = aws_config::default_provider::credentials::DefaultCredentialsChain::builder()
        .region(Region::new(region.to_string()))
        .imds_client(metadata)
        .build()
        .await;
    match chain.provide_credentials().await {
        Ok(_) => Ok(SharedCredentialsProvider::new(chain)),
        Err(error) => {
            tracing::debug!(%error, "the AWS credential chain found nothing");
            Err(Error::new(Kind::Credentials, "no credentials were found")
                .because("looked in B2_* and AWS_* variables, the configuration file, and the AWS profile, web identity, container and instance")
                .hint("export the pair, or set storage.access_key and storage.secret_key in .hf-cache-sync.yaml"))
        }
    }
}

/// Writes the user agent that the store's statistics know, which is not part of the signature, and shows the fast path
/// where requests go.
#[derive(Debug)]
struct OnItsWay {
    agent: String,
    wire: Arc<Wire>,
}

impl Intercept for OnItsWay {
    fn name(&self) -> &'static str {
        "OnItsWay"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        components: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.wire.learn(context.request().uri(), components);
        let headers = context.request_mut().headers_mut();
        let sdk = headers.get("user-agent").unwrap_or_default().to_string();
        headers.insert("user-agent", format!("{} {sdk}", self.agent).trim_end().to_string());
        Ok(())
    }
}

/// Signs with a payload hash that is known already.
#[derive(Debug)]
struct PayloadHash(String);

impl Intercept for PayloadHash {
    fn name(&self) -> &'static str {
        "PayloadHash"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        bag.interceptor_state().store_put(PayloadSigningOverride::Precomputed(self.0.clone()));
        Ok(())
    }
}

/// Reads the `date` header of an answer: seconds that the store is ahead of this machine.
#[derive(Debug, Clone)]
struct Clock(Arc<AtomicU64>);

impl Default for Clock {
    fn default() -> Self {
        Clock(Arc::new(AtomicU64::new(i64::MIN as u64)))
    }
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "Clock"
    }

    fn read_before_deserialization(
        &self,
        context: &aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
        let date = context.response().headers().get("date");
        if let Some(theirs) = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok()) {
            let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
            self.0.store((theirs.secs() - ours) as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_etags_are_none() {
        assert_eq!(unquoted("\"0a1b\"").as_deref(), Some("0a1b"));
        assert_eq!(unquoted("0a1b").as_deref(), Some("0a1b"));
        assert_eq!(unquoted("W/\"0a1b\""), None);
    }

    #[test]
    fn back_off_grows_is_bounded_and_heeds_the_store() {
        assert!(back_off(1, None) <= Duration::from_millis(250));
        assert!((1..40).all(|tried| back_off(tried, None) <= Duration::from_secs(15)));
        assert_eq!(back_off(1, Some(Duration::from_secs(30))), Duration::from_secs(30));
    }
}
