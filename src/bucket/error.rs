//! What a failed request means: worth a retry or not, and the words for the user.
//!
//! Codes come from the S3 API and from what B2, Ceph, MinIO, SeaweedFS, OSS and others really send; where a store sends
//! none (HEAD, HTML pages), or one code for many reasons (AccessDenied, InvalidRequest), its message and the HTTP
//! status decide.

use std::time::Duration;

use super::answer::Refusal;
pub use crate::error::Cause;
use crate::error::{Error, printable};

/// A failed request, reduced to what matters.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What happened.
    pub cause: Cause,
    /// The store's own words, or the network's.
    pub detail: String,
    /// What the store asks to wait before the next try.
    pub retry_after: Option<Duration>,
    /// What to do, where that is known better than from the cause.
    pub hint: Option<String>,
    /// Whether it was told of other requests before: then this one was not even sent.
    pub shared: bool,
}

impl Failure {
    /// A failure outside a response.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Failure { cause, detail: detail.into(), retry_after: None, hint: None, shared: false }
    }

    /// The same with what to do.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What an answer by this status, with this body, means.
    pub(super) fn refused(status: u16, refusal: &Refusal) -> Self {
        let code = refusal.code.as_deref();
        let cause = cause_of(status, code.unwrap_or_default(), &refusal.message);
        let mut detail = match (code, refusal.message.as_str()) {
            (Some(code), "") => printable(code, 100),
            (Some(code), text) => format!("{}: {}", printable(code, 100), printable(text, 200)),
            (None, _) => format!("HTTP status {status}"),
        };
        if let Some(class) = &refusal.class {
            detail.push_str(&format!(" (storage class {})", printable(class, 40)));
        }
        Failure::new(cause, detail)
    }

    /// The error for the user. `doing` names what failed and on what.
    pub fn into_error(self, doing: &str, place: &Place<'_>) -> Error {
        let detail = &self.detail;
        let endpoint = place.endpoint();
        let (why, hint): (String, &str) = match self.cause {
            Cause::NoSuchKey => ("it is not in the bucket".into(), ""),
            Cause::NoSuchBucket => (
                format!("bucket '{}' does not exist at {endpoint}", place.bucket),
                "check storage.bucket, storage.endpoint and storage.region",
            ),
            Cause::NoSuchUpload => {
                ("the store does not know this upload any more".into(), "run push again: it starts this blob anew")
            }
            Cause::Changed => ("the object was replaced while it was read".into(), "run it again"),
            Cause::BadCredentials => (
                format!("the store does not accept the credentials ({detail})"),
                "check B2_APPLICATION_KEY_ID / B2_APPLICATION_KEY, AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY or \
                 storage.access_key / secret_key; `hf-cache-sync doctor` shows which are used",
            ),
            Cause::Expired => (
                format!("the credentials have expired ({detail})"),
                "get new ones: `aws sso login`, or a fresh AWS_SESSION_TOKEN with its key pair",
            ),
            Cause::Denied => (
                format!("this key is not allowed to do that in bucket '{}' ({detail})", place.bucket),
                denied_hint(detail),
            ),
            Cause::Account => (
                format!("the store's account cannot be used ({detail})"),
                "the keys are not the reason: see the account, its bills and its caps at the provider",
            ),
            Cause::WrongRegion => (
                format!("bucket '{}' is not in region '{}' ({detail})", place.bucket, place.region),
                "set storage.region (B2_REGION) and storage.endpoint to the bucket's own",
            ),
            Cause::Full => (
                format!("the store has no room left, or a cap is reached ({detail})"),
                "delete something there, or raise the quota or cap at the provider; then run it again: finished work is \
                 kept",
            ),
            Cause::Archived => (
                format!("it is archived and cannot be read as it is ({detail})"),
                "restore it at the provider and keep the bucket's blobs out of archive classes, or use --fallback hf-hub",
            ),
            Cause::PayerNeeded => (
                format!("bucket '{}' is requester-pays ({detail})", place.bucket),
                "set storage.requester_pays: true if you agree to pay for the requests",
            ),
            Cause::Locked => (
                format!("a retention rule or object lock of bucket '{}' forbids it ({detail})", place.bucket),
                "the keys are not the reason: wait until the retention ends, or change the bucket's object lock",
            ),
            Cause::EncryptionNeeded => (
                format!("bucket '{}' takes encrypted objects only ({detail})", place.bucket),
                "set storage.sse to AES256, or to aws:kms with storage.sse_kms_key_id",
            ),
            Cause::EncryptionKey => (
                format!("the key for the encryption of bucket '{}' cannot be used ({detail})", place.bucket),
                "check storage.sse and storage.sse_kms_key_id, and that this user may use that KMS key",
            ),
            Cause::PathStyle => (
                format!("{endpoint} refuses the bucket's name in the path ({detail})"),
                "set storage.addressing_style: virtual",
            ),
            Cause::VirtualStyle => (
                format!("{endpoint} refuses the bucket's name in the host ({detail})"),
                "set storage.addressing_style: path",
            ),
            Cause::ChecksumNeeded | Cause::HashNeeded => {
                (format!("{endpoint} wants a checksum with each upload ({detail})"), "set storage.checksums: md5")
            }
            Cause::Limit => (
                format!("the store has a limit that this exceeds ({detail})"),
                "see the store's limits; storage.max_parts lowers the number of parts",
            ),
            Cause::ClockSkew => (
                format!("this machine's clock is too far off for signed requests{}", in_brackets(detail)),
                "set the clock, for example with NTP",
            ),
            Cause::Busy | Cause::RateLimited => (
                format!("the store is overloaded or temporarily unavailable ({detail})"),
                "try again later: finished work is kept",
            ),
            Cause::Unreachable => (
                format!("cannot connect to {endpoint}{}", in_brackets(detail)),
                "check storage.endpoint, the network, and HTTPS_PROXY",
            ),
            Cause::Broken => (
                format!("the connection to {endpoint} broke or stalled{}", in_brackets(detail)),
                "run it again: finished work is kept",
            ),
            Cause::Incomplete => (
                format!("{endpoint} sent an answer that is not whole ({detail})"),
                "run it again; if it persists, something between here and the store cuts answers, or it is no S3 store",
            ),
            Cause::NotS3 | Cause::Garbled => (
                format!("what answers at {endpoint} is not an S3 store ({detail})"),
                "check storage.endpoint; behind a captive portal or a proxy, log in there first",
            ),
            Cause::Certificate => (format!("{endpoint} cannot be trusted: {detail}"), ""),
            Cause::NoTls | Cause::Tls => {
                let other = if self.cause == Cause::NoTls { "http" } else { "https" };
                let hint = match endpoint.split_once("://") {
                    Some((_, rest)) => format!("use {other}://{rest} (storage.endpoint, B2_ENDPOINT or --endpoint)"),
                    None => format!("use {other}:// in storage.endpoint"),
                };
                let why = format!("cannot connect to {endpoint}: {detail}");
                return self.built(doing, why, &hint);
            }
            Cause::ProxyRefused => (
                format!("cannot connect to {endpoint}: {detail}"),
                "set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT, or name the store's host in NO_PROXY",
            ),
            Cause::Damaged => (
                format!("the store received damaged bytes ({detail})"),
                "run it again; if it persists, check this machine's memory and network",
            ),
            Cause::Unsupported => (format!("the store does not support this request ({detail})"), ""),
            Cause::StorageClass => {
                (detail.clone(), "set storage.storage_class to one that this store has, or leave it out")
            }
            // The rest is never a store's.
            _ => (detail.clone(), ""),
        };
        self.built(doing, why, hint)
    }

    fn built(&self, doing: &str, why: String, hint: &str) -> Error {
        let hint = self.hint.clone().or_else(|| (!hint.is_empty()).then(|| hint.to_string()));
        let shared = self.shared || self.cause.is_shared();
        Error { cause: self.cause, what: doing.to_string(), why: Some(why), hint, shared }
    }
}

