//! Answers requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::{AsciiSet, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::activity::{Activity, one_line};
use super::body::{self, Body, Trust};
use super::cached::Cached;
use super::card;
use super::documents::{self, Listing, TooDeep, View};
use super::gatekeeper::{Gatekeeper, Verdict};
use super::page;
use super::puller::{Opened, Puller};
use super::range::{self, Requested};
use super::revisions::{Revision, Revisions};
use super::route::{self, Refusal, Route};
use crate::cache::layout::Layout;
use crate::error::{Cause, Error, printable};
use crate::model::ids::{BlobId, Commit, RepoPath, RepoQuery, RepoType};
use crate::net::RESERVED;
use crate::task::blocking;
use crate::transfer::arrival::Arrival;
use crate::transfer::parts::SINGLE_GET;

/// Maximum wait for the first bytes of a blob. Clients time out after ten seconds.
const FIRST_BYTES: Duration = Duration::from_secs(8);
/// Maximum size of a request body, in bytes.
const MAX_REQUEST_BODY: usize = 4 << 20;
/// Maximum number of paths in a request body.
const MAX_PATHS: usize = 100_000;
/// Maximum size of a README whose front matter is read, in bytes.
const MAX_README: u64 = 4 << 20;
/// Size in bytes above which huggingface_hub refuses plain HTTP.
const MAX_PLAIN_HTTP: u64 = 50_000_000_000;
/// First version of huggingface_hub that downloads a file of any size over plain HTTP if the size is not sent.
const ACCEPTS_UNKNOWN_SIZE: (u32, u32) = (1, 33);
/// First version of huggingface_hub that caches listings.
const CACHES_LISTINGS: (u32, u32) = (1, 23);

/// Size of the pieces in which a list is sent, in bytes.
const PIECE: usize = 64 << 10;
const JSON: &str = "application/json; charset=utf-8";
/// Characters that are percent-encoded in the path of a file.
const PATH: &AsciiSet = &RESERVED.remove(b'/');

const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");
/// huggingface_hub sends it with requests that lead to a download.
const DOWNLOAD_COUNTER: HeaderName = HeaderName::from_static("x-hf-download-counter");

/// Everything needed to answer requests.
pub struct Site {
    /// Looks up revisions.
    pub revisions: Arc<Revisions>,
    /// Opens files.
    pub puller: Arc<Puller>,
    /// The counters.
    pub activity: Arc<Activity>,
    /// Decides which requests are allowed.
    pub gatekeeper: Gatekeeper,
    /// Whether clients on this machine use the same cache.
    pub shares_cache: bool,
    /// What the status page says about the configuration.
    pub about: page::About,
    /// The paths of the cache.
    pub layout: Layout,
    /// Its contents.
    pub cached: Cached,
}

type Answer = Response<Body>;

