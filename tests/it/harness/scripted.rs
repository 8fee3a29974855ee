//! A store in memory that answers as a test tells it: raw HTTP on a loopback socket, nothing verified. Whatever the
//! test has no answer for is answered as S3 would.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::machine::Machine;
use super::s3::decoded;
use super::store::BUCKET;

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Asked {
    /// GET, PUT, …
    pub method: String,
    /// The path, decoded.
    pub path: String,
    /// The key, decoded; empty for requests on the bucket.
    pub key: String,
    /// The query as it stands in the URL.
    pub query: String,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Asked {
    /// A header, empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A parameter of the query, decoded.
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

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Sent as it is instead of all of the above, and then the connection is closed.
    pub raw: Option<Vec<u8>>,
}

impl Reply {
    /// A status with a body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, body: body.into(), ..Reply::default() }
    }

    /// S3's form of a refusal.
    pub fn refusal(status: u16, code: &str, message: &str) -> Reply {
        Reply::new(
            status,
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"),
        )
        .header("content-type", "application/xml")
    }

    /// The same with a header.
    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// The objects of a bucket.
pub type Objects = BTreeMap<String, Vec<u8>>;

type Script = Box<dyn Fn(&Asked, &Objects) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    objects: Mutex<Objects>,
    parts: Mutex<BTreeMap<(String, u32), Vec<u8>>>,
    seen: Mutex<Vec<Asked>>,
    script: Mutex<Option<Script>>,
}

/// A running store; its threads end with the process.
pub struct Scripted {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    state: Arc<State>,
}

impl Scripted {
    /// A store that behaves.
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

    /// Answers with what the script gives, where it gives something.
    pub fn script(&self, script: impl Fn(&Asked, &Objects) -> Option<Reply> + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Some(Box::new(script));
    }

    /// The requests so far; forgets them.
    pub fn take_seen(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Puts an object in.
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        self.state.objects.lock().unwrap().insert(key.into(), bytes.into());
    }

    /// All objects.
    pub fn objects(&self) -> Objects {
        self.state.objects.lock().unwrap().clone()
    }

    /// A machine that is set up for this store.
    pub fn machine(&self) -> Machine {
        let mut machine = Machine::unconfigured();
        machine.connect(&self.url, BUCKET, "us-east-1");
        machine
    }
}

fn serve(socket: TcpStream, state: &State) {
    let Ok(mut out) = socket.try_clone() else { return };
    let mut input = BufReader::new(socket);
    while let Some(asked) = read_request(&mut input, &mut out) {
        state.seen.lock().unwrap().push(asked.clone());
        let scripted = {
            let objects = state.objects.lock().unwrap();
            state.script.lock().unwrap().as_ref().and_then(|script| script(&asked, &objects))
        };
        let reply = scripted.unwrap_or_else(|| behave(&asked, state));
        if let Some(raw) = &reply.raw {
            let _ = out.write_all(raw);
            return;
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let given = |name: &str| reply.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        if !given("content-length") && !given("transfer-encoding") {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        head += "\r\n";
        let body: &[u8] = if asked.method == "HEAD" { &[] } else { &reply.body };
        if out.write_all(head.as_bytes()).and_then(|()| out.write_all(body)).is_err() {
            return;
        }
    }
}

fn read_request(input: &mut BufReader<TcpStream>, out: &mut TcpStream) -> Option<Asked> {
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
    // A proxy is asked for a whole URL.
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/".to_string(), |at| rest[at..].to_string()),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = decoded(path);
    let is_virtual = headers.get("host").is_some_and(|host| host.starts_with(&format!("{BUCKET}.")));
    let bare = path.trim_start_matches('/');
    let key = if is_virtual { bare } else { bare.split_once('/').map_or("", |(_, key)| key) };
    Some(Asked { method, key: key.to_string(), query: query.to_string(), headers, body, path })
}

/// What a plain S3 store answers.
fn behave(asked: &Asked, state: &State) -> Reply {
    let mut objects = state.objects.lock().unwrap();
    let upload = asked.parameter("uploadId");
    match (asked.method.as_str(), &upload) {
        _ if asked.is_list() => list(asked, &objects),
        ("HEAD", _) if asked.key.is_empty() => Reply::new(200, ""),
        ("POST", None) => {
            Reply::new(200, "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
        }
        ("PUT", Some(upload)) => {
            let number = asked.parameter("partNumber").unwrap().parse().unwrap();
            state.parts.lock().unwrap().insert((upload.clone(), number), asked.body.clone());
            Reply::new(200, "").header("etag", &format!("\"{}\"", md5(&asked.body)))
        }
        ("POST", Some(upload)) => {
            let parts = state.parts.lock().unwrap();
            let of_upload = parts.iter().filter(|((id, _), _)| id == upload);
            let whole: Vec<u8> = of_upload.flat_map(|(_, bytes)| bytes.clone()).collect();
            objects.insert(asked.key.clone(), whole);
            Reply::new(200, "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
        }
        ("PUT", None) => {
            objects.insert(asked.key.clone(), asked.body.clone());
            Reply::new(200, "").header("etag", &format!("\"{}\"", md5(&asked.body)))
        }
        ("DELETE", _) => {
            objects.remove(&asked.key);
            Reply::new(204, "")
        }
        ("GET", Some(_)) => Reply::new(200, "<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>"),
        _ => match objects.get(&asked.key) {
            None => Reply::refusal(404, "NoSuchKey", "no such key"),
            Some(bytes) => read(asked, bytes),
        },
    }
}

/// An object, or the range of it that is asked for.
pub fn read(asked: &Asked, bytes: &[u8]) -> Reply {
    let etag = format!("\"{}\"", md5(bytes));
    let range = asked.header("range").strip_prefix("bytes=").and_then(|text| text.split_once('-'));
    let reply = match range.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))) {
        Some((from, to)) => {
            let to = to.min(bytes.len().saturating_sub(1));
            Reply::new(206, &bytes[from..=to]).header("content-range", &format!("bytes {from}-{to}/{}", bytes.len()))
        }
        None => Reply::new(200, bytes),
    };
    reply.header("etag", &etag)
}

/// A listing in one page.
pub fn list(asked: &Asked, objects: &Objects) -> Reply {
    let prefix = asked.parameter("prefix").unwrap_or_default();
    let entries: Vec<String> = objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix))
        .map(|(key, bytes)| entry(&escaped(key), bytes))
        .collect();
    Reply::new(200, listing(&entries, "<IsTruncated>false</IsTruncated>")).header("content-type", "application/xml")
}

/// A listed object.
pub fn entry(key: &str, bytes: &[u8]) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{}&quot;</ETag>\
         <Size>{}</Size></Contents>",
        md5(bytes),
        bytes.len()
    )
}

/// A page of a listing.
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
