//! Sends requests to the store: every request goes through here. It adds headers, signs, sends, and adapts to what
//! responses reveal about the store, once per run: the bucket's region, where the bucket's name goes in URLs, and that
//! uploads need a checksum.
//!
//! Connections, TLS, proxies and signatures come from the AWS SDK. Its operations are not used: their overhead costs more
//! than moving a small blob, they take a truncated listing for a complete one, and they reject responses because of dates
//! that this tool does not need.

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

use super::answer::{self, ParseError, Refusal};
use super::body::{MakeBody, MemoryBody, Pulse};
use super::connection::{Net, target};
use super::credentials::{self, CredentialSource};
use super::endpoint::{Address, Route, Style, encoded, resolve};
use super::request::{Op, Payload, Request};
use crate::config::Checksums;
use crate::error::{Cause, Failure, Result, printable};
use crate::hash::hex;
use crate::net::log::RequestLog;
use crate::progress::{Event, Progress};

/// Credentials that expire within this time are renewed.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_secs(300);
/// Minimum time between renewals: all of a provider's credentials may be short-lived, and each call may start a process.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(20);
/// How often a request is sent, each time adapted to the last refusal.
const MAX_SENDS: usize = 5;
/// After this many consecutive listings for which the store refused to encode keys, encoding is no longer requested.
const MAX_REFUSED_ENCODINGS: u32 = 2;
/// How often the bucket's address may change in a run. More than that is a loop.
const MAX_RELOCATIONS: u32 = 2;
/// Maximum number of redirects for a read.
const MAX_REDIRECTS: usize = 5;
/// The header for a CRC32 checksum.
pub(super) const CRC32: &str = "x-amz-checksum-crc32";
/// Maximum number of bytes to read of an error response.
const MAX_REFUSAL: usize = 64 << 10;
/// Maximum size of an XML response in bytes. A page of a listing has at most 1,000 keys of at most 1,024 bytes, which take
/// three times as much if they are percent-encoded.
const MAX_XML: usize = 8 << 20;

