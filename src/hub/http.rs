//! Requests to the Hub: retried after transient failures, redirected by our own rules, and with the token sent only to
//! the configured origin.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryFutureExt;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE};
use reqwest::{Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::address::{Endpoint, LinkTarget};
use super::rate_limit::{RateLimiter, requested_wait};
use crate::config::{self, Secret};
use crate::error::{Cause, Error, Failure, Result, printable};
use crate::net::log::RequestLog;
use crate::net::{self, Network, NoProxy};
use crate::pace::Pace;
use crate::progress::{Progress, waiting};
use crate::retry::Try;

/// Time limit for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for the response headers. Of the body, some bytes must arrive in that time, and enough of them: see
/// [`crate::pace`].
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Most redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;
/// Largest response that is read into memory, in bytes.
const MAX_JSON: usize = 32 << 20;

/// The HTTP client for the Hub.
#[derive(Debug, Clone)]
pub struct Http {
    pub endpoint: Endpoint,
    proxied: reqwest::Client,
    direct: reqwest::Client,
    no_proxy: NoProxy,
    token: Option<Secret>,
    rate_limiter: Arc<RateLimiter>,
}

/// A failed request, with the Hub's error code.
pub struct Refusal {
    pub failure: Failure,
    pub code: String,
    /// The wait that the Hub asked for.
    wait: Option<Duration>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal { failure, code: String::new(), wait: None }
    }
}

/// The bytes of a file, or of a range of it.
pub struct Body {
    response: Response,
    pace: Pace,
    /// Bytes before the range that are discarded if the server sends the whole file.
    skip: u64,
    /// Remaining bytes of the range; `None` for a whole file.
    left: Option<u64>,
}

impl Http {
    /// Prepares the clients without sending anything.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] if the endpoint, the token or a certificate bundle cannot be used.
    pub fn new(settings: &config::Hub, network: &Network, progress: Arc<dyn Progress>, wait: Duration) -> Result<Http> {
        let url = settings.endpoint.expose();
        let endpoint = Endpoint::parse(url).map_err(|why| {
            let shown = printable(url.rsplit('@').next().unwrap_or_default(), 200);
            Error::usage(format!("cannot use the Hub at {shown}")).because(why).hint("check HF_ENDPOINT")
        })?;
        let token = settings.find_token();
        if token.is_none() {
            settings.check_token_file()?;
        }
        if token.as_ref().is_some_and(|token| !token.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::usage("cannot use the token for the Hub")
                .because("it contains a space, a line break or another invalid character")
                .hint("check HF_TOKEN, or log in again with `hf auth login`"));
        }
        let mut certificates = Vec::new();
        for pem in network.read_bundles()? {
            certificates.push(reqwest::Certificate::from_pem(pem.as_bytes()).map_err(|e| cannot_start(&e))?);
        }
        let client = || {
            reqwest::Client::builder()
                .user_agent(concat!("hf-cache-sync/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(STALL_TIMEOUT)
                .tls_certs_merge(certificates.clone())
        };
        Ok(Http {
            endpoint,
            proxied: client().build().map_err(|e| cannot_start(&e))?,
            direct: client().no_proxy().build().map_err(|e| cannot_start(&e))?,
            no_proxy: network.no_proxy.clone(),
            token,
            rate_limiter: Arc::new(RateLimiter::new(wait, progress)),
        })
    }

    /// Requests a JSON document, and returns it with the response headers and the final URL.
    pub async fn json<T: DeserializeOwned>(&self, url: &Url) -> Result<(T, HeaderMap, Url), Refusal> {
        let mut tries = Tries::new();
        loop {
            self.rate_limiter.wait_for_turn().await?;
            match self.json_once(url).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => tries.wait_before_retry(refusal, &self.rate_limiter).await?,
            }
        }
    }

