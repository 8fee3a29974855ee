//! Shared by all HTTP clients of this tool: certificate bundles and proxy exceptions from the environment, and
//! explanations of failed TLS handshakes. Only [`Network::read_bundles`] does I/O.

pub(crate) mod log;

use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

use crate::error::{Error, Result, plain_io};

/// What is percent-encoded in a segment or a query value of a URL, and in what is signed: all but RFC 3986's unreserved
/// characters.
pub(crate) const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Variables that name a file (or folder) of certificates, as read by requests, curl, the AWS CLI and SDKs, OpenSSL and
/// httpx. The certificates are trusted in addition to the system's.
const BUNDLES: [&str; 4] = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"];

/// Maximum size of a certificate file, in bytes.
const MAX_BUNDLE: u64 = 16 << 20;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Network settings of this machine.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Certificate files, each with the variable or setting that names it.
    pub bundles: Vec<(String, PathBuf)>,
    /// Hosts that are reached without a proxy.
    pub no_proxy: NoProxy,
}

impl Network {
    /// Reads the environment. `var` returns a variable that is set and not empty; `path` expands a path.
    pub fn from_environment(var: impl Fn(&str) -> Option<String>, path: impl Fn(&str) -> PathBuf) -> Network {
        let value = |name: &str| var(name).map(|text| text.trim().to_string()).filter(|text| !text.is_empty());
        let mut bundles: Vec<(String, PathBuf)> = Vec::new();
        for name in BUNDLES {
            if let Some(found) = value(name).map(|text| path(&text))
                && bundles.iter().all(|(_, known)| *known != found)
            {
                bundles.push((name.to_string(), found));
            }
        }
        let no_proxy = value("NO_PROXY").or_else(|| value("no_proxy")).unwrap_or_default();
        Network { bundles, no_proxy: NoProxy::parse(&no_proxy) }
    }

    /// Reads the certificates of all bundles, each as PEM text.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`], naming the variable and the path, when a bundle cannot be read or has no certificate.
    pub fn read_bundles(&self) -> Result<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        for (name, path) in &self.bundles {
            let failed = |why: String| {
                Error::usage(format!("cannot use the certificates in {} (from {name})", path.display()))
                    .because(why)
                    .hint(format!("set {name} to a PEM file with your certificate authorities, or unset it"))
            };
            let meta = std::fs::metadata(path).map_err(|e| failed(plain_io(&e)))?;
            let mut files = vec![path.clone()];
            if meta.is_dir() {
                let entries = std::fs::read_dir(path).map_err(|e| failed(plain_io(&e)))?;
                files = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
                files.sort();
            } else if !meta.is_file() {
                return Err(failed("it is not a file".into()));
            }
            let before = all.len();
            for file in files {
                if std::fs::metadata(&file).is_ok_and(|meta| meta.len() > MAX_BUNDLE) {
                    return Err(failed(format!("it is larger than {} MiB", MAX_BUNDLE >> 20)));
                }
                let bytes = std::fs::read(&file).map_err(|e| failed(plain_io(&e)))?;
                all.extend(certificates(&String::from_utf8_lossy(&bytes)).map_err(failed)?);
            }
            if all.len() == before {
                return Err(failed(format!("it contains no {BEGIN}")));
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
    }
}

/// Extracts the certificates from a PEM text.
fn certificates(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let body = &rest[at + BEGIN.len()..];
        let end = body.find(END).ok_or("one of its certificates is truncated")?;
        let base64: String = body[..end].split_whitespace().collect();
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        if base64.len() < 64 || !base64.len().is_multiple_of(4) || !base64.bytes().all(is_base64) {
            return Err(format!("certificate {} in it is invalid", found.len() + 1));
        }
        let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        found.push(format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")));
        rest = &body[end + END.len()..];
    }
    Ok(found)
}

/// `NO_PROXY`: hosts, domains, addresses and networks, each with an optional port, separated by commas or spaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    /// In lowercase; `*` matches every host.
    host: String,
    port: Option<u16>,
}

impl NoProxy {
    /// Parses the list. Invalid entries match nothing.
    pub fn parse(text: &str) -> NoProxy {
        let entries = text.split([',', ';']).flat_map(str::split_whitespace);
        NoProxy(entries.map(Exception::parse).collect())
    }

    /// Whether this host and port are reached without the proxy.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let host = bare(host);
        self.0.iter().any(|entry| entry.port.is_none_or(|wanted| wanted == port) && entry.matches(&host))
    }
}

