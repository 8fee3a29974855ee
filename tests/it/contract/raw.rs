//! A small S3 client that shares no code with the tool: it sends single requests exactly as a test specifies them, and
//! returns the raw responses.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::harness::machine::LIMIT;

/// Characters that are escaped in the value of a query parameter.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Characters that are escaped in a path.
const PATH: &AsciiSet = &VALUE.remove(b'/');

/// A client with the keys of one user.
#[derive(Debug, Clone)]
pub struct Raw {
    /// `http://127.0.0.1:PORT`
    pub endpoint: String,
    /// The region to sign for.
    pub region: String,
    /// Access key and secret key.
    pub keys: (String, String),
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    pub method: &'a str,
    pub key: &'a str,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: &'a [(&'a str, String)],
    pub body: &'a [u8],
    /// A SHA-256 to sign instead of the body's.
    pub claims: Option<String>,
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Raw {
    /// Sends a request to a bucket, on a connection of its own.
    pub fn send(&self, bucket: &str, request: &Request) -> Reply {
        let host = self.endpoint.strip_prefix("http://").expect("a plain URL");
        let query: Vec<String> =
            request.query.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, VALUE))).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let target = format!("/{bucket}/{}{mark}{}", utf8_percent_encode(request.key, PATH), query.join("&"));
        let mut headers: Vec<(&str, String)> = vec![("host", host.into())];
        headers.extend(request.headers.iter().cloned());
        let signature = self.signature(request, &format!("{}{target}", self.endpoint), &headers);
        // HTTP/1.0: the body ends with the connection, regardless of the server.
        let mut head = format!("{} {target} HTTP/1.0\r\ncontent-length: {}\r\n", request.method, request.body.len());
        for (name, value) in headers.into_iter().map(|(name, value)| (name.to_string(), value)).chain(signature) {
            head += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(host).unwrap_or_else(|error| panic!("{host}: {error}"));
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        // A server may reject a request before all of it has been sent.
        let _ = stream.write_all(&[head.as_bytes(), b"\r\n", request.body].concat());
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        Reply::parse(&bytes)
    }

    fn signature(&self, request: &Request, url: &str, headers: &[(&str, String)]) -> Vec<(String, String)> {
        let credentials = Credentials::new(&self.keys.0, &self.keys.1, None, None, "test");
        let identity: Identity = credentials.into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let content = match &request.claims {
            Some(hash) => SignableBody::Precomputed(hash.clone()),
            None => SignableBody::Bytes(request.body),
        };
        let signed = headers.iter().map(|(name, value)| (*name, value.as_str()));
        let signable = SignableRequest::new(request.method, url, signed, content).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        let (added, _) = instructions.into_parts();
        added.into_iter().map(|header| (header.name().to_string(), header.value().to_string())).collect()
    }

    /// Creates a bucket.
    #[track_caller]
    pub fn create(&self, bucket: &str) {
        let reply = self.send(bucket, &Request { method: "PUT", ..Request::default() });
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    /// Writes an object.
    #[track_caller]
    pub fn put(&self, bucket: &str, key: &str, body: &[u8]) {
        let reply = self.send(bucket, &Request { method: "PUT", key, body, ..Request::default() });
        assert_eq!(reply.status, 200, "{key}: {reply:?}");
    }

    /// Reads an object; `None` if there is none.
    #[track_caller]
    pub fn get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        let reply = self.send(bucket, &Request { method: "GET", key, ..Request::default() });
        assert!(matches!(reply.status, 200 | 404), "{key}: {reply:?}");
        (reply.status == 200).then_some(reply.body)
    }

    /// Deletes an object.
    #[track_caller]
    pub fn delete(&self, bucket: &str, key: &str) {
        let reply = self.send(bucket, &Request { method: "DELETE", key, ..Request::default() });
        assert!(matches!(reply.status, 200 | 204), "{key}: {reply:?}");
    }

    /// Returns all keys with this prefix, page by page, as the store lists them.
    #[track_caller]
    pub fn list(&self, bucket: &str, prefix: &str, page: usize) -> Vec<Vec<String>> {
        let (mut pages, mut token) = (Vec::new(), None::<String>);
        let page = page.to_string();
        loop {
            let mut query = vec![("list-type", "2"), ("max-keys", &page), ("prefix", prefix)];
            query.extend(token.as_ref().map(|token| ("continuation-token", token.as_str())));
            let reply = self.send(bucket, &Request { method: "GET", query: &query, ..Request::default() });
            assert_eq!(reply.status, 200, "{reply:?}");
            pages.push(reply.all("Key").iter().map(|key| unescaped(key)).collect());
            token = reply.all("NextContinuationToken").pop().map(|token| unescaped(&token));
            if reply.all("IsTruncated") != ["true"] {
                return pages;
            }
        }
    }

    /// Returns all keys.
    #[track_caller]
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.list(bucket, "", 1000).concat()
    }
}

impl Reply {
    #[track_caller]
    fn parse(bytes: &[u8]) -> Reply {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no response: {}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string())).collect();
        Reply { status, headers, body: bytes[end + 4..].to_vec() }
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns a header, or an empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns the contents of all elements with this name.
    pub fn all(&self, name: &str) -> Vec<String> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let text = self.text();
        text.split(&open).skip(1).filter_map(|rest| Some(rest.split_once(&close)?.0.to_string())).collect()
    }
}

fn unescaped(text: &str) -> String {
    quick_xml::escape::unescape(text).unwrap().into_owned()
}