    async fn json_once<T: DeserializeOwned>(&self, url: &Url) -> Result<(T, HeaderMap, Url), Refusal> {
        let mut response = self.send(url, None).await?;
        let (headers, from) = (response.headers().clone(), response.url().clone());
        let too_large = || Failure::new(Cause::TooLarge, format!("its response is larger than {} MiB", MAX_JSON >> 20));
        if response.content_length().is_some_and(|length| length > MAX_JSON as u64) {
            return Err(too_large().into());
        }
        let (mut body, mut pace) = (Vec::new(), Pace::new(STALL_TIMEOUT));
        while let Some(bytes) = pace.next(response.chunk().map_err(|e| from_http(&e))).await? {
            if body.len() + bytes.len() > MAX_JSON {
                return Err(too_large().into());
            }
            body.extend_from_slice(&bytes);
        }
        match serde_json::from_slice(&body) {
            Ok(value) => Ok((value, headers, from)),
            Err(error) if error.is_data() => {
                let why = format!("its response has an unexpected form: {}", printable(&error.to_string(), 200));
                Err(Failure::new(Cause::Garbled, why).into())
            }
            Err(_) => Err(not_json(&headers, &body).into()),
        }
    }

    /// Opens a file: all of it, or the bytes from `range.0` to `range.1` (exclusive).
    pub async fn open(&self, url: &Url, range: Option<(u64, u64)>) -> Result<Body, Refusal> {
        let mut tries = Tries::new();
        loop {
            self.rate_limiter.wait_for_turn().await?;
            match self.open_once(url, range).await {
                Ok(body) => return Ok(body),
                Err(refusal) => tries.wait_before_retry(refusal, &self.rate_limiter).await?,
            }
        }
    }

    async fn open_once(&self, url: &Url, range: Option<(u64, u64)>) -> Result<Body, Refusal> {
        let response = self.send(url, range).await?;
        let is_page = header(&response, CONTENT_TYPE.as_str()).trim_start().starts_with("text/html");
        if is_page && range.is_some() && !url.path().to_ascii_lowercase().contains("htm") {
            return Err(Failure::new(Cause::Garbled, WEB_PAGE).into());
        }
        let Some((from, to)) = range else {
            return Ok(Body { response, pace: Pace::new(STALL_TIMEOUT), skip: 0, left: None });
        };
        let mut skip = from;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let content_range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let start =
                content_range.and_then(|text| text.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok());
            if start.is_some_and(|start: u64| start != from) {
                return Err(Failure::new(Cause::Garbled, "it sent a different range than requested").into());
            }
            skip = 0;
        }
        Ok(Body { response, pace: Pace::new(STALL_TIMEOUT), skip, left: Some(to - from) })
    }

    /// Sends one request, and follows its redirects.
    async fn send(&self, url: &Url, range: Option<(u64, u64)>) -> Result<Response, Refusal> {
        let mut url = url.clone();
        let mut visited = vec![url.clone()];
        let mut may_send_token = true;
        loop {
            let response = self.send_once(&url, range, may_send_token).await?;
            let status = response.status();
            let is_redirect = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let location = response.headers().get(LOCATION).filter(|_| is_redirect);
            let Some(location) = location else { return check_status(response) };
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            let bad_redirect =
                |why: String| Failure::new(Cause::Garbled, format!("its redirect cannot be followed: {why}"));
            let mut place = self.endpoint.follow(&url, &location).map_err(bad_redirect)?;
            // A mirror that redirects to the Hub itself does not have the file: ask the Hub, without the token.
            if let LinkTarget::Home(next) = &place
                && visited.contains(next)
                && let Ok(official) = url.join(&location)
                && !self.endpoint.is_home(&official)
            {
                place = LinkTarget::External(official);
            }
            let next = match place {
                LinkTarget::Home(next) => next,
                LinkTarget::External(mut next) => {
                    may_send_token = false;
                    let _ = next.set_username("");
                    let _ = next.set_password(None);
                    // File contents are verified by their hash, but nothing verifies a listing.
                    if url.scheme() == "https" && next.scheme() == "http" && range.is_none() {
                        return Err(bad_redirect("it leads from https to http".into()).into());
                    }
                    next
                }
            };
            if visited.contains(&next) || visited.len() > MAX_REDIRECTS {
                return Err(bad_redirect("it leads in a circle".into()).into());
            }
            visited.push(next.clone());
            url = next;
        }
    }

    async fn send_once(&self, url: &Url, range: Option<(u64, u64)>, may_send_token: bool) -> Result<Response, Refusal> {
        let host = url.host_str().unwrap_or_default();
        let direct = self.no_proxy.covers(host, url.port_or_known_default().unwrap_or_default());
        let client = if direct { &self.direct } else { &self.proxied };
        let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if may_send_token && self.endpoint.is_home(url) {
            request = match (&self.token, &self.endpoint.login) {
                (Some(token), _) => request.bearer_auth(token.expose()),
                (None, Some((user, password))) => request.basic_auth(user, Some(password.expose())),
                (None, None) => request,
            };
        }
        if let Some((from, to)) = range {
            request = request.header(RANGE, format!("bytes={from}-{}", to.saturating_sub(1)));
        }
        let (log, _waiting) = (RequestLog::start("GET", url.as_str()), waiting("the Hub"));
        let answer = request.send().await;
        if let Some(log) = log {
            let answer = answer.as_ref().ok();
            log.finish_with_status(
                answer.map(|answer| answer.status().as_u16()),
                answer.and_then(Response::content_length),
            );
        }
        Ok(answer.map_err(|e| from_http(&e))?)
    }
}