impl Site {
    /// Answers a request.
    pub async fn answer(&self, request: Request<Incoming>, is_local: bool) -> Answer {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let mut answer = match self.gatekeeper.check(request.headers(), uri.path()) {
            Verdict::Allowed => self.dispatch(request, is_local).await,
            Verdict::WrongHost => text_error(
                StatusCode::MISDIRECTED_REQUEST,
                "this server does not answer for this host: use the address that it printed",
            ),
            Verdict::NoToken => {
                let mut answer = text_error(StatusCode::UNAUTHORIZED, "Invalid credentials in Authorization header");
                answer
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"hf-cache-sync\""));
                answer
            }
        };
        if method == Method::HEAD {
            let (parts, _) = answer.into_parts();
            answer = Response::from_parts(parts, body::nothing());
        }
        self.activity.count_status(answer.status().as_u16());
        answer
    }

    async fn dispatch(&self, request: Request<Incoming>, is_local: bool) -> Answer {
        let (parts, incoming) = request.into_parts();
        let is_read = matches!(parts.method, Method::GET | Method::HEAD);
        let route = match route::parse(parts.uri.path(), parts.uri.query().unwrap_or("")) {
            Ok(route) => route,
            Err(Refusal::Malformed(why)) => return text_error(StatusCode::BAD_REQUEST, &why),
            Err(Refusal::NoSuchRepo(why)) => return error_response(StatusCode::NOT_FOUND, "RepoNotFound", &why),
        };
        match route {
            Route::PathsInfo { .. } if parts.method != Method::POST => method_not_allowed("POST"),
            Route::PathsInfo { query, revision } => self.paths_info(&query, &revision, &parts.headers, incoming).await,
            // Telemetry and the like.
            Route::NotServed => text_error(StatusCode::NOT_FOUND, "hf-cache-sync does not serve this"),
            _ if !is_read => method_not_allowed("GET, HEAD"),
            Route::File { query, revision, path } => {
                let is_head = parts.method == Method::HEAD;
                self.file(&query, &revision, &path, &parts.headers, is_head, is_local).await
            }
            Route::Raw { query, revision, path } => {
                let is_head = parts.method == Method::HEAD;
                self.raw(&query, &revision, &path, &parts.headers, is_head, is_local).await
            }
            Route::Info { query, revision, with_blobs } => self.info(&query, &revision, with_blobs).await,
            Route::Tree { query, revision, folder, is_recursive, is_expanded } => {
                let caches_listings = hub_version(&parts.headers) >= CACHES_LISTINGS;
                self.tree(&query, &revision, folder.as_ref(), is_recursive, is_expanded, caches_listings).await
            }
            Route::Refs { query, with_pull_requests } => match self.revisions.refs(&query).await {
                Ok(refs) => json_answer(&documents::refs(&refs, with_pull_requests)),
                Err(error) => self.failure(&query.to_string(), &error),
            },
            Route::AuthCheck { query } => match self.revisions.find(&query, "main").await {
                Err(error) if error.cause == Cause::NotFound => self.failure(&query.to_string(), &error),
                _ => json_answer(&json!({})),
            },
            Route::WhoAmI => json_answer(&json!({
                "type": "user",
                "id": "hf-cache-sync",
                "name": "hf-cache-sync",
                "fullname": "hf-cache-sync",
                "canPay": false,
                "isPro": false,
                "orgs": [],
                "auth": { "type": "access_token", "accessToken": { "displayName": "hf-cache-sync", "role": "read" } },
            })),
            Route::Health => respond("text/plain; charset=utf-8", "ok\n"),
            Route::Metrics => {
                respond("text/plain; version=0.0.4; charset=utf-8", self.activity.metrics(self.about.cache_bytes()))
            }
            Route::Page => {
                let cached = self.cached.repos(&self.layout).await;
                respond("text/html; charset=utf-8", page::html(&self.about, &self.activity.snapshot(), &cached))
            }
            Route::Status => {
                let cached = self.cached.repos(&self.layout).await;
                let mut answer = json_answer(&page::json(&self.about, &self.activity.snapshot(), &cached));
                answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                answer
            }
        }
    }

    async fn file(
        &self,
        query: &RepoQuery,
        revision: &str,
        path: &RepoPath,
        headers: &HeaderMap,
        is_head: bool,
        is_local: bool,
    ) -> Answer {
        let label = format!("{query}@{revision}/{path}");
        let name = revision;
        let revision = match self.revisions.find(query, name).await {
            Ok(revision) => revision,
            Err(error) => return self.failure(&label, &error),
        };
        let revision = match self.with_file(&revision, path).await {
            Ok(revision) => revision,
            Err(answer) => return answer,
        };
        let file = revision.listing.get(path).expect("the revision has the file");
        let head = Head { blob: file.blob, size: file.size, commit: revision.commit().as_str() };
        let requested = head.parse_range(headers);
        if is_head {
            let is_by_name = name != revision.commit().as_str() && hub_version(headers) > (0, 0);
            let location = if is_by_name { location(headers, &revision, path) } else { None };
            // A file that was never pushed fails only on GET. When HEAD fails, clients report that they cannot connect; only
            // for GET do they show the reason.
            if self.shares_cache && is_local && headers.contains_key(DOWNLOAD_COUNTER) {
                self.puller.prepare(&revision, path).await;
            }
            let mut answer = head.answer(&requested, body::nothing());
            if let Some(location) = location {
                answer.headers_mut().insert(header::LOCATION, location);
            }
            if file.size > SINGLE_GET && self.puller.is_suspect(&file.blob, None).await {
                // Makes llama.cpp discard its partial download. It would not accept the whole file in place of the rest.
                answer.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
            }
            if file.size > MAX_PLAIN_HTTP && hub_version(headers) >= ACCEPTS_UNKNOWN_SIZE {
                answer.headers_mut().remove(header::CONTENT_LENGTH);
                answer.headers_mut().remove(LINKED_SIZE);
            }
            return answer;
        }
        if requested == Requested::Unsatisfiable {
            return head.answer(&requested, body::nothing());
        }
        let appends_anything = appends_anything(headers);
        let is_probe = matches!(&requested, Requested::Part { bytes, .. } if *bytes == (0..1));
        let trust = if appends_anything && !is_probe { Trust::Nothing } else { Trust::AllButTheEnd };
        let opened = match self.puller.open(&revision, path).await {
            Ok(opened) => opened,
            Err(error) => return self.failure(&label, &error),
        };
        let is_hit = matches!(opened, Opened::Present(_));
        let counter = if is_hit { &self.activity.hits } else { &self.activity.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Opened::Arriving(arrival) = &opened
            && let Err(error) = first_bytes(arrival, trust).await
        {
            return self.failure(&label, &error);
        }
        // Read before the check: if the bytes turn out to be wrong after it, the body of this attempt is aborted.
        let attempt = match &opened {
            Opened::Present(_) => 0,
            Opened::Arriving(arrival) => arrival.attempt(),
        };
        let requested = match requested {
            // A client that resumes may have wrong bytes. Sent the whole file, it starts again.
            Requested::Part { is_rest: true, .. }
                if !appends_anything && self.puller.is_suspect(&file.blob, Some(&opened)).await =>
            {
                Requested::Whole
            }
            requested => requested,
        };
        let bytes = match &requested {
            Requested::Part { bytes, .. } => bytes.clone(),
            _ => 0..file.size,
        };
        let body = match opened {
            Opened::Present(file) => body::of_file(file, bytes, self.activity.clone()),
            Opened::Arriving(arrival) => body::of_arrival(&arrival, attempt, bytes, trust, self.activity.clone()),
        };
        head.answer(&requested, body)
    }

    /// Answers with a file as git stores it, which is the pointer for one in LFS.
    async fn raw(
        &self,
        query: &RepoQuery,
        revision: &str,
        path: &RepoPath,
        headers: &HeaderMap,
        is_head: bool,
        is_local: bool,
    ) -> Answer {
        let found = match self.revisions.find(query, revision).await {
            Ok(found) => found,
            Err(error) => return self.failure(&format!("{query}@{revision}/{path}"), &error),
        };
        let found = match self.with_file(&found, path).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let file = found.listing.get(path).expect("the revision has the file");
        let Some((oid, pointer)) = documents::pointer(file) else {
            return self.file(query, revision, path, headers, is_head, is_local).await;
        };
        let head = Head { blob: oid, size: pointer.len() as u64, commit: found.commit().as_str() };
        let requested = head.parse_range(headers);
        let content = match &requested {
            Requested::Part { bytes, .. } => pointer[bytes.start as usize..bytes.end as usize].to_string(),
            Requested::Unsatisfiable => String::new(),
            _ => pointer,
        };
        head.answer(&requested, body::whole(content))
    }

    /// Returns the revision that has the file: this one, or the same commit on the Hub.
    async fn with_file(&self, revision: &Arc<Revision>, path: &RepoPath) -> Result<Arc<Revision>, Answer> {
        if revision.listing.get(path).is_some() {
            return Ok(revision.clone());
        }
        if !revision.listing.is_complete
            && let Some(on_hub) = self.revisions.find_on_hub(revision).await
            && on_hub.listing.get(path).is_some()
        {
            return Ok(on_hub);
        }
        let name = printable(path.as_str(), 200);
        let mut answer =
            error_response(StatusCode::NOT_FOUND, "EntryNotFound", &format!("{}: no file '{name}'", revision.repo()));
        // If the commit is sent, huggingface_hub caches forever that there is no such file.
        if revision.listing.is_complete {
            answer.headers_mut().insert(REPO_COMMIT, value(revision.commit().as_str()));
        }
        Err(answer)
    }

    /// Returns whether the blob of a listed file is available, according to the manifest.
    fn is_available(&self, revision: &Revision, path: &RepoPath) -> bool {
        let files = revision.found.manifest.files();
        files.binary_search_by(|file| file.path.cmp(path)).is_ok() || self.revisions.has_fallback()
    }

    async fn info(&self, query: &RepoQuery, revision: &str, with_blobs: bool) -> Answer {
        let revision = match self.revisions.find_complete(query, revision).await {
            Ok(revision) => revision,
            Err(error) => return self.failure(&format!("{query}@{revision}"), &error),
        };
        // A failure is not remembered: the next attempt may succeed.
        let nothing = Map::new();
        let card = revision.card.get_or_try_init(|| async { self.read_card(&revision).await.ok_or(()) }).await;
        let card = card.unwrap_or(&nothing);
        let info = documents::info(revision.repo(), &revision.last_commit(), &revision.listing, card, with_blobs);
        let mut start = info.to_string();
        start.pop();
        start += ",\"siblings\":[";
        let mut after = None;
        let siblings = move |list: &mut JsonList| match revision.listing.next_sibling(&mut after, with_blobs) {
            Some(sibling) => {
                list.add(&sibling);
                true
            }
            None => false,
        };
        streamed_list(start, siblings, "]}")
    }

    /// Reads the front matter of the README; `None` if that fails or takes too long.
    async fn read_card(&self, revision: &Arc<Revision>) -> Option<Map<String, Value>> {
        let path: RepoPath = "README.md".parse().expect("it is a valid path");
        let Some(size) = revision.listing.get(&path).map(|file| file.size).filter(|size| *size <= MAX_README) else {
            return Some(Map::new());
        };
        if !self.is_available(revision, &path) {
            return Some(Map::new());
        }
        let read = async {
            let body = match self.puller.open(revision, &path).await.ok()? {
                Opened::Present(file) => body::of_file(file, 0..size, self.activity.clone()),
                Opened::Arriving(arrival) => {
                    let attempt = arrival.attempt();
                    body::of_arrival(&arrival, attempt, 0..size, Trust::Nothing, self.activity.clone())
                }
            };
            Some(body.collect().await.ok()?.to_bytes())
        };
        let bytes = tokio::time::timeout(FIRST_BYTES, read).await.ok()??;
        Some(card::front_matter(&String::from_utf8_lossy(&bytes)))
    }

    async fn tree(
        &self,
        query: &RepoQuery,
        revision: &str,
        folder: Option<&RepoPath>,
        is_recursive: bool,
        is_expanded: bool,
        client_keeps_it: bool,
    ) -> Answer {
        // The start of the path may belong to the name of the ref. A commit has no slashes.
        let longer = match folder {
            Some(folder) if revision.parse::<Commit>().is_err() => match self.revisions.refs(query).await {
                Ok(refs) if !refs.contains_key(revision) => {
                    let names = refs.keys().map(String::as_str);
                    route::longer_revision(names, revision, folder).map(|(name, rest)| (name.to_string(), rest))
                }
                _ => None,
            },
            _ => None,
        };
        let (revision, folder) = match &longer {
            Some((name, rest)) => (name.as_str(), rest.as_ref()),
            None => (revision, folder),
        };
        let revision = match self.revisions.find_complete(query, revision).await {
            Ok(revision) => revision,
            Err(error) => return self.failure(&format!("{query}@{revision}"), &error),
        };
        let listing: &Listing = &revision.listing;
        if let Some(folder) = folder
            && !listing.has_folder(folder)
        {
            let name = printable(folder.as_str(), 200);
            return error_response(
                StatusCode::NOT_FOUND,
                "EntryNotFound",
                &format!("{}: no folder '{name}'", revision.repo()),
            );
        }
        let is_marked = client_keeps_it && !listing.is_complete;
        let (found, folder) = (revision.clone(), folder.cloned());
        let list = move || {
            let commit = is_expanded.then(|| found.last_commit());
            found.listing.list(View { folder, is_recursive, commit, is_marked })
        };
        match blocking(list).await {
            Ok(mut cursor) => {
                let entries =
                    move |list: &mut JsonList| revision.listing.advance(&mut cursor, |entry| list.add(&entry));
                streamed_list("[".into(), entries, "]")
            }
            Err(TooDeep) => too_deep(&revision),
        }
    }

    async fn paths_info(&self, query: &RepoQuery, revision: &str, headers: &HeaderMap, incoming: Incoming) -> Answer {
        let content = match tokio::time::timeout(FIRST_BYTES, Limited::new(incoming, MAX_REQUEST_BODY).collect()).await
        {
            Ok(Ok(content)) => content.to_bytes(),
            _ => return text_error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long, or did not arrive in time"),
        };
        let is_json =
            headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let Some((paths, is_expanded)) = requested_paths(&content, is_json) else {
            return text_error(StatusCode::BAD_REQUEST, "the body names no paths");
        };
        let revision = match self.revisions.find_complete(query, revision).await {
            Ok(revision) => revision,
            Err(error) => return self.failure(&format!("{query}@{revision}"), &error),
        };
        if paths.len() > MAX_PATHS {
            return text_error(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body names more than {MAX_PATHS} paths"));
        }
        let found = revision.clone();
        let check = move || {
            let commit = is_expanded.then(|| found.last_commit());
            paths
                .iter()
                .try_for_each(|path| found.listing.entry(path.trim_matches('/'), None).map(drop))
                .map(|()| (paths, commit))
        };
        let Ok((paths, commit)) = blocking(check).await else { return too_deep(&revision) };
        let mut paths = paths.into_iter();
        let entries = move |list: &mut JsonList| {
            let Some(path) = paths.next() else { return false };
            if let Ok(Some(entry)) = revision.listing.entry(path.trim_matches('/'), commit.as_ref()) {
                list.add(&entry);
            }
            true
        };
        streamed_list("[".into(), entries, "]")
    }

    /// Answers with an error in the Hub's format.
    fn failure(&self, request: &str, error: &Error) -> Answer {
        let (status, code) = match error.cause {
            Cause::NotFound => (StatusCode::NOT_FOUND, "RepoNotFound"),
            Cause::NoSuchRevision => (StatusCode::NOT_FOUND, "RevisionNotFound"),
            Cause::Usage => (StatusCode::NOT_FOUND, "RevisionNotFound"),
            Cause::Gated => (StatusCode::FORBIDDEN, "GatedRepo"),
            cause if cause.may_pass() && !cause.is_denial() => (StatusCode::SERVICE_UNAVAILABLE, ""),
            Cause::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, ""),
            // Retrying does not help, and clients do not retry this status.
            _ => (StatusCode::FAILED_DEPENDENCY, ""),
        };
        if !error.cause.is_missing() {
            self.activity.fail(request, error);
            tracing::warn!(%request, "{}", one_line(error));
        }
        let message = one_line(error);
        error_response(status, code, &message)
    }
}

