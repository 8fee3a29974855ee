//! The async S3 client: the operations on a bucket.
//!
//! [`Bucket`] builds requests and parses responses; `wire` sends them, and `retry` decides how often. Decisions, each
//! with its reason:
//! - No checksums unless requested: trailers break older B2, Ceph, GCS and Garage. Blobs are verified by their names.
//! - Our own retries: the SDK's retry quota is shared and drains under concurrency, it does not retry 429, and it
//!   ignores Retry-After.
//! - Our own timeouts: the SDK's stalled-stream protection aborts healthy slow uploads.
//! - A partial listing is an error, never a shorter list (`listing`).

mod care;
mod listing;
mod parts;
mod retry;
mod segments;
mod small;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use futures_util::TryFutureExt;

pub use care::Unfinished;
pub use listing::Collect;
pub use small::Small;

use self::retry::Shared;
pub use super::answer::Part;
use super::body::MemoryBody;
pub use super::body::{MakeBody, Pulse};
use super::connection;
use super::connection::{Net, target};
use super::credentials::{self, CredentialSource, Profile};
use super::endpoint::{Address, Style, refuses_path_style};
use super::error::Place;
use super::request::{Op, Payload, Request};
use super::wire::{Settings, Wire};
use crate::config::{Addressing, Config, Credentials, Storage, host_of, hosts, is_backblaze, values};
use crate::error::{Cause, Error, Failure, Result};
use crate::model::ids::BlobId;
use crate::pace::Pace;
use crate::progress::Progress;

/// One bucket, with the team prefix applied to every key.
#[derive(Debug, Clone)]
pub struct Bucket {
    wire: Arc<Wire>,
    name: String,
    prefix: String,
    /// What looks wrong with the credentials, if anything.
    suspicion: Option<&'static str>,
    shared: Arc<Shared>,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Key, without the team prefix.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// ETag without quotes. On most stores, the MD5 of an object that was written by a single PUT.
    pub etag: Option<String>,
    /// When it was last modified, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// The condition of a conditional write. Several stores refuse conditions, and some accept but ignore them: they save work
/// where they are honoured, and correctness must not depend on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is no such object.
    Absent,
    /// The object has this ETag.
    Unchanged(String),
}

/// A response to a GET whose body is still to be read.
pub struct Download {
    body: ByteStream,
    pace: Pace,
    /// Size of the whole object in bytes, if the store sends it.
    pub object_size: Option<u64>,
    /// ETag, to make sure that later ranges belong to the same object.
    pub etag: Option<String>,
}

impl Download {
    /// Returns the next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Cause::Broken`] if the connection breaks or ends early, [`Cause::Stalled`] if too few bytes arrive in time.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let piece = self.body.try_next().map_err(|_| Failure::new(Cause::Broken, "the download ended early"));
        self.pace.next(piece).await
    }
}

impl Bucket {
    /// Prepares the client. It accesses the network only to find credentials in the AWS credential chain.
    ///
    /// # Errors
    /// [`Cause::Usage`] without a bucket, with half a credential pair or with unusable certificates,
    /// [`Cause::BadCredentials`] if no credentials are found.
    pub async fn connect(config: &Config, progress: Arc<dyn Progress>) -> Result<Bucket> {
        let storage = &config.storage;
        let name = storage.bucket()?.to_string();
        let profile = Profile::read().await;
        let endpoint = match (&storage.endpoint, &profile.endpoint) {
            (Some(endpoint), _) => Some(endpoint.clone()),
            (None, Some(endpoint)) => Some(profile_endpoint(endpoint, &name)?),
            (None, None) => None,
        };
        check_name(&name, endpoint.as_deref())?;
        // The rest of a profile applies only if the profile also provides the keys or the endpoint.
        let uses_profile = storage.endpoint.is_none() || storage.credentials == Credentials::AwsChain;
        let profile = if uses_profile { profile } else { Profile { region: profile.region, ..Profile::default() } };
        let profile_region = profile.region.map(|region| {
            let invalid = |why| Error::usage("the region of the AWS profile cannot be used").because(why);
            values::region(&region).map_err(invalid)
        });
        let region = match &storage.region {
            Some(region) => region.clone(),
            // The region in the endpoint's host takes precedence over the profile's region.
            None => match endpoint.as_deref().and_then(|url| hosts::region_of(&host_of(url))) {
                Some(region) => region,
                None => profile_region.transpose()?.unwrap_or_else(|| "us-east-1".to_string()),
            },
        };
        let mut network = config.network.clone();
        network.bundles.extend(profile.ca_bundle.map(|path| ("ca_bundle in the AWS profile".to_string(), path)));
        let is_tls = endpoint.as_deref().is_none_or(|endpoint| target(endpoint).2);
        let trusted = if is_tls { connection::trusted(&network)? } else { connection::Certificates::new() };
        let credentials = match storage.unsigned {
            true => CredentialSource::unsigned(),
            false => credentials::find(&storage.credentials, &region, &trusted).await?,
        };
        let addressing = match (storage.addressing, profile.addressing_style.as_deref()) {
            (Addressing::Auto, Some("path")) => Addressing::Path,
            (Addressing::Auto, Some("virtual")) => Addressing::Virtual,
            (addressing, _) => addressing,
        };
        let settings = settings(storage, addressing, endpoint.as_deref());
        let address = Address {
            bucket: name.clone(),
            style: style(addressing, endpoint.as_deref()),
            endpoint,
            region,
            dual_stack: storage.dual_stack,
            fips: storage.fips,
        };
        let net = Net::new(trusted, network.no_proxy);
        let wire = Arc::new(Wire::new(net, settings, credentials, address, progress)?);
        Ok(Bucket {
            wire,
            name,
            prefix: config.team.prefix.clone(),
            suspicion: storage.suspicion(),
            shared: Arc::default(),
        })
    }

