//! The fast path for blobs: a GET or PUT is signed and handed to the SDK's own connections, without the machinery that
//! the SDK sets up anew for every request. That machinery costs more than moving a small blob does.
//!
//! Connections, TLS, proxies, the endpoint and the signature are the SDK's. What is learned from its first listing is
//! where requests go. Only success is judged here: any other answer leaves the request to the SDK, which knows all
//! reasons why a store refuses one, so that nothing but speed depends on this path.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::primitives::SdkBody;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::{HttpClient, HttpConnector, HttpConnectorSettings, SharedHttpConnector};
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use super::error::{Cause, Failure};

/// sha256 of no bytes.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Credentials that end within this time are asked for anew,
const ENDING: Duration = Duration::from_secs(300);
/// but not more often than this: a provider may have none that last longer, and may have to start a process for them.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// The fast path to one bucket.
#[derive(Debug)]
pub(super) struct Wire {
    region: String,
    agent: String,
    provider: SharedCredentialsProvider,
    /// With the time when they were asked for.
    credentials: Mutex<Option<(Credentials, Instant)>>,
    connect_timeout: Duration,
    route: OnceLock<Route>,
    closed: AtomicBool,
}

/// Where requests go.
#[derive(Debug)]
struct Route {
    /// URL of the bucket, without a slash at its end.
    base: String,
    connector: SharedHttpConnector,
}

/// A request for an object.
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) key: &'a str,
    /// Empty, or beginning with `?`, as it stands in the URL.
    pub(super) query: &'a str,
    pub(super) headers: &'a [(&'static str, String)],
    pub(super) payload: Payload,
}

/// What a request signs as its content.
pub(super) enum Payload {
    /// There is none.
    Empty,
    /// Not signed.
    Unsigned,
    /// This sha256, in hexadecimal digits.
    Sha256(String),
}

impl Wire {
    pub(super) fn new(
        region: &str,
        agent: &str,
        provider: SharedCredentialsProvider,
        connect_timeout: Duration,
    ) -> Self {
        Wire {
            region: region.to_string(),
            agent: agent.to_string(),
            provider,
            credentials: Mutex::default(),
            connect_timeout,
            route: OnceLock::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Learns the way from a request of the SDK. Only a listing's URL is that of the bucket.
    pub(super) fn learn(&self, uri: &str, components: &RuntimeComponents) {
        let Some((base, query)) = uri.split_once('?') else { return };
        if self.route.get().is_some() || !query.contains("list-type=2") {
            return;
        }
        let Some(client) = components.http_client() else { return };
        // The same settings as the SDK's, so that both share their connections.
        let settings = HttpConnectorSettings::builder().connect_timeout(self.connect_timeout).build();
        let connector = client.http_connector(&settings, components);
        let _ = self.route.set(Route { base: base.trim_end_matches('/').to_string(), connector });
    }

    /// Sends a request. `None` when the SDK has to be asked: the way is not known, or the answer
    /// is one that the SDK understands better.
    ///
    /// # Errors
    /// [`Cause::Busy`] when the store pushes back, [`Cause::Broken`] when the connection breaks.
    pub(super) async fn send(
        &self,
        request: Request<'_>,
        body: impl FnOnce() -> SdkBody,
    ) -> Result<Option<HttpResponse>, Failure> {
        let Some((route, request)) = self.signed(request, body).await else {
            return Ok(None);
        };
        let broken = |_| Failure::new(Cause::Broken, "the connection broke");
        let response = route.connector.call(request).await.map_err(broken)?;
        match response.status().as_u16() {
            200 | 206 => Ok(Some(response)),
            501 => Ok(None),
            408 | 429 | 500..=599 => Err(Failure::from_answer(&response)),
            // Refused: the SDK finds out why, and everything goes its way from now on.
            301 | 307 | 400 | 401 | 403 => {
                self.closed.store(true, Ordering::Relaxed);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The signed request and where it goes.
    async fn signed(&self, request: Request<'_>, body: impl FnOnce() -> SdkBody) -> Option<(&Route, HttpRequest)> {
        let Request { method, key, query, headers, payload } = request;
        let is_open = !self.closed.load(Ordering::Relaxed);
        let route = self.route.get().filter(|_| is_open && key.split('/').all(is_plain))?;
        let uri = format!("{}/{key}{query}", route.base);
        let credentials = self.credentials().await?;
        let identity: Identity = credentials.into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .ok()?
            .into();
        let content = match payload {
            Payload::Empty => SignableBody::Precomputed(EMPTY.to_string()),
            Payload::Unsigned => SignableBody::UnsignedPayload,
            Payload::Sha256(hash) => SignableBody::Precomputed(hash),
        };
        let signable = headers.iter().map(|(name, value)| (*name, value.as_str()));
        let signable = SignableRequest::new(method, uri.as_str(), signable, content).ok()?;
        let (signature, _) = sign(signable, &params).ok()?.into_parts();
        let (signature, _) = signature.into_parts();
        let mut request = HttpRequest::new(body());
        request.set_method(method).ok()?;
        request.set_uri(uri).ok()?;
        for (name, value) in headers {
            request.headers_mut().try_insert(*name, value.clone()).ok()?;
        }
        for header in signature {
            request.headers_mut().try_insert(header.name(), header.value().to_string()).ok()?;
        }
        request.headers_mut().try_insert("user-agent", self.agent.clone()).ok()?;
        Some((route, request))
    }

    async fn credentials(&self) -> Option<Credentials> {
        let lasts = |(credentials, asked): &(Credentials, Instant)| {
            let left = credentials.expiry().map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
            left.is_none_or(|left| left > ENDING || (!left.is_zero() && asked.elapsed() < ASK_AGAIN))
        };
        let known = self.credentials.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some((known, _)) = known.filter(lasts) {
            return Some(known);
        }
        let fresh = self.provider.provide_credentials().await.ok()?;
        *self.credentials.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
            Some((fresh.clone(), Instant::now()));
        Some(fresh)
    }
}

/// Whether a name needs no encoding in a URL, as blobs under any sensible prefix and the ids of most uploads.
pub(super) fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}
