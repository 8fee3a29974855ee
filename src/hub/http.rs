//! Requests to the Hub: tried again while their failure is transient, redirected by rules of our own, and with the token
//! at the configured origin alone.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE};
use reqwest::{Response, StatusCode, Url};
use serde_json::Value;
use tokio::time::Instant;

use super::address::{Endpoint, Place};
use super::patience::{Patience, named_wait};
use crate::bucket::error::{Cause, Failure};
use crate::config::{self, Secret};
use crate::error::{Error, Result, printable};
use crate::net::log::Sent;
use crate::net::{self, Network, NoProxy};
use crate::progress::{Progress, waiting};
use crate::retry::Try;

/// A connection must stand within this time.
const CONNECT: Duration = Duration::from_secs(10);
/// An answer, and each next piece of it, must come within this time.
const STALL: Duration = Duration::from_secs(60);
/// Redirects that are followed for one request.
const REDIRECTS: usize = 10;
/// Largest answer that is read into memory, in bytes.
const MAX_JSON: usize = 64 << 20;

/// What sends requests.
#[derive(Debug, Clone)]
pub struct Http {
    pub endpoint: Endpoint,
    proxied: reqwest::Client,
    direct: reqwest::Client,
    no_proxy: NoProxy,
    token: Option<Secret>,
    patience: Arc<Patience>,
}

/// A failed request, and the Hub's word for it.
pub struct Refusal {
    pub failure: Failure,
    pub code: String,
    /// The wait that the Hub names with it.
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
    /// Bytes to drop: in front of the range, where the server sends the whole file.
    skip: u64,
    /// Bytes of the range that are still to come, where it is one.
    left: Option<u64>,
}

impl Http {
    /// Prepares the clients; nothing is sent.
    ///
    /// # Errors
    /// [`Cause::Usage`] when the endpoint, the token or a certificate bundle cannot be used.
    pub fn new(settings: &config::Hub, network: &Network, progress: Arc<dyn Progress>, wait: Duration) -> Result<Http> {
        let endpoint = Endpoint::parse(&settings.endpoint).map_err(|why| {
            let shown = printable(settings.endpoint.rsplit('@').next().unwrap_or_default(), 200);
            Error::usage(format!("cannot use the Hub at {shown}")).because(why).hint("check HF_ENDPOINT")
        })?;
        let token = settings.find_token();
        if token.is_none() {
            settings.check_token_file()?;
        }
        if token.as_ref().is_some_and(|token| !token.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::usage("cannot use the token for the Hub")
                .because("it has a space, a line break or another character that no token has")
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
                .connect_timeout(CONNECT)
                .read_timeout(STALL)
                .tls_certs_merge(certificates.clone())
        };
        Ok(Http {
            endpoint,
            proxied: client().build().map_err(|e| cannot_start(&e))?,
            direct: client().no_proxy().build().map_err(|e| cannot_start(&e))?,
            no_proxy: network.no_proxy.clone(),
            token,
            patience: Arc::new(Patience::new(wait, progress)),
        })
    }

