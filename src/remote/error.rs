//! What a failed request means: worth a retry or not, and the words for the user.
//!
//! Codes come from the S3 API and from what B2, Ceph, MinIO, SeaweedFS and others really send; where a store sends
//! none (HEAD, HTML pages), the HTTP status decides.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::error::{Error, Kind, printable};

/// A failed request, reduced to what matters.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What happened.
    pub cause: Cause,
    /// The store's own words, or the network's.
    pub detail: String,
    /// What the store asks to wait before the next try.
    pub retry_after: Option<Duration>,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No such key.
    NoSuchKey,
    /// No such bucket.
    NoSuchBucket,
    /// No such multipart upload: it was completed, or given up by somebody or by a rule of the bucket.
    NoSuchUpload,
    /// The object is not, or no longer, the one that was expected (If-Match or If-None-Match failed).
    Changed,
    /// The store does not know this request or one of its headers.
    Unsupported,
    /// The keys are wrong, expired, or there are none.
    BadCredentials,
    /// The keys are right, but may not do this.
    Denied,
    /// The bucket is in another region.
    WrongRegion,
    /// The store is overloaded or broken for the moment.
    Busy,
    /// No connection.
    Unreachable,
    /// Connected, but no answer in time, or the connection broke.
    Broken,
    /// The server's certificate is not trusted, or TLS failed in another way; `detail` says which.
    Tls,
    /// It asks to wait longer than this run may.
    RateLimited,
    /// The local clock is wrong.
    ClockSkew,
    /// The store refused the bytes as damaged on the way.
    Damaged,
    /// The object is larger than anything valid under its key.
    TooLarge,
    /// Anything else.
    Other,
}

impl Cause {
    /// Whether the same request may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, Cause::Busy | Cause::Unreachable | Cause::Broken | Cause::Damaged)
    }
}

impl Failure {
    /// A failure outside a response.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Failure { cause, detail: detail.into(), retry_after: None }
    }

    /// Reads the SDK's error.
    pub fn from_sdk<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Self {
        match error {
            SdkError::TimeoutError(_) => Failure::new(Cause::Broken, "no answer in time"),
            SdkError::DispatchFailure(failure) => {
                let detail = failure.as_connector_error().map(|error| deepest(error)).unwrap_or_default();
                let lower = detail.to_lowercase();
                if lower.contains("credential") || lower.contains("identity") {
                    return Failure::new(Cause::BadCredentials, detail);
                }
                let cause = if failure.is_timeout() { Cause::Broken } else { Cause::Unreachable };
                Failure::new(cause, detail)
            }
            SdkError::ConstructionFailure(failure) => {
                let detail = deepest(&DisplayOnly(format!("{failure:?}")));
                match detail.to_lowercase().contains("credential") || detail.contains("Identity") {
                    true => Failure::new(Cause::BadCredentials, "no credentials were found"),
                    false => Failure::new(Cause::Other, "the request could not be built"),
                }
            }
            SdkError::ServiceError(service) => {
                Self::from_response(service.raw(), service.err().code(), service.err().message())
            }
            // The store has agreed, and then the connection broke in the middle of what it says.
            SdkError::ResponseError(response) if response.raw().status().is_success() => {
                Failure::new(Cause::Broken, "the answer ended early")
            }
            SdkError::ResponseError(response) => Self::from_response(response.raw(), None, None),
            _ => Failure::new(Cause::Other, "unexpected failure"),
        }
    }

    /// Reads an answer by its status and headers alone.
    pub fn from_answer(raw: &HttpResponse) -> Self {
        Self::from_response(raw, None, None)
    }

    fn from_response(raw: &HttpResponse, code: Option<&str>, message: Option<&str>) -> Self {
        let status = raw.status().as_u16();
        let text = message.unwrap_or_default();
        let cause = cause_of(status, code.unwrap_or_default(), text);
        let mut detail = match (code, text) {
            (Some(code), "") => code.to_string(),
            (Some(code), text) => format!("{code}: {}", printable(text, 200)),
            (None, _) => format!("HTTP status {status}"),
        };
        if let Some(id) = raw.request_id().filter(|id| !id.is_empty() && cause == Cause::Other) {
            detail.push_str(&format!(" (request {})", printable(id, 80)));
        }
        let seconds = raw.headers().get("retry-after").and_then(|text| text.trim().parse().ok());
        Failure { cause, detail, retry_after: seconds.map(|s: u64| Duration::from_secs(s.min(60))) }
    }

    /// The error for the user. `doing` names what failed and on what.
    pub fn into_error(self, doing: &str, place: &Place<'_>) -> Error {
        let (kind, why, hint) = match self.cause {
            Cause::NoSuchKey => (Kind::NotFound, "it is not in the bucket".to_string(), None),
            Cause::NoSuchBucket => (
                Kind::MissingBucket,
                format!("bucket '{}' does not exist at {}", place.bucket, place.endpoint()),
                Some("check storage.bucket, storage.endpoint and storage.region".to_string()),
            ),
            Cause::NoSuchUpload => (
                Kind::Failed,
                "the store does not know this upload any more".into(),
                Some("run push again: it starts this blob anew".into()),
            ),
            Cause::Changed => {
                (Kind::Unavailable, "the object was replaced while it was read".into(), Some("run it again".into()))
            }
            Cause::BadCredentials => (
                Kind::Credentials,
                format!("the store does not accept the credentials ({})", self.detail),
                Some(
                    "check B2_APPLICATION_KEY_ID / B2_APPLICATION_KEY, AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY or \
                     storage.access_key / secret_key; `hf-cache-sync doctor` shows which are used"
                        .into(),
                ),
            ),
            Cause::Denied => (
                Kind::Credentials,
                format!("this key is not allowed to do that in bucket '{}' ({})", place.bucket, self.detail),
                Some("check the key's bucket and capabilities: reading, listing, and writing for push".into()),
            ),
            Cause::WrongRegion => (
                Kind::Usage,
                format!("bucket '{}' is not in region '{}' ({})", place.bucket, place.region, self.detail),
                Some("set storage.region (B2_REGION) and storage.endpoint to the bucket's own".into()),
            ),
            Cause::ClockSkew => (
                Kind::Usage,
                "this machine's clock is too far off for signed requests".into(),
                Some("set the clock, for example with NTP".into()),
            ),
            Cause::Tls => (
                Kind::Unavailable,
                format!("no secure connection to {}: {}", place.endpoint(), self.detail),
                Some("check storage.endpoint, and that SSL_CERT_FILE names your authority's certificate".into()),
            ),
            Cause::Busy | Cause::RateLimited => (
                Kind::Unavailable,
                format!("the store is overloaded or temporarily unavailable ({})", self.detail),
                Some("try again later: finished work is kept".into()),
            ),
            Cause::Unreachable => (
                Kind::Unavailable,
                format!("cannot connect to {}{}", place.endpoint(), in_brackets(&self.detail)),
                Some("check storage.endpoint, the network, and HTTPS_PROXY".into()),
            ),
            Cause::Broken => (
                Kind::Unavailable,
                format!("the connection to {} broke or stalled{}", place.endpoint(), in_brackets(&self.detail)),
                Some("run it again: finished work is kept".into()),
            ),
            Cause::Damaged => (
                Kind::Integrity,
                format!("the store received damaged bytes ({})", self.detail),
                Some("run it again; if it persists, check this machine's memory and network".into()),
            ),
            Cause::TooLarge => (Kind::Integrity, self.detail, None),
            Cause::Unsupported | Cause::Other => (Kind::Failed, self.detail, None),
        };
        Error { kind, what: doing.to_string(), why: Some(why), hint }
    }
}

