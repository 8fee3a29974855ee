//! A small imitation of the Hugging Face Hub on loopback: revisions, trees, and files with ranges. It can require a token,
//! serve bytes other than those it has listed, abort responses, speak TLS, and run a script.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use crate::harness::cache::{Content, Revision};
use crate::harness::{git_sha1, tls_file};

/// The token it accepts if one is required.
pub const TOKEN: &str = "hf_right";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A running server.
pub struct Hub {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    state: Arc<State>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct State {
    revisions: Vec<Revision>,
    inner: Mutex<Inner>,
}

/// A request as received.
#[derive(Debug, Clone)]
pub struct HubRequest {
    /// The path and query.
    pub target: String,
    /// The `authorization` header.
    pub authorization: Option<String>,
}

/// A scripted answer.
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Header lines.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Returns a JSON response.
    pub fn json(value: &Value) -> Reply {
        Reply { status: 200, headers: Vec::new(), body: value.to_string().into_bytes() }
    }

    /// Returns an empty response with this status.
    pub fn status(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

type Script = Box<dyn FnMut(&HubRequest) -> Option<Reply> + Send>;

#[derive(Default)]
struct Inner {
    requests: Vec<HubRequest>,
    script: Option<Script>,
    count: usize,
    downloads: usize,
    sent: u64,
    token: bool,
    tampered: HashMap<String, Vec<u8>>,
    /// Truncates bodies of this file that start at or after the offset to this many bytes.
    cut: Option<(String, u64, usize)>,
}

impl Hub {
    /// Starts a server with these revisions.
    pub fn start(revisions: &[Revision]) -> Hub {
        Hub::serve(revisions, None)
    }

    /// Starts a TLS server with a certificate from `tests/it/harness/tls`.
    pub fn start_tls(revisions: &[Revision], certificate: &str) -> Hub {
        use tokio_rustls::rustls::ServerConfig;
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let path = tls_file(certificate);
        let chain = CertificateDer::pem_file_iter(&path).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&path).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Hub::serve(revisions, Some(tokio_rustls::TlsAcceptor::from(Arc::new(config))))
    }

    fn serve(revisions: &[Revision], tls: Option<tokio_rustls::TlsAcceptor>) -> Hub {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { revisions: revisions.to_vec(), inner: Mutex::default() });
        let shared = state.clone();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (state, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let state = state.clone();
                        async move { Ok::<_, Infallible>(state.answer(&request)) }
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    match tls {
                        None => drop(server.serve_connection(TokioIo::new(socket), service).await),
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                drop(server.serve_connection(TokioIo::new(socket), service).await);
                            }
                        }
                    }
                });
            }
        });
        Hub { url, state, _runtime: runtime }
    }

    /// Passes every request to the script first.
    pub fn script(&self, script: impl FnMut(&HubRequest) -> Option<Reply> + Send + 'static) {
        self.state.inner.lock().unwrap().script = Some(Box::new(script));
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<HubRequest> {
        self.state.inner.lock().unwrap().requests.clone()
    }

    /// Returns the number of requests so far.
    pub fn request_count(&self) -> usize {
        self.state.inner.lock().unwrap().count
    }

    /// Returns the number of file GETs so far, ranges included.
    pub fn download_count(&self) -> usize {
        self.state.inner.lock().unwrap().downloads
    }

    /// Returns the number of file bytes sent since the last call.
    pub fn take_bytes_sent(&self) -> u64 {
        std::mem::take(&mut self.state.inner.lock().unwrap().sent)
    }

    /// Serves these bytes in place of a file from now on.
    pub fn tamper_with(&self, path: &str, bytes: Vec<u8>) {
        self.state.inner.lock().unwrap().tampered.insert(path.to_string(), bytes);
    }

    /// Truncates bodies of a file that start at `from` or later to `after` bytes.
    pub fn cut(&self, path: &str, from: u64, after: usize) {
        self.state.inner.lock().unwrap().cut = Some((path.to_string(), from, after));
    }

    /// Rejects every request without [`TOKEN`].
    pub fn require_token(&self) {
        self.state.inner.lock().unwrap().token = true;
    }
}

