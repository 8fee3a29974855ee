//! An in-memory store whose responses a test can script: raw HTTP on a loopback socket, without signature checks.
//! Requests that the script does not handle get the response that S3 would give.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::machine::Machine;
use super::s3::decoded;
use super::store::BUCKET;

/// A request as received.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET, PUT, …
    pub method: String,
    /// The decoded path.
    pub path: String,
    /// The decoded key; empty for requests to the bucket.
    pub key: String,
    /// The raw query of the URL.
    pub query: String,
    /// Headers, with lower-case names.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns a header, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns a decoded query parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let found = self.query.split('&').find_map(|pair| match pair.split_once('=') {
            Some((key, value)) if key == name => Some(value),
            None if pair == name => Some(""),
            _ => None,
        });
        found.map(decoded)
    }

    /// Whether it lists objects.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.parameter("list-type").is_some()
    }

    /// Whether it is signed.
    pub fn is_signed(&self) -> bool {
        self.headers.contains_key("authorization")
    }
}

/// A response.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Number of additional times that the body is sent.
    pub repeats: usize,
    /// Sent verbatim in place of all of the above; the connection is closed afterwards.
    pub raw: Option<Vec<u8>>,
}

impl Reply {
    /// Returns a response with a status and a body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, body: body.into(), ..Reply::default() }
    }

    /// Returns an error response as S3 sends it.
    pub fn refusal(status: u16, code: &str, message: &str) -> Reply {
        Reply::new(
            status,
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"),
        )
        .header("content-type", "application/xml")
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends the body this many times in total.
    pub fn times(self, count: usize) -> Reply {
        Reply { repeats: count - 1, ..self }
    }
}

/// The objects of a bucket by key.
pub type Objects = BTreeMap<String, Vec<u8>>;

type Script = Box<dyn Fn(&Request, &Objects) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    objects: Mutex<Objects>,
    parts: Mutex<BTreeMap<(String, u32), Vec<u8>>>,
    seen: Mutex<Vec<Request>>,
    sent: AtomicU64,
    script: Mutex<Option<Script>>,
}

/// A running store. Its threads end with the process.
pub struct Scripted {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    state: Arc<State>,
}

impl Scripted {
    /// Starts a store without a script.
    pub fn new() -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<State>::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                std::thread::spawn(move || serve(socket, &state));
            }
        });
        Scripted { url, state }
    }

    /// Responds with what the script returns, unless that is `None`.
    pub fn script(&self, script: impl Fn(&Request, &Objects) -> Option<Reply> + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Some(Box::new(script));
    }

    /// Returns the requests since the last call.
    pub fn take_seen(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Returns the number of bytes of bodies that were sent since the last call.
    pub fn take_sent(&self) -> u64 {
        self.state.sent.swap(0, Ordering::SeqCst)
    }

    /// Stores an object.
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        self.state.objects.lock().unwrap().insert(key.into(), bytes.into());
    }

    /// Returns all objects.
    pub fn objects(&self) -> Objects {
        self.state.objects.lock().unwrap().clone()
    }

    /// Returns a machine that is configured for this store.
    pub fn machine(&self) -> Machine {
        let mut machine = Machine::unconfigured();
        machine.connect(&self.url, BUCKET, "us-east-1");
        machine
    }
}

