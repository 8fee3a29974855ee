//! A faulty network: a proxy between the real binary and a server, which forwards every request unless a test sets a rule.
//! It works on bytes, so it can do what no server does: reset connections, stop in the middle of a body or a header, flip
//! bits, stall, and trickle single bytes. Its server can be cut off and come back, as after a crash.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::s3::decoded;

/// A request that passes through the proxy.
#[derive(Debug, Clone)]
pub struct Passing {
    /// Number of requests before it since the last [`Proxy::fail`] or [`Proxy::behave`].
    pub number: usize,
    /// GET, PUT, …
    pub method: String,
    /// The key, decoded; empty for requests to the bucket.
    pub key: String,
    /// The query.
    pub query: String,
    /// Header lines, in lower case.
    head: String,
}

impl Passing {
    /// Whether it has this method and a key with this prefix.
    pub fn is(&self, method: &str, key: &str) -> bool {
        self.method == method && self.key.starts_with(key)
    }

    /// Whether it lists objects.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.query.contains("list-type=2")
    }

    /// Whether it is a conditional write.
    pub fn is_conditional(&self) -> bool {
        self.method == "PUT" && (self.head.contains("\nif-none-match:") || self.head.contains("\nif-match:"))
    }

    /// Returns the first and the last byte of the requested range.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (_, rest) = self.head.split_once("\nrange: bytes=")?;
        let (first, last) = rest.split(['\r', '\n']).next()?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// A response on its way to the client.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status line and headers, without the empty line.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// Changes the body as text, and the content length with it.
    pub fn edit(&mut self, change: impl FnOnce(&str) -> String) {
        let changed = change(&String::from_utf8_lossy(&self.body));
        self.body = changed.into_bytes();
        let length = self.body.len();
        self.set_header("content-length", &length.to_string());
    }

    /// Sets a header.
    pub fn set_header(&mut self, name: &str, value: &str) {
        let wanted = format!("{name}:");
        let others = self.head.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with(&wanted));
        self.head = others.collect::<Vec<_>>().join("\r\n") + &format!("\r\n{name}: {value}");
    }
}

/// Interval between the bytes of a response that trickles: for a timeout of one second, this corresponds to a byte every ten
/// seconds for the default of a minute.
const TRICKLE: Duration = Duration::from_millis(170);

type Change = Arc<dyn Fn(&mut Response) + Send + Sync>;

/// A place in a response.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// In the status line.
    Head,
    /// In the body, near its start.
    Body,
}

/// What happens to a request.
#[derive(Clone)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection is reset before the request reaches the server.
    ResetBefore,
    /// The connection is reset after this many bytes of the response, head included.
    ResetAfter(usize),
    /// The connection is closed after this many bytes of the body, regardless of the content length.
    CloseAfter(usize),
    /// One bit of the byte at this position of the response's head is flipped.
    FlipHead(usize),
    /// One bit of the byte at this position of the response's body is flipped.
    FlipBody(usize),
    /// One bit of the byte at this position of the request's body is flipped.
    FlipRequest(usize),
    /// The server's response stops here, and the connection stays open.
    Stall(Place),
    /// From here on, the server's response arrives byte by byte, with a pause before each.
    Trickle(Place),
    /// The request's body is not read, and nothing is answered. The server gets nothing.
    StallRequest,
    /// The client gets this status, S3 code and message in place of a response. The server gets nothing.
    Refuse(u16, &'static str, &'static str),
    /// The client gets the server's response after this change.
    Edit(Change),
}

impl Fault {
    /// Returns the fault that changes the server's response.
    pub fn edit(change: impl Fn(&mut Response) + Send + Sync + 'static) -> Fault {
        Fault::Edit(Arc::new(change))
    }

    /// Whether the client may get a complete response that is wrong. All other faults are detectable.
    pub fn may_mislead(&self) -> bool {
        match self {
            Fault::FlipHead(_) | Fault::FlipBody(_) | Fault::FlipRequest(_) | Fault::Edit(_) => true,
            Fault::Refuse(status, ..) => *status < 429,
            _ => false,
        }
    }
}

type Rule = Box<dyn FnMut(&Passing) -> Fault + Send>;

#[derive(Default)]
struct State {
    rule: Mutex<(usize, Option<Rule>)>,
    sent: Mutex<HashMap<String, u64>>,
    received: AtomicU64,
    /// Number of open connections.
    connections: AtomicUsize,
}

