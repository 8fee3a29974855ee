//! The one way that requests take to the store. Each gets its headers here, is signed or not, and is sent; and what an
//! answer tells of the store is learned here, once for the run: the bucket's region, where its name belongs in URLs,
//! that uploads need a checksum.
//!
//! Connections, TLS, proxies, AWS's endpoints and signatures are the AWS SDK's. Its operations are not used: their
//! machinery costs more than moving a small blob does, takes a listing that was cut for a whole one, and refuses
//! answers for dates that nobody needs.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use sha2::Digest;

use super::answer::{self, Refusal, Unreadable};
use super::client::body::{MakeBody, MemoryBody, Pulse, STALL};
use super::connection::{Net, target};
use super::credentials;
use super::endpoint::{Route, Style, Way, encoded, resolved};
use super::error::{Cause, Failure};
use crate::config::Checksums;
use crate::error::{Result, printable};
use crate::net::log::RequestLog;
use crate::progress::{Event, Progress};

/// A request without a body must be answered within this time.
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// Credentials that end within this time are asked for anew,
const ENDING: Duration = Duration::from_secs(300);
/// but not more often than this: a provider may have none that last longer, and may have to start a process for them.
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// How often a request is sent otherwise after what was learned from a refusal.
const LESSONS: usize = 5;
/// After so many listings in a row no more are asked for encoded keys.
const REFUSED_ENCODING: u32 = 2;
/// How often the way to the bucket changes in a run. More is a loop.
const MOVES: u32 = 2;
/// Redirects that a reader follows.
const HOPS: usize = 5;
/// The header of one kind of checksum.
pub(super) const CRC32: &str = "x-amz-checksum-crc32";
/// Bytes of a refusal that are read.
const REFUSAL: usize = 64 << 10;
/// Bytes of an answer in XML that are read.
const XML: usize = 32 << 20;

/// What requests carry, by the configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) agent: String,
    /// On every request.
    pub(super) everywhere: Vec<(&'static str, String)>,
    /// On requests that make an object.
    pub(super) on_creation: Vec<(&'static str, String)>,
    /// Whether the place of the bucket's name may be learned.
    pub(super) any_style: bool,
    /// What uploads carry for the store to compare.
    pub(super) checksums: Checksums,
}

/// The way to one bucket.
pub(super) struct Wire {
    net: Net,
    settings: Settings,
    /// None: requests are not signed.
    provider: Option<SharedCredentialsProvider>,
    /// Whether the provider may have others than those that it gave.
    renewable: bool,
    /// With the time when they were asked for.
    credentials: Mutex<Option<(Credentials, Instant)>>,
    route: RwLock<Arc<Route>>,
    moves: AtomicU32,
    restyled: AtomicBool,
    checksums: AtomicBool,
    hashes: AtomicBool,
    /// Listings in a row that the store refused to encode, and gave without.
    refused_encoding: AtomicU32,
    /// Seconds that the store is ahead of this machine, once it is known.
    ahead: AtomicI64,
    progress: Arc<dyn Progress>,
    /// What to tell once it has turned out to be right.
    unsaid: Mutex<Vec<String>>,
    has_unsaid: AtomicBool,
    /// The way that the configuration names.
    first: Arc<Route>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("route", &self.route).finish_non_exhaustive()
    }
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    List,
    Read,
    Head,
    HeadBucket,
    Put,
    /// A write under a condition, which a store may not know.
    PutIf,
    Delete,
    StartParts,
    PutPart,
    ListParts,
    FinishParts,
    AbortParts,
    /// Deletes many objects in one request.
    DeleteMany,
    ListUploads,
    Versioning,
}