    /// Returns the bucket's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the team prefix, which is empty or ends with a single `/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns where requests go, as shown in messages.
    pub fn place(&self) -> Place<'_> {
        let route = self.wire.route();
        Place { bucket: &self.name, url: route.shown(), region: route.address.region.clone() }
    }

    /// Converts a failure into an error for the user. `doing` says what failed, and on what.
    pub fn explain(&self, failure: Failure, doing: &str) -> Error {
        let has_bad_credentials = failure.cause == Cause::BadCredentials;
        let error = failure.into_error(doing, &self.place());
        match self.suspicion.filter(|_| has_bad_credentials) {
            Some(suspicion) => {
                error.hint(format!("{suspicion}; `hf-cache-sync config show` shows where they come from"))
            }
            None => error,
        }
    }

    /// Returns the error for a listing of the bucket that failed.
    pub fn explain_listing(&self, failure: Failure) -> Error {
        self.explain(failure, &format!("cannot list bucket '{}'", self.name))
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Opens an object for reading: all of it, or the bytes from `range.0` to `range.1` (exclusive).
    ///
    /// # Errors
    /// [`Cause::NoSuchKey`], [`Cause::Changed`] if the ETag is no longer the `expected` one, or any other failure.
    pub async fn get(&self, key: &str, range: Option<(u64, u64)>, expected: Option<&str>) -> Result<Download, Failure> {
        let full = self.key(key);
        let mut request = Request::new(Op::Read, &full);
        if let Some((from, to)) = range {
            request = request.header("range", format!("bytes={from}-{}", to - 1));
        }
        if let Some(etag) = expected {
            request = request.header("if-match", format!("\"{etag}\""));
        }
        let mut response = match self.retried(Op::Read, || self.wire.send(&request)).await {
            Err(failure) if failure.cause == Cause::Archived => return Err(self.add_class(&full, failure).await),
            result => result?,
        };
        let object_size = match (response.headers().get("content-range"), range) {
            (Some(text), Some((from, _))) if !starts_at(text, from) => {
                return Err(Failure::new(Cause::Other, "the store sent another range than the requested one"));
            }
            (Some(text), _) => text.rsplit('/').next().and_then(|size| size.parse().ok()),
            // A store that ignores the range sends the whole object, which must not be mistaken for the range.
            (None, Some((from, to))) if length(&response) != Some(to - from) || from != 0 => {
                return Err(Failure::new(Cause::Other, "the store does not honour ranges"));
            }
            (None, _) => length(&response),
        };
        let etag = etag(&response);
        let body = ByteStream::new(std::mem::replace(response.body_mut(), SdkBody::empty()));
        Ok(Download { body, pace: Pace::new(self.wire.timeout()), object_size, etag })
    }

    /// Adds the storage class of an archived object to a failure that does not name it.
    async fn add_class(&self, full: &str, mut failure: Failure) -> Failure {
        if !failure.detail.contains("storage class ")
            && let Ok(response) = self.wire.send(&Request::new(Op::Head, full)).await
            && let Some(class) = response.headers().get("x-amz-storage-class")
        {
            failure.detail.push_str(&format!(" (storage class {})", crate::error::printable(class, 40)));
        }
        failure
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn put_small(&self, key: &str, bytes: Bytes) -> Result<(), Failure> {
        let size = bytes.len() as u64;
        self.put(key, size, None, &|pulse| MemoryBody::sdk_body(&bytes, pulse)).await
    }

    /// Writes a small object under a condition, or unconditionally if the store does not support conditions. If it refuses a
    /// condition that holds, another form of it is tried: Ceph compares an ETag with its quotes.
    ///
    /// # Errors
    /// [`Cause::Changed`] if the condition does not hold. If a response was lost, this very write may be the reason, so
    /// read the object to find out.
    pub async fn put_small_if(&self, key: &str, bytes: Bytes, condition: &Condition) -> Result<(), Failure> {
        let size = bytes.len() as u64;
        let body = |pulse: &Pulse| MemoryBody::sdk_body(&bytes, pulse);
        let wants_bare = &self.shared.wants_bare_etags;
        let forms = match condition {
            Condition::Absent => vec![("if-none-match", "*".to_string())],
            Condition::Unchanged(etag) if wants_bare.load(Ordering::Relaxed) => vec![("if-match", etag.clone())],
            Condition::Unchanged(etag) => vec![("if-match", format!("\"{etag}\"")), ("if-match", etag.clone())],
        };
        for (refusals, header) in forms.into_iter().enumerate() {
            match self.put_with(key, size, None, Some(header), &body).await {
                Ok(()) => {
                    if refusals > 0 {
                        wants_bare.store(true, Ordering::Relaxed);
                    }
                    return Ok(());
                }
                Err(failure) if failure.cause == Cause::Unsupported => break,
                Err(failure) if failure.cause == Cause::Changed && self.holds(key, condition).await => {
                    tracing::debug!(key, "the store refused a condition that holds");
                }
                Err(failure) => return Err(failure),
            }
        }
        self.put(key, size, None, &body).await
    }

    /// Whether a condition certainly holds.
    async fn holds(&self, key: &str, condition: &Condition) -> bool {
        match (self.send_head(key).await, condition) {
            (Ok(response), Condition::Unchanged(expected)) => etag(&response).as_ref() == Some(expected),
            (Err(failure), Condition::Absent) => failure.cause == Cause::NoSuchKey,
            _ => false,
        }
    }

    /// Writes an object in one request. The name of a blob that is its sha256 becomes the signed payload hash, so that the
    /// store itself refuses any other content.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn put(&self, key: &str, size: u64, name: Option<&BlobId>, body: MakeBody<'_>) -> Result<(), Failure> {
        self.put_with(key, size, name, None, body).await
    }

    async fn put_with(
        &self,
        key: &str,
        size: u64,
        name: Option<&BlobId>,
        condition: Option<(&'static str, String)>,
        make: MakeBody<'_>,
    ) -> Result<(), Failure> {
        let full = self.key(key);
        let sha256 = name.filter(|name| matches!(name, BlobId::Sha256(_))).map(BlobId::to_string);
        let op = if condition.is_some() { Op::PutIf } else { Op::Put };
        let mut request = Request::new(op, &full).payload(Payload::Stream { size, sha256, make });
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        self.retried(op, || self.wire.send(&request)).await.map(|_| ())
    }

    /// Deletes an object. It is not an error if there is none.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn delete(&self, key: &str) -> Result<(), Failure> {
        let full = self.key(key);
        let request = Request::new(Op::Delete, &full);
        match self.retried(Op::Delete, || self.wire.send(&request)).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.cause == Cause::NoSuchKey => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn send_head(&self, key: &str) -> Result<HttpResponse, Failure> {
        let full = self.key(key);
        let request = Request::new(Op::Head, &full);
        self.retried(Op::Head, || self.wire.send(&request)).await
    }

    /// Returns the size of an object; `None` if there is none. If the store or the key's capabilities do not allow HEAD,
    /// a listing is used.
    ///
    /// # Errors
    /// If the request fails permanently.
    pub async fn head(&self, key: &str) -> Result<Option<u64>, Failure> {
        let failure = match self.send_head(key).await {
            Ok(response) => match length(&response) {
                Some(size) => return Ok(Some(size)),
                None => Failure::new(Cause::Other, "the store does not send the object's size"),
            },
            Err(failure) if failure.cause == Cause::NoSuchKey => return Ok(None),
            Err(failure) => failure,
        };
        if !matches!(failure.cause, Cause::Denied | Cause::Unsupported | Cause::Other) {
            return Err(failure);
        }
        let (page, _) = self.list_page(key, None, 1).await?;
        Ok(page.into_iter().find(|object| object.key == key).map(|object| object.size))
    }

    /// Checks that the bucket exists and that the credentials may access it. Returns how many seconds the store's clock is
    /// ahead of ours, if known.
    ///
    /// # Errors
    /// If they may not. A response to HEAD has no message, so one key is listed to get the store's reason.
    pub async fn head_bucket(&self) -> Result<Option<i64>, Failure> {
        let request = Request::new(Op::HeadBucket, "");
        if let Err(failure) = self.retried(Op::HeadBucket, || self.wire.send(&request)).await {
            // HEAD does not distinguish a missing bucket from a missing key.
            if failure.cause.is_transient() || failure.cause.is_final() {
                return Err(failure);
            }
            self.list_page("", None, 1).await?;
        }
        Ok(self.wire.clock_offset())
    }
}

/// Rejects a bucket's name that is too short for the store.
fn check_name(name: &str, endpoint: Option<&str>) -> Result<()> {
    let host = endpoint.map_or("s3.amazonaws.com".to_string(), host_of);
    let least = hosts::min_name_of(&host);
    if name.len() >= least {
        return Ok(());
    }
    let store = endpoint.map_or("AWS", |_| host.as_str());
    Err(Error::usage(format!("'{name}' cannot be the name of a bucket"))
        .because(format!("those of {store} have at least {least} characters"))
        .hint("check storage.bucket (B2_BUCKET or --bucket)"))
}

/// Validates the endpoint in an AWS profile like one in our configuration. The error does not quote it, since it may
/// contain a password.
fn profile_endpoint(endpoint: &str, bucket: &str) -> Result<String> {
    let invalid = |why: String| {
        Error::usage("the endpoint_url of the AWS profile cannot be used")
            .because(why)
            .hint("correct it in the AWS configuration, or set storage.endpoint")
    };
    let url = values::endpoint(endpoint.trim()).map_err(invalid)?;
    match hosts::split_bucket(&url, Some(bucket)) {
        Ok(Some((service, _))) => Ok(service),
        Ok(None) => Ok(url),
        Err(_) => Err(invalid(format!("it names a bucket other than '{bucket}', or a path below it"))),
    }
}

/// Returns the initial addressing style.
fn style(addressing: Addressing, endpoint: Option<&str>) -> Style {
    match (addressing, endpoint) {
        (Addressing::Path, _) => Style::Path,
        (Addressing::Virtual, _) | (Addressing::Auto, None) => Style::Virtual,
        (Addressing::Auto, Some(endpoint)) if refuses_path_style(&host_of(endpoint)) => Style::Virtual,
        (Addressing::Auto, Some(_)) => Style::Path,
    }
}

/// Returns what the configuration adds to requests. Settings become headers here and nowhere else.
fn settings(storage: &Storage, addressing: Addressing, endpoint: Option<&str>) -> Settings {
    let product = if endpoint.is_some_and(is_backblaze) { "b2ai-hfcache" } else { "hf-cache-sync" };
    let payer = storage.requester_pays.then(|| ("x-amz-request-payer", "requester".to_string()));
    let encryption = storage.encryption.as_ref();
    let key = encryption.and_then(|encryption| encryption.kms_key_id.clone());
    let creation_headers = [
        ("x-amz-server-side-encryption", encryption.map(|encryption| encryption.algorithm.clone())),
        ("x-amz-server-side-encryption-aws-kms-key-id", key),
        ("x-amz-storage-class", storage.storage_class.clone()),
    ];
    Settings {
        user_agent: format!("{product}/{}", env!("CARGO_PKG_VERSION")),
        common_headers: payer.into_iter().collect(),
        creation_headers: creation_headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        may_change_style: addressing == Addressing::Auto,
        checksums: storage.checksums,
        timeout: storage.timeout,
    }
}

/// Returns the length of a response's body according to its header.
fn length(response: &HttpResponse) -> Option<u64> {
    response.headers().get("content-length")?.trim().parse().ok()
}

fn etag(response: &HttpResponse) -> Option<String> {
    response.headers().get("etag").and_then(unquoted)
}

/// Whether a `Content-Range` starts at this byte. A header that cannot be parsed is accepted, since all content is
/// verified.
fn starts_at(text: &str, from: u64) -> bool {
    let first =
        text.trim().strip_prefix("bytes").and_then(|rest| rest.trim_start_matches([' ', '=']).split('-').next());
    first.and_then(|first| first.parse::<u64>().ok()).is_none_or(|first| first == from)
}

/// Removes the quotes from an ETag; `None` for a weak one. Proxies create weak ETags, which do not identify the exact bytes
/// and must not be used in conditions.
fn unquoted(etag: &str) -> Option<String> {
    (!etag.is_empty() && !etag.starts_with("W/")).then(|| etag.trim_matches('"').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_etags_are_ignored() {
        assert_eq!(unquoted("\"0a1b\"").as_deref(), Some("0a1b"));
        assert_eq!(unquoted("0a1b").as_deref(), Some("0a1b"));
        assert_eq!(unquoted("W/\"0a1b\""), None);
    }

    #[test]
    fn content_ranges_are_checked() {
        assert!(starts_at("bytes 5-9/10", 5) && starts_at("bytes */10", 5));
        assert!(!starts_at("bytes 0-9/10", 5));
    }
}
