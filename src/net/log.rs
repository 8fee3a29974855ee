//! Requests as `-v` tells them: a line each, with method, URL, status, bytes and time. Of a query only what says which
//! objects are meant: the rest may be a signature.

use std::time::Instant;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::bucket::error::Failure;

/// Parts of a query that are told.
const TOLD: [&str; 5] = ["list-type", "prefix", "partNumber", "uploads", "start-after"];

/// A request that is on its way.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    method: String,
    url: String,
    at: Instant,
}

impl Sent {
    /// Remembers a request, when anybody is to hear of it.
    pub(crate) fn now(method: &str, uri: &str) -> Option<Sent> {
        let heard = tracing::enabled!(tracing::Level::DEBUG);
        heard.then(|| Sent { method: method.to_string(), url: without_secrets(uri), at: Instant::now() })
    }

    /// Tells how it ended.
    pub(crate) fn ended(&self, answer: &Result<HttpResponse, Failure>) {
        match answer {
            Ok(response) => {
                let bytes = response.headers().get("content-length").and_then(|text| text.parse().ok());
                self.answered(Some(response.status().as_u16()), bytes);
            }
            Err(failure) => self.tell(&failure.detail),
        }
    }

    /// Tells that it was answered, or, without a status, was not.
    pub(crate) fn answered(&self, status: Option<u16>, bytes: Option<u64>) {
        let status = status.map_or_else(|| "no answer".to_string(), |status| status.to_string());
        let bytes = bytes.map_or_else(String::new, |bytes| format!(" {bytes} B"));
        self.tell(&format!("{status}{bytes}"));
    }

    fn tell(&self, how: &str) {
        tracing::debug!("{} {} {how} {} ms", self.method, self.url, self.at.elapsed().as_millis());
    }
}

/// The URL without a user, and without what of its query may be secret.
pub(crate) fn without_secrets(uri: &str) -> String {
    let (url, query) = uri.split_once('?').unwrap_or((uri, ""));
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    let mut out = if scheme.is_empty() { format!("{host}{path}") } else { format!("{scheme}://{host}{path}") };
    let told = query.split('&').filter(|part| TOLD.contains(&part.split('=').next().unwrap_or_default()));
    for (count, part) in told.enumerate() {
        out.push(if count == 0 { '?' } else { '&' });
        out += part;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_of_a_url_is_told() {
        let signed = "https://me:pass@s3.example.com:9000/b/blobs/ab?partNumber=3&uploadId=u&X-Amz-Signature=s&X-Amz-Credential=c";
        assert_eq!(without_secrets(signed), "https://s3.example.com:9000/b/blobs/ab?partNumber=3");
        assert_eq!(without_secrets("/b?list-type=2&prefix=refs%2F"), "/b?list-type=2&prefix=refs%2F");
        assert_eq!(without_secrets("https://h?token=x"), "https://h");
        assert_eq!(without_secrets(""), "");
    }
}