impl Exception {
    fn parse(text: &str) -> Exception {
        // Some people write a scheme or a path.
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let network = |text: &str| text.split_once('/').is_some_and(|(_, bits)| bits.parse::<u8>().is_ok());
        let text = if network(text) { text } else { text.split('/').next().unwrap_or_default() };
        let port = |text: &str| text.parse::<u16>().ok();
        let (host, port) = match (text.strip_prefix('['), text.rsplit_once(':')) {
            (Some(rest), _) => {
                let (host, after) = rest.split_once(']').unwrap_or((rest, ""));
                (host, after.strip_prefix(':').and_then(port))
            }
            (None, Some((host, digits))) if !host.contains(':') && port(digits).is_some() => (host, port(digits)),
            _ => (text, None),
        };
        Exception { host: bare(host), port }
    }

    fn matches(&self, host: &str) -> bool {
        if self.host == "*" || self.host == host {
            return true;
        }
        if let Ok(address) = host.parse::<std::net::IpAddr>() {
            return in_network(address, &self.host);
        }
        let domain = self.host.strip_prefix('*').unwrap_or(&self.host);
        let domain = domain.strip_prefix('.').unwrap_or(domain);
        !domain.is_empty() && (host == domain || host.strip_suffix(domain).is_some_and(|front| front.ends_with('.')))
    }
}

fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// Whether an address is in `address/bits`.
fn in_network(address: std::net::IpAddr, network: &str) -> bool {
    use std::net::IpAddr::{V4, V6};
    let (base, bits) = match network.split_once('/') {
        Some((base, bits)) => (base, bits.parse::<u32>().ok()),
        None => (network, Some(128)),
    };
    let (Ok(base), Some(bits)) = (base.parse(), bits) else { return false };
    match (address, base) {
        (V4(a), V4(b)) => {
            let shift = 32 - bits.min(32);
            u64::from(u32::from(a)) >> shift == u64::from(u32::from(b)) >> shift
        }
        (V6(a), V6(b)) => bits == 0 || u128::from(a) >> (128 - bits.min(128)) == u128::from(b) >> (128 - bits.min(128)),
        _ => false,
    }
}

/// The explanation of a failed TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsProblem {
    /// The problem, as a sentence about the server.
    pub why: &'static str,
    /// The remedy.
    pub hint: &'static str,
}

/// Explains a failed connection from its error and that error's sources; returns `None` if TLS is not the problem.
pub fn tls_problem(error: &(dyn std::error::Error + 'static)) -> Option<TlsProblem> {
    let mut text = String::new();
    let mut current = Some(error);
    while let Some(error) = current {
        text.push_str(&error.to_string().to_lowercase());
        text.push('\n');
        current = error.source();
    }
    tls_problem_in(&text)
}

/// Explains a failed connection from its lowercase error text. The phrases come from rustls, webpki and the systems'
/// verifiers.
fn tls_problem_in(text: &str) -> Option<TlsProblem> {
    let fits = |problem: &&(&[&str], TlsProblem)| problem.0.iter().any(|word| text.contains(word));
    PROBLEMS.iter().find(fits).map(|(_, problem)| problem.clone())
}

/// Returns the hint of the problem with this `why`.
#[cfg_attr(not(feature = "fallback"), allow(dead_code))]
pub fn tls_hint(why: &str) -> Option<&'static str> {
    PROBLEMS.iter().find(|(_, problem)| problem.why == why).map(|(_, problem)| problem.hint)
}

const TRUST: &str =
    "set SSL_CERT_FILE (or REQUESTS_CA_BUNDLE, AWS_CA_BUNDLE) to a PEM file with that authority's certificate";
const NOT_CA: &str = "create one without that flag (`openssl req -x509 … -addext basicConstraints=critical,CA:FALSE`), and set \
                      SSL_CERT_FILE to it";
const CLOCK: &str = "check this machine's clock; if it is right, the server needs a new certificate";
const NAME: &str =
    "use the host name that the certificate is for, or check what is answering there (a proxy or a captive portal?)";
const SERVER: &str = "check what is answering there (a proxy or a captive portal?), and the server's certificate";

const fn problem(why: &'static str, hint: &'static str) -> TlsProblem {
    TlsProblem { why, hint }
}

