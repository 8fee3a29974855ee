//! Connections to the store: TLS with the trusted certificates, proxies and their exceptions, and why a connection failed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings, SharedHttpClient};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;

use crate::error::{Cause, Failure, Result, printable};
use crate::net::{NoProxy, tls_problem};

/// Time limit for finding out whether a server uses TLS.
const PROBE: Duration = Duration::from_secs(3);
const SPEAKS_HTTP: &str = "the server there uses plain HTTP";
/// Connect timeout.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// Trusted certificates in addition to the system's, each in PEM.
pub(super) type Certificates = Vec<String>;

/// Reads the certificates in the bundles, leaving out those that TLS cannot use.
///
/// # Errors
/// [`Cause::Usage`] if a bundle cannot be read, or has no certificates.
pub(super) fn trusted(network: &crate::net::Network) -> Result<Certificates> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut all = network.read_bundles()?;
    all.retain(|text| {
        let certificate = CertificateDer::from_pem_slice(text.as_bytes());
        certificate.is_ok_and(|certificate| rustls::RootCertStore::empty().add(certificate).is_ok())
    });
    Ok(all)
}

/// Sends requests, through a proxy or directly.
#[derive(Debug)]
pub(super) struct Net {
    /// Uses the proxy, if there is one.
    default: Connector,
    /// Bypasses the proxy; created on demand.
    direct: OnceLock<Connector>,
    trusted: Certificates,
    no_proxy: NoProxy,
    has_proxy: bool,
    has_answered: AtomicBool,
}

impl Net {
    pub(super) fn new(trusted: Certificates, no_proxy: NoProxy) -> Net {
        let default = connector(&trusted, ProxyConfig::from_env(), CONNECT, None);
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let has_proxy =
            ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].iter().any(is_set);
        Net { default, direct: OnceLock::new(), trusted, no_proxy, has_proxy, has_answered: AtomicBool::new(false) }
    }

    fn direct(&self) -> &Connector {
        self.direct.get_or_init(|| connector(&self.trusted, ProxyConfig::disabled(), CONNECT, None))
    }

    /// Sends a request. Returns the status and headers, with the body still to be read.
    pub(super) async fn call(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        let (host, port, tls) = target(request.uri());
        let (host, is_direct) = (host.to_string(), self.has_proxy && self.no_proxy.covers(host, port));
        let connector = if is_direct { self.direct() } else { &self.default };
        let error = match connector.call(request).await {
            Ok(response) => {
                self.has_answered.store(true, Ordering::Relaxed);
                return Ok(response);
            }
            Err(error) => error,
        };
        let failure = failure(&error, tls);
        if failure.cause == Cause::Tls && (self.has_answered.load(Ordering::Relaxed) || speaks_http(&host, port).await)
        {
            return Err(Failure::new(Cause::Broken, "the response is damaged"));
        }
        let may_be_protocol = matches!(failure.cause, Cause::Unreachable | Cause::Broken) && !error.is_timeout();
        if self.has_answered.load(Ordering::Relaxed)
            || !may_be_protocol
            || reasons(&error).join(" ").to_lowercase().contains("refused")
        {
            return Err(failure);
        }
        // Some servers just close the connection on the wrong protocol, so find out which one they use.
        if tls && speaks_http(&host, port).await {
            return Err(Failure::new(Cause::NoTls, SPEAKS_HTTP));
        }
        if !tls && self.speaks_tls(&host, port).await {
            return Err(Failure::new(Cause::Tls, "the server there uses TLS"));
        }
        Err(failure)
    }

    async fn speaks_tls(&self, host: &str, port: u16) -> bool {
        let mut request = HttpRequest::empty();
        if request.set_uri(format!("https://{host}:{port}/")).is_err() {
            return false;
        }
        match tokio::time::timeout(PROBE, self.direct().call(request)).await {
            Ok(Err(error)) => failure(&error, true).cause == Cause::Certificate,
            answered => answered.is_ok(),
        }
    }
}