/// Waits until there is something to send, so that an immediate failure gets an error response.
async fn first_bytes(arrival: &Arc<Arrival>, trust: Trust) -> Result<(), Error> {
    let mut state = arrival.watch();
    let may_begin = trust == Trust::AllButTheEnd;
    let ready = state.wait_for(|state| state.outcome.is_some() || may_begin && state.frontier > 0);
    match tokio::time::timeout(FIRST_BYTES, ready).await {
        Ok(Ok(state)) => state.outcome.clone().unwrap_or(Ok(())),
        // The wait continues in the body.
        _ => Ok(()),
    }
}

/// Returns the paths in the body of a request, and whether the last commits are requested. huggingface_hub sends a form,
/// other clients JSON.
fn requested_paths(content: &[u8], is_json: bool) -> Option<(Vec<String>, bool)> {
    if is_json {
        let value: Value = serde_json::from_slice(content).ok()?;
        let paths = match &value["paths"] {
            Value::Array(all) => all.iter().filter_map(|one| one.as_str().map(String::from)).collect(),
            Value::String(one) => vec![one.clone()],
            _ => return None,
        };
        return Some((paths, value["expand"].as_bool().unwrap_or(false)));
    }
    let text = std::str::from_utf8(content).ok()?;
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8().ok().map(|text| text.into_owned())
    };
    let (mut paths, mut is_expanded) = (Vec::new(), false);
    for pair in text.split('&') {
        let (name, content) = pair.split_once('=')?;
        match decode(name)?.as_str() {
            "paths" => paths.push(decode(content)?),
            "expand" => is_expanded = decode(content)?.eq_ignore_ascii_case("true"),
            _ => {}
        }
    }
    Some((paths, is_expanded))
}

