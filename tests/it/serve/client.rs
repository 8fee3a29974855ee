//! A small HTTP client that gives full control over a request, and shows how much of a response arrived.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::harness::machine::LIMIT;

/// The head of a response; its body follows.
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    reader: BufReader<TcpStream>,
    /// Number of body bytes that have not been read; `None` if the body is chunked.
    left: u64,
    is_chunked: bool,
}

/// A complete response.
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// Whether the whole body has arrived.
    pub is_complete: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = String::from_utf8_lossy(&self.body[..self.body.len().min(500)]).into_owned();
        write!(
            f,
            "{} {:#?} {} bytes, complete: {}: {start}",
            self.status,
            self.headers,
            self.body.len(),
            self.is_complete
        )
    }
}

/// Connects to a port of this machine.
pub fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Connects to a port of this machine, with a receive buffer that holds next to nothing.
pub fn connect_with_small_buffer(port: u16) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        socket.connect(([127, 0, 0, 1], port).into()).await?.into_std()
    })?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends a request on a separate connection. A `Host` header among `headers` replaces the default one.
pub fn open(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
    open_on(connect(port)?, method, path, headers, body)
}

/// Sends a request on this connection, which is closed after it.
pub fn open_on(
    mut stream: TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Reply> {
    let port = stream.peer_addr()?.port();
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head += &format!("host: 127.0.0.1:{port}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(&[head.as_bytes(), b"\r\n", body].concat())?;
    read_reply(BufReader::new(stream), method)
}

/// Reads the head of a response.
pub fn read_reply(mut reader: BufReader<TcpStream>, method: &str) -> io::Result<Reply> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no response: '{line}'")))?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let is_chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
    let (left, is_chunked) = if method == "HEAD" { (0, false) } else { (length, is_chunked) };
    Ok(Reply { status, headers, reader, left, is_chunked })
}

impl Reply {
    /// Reads exactly this many bytes.
    #[track_caller]
    pub fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).unwrap();
        self.left -= length as u64;
        bytes
    }

    /// Reads the rest, as far as it arrives.
    pub fn finish(mut self) -> Answer {
        let mut body = Vec::new();
        if self.is_chunked {
            let is_complete = self.read_chunks(&mut body).is_ok();
            return Answer { status: self.status, headers: self.headers, body, is_complete };
        }
        // A broken connection may be an error, or just the end.
        let _ = (&mut self.reader).take(self.left).read_to_end(&mut body);
        let is_complete = body.len() as u64 == self.left;
        Answer { status: self.status, headers: self.headers, body, is_complete }
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
            let before = body.len() as u64;
            (&mut self.reader).take(length).read_to_end(body)?;
            let mut end = [0; 2];
            self.reader.read_exact(&mut end)?;
            if body.len() as u64 - before < length || end != *b"\r\n" {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if length == 0 {
                return Ok(());
            }
        }
    }
}

impl Answer {
    /// Returns a header, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// Returns the body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that it is an error of the Hub's API with this status and code.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.header("x-error-code")), (status, code), "{self:?}");
        let message = self.header("x-error-message");
        assert!(!message.is_empty() && !message.contains("os error") && !message.contains("Error {"), "{self:?}");
        if !self.body.is_empty() {
            assert!(!self.json()["error"].as_str().unwrap().is_empty(), "{self:?}");
        }
    }
}