/// Whether the server responds to a plain HTTP request.
async fn speaks_http(host: &str, port: u16) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let probe = async {
        let mut socket = tokio::net::TcpStream::connect((host.trim_matches(['[', ']']), port)).await.ok()?;
        socket.write_all(format!("HEAD / HTTP/1.0\r\nhost: {host}:{port}\r\n\r\n").as_bytes()).await.ok()?;
        let mut start = [0; 5];
        socket.read_exact(&mut start).await.ok()?;
        Some(start)
    };
    matches!(tokio::time::timeout(PROBE, probe).await, Ok(Some(start)) if start == *b"HTTP/")
}

/// Returns the client for the AWS credential providers.
pub(super) fn http_client(trusted: Certificates, proxy: ProxyConfig) -> SharedHttpClient {
    let connectors = move |settings: Option<&HttpConnectorSettings>, _: Option<&_>| {
        let connect = settings.and_then(HttpConnectorSettings::connect_timeout).unwrap_or(CONNECT);
        let read = settings.and_then(HttpConnectorSettings::read_timeout);
        connector(&trusted, proxy.clone(), connect, read)
    };
    Builder::new().build_with_connector_fn(connectors)
}

fn connector(trusted: &Certificates, proxy: ProxyConfig, connect: Duration, read: Option<Duration>) -> Connector {
    let mut store = TrustStore::default();
    for certificate in trusted {
        store.add_pem_certificate(certificate.as_bytes());
    }
    let mut settings = HttpConnectorSettings::builder().connect_timeout(connect);
    if let Some(read) = read {
        settings = settings.read_timeout(read);
    }
    let context = TlsContext::builder().with_trust_store(store).build().expect("a trust store is enough");
    Connector::builder()
        .sleep_impl(TokioSleep::new())
        .connector_settings(settings.build())
        .proxy_config(proxy)
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .build()
}

/// Splits a URL into host, port, and whether it uses TLS.
pub(super) fn target(url: &str) -> (&str, u16, bool) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let tls = scheme.eq_ignore_ascii_case("https");
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let default_port = if tls { 443 } else { 80 };
    match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => (host, port.parse().unwrap_or(default_port), tls),
        None => (authority, default_port, tls),
    }
}

/// Returns why a request got no response.
fn failure(error: &ConnectorError, tls: bool) -> Failure {
    let reasons = reasons(error);
    let all = reasons.join(": ").to_ascii_lowercase();
    let last = reasons.last().map(String::as_str).unwrap_or_default();
    let cause = if tls && is_not_tls(&all) {
        return Failure::new(Cause::NoTls, SPEAKS_HTTP);
    } else if let Some(problem) = tls_problem(error) {
        return Failure::new(Cause::Certificate, problem.why).hint(problem.hint);
    } else if !tls && (all.contains("invalid http version") || all.contains("invalid http status-line")) {
        return Failure::new(Cause::Tls, "the server there does not use plain HTTP");
    } else if all.contains("proxy authorization required") {
        return Failure::new(Cause::ProxyRefused, "the proxy requires a user name and a password");
    } else if error.is_timeout() {
        Cause::Broken
    } else if error.is_io() || all.contains("connect") && !all.contains("connection closed") {
        Cause::Unreachable
    } else {
        Cause::Broken
    };
    Failure::new(cause, printable(without_os_code(last), 200))
}

/// Returns the messages of a chain of errors, outermost first.
fn reasons(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut found = Vec::new();
    let mut current = Some(error);
    while let Some(error) = current {
        found.push(error.to_string());
        current = error.source();
    }
    found
}

fn without_os_code(text: &str) -> &str {
    &text[..text.find(" (os error").unwrap_or(text.len())]
}

/// Whether an error says that the server does not use TLS.
fn is_not_tls(text: &str) -> bool {
    ["invalidcontenttype", "corrupt message", "wrong version number"].iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_host_and_port() {
        assert_eq!(target("https://a.b/c:1"), ("a.b", 443, true));
        assert_eq!(target("http://[::1]:9000/x"), ("[::1]", 9000, false));
        assert_eq!(target("http://[::1]"), ("[::1]", 80, false));
        assert_eq!(target("HTTP://h:81?q"), ("h", 81, false));
    }
}