fn denied_hint(detail: &str) -> &'static str {
    let lower = detail.to_ascii_lowercase();
    if lower.contains("explicit deny") {
        return "a policy denies it: ask who keeps the bucket; some policies demand encryption (storage.sse) or a \
                network";
    }
    "check the key's bucket and capabilities: reading, listing, and writing for push; a bucket where the reader pays \
     also refuses like this without storage.requester_pays: true"
}

/// Where requests go, for messages.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// Bucket name.
    pub bucket: &'a str,
    /// Endpoint URL; empty for AWS.
    pub url: String,
    /// Region.
    pub region: String,
}

impl Place<'_> {
    /// The endpoint, in words for AWS's own.
    pub fn endpoint(&self) -> String {
        match self.url.as_str() {
            "" => format!("AWS S3 ({})", self.region),
            url => url.to_string(),
        }
    }
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// What a code alone says.
fn cause_of_code(code: &str) -> Option<Cause> {
    Some(match code {
        "NoSuchKey" | "NoSuchVersion" => Cause::NoSuchKey,
        "NoSuchBucket" => Cause::NoSuchBucket,
        "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder" => Cause::NoSuchUpload,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "InvalidSecurity"
        | "Unauthorized"
        | "unauthorized"
        // What an unknown key id is called by servers that know no accounts.
        | "NotSignedUp"
        | "bad_auth_token" => Cause::BadCredentials,
        "ExpiredToken"
        | "ExpiredTokenException"
        | "TokenRefreshRequired"
        | "expired_auth_token"
        | "SecurityTokenExpired" => Cause::Expired,
        "AllAccessDisabled" | "AccountProblem" | "InvalidPayer" | "UserSuspended" | "UserDisable"
        | "UserDisabled" | "AccountSuspended" | "AccountDisabled" | "InDebt" | "InArrears" => Cause::Account,
        "PermanentRedirect"
        | "IllegalLocationConstraintException"
        | "TemporaryRedirect"
        | "IncorrectEndpoint"
        | "InvalidRegion"
        | "WrongRegion" => Cause::WrongRegion,
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => Cause::ClockSkew,
        "PreconditionFailed" | "ConditionalRequestConflict" => Cause::Changed,
        "NotImplemented" | "MethodNotAllowed" | "XNotImplemented" | "UnsupportedOperation" => Cause::Unsupported,
        "BadDigest"
        | "XAmzContentSHA256Mismatch"
        | "IncompleteBody"
        | "InvalidDigest"
        | "ContentMD5Mismatch"
        | "XAmzContentChecksumMismatch" => Cause::Damaged,
        "MissingContentMD5" | "MissingDigest" | "MissingChecksum" | "MissingContentChecksum" => Cause::ChecksumNeeded,
        "QuotaExceeded"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "InsufficientStorage"
        | "InsufficientCapacity"
        | "StorageFull"
        | "DiskFull"
        | "OverQuota"
        | "InsufficientStorageSpace" => Cause::Full,
        "InvalidObjectState" | "RestoreAlreadyInProgress" | "ObjectArchived" | "ObjectNotRestored" => Cause::Archived,
        "ServerSideEncryptionConfigurationNotFoundError" | "ServerSideEncryptionConfigurationNotFound" => {
            Cause::EncryptionNeeded
        }
        "InvalidEncryptionAlgorithmError"
        | "KMSNotConfigured"
        | "XMinioKMSNotConfigured"
        | "UserKeyMustBeSpecified" => Cause::EncryptionKey,
        "ObjectLocked" | "ObjectUnderRetention" | "FileImmutable" | "ObjectLockRetention" => Cause::Locked,
        "SecondLevelDomainForbidden" | "PathStyleDomainForbidden" | "PathStyleNotSupported" | "PathStyleForbidden" => {
            Cause::PathStyle
        }
        "VirtualHostDomainForbidden" | "ThirdLevelDomainForbidden" | "VirtualStyleNotSupported" => Cause::VirtualStyle,
        "InvalidStorageClass" => Cause::StorageClass,
        "EntityTooLarge" | "EntityTooSmall" | "TooManyParts" | "KeyTooLong" | "KeyTooLongError"
        | "InvalidPartNumber" => Cause::Limit,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "InternalError"
        | "InternalFailure"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "Throttling"
        | "ThrottlingException"
        | "Throttled"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequests"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded"
        | "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "PriorRequestNotComplete"
        | "BucketNotReady"
        | "XMinioServerNotInitialized"
        | "ServerNotInitialized"
        | "ServerBusy"
        | "ReducedRedundancyLostObject"
        | "OperationAborted" => Cause::Busy,
        _ => return None,
    })
}

