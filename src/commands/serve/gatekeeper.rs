//! Decides which requests are allowed. Pure.
//!
//! On a loopback address without a token, the `Host` of a request must be this machine, so that no web page can reach the
//! server through a name that resolves to it (DNS rebinding). With a token, only the token is checked.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap};

/// Decides which requests are allowed.
#[derive(Debug, Clone)]
pub struct Gatekeeper {
    token: Option<Vec<u8>>,
    listen: IpAddr,
}

/// Whether a request is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The request is allowed.
    Allowed,
    /// It names a host that is not this server.
    WrongHost,
    /// It lacks the token.
    NoToken,
}

impl Gatekeeper {
    /// Requires this token, or, without one, a host name of this machine.
    pub fn new(token: Option<String>, listen: SocketAddr) -> Gatekeeper {
        Gatekeeper { token: token.map(String::into_bytes), listen: listen.ip() }
    }

    /// Checks a request. The health check is open to everyone.
    pub fn check(&self, headers: &HeaderMap, path: &str) -> Verdict {
        match &self.token {
            Some(_) if path == "/healthz" => Verdict::Allowed,
            Some(token) => match token_of(headers) {
                Some(given) if is_equal(&given, token) => Verdict::Allowed,
                _ => Verdict::NoToken,
            },
            None if self.is_host(headers) => Verdict::Allowed,
            None => Verdict::WrongHost,
        }
    }

    fn is_host(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let host = host.to_str().unwrap_or_default();
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        match name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || address == self.listen,
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// Returns the token of a request: a bearer token, as Hub clients send it, or a password that was entered in a browser.
fn token_of(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().as_bytes().to_vec()),
        "basic" => {
            let decoded = aws_smithy_types::base64::decode(rest.trim()).ok()?;
            let colon = decoded.iter().position(|byte| *byte == b':')?;
            Some(decoded[colon + 1..].to_vec())
        }
        _ => None,
    }
}

/// Compares in a time that depends only on the length of `given`.
fn is_equal(given: &[u8], token: &[u8]) -> bool {
    let mut difference = u8::from(given.len() != token.len());
    for (at, byte) in given.iter().enumerate() {
        difference |= byte ^ token[at % token.len()];
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(token: Option<&str>, listen: &str, headers: &[(header::HeaderName, &str)]) -> Verdict {
        let keeper = Gatekeeper::new(token.map(String::from), listen.parse().unwrap());
        let mut map = HeaderMap::new();
        for (name, text) in headers {
            map.append(name, text.parse().unwrap());
        }
        keeper.check(&map, "/api/models/x")
    }

    #[test]
    fn allows_only_the_host_names_of_this_machine() {
        for host in ["localhost", "LOCALHOST:8090", "127.0.0.1:8090", "127.0.0.2", "[::1]:8090", "localhost.:80"] {
            assert_eq!(check(None, "127.0.0.1:8090", &[(header::HOST, host)]), Verdict::Allowed, "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:8090", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil", "[::2]"]
        {
            assert_eq!(check(None, "127.0.0.1:8090", &[(header::HOST, host)]), Verdict::WrongHost, "{host}");
        }
        assert_eq!(check(None, "127.0.0.1:8090", &[]), Verdict::WrongHost);
        let twice = [(header::HOST, "localhost"), (header::HOST, "evil.example")];
        assert_eq!(check(None, "127.0.0.1:8090", &twice), Verdict::WrongHost);
    }

    #[test]
    fn accepts_a_bearer_token_or_a_password() {
        let with = |value: &str| check(Some("secret"), "0.0.0.0:8090", &[(header::AUTHORIZATION, value)]);
        assert_eq!(with("Bearer secret"), Verdict::Allowed);
        assert_eq!(with("bearer secret"), Verdict::Allowed);
        // user:secret
        assert_eq!(with("Basic dXNlcjpzZWNyZXQ="), Verdict::Allowed);
        for value in ["Bearer secre", "Bearer secrets", "Bearer secretsecret", "Bearer ", "Basic secret", "secret", ""]
        {
            assert_eq!(with(value), Verdict::NoToken, "{value}");
        }
        assert_eq!(check(Some("secret"), "0.0.0.0:1", &[(header::HOST, "localhost")]), Verdict::NoToken);
    }
}