/// Request settings from the configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) user_agent: String,
    /// Headers for every request.
    pub(super) common_headers: Vec<(&'static str, String)>,
    /// Headers for requests that create an object.
    pub(super) creation_headers: Vec<(&'static str, String)>,
    /// Whether the addressing style may change if the store refuses it.
    pub(super) may_change_style: bool,
    /// The checksums that uploads carry.
    pub(super) checksums: Checksums,
    /// Response timeout.
    pub(super) timeout: Duration,
}

/// Sends requests for one bucket.
pub(super) struct Wire {
    net: Net,
    settings: Settings,
    /// `None` if requests are not signed.
    provider: Option<SharedCredentialsProvider>,
    /// Whether the provider may return other credentials later.
    renewable: bool,
    /// The current credentials, with the time when they were requested.
    credentials: Mutex<Option<(Credentials, Instant)>>,
    route: RwLock<Arc<Route>>,
    /// The route from the configuration.
    initial_route: Arc<Route>,
    relocations: AtomicU32,
    style_changed: AtomicBool,
    sends_checksums: AtomicBool,
    signs_hashes: AtomicBool,
    /// Consecutive listings for which the store refused to encode keys.
    refused_encodings: AtomicU32,
    /// How many seconds the store's clock is ahead of this machine's; `i64::MIN` if unknown.
    clock_offset: AtomicI64,
    progress: Arc<dyn Progress>,
    /// Notes about adaptations, held back until a request shows that they work.
    pending_notes: Mutex<Vec<String>>,
    has_pending_notes: AtomicBool,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("route", &self.route).finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(
        net: Net,
        settings: Settings,
        credentials: CredentialSource,
        address: Address,
        progress: Arc<dyn Progress>,
    ) -> Result<Wire> {
        let keys = credentials.first.map(|keys| (keys, Instant::now()));
        let initial_route = Arc::new(address.into_route()?);
        Ok(Wire {
            sends_checksums: AtomicBool::new(match settings.checksums {
                Checksums::Md5 | Checksums::Crc32 => true,
                Checksums::Auto => initial_route.needs_checksums(),
                Checksums::None => false,
            }),
            net,
            settings,
            provider: credentials.provider,
            renewable: credentials.renewable,
            credentials: Mutex::new(keys),
            route: RwLock::new(initial_route.clone()),
            initial_route,
            relocations: AtomicU32::new(0),
            style_changed: AtomicBool::new(false),
            signs_hashes: AtomicBool::new(false),
            refused_encodings: AtomicU32::new(0),
            clock_offset: AtomicI64::new(i64::MIN),
            progress,
            pending_notes: Mutex::default(),
            has_pending_notes: AtomicBool::new(false),
        })
    }

    /// Returns the response timeout.
    pub(super) fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    fn timeout_of(&self, request: &Request<'_>) -> Duration {
        request.timeout.unwrap_or(self.settings.timeout)
    }

    /// Sends a request, and reads the whole body of the XML response. Also returns a description of the response, for error
    /// messages.
    pub(super) async fn send_for_xml(&self, request: &Request<'_>) -> Result<(Bytes, String), Failure> {
        let mut response = self.send(request).await?;
        let description = describe(&response);
        let body = std::mem::replace(response.body_mut(), SdkBody::empty());
        let bytes = read(body, MAX_XML, self.timeout_of(request)).await?;
        if bytes.len() >= MAX_XML {
            return Err(Failure::new(Cause::NotS3, format!("its response is larger than any of S3, {description}")));
        }
        Ok((bytes, description))
    }

    /// Returns the current route.
    pub(super) fn route(&self) -> Arc<Route> {
        self.route.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Whether listings request percent-encoded keys.
    pub(super) fn requests_encoded_keys(&self) -> bool {
        self.refused_encodings.load(Ordering::Relaxed) < MAX_REFUSED_ENCODINGS
    }

    /// Returns how many seconds the store's clock is ahead of ours, if known.
    pub(super) fn clock_offset(&self) -> Option<i64> {
        Some(self.clock_offset.load(Ordering::Relaxed)).filter(|offset| *offset != i64::MIN)
    }

    /// Sends a request. If the response says how it should have been sent, it is adapted and sent again. A successful
    /// response is returned with its body still to be read.
    ///
    /// # Errors
    /// The meaning of the response, or the reason why there is none.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<HttpResponse, Failure> {
        let mut renewed = false;
        let mut plain_keys = false;
        let mut last = None;
        for _ in 0..MAX_SENDS {
            let route = self.route();
            let encode_keys = request.op == Op::List && !plain_keys && self.requests_encoded_keys();
            let checksum = request.op.uploads_content() && self.sends_checksums.load(Ordering::Relaxed);
            let hash = request.op.uploads_content() && self.signs_hashes.load(Ordering::Relaxed);
            let url = self.url(&route, request, encode_keys);
            let response = self.send_once(&route, &url, request, checksum, hash).await?;
            let status = response.status().as_u16();
            if (200..300).contains(&status) {
                self.publish_notes();
                if encode_keys {
                    self.refused_encodings.store(0, Ordering::Relaxed);
                } else if plain_keys {
                    self.refused_encodings.fetch_add(1, Ordering::Relaxed);
                }
                return self.check_success(request.op, response).await;
            }
            let error = ErrorResponse::read(status, response, self.settings.timeout).await;
            if request.op.follows_redirects() && error.redirects_reads() {
                return self.follow_redirect(&url, request, error).await;
            }
            let failure = self.failure(request.op, &url, &error);
            let adapted = match failure.cause {
                Cause::PathStyle => self.change_style(&route, Style::Virtual),
                Cause::VirtualStyle => self.change_style(&route, Style::Path),
                Cause::ChecksumNeeded
                    if request.op.uploads_content() && !checksum && self.settings.checksums == Checksums::Auto =>
                {
                    // Many uploads may be refused at once: report it once.
                    if !self.sends_checksums.swap(true, Ordering::Relaxed) {
                        self.add_note(
                            "the store wants a checksum with each upload, so every upload now has one; set \
                             storage.checksums: md5 to avoid the refused request",
                        );
                    }
                    true
                }
                Cause::HashNeeded if request.op.uploads_content() && !hash => {
                    self.signs_hashes.store(true, Ordering::Relaxed);
                    true
                }
                Cause::Expired | Cause::BadCredentials if self.renewable && !renewed => {
                    renewed = true;
                    failure.cause == Cause::Expired && self.forget_credentials()
                }
                Cause::Unsupported | Cause::Other if encode_keys && matches!(status, 400 | 501) => {
                    // Only for this listing: a single refusal may be an accident.
                    plain_keys = true;
                    true
                }
                _ if matches!(status, 301 | 302 | 303 | 307 | 308 | 400) || failure.cause == Cause::WrongRegion => {
                    self.relocate(&route, &error)
                }
                _ => false,
            };
            if !adapted {
                if failure.cause == Cause::WrongRegion {
                    self.reset_route();
                }
                return Err(failure);
            }
            last = Some(failure);
        }
        Err(last.unwrap_or_else(|| Failure::new(Cause::Other, "the store redirects requests in circles")))
    }

    fn url(&self, route: &Route, request: &Request<'_>, encode_keys: bool) -> String {
        let mut url = format!("{}/{}", route.base, encoded(request.key, true));
        let encoding = encode_keys.then(|| ("encoding-type", "url".to_string()));
        for (at, (name, value)) in request.query.iter().chain(&encoding).enumerate() {
            url.push(if at == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.push_str(&encoded(value, false));
        }
        url
    }

    /// Sends the request once.
    async fn send_once(
        &self,
        route: &Route,
        url: &str,
        request: &Request<'_>,
        checksum: bool,
        hash: bool,
    ) -> Result<HttpResponse, Failure> {
        let Request { op, payload, .. } = request;
        let mut headers: Vec<(&'static str, String)> = self.settings.common_headers.clone();
        if op.creates_object() {
            headers.push(("content-type", "application/octet-stream".into()));
            headers.extend(self.settings.creation_headers.iter().cloned());
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
            for (name, value) in signature(&credentials, &route.address.region, op.method(), url, &headers, content)? {
                sent.headers_mut().try_insert(name, value).map_err(unbuildable)?;
            }
        }
        // Not signed, since a proxy may change headers. `identity`: the store must not compress the response.
        sent.headers_mut().try_insert("accept-encoding", "identity").map_err(unbuildable)?;
        sent.headers_mut().try_insert("user-agent", self.settings.user_agent.clone()).map_err(unbuildable)?;
        if matches!(op.method(), "PUT" | "POST") {
            sent.headers_mut().try_insert("content-length", size.to_string()).map_err(unbuildable)?;
        }
        let log = RequestLog::start(op.method(), url);
        let call = self.net.call(sent);
        let response = match payload {
            Payload::Stream { size, .. } => pulse.guard(self.settings.timeout, *size, call).await,
            _ => in_time(self.timeout_of(request), call).await,
        };
        if let Some(log) = log {
            log.finish(&response);
        }
        if let Ok(response) = &response {
            self.record_clock_offset(*op, response);
        }
        response
    }

    fn record_clock_offset(&self, op: Op, response: &HttpResponse) {
        if !op.is_for_bucket() && response.status().is_success() {
            return;
        }
        if let Some(store_time) = response.headers().get("date").and_then(answer::time) {
            let ahead = match store_time.duration_since(SystemTime::now()) {
                Ok(ahead) => ahead.as_secs() as i64,
                Err(behind) => -(behind.duration().as_secs() as i64),
            };
            self.clock_offset.store(ahead, Ordering::Relaxed);
        }
    }

    /// Checks a response with a success status, which may come from a proxy or a login page.
    async fn check_success(&self, op: Op, response: HttpResponse) -> Result<HttpResponse, Failure> {
        let header = |name: &str| response.headers().get(name).unwrap_or_default();
        let coding = header("content-encoding");
        let changed = coding.split(',').map(str::trim).find(|coding| {
            !coding.is_empty() && !["identity", "aws-chunked"].iter().any(|known| coding.eq_ignore_ascii_case(known))
        });
        if let Some(coding) = changed.filter(|_| matches!(op.method(), "GET" | "POST")) {
            let detail = format!("the answer is compressed: {}, {}", printable(coding, 40), describe(&response));
            let hint = "something between here and the store compresses responses: bypass it (NO_PROXY), or turn \
                        compression off for the store";
            return Err(Failure::new(Cause::NotS3, detail).hint(hint));
        }
        let kind = header("content-type").to_ascii_lowercase();
        let is_page = kind.starts_with("text/html");
        let length = header("content-length").parse();
        match op {
            Op::Read | Op::Head | Op::HeadBucket if is_page && header("etag").is_empty() => {
                Err(Failure::new(Cause::NotS3, format!("it answers with an HTML page, {}", describe(&response))))
            }
            // Every object has an ETag.
            Op::Read
                if kind.contains("xml")
                    && header("etag").is_empty()
                    && length.is_ok_and(|length: usize| length <= MAX_REFUSAL) =>
            {
                self.check_read_body(response).await
            }
            // The response to a successful upload has no body.
            Op::Put | Op::PutIf | Op::PutPart if is_page || header("content-length") != "0" => {
                self.check_upload_body(response).await
            }
            _ => Ok(response),
        }
    }

    /// Checks a small response to a read, which may be an error in place of an object.
    async fn check_read_body(&self, mut response: HttpResponse) -> Result<HttpResponse, Failure> {
        let body = std::mem::replace(response.body_mut(), SdkBody::empty());
        let bytes = read(body, MAX_REFUSAL, self.settings.timeout).await?;
        if let Some(refusal) = answer::find_refusal(&bytes) {
            return Err(Failure::refused(400, &refusal));
        }
        *response.body_mut() = SdkBody::from(bytes);
        Ok(response)
    }

    /// Checks a response to an upload that has a body, which may be an error or an HTML page.
    async fn check_upload_body(&self, mut response: HttpResponse) -> Result<HttpResponse, Failure> {
        let description = describe(&response);
        let body = std::mem::replace(response.body_mut(), SdkBody::empty());
        // Best effort: a body that cannot be read is not needed.
        let bytes = read(body, MAX_REFUSAL, self.settings.timeout).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        // OpenStack Swift discards what arrives after a newer write of the same object. It means 202 and sends 200.
        if text.starts_with("<html><h1>Accepted</h1>") {
            return Err(Failure::new(Cause::Busy, "another write of the same object came first"));
        }
        if answer::kind_if_not_xml(&text) == Some("an HTML page") {
            return Err(Failure::new(Cause::NotS3, format!("it answers with an HTML page, {description}")));
        }
        match answer::find_refusal(&bytes) {
            Some(refusal) => Err(Failure::refused(400, &refusal)),
            None => Ok(response),
        }
    }

    /// Returns what an error response means.
    fn failure(&self, op: Op, url: &str, error: &ErrorResponse) -> Failure {
        let ErrorResponse { status, refusal, location, .. } = error;
        let mut failure = Failure::refused(*status, refusal);
        failure.retry_after = error.retry_after;
        if let Some(what) = &refusal.foreign {
            let lower = error.text.to_ascii_lowercase();
            if lower.contains("to https port") || lower.contains("http request to an https server") {
                return Failure::new(Cause::Tls, "the server there uses TLS");
            }
            // A load balancer or CDN may answer for a store that is down, or for a missing key, with a page of its own.
            let is_not_s3 = *status < 500 && !matches!(*status, 404 | 408 | 429)
                || *status == 511
                || (*status == 404 && !op.follows_redirects() && !op.is_for_multipart_upload());
            if is_not_s3 && failure.cause != Cause::ProxyRefused {
                return Failure::new(Cause::NotS3, format!("it answers {status} with {what}, {}", error.description));
            }
        }
        if let (300..=399, Some(location)) = (*status, location)
            && refusal.code.is_none()
        {
            return redirect_failure(url, location);
        }
        if *status == 404 && refusal.code.is_none() {
            failure.cause = match op {
                Op::List | Op::Put | Op::PutIf | Op::StartParts => Cause::NoSuchBucket,
                // The bucket exists: it has been listed before.
                Op::DeleteMany | Op::ListUploads | Op::Versioning => Cause::Unsupported,
                _ if op.is_for_multipart_upload() => Cause::NoSuchUpload,
                _ => failure.cause,
            };
        }
        if failure.cause == Cause::Denied && self.provider.is_none() {
            return failure
                .hint("storage.unsigned is on, so only public objects can be read; turn it off to use your key");
        }
        if failure.cause == Cause::ClockSkew {
            failure.detail = match self.clock_offset() {
                Some(ahead) if ahead.unsigned_abs() > 1 => {
                    let which = if ahead < 0 { "ahead of" } else { "behind" };
                    format!("it is {} s {which} the store's", ahead.unsigned_abs())
                }
                _ => String::new(),
            };
        }
        failure
    }

    /// Follows a redirect of a read, without a signature or anything else of the user's.
    async fn follow_redirect(
        &self,
        url: &str,
        request: &Request<'_>,
        error: ErrorResponse,
    ) -> Result<HttpResponse, Failure> {
        let mut from = url.to_string();
        let mut next = error.location.unwrap_or_default();
        for _ in 0..MAX_REDIRECTS {
            let Some(to) = resolve(&from, &next) else {
                return Err(Failure::new(Cause::NotS3, format!("it redirects reads to {}", printable(&next, 200))));
            };
            if target(&from).2 && !target(&to).2 {
                return Err(Failure::new(Cause::NotS3, format!("it redirects reads from https to {}", origin(&to))));
            }
            let mut sent = HttpRequest::new(SdkBody::empty());
            let unbuildable = |_| Failure::new(Cause::NotS3, format!("it redirects reads to {}", origin(&to)));
            sent.set_method(request.op.method()).map_err(unbuildable)?;
            let without_fragment = to.split('#').next().unwrap_or_default();
            sent.set_uri(without_fragment).map_err(unbuildable)?;
            for (name, value) in request.headers.iter().filter(|(name, _)| *name == "range") {
                sent.headers_mut().try_insert(*name, value.clone()).map_err(unbuildable)?;
            }
            sent.headers_mut().try_insert("accept-encoding", "identity").map_err(unbuildable)?;
            sent.headers_mut().try_insert("user-agent", self.settings.user_agent.clone()).map_err(unbuildable)?;
            tracing::debug!("the store redirects this read to {}", origin(&to));
            let log = RequestLog::start(request.op.method(), &to);
            let answer = in_time(self.timeout_of(request), self.net.call(sent)).await;
            if let Some(log) = log {
                log.finish(&answer);
            }
            let mut response = answer?;
            let status = response.status().as_u16();
            if (200..300).contains(&status) {
                // This is not the store's ETag of the object.
                response.headers_mut().remove("etag");
                if response.headers().get("content-type").is_some_and(|kind| kind.starts_with("text/html")) {
                    let detail =
                        format!("it redirects reads to an HTML page at {}, {}", origin(&to), describe(&response));
                    return Err(Failure::new(Cause::NotS3, detail));
                }
                return self.check_success(Op::List, response).await;
            }
            let error = ErrorResponse::read(status, response, self.settings.timeout).await;
            match error.location {
                Some(location) if (300..=399).contains(&status) => (from, next) = (to, location),
                _ => {
                    let mut failure = Failure::refused(status, &error.refusal);
                    failure.retry_after = error.retry_after;
                    failure.detail =
                        format!("{} from {}, where the store redirects reads", failure.detail, origin(&to));
                    return Err(failure);
                }
            }
        }
        Err(Failure::new(Cause::NotS3, format!("it redirects reads in circles, last to {}", origin(&from))))
    }

    /// Switches to the address in a response, if it names another one.
    fn relocate(&self, used: &Arc<Route>, error: &ErrorResponse) -> bool {
        let region = error.region.as_deref();
        let Some(address) = used.address.redirected(&error.refusal, region, error.location.as_deref()) else {
            return false;
        };
        let note = |from: &Route, to: &Route| {
            let settings = match (&from.address.endpoint, &to.address.endpoint) {
                (Some(from), Some(to)) if from != to => format!("storage.endpoint: {to} and storage.region: "),
                _ => "storage.region: ".to_string(),
            };
            format!(
                "bucket '{}' is in region {} at {}, not where requests were sent; set {settings}{} to avoid the redirect",
                to.address.bucket,
                to.address.region,
                if to.shown().is_empty() { "AWS S3".to_string() } else { to.shown() },
                to.address.region,
            )
        };
        self.change_route(used, address, &self.relocations, MAX_RELOCATIONS, note)
    }

    /// Switches to another addressing style.
    fn change_style(&self, used: &Arc<Route>, style: Style) -> bool {
        if !self.settings.may_change_style || used.address.style == style || self.style_changed.load(Ordering::Relaxed)
        {
            // Another request may have changed it in the meantime.
            return self.route().address != used.address && self.settings.may_change_style;
        }
        let once = AtomicU32::new(0);
        let (refused, name) = match style {
            Style::Virtual => ("path", "virtual"),
            Style::Path => ("host", "path"),
        };
        let note = |_: &Route, to: &Route| {
            format!(
                "{} refuses the bucket's name in the {refused}; set storage.addressing_style: {name} to avoid the refused \
                 request",
                to.shown()
            )
        };
        let changed = self.change_route(used, Address { style, ..used.address.clone() }, &once, 1, note);
        self.style_changed.store(true, Ordering::Relaxed);
        changed
    }

    /// Switches to another route, at most `limit` times. Returns whether the request should be sent again.
    fn change_route(
        &self,
        used: &Arc<Route>,
        address: Address,
        count: &AtomicU32,
        limit: u32,
        note: impl Fn(&Route, &Route) -> String,
    ) -> bool {
        let mut route = self.route.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Another request has changed the route in the meantime: try that one first.
        if !Arc::ptr_eq(&route, used) {
            return true;
        }
        if count.fetch_add(1, Ordering::Relaxed) >= limit {
            return false;
        }
        let Ok(new) = address.into_route() else { return false };
        let text = note(&route, &new);
        *route = Arc::new(new);
        drop(route);
        self.add_note(&text);
        true
    }

    /// Queues a note for the user until a request has succeeded.
    fn add_note(&self, text: &str) {
        let mut notes = self.pending_notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        notes.push(text.to_string());
        self.has_pending_notes.store(true, Ordering::Relaxed);
    }

    fn publish_notes(&self) {
        if !self.has_pending_notes.load(Ordering::Relaxed) {
            return;
        }
        let mut notes = self.pending_notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.has_pending_notes.store(false, Ordering::Relaxed);
        notes.drain(..).for_each(|text| self.progress.event(Event::Note(text)));
    }

    /// Goes back to the configured route, since the redirects were wrong: the user can check only the configuration.
    fn reset_route(&self) {
        *self.route.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = self.initial_route.clone();
        self.pending_notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
    }

    fn forget_credentials(&self) -> bool {
        *self.credentials.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        true
    }

    /// Returns the credentials, renewed if necessary; `None` if requests are not signed.
    async fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let Some(provider) = &self.provider else { return Ok(None) };
        let is_usable = |(credentials, requested): &(Credentials, Instant)| {
            let left = credentials.expiry().map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
            left.is_none_or(|left| left > RENEW_BEFORE_EXPIRY || requested.elapsed() < MIN_RENEWAL_INTERVAL)
        };
        let known = self.credentials.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some((known, _)) = known.filter(is_usable) {
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

/// An error response or a redirect, with its body.
struct ErrorResponse {
    status: u16,
    refusal: Refusal,
    text: String,
    /// The bucket's region, from a header.
    region: Option<String>,
    location: Option<String>,
    retry_after: Option<Duration>,
    description: String,
}

impl ErrorResponse {
    async fn read(status: u16, mut response: HttpResponse, timeout: Duration) -> ErrorResponse {
        let header = |name: &str| response.headers().get(name).map(|text| text.trim().to_string());
        let (region, location, retry) = (header("x-amz-bucket-region"), header("location"), header("retry-after"));
        let seconds = retry.and_then(|text| text.parse().ok());
        let description = describe(&response);
        let body = std::mem::replace(response.body_mut(), SdkBody::empty());
        // Best effort: without a body, the status has to do.
        let bytes = read(body, MAX_REFUSAL, timeout).await.unwrap_or_default();
        ErrorResponse {
            status,
            refusal: Refusal::parse(&bytes),
            text: String::from_utf8_lossy(&bytes).into_owned(),
            region,
            location: location.filter(|location| !location.is_empty()),
            retry_after: seconds.map(|seconds: u64| Duration::from_secs(seconds.min(60))),
            description,
        }
    }

    /// Whether this redirects a read to another place, such as a CDN. Otherwise a redirect is about the bucket's address.
    fn redirects_reads(&self) -> bool {
        let is_from_store = self.region.is_some() || self.refusal.code.is_some();
        self.location.is_some() && matches!(self.status, 301 | 302 | 303 | 307 | 308) && !is_from_store
    }
}

/// Returns the failure for a redirect that must not be followed.
fn redirect_failure(url: &str, location: &str) -> Failure {
    let to = resolve(url, location).unwrap_or_else(|| location.to_string());
    let (from_host, _, from_tls) = target(url);
    let (to_host, _, to_tls) = target(&to);
    if !from_tls && to_tls && from_host.eq_ignore_ascii_case(to_host) {
        let hint = format!("use {} (storage.endpoint, B2_ENDPOINT or --endpoint)", origin(&to));
        return Failure::new(Cause::Tls, format!("it redirects every request to {}", origin(&to))).hint(hint);
    }
    Failure::new(Cause::NotS3, format!("it redirects every request to {}", printable(&origin(&to), 200)))
}

/// Returns the scheme, host and port of a URL.
fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    printable(&format!("{scheme}://{}", rest.split(['/', '?', '#']).next().unwrap_or_default()), 200)
}

/// Describes a response by its content type and server.
pub(super) fn describe(response: &HttpResponse) -> String {
    let header = |name: &str| response.headers().get(name).map(|text| printable(text.trim(), 60));
    let kind = header("content-type").filter(|text| !text.is_empty()).unwrap_or_else(|| "no content type".into());
    match header("server").filter(|text| !text.is_empty()) {
        Some(server) => format!("{kind}, server {server}"),
        None => kind,
    }
}

/// Returns the failure for a response that could not be parsed.
pub(super) fn parse_failure(why: ParseError, body: &[u8], description: &str) -> Failure {
    match why {
        ParseError::Truncated if body.iter().all(u8::is_ascii_whitespace) => {
            Failure::new(Cause::Incomplete, format!("it is empty, {description}"))
        }
        ParseError::Truncated => {
            Failure::new(Cause::Incomplete, format!("it ends after {} bytes, {description}", body.len()))
        }
        ParseError::NotS3(what) => {
            let failure =
                Failure::new(Cause::NotS3, format!("it answers with {}, {description}", printable(&what, 120)));
            match description.to_ascii_lowercase().contains("minio console") {
                true => failure.hint("this is MinIO's console; its S3 API is on another port, usually 9000"),
                false => failure,
            }
        }
    }
}

/// Returns the failure for a response with a success status that could not be parsed. If it is an error after all, that
/// counts like one with this `status`.
pub(super) fn body_failure(why: ParseError, body: &[u8], description: &str, status: u16) -> Failure {
    match answer::Element::parse(body) {
        Ok(root) if root.name() == "Error" => Failure::refused(status, &Refusal::from_xml(&root)),
        _ => parse_failure(why, body, description),
    }
}

/// Reads a body, up to about `limit` bytes of it, in at most this time.
async fn read(body: SdkBody, limit: usize, timeout: Duration) -> Result<Bytes, Failure> {
    let read = async {
        let mut stream = ByteStream::new(body);
        let mut bytes = Vec::new();
        while bytes.len() < limit {
            match stream.next().await {
                None => break,
                Some(Ok(piece)) => bytes.extend_from_slice(&piece),
                Some(Err(_)) => return Err(Failure::new(Cause::Broken, "the answer ended early")),
            }
        }
        Ok(bytes.into())
    };
    in_time(timeout, read).await
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Failure::new(Cause::Stalled, format!("no answer in {} s", limit.as_secs_f64()))),
    }
}

struct Digests {
    crc32: u32,
    md5: [u8; 16],
    sha256: [u8; 32],
}

/// Computes the digests of a body before it is sent.
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

pub(super) fn base64(bytes: &[u8]) -> String {
    aws_smithy_types::base64::encode(bytes)
}