/// What a message says, where a store has one code for many reasons. Both are in lower case.
fn cause_of_words(code: &str, message: &str) -> Option<Cause> {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let demands = || says(&["required", "require", "must", "missing", "need", "without", "only"]);
    if code.starts_with("kms.") || code.contains("kms") || says(&["kms:", "kms key", "kms is not"]) {
        return Some(Cause::EncryptionKey);
    }
    if code.contains("quota") || code.contains("storagefull") || code.contains("storagelimit") {
        return Some(Cause::Full);
    }
    if code.contains("pathstyle") {
        return Some(Cause::PathStyle);
    }
    if code.contains("billing")
        || says(&["billing", "in arrears", "overdue", "account is suspended", "suspended account"])
    {
        return Some(Cause::Account);
    }
    if code.contains("archive") {
        return Some(Cause::Archived);
    }
    if says(&["requester pays", "requester-pays", "requesterpays", "request-payer", "requestpayer"]) {
        return Some(Cause::PayerNeeded);
    }
    if says(&["content-md5", "content md5", "checksum"]) && demands() {
        return Some(Cause::ChecksumNeeded);
    }
    if says(&["x-amz-content-sha256", "unsigned-payload", "unsigned payload"]) {
        return Some(Cause::HashNeeded);
    }
    if says(&["object lock", "object-lock", "objectlock", "retention", "legal hold", "legal-hold", "worm", "immutable"])
    {
        return Some(Cause::Locked);
    }
    if says(&["server-side-encryption", "server side encryption", "server-side encryption", "sse-s3", "sse-kms"])
        || (says(&["encrypt"]) && demands())
    {
        return Some(Cause::EncryptionNeeded);
    }
    if says(&[
        "path style",
        "path-style",
        "second level domain",
        "virtual host style",
        "virtual-host",
        "virtual hosted",
    ]) {
        return Some(Cause::PathStyle);
    }
    if says_clock(message) {
        return Some(Cause::ClockSkew);
    }
    if says(&["token has expired", "token is expired", "expired token", "token expired", "credentials have expired"]) {
        return Some(Cause::Expired);
    }
    if says(&["archived", "glacier", "deep_archive", "not restored", "storage class is not valid for"]) {
        return Some(Cause::Archived);
    }
    if code == "invalidargument" && message.contains("part number") {
        return Some(Cause::Limit);
    }
    if code == "authorizationheadermalformed" {
        return Some(if message.contains("region") { Cause::WrongRegion } else { Cause::BadCredentials });
    }
    (code == "authorizationqueryparameterserror").then_some(Cause::BadCredentials)
}