impl Op {
    fn method(self) -> &'static str {
        match self {
            Op::List | Op::Read | Op::ListParts | Op::ListUploads | Op::Versioning => "GET",
            Op::Head | Op::HeadBucket => "HEAD",
            Op::Put | Op::PutIf | Op::PutPart => "PUT",
            Op::StartParts | Op::FinishParts | Op::DeleteMany => "POST",
            Op::Delete | Op::AbortParts => "DELETE",
        }
    }

    pub(super) fn creates(self) -> bool {
        matches!(self, Op::Put | Op::PutIf | Op::StartParts)
    }

    fn uploads(self) -> bool {
        matches!(self, Op::Put | Op::PutIf | Op::PutPart)
    }

    /// Whether it takes room in the store.
    pub(super) fn fills(self) -> bool {
        matches!(self, Op::Put | Op::PutIf | Op::PutPart | Op::StartParts)
    }

    /// Whether it may go to wherever an answer sends it.
    fn roams(self) -> bool {
        matches!(self, Op::Read | Op::Head)
    }

    /// Whether it is about an upload in parts that was started before.
    fn of_upload(self) -> bool {
        matches!(self, Op::PutPart | Op::ListParts | Op::FinishParts | Op::AbortParts)
    }

    /// Whether it is about the bucket and not about one key.
    fn of_bucket(self) -> bool {
        matches!(self, Op::List | Op::HeadBucket | Op::DeleteMany | Op::ListUploads | Op::Versioning)
    }
}

/// A request.
pub(super) struct Request<'a> {
    pub(super) op: Op,
    /// Empty: the bucket.
    pub(super) key: &'a str,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload<'a>,
    /// For the answer to a request whose body is not streamed.
    pub(super) patience: Duration,
}

impl<'a> Request<'a> {
    pub(super) fn new(op: Op, key: &'a str) -> Self {
        Request { op, key, query: Vec::new(), headers: Vec::new(), payload: Payload::Empty, patience: ANSWER }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }
}

/// The body of a request.
pub(super) enum Payload<'a> {
    Empty,
    /// Small, and signed.
    Bytes(Bytes),
    /// Made anew for each try. Its sha256, where it is known, is signed.
    Stream {
        size: u64,
        sha256: Option<String>,
        make: MakeBody<'a>,
    },
}

impl Wire {
    pub(super) fn new(
        net: Net,
        settings: Settings,
        credentials: credentials::Found,
        way: Way,
        progress: Arc<dyn Progress>,
    ) -> Result<Wire> {
        let keys = credentials.first.map(|keys| (keys, Instant::now()));
        let first = Arc::new(way.route()?);
        Ok(Wire {
            checksums: AtomicBool::new(matches!(settings.checksums, Checksums::Md5 | Checksums::Crc32)),
            net,
            settings,
            provider: credentials.provider,
            renewable: credentials.renewable,
            credentials: Mutex::new(keys),
            route: RwLock::new(first.clone()),
            moves: AtomicU32::new(0),
            restyled: AtomicBool::new(false),
            hashes: AtomicBool::new(false),
            refused_encoding: AtomicU32::new(0),
            ahead: AtomicI64::new(i64::MIN),
            progress,
            unsaid: Mutex::default(),
            has_unsaid: AtomicBool::new(false),
            first,
        })
    }