    /// Gets a JSON document, the headers that came with it, and the address that gave it.
    pub async fn json(&self, url: &Url) -> Result<(Value, HeaderMap, Url), Refusal> {
        let mut tries = Tries::new();
        loop {
            self.patience.pass().await?;
            match self.json_once(url).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => tries.failed(refusal, &self.patience).await?,
            }
        }
    }

    async fn json_once(&self, url: &Url) -> Result<(Value, HeaderMap, Url), Refusal> {
        let mut response = self.send(url, None).await?;
        let (headers, from) = (response.headers().clone(), response.url().clone());
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|e| from_http(&e))? {
            if body.len() + bytes.len() > MAX_JSON {
                return Err(Failure::new(Cause::Garbled, "its answer is too large").into());
            }
            body.extend_from_slice(&bytes);
        }
        match serde_json::from_slice(&body) {
            Ok(value) => Ok((value, headers, from)),
            Err(_) => Err(no_json(&headers, &body).into()),
        }
    }

    /// Opens a file: all of it, or the bytes from `range.0` to `range.1` (exclusive).
    pub async fn open(&self, url: &Url, range: Option<(u64, u64)>) -> Result<Body, Refusal> {
        let mut tries = Tries::new();
        loop {
            self.patience.pass().await?;
            match self.open_once(url, range).await {
                Ok(body) => return Ok(body),
                Err(refusal) => tries.failed(refusal, &self.patience).await?,
            }
        }
    }

    async fn open_once(&self, url: &Url, range: Option<(u64, u64)>) -> Result<Body, Refusal> {
        let response = self.send(url, range).await?;
        let is_page = header(&response, CONTENT_TYPE.as_str()).trim_start().starts_with("text/html");
        if is_page && range.is_some() && !url.path().to_ascii_lowercase().contains("htm") {
            return Err(Failure::new(Cause::Garbled, WEB_PAGE).into());
        }
        let Some((from, to)) = range else { return Ok(Body { response, skip: 0, left: None }) };
        let mut skip = from;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let told = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let start = told.and_then(|text| text.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok());
            if start.is_some_and(|start: u64| start != from) {
                return Err(Failure::new(Cause::Garbled, "it sent another range than asked for").into());
            }
            skip = 0;
        }
        Ok(Body { response, skip, left: Some(to - from) })
    }

    /// One request with its redirects.
    async fn send(&self, url: &Url, range: Option<(u64, u64)>) -> Result<Response, Refusal> {
        let mut url = url.clone();
        let mut asked = vec![url.clone()];
        let mut at_home = true;
        loop {
            let response = self.send_once(&url, range, at_home).await?;
            let status = response.status();
            let is_redirect = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let location = response.headers().get(LOCATION).filter(|_| is_redirect);
            let Some(location) = location else { return checked(response) };
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            let astray = |why: String| Failure::new(Cause::Garbled, format!("it redirects astray: {why}"));
            let mut place = self.endpoint.follow(&url, &location).map_err(astray)?;
            // A mirror that sends on to the Hub itself does not have it: then that is asked, as nobody in particular.
            if let Place::Home(next) = &place
                && asked.contains(next)
                && let Ok(official) = url.join(&location)
                && !self.endpoint.is_home(&official)
            {
                place = Place::Elsewhere(official);
            }
            let next = match place {
                Place::Home(next) => next,
                Place::Elsewhere(mut next) => {
                    at_home = false;
                    let _ = next.set_username("");
                    let _ = next.set_password(None);
                    // The bytes of a file are proven; nothing proves a listing.
                    if url.scheme() == "https" && next.scheme() == "http" && range.is_none() {
                        return Err(astray("from https to http".into()).into());
                    }
                    next
                }
            };
            if asked.contains(&next) || asked.len() > REDIRECTS {
                return Err(astray("in a circle".into()).into());
            }
            asked.push(next.clone());
            url = next;
        }
    }

    async fn send_once(&self, url: &Url, range: Option<(u64, u64)>, at_home: bool) -> Result<Response, Refusal> {
        let host = url.host_str().unwrap_or_default();
        let direct = self.no_proxy.covers(host, url.port_or_known_default().unwrap_or_default());
        let client = if direct { &self.direct } else { &self.proxied };
        let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if at_home && self.endpoint.is_home(url) {
            request = match (&self.token, &self.endpoint.login) {
                (Some(token), _) => request.bearer_auth(token.expose()),
                (None, Some((user, password))) => request.basic_auth(user, Some(password)),
                (None, None) => request,
            };
        }
        if let Some((from, to)) = range {
            request = request.header(RANGE, format!("bytes={from}-{}", to.saturating_sub(1)));
        }
        let (sent, _waiting) = (Sent::now("GET", url.as_str()), waiting("the Hub"));
        let answer = request.send().await;
        if let Some(sent) = sent {
            let answer = answer.as_ref().ok();
            sent.answered(answer.map(|answer| answer.status().as_u16()), answer.and_then(Response::content_length));
        }
        Ok(answer.map_err(|e| from_http(&e))?)
    }
}

/// The tries of one request.
struct Tries {
    /// When the Hub first asked to wait.
    asked: Option<Instant>,
    failed: u32,
}

impl Tries {
    fn new() -> Tries {
        Tries { asked: None, failed: 0 }
    }