/// Returns the version of huggingface_hub that sent a request; 0.0 if it was another client.
fn hub_version(headers: &HeaderMap) -> (u32, u32) {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let version = agent.split("hf_hub/").nth(1).and_then(|rest| rest.split([';', ' ']).next());
    let mut numbers = version.unwrap_or_default().split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Returns the URL of the file at its commit. huggingface_hub downloads and resumes from there. With the name of a branch,
/// it would continue with the bytes of another commit once the branch has moved.
fn location(headers: &HeaderMap, revision: &Revision, path: &RepoPath) -> Option<HeaderValue> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let (repo, commit) = (revision.repo(), revision.commit());
    let kind = match repo.kind {
        RepoType::Model => String::new(),
        kind => format!("/{}s", kind.word()),
    };
    let path = utf8_percent_encode(path.as_str(), PATH);
    HeaderValue::from_str(&format!("http://{host}{kind}/{}/resolve/{commit}/{path}", repo.id.as_str())).ok()
}

/// Returns whether the client appends any response to its partial download. hf-hub up to 0.5 resumes without checking the
/// status. It has no timeouts, so it can wait until the blob is verified, and then its partial download is never wrong.
fn appends_anything(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    agent.contains("hf-hub/0.")
}

/// The content of a file's headers.
struct Head<'a> {
    blob: BlobId,
    size: u64,
    commit: &'a str,
}

