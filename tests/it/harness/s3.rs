//! An embedded S3 server: s3s-fs on a real loopback socket, with real signatures. It records every request and can be
//! made to misbehave. Shared by tests and examples.
#![allow(dead_code)] // each user needs only a part of it

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use md5::Digest;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

/// The access key that the server accepts.
pub const ACCESS_KEY: &str = "test-access-key";
/// The secret key that the server accepts.
pub const SECRET_KEY: &str = "test-secret-key";

/// Time limit for waiting for a request that a test expects.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A request as received.
#[derive(Debug, Clone)]
pub struct S3Request {
    /// GET, PUT, …
    pub method: String,
    /// The key, decoded; empty for requests to the bucket.
    pub key: String,
    /// The query.
    pub query: String,
    /// The user agent.
    pub agent: String,
    /// The `range` header.
    pub range: Option<String>,
    /// The session token header.
    pub token: Option<String>,
    /// Whether it is a conditional write.
    pub conditional: bool,
    /// The `if-match` header.
    pub if_match: Option<String>,
}

impl S3Request {
    /// Whether it has this method and a key with this prefix.
    pub fn is(&self, method: &str, key: &str) -> bool {
        self.method == method && self.key.starts_with(key)
    }

    /// Whether it lists objects.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.query.contains("list-type=2")
    }

    /// Whether it is a write under the condition that the object has an ETag, which is in quotes.
    pub fn is_quoted_write(&self) -> bool {
        self.method == "PUT" && self.if_match.as_ref().is_some_and(|etag| etag.starts_with('"'))
    }

    /// Returns the number of the part that it uploads.
    pub fn part(&self) -> Option<u32> {
        if self.method != "PUT" {
            return None;
        }
        self.parameter("partNumber")?.parse().ok()
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// How the server handles a request.
#[derive(Debug, Clone)]
pub enum Action {
    /// Handle it normally.
    Pass,
    /// Respond with this status, S3 code and message.
    Refuse(u16, &'static str, &'static str),
    /// Respond with this status and an HTML page.
    Page(u16),
    /// Refuse before the body has arrived, and close the connection.
    RefuseEarly(u16, &'static str, &'static str),
    /// Truncate the response body to this many bytes.
    Cut(usize),
    /// Handle it, with a server clock that is this many seconds fast.
    ClockAhead(i64),
    /// Handle it, with a server clock that is this many seconds fast, in listings, too.
    Shift(i64),
    /// Handle it once the gate is open.
    Hold(Gate),
    /// Handle it after a pause.
    Delay(Duration),
    /// Refuse it once the gate is open.
    HoldAndRefuse(Gate, u16, &'static str, &'static str),
    /// Never respond.
    Hang,
    /// Report success, but discard the object.
    Swallow,
    /// Report success, but truncate the object to this many bytes.
    Truncate(u64),
    /// Report success, but store the object under another key.
    Misplace,
    /// Respond with a body that has one corrupt byte.
    Flip,
    /// Omit objects whose keys contain this from listings.
    Omit(&'static str),
}

/// Holds requests until a test opens it.
#[derive(Debug, Clone)]
pub struct Gate(Arc<tokio::sync::watch::Sender<bool>>);

impl Gate {
    /// Returns a closed gate.
    pub fn new() -> Self {
        Gate(Arc::new(tokio::sync::watch::Sender::new(false)))
    }

    /// Lets all requests through from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

type Hook = Box<dyn Fn(&S3Request) -> Action + Send + Sync>;

/// A running server. It stops when it is dropped.
pub struct Server {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    root: PathBuf,
    seen: Mutex<Vec<S3Request>>,
    arrived: Condvar,
    hook: Mutex<Option<Hook>>,
    parts: Mutex<Parts>,
    /// Number of requests in flight.
    requests: AtomicUsize,
    /// Number of those that delete objects.
    deletions: AtomicUsize,
    access: Access,
}

/// Changes requests once their signatures have been checked.
#[derive(Clone, Default)]
struct Access {
    /// Whether the conditions of writes are dropped.
    ignores_conditions: Arc<AtomicBool>,
    /// Maximum number of keys on a page of a listing; 0 if the request decides.
    page_size: Arc<AtomicUsize>,
    /// What replaces `start-after` in listings.
    start_after: Arc<Mutex<Option<&'static str>>>,
}

impl s3s::access::S3Access for Access {
    // As the macro of the trait expands `async fn put_object(&self, request: &mut …)`.
    fn put_object<'life0, 'life1, 'async_trait>(
        &'life0 self,
        request: &'life1 mut s3s::S3Request<s3s::dto::PutObjectInput>,
    ) -> Pin<Box<dyn Future<Output = s3s::S3Result<()>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        if self.ignores_conditions.load(Ordering::SeqCst) {
            (request.input.if_match, request.input.if_none_match) = (None, None);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn list_objects_v2<'life0, 'life1, 'async_trait>(
        &'life0 self,
        request: &'life1 mut s3s::S3Request<s3s::dto::ListObjectsV2Input>,
    ) -> Pin<Box<dyn Future<Output = s3s::S3Result<()>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        match self.page_size.load(Ordering::SeqCst) {
            0 => {}
            size => request.input.max_keys = Some(size as i32),
        }
        if let (Some(asked), Some(other)) = (&mut request.input.start_after, *self.start_after.lock().unwrap()) {
            *asked = other.into();
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Counts a request, even if its client closes the connection.
struct InFlight {
    state: Arc<State>,
    deletes: bool,
}

impl InFlight {
    fn new(state: &Arc<State>, deletes: bool) -> Self {
        state.requests.fetch_add(1, Ordering::SeqCst);
        state.deletions.fetch_add(usize::from(deletes), Ordering::SeqCst);
        InFlight { state: state.clone(), deletes }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.state.deletions.fetch_sub(usize::from(self.deletes), Ordering::SeqCst);
        self.state.requests.fetch_sub(1, Ordering::SeqCst);
    }
}

/// ETag and size of each part, by upload id and part number.
type Parts = HashMap<String, BTreeMap<u32, (String, u64)>>;

impl Server {
    /// Serves a folder, each of whose subfolders is a bucket.
    pub async fn start(root: &Path, port: u16, access_key: &str, secret_key: &str) -> Self {
        let files = s3s_fs::FileSystem::new(root).expect("the folder exists");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let access = Access::default();
        builder.set_access(access.clone());
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(State { root: root.to_path_buf(), access, ..State::default() });
        let task = tokio::spawn(accept(listener, service, state.clone()));
        Server { url, state, task }
    }

    /// Returns the requests since the last call.
    pub fn take_seen(&self) -> Vec<S3Request> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Returns the number of requests since the last [`Server::take_seen`].
    pub fn seen(&self) -> usize {
        self.state.seen.lock().unwrap().len()
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Returns the number of requests in flight that delete objects.
    pub fn deletions(&self) -> usize {
        self.state.deletions.load(Ordering::SeqCst)
    }

    /// Blocks until the requests since the last [`Server::take_seen`] meet the condition.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&[S3Request]) -> bool) {
        let seen = self.state.seen.lock().unwrap();
        let (seen, waited) = self.state.arrived.wait_timeout_while(seen, TIMEOUT, |seen| !wanted(seen)).unwrap();
        let requests: Vec<String> = seen.iter().map(|s| format!("{} {}?{}", s.method, s.key, s.query)).collect();
        drop(seen);
        assert!(!waited.timed_out(), "timed out waiting for {what}; got: {requests:#?}");
    }

    /// Deletes unfinished uploads with their parts, as a lifecycle rule does.
    pub fn clean_up_uploads(&self) {
        self.state.parts.lock().unwrap().clear();
        for entry in std::fs::read_dir(&self.state.root).expect("the folder exists") {
            let path = entry.expect("readable").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(".upload") {
                std::fs::remove_file(&path).expect("the file exists");
            }
        }
    }

    /// Changes the ETag of this part in every unfinished upload.
    pub fn change_part(&self, number: u32) {
        for parts in self.state.parts.lock().unwrap().values_mut() {
            parts.entry(number).and_modify(|(etag, _)| *etag = format!("\"{}\"", "0".repeat(32)));
        }
    }

    /// Handles requests by this hook from now on.
    pub fn on_request(&self, hook: impl Fn(&S3Request) -> Action + Send + Sync + 'static) {
        *self.state.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Holds the requests that `picks` selects until the gate opens.
    pub fn hold(&self, picks: impl Fn(&S3Request) -> bool + Send + Sync + 'static) -> Gate {
        let gate = Gate::new();
        let held = gate.clone();
        self.on_request(move |request| if picks(request) { Action::Hold(held.clone()) } else { Action::Pass });
        gate
    }

    /// Accepts the conditions of writes from now on, but ignores them.
    pub fn ignore_conditions(&self) {
        self.state.access.ignores_conditions.store(true, Ordering::SeqCst);
    }

    /// Lists at most this many keys on a page from now on.
    pub fn set_page_size(&self, size: usize) {
        self.state.access.page_size.store(size, Ordering::SeqCst);
    }

    /// Replaces `start-after` in listings from now on: by an empty key, as a store that ignores it, or by any other.
    pub fn replace_start_after(&self, key: &'static str) {
        *self.state.access.start_after.lock().unwrap() = Some(key);
    }

    /// Handles all requests normally again.
    pub fn behave(&self) {
        *self.state.hook.lock().unwrap() = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: tokio::net::TcpListener, service: S3Service, state: Arc<State>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let (service, state) = (service.clone(), state.clone());
        tokio::spawn(async move {
            let handler = service_fn(move |request| answer(service.clone(), state.clone(), request));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(socket), handler).await;
        });
    }
}

async fn answer(
    service: S3Service,
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let header = |name: &str| request.headers().get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let (bucket, key) = request.uri().path().trim_start_matches('/').split_once('/').unwrap_or_default();
    let (bucket, key) = (bucket.to_string(), decoded(key));
    let seen = S3Request {
        method: request.method().to_string(),
        key,
        query: request.uri().query().unwrap_or_default().to_string(),
        agent: header("user-agent").unwrap_or_default(),
        range: header("range"),
        token: header("x-amz-security-token"),
        conditional: request.method() == "PUT" && (header("if-match").or_else(|| header("if-none-match"))).is_some(),
        if_match: header("if-match"),
    };
    let size = header("content-length").and_then(|text| text.parse().ok()).unwrap_or_default();
    let action = state.hook.lock().unwrap().as_ref().map_or(Action::Pass, |hook| hook(&seen));
    state.seen.lock().unwrap().push(seen.clone());
    state.arrived.notify_all();
    let deletes = seen.method == "DELETE" || (seen.method == "POST" && seen.query.starts_with("delete"));
    let _in_flight = InFlight::new(&state, deletes);
    let (mut cut, mut ahead) = (None, None);
    match action.clone() {
        Action::Refuse(..) | Action::Page(_) => {
            let mut body = request.into_body();
            while http_body_util::BodyExt::frame(&mut body).await.is_some_and(|frame| frame.is_ok()) {}
            return Ok(match action {
                Action::Refuse(status, code, message) => refusal(status, code, message),
                Action::Page(status) => page(status),
                _ => unreachable!("matched above"),
            });
        }
        Action::RefuseEarly(status, code, message) => return Ok(refusal(status, code, message)),
        Action::Hang => std::future::pending().await,
        Action::Hold(gate) => gate.pass().await,
        Action::Delay(pause) => tokio::time::sleep(pause).await,
        Action::HoldAndRefuse(gate, status, code, message) => {
            gate.pass().await;
            return Ok(refusal(status, code, message));
        }
        Action::Cut(length) => cut = Some(length),
        Action::ClockAhead(seconds) | Action::Shift(seconds) => ahead = Some(seconds),
        Action::Pass | Action::Swallow | Action::Truncate(_) | Action::Misplace | Action::Flip | Action::Omit(_) => {}
    }
    let request = match with_content_md5(request).await {
        Ok(request) => request,
        Err(()) => return Ok(refusal(400, "BadDigest", "The Content-MD5 you specified did not match")),
    };
    let upload = seen.parameter("uploadId").map(String::from);
    // s3s-fs forgets an upload before it has put the object together. If it was killed then, it would deny access to the parts.
    let is_lost = |upload: &String| {
        !state.root.join(format!(".upload-{upload}.json")).exists() && !stored_parts(&state.root, upload).is_empty()
    };
    if upload.as_ref().is_some_and(is_lost) {
        return Ok(refusal(404, "NoSuchUpload", "The specified upload does not exist."));
    }
    if let (Some(upload), "GET") = (&upload, seen.method.as_str()) {
        let mut known = state.parts.lock().unwrap();
        // The parts of an earlier process are on the disk alone.
        let parts = known.entry(upload.clone()).or_insert_with(|| stored_parts(&state.root, upload));
        if !parts.is_empty() {
            return Ok(listed_parts(parts));
        }
    }
    let mut response = match service.call(request).await {
        Ok(response) => response,
        Err(_) => return Ok(refusal(500, "InternalError", "the embedded server failed")),
    };
    if let Some(seconds) = ahead {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        let date =
            jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).expect("a date in range");
        response.headers_mut().insert("date", date.parse().expect("ASCII"));
    }
    if let Action::Shift(seconds) = action
        && seen.is_list()
    {
        response = shifted(response, seconds).await;
    }
    if let (Some(upload), Some(number), true) = (upload, seen.part(), response.status().is_success()) {
        let etag = response.headers().get("etag").map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let part = (etag.unwrap_or_default(), size);
        state.parts.lock().unwrap().entry(upload).or_default().insert(number, part);
    }
    let object = state.root.join(&bucket).join(&seen.key);
    if response.status().is_success() && object.is_file() {
        match action {
            Action::Swallow => std::fs::remove_file(object).expect("the file exists"),
            Action::Truncate(length) => {
                let file = std::fs::File::options().write(true).open(object).expect("the file exists");
                file.set_len(length).expect("the file can be truncated");
            }
            Action::Misplace => std::fs::rename(&object, object.with_extension("elsewhere")).expect("the file exists"),
            _ => {}
        }
    }
    if matches!(action, Action::Flip) {
        let (head, body) = response.into_parts();
        let body = http_body_util::BodyExt::collect(body).await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut bytes = body.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        return Ok(Response::from_parts(head, Body::from(bytes::Bytes::from(bytes))));
    }
    if let Action::Omit(words) = action
        && seen.is_list()
    {
        return Ok(without(response, words).await);
    }
    if seen.is_list() && response.status().is_success() {
        response = with_etags(response, &state.root.join(bucket)).await;
    }
    Ok(match cut {
        None => response,
        Some(length) => cut_short(response, length).await,
    })
}

/// Checks a body against its Content-MD5, as stores do. s3s-fs ignores that of parts.
async fn with_content_md5(request: Request<Incoming>) -> Result<Request<Body>, ()> {
    use http_body_util::BodyExt;
    let Some(expected) = request.headers().get("content-md5").cloned() else { return Ok(request.map(Body::from)) };
    let (head, body) = request.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).map_err(drop)?;
    let found = aws_smithy_types::base64::encode(md5::Md5::digest(&bytes));
    if expected.as_bytes() != found.as_bytes() {
        return Err(());
    }
    Ok(Request::from_parts(head, Body::from(bytes)))
}

/// Decodes percent-encoding.
pub fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Reads the parts of an upload that s3s-fs has stored.
fn stored_parts(root: &Path, upload: &str) -> BTreeMap<u32, (String, u64)> {
    let start = format!(".upload_id-{upload}.part-");
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let stored = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix(&start)?.parse().ok()?;
        let bytes = std::fs::read(entry.path()).ok()?;
        let md5: String = md5::Md5::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Some((number, (format!("\"{md5}\""), bytes.len() as u64)))
    });
    stored.collect()
}