/// The attempts for one request.
struct Tries {
    /// When the Hub first asked to wait.
    first_rejection: Option<Instant>,
    failed: u32,
}

impl Tries {
    fn new() -> Tries {
        Tries { first_rejection: None, failed: 0 }
    }

    /// Waits until the next attempt. Fails if there is none left, or if the Hub asks for too long a wait.
    async fn wait_before_retry(&mut self, refusal: Refusal, rate_limiter: &RateLimiter) -> Result<(), Refusal> {
        if !refusal.failure.cause.is_transient() {
            return Err(refusal);
        }
        if let Some(wait) = refusal.wait {
            return Ok(rate_limiter.record_limit(wait, *self.first_rejection.get_or_insert_with(Instant::now))?);
        }
        self.failed += 1;
        let Some(pause) = Try::Hub.pause(refusal.failure.cause, self.failed, None, fastrand::f64()) else {
            return Err(refusal);
        };
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Body {
    /// Returns the next chunk of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Cause::Broken`] if the connection breaks, [`Cause::Stalled`] if too few bytes arrive in time.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.left == Some(0) {
                return Ok(None);
            }
            let piece = self.response.chunk().map_err(|e| match from_http(&e) {
                failure if failure.cause.is_transient() => failure,
                _ => Failure::new(Cause::Broken, "the download ended early"),
            });
            let Some(mut bytes) = self.pace.next(piece).await? else { return Ok(None) };
            let dropped = self.skip.min(bytes.len() as u64);
            self.skip -= dropped;
            let _ = bytes.split_to(dropped as usize);
            if let Some(left) = &mut self.left {
                bytes.truncate((*left).min(bytes.len() as u64) as usize);
                *left -= bytes.len() as u64;
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }
}

const WEB_PAGE: &str = "it responds with a web page, so it is not the Hub, or there is a login portal in front of it";

fn check_status(response: Response) -> Result<Response, Refusal> {
    let (status, headers) = (response.status(), response.headers());
    let header = |name: &str| headers.get(name).and_then(|text| text.to_str().ok()).unwrap_or_default();
    if !status.is_success() {
        let failure = from_status(status, header("x-error-code"), header("x-error-message"));
        let wait = matches!(status.as_u16(), 429 | 503).then(|| requested_wait(headers, SystemTime::now())).flatten();
        return Err(Refusal { failure, code: header("x-error-code").to_string(), wait });
    }
    let encoding = header(CONTENT_ENCODING.as_str()).trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        let why = format!("a proxy compresses its responses ({}), although not asked to", printable(encoding, 20));
        return Err(Failure::new(Cause::Garbled, why).into());
    }
    Ok(response)
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).and_then(|text| text.to_str().ok()).unwrap_or_default()
}