impl Head<'_> {
    fn etag(&self) -> HeaderValue {
        value(&format!("\"{}\"", self.blob))
    }

    /// Returns which part of the file is requested. A range is ignored if `If-Range` names another version.
    fn parse_range(&self, headers: &HeaderMap) -> Requested {
        let is_same = headers.get(header::IF_RANGE).is_none_or(|etag| *etag == self.etag());
        let range = headers.get(header::RANGE).filter(|_| is_same).and_then(|value| value.to_str().ok());
        range::parse(range, self.size)
    }

    fn answer(&self, requested: &Requested, body: Body) -> Answer {
        let mut answer = Response::new(body);
        let (status, length, range) = match requested {
            Requested::Whole => (StatusCode::OK, self.size, None),
            Requested::Empty => (StatusCode::OK, 0, Some("bytes */0".to_string())),
            Requested::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0, Some(format!("bytes */{}", self.size))),
            Requested::Part { bytes, .. } => {
                let range = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, self.size);
                (StatusCode::PARTIAL_CONTENT, bytes.end - bytes.start, Some(range))
            }
        };
        *answer.status_mut() = status;
        let etag = self.etag();
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::CONTENT_LENGTH, length.into());
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::ETAG, etag.clone());
        headers.insert(LINKED_ETAG, etag);
        headers.insert(LINKED_SIZE, self.size.into());
        headers.insert(REPO_COMMIT, value(self.commit));
        if let Some(range) = range {
            headers.insert(header::CONTENT_RANGE, value(&range));
        }
        answer
    }
}

