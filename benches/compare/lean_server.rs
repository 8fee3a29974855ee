//! A lean S3 server for the comparison: it serves objects from memory and discards the bodies of large uploads, so that
//! the client is measured and not the server. It checks no signatures. A delay before each answer and a cap on each
//! connection make it a far store.
//!
//! ```text
//! cargo run --release --example lean-server -- --bucket bench --data DIR --delay-ms 30 --cap-mb 40
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hf_cache_sync::internals::hash::md5_hex;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED, RANGE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;

/// Uploads up to this size are kept, so that manifests and refs can be read back.
const KEPT: usize = 4 << 20;
/// Objects of `--data` up to this size have their MD5 as ETag, as if written by a single PUT. All others have ETags like
/// those of multipart uploads, which no client takes for an MD5: hashing uploads would cost the server time.
const HASHED: usize = 8 << 20;
/// Bytes handed to a connection at a time.
const CHUNK: usize = 256 << 10;

#[derive(Parser, Clone)]
struct Options {
    /// The only bucket
    #[arg(long)]
    bucket: String,
    /// Folder whose files are the objects at the start
    #[arg(long)]
    data: Option<PathBuf>,
    /// Time before the first byte of every answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Megabytes (10^6) per second and connection, in each direction; 0 is no cap
    #[arg(long, default_value_t = 0)]
    cap_mb: u64,
}

#[derive(Clone)]
struct Object {
    size: u64,
    etag: String,
    bytes: Option<Bytes>,
}

struct Store {
    options: Options,
    objects: Mutex<BTreeMap<String, Object>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u32, u64>>>,
    requests: AtomicU64,
    started: AtomicU64,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let mut objects = BTreeMap::new();
    if let Some(dir) = &options.data {
        load(dir, dir, &mut objects)?;
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "http://{}", listener.local_addr()?)?;
    stdout.flush()?;
    let store = Arc::new(Store {
        options,
        objects: Mutex::new(objects),
        uploads: Mutex::default(),
        requests: AtomicU64::new(0),
        started: AtomicU64::new(0),
    });
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let store = store.clone();
        tokio::spawn(async move {
            let pace = Arc::new(Pace::new(store.options.cap_mb * 1_000_000));
            let handler = service_fn(move |request| answer(store.clone(), pace.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), handler).await;
        });
    }
}

fn load(root: &Path, dir: &Path, objects: &mut BTreeMap<String, Object>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            load(root, &path, objects)?;
            continue;
        }
        let bytes = Bytes::from(std::fs::read(&path)?);
        let key = path.strip_prefix(root).expect("below it").to_string_lossy().into_owned();
        let size = bytes.len() as u64;
        let etag = if bytes.len() <= HASHED { md5_hex(&bytes) } else { unhashed(size) };
        objects.insert(key, Object { size, etag, bytes: Some(bytes) });
    }
    Ok(())
}

fn unhashed(size: u64) -> String {
    format!("{size:032x}-1")
}

/// Limits a connection to a rate.
struct Pace {
    rate: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Pace { rate, free_at: Mutex::new(Instant::now()) }
    }

    /// Takes bytes, and returns when they may be sent.
    fn take(&self, bytes: usize) -> Option<Instant> {
        if self.rate == 0 {
            return None;
        }
        let mut free_at = self.free_at.lock().unwrap();
        let now = Instant::now();
        *free_at = (*free_at).max(now) + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        Some(*free_at)
    }
}

/// A body from memory, at the connection's pace.
struct Paced {
    bytes: Bytes,
    pace: Arc<Pace>,
    waiting: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(waiting) = &mut self.waiting {
            if waiting.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
        }
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let length = CHUNK.min(self.bytes.len());
        let chunk = self.bytes.split_to(length);
        self.waiting = self.pace.take(length).map(|until| Box::pin(tokio::time::sleep_until(until.into())));
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

async fn answer(store: Arc<Store>, pace: Arc<Pace>, request: Request<Incoming>) -> Result<Response<Paced>, Infallible> {
    let body = |bytes: Bytes| Paced { bytes, pace: pace.clone(), waiting: None };
    if request.uri().path() == "/_requests" {
        let count = store.requests.swap(0, Ordering::Relaxed);
        return Ok(Response::new(body(count.to_string().into())));
    }
    store.requests.fetch_add(1, Ordering::Relaxed);
    let (head, incoming) = request.into_parts();
    let path = percent_decoded(head.uri.path());
    let key = path.trim_start_matches('/').strip_prefix(store.options.bucket.as_str()).unwrap_or_default();
    let key = key.trim_start_matches('/').to_string();
    let query: BTreeMap<String, String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_string(), percent_decoded(value))
        })
        .collect();
    let received = receive(incoming, &pace).await;
    tokio::time::sleep(Duration::from_millis(store.options.delay_ms)).await;
    let response = match (&head.method, key.is_empty()) {
        (&Method::GET, true) => Response::new(body(store.list(&query).into())),
        (&Method::GET | &Method::HEAD, false) => {
            let range = head.headers.get(RANGE).and_then(|value| value.to_str().ok());
            store.read(&key, range, head.method == Method::HEAD, body)
        }
        (&Method::PUT, false) => store.put(&key, &query, received, body),
        (&Method::POST, false) => store.multipart(&key, &query, body),
        (&Method::DELETE, false) => {
            store.objects.lock().unwrap().remove(&key);
            Response::builder().status(204).body(body(Bytes::new())).expect("valid")
        }
        _ => Response::new(body(Bytes::new())),
    };
    Ok(response)
}