    /// Waits until the next try; fails when there is none, or when the Hub asks for too long a wait.
    async fn failed(&mut self, refusal: Refusal, patience: &Patience) -> Result<(), Refusal> {
        if !refusal.failure.cause.is_transient() {
            return Err(refusal);
        }
        if let Some(wait) = refusal.wait {
            return Ok(patience.asked(wait, *self.asked.get_or_insert_with(Instant::now))?);
        }
        self.failed += 1;
        let Some(pause) = Try::Hub.again(refusal.failure.cause, self.failed, None, fastrand::f64()) else {
            return Err(refusal);
        };
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Body {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Cause::Broken`] when the connection breaks or stalls.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.left == Some(0) {
                return Ok(None);
            }
            let next = tokio::time::timeout(STALL, self.response.chunk()).await;
            let Some(mut bytes) = next.map_err(|_| Failure::new(Cause::Broken, "the download stalled"))?.map_err(
                |e| match from_http(&e) {
                    failure if failure.cause.is_transient() => failure,
                    _ => Failure::new(Cause::Broken, "the download ended early"),
                },
            )?
            else {
                return Ok(None);
            };
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

const WEB_PAGE: &str = "it answers with a web page, so this is no Hub, or a portal in front of it";

fn checked(response: Response) -> Result<Response, Refusal> {
    let (status, headers) = (response.status(), response.headers());
    let header = |name: &str| headers.get(name).and_then(|text| text.to_str().ok()).unwrap_or_default();
    if !status.is_success() {
        let failure = from_status(status, header("x-error-code"), header("x-error-message"));
        let wait = matches!(status.as_u16(), 429 | 503).then(|| named_wait(headers, SystemTime::now())).flatten();
        return Err(Refusal { failure, code: header("x-error-code").to_string(), wait });
    }
    let encoding = header(CONTENT_ENCODING.as_str()).trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        let why = format!("something on the way compresses its answers ({}), unasked", printable(encoding, 20));
        return Err(Failure::new(Cause::Garbled, why).into());
    }
    Ok(response)
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).and_then(|text| text.to_str().ok()).unwrap_or_default()
}

fn no_json(headers: &HeaderMap, body: &[u8]) -> Failure {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let start = String::from_utf8_lossy(&body[..body.len().min(200)]).trim_start().to_ascii_lowercase();
    let is_page = kind.contains("html") || start.starts_with("<!doctype html") || start.starts_with("<html");
    let why = match is_page {
        true => WEB_PAGE,
        false => "its answer is no valid JSON, or ends in the middle",
    };
    Failure::new(Cause::Garbled, why)
}

/// The Hub hides private repos: whoever may not see one is told that there is none, or to log in.
fn from_status(status: StatusCode, code: &str, message: &str) -> Failure {
    let missing = "there is no such repo, or it is private";
    let said = |or: &str| if message.is_empty() { or.to_string() } else { printable(message, 200) };
    let (cause, detail) = match (status.as_u16(), code) {
        (_, "RevisionNotFound") => (Cause::NoSuchKey, "the repo has no such revision".into()),
        (_, "EntryNotFound") => (Cause::NoSuchKey, "the revision has no such file".into()),
        (_, "GatedRepo") => (Cause::Denied, said("the repo is gated")),
        (_, "RepoNotFound") => (Cause::NoSuchKey, missing.into()),
        (401, _) if message == "Invalid credentials in Authorization header" => (Cause::BadCredentials, said("")),
        (401 | 404, _) => (Cause::NoSuchKey, missing.into()),
        (403, _) => (Cause::Denied, said("HTTP status 403")),
        (408 | 429 | 500 | 502 | 503 | 504 | 520..=527, _) => (Cause::Busy, said(&format!("HTTP status {status}"))),
        _ => (Cause::Other, said(&format!("HTTP status {status}"))),
    };
    Failure::new(cause, detail)
}

fn from_http(error: &reqwest::Error) -> Failure {
    if let Some(problem) = net::tls_problem(error) {
        return Failure::new(Cause::Certificate, problem.why);
    }
    let cause = if error.is_connect() { Cause::Unreachable } else { Cause::Broken };
    Failure::new(cause, deepest(error))
}

fn cannot_start(error: &reqwest::Error) -> Error {
    Error::usage("cannot prepare requests to the Hub").because(deepest(error)).hint(
        "check the certificates that SSL_CERT_FILE, REQUESTS_CA_BUNDLE or AWS_CA_BUNDLE name, and the proxy settings",
    )
}

/// The innermost reason of a chain of errors.
fn deepest(error: &reqwest::Error) -> String {
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
            (401, "GatedRepo", "", Cause::Denied),
            (403, "GatedRepo", "", Cause::Denied),
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