fn not_json(headers: &HeaderMap, body: &[u8]) -> Failure {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let start = String::from_utf8_lossy(&body[..body.len().min(200)]).trim_start().to_ascii_lowercase();
    let is_page = kind.contains("html") || start.starts_with("<!doctype html") || start.starts_with("<html");
    let why = match is_page {
        true => WEB_PAGE,
        false => "its response is not valid JSON, or is truncated",
    };
    Failure::new(Cause::Garbled, why)
}

/// Converts an error response to a failure. The Hub hides private repos: without access, it reports that there is no
/// such repo, or asks for a login.
fn from_status(status: StatusCode, code: &str, message: &str) -> Failure {
    let missing = "there is no such repo, or it is private";
    let message_or = |fallback: &str| if message.is_empty() { fallback.to_string() } else { printable(message, 200) };
    let (cause, detail) = match (status.as_u16(), code) {
        (_, "RevisionNotFound") => (Cause::NoSuchKey, "the repo has no such revision".into()),
        (_, "EntryNotFound") => (Cause::NoSuchKey, "the revision has no such file".into()),
        (_, "GatedRepo") => (Cause::Gated, message_or("the repo is gated")),
        (_, "RepoNotFound") => (Cause::NoSuchKey, missing.into()),
        (401, _) if message == "Invalid credentials in Authorization header" => (Cause::BadCredentials, message_or("")),
        (401 | 404, _) => (Cause::NoSuchKey, missing.into()),
        (403, _) => (Cause::Denied, message_or("HTTP status 403")),
        (408 | 429 | 500 | 502 | 503 | 504 | 520..=527, _) => {
            (Cause::Busy, message_or(&format!("HTTP status {status}")))
        }
        _ => (Cause::Other, message_or(&format!("HTTP status {status}"))),
    };
    Failure::new(cause, detail)
}

fn from_http(error: &reqwest::Error) -> Failure {
    if let Some(problem) = net::tls_problem(error) {
        return Failure::new(Cause::Certificate, problem.why);
    }
    let cause = if error.is_connect() { Cause::Unreachable } else { Cause::Broken };
    Failure::new(cause, root_cause(error))
}

fn cannot_start(error: &reqwest::Error) -> Error {
    Error::usage("cannot initialise the HTTP client for the Hub").because(root_cause(error)).hint(
        "check the certificates that SSL_CERT_FILE, REQUESTS_CA_BUNDLE or AWS_CA_BUNDLE name, and the proxy settings",
    )
}

/// Returns the innermost message of a chain of errors.
fn root_cause(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    let end = text.find(" (os error").unwrap_or(text.len());
    printable(&text[..end], 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_codes_become_causes() {
        for (status, code, message, cause) in [
            (404, "RepoNotFound", "", Cause::NoSuchKey),
            (401, "RepoNotFound", "", Cause::NoSuchKey),
            (401, "", "Invalid username or password.", Cause::NoSuchKey),
            (401, "", "Invalid credentials in Authorization header", Cause::BadCredentials),
            (401, "GatedRepo", "", Cause::Gated),
            (403, "GatedRepo", "", Cause::Gated),
            (404, "RevisionNotFound", "", Cause::NoSuchKey),
            (429, "", "", Cause::Busy),
            (503, "", "", Cause::Busy),
            (400, "", "", Cause::Other),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(from_status(status, code, message).cause, cause, "{status} {code} {message}");
        }
    }
}