fn respond(kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let text = text.into();
    let length = text.len();
    let mut answer = Response::new(body::whole(text));
    add_kind(&mut answer, kind);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    if kind.starts_with("text/html") {
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    answer
}

fn add_kind(answer: &mut Answer, kind: &'static str) {
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// A JSON list that is being written.
struct JsonList {
    text: String,
    is_empty: bool,
}

impl JsonList {
    fn add(&mut self, value: &Value) {
        if !self.is_empty {
            self.text.push(',');
        }
        self.is_empty = false;
        self.text += &value.to_string();
    }
}

/// Answers with a list that is generated while it is sent: a slow client costs no more memory than one piece. `add` adds the
/// next values, and returns false at the end.
fn streamed_list(
    start: String,
    mut add: impl FnMut(&mut JsonList) -> bool + Send + 'static,
    end: &'static str,
) -> Answer {
    let mut list = JsonList { text: start, is_empty: true };
    let mut has_more = true;
    let next_piece = move || {
        while has_more && list.text.len() < PIECE {
            has_more = add(&mut list);
            if !has_more {
                list.text += end;
            }
        }
        std::mem::take(&mut list.text)
    };
    let mut answer = Response::new(body::of_pieces(next_piece));
    add_kind(&mut answer, JSON);
    answer
}

fn too_deep(revision: &Revision) -> Answer {
    let message = format!("{}: its folders are too many and too deep to list", revision.repo());
    text_error(StatusCode::FAILED_DEPENDENCY, &message)
}

fn json_answer(document: &Value) -> Answer {
    json_text(document.to_string())
}

fn json_text(text: String) -> Answer {
    respond(JSON, text)
}

/// Answers with an error that has no Hub error code.
fn text_error(status: StatusCode, message: &str) -> Answer {
    error_response(status, "", message)
}

fn method_not_allowed(allowed: &'static str) -> Answer {
    let mut answer = text_error(StatusCode::METHOD_NOT_ALLOWED, "hf-cache-sync is read-only");
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// Answers with an error. Clients distinguish errors by the header alone.
fn error_response(status: StatusCode, code: &'static str, message: &str) -> Answer {
    let mut answer = json_answer(&json!({ "error": message }));
    *answer.status_mut() = status;
    if !code.is_empty() {
        answer.headers_mut().insert(ERROR_CODE, HeaderValue::from_static(code));
    }
    // A header holds no control characters, and clients read it as Latin-1.
    let message: String = message.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    answer.headers_mut().insert(ERROR_MESSAGE, value(&message));
    answer
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_from_a_form_or_json() {
        let of = |content: &str, is_json| requested_paths(content.as_bytes(), is_json);
        let paths = |all: &[&str]| all.iter().map(|one| one.to_string()).collect::<Vec<_>>();
        assert_eq!(of("paths=a%2Fb&paths=c+d&expand=True", false), Some((paths(&["a/b", "c d"]), true)));
        assert_eq!(of(r#"{"paths": ["a"], "expand": true}"#, true), Some((paths(&["a"]), true)));
        assert_eq!(of(r#"{"paths": "a"}"#, true), Some((paths(&["a"]), false)));
        assert_eq!(of("[", true), None);
        assert_eq!(of("", false), None);
    }

    #[test]
    fn hf_hub_for_rust_appends_anything_up_to_version_0_5() {
        let appends = |agent: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::USER_AGENT, agent.parse().unwrap());
            appends_anything(&headers)
        };
        assert!(appends("unknown/None; hf-hub/0.4.3; rust/unknown"));
        assert!(!appends("hf-hub/1.0.0") && !appends("unknown/None; hf_hub/0.36.2; python/3.11") && !appends("node"));
    }

    #[test]
    fn ignores_a_range_of_another_version() {
        let head = Head { blob: "1".repeat(40).parse().unwrap(), size: 10, commit: "" };
        let requested = |of: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, "bytes=5-".parse().unwrap());
            if let Some(etag) = of {
                headers.insert(header::IF_RANGE, etag.parse().unwrap());
            }
            head.parse_range(&headers)
        };
        let rest = Requested::Part { bytes: 5..10, is_rest: true };
        assert_eq!((requested(None), requested(Some(&format!("\"{}\"", "1".repeat(40))))), (rest.clone(), rest));
        assert_eq!(requested(Some("\"another\"")), Requested::Whole);
        assert_eq!(requested(Some("Fri, 27 Nov 2026 00:00:00 GMT")), Requested::Whole);
    }

    #[test]
    fn parses_the_version_of_huggingface_hub() {
        let of = |agent: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::USER_AGENT, agent.parse().unwrap());
            hub_version(&headers)
        };
        assert_eq!(of("unknown/None; hf_hub/1.33.0; python/3.11"), (1, 33));
        assert_eq!(of("x; hf_hub/2.4.0.dev0; y"), (2, 4));
        assert_eq!(of("hf_hub/0.36.2"), (0, 36));
        assert_eq!(of("curl/8"), (0, 0));
        assert!(of("hf_hub/2.0") > CACHES_LISTINGS && of("hf_hub/1.9.0") < CACHES_LISTINGS);
    }

    #[test]
    fn an_error_header_is_one_line_of_ascii() {
        let answer = error_response(StatusCode::NOT_FOUND, "RepoNotFound", "no 'é'\r\nX: y");
        assert_eq!(answer.headers()[ERROR_MESSAGE], "no '?'??X: y");
        assert_eq!(answer.headers()[ERROR_CODE], "RepoNotFound");
    }
}
