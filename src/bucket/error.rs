//! Classifies failed requests and explains them to the user.
//!
//! The error codes come from the S3 API and from what B2, Ceph, MinIO, SeaweedFS, OSS and others really send. Where a
//! store sends no code (HEAD, HTML pages), or one code for many reasons (AccessDenied, InvalidRequest), the message and
//! the HTTP status decide.

use super::answer::Refusal;
use crate::error::{Cause, Error, Failure, printable};

impl Failure {
    /// Classifies a response with this status and body.
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

    /// Converts the failure into an error for the user. `doing` says what failed, and on what.
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
                ("the store no longer knows this upload".into(), "run push again: it starts over with this blob")
            }
            Cause::Changed => ("the object was replaced while it was being read".into(), "run it again"),
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
                "the keys are not the reason: check the account, its billing and its caps at the provider",
            ),
            Cause::BucketName => (
                format!("{endpoint} does not accept '{}' as the name of a bucket ({detail})", place.bucket),
                "check storage.bucket (B2_BUCKET or --bucket); most stores accept 3 to 63 lowercase letters, digits, '-' and \
                 '.', AWS no capitals or '_'",
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
                format!("it is archived and cannot be read until it is restored ({detail})"),
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
                format!("bucket '{}' accepts only encrypted objects ({detail})", place.bucket),
                "set storage.sse to AES256, or to aws:kms with storage.sse_kms_key_id",
            ),
            Cause::EncryptionKey => (
                format!("the encryption key of bucket '{}' cannot be used ({detail})", place.bucket),
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
                format!("this exceeds a limit of the store ({detail})"),
                "see the store's limits; storage.max_parts lowers the number of parts",
            ),
            Cause::ClockSkew => (
                format!("this machine's clock is too far off for signed requests{}", in_parentheses(detail)),
                "set the clock, for example with NTP",
            ),
            Cause::Busy | Cause::RateLimited => (
                format!("the store is overloaded or temporarily unavailable ({detail})"),
                "try again later: finished work is kept",
            ),
            Cause::Unreachable => (
                format!("cannot connect to {endpoint}{}", in_parentheses(detail)),
                "check storage.endpoint, the network, and HTTPS_PROXY",
            ),
            Cause::Broken | Cause::Stalled => (
                format!("the connection to {endpoint} broke or stalled{}", in_parentheses(detail)),
                "run it again: finished work is kept",
            ),
            Cause::Incomplete => (
                format!("{endpoint} sent an incomplete response ({detail})"),
                "run it again; if it persists, something between here and the store truncates responses, or it is not an S3 store",
            ),
            Cause::NotS3 | Cause::Garbled => (
                format!("the server at {endpoint} is not an S3 store ({detail})"),
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
                return self.error(doing, why, &hint);
            }
            Cause::ProxyRefused => (
                format!("cannot connect to {endpoint}: {detail}"),
                "set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT, or name the store's host in NO_PROXY",
            ),
            Cause::Damaged => (
                format!("bytes were damaged on their way ({detail})"),
                "run it again; if it persists, check this machine's memory and network",
            ),
            Cause::Unsupported => (format!("the store does not support this request ({detail})"), ""),
            Cause::StorageClass => {
                (detail.clone(), "set storage.storage_class to one that this store has, or leave it out")
            }
            // A store never causes the others.
            _ => (detail.clone(), ""),
        };
        self.error(doing, why, hint)
    }

    fn error(&self, doing: &str, why: String, hint: &str) -> Error {
        let hint = self.hint.clone().or_else(|| (!hint.is_empty()).then(|| hint.to_string()));
        let shared = self.shared || self.cause.is_shared();
        Error { cause: self.cause, what: doing.to_string(), why: Some(why), hint, shared }
    }
}

fn denied_hint(detail: &str) -> &'static str {
    let lower = detail.to_ascii_lowercase();
    if lower.contains("explicit deny") {
        return "a policy denies it: ask the bucket's owner; some policies require encryption (storage.sse) or a certain \
                network";
    }
    "check the key's bucket and capabilities: reading, listing, and writing for push; a requester-pays bucket also \
     refuses like this without storage.requester_pays: true"
}