impl State {
    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let mut inner = self.inner.lock().unwrap();
        inner.count += 1;
        let received = HubRequest {
            target: request.uri().path_and_query().unwrap().to_string(),
            authorization: request.headers().get("authorization").map(|text| text.to_str().unwrap().to_string()),
        };
        inner.requests.push(received.clone());
        if let Some(reply) = inner.script.as_mut().and_then(|script| script(&received)) {
            let mut answer = Response::builder().status(reply.status);
            for (name, value) in reply.headers {
                answer = answer.header(name, value);
            }
            return answer.body(full(reply.body.into())).unwrap();
        }
        let authorization = request.headers().get("authorization").and_then(|text| text.to_str().ok());
        match authorization {
            None if inner.token => return refusal(401, "GatedRepo", "Access is restricted, log in"),
            Some(value) if value != format!("Bearer {TOKEN}") => {
                return refusal(401, "", "Invalid credentials in Authorization header");
            }
            _ => {}
        }
        let parts: Vec<String> = request.uri().path().trim_matches('/').split('/').map(percent_decoded).collect();
        let mut parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let is_api = parts[0] == "api";
        if is_api {
            parts.remove(0);
        }
        let kind = match parts[0] {
            word @ ("models" | "datasets" | "spaces" | "kernels") => {
                parts.remove(0);
                word.trim_end_matches('s')
            }
            _ => "model",
        };
        if parts.len() < 4 {
            return refusal(404, "", "No such page");
        }
        let id = format!("{}/{}", parts[0], parts[1]);
        let repo: Vec<&Revision> = self.revisions.iter().filter(|r| (r.kind.as_str(), &r.id) == (kind, &id)).collect();
        if repo.is_empty() {
            return refusal(404, "RepoNotFound", "Repository not found");
        }
        let named = |r: &&&Revision| r.commit.starts_with(parts[3]) || r.refs.iter().any(|name| name == parts[3]);
        let Some(revision) = repo.iter().find(named) else {
            return refusal(404, "RevisionNotFound", "Invalid rev id");
        };
        match (is_api, parts[2]) {
            (true, "revision") => answer_json(&json!({"id": id, "sha": revision.commit})),
            (true, _) => answer_json(&revision.files.iter().map(entry).collect()),
            (false, _) => inner.file(request, revision, &parts[4..].join("/")),
        }
    }
}

impl Inner {
    fn file(&mut self, request: &Request<Incoming>, revision: &Revision, path: &str) -> Response<Body> {
        let Some(file) = revision.files.iter().find(|file| file.path == path) else {
            return refusal(404, "EntryNotFound", "Entry not found");
        };
        let bytes = self.tampered.get(path).unwrap_or(&file.bytes).clone();
        let range = request.headers().get("range").map(|text| text.to_str().unwrap().to_string());
        let range = range.map(|text| {
            let (from, to) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            (from.parse::<usize>().unwrap(), (to.parse::<usize>().unwrap() + 1).min(bytes.len()))
        });
        let (from, to) = range.unwrap_or((0, bytes.len()));
        let part = Bytes::from(bytes).slice(from.min(to)..to);
        let status = if range.is_some() { 206 } else { 200 };
        let head = Response::builder()
            .status(status)
            .header("etag", format!("\"{}\"", file.etag()))
            .header("x-repo-commit", &revision.commit)
            .header("content-length", part.len());
        if request.method() == Method::HEAD {
            return head.body(full(Bytes::new())).unwrap();
        }
        self.downloads += 1;
        let cut = self.cut.as_ref().filter(|(name, at, _)| name == path && from as u64 >= *at);
        if let Some((_, _, after)) = cut {
            let frames = [Ok(Frame::data(part.slice(..*after))), Err(std::io::Error::other("cut"))];
            return head.body(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()).unwrap();
        }
        self.sent += part.len() as u64;
        head.body(full(part)).unwrap()
    }
}

/// Returns a file's entry in a listing.
pub fn entry(file: &Content) -> Value {
    let mut entry = json!({"type": "file", "path": file.path, "size": file.bytes.len(), "oid": git_sha1(&file.bytes)});
    if file.lfs {
        entry["oid"] = git_sha1(file.etag().as_bytes()).into();
        entry["lfs"] = json!({"oid": file.etag(), "size": file.bytes.len(), "pointerSize": 130});
    }
    entry
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn answer_json(value: &Value) -> Response<Body> {
    Response::new(full(value.to_string().into()))
}

fn refusal(status: u16, code: &str, message: &str) -> Response<Body> {
    let answer = Response::builder().status(status).header("x-error-code", code).header("x-error-message", message);
    answer.body(full(Bytes::new())).unwrap()
}

fn percent_decoded(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| u8::from_str_radix(&segment[at + 1..at + 3], 16).unwrap());
        out.push(hex.unwrap_or(bytes[at]));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap()
}