/// Whether a message says that the time of a request is too far off, in lower case.
fn says_clock(message: &str) -> bool {
    let words =
        ["signature expired", "not yet current", "too skewed", "request has expired", "difference between the request"];
    words.iter().any(|word| message.contains(word))
}

/// Whether a message says that there is no room, in lower case. B2 answers an exceeded cap with 403 AccessDenied: no
/// permission problem, and a retry does not help.
fn says_full(message: &str) -> bool {
    let words = [
        "cap exceeded",
        "quota exceeded",
        "quota has been",
        "exceeded the quota",
        "exceeds quota",
        "exceed quota",
        "exceeds the quota",
        "over quota",
        "quota limit",
        "bucket quota",
        "storage quota",
        "storage limit",
        "storage is full",
        "storage full",
        "insufficient storage",
        "insufficient space",
        "insufficient disk",
        "no space left",
        "not enough space",
        "not enough free",
        "disk full",
        "disk is full",
        "out of space",
        "minimum free drive threshold",
        "minimum free disk",
    ];
    words.iter().any(|word| message.contains(word))
}

fn cause_of(status: u16, code: &str, message: &str) -> Cause {
    let words = message.to_ascii_lowercase();
    // A rate that is exceeded passes; a disk that is full does not.
    if status != 429 && says_full(&words) {
        return Cause::Full;
    }
    match cause_of_code(code) {
        Some(Cause::BadCredentials) if says_clock(&words) => return Cause::ClockSkew,
        Some(cause) => return cause,
        None => {}
    }
    // What a broken store says does not matter.
    if status != 429
        && status < 500
        && let Some(cause) = cause_of_words(&code.to_ascii_lowercase(), &words)
    {
        return cause;
    }
    match status {
        401 => Cause::BadCredentials,
        402 => Cause::Account,
        403 => Cause::Denied,
        404 => Cause::NoSuchKey,
        405 => Cause::Unsupported,
        407 => Cause::ProxyRefused,
        412 => Cause::Changed,
        413 => Cause::Limit,
        501 => Cause::Unsupported,
        507 => Cause::Full,
        511 => Cause::NotS3,
        301 | 307 | 308 => Cause::WrongRegion,
        // Proxies and CDNs in front of stores have more of them than the standard, such as 520 to 527.
        408 | 429 | 500..=599 => Cause::Busy,
        _ => Cause::Other,
    }
}

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
            (403, "AccessDenied", "Cannot upload files, storage cap exceeded", Cause::Full),
            (403, "AccessDenied", "Access Denied", Cause::Denied),
            (507, "", "", Cause::Full),
            (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold.", Cause::Full),
            (403, "QuotaExceeded", "", Cause::Full),
            (400, "BucketQuotaExceeded", "", Cause::Full),
            (429, "QuotaExceeded.Requests", "quota exceeded", Cause::Busy),
            (403, "InvalidObjectState", "not valid for the object's storage class", Cause::Archived),
            (
                400,
                "UserProjectMissing",
                "Bucket is a requester pays bucket but no user project provided.",
                Cause::PayerNeeded,
            ),
            (403, "AccessDenied", "Access Denied: Bucket is Requester-Pays", Cause::PayerNeeded),
            (403, "InvalidPayer", "", Cause::Account),
            (
                400,
                "InvalidRequest",
                "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters",
                Cause::ChecksumNeeded,
            ),
            (400, "InvalidRequest", "Missing required header for this request: Content-MD5", Cause::ChecksumNeeded),
            (403, "AccessDenied", "Object is WORM protected and cannot be overwritten", Cause::Locked),
            (403, "AccessDenied", "Requests must specify server-side-encryption", Cause::EncryptionNeeded),
            (403, "KMS.DisabledException", "", Cause::EncryptionKey),
            (400, "KMS.NotFoundException", "Invalid keyId", Cause::EncryptionKey),
            (403, "AccessDenied", "User: x is not authorized to perform: kms:GenerateDataKey", Cause::EncryptionKey),
            (
                403,
                "SecondLevelDomainForbidden",
                "The bucket you are attempting to access must be addressed using OSS third level domain.",
                Cause::PathStyle,
            ),
            (400, "InvalidRequest", "Path style access is not supported", Cause::PathStyle),
            (403, "AccessDenied", "Request has expired", Cause::ClockSkew),
            (403, "SignatureDoesNotMatch", "Signature expired: 2020", Cause::ClockSkew),
            (500, "InternalError", "write: no space left on device", Cause::Full),
            (400, "ExpiredToken", "", Cause::Expired),
            (403, "AllAccessDisabled", "", Cause::Account),
            (403, "AccountProblem", "", Cause::Account),
            (405, "MethodNotAllowed", "", Cause::Unsupported),
            (400, "EntityTooLarge", "", Cause::Limit),
            (400, "InvalidStorageClass", "", Cause::StorageClass),
            (400, "InvalidArgument", "Part number must be an integer between 1 and 1000, inclusive", Cause::Limit),
            (503, "SlowDownWrite", "", Cause::Busy),
            (400, "InvalidPart", "", Cause::NoSuchUpload),
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