/// Where requests go, for messages.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Bucket name.
    pub bucket: &'a str,
    /// Endpoint URL; empty for AWS.
    pub url: &'a str,
    /// Region.
    pub region: &'a str,
}

impl Place<'_> {
    fn endpoint(&self) -> String {
        match self.url {
            "" => format!("AWS S3 ({})", self.region),
            url => url.to_string(),
        }
    }
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

fn cause_of(status: u16, code: &str, message: &str) -> Cause {
    match code {
        "NoSuchKey" => return Cause::NoSuchKey,
        "NoSuchBucket" => return Cause::NoSuchBucket,
        "NoSuchUpload" => return Cause::NoSuchUpload,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "InvalidSecurity"
        | "AuthorizationQueryParametersError"
        | "Unauthorized"
        | "unauthorized"
        | "NotSignedUp" => {
            return Cause::BadCredentials;
        }
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException"
        | "TemporaryRedirect" => {
            return Cause::WrongRegion;
        }
        "RequestTimeTooSkewed" | "RequestExpired" => return Cause::ClockSkew,
        "PreconditionFailed" | "ConditionalRequestConflict" => return Cause::Changed,
        "NotImplemented" => return Cause::Unsupported,
        "BadDigest"
        | "XAmzContentSHA256Mismatch"
        | "IncompleteBody"
        | "InvalidDigest"
        | "XAmzContentChecksumMismatch" => {
            return Cause::Damaged;
        }
        "SlowDown"
        | "InternalError"
        | "ServiceUnavailable"
        | "RequestTimeout"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "OperationAborted" => return Cause::Busy,
        _ => {}
    }
    // B2 answers an exceeded cap with 403 AccessDenied: no permission problem, and a retry does not help.
    if message.to_lowercase().contains("cap exceeded") {
        return Cause::Other;
    }
    match status {
        401 => Cause::BadCredentials,
        403 => Cause::Denied,
        404 => Cause::NoSuchKey,
        412 => Cause::Changed,
        501 => Cause::Unsupported,
        301 | 307 => Cause::WrongRegion,
        // Proxies and CDNs in front of stores have more of them than the standard, such as 520 to 527.
        408 | 429 | 500..=599 => Cause::Busy,
        _ => Cause::Other,
    }
}

/// The innermost reason of a chain of errors, without numbers that nobody reads.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    let text = current.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    printable(&text[..end], 200)
}

#[derive(Debug)]
struct DisplayOnly(String);

impl std::fmt::Display for DisplayOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DisplayOnly {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_become_causes() {
        for (status, code, message, cause) in [
            (404, "NoSuchKey", "", Cause::NoSuchKey),
            (404, "", "", Cause::NoSuchKey),
            (404, "NoSuchBucket", "", Cause::NoSuchBucket),
            (403, "InvalidAccessKeyId", "", Cause::BadCredentials),
            (403, "AccessDenied", "", Cause::Denied),
            (403, "AccessDenied", "Cannot upload files, storage cap exceeded", Cause::Other),
            (503, "SlowDown", "no tomes available", Cause::Busy),
            (503, "", "<html>", Cause::Busy),
            (429, "", "", Cause::Busy),
            (522, "", "<html>", Cause::Busy),
            (404, "NoSuchUpload", "", Cause::NoSuchUpload),
            (400, "AuthorizationHeaderMalformed", "the region 'x' is wrong", Cause::WrongRegion),
            (301, "PermanentRedirect", "", Cause::WrongRegion),
            (412, "PreconditionFailed", "", Cause::Changed),
            (400, "XAmzContentSHA256Mismatch", "", Cause::Damaged),
            (501, "NotImplemented", "", Cause::Unsupported),
        ] {
            assert_eq!(cause_of(status, code, message), cause, "{status} {code} {message}");
        }
    }
}