/// The target of requests, as shown in messages.
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
    /// Returns the endpoint URL, or a description of AWS's own endpoint.
    pub fn endpoint(&self) -> String {
        match self.url.as_str() {
            "" => format!("AWS S3 ({})", self.region),
            url => url.to_string(),
        }
    }
}

fn in_parentheses(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// Classifies an error code that is unambiguous.
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
        // Sent for an unknown key id by servers without accounts.
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
        "InvalidBucketName" => Cause::BucketName,
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

/// Classifies a message, for stores that use one code for many reasons. Both texts are in lower case.
fn cause_of_message(code: &str, message: &str) -> Option<Cause> {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let is_requirement = || says(&["required", "require", "must", "missing", "need", "without", "only"]);
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
    if says(&["content-md5", "content md5", "checksum"]) && is_requirement() {
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
        || (says(&["encrypt"]) && is_requirement())
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
        // The scope of a signature is its date, region and service, of which only the region can be wrong here.
        return Some(if says(&["region", "unexpected scope"]) { Cause::WrongRegion } else { Cause::BadCredentials });
    }
    // Garage has no codes of their own for these.
    if code == "accessdenied" && says(&["forbidden: invalid signature", "forbidden: no such key"]) {
        return Some(Cause::BadCredentials);
    }
    if code == "accessdenied" && says(&["access key"]) && says(&["has expired"]) {
        return Some(Cause::Expired);
    }
    (code == "authorizationqueryparameterserror").then_some(Cause::BadCredentials)
}

/// Whether a message, in lower case, says that the time of a request is too far off.
fn says_clock(message: &str) -> bool {
    let words = [
        "signature expired",
        "not yet current",
        "too skewed",
        "request has expired",
        "difference between the request",
        "date is too old",
    ];
    words.iter().any(|word| message.contains(word))
}

/// Whether a message, in lower case, says that the store is full. B2 reports an exceeded cap as 403 AccessDenied, although
/// it has nothing to do with permissions; retrying does not help.
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
    // An exceeded rate is temporary; a full disk is not.
    if status != 429 && says_full(&words) {
        return Cause::Full;
    }
    match cause_of_code(code) {
        Some(Cause::BadCredentials) if says_clock(&words) => return Cause::ClockSkew,
        Some(cause) => return cause,
        None => {}
    }
    // The message of a failing store does not matter.
    if status != 429
        && status < 500
        && let Some(cause) = cause_of_message(&code.to_ascii_lowercase(), &words)
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
        // Proxies and CDNs in front of stores use non-standard ones too, such as 520 to 527.
        408 | 429 | 500..=599 => Cause::Busy,
        _ => Cause::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_messages_and_statuses_are_classified() {
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
            // Garage has one code for most of what it refuses.
            (403, "AccessDenied", "Forbidden: Invalid signature", Cause::BadCredentials),
            (403, "AccessDenied", "Forbidden: No such key: GK0123456789abcdef01234567", Cause::BadCredentials),
            (403, "AccessDenied", "Forbidden: Access key GK0123456789abcdef01234567 has expired", Cause::Expired),
            (403, "AccessDenied", "Forbidden: Operation is not allowed for this key.", Cause::Denied),
            (400, "InvalidRequest", "Bad request: Date is too old", Cause::ClockSkew),
            (
                400,
                "AuthorizationHeaderMalformed",
                "Authorization header malformed, unexpected scope: '20260102/us-east-1/s3/aws4_request', expected: \
                 '20260102/garage/s3/aws4_request'",
                Cause::WrongRegion,
            ),
            (412, "PreconditionFailed", "", Cause::Changed),
            (400, "XAmzContentSHA256Mismatch", "", Cause::Damaged),
            (501, "NotImplemented", "", Cause::Unsupported),
        ] {
            assert_eq!(cause_of(status, code, message), cause, "{status} {code} {message}");
        }
    }
}