    /// Where requests go now.
    pub(super) fn route(&self) -> Arc<Route> {
        self.route.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Whether listings ask for encoded keys.
    pub(super) fn encodes_keys(&self) -> bool {
        self.refused_encoding.load(Ordering::Relaxed) < REFUSED_ENCODING
    }

    /// Seconds that the store's clock is ahead of ours, where it was told.
    pub(super) fn ahead(&self) -> Option<i64> {
        Some(self.ahead.load(Ordering::Relaxed)).filter(|ahead| *ahead != i64::MIN)
    }

    /// Sends a request. An answer that says how it should have been sent is heeded; success is returned with the
    /// body still to be read.
    ///
    /// # Errors
    /// What the answer means, or why there is none.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<HttpResponse, Failure> {
        let mut renewed = false;
        let mut plain_keys = false;
        let mut last = None;
        for _ in 0..LESSONS {
            let route = self.route();
            let lists_encoded = request.op == Op::List && !plain_keys && self.encodes_keys();
            let checksum = request.op.uploads() && self.checksums.load(Ordering::Relaxed);
            let hash = request.op.uploads() && self.hashes.load(Ordering::Relaxed);
            let url = self.url(&route, request, lists_encoded);
            let response = self.once(&route, &url, request, checksum, hash).await?;
            let status = response.status().as_u16();
            if (200..300).contains(&status) {
                self.say_what_was_right();
                if lists_encoded {
                    self.refused_encoding.store(0, Ordering::Relaxed);
                } else if plain_keys {
                    self.refused_encoding.fetch_add(1, Ordering::Relaxed);
                }
                return self.success(request.op, response).await;
            }
            let answered = Answered::read(status, response).await;
            if request.op.roams() && answered.sends_readers_away() {
                return self.follow(&url, request, answered).await;
            }
            let failure = self.failure(request.op, &url, &answered);
            let learned = match failure.cause {
                Cause::PathStyle => self.restyle(&route, Style::Virtual),
                Cause::VirtualStyle => self.restyle(&route, Style::Path),
                Cause::ChecksumNeeded
                    if request.op.uploads() && !checksum && self.settings.checksums == Checksums::Auto =>
                {
                    // Of many that are refused at once, one says so.
                    if !self.checksums.swap(true, Ordering::Relaxed) {
                        self.say(
                            "the store wants a checksum with each upload, and gets one from now on; \
                             storage.checksums: md5 saves the refusal",
                        );
                    }
                    true
                }
                Cause::HashNeeded if request.op.uploads() && !hash => {
                    self.hashes.store(true, Ordering::Relaxed);
                    true
                }
                Cause::Expired | Cause::BadCredentials if self.renewable && !renewed => {
                    renewed = true;
                    failure.cause == Cause::Expired && self.forget_credentials()
                }
                Cause::Unsupported | Cause::Other if lists_encoded && matches!(status, 400 | 501) => {
                    // For this listing alone: once may be an accident.
                    plain_keys = true;
                    true
                }
                _ if matches!(status, 301 | 302 | 303 | 307 | 308 | 400) || failure.cause == Cause::WrongRegion => {
                    self.relocate(&route, &answered)
                }
                _ => false,
            };
            if !learned {
                if failure.cause == Cause::WrongRegion {
                    self.go_back();
                }
                return Err(failure);
            }
            last = Some(failure);
        }
        Err(last.unwrap_or_else(|| Failure::new(Cause::Other, "the store sends requests round in circles")))
    }