/// A running proxy. It stops when it is dropped.
pub struct Proxy {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    address: SocketAddr,
    server: String,
    state: Arc<State>,
    /// Connections end when this changes.
    generation: watch::Sender<u64>,
    accepting: Mutex<Option<tokio::task::JoinHandle<()>>>,
    runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// Starts a proxy in front of a server at `http://HOST:PORT`.
    pub fn to(url: &str) -> Proxy {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Proxy {
            url: format!("http://{address}"),
            address,
            server: url.trim_start_matches("http://").to_string(),
            state: Arc::default(),
            generation: watch::Sender::new(0),
            accepting: Mutex::default(),
            runtime,
        };
        proxy.accept(listener);
        proxy
    }

    /// Applies faults to requests by this rule from now on.
    pub fn fail(&self, rule: impl FnMut(&Passing) -> Fault + Send + 'static) {
        *self.state.rule.lock().unwrap() = (0, Some(Box::new(rule)));
    }

    /// Forwards all requests unchanged again.
    pub fn behave(&self) {
        *self.state.rule.lock().unwrap() = (0, None);
    }

    /// Returns the number of requests since the last [`Proxy::fail`] or [`Proxy::behave`].
    pub fn count(&self) -> usize {
        self.state.rule.lock().unwrap().0
    }

    /// Returns how many bytes of request bodies have passed, by key, since the last call.
    pub fn take_sent(&self) -> HashMap<String, u64> {
        std::mem::take(&mut self.state.sent.lock().unwrap())
    }

    /// Returns how many bytes of response bodies have passed since the last call.
    pub fn take_received(&self) -> u64 {
        self.state.received.swap(0, Ordering::SeqCst)
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Cuts the server off: all connections are reset, and new ones are refused.
    pub fn cut_off(&self) {
        if let Some(accepting) = self.accepting.lock().unwrap().take() {
            accepting.abort();
            let _ = self.runtime.block_on(accepting);
        }
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Connects the server again.
    pub fn restore(&self) {
        let listener = self.runtime.block_on(async {
            loop {
                match TcpListener::bind(self.address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        });
        self.accept(listener);
    }

    fn accept(&self, listener: TcpListener) {
        let (state, server, generation) = (self.state.clone(), self.server.clone(), self.generation.subscribe());
        let task = self.runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, server, mut generation) = (state.clone(), server.clone(), generation.clone());
                generation.mark_unchanged();
                let open = Open::new(&state);
                tokio::spawn(async move {
                    let _open = open;
                    let Ok(upstream) = TcpStream::connect(server).await else { return };
                    let _ = client.set_nodelay(true);
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = upstream.into_split();
                    let mut connection = Connection {
                        state,
                        client_in: BufReader::new(client_in),
                        client_out,
                        server_in: BufReader::new(server_in),
                        server_out,
                    };
                    let ended = tokio::select! {
                        ended = connection.run() => ended,
                        _ = generation.changed() => Err(End::Reset),
                    };
                    if matches!(ended, Err(End::Reset)) {
                        let _ = connection.client_out.as_ref().set_zero_linger();
                    }
                });
            }
        });
        *self.accepting.lock().unwrap() = Some(task);
    }
}