/// Phrases in error texts and what they mean; the first match wins.
const PROBLEMS: [(&[&str], TlsProblem); 11] = [
    (
        &["unknownissuer", "unknown issuer", "unable to get local issuer", "not trusted"],
        problem("its certificate is self-signed, or signed by an authority that this machine does not trust", TRUST),
    ),
    (
        &["causedasendentity"],
        problem("its certificate is self-signed and marked as an authority's (CA:TRUE) rather than a server's", NOT_CA),
    ),
    (&["self-signed", "self signed"], problem("its certificate is self-signed", TRUST)),
    (
        &["certificate expired", "certificate has expired", "certificate: expired", "expired("],
        problem("its certificate has expired", CLOCK),
    ),
    (&["not valid yet", "notvalidyet"], problem("its certificate is not valid yet", CLOCK)),
    (
        &["not valid for name", "notvalidforname", "certificate name mismatch"],
        problem("its certificate is for another host", NAME),
    ),
    (&["certificate: revoked", "certificate revoked"], problem("its certificate has been revoked", SERVER)),
    (
        &["certificaterequired", "certificate required"],
        problem("it requires a client certificate, which this tool does not support", SERVER),
    ),
    (
        &["invalid peer certificate", "invalid certificate", "unknownca", "bad certificate"],
        problem("its certificate cannot be verified", SERVER),
    ),
    (
        &["invalidcontenttype", "corrupt message", "wrong version number"],
        problem(
            "it does not speak TLS on this port",
            "use http:// in its URL if it speaks plain HTTP, or another port",
        ),
    ),
    (
        &["received fatal alert", "peer is incompatible", "peermisbehaved", "peer misbehaved"],
        problem("the TLS handshake failed", "the server must speak TLS 1.2 or 1.3"),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_can_be_domains_and_networks_with_ports() {
        for (list, host, port, direct) in [
            ("127.0.0.1:9000", "127.0.0.1", 9000, true),
            ("127.0.0.1:9000", "127.0.0.1", 9001, false),
            ("127.0.0.1", "127.0.0.1", 9001, true),
            ("hub.corp:443, x", "hub.corp", 443, true),
            ("hub.corp:443, x", "a.hub.corp", 443, true),
            ("hub.corp:443, x", "hub.corp", 80, false),
            (".corp:8080", "hub.corp", 8080, true),
            ("*.corp", "hub.corp", 1, true),
            ("corp", "notcorp", 1, false),
            ("Hub.Corp.", "hub.corp", 1, true),
            ("[::1]:9000", "[::1]", 9000, true),
            ("[::1]:9000", "[::1]", 9001, false),
            ("::1", "[::1]", 5, true),
            ("10.0.0.0/8", "10.1.2.3", 5, true),
            ("10.0.0.0/8", "11.1.2.3", 5, false),
            ("fd00::/8", "[fd12::1]", 5, true),
            ("*", "anything", 5, true),
            ("*:9000", "anything", 9000, true),
            ("a b\tc", "b", 5, true),
            ("http://hub.corp:80/", "hub.corp", 80, true),
            ("", "hub.corp", 80, false),
            (",,:", "hub.corp", 80, false),
            ("0.0.0.0/0", "1.2.3.4", 80, true),
        ] {
            assert_eq!(NoProxy::parse(list).covers(host, port), direct, "{list} {host}:{port}");
        }
    }

    #[test]
    fn bundles_are_read_and_a_bad_one_is_named() {
        let dir = std::env::temp_dir().join(format!("hf-cache-sync-net-{}", fastrand::u32(..)));
        std::fs::create_dir_all(dir.join("folder")).unwrap();
        let good = format!("# a comment\n{BEGIN}\n{}\n{END}\n", "A".repeat(128));
        for (name, text) in [
            ("good.pem", good.as_str()),
            ("folder/0.pem", &good),
            ("folder/README", "none"),
            ("empty.pem", ""),
            ("cut.pem", &good[..60]),
            ("der", "\u{1}\u{2}binary"),
            ("bad.pem", &good.replace("AAAA", "A*AA")),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let read = |name: &str| {
            let network = Network { bundles: vec![("SSL_CERT_FILE".into(), dir.join(name))], ..Network::default() };
            network.read_bundles().map_err(|error| error.to_string())
        };
        assert_eq!(read("good.pem").unwrap().len(), 1);
        assert_eq!(read("folder").unwrap().len(), 1);
        for name in ["empty.pem", "cut.pem", "der", "bad.pem", "missing.pem"] {
            let error = read(name).unwrap_err();
            assert!(error.contains("SSL_CERT_FILE") && error.contains(name), "{error}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_bundle_in_several_variables_is_read_once() {
        let vars = [("SSL_CERT_FILE", "/a.pem"), ("REQUESTS_CA_BUNDLE", " /a.pem "), ("AWS_CA_BUNDLE", "/b.pem")];
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, text)| text.to_string());
        let network = Network::from_environment(var, |text| PathBuf::from(text));
        let names: Vec<&str> = network.bundles.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"]);
    }

    #[test]
    fn certificate_errors_are_explained() {
        for (text, word) in [
            ("invalid peer certificate: UnknownIssuer", "self-signed"),
            ("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "self-signed"),
            ("invalid peer certificate: certificate expired: verification time 1 (UNIX)", "expired"),
            ("invalid peer certificate: certificate not valid yet: x", "not valid yet"),
            ("invalid peer certificate: certificate not valid for name \"a\"; x", "another host"),
            ("invalid peer certificate: BadSignature", "cannot be verified"),
            ("received corrupt message of type InvalidContentType", "does not speak TLS"),
        ] {
            let problem = tls_problem(&std::io::Error::other(text)).unwrap();
            assert!(problem.why.contains(word), "{text}: {problem:?}");
        }
        assert_eq!(tls_problem(&std::io::Error::other("connection refused")), None);
    }
}
