//! The request log of `-v`: one line per request, with method, URL, status, bytes and time. Of the query, only parameters
//! that identify objects are logged; the rest may contain a signature.

use std::time::Instant;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::error::Failure;

/// Query parameters that are logged.
const LOGGED_PARAMETERS: [&str; 5] = ["list-type", "prefix", "partNumber", "uploads", "start-after"];

/// A request in flight.
#[derive(Debug, Clone)]
pub(crate) struct RequestLog {
    method: String,
    url: String,
    at: Instant,
}

impl RequestLog {
    /// Starts the log entry of a request, if requests are logged.
    pub(crate) fn start(method: &str, uri: &str) -> Option<RequestLog> {
        let is_logged = tracing::enabled!(tracing::Level::DEBUG);
        is_logged.then(|| RequestLog { method: method.to_string(), url: without_secrets(uri), at: Instant::now() })
    }

    /// Logs the outcome of a request.
    pub(crate) fn finish(&self, answer: &Result<HttpResponse, Failure>) {
        match answer {
            Ok(response) => {
                let bytes = response.headers().get("content-length").and_then(|text| text.parse().ok());
                self.finish_with_status(Some(response.status().as_u16()), bytes);
            }
            Err(failure) => self.write(&failure.detail),
        }
    }

    /// Logs the status of the response, or that there was none.
    pub(crate) fn finish_with_status(&self, status: Option<u16>, bytes: Option<u64>) {
        let status = status.map_or_else(|| "no answer".to_string(), |status| status.to_string());
        let bytes = bytes.map_or_else(String::new, |bytes| format!(" {bytes} B"));
        self.write(&format!("{status}{bytes}"));
    }

    fn write(&self, outcome: &str) {
        tracing::debug!("{} {} {outcome} {} ms", self.method, self.url, self.at.elapsed().as_millis());
    }
}

/// Removes user, password and potentially secret query parameters from a URL.
pub(crate) fn without_secrets(uri: &str) -> String {
    let (url, query) = uri.split_once('?').unwrap_or((uri, ""));
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    let mut out = if scheme.is_empty() { format!("{host}{path}") } else { format!("{scheme}://{host}{path}") };
    let logged =
        query.split('&').filter(|part| LOGGED_PARAMETERS.contains(&part.split('=').next().unwrap_or_default()));
    for (count, part) in logged.enumerate() {
        out.push(if count == 0 { '?' } else { '&' });
        out += part;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_removed_from_urls() {
        let signed = "https://me:pass@s3.example.com:9000/b/blobs/ab?partNumber=3&uploadId=u&X-Amz-Signature=s&X-Amz-Credential=c";
        assert_eq!(without_secrets(signed), "https://s3.example.com:9000/b/blobs/ab?partNumber=3");
        assert_eq!(without_secrets("/b?list-type=2&prefix=refs%2F"), "/b?list-type=2&prefix=refs%2F");
        assert_eq!(without_secrets("https://h?token=x"), "https://h");
        assert_eq!(without_secrets(""), "");
    }
}