/// Reads a request's body at the connection's pace, and returns its size and, up to [`KEPT`], its bytes.
async fn receive(mut incoming: Incoming, pace: &Pace) -> (u64, Vec<u8>) {
    let keep = incoming.size_hint().upper().is_some_and(|size| size <= KEPT as u64);
    let (mut size, mut kept) = (0, Vec::new());
    while let Some(Ok(frame)) = incoming.frame().await {
        let Ok(chunk) = frame.into_data() else { continue };
        if let Some(until) = pace.take(chunk.len()) {
            tokio::time::sleep_until(until.into()).await;
        }
        size += chunk.len() as u64;
        if keep {
            kept.extend_from_slice(&chunk);
        }
    }
    (size, kept)
}

impl Store {
    fn list(&self, query: &BTreeMap<String, String>) -> String {
        let empty = String::new();
        let prefix = query.get("prefix").unwrap_or(&empty);
        // `marker` belongs to version 1 of the listing, which rclone uses.
        let after = ["continuation-token", "start-after", "marker"].iter().find_map(|name| query.get(*name));
        let after = after.unwrap_or(&empty);
        let objects = self.objects.lock().unwrap();
        let all = objects.range(after.clone()..).filter(|(key, _)| key.starts_with(prefix.as_str()) && *key > after);
        let page: Vec<_> = all.take(1001).collect();
        let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
        for (key, object) in page.iter().take(1000) {
            xml.push_str(&format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                 <ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>",
                object.etag, object.size
            ));
        }
        let more = page.len() > 1000;
        xml.push_str(&format!("<KeyCount>{}</KeyCount><IsTruncated>{more}</IsTruncated>", page.len().min(1000)));
        if more {
            let last = page[999].0;
            xml.push_str(&format!(
                "<NextContinuationToken>{last}</NextContinuationToken><NextMarker>{last}</NextMarker>"
            ));
        }
        xml + "</ListBucketResult>"
    }

    fn read(&self, key: &str, range: Option<&str>, head: bool, body: impl Fn(Bytes) -> Paced) -> Response<Paced> {
        let Some(object) = self.objects.lock().unwrap().get(key).cloned() else {
            let xml = "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>";
            return Response::builder().status(404).body(body(xml.into())).expect("valid");
        };
        let (from, to) = range.and_then(|text| parse_range(text, object.size)).unwrap_or((0, object.size));
        let mut response = Response::builder()
            .status(if range.is_some() { 206 } else { 200 })
            .header(ETAG, format!("\"{}\"", object.etag))
            .header(LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT")
            .header(CONTENT_LENGTH, to - from);
        if range.is_some() {
            response = response.header(CONTENT_RANGE, format!("bytes {from}-{}/{}", to - 1, object.size));
        }
        let bytes = if head {
            Bytes::new()
        } else {
            object.bytes.map_or(Bytes::new(), |all| all.slice(from as usize..to as usize))
        };
        response.body(body(bytes)).expect("valid")
    }

    fn put(
        &self,
        key: &str,
        query: &BTreeMap<String, String>,
        (size, kept): (u64, Vec<u8>),
        body: impl Fn(Bytes) -> Paced,
    ) -> Response<Paced> {
        let etag = unhashed(size);
        match (query.get("uploadId"), query.get("partNumber").and_then(|n| n.parse().ok())) {
            (Some(upload), Some(number)) => {
                self.uploads.lock().unwrap().entry(upload.clone()).or_default().insert(number, size);
            }
            _ => {
                let bytes = (kept.len() as u64 == size).then(|| Bytes::from(kept));
                self.objects.lock().unwrap().insert(key.into(), Object { size, etag: etag.clone(), bytes });
            }
        }
        Response::builder().header(ETAG, format!("\"{etag}\"")).body(body(Bytes::new())).expect("valid")
    }

    fn multipart(&self, key: &str, query: &BTreeMap<String, String>, body: impl Fn(Bytes) -> Paced) -> Response<Paced> {
        let xml = match query.get("uploadId") {
            None => {
                let id = format!("upload-{}", self.started.fetch_add(1, Ordering::Relaxed));
                format!(
                    "<?xml version=\"1.0\"?><InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                )
            }
            Some(upload) => {
                let size = self.uploads.lock().unwrap().remove(upload).unwrap_or_default().values().sum();
                let object = Object { size, etag: unhashed(size), bytes: None };
                self.objects.lock().unwrap().insert(key.into(), object);
                format!(
                    "<?xml version=\"1.0\"?><CompleteMultipartUploadResult><Key>{key}</Key></CompleteMultipartUploadResult>"
                )
            }
        };
        Response::new(body(xml.into()))
    }
}

fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let to = to.parse::<u64>().map_or(size, |last| (last + 1).min(size));
    Some((from.parse().ok()?, to))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
