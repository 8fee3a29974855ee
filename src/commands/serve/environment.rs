//! The variables that clients need. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

/// A variable and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// The report of `serve --env`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The variables.
    pub environment: Vec<Variable>,
}

impl Report {
    /// Returns the variables for clients of a server at this address.
    pub fn new(listen: SocketAddr) -> Report {
        Report { environment: variables(listen) }
    }
}

/// Returns the URL at which clients on this machine reach the server.
pub fn url(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

/// Returns whether a URL is that of a server at this address.
pub fn is_own(url: &str, listen: SocketAddr) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(0)),
        _ => (authority, 80),
    };
    let is_here = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip == listen.ip() || ((ip.is_loopback() || ip.is_unspecified()) && listens_on_loopback(listen.ip())),
        Err(_) => host.eq_ignore_ascii_case("localhost") && listens_on_loopback(listen.ip()),
    };
    is_here && port == listen.port()
}

fn listens_on_loopback(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// Returns the variables that clients need: the address of the server, Xet's own protocol turned off, which would bypass the
/// server, and no proxy for it.
pub fn variables(listen: SocketAddr) -> Vec<Variable> {
    let url = url(listen);
    let host = url.trim_start_matches("http://").rsplit_once(':').map_or("", |(host, _)| host);
    let host = host.trim_matches(['[', ']']).to_string();
    let no_proxy = match host.as_str() {
        "127.0.0.1" => "localhost,127.0.0.1".to_string(),
        _ => host,
    };
    vec![
        Variable { name: "HF_ENDPOINT", value: url },
        Variable { name: "HF_HUB_DISABLE_XET", value: "1".into() },
        Variable { name: "NO_PROXY", value: no_proxy },
    ]
}

/// Returns the value of `NO_PROXY` with these hosts added.
pub fn with_no_proxy(set: Option<&str>, added: &str) -> String {
    match set.map(str::trim).filter(|set| !set.is_empty()) {
        Some(set) => format!("{set},{added}"),
        None => added.to_string(),
    }
}

/// Returns the variables as commands for a POSIX shell.
pub fn shell_lines(variables: &[Variable]) -> String {
    let line = |variable: &Variable| match variable.name {
        "NO_PROXY" => format!("export NO_PROXY=\"${{NO_PROXY:+$NO_PROXY,}}{}\"\n", variable.value),
        name => format!("export {name}={}\n", variable.value),
    };
    variables.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_for_every_kind_of_address() {
        let of = |listen: &str| shell_lines(&variables(listen.parse().unwrap()));
        assert_eq!(
            of("127.0.0.1:8090"),
            "export HF_ENDPOINT=http://127.0.0.1:8090\nexport HF_HUB_DISABLE_XET=1\n\
             export NO_PROXY=\"${NO_PROXY:+$NO_PROXY,}localhost,127.0.0.1\"\n"
        );
        assert!(of("0.0.0.0:1").starts_with("export HF_ENDPOINT=http://127.0.0.1:1\n"));
        assert!(of("[::]:1").contains("http://[::1]:1\n") && of("[::1]:1").ends_with(",}::1\"\n"));
        assert!(of("10.1.2.3:1").ends_with(",}10.1.2.3\"\n"));
        let is_own = |url: &str| is_own(url, "127.0.0.1:8090".parse().unwrap());
        assert!(["http://127.0.0.1:8090", "http://localhost:8090/", "http://[::1]:8090/x"].into_iter().all(is_own));
        assert!(
            !["https://127.0.0.1:8090", "http://127.0.0.1", "http://10.0.0.1:8090", "http://127.0.0.1:80", ""]
                .into_iter()
                .any(is_own)
        );
        assert_eq!(with_no_proxy(Some("a.example"), "b"), "a.example,b");
        assert_eq!(with_no_proxy(Some(" "), "b"), "b");
    }
}