fn serve(socket: TcpStream, state: &State) {
    let Ok(mut out) = socket.try_clone() else { return };
    let mut input = BufReader::new(socket);
    while let Some(request) = read_request(&mut input, &mut out) {
        state.seen.lock().unwrap().push(request.clone());
        let scripted = {
            let objects = state.objects.lock().unwrap();
            state.script.lock().unwrap().as_ref().and_then(|script| script(&request, &objects))
        };
        let reply = scripted.unwrap_or_else(|| respond(&request, state));
        if let Some(raw) = &reply.raw {
            let _ = out.write_all(raw);
            return;
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let has_header = |name: &str| reply.headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        if !has_header("content-length") && !has_header("transfer-encoding") {
            head += &format!("content-length: {}\r\n", reply.body.len() * (reply.repeats + 1));
        }
        head += "\r\n";
        if out.write_all(head.as_bytes()).is_err() {
            return;
        }
        let copies = if request.method == "HEAD" { 0 } else { reply.repeats + 1 };
        for _ in 0..copies {
            if out.write_all(&reply.body).is_err() {
                return;
            }
            state.sent.fetch_add(reply.body.len() as u64, Ordering::SeqCst);
        }
    }
}

fn read_request(input: &mut BufReader<TcpStream>, out: &mut TcpStream) -> Option<Request> {
    let mut line = String::new();
    input.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|length| *length > 0)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    if headers.get("expect").is_some_and(|text| text.eq_ignore_ascii_case("100-continue")) {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    // Requests to a proxy contain the whole URL.
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/".to_string(), |at| rest[at..].to_string()),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = decoded(path);
    let is_virtual = headers.get("host").is_some_and(|host| host.starts_with(&format!("{BUCKET}.")));
    let bare = path.trim_start_matches('/');
    let key = if is_virtual { bare } else { bare.split_once('/').map_or("", |(_, key)| key) };
    Some(Request { method, key: key.to_string(), query: query.to_string(), headers, body, path })
}

/// Responds as a plain S3 store does.
fn respond(request: &Request, state: &State) -> Reply {
    let mut objects = state.objects.lock().unwrap();
    let upload = request.parameter("uploadId");
    match (request.method.as_str(), &upload) {
        _ if request.is_list() => list(request, &objects),
        ("HEAD", _) if request.key.is_empty() => Reply::new(200, ""),
        ("POST", None) => {
            Reply::new(200, "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
        }
        ("PUT", Some(upload)) => {
            let number = request.parameter("partNumber").unwrap().parse().unwrap();
            state.parts.lock().unwrap().insert((upload.clone(), number), request.body.clone());
            Reply::new(200, "").header("etag", &format!("\"{}\"", md5(&request.body)))
        }
        ("POST", Some(upload)) => {
            let parts = state.parts.lock().unwrap();
            let of_upload = parts.iter().filter(|((id, _), _)| id == upload);
            let whole: Vec<u8> = of_upload.flat_map(|(_, bytes)| bytes.clone()).collect();
            objects.insert(request.key.clone(), whole);
            Reply::new(200, "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
        }
        ("PUT", None) => {
            objects.insert(request.key.clone(), request.body.clone());
            Reply::new(200, "").header("etag", &format!("\"{}\"", md5(&request.body)))
        }
        ("DELETE", _) => {
            objects.remove(&request.key);
            Reply::new(204, "")
        }
        ("GET", Some(_)) => Reply::new(200, "<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>"),
        _ => match objects.get(&request.key) {
            None => Reply::refusal(404, "NoSuchKey", "no such key"),
            Some(bytes) => read(request, bytes),
        },
    }
}

/// Returns an object, or the requested range of it.
pub fn read(request: &Request, bytes: &[u8]) -> Reply {
    let etag = format!("\"{}\"", md5(bytes));
    let range = request.header("range").strip_prefix("bytes=").and_then(|text| text.split_once('-'));
    let reply = match range.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))) {
        Some((from, to)) => {
            let to = to.min(bytes.len().saturating_sub(1));
            Reply::new(206, &bytes[from..=to]).header("content-range", &format!("bytes {from}-{to}/{}", bytes.len()))
        }
        None => Reply::new(200, bytes),
    };
    reply.header("etag", &etag)
}

/// Returns all matching objects as a single-page listing.
pub fn list(request: &Request, objects: &Objects) -> Reply {
    let prefix = request.parameter("prefix").unwrap_or_default();
    let entries: Vec<String> = objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix))
        .map(|(key, bytes)| entry(&escaped(key), bytes))
        .collect();
    Reply::new(200, listing(&entries, "<IsTruncated>false</IsTruncated>")).header("content-type", "application/xml")
}

/// Returns the entry of an object in a listing.
pub fn entry(key: &str, bytes: &[u8]) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{}&quot;</ETag>\
         <Size>{}</Size></Contents>",
        md5(bytes),
        bytes.len()
    )
}

/// Returns a page of a listing.
pub fn listing(entries: &[String], rest: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><KeyCount>{}</KeyCount>{rest}{}</ListBucketResult>",
        entries.len(),
        entries.concat()
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn md5(bytes: &[u8]) -> String {
    use md5::Digest;
    super::hex(&md5::Md5::digest(bytes))
}
