//! An embedded S3 server: s3s-fs over a real socket on the loopback, with real signatures. It notes every request and
//! can be told to misbehave. Shared by tests and examples.
#![allow(dead_code)] // each user needs a part of it

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
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

/// The key pair that the server accepts.
pub const ACCESS_KEY: &str = "test-access-key";
/// Its secret half.
pub const SECRET_KEY: &str = "test-secret-key";

/// Longest wait for something that a test expects.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    /// GET, PUT, …
    pub method: String,
    /// The key, decoded; empty for requests on the bucket.
    pub key: String,
    /// The query.
    pub query: String,
    /// The user agent.
    pub agent: String,
    /// The range header.
    pub range: Option<String>,
    /// The session token header.
    pub token: Option<String>,
    /// Whether it is a write under a condition.
    pub conditional: bool,
}

impl Seen {
    /// Whether it is this method on a key that begins like this.
    pub fn is(&self, method: &str, key: &str) -> bool {
        self.method == method && self.key.starts_with(key)
    }

    /// Whether it lists objects.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.query.contains("list-type=2")
    }

    /// The number of the part that it sends.
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

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Action {
    /// Let it through.
    Pass,
    /// Answer with this status, S3 code and message.
    Refuse(u16, &'static str, &'static str),
    /// Answer with this status and a page of HTML.
    Page(u16),
    /// Refuse before the body has come, and break the connection.
    Slam(u16, &'static str, &'static str),
    /// Send a body that ends after so many bytes.
    Cut(usize),
    /// Let it through, and answer by a clock that is so many seconds ahead.
    Ahead(i64),
    /// Let it through when the gate is opened.
    Hold(Gate),
    /// Never answer.
    Hang,
    /// Answer as if it had been done, and keep nothing of the object.
    Swallow,
    /// Answer as if it had been done, and keep so many bytes of the object.
    Keep(u64),
    /// Answer as if it had been done, and keep the object under another key.
    Misplace,
    /// Answer with a body that has one wrong byte.
    Flip,
    /// Answer a listing without the objects whose keys contain this.
    Overlook(&'static str),
}

/// Holds requests back until a test opens it.
#[derive(Debug, Clone)]
pub struct Gate(Arc<tokio::sync::watch::Sender<bool>>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Gate(Arc::new(tokio::sync::watch::Sender::new(false)))
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

type Hook = Box<dyn Fn(&Seen) -> Action + Send + Sync>;

/// A running server; it ends with the process or when it is dropped.
pub struct Server {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    root: PathBuf,
    seen: Mutex<Vec<Seen>>,
    came: Condvar,
    hook: Mutex<Option<Hook>>,
    parts: Mutex<Parts>,
}

/// By upload id and number: ETag and size of each part.
type Parts = HashMap<String, BTreeMap<u32, (String, u64)>>;

impl Server {
    /// Serves the folder; each folder in it is a bucket.
    pub async fn start(root: &Path, port: u16, access_key: &str, secret_key: &str) -> Self {
        let files = s3s_fs::FileSystem::new(root).expect("the folder exists");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(State { root: root.to_path_buf(), ..State::default() });
        let task = tokio::spawn(accept(listener, service, state.clone()));
        Server { url, state, task }
    }

    /// The requests so far; forgets them.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Blocks until the requests since the last [`Server::take_seen`] are as wanted.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&[Seen]) -> bool) {
        let seen = self.state.seen.lock().unwrap();
        let (seen, waited) = self.state.came.wait_timeout_while(seen, PATIENCE, |seen| !wanted(seen)).unwrap();
        let requests: Vec<String> = seen.iter().map(|s| format!("{} {}?{}", s.method, s.key, s.query)).collect();
        drop(seen);
        assert!(!waited.timed_out(), "no {what} came, only {requests:#?}");
    }

    /// Cleans up unfinished uploads, as a rule of the bucket does: parts and all.
    pub fn clean_up_uploads(&self) {
        self.state.parts.lock().unwrap().clear();
        for entry in std::fs::read_dir(&self.state.root).expect("the folder exists") {
            let path = entry.expect("readable").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(".upload") {
                std::fs::remove_file(&path).expect("it is there");
            }
        }
    }

    /// Says of a part of every unfinished upload that it has another ETag.
    pub fn change_part(&self, number: u32) {
        for parts in self.state.parts.lock().unwrap().values_mut() {
            parts.entry(number).and_modify(|(etag, _)| *etag = format!("\"{}\"", "0".repeat(32)));
        }
    }

    /// Misbehaves as told from now on.
    pub fn on_request(&self, hook: impl Fn(&Seen) -> Action + Send + Sync + 'static) {
        *self.state.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Holds the requests that this picks, until the gate opens.
    pub fn hold(&self, picks: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Gate {
        let gate = Gate::new();
        let held = gate.clone();
        self.on_request(move |request| if picks(request) { Action::Hold(held.clone()) } else { Action::Pass });
        gate
    }

    /// Behaves again.
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
    let seen = Seen {
        method: request.method().to_string(),
        key,
        query: request.uri().query().unwrap_or_default().to_string(),
        agent: header("user-agent").unwrap_or_default(),
        range: header("range"),
        token: header("x-amz-security-token"),
        conditional: request.method() == "PUT" && (header("if-match").or_else(|| header("if-none-match"))).is_some(),
    };
    let size = header("content-length").and_then(|text| text.parse().ok()).unwrap_or_default();
    let action = state.hook.lock().unwrap().as_ref().map_or(Action::Pass, |hook| hook(&seen));
    state.seen.lock().unwrap().push(seen.clone());
    state.came.notify_all();
    let (mut cut, mut ahead) = (None, None);
    match action.clone() {
        Action::Refuse(..) | Action::Page(_) => {
            let mut body = request.into_body();
            while http_body_util::BodyExt::frame(&mut body).await.is_some_and(|frame| frame.is_ok()) {}
            return Ok(match action {
                Action::Refuse(status, code, message) => refusal(status, code, message),
                Action::Page(status) => page(status),
                _ => unreachable!("the two above"),
            });
        }
        Action::Slam(status, code, message) => return Ok(refusal(status, code, message)),
        Action::Hang => std::future::pending().await,
        Action::Hold(gate) => gate.pass().await,
        Action::Cut(length) => cut = Some(length),
        Action::Ahead(seconds) => ahead = Some(seconds),
        Action::Pass | Action::Swallow | Action::Keep(_) | Action::Misplace | Action::Flip | Action::Overlook(_) => {}
    }
    let upload = seen.parameter("uploadId").map(String::from);
    if let (Some(upload), "GET") = (&upload, seen.method.as_str())
        && let Some(parts) = state.parts.lock().unwrap().get(upload)
    {
        return Ok(listed_parts(parts));
    }
    let mut response = match service.call(request.map(Body::from)).await {
        Ok(response) => response,
        Err(_) => return Ok(refusal(500, "InternalError", "the embedded server failed")),
    };
    if let Some(seconds) = ahead {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        let date =
            jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).expect("a year of ours");
        response.headers_mut().insert("date", date.parse().expect("ASCII"));
    }
    if let (Some(upload), Some(number), true) = (upload, seen.part(), response.status().is_success()) {
        let etag = response.headers().get("etag").map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let part = (etag.unwrap_or_default(), size);
        state.parts.lock().unwrap().entry(upload).or_default().insert(number, part);
    }
    let object = state.root.join(&bucket).join(&seen.key);
    if response.status().is_success() && object.is_file() {
        match action {
            Action::Swallow => std::fs::remove_file(object).expect("it is there"),
            Action::Keep(length) => {
                let file = std::fs::File::options().write(true).open(object).expect("it is there");
                file.set_len(length).expect("it can be cut");
            }
            Action::Misplace => std::fs::rename(&object, object.with_extension("elsewhere")).expect("it is there"),
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
    if let Action::Overlook(words) = action
        && seen.is_list()
    {
        return Ok(without(response, words).await);
    }
    if seen.is_list() && response.status().is_success() {
        return Ok(with_etags(response, &state.root.join(bucket)).await);
    }
    Ok(match cut {
        None => response,
        Some(length) => cut_short(response, length).await,
    })
}

/// Undoes percent-encoding.
pub fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// s3s-fs lists parts without their ETags, which no real store does.
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

/// s3s-fs lists objects without their ETags, which no real store does. Large objects are left out: theirs are no MD5.
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

/// A listing that lags behind.
async fn without(response: Response<Body>, words: &str) -> Response<Body> {
    use http_body_util::BodyExt;
    let (mut head, body) = response.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let xml = String::from_utf8_lossy(&bytes).into_owned();
    // Its count would say how many are left out.
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

/// The same headers, with their content length, but only the first bytes of the body.
async fn cut_short(response: Response<Body>, length: usize) -> Response<Body> {
    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    let (head, body) = response.into_parts();
    let bytes = BodyExt::collect(body).await.map(|body| body.to_bytes()).unwrap_or_default();
    let first = bytes.slice(..length.min(bytes.len()));
    let frame = stream::once(std::future::ready(Ok(hyper::body::Frame::data(first))));
    // The pause lets the first bytes leave before the connection breaks.
    let broken = stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut"))
    });
    let stream = StreamBody::new(Box::pin(frame.chain(broken)));
    Response::from_parts(head, Body::http_body_unsync(stream))
}
