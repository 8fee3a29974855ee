//! An embedded S3 server: s3s-fs over a real socket on the loopback, with real signatures. It notes every request and
//! can be told to misbehave. Shared by tests and examples.
#![allow(dead_code)] // each user needs a part of it

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

/// The key pair that the server accepts.
pub const ACCESS_KEY: &str = "test-access-key";
/// Its secret half.
pub const SECRET_KEY: &str = "test-secret-key";

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    /// GET, PUT, …
    pub method: String,
    /// Path without the bucket, decoded as far as keys need it.
    pub key: String,
    /// The query.
    pub query: String,
    /// The user agent.
    pub agent: String,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Let it through.
    Pass,
    /// Answer with this status, S3 code and message.
    Refuse(u16, &'static str, &'static str),
    /// Send a body that ends after so many bytes.
    Cut(usize),
    /// Never answer.
    Hang,
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
    seen: Mutex<Vec<Seen>>,
    hook: Mutex<Option<Hook>>,
}

impl Server {
    /// Serves the folder; each folder in it is a bucket.
    pub async fn start(root: &Path, port: u16, access_key: &str, secret_key: &str) -> Self {
        let files = s3s_fs::FileSystem::new(root).expect("the folder exists");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(State::default());
        let task = tokio::spawn(accept(listener, service, state.clone()));
        Server { url, state, task }
    }

    /// The requests so far; forgets them.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Misbehaves as told from now on.
    pub fn on_request(&self, hook: impl Fn(&Seen) -> Action + Send + Sync + 'static) {
        *self.state.hook.lock().unwrap() = Some(Box::new(hook));
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
    let seen = Seen {
        method: request.method().to_string(),
        key: request.uri().path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_string(),
        query: request.uri().query().unwrap_or_default().to_string(),
        agent: request
            .headers()
            .get("user-agent")
            .map_or(String::new(), |v| String::from_utf8_lossy(v.as_bytes()).into()),
    };
    let action = state.hook.lock().unwrap().as_ref().map_or(Action::Pass, |hook| hook(&seen));
    state.seen.lock().unwrap().push(seen);
    let cut = match action {
        Action::Refuse(status, code, message) => return Ok(refusal(status, code, message)),
        Action::Hang => std::future::pending().await,
        Action::Cut(length) => Some(length),
        Action::Pass => None,
    };
    let response = match service.call(request.map(Body::from)).await {
        Ok(response) => response,
        Err(_) => return Ok(refusal(500, "InternalError", "the embedded server failed")),
    };
    Ok(match cut {
        None => response,
        Some(length) => cut_short(response, length).await,
    })
}

fn refusal(status: u16, code: &str, message: &str) -> Response<Body> {
    let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let mut response = Response::new(Body::from(xml));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

/// The same headers, with their content length, but only the first bytes of the body.
async fn cut_short(response: Response<Body>, length: usize) -> Response<Body> {
    use http_body_util::{BodyExt, StreamBody};
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let first = bytes.slice(..length.min(bytes.len()));
    let frames = [Ok(hyper::body::Frame::data(first)), Err(std::io::Error::other("cut"))];
    let stream = StreamBody::new(futures_util::stream::iter(frames));
    Response::from_parts(head, Body::http_body_unsync(stream))
}