/// Counts an open connection.
struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.connections.fetch_add(1, Ordering::SeqCst);
        Open(state.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a connection ends.
enum End {
    Close,
    Reset,
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> End {
        End::Close
    }
}

struct Connection {
    state: Arc<State>,
    client_in: BufReader<OwnedReadHalf>,
    client_out: OwnedWriteHalf,
    server_in: BufReader<OwnedReadHalf>,
    server_out: OwnedWriteHalf,
}

impl Connection {
    async fn run(&mut self) -> Result<(), End> {
        loop {
            let head = read_head(&mut self.client_in).await?;
            let passing = self.passing(&head);
            let fault = {
                let mut rule = self.state.rule.lock().unwrap();
                let passing = Passing { number: rule.0, ..passing.clone() };
                rule.0 += 1;
                rule.1.as_mut().map_or(Fault::None, |rule| rule(&passing))
            };
            if matches!(fault, Fault::StallRequest) {
                return std::future::pending().await;
            }
            let mut body = read_body(&mut self.client_in, &head).await?;
            *self.state.sent.lock().unwrap().entry(passing.key.clone()).or_default() += body.len() as u64;
            match &fault {
                Fault::ResetBefore => return Err(End::Reset),
                Fault::Refuse(status, code, message) => {
                    let xml = format!(
                        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
                    );
                    let head = format!(
                        "HTTP/1.1 {status} X\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n",
                        xml.len()
                    );
                    let body = if passing.method == "HEAD" { "" } else { &xml };
                    self.client_out.write_all((head + body).as_bytes()).await?;
                    continue;
                }
                Fault::FlipRequest(at) if !body.is_empty() => {
                    let at = at % body.len();
                    body[at] ^= 1;
                }
                _ => {}
            }
            self.server_out.write_all(head.as_bytes()).await?;
            self.server_out.write_all(b"\r\n\r\n").await?;
            self.server_out.write_all(&body).await?;
            let head = read_head(&mut self.server_in).await?;
            let has_body = passing.method != "HEAD" && !head.starts_with("HTTP/1.1 204");
            let body = if has_body { read_body(&mut self.server_in, &head).await? } else { Vec::new() };
            let mut response = Response { head, body };
            if response.head.to_ascii_lowercase().contains("\r\ntransfer-encoding:") {
                response.set_header("transfer-encoding", "identity");
                response.head = response.head.replace("\r\ntransfer-encoding: identity", "");
                let length = response.body.len();
                response.set_header("content-length", &length.to_string());
            }
            self.answer(response, &fault).await?;
        }
    }

    async fn answer(&mut self, mut response: Response, fault: &Fault) -> Result<(), End> {
        if let Fault::Edit(change) = fault {
            change(&mut response);
        }
        let Response { head, mut body } = response;
        let mut head = (head + "\r\n\r\n").into_bytes();
        match fault {
            Fault::FlipHead(at) => {
                let at = at % (head.len() - 4);
                head[at] ^= 1;
            }
            Fault::FlipBody(at) if !body.is_empty() => {
                let at = at % body.len();
                body[at] ^= 1;
            }
            Fault::ResetAfter(length) => {
                let all = [head, body].concat();
                self.client_out.write_all(&all[..*length.min(&all.len())]).await?;
                return Err(End::Reset);
            }
            Fault::Stall(place) | Fault::Trickle(place) => {
                let at = match place {
                    Place::Head => 10,
                    Place::Body => head.len() + body.len().min(200) / 2,
                };
                let all = [head, body].concat();
                self.client_out.write_all(&all[..at]).await?;
                if matches!(fault, Fault::Stall(_)) && at < all.len() {
                    return std::future::pending().await;
                }
                for byte in &all[at..] {
                    tokio::time::sleep(TRICKLE).await;
                    self.client_out.write_all(&[*byte]).await?;
                }
                return Ok(());
            }
            Fault::CloseAfter(length) => {
                self.client_out.write_all(&head).await?;
                self.client_out.write_all(&body[..*length.min(&body.len())]).await?;
                return Err(End::Close);
            }
            _ => {}
        }
        self.client_out.write_all(&head).await?;
        self.client_out.write_all(&body).await?;
        self.state.received.fetch_add(body.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn passing(&self, head: &str) -> Passing {
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        Passing {
            number: 0,
            method: method.to_string(),
            key: decoded(key),
            query: query.to_string(),
            head: head.to_ascii_lowercase(),
        }
    }
}

/// Reads the first line and the headers, without the empty line.
async fn read_head(input: &mut BufReader<OwnedReadHalf>) -> Result<String, End> {
    let mut head = String::new();
    loop {
        if input.read_line(&mut head).await? == 0 {
            return Err(End::Close);
        }
        if head.ends_with("\r\n\r\n") {
            head.truncate(head.len() - 4);
            return Ok(head);
        }
    }
}

/// Reads the body that follows a head.
async fn read_body(input: &mut BufReader<OwnedReadHalf>, head: &str) -> Result<Vec<u8>, End> {
    let lower = head.to_ascii_lowercase();
    let header = |name: &str| {
        let line = lower.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_string())
    };
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        loop {
            let mut line = String::new();
            input.read_line(&mut line).await?;
            let length = usize::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16).unwrap_or(0);
            let start = body.len();
            body.resize(start + length, 0);
            input.read_exact(&mut body[start..]).await?;
            input.read_line(&mut line).await?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
    body.resize(header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0), 0);
    input.read_exact(&mut body).await?;
    Ok(body)
}
