//! What all HTTP clients of this tool share: certificate bundles and exceptions from the proxy, as the environment names
//! them, and what a failed TLS handshake means. Only [`Network::read_bundles`] does I/O.

pub(crate) mod log;

use std::path::PathBuf;

use crate::error::{Error, Result, plain_io};

/// Variables that name a file (or a folder) of certificates, each as one of the tools around this one reads it:
/// requests, curl, the AWS CLI and SDKs, OpenSSL and httpx. They add to what the system trusts.
const BUNDLES: [&str; 4] = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"];

/// Largest file of certificates that is read, in bytes.
const MAX_BUNDLE: u64 = 16 << 20;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// How this machine reaches others.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Files of certificates, with the variable or the setting that names each.
    pub bundles: Vec<(String, PathBuf)>,
    /// Hosts that are reached without a proxy.
    pub no_proxy: NoProxy,
}

impl Network {
    /// Reads the environment: `var` gives the value of a variable that is set and not empty, `path` expands one.
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

    /// The certificates of all bundles, each as PEM text.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] names the variable and the path when one cannot be read or has no certificate.
    pub fn read_bundles(&self) -> Result<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        for (name, path) in &self.bundles {
            let failed = |why: String| {
                Error::usage(format!("cannot use the certificates that {name} names, {}", path.display()))
                    .because(why)
                    .hint(format!("let {name} name a PEM file with the certificates of your authorities, or unset it"))
            };
            let meta = std::fs::metadata(path).map_err(|e| failed(plain_io(&e)))?;
            let mut files = vec![path.clone()];
            if meta.is_dir() {
                let entries = std::fs::read_dir(path).map_err(|e| failed(plain_io(&e)))?;
                files = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
                files.sort();
            } else if !meta.is_file() {
                return Err(failed("it is no file".into()));
            }
            let before = all.len();
            for file in files {
                if std::fs::metadata(&file).is_ok_and(|meta| meta.len() > MAX_BUNDLE) {
                    return Err(failed(format!("it has more than {} MiB", MAX_BUNDLE >> 20)));
                }
                let bytes = std::fs::read(&file).map_err(|e| failed(plain_io(&e)))?;
                all.extend(certificates(&String::from_utf8_lossy(&bytes)).map_err(failed)?);
            }
            if all.len() == before {
                return Err(failed(format!("it has no {BEGIN}")));
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
    }
}

/// The certificates in a PEM text.
fn certificates(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let body = &rest[at + BEGIN.len()..];
        let end = body.find(END).ok_or("one of its certificates ends in the middle")?;
        let base64: String = body[..end].split_whitespace().collect();
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        if base64.len() < 64 || !base64.len().is_multiple_of(4) || !base64.bytes().all(fine) {
            return Err(format!("certificate {} in it is not valid", found.len() + 1));
        }
        let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        found.push(format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")));
        rest = &body[end + END.len()..];
    }
    Ok(found)
}

/// `NO_PROXY`: hosts, domains, addresses and networks, each with or without a port, between commas or spaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    /// Lower case; `*` is every host.
    host: String,
    port: Option<u16>,
}

impl NoProxy {
    /// Reads the list. What cannot be meant matches nothing.
    pub fn parse(text: &str) -> NoProxy {
        let entries = text.split([',', ';']).flat_map(str::split_whitespace);
        NoProxy(entries.map(Exception::parse).collect())
    }

    /// Whether this host and port are reached directly.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let host = bare(host);
        self.0.iter().any(|entry| entry.port.is_none_or(|wanted| wanted == port) && entry.fits(&host))
    }
}

impl Exception {
    fn parse(text: &str) -> Exception {
        // As some write it: with a scheme, or a path.
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

    fn fits(&self, host: &str) -> bool {
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

/// A failed TLS handshake in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsProblem {
    /// What is wrong, as a sentence about the server.
    pub why: &'static str,
    /// What helps.
    pub hint: &'static str,
}

/// Reads the error of a failed connection and its sources; `None` when TLS is not the problem.
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

/// The same by the error's text in lower case. The words are those of rustls, webpki and the systems' verifiers.
fn tls_problem_in(text: &str) -> Option<TlsProblem> {
    let fits = |problem: &&(&[&str], TlsProblem)| problem.0.iter().any(|word| text.contains(word));
    PROBLEMS.iter().find(fits).map(|(_, problem)| problem.clone())
}

/// What helps against a problem that is named by its `why`.
#[cfg_attr(not(feature = "fallback"), allow(dead_code))]
pub fn tls_hint(why: &str) -> Option<&'static str> {
    PROBLEMS.iter().find(|(_, problem)| problem.why == why).map(|(_, problem)| problem.hint)
}

const TRUST: &str =
    "let SSL_CERT_FILE (or REQUESTS_CA_BUNDLE, AWS_CA_BUNDLE) name a PEM file with that authority's certificate";
const NOT_CA: &str = "make one without that mark (`openssl req -x509 … -addext basicConstraints=critical,CA:FALSE`), and let \
                      SSL_CERT_FILE name it";
const CLOCK: &str = "check this machine's clock; if it is right, the server needs a new certificate";
const NAME: &str = "use the host name that the certificate is for, or check what answers there (a proxy, a portal?)";
const SERVER: &str = "check what answers there (a proxy, a portal?), and the server's certificate";

const fn problem(why: &'static str, hint: &'static str) -> TlsProblem {
    TlsProblem { why, hint }
}

/// Words of an error, and what they mean; the first that fits counts.
const PROBLEMS: [(&[&str], TlsProblem); 11] = [
    (
        &["unknownissuer", "unknown issuer", "unable to get local issuer", "not trusted"],
        problem("its certificate is self-signed, or signed by an authority that this machine does not trust", TRUST),
    ),
    (
        &["causedasendentity"],
        problem("its certificate is self-signed and marked as an authority's (CA:TRUE), not as a server's", NOT_CA),
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
    (&["certificate: revoked", "certificate revoked"], problem("its certificate was revoked", SERVER)),
    (
        &["certificaterequired", "certificate required"],
        problem("it asks for a certificate of the client, which this tool cannot send", SERVER),
    ),
    (
        &["invalid peer certificate", "invalid certificate", "unknownca", "bad certificate"],
        problem("its certificate cannot be verified", SERVER),
    ),
    (
        &["invalidcontenttype", "corrupt message", "wrong version number"],
        problem(
            "it does not speak TLS on this port",
            "use http:// in its URL, if that is what it speaks, or another port",
        ),
    ),
    (
        &["received fatal alert", "peer is incompatible", "peermisbehaved", "peer misbehaved"],
        problem("no TLS connection could be agreed on", "the server must speak TLS 1.2 or 1.3"),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_have_ports_domains_and_networks() {
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
    fn variables_name_bundles_once() {
        let vars = [("SSL_CERT_FILE", "/a.pem"), ("REQUESTS_CA_BUNDLE", " /a.pem "), ("AWS_CA_BUNDLE", "/b.pem")];
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, text)| text.to_string());
        let network = Network::from_environment(var, |text| PathBuf::from(text));
        let names: Vec<&str> = network.bundles.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"]);
    }

    #[test]
    fn certificate_errors_are_told_apart() {
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