    fn url(&self, route: &Route, request: &Request<'_>, lists_encoded: bool) -> String {
        let mut url = format!("{}/{}", route.base, encoded(request.key, true));
        let asked = lists_encoded.then(|| ("encoding-type", "url".to_string()));
        for (at, (name, value)) in request.query.iter().chain(&asked).enumerate() {
            url.push(if at == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.push_str(&encoded(value, false));
        }
        url
    }

    /// Sends the request once, as it is.
    async fn once(
        &self,
        route: &Route,
        url: &str,
        request: &Request<'_>,
        checksum: bool,
        hash: bool,
    ) -> Result<HttpResponse, Failure> {
        let Request { op, payload, .. } = request;
        let mut headers: Vec<(&'static str, String)> = self.settings.everywhere.clone();
        if op.creates() {
            headers.push(("content-type", "application/octet-stream".into()));
            headers.extend(self.settings.on_creation.iter().cloned());
        }
        headers.extend(request.headers.iter().cloned());
        let pulse = Pulse::default();
        let (body, content, size) = match payload {
            Payload::Empty => (SdkBody::empty(), SignableBody::Bytes(b""), 0),
            Payload::Bytes(bytes) => {
                (MemoryBody::sdk_body(bytes, &pulse), SignableBody::Bytes(bytes), bytes.len() as u64)
            }
            Payload::Stream { size, sha256, make } => {
                let digests =
                    if checksum || (hash && sha256.is_none()) { Some(digests(make, &pulse).await?) } else { None };
                if let (true, Some(digests)) = (checksum, &digests) {
                    headers.push(match self.settings.checksums {
                        Checksums::Crc32 => (CRC32, base64(&digests.crc32.to_be_bytes())),
                        _ => ("content-md5", base64(&digests.md5)),
                    });
                }
                let known = sha256.clone().or_else(|| digests.filter(|_| hash).map(|digests| hex(&digests.sha256)));
                (make(&pulse), known.map_or(SignableBody::UnsignedPayload, SignableBody::Precomputed), *size)
            }
        };
        if *op == Op::StartParts && self.settings.checksums == Checksums::Crc32 {
            headers.push(("x-amz-checksum-algorithm", "CRC32".into()));
        }
        let mut sent = HttpRequest::new(body);
        let unbuildable = |_| Failure::new(Cause::Other, "the request could not be built");
        sent.set_method(op.method()).map_err(unbuildable)?;
        sent.set_uri(url).map_err(unbuildable)?;
        for (name, value) in &headers {
            sent.headers_mut().try_insert(*name, value.clone()).map_err(unbuildable)?;
        }
        if let Some(credentials) = self.credentials().await? {
            for (name, value) in signature(&credentials, &route.way.region, op.method(), url, &headers, content)? {
                sent.headers_mut().try_insert(name, value).map_err(unbuildable)?;
            }
        }
        // A proxy must not change what is signed, nor the store what it sends.
        sent.headers_mut().try_insert("accept-encoding", "identity").map_err(unbuildable)?;
        sent.headers_mut().try_insert("user-agent", self.settings.agent.clone()).map_err(unbuildable)?;
        if matches!(op.method(), "PUT" | "POST") {
            sent.headers_mut().try_insert("content-length", size.to_string()).map_err(unbuildable)?;
        }
        let log = RequestLog::start(op.method(), url);
        let call = self.net.call(sent);
        let response = match payload {
            Payload::Stream { size, .. } => pulse.guard(*size, call).await,
            _ => in_time(request.patience, call).await,
        };
        if let Some(log) = log {
            log.finish(&response);
        }
        if let Ok(response) = &response {
            self.note_clock(*op, response);
        }
        response
    }

    fn note_clock(&self, op: Op, response: &HttpResponse) {
        if !op.of_bucket() && response.status().is_success() {
            return;
        }
        if let Some(theirs) = response.headers().get("date").and_then(answer::time) {
            let ahead = match theirs.duration_since(SystemTime::now()) {
                Ok(ahead) => ahead.as_secs() as i64,
                Err(behind) => -(behind.duration().as_secs() as i64),
            };
            self.ahead.store(ahead, Ordering::Relaxed);
        }
    }

    /// Looks at an answer that says that all went well: a proxy or a login page may say so too.
    async fn success(&self, op: Op, response: HttpResponse) -> Result<HttpResponse, Failure> {
        let header = |name: &str| response.headers().get(name).unwrap_or_default();
        let coding = header("content-encoding");
        let changed = coding.split(',').map(str::trim).find(|coding| {
            !coding.is_empty() && !["identity", "aws-chunked"].iter().any(|known| coding.eq_ignore_ascii_case(known))
        });
        if let Some(coding) = changed.filter(|_| matches!(op.method(), "GET" | "POST")) {
            let detail = format!("the answer is compressed: {}, {}", printable(coding, 40), who(&response));
            let hint = "something between here and the store compresses answers: go past it (NO_PROXY), or have it leave \
                        the store's alone";
            return Err(Failure::new(Cause::NotS3, detail).hint(hint));
        }
        let is_page = header("content-type").to_ascii_lowercase().starts_with("text/html");
        match op {
            Op::Read | Op::Head | Op::HeadBucket if is_page && header("etag").is_empty() => {
                Err(Failure::new(Cause::NotS3, format!("it answers with an HTML page, {}", who(&response))))
            }
            // There is nothing to say when all went well.
            Op::Put | Op::PutIf | Op::PutPart if is_page || header("content-length") != "0" => {
                self.wordy(response).await
            }
            _ => Ok(response),
        }
    }

    /// An answer to an upload that has a body, which may be a refusal or a page.
    async fn wordy(&self, mut response: HttpResponse) -> Result<HttpResponse, Failure> {
        let who = who(&response);
        let body = std::mem::replace(response.body_mut(), SdkBody::empty());
        // What does not arrive was not needed.
        let bytes = in_time(ANSWER, read(body, REFUSAL)).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        if answer::other_kind(&text) == Some("an HTML page") {
            return Err(Failure::new(Cause::NotS3, format!("it answers with an HTML page, {who}")));
        }
        match answer::Element::parse(&bytes) {
            Ok(root) if root.name() == "Error" => Err(Failure::refused(400, &Refusal::from_xml(&root))),
            _ => Ok(response),
        }
    }

    /// What a refusal means.
    fn failure(&self, op: Op, url: &str, answered: &Answered) -> Failure {
        let Answered { status, refusal, location, .. } = answered;
        let mut failure = Failure::refused(*status, refusal);
        failure.retry_after = answered.retry_after;
        if let Some(what) = &refusal.foreign {
            let lower = answered.text.to_ascii_lowercase();
            if lower.contains("to https port") || lower.contains("http request to an https server") {
                return Failure::new(Cause::Tls, "what answers there speaks TLS");
            }
            // A broken store, and a key that is not there, may be told by whatever stands before the store.
            let unclear = *status < 500 && !matches!(*status, 404 | 408 | 429)
                || *status == 511
                || (*status == 404 && !op.roams() && !op.of_upload());
            if unclear && failure.cause != Cause::ProxyRefused {
                return Failure::new(Cause::NotS3, format!("it answers {status} with {what}, {}", answered.who));
            }
        }
        if let (300..=399, Some(location)) = (*status, location)
            && refusal.code.is_none()
        {
            return redirected(url, location);
        }
        if *status == 404 && refusal.code.is_none() {
            failure.cause = match op {
                Op::List | Op::Put | Op::PutIf | Op::StartParts => Cause::NoSuchBucket,
                // The bucket is there: objects of it were listed before.
                Op::DeleteMany | Op::ListUploads | Op::Versioning => Cause::Unsupported,
                _ if op.of_upload() => Cause::NoSuchUpload,
                _ => failure.cause,
            };
        }
        if failure.cause == Cause::Denied && self.provider.is_none() {
            return failure
                .hint("storage.unsigned is on, so only public objects can be read; turn it off to use your key");
        }
        if failure.cause == Cause::ClockSkew {
            failure.detail = match self.ahead() {
                Some(ahead) if ahead.unsigned_abs() > 1 => {
                    let which = if ahead < 0 { "ahead of" } else { "behind" };
                    format!("it is {} s {which} the store's", ahead.unsigned_abs())
                }
                _ => String::new(),
            };
        }
        failure
    }

    /// Reads from where an answer sends readers: without a signature and without anything else of the user's.
    async fn follow(&self, url: &str, request: &Request<'_>, answered: Answered) -> Result<HttpResponse, Failure> {
        let mut from = url.to_string();
        let mut next = answered.location.unwrap_or_default();
        for _ in 0..HOPS {
            let Some(to) = resolved(&from, &next) else {
                return Err(Failure::new(Cause::NotS3, format!("it sends readers to {}", printable(&next, 200))));
            };
            if target(&from).2 && !target(&to).2 {
                return Err(Failure::new(Cause::NotS3, format!("it sends readers from https to {}", origin(&to))));
            }
            let mut sent = HttpRequest::new(SdkBody::empty());
            let unbuildable = |_| Failure::new(Cause::NotS3, format!("it sends readers to {}", origin(&to)));
            sent.set_method(request.op.method()).map_err(unbuildable)?;
            let without_fragment = to.split('#').next().unwrap_or_default();
            sent.set_uri(without_fragment).map_err(unbuildable)?;
            for (name, value) in request.headers.iter().filter(|(name, _)| *name == "range") {
                sent.headers_mut().try_insert(*name, value.clone()).map_err(unbuildable)?;
            }
            sent.headers_mut().try_insert("accept-encoding", "identity").map_err(unbuildable)?;
            sent.headers_mut().try_insert("user-agent", self.settings.agent.clone()).map_err(unbuildable)?;
            tracing::debug!("the store sends this reader to {}", origin(&to));
            let log = RequestLog::start(request.op.method(), &to);
            let answer = in_time(request.patience, self.net.call(sent)).await;
            if let Some(log) = log {
                log.finish(&answer);
            }
            let mut response = answer?;
            let status = response.status().as_u16();
            if (200..300).contains(&status) {
                // It says nothing of the object as the store knows it.
                response.headers_mut().remove("etag");
                if response.headers().get("content-type").is_some_and(|kind| kind.starts_with("text/html")) {
                    let detail = format!("it sends readers to an HTML page at {}, {}", origin(&to), who(&response));
                    return Err(Failure::new(Cause::NotS3, detail));
                }
                return self.success(Op::List, response).await;
            }
            let answered = Answered::read(status, response).await;
            match answered.location {
                Some(location) if (300..=399).contains(&status) => (from, next) = (to, location),
                _ => {
                    let mut failure = Failure::refused(status, &answered.refusal);
                    failure.retry_after = answered.retry_after;
                    failure.detail = format!("{} from {}, where the store sends readers", failure.detail, origin(&to));
                    return Err(failure);
                }
            }
        }
        Err(Failure::new(Cause::NotS3, format!("it sends readers round in circles, last to {}", origin(&from))))
    }

    /// Goes another way from now on, if the answer names one.
    fn relocate(&self, used: &Arc<Route>, answered: &Answered) -> bool {
        let region = answered.region.as_deref();
        let Some(way) = used.way.elsewhere(&answered.refusal, region, answered.location.as_deref()) else {
            return false;
        };
        let note = |from: &Route, to: &Route| {
            let settings = match (&from.way.endpoint, &to.way.endpoint) {
                (Some(from), Some(to)) if from != to => format!("storage.endpoint: {to} and storage.region: "),
                _ => "storage.region: ".to_string(),
            };
            format!(
                "bucket '{}' is in region {} at {}, not where it was looked for; {settings}{} saves the detour",
                to.way.bucket,
                to.way.region,
                if to.shown().is_empty() { "AWS S3".to_string() } else { to.shown() },
                to.way.region,
            )
        };
        self.change(used, way, &self.moves, MOVES, note)
    }

    /// Puts the bucket's name elsewhere from now on.
    fn restyle(&self, used: &Arc<Route>, style: Style) -> bool {
        if !self.settings.any_style || used.way.style == style || self.restyled.load(Ordering::Relaxed) {
            // Another request may have learned it meanwhile.
            return self.route().way != used.way && self.settings.any_style;
        }
        let once = AtomicU32::new(0);
        let (refused, name) = match style {
            Style::Virtual => ("path", "virtual"),
            Style::Path => ("host", "path"),
        };
        let note = |_: &Route, to: &Route| {
            format!(
                "{} refuses the bucket's name in the {refused}; storage.addressing_style: {name} saves the refusal",
                to.shown()
            )
        };
        let changed = self.change(used, Way { style, ..used.way.clone() }, &once, 1, note);
        self.restyled.store(true, Ordering::Relaxed);
        changed
    }

    fn change(
        &self,
        used: &Arc<Route>,
        way: Way,
        count: &AtomicU32,
        most: u32,
        note: impl Fn(&Route, &Route) -> String,
    ) -> bool {
        let mut route = self.route.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Another request has learned something meanwhile: first try with that.
        if !Arc::ptr_eq(&route, used) {
            return true;
        }
        if count.fetch_add(1, Ordering::Relaxed) >= most {
            return false;
        }
        let Ok(new) = way.route() else { return false };
        let text = note(&route, &new);
        *route = Arc::new(new);
        drop(route);
        self.say(&text);
        true
    }

    /// Keeps something to be told to the user when it has turned out to be right.
    fn say(&self, text: &str) {
        let mut unsaid = self.unsaid.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        unsaid.push(text.to_string());
        self.has_unsaid.store(true, Ordering::Relaxed);
    }

    fn say_what_was_right(&self) {
        if !self.has_unsaid.load(Ordering::Relaxed) {
            return;
        }
        let mut unsaid = self.unsaid.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.has_unsaid.store(false, Ordering::Relaxed);
        unsaid.drain(..).for_each(|text| self.progress.event(Event::Note(text)));
    }

    /// What answers have said of the way was wrong: what the configuration says is what the user can check.
    fn go_back(&self) {
        *self.route.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = self.first.clone();
        self.unsaid.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
    }

    fn forget_credentials(&self) -> bool {
        *self.credentials.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        true
    }

    /// The credentials; none where requests are not signed.
    async fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let Some(provider) = &self.provider else { return Ok(None) };
        let lasts = |(credentials, asked): &(Credentials, Instant)| {
            let left = credentials.expiry().map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
            left.is_none_or(|left| left > ENDING || asked.elapsed() < ASK_AGAIN)
        };
        let known = self.credentials.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some((known, _)) = known.filter(lasts) {
            return Ok(Some(known));
        }
        let fresh = match provider.provide_credentials().await {
            Ok(fresh) => fresh,
            Err(error) => return Err(Failure::new(Cause::BadCredentials, credentials::reason(&error).await.0)),
        };
        *self.credentials.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
            Some((fresh.clone(), Instant::now()));
        Ok(Some(fresh))
    }
}

fn signature(
    credentials: &Credentials,
    region: &str,
    method: &str,
    url: &str,
    headers: &[(&'static str, String)],
    content: SignableBody<'_>,
) -> Result<Vec<(String, String)>, Failure> {
    let unsigned = || Failure::new(Cause::BadCredentials, "the request could not be signed");
    let identity: Identity = credentials.clone().into();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    let params: SigningParams<'_> = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("s3")
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .map_err(|_| unsigned())?
        .into();
    let signable = headers.iter().map(|(name, value)| (*name, value.as_str()));
    let signable = SignableRequest::new(method, url, signable, content).map_err(|_| unsigned())?;
    let (signature, _) = sign(signable, &params).map_err(|_| unsigned())?.into_parts();
    let (signature, _) = signature.into_parts();
    Ok(signature.into_iter().map(|header| (header.name().to_string(), header.value().to_string())).collect())
}

/// A refusal or a redirect, read.
struct Answered {
    status: u16,
    refusal: Refusal,
    text: String,
    /// The bucket's, by a header.
    region: Option<String>,
    location: Option<String>,
    retry_after: Option<Duration>,
    who: String,
}

impl Answered {
    async fn read(status: u16, mut response: HttpResponse) -> Answered {
        let header = |name: &str| response.headers().get(name).map(|text| text.trim().to_string());
        let (region, location, retry) = (header("x-amz-bucket-region"), header("location"), header("retry-after"));
        let seconds = retry.and_then(|text| text.parse().ok());
        let who = who(&response);
        let body = std::mem::replace(response.body_mut(), SdkBody::empty());
        // Without its words the status has to do.
        let bytes = in_time(ANSWER, read(body, REFUSAL)).await.unwrap_or_default();
        Answered {
            status,
            refusal: Refusal::read(&bytes),
            text: String::from_utf8_lossy(&bytes).into_owned(),
            region,
            location: location.filter(|location| !location.is_empty()),
            retry_after: seconds.map(|seconds: u64| Duration::from_secs(seconds.min(60))),
            who,
        }
    }

    /// Whether a reader is to go to another place, such as a CDN, as against a bucket that is elsewhere.
    fn sends_readers_away(&self) -> bool {
        let is_stores_own = self.region.is_some() || self.refusal.code.is_some();
        self.location.is_some() && matches!(self.status, 301 | 302 | 303 | 307 | 308) && !is_stores_own
    }
}

/// A request that may not be followed was sent elsewhere.
fn redirected(url: &str, location: &str) -> Failure {
    let to = resolved(url, location).unwrap_or_else(|| location.to_string());
    let (from_host, _, from_tls) = target(url);
    let (to_host, _, to_tls) = target(&to);
    if !from_tls && to_tls && from_host.eq_ignore_ascii_case(to_host) {
        let hint = format!("use {} (storage.endpoint, B2_ENDPOINT or --endpoint)", origin(&to));
        return Failure::new(Cause::Tls, format!("it sends everybody to {}", origin(&to))).hint(hint);
    }
    Failure::new(Cause::NotS3, format!("it sends everybody to {}", printable(&origin(&to), 200)))
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    printable(&format!("{scheme}://{}", rest.split(['/', '?', '#']).next().unwrap_or_default()), 200)
}

/// What answers, in words.
pub(super) fn who(response: &HttpResponse) -> String {
    let header = |name: &str| response.headers().get(name).map(|text| printable(text.trim(), 60));
    let kind = header("content-type").filter(|text| !text.is_empty()).unwrap_or_else(|| "no content type".into());
    match header("server").filter(|text| !text.is_empty()) {
        Some(server) => format!("{kind}, server {server}"),
        None => kind,
    }
}

/// The failure when an answer is not the one that was asked for.
pub(super) fn unreadable(why: Unreadable, body: &[u8], who: &str) -> Failure {
    match why {
        Unreadable::Cut if body.iter().all(u8::is_ascii_whitespace) => {
            Failure::new(Cause::Incomplete, format!("it is empty, {who}"))
        }
        Unreadable::Cut => Failure::new(Cause::Incomplete, format!("it ends after {} bytes, {who}", body.len())),
        Unreadable::Foreign(what) => {
            let failure = Failure::new(Cause::NotS3, format!("it answers with {}, {who}", printable(&what, 120)));
            match who.to_ascii_lowercase().contains("minio console") {
                true => failure.hint("this is MinIO's console: the port of its S3 API is another one, usually 9000"),
                false => failure,
            }
        }
    }
}

/// All of an answer in XML.
pub(super) async fn whole(mut response: HttpResponse, patience: Duration) -> Result<(Bytes, String), Failure> {
    let who = who(&response);
    let body = std::mem::replace(response.body_mut(), SdkBody::empty());
    let bytes = in_time(patience, read(body, XML)).await?;
    if bytes.len() >= XML {
        return Err(Failure::new(Cause::NotS3, format!("its answer has no end, {who}")));
    }
    Ok((bytes, who))
}

/// A body, up to about `most` bytes of it.
async fn read(body: SdkBody, most: usize) -> Result<Bytes, Failure> {
    let mut stream = ByteStream::new(body);
    let mut bytes = Vec::new();
    while bytes.len() < most {
        match tokio::time::timeout(STALL, stream.next()).await {
            Err(_) => return Err(Failure::new(Cause::Broken, "the answer stalled")),
            Ok(None) => break,
            Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
            Ok(Some(Err(_))) => return Err(Failure::new(Cause::Broken, "the answer ended early")),
        }
    }
    Ok(bytes.into())
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Failure::new(Cause::Broken, "no answer in time")),
    }
}

struct Digests {
    crc32: u32,
    md5: [u8; 16],
    sha256: [u8; 32],
}

/// Reads a body that is to be sent, for what has to be known of it before.
async fn digests(make: MakeBody<'_>, pulse: &Pulse) -> Result<Digests, Failure> {
    let mut stream = ByteStream::new(make(pulse));
    let (mut crc32, mut md5, mut sha256) = (crc32fast::Hasher::new(), md5::Md5::new(), sha2::Sha256::new());
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| Failure::new(Cause::Other, "the local bytes cannot be sent"))?;
        crc32.update(&piece);
        md5.update(&piece);
        sha256.update(&piece);
    }
    Ok(Digests { crc32: crc32.finalize(), md5: md5.finalize().into(), sha256: sha256.finalize().into() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn base64(bytes: &[u8]) -> String {
    aws_smithy_types::base64::encode(bytes)
}