/// s3s-fs lists parts without ETags, unlike any real store.
fn listed_parts(parts: &BTreeMap<u32, (String, u64)>) -> Response<Body> {
    let parts: String = parts
        .iter()
        .map(|(number, (etag, size))| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag><Size>{size}</Size></Part>")
        })
        .collect();
    let xml =
        format!("<?xml version=\"1.0\"?><ListPartsResult><IsTruncated>false</IsTruncated>{parts}</ListPartsResult>");
    Response::new(Body::from(xml))
}

/// s3s-fs lists objects without ETags, unlike any real store. Large objects are skipped, since the ETags of multipart
/// uploads are not MD5s.
async fn with_etags(response: Response<Body>, bucket: &Path) -> Response<Body> {
    use http_body_util::BodyExt;
    let (mut head, body) = response.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let xml = String::from_utf8_lossy(&bytes).into_owned();
    let mut out = String::new();
    let mut rest = xml.as_str();
    while let Some((before, after)) = rest.split_once("<Key>") {
        let (key, tail) = after.split_once("</Key>").unwrap_or((after, ""));
        out.push_str(&format!("{before}<Key>{key}</Key>"));
        let file = bucket.join(key.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"));
        if file.metadata().is_ok_and(|meta| meta.len() < 1 << 20)
            && let Ok(content) = std::fs::read(&file)
        {
            let md5: String = md5::Md5::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            out.push_str(&format!("<ETag>&quot;{md5}&quot;</ETag>"));
        }
        rest = tail;
    }
    out.push_str(rest);
    head.headers.remove("content-length");
    Response::from_parts(head, Body::from(out))
}

/// Returns a listing with all times moved by this many seconds.
async fn shifted(response: Response<Body>, seconds: i64) -> Response<Body> {
    use http_body_util::BodyExt;
    let (mut head, body) = response.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let xml = String::from_utf8_lossy(&bytes).into_owned();
    let mut out = String::new();
    let mut rest = xml.as_str();
    while let Some((before, (time, after))) =
        rest.split_once("<LastModified>").and_then(|(before, after)| Some((before, after.split_once('<')?)))
    {
        let time: jiff::Timestamp = time.parse().expect("a time");
        out += &format!("{before}<LastModified>{}<", time + jiff::SignedDuration::from_secs(seconds));
        rest = after;
    }
    out.push_str(rest);
    head.headers.remove("content-length");
    Response::from_parts(head, Body::from(out))
}

/// Returns a listing without the objects whose keys contain `words`, as of a store that is eventually consistent.
async fn without(response: Response<Body>, words: &str) -> Response<Body> {
    use http_body_util::BodyExt;
    let (mut head, body) = response.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let xml = String::from_utf8_lossy(&bytes).into_owned();
    // The count would reveal that objects are missing.
    let xml = match (xml.split_once("<KeyCount>"), xml.split_once("</KeyCount>")) {
        (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
        _ => xml,
    };
    let (start, objects) = xml.split_once("<Contents>").unwrap_or((&xml, ""));
    let mut out = start.to_string();
    for object in objects.split("<Contents>").filter(|object| !object.is_empty()) {
        match (object.contains(words), object.split_once("</Contents>")) {
            (true, Some((_, rest))) => out.push_str(rest),
            _ => out.push_str(&format!("<Contents>{object}")),
        }
    }
    head.headers.remove("content-length");
    Response::from_parts(head, Body::from(out))
}

fn page(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::from("<!DOCTYPE html><html><body>Not here</body></html>".to_string()));
    response.headers_mut().insert("content-type", "text/html".parse().expect("a header"));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

fn refusal(status: u16, code: &str, message: &str) -> Response<Body> {
    let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let mut response = Response::new(Body::from(xml));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

/// Keeps the headers, including the content length, but sends only the first bytes of the body.
async fn cut_short(response: Response<Body>, length: usize) -> Response<Body> {
    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    let (head, body) = response.into_parts();
    let bytes = BodyExt::collect(body).await.map(|body| body.to_bytes()).unwrap_or_default();
    let first = bytes.slice(..length.min(bytes.len()));
    let frame = stream::once(std::future::ready(Ok(hyper::body::Frame::data(first))));
    // Yield so that the first bytes are sent before the connection breaks.
    let broken = stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut"))
    });
    let stream = StreamBody::new(Box::pin(frame.chain(broken)));
    Response::from_parts(head, Body::http_body_unsync(stream))
}
