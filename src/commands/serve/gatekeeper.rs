//! Who may ask. Pure.
//!
//! On a loopback address without a token, the host that a request names must be this machine's, so that no web page can
//! reach the server through a name that resolves to it (DNS rebinding). With a token, that is what counts.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap};

/// Decides who may ask.
#[derive(Debug, Clone)]
pub struct Gatekeeper {
    token: Option<Vec<u8>>,
    listen: IpAddr,
}

/// Whether a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Welcome,
    /// It names a host that is not this server.
    WrongHost,
    /// It lacks the token.
    NoToken,
}

impl Gatekeeper {
    /// Wants this token, if there is one, or else a host of this machine.
    pub fn new(token: Option<String>, listen: SocketAddr) -> Gatekeeper {
        Gatekeeper { token: token.map(String::into_bytes), listen: listen.ip() }
    }

    /// Judges a request. Whether the server is up may be known to everybody.
    pub fn judge(&self, headers: &HeaderMap, path: &str) -> Verdict {
        match &self.token {
            Some(_) if path == "/healthz" => Verdict::Welcome,
            Some(token) => match given_token(headers) {
                Some(given) if is_equal(&given, token) => Verdict::Welcome,
                _ => Verdict::NoToken,
            },
            None if self.is_host(headers) => Verdict::Welcome,
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

/// Returns the token of a request: a bearer token, as clients of the Hub send it, or the password that a browser asks for.
fn given_token(headers: &HeaderMap) -> Option<Vec<u8>> {
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

/// Compares in a time that depends only on the length of what was given.
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

    fn judge(token: Option<&str>, listen: &str, headers: &[(header::HeaderName, &str)]) -> Verdict {
        let keeper = Gatekeeper::new(token.map(String::from), listen.parse().unwrap());
        let mut map = HeaderMap::new();
        for (name, text) in headers {
            map.append(name, text.parse().unwrap());
        }
        keeper.judge(&map, "/api/models/x")
    }

    #[test]
    fn only_the_names_of_this_machine_are_hosts() {
        for host in ["localhost", "LOCALHOST:8090", "127.0.0.1:8090", "127.0.0.2", "[::1]:8090", "localhost.:80"] {
            assert_eq!(judge(None, "127.0.0.1:8090", &[(header::HOST, host)]), Verdict::Welcome, "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:8090", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil", "[::2]"]
        {
            assert_eq!(judge(None, "127.0.0.1:8090", &[(header::HOST, host)]), Verdict::WrongHost, "{host}");
        }
        assert_eq!(judge(None, "127.0.0.1:8090", &[]), Verdict::WrongHost);
        let twice = [(header::HOST, "localhost"), (header::HOST, "evil.example")];
        assert_eq!(judge(None, "127.0.0.1:8090", &twice), Verdict::WrongHost);
    }

    #[test]
    fn the_token_comes_as_a_bearer_or_as_a_password() {
        let with = |value: &str| judge(Some("secret"), "0.0.0.0:8090", &[(header::AUTHORIZATION, value)]);
        assert_eq!(with("Bearer secret"), Verdict::Welcome);
        assert_eq!(with("bearer secret"), Verdict::Welcome);
        // user:secret
        assert_eq!(with("Basic dXNlcjpzZWNyZXQ="), Verdict::Welcome);
        for value in ["Bearer secre", "Bearer secrets", "Bearer secretsecret", "Bearer ", "Basic secret", "secret", ""]
        {
            assert_eq!(with(value), Verdict::NoToken, "{value}");
        }
        assert_eq!(judge(Some("secret"), "0.0.0.0:1", &[(header::HOST, "localhost")]), Verdict::NoToken);
    }
}
