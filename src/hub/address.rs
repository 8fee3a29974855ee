//! Decides where requests to the Hub may go, and which of them may carry the token. Pure.
//!
//! The token is sent only to the configured origin: scheme, host and port, compared as parsed URLs. A link to the Hub's
//! official address is followed at the configured endpoint, since mirrors pass on links that the Hub wrote.

use percent_encoding::{percent_decode_str, utf8_percent_encode};
use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};

use crate::config::Secret;
use crate::error::printable;
use crate::net::RESERVED;

/// The hosts of the Hub itself.
const OFFICIAL: [&str; 3] = ["huggingface.co", "www.huggingface.co", "hf.co"];

/// The Hub, or a mirror of it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Without user, password, query, fragment and trailing slash.
    base: Url,
    /// User and password from the URL, for mirrors that require them.
    pub login: Option<(String, Secret)>,
}

/// The target of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkTarget {
    /// The configured origin, which may receive the token.
    Home(Url),
    /// Another origin.
    External(Url),
}

impl Endpoint {
    /// Parses `HF_ENDPOINT`.
    ///
    /// # Errors
    /// If it is not a valid URL.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        let has_scheme = |scheme: &str| text.get(..scheme.len()).is_some_and(|it| it.eq_ignore_ascii_case(scheme));
        if !has_scheme("http://") && !has_scheme("https://") {
            let shown = text.rsplit('@').next().unwrap_or_default();
            return Err(format!("it is not a URL; did you mean https://{}?", printable(shown, 100)));
        }
        let mut base = Url::parse(text).map_err(|e| format!("it is not a URL: {e}"))?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = (!base.username().is_empty())
            .then(|| (decoded(base.username()), Secret::new(decoded(base.password().unwrap_or_default()))));
        strip_userinfo(&mut base);
        base.set_query(None);
        let path = base.path().trim_end_matches('/').to_string();
        base.set_path(&path);
        // The Hub's other hosts, and plain http, all redirect to its main address.
        if is_official(&base) {
            let _ = base.set_scheme("https");
            let _ = base.set_port(None);
            let _ = base.set_host(Some(OFFICIAL[0]));
        }
        Ok(Endpoint { base, login })
    }

    /// Returns the URL for display, without user and password.
    pub fn shown(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Returns the URL of an absolute path, which must already be escaped.
    ///
    /// # Errors
    /// If the path is not valid.
    pub fn url(&self, path: &str) -> Result<Url, String> {
        Url::parse(&format!("{}{path}", self.shown())).map_err(|e| e.to_string())
    }

    /// Returns whether the URL may receive the token.
    pub fn is_home(&self, url: &Url) -> bool {
        let origin =
            |url: &Url| (url.scheme().to_string(), url.host_str().map(String::from), url.port_or_known_default());
        matches!(url.scheme(), "http" | "https") && origin(&self.base) == origin(url)
    }

    /// Resolves a link from the response of `from`.
    ///
    /// # Errors
    /// If the link cannot be followed.
    pub fn follow(&self, from: &Url, link: &str) -> Result<LinkTarget, String> {
        let mut url = from.join(link.trim()).map_err(|e| format!("'{}' is not a URL: {e}", printable(link, 200)))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("'{}' is neither http nor https", printable(link, 200)));
        }
        strip_userinfo(&mut url);
        if self.is_home(&url) {
            return Ok(LinkTarget::Home(url));
        }
        let same_host = url.host_str() == self.base.host_str();
        let behind_tls = same_host
            && (url.scheme(), url.port()) == ("http", None)
            && (self.base.scheme(), self.base.port()) == ("https", None);
        if is_official(&url) || behind_tls {
            let below = match url.path().strip_prefix(self.base.path().trim_end_matches('/')) {
                Some(rest) if behind_tls && rest.starts_with('/') => rest,
                _ => url.path(),
            };
            let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
            return self.url(&format!("{below}{query}")).map(LinkTarget::Home);
        }
        Ok(LinkTarget::External(url))
    }
}

/// Removes user, password and fragment. Otherwise, the user would be sent as a login.
fn strip_userinfo(url: &mut Url) {
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
}

fn is_official(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    OFFICIAL.contains(&host)
        && matches!((url.scheme(), url.port_or_known_default()), ("https", Some(443)) | ("http", Some(80)))
}

/// Percent-encodes a text as one segment of a URL.
pub fn escape_segment(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Returns the link to the next page: the first one whose `rel` contains `next` (RFC 8288).
pub fn next_page(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok()).find_map(next_link)
}

fn next_link(value: &str) -> Option<String> {
    let mut rest = value;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, parameters) = after.split_once('>')?;
        // The parameters end at the first unquoted comma.
        let mut quoted = false;
        let end = parameters.find(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let (own, others) = parameters.split_at(end.unwrap_or(parameters.len()));
        let is_next = own.split(';').filter_map(|parameter| parameter.split_once('=')).any(|(name, words)| {
            let words = words.trim().trim_matches(['"', '\'']);
            name.trim().eq_ignore_ascii_case("rel")
                && words.split_whitespace().any(|word| word.eq_ignore_ascii_case("next"))
        });
        if is_next {
            return Some(target.to_string());
        }
        rest = others;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(endpoint: &str, link: &str) -> String {
        let endpoint = Endpoint::parse(endpoint).unwrap();
        let page = endpoint.url("/api/models/org/name/tree/main?recursive=true").unwrap();
        match endpoint.follow(&page, link) {
            Ok(LinkTarget::Home(url)) => format!("home {url}"),
            Ok(LinkTarget::External(url)) => format!("elsewhere {url}"),
            Err(_) => "nowhere".into(),
        }
    }

    #[test]
    fn only_the_configured_origin_is_home() {
        let hub = "http://127.0.0.1:8080";
        for (link, place) in [
            ("http://127.0.0.1:8080/x?c=1", "home http://127.0.0.1:8080/x?c=1"),
            ("/x", "home http://127.0.0.1:8080/x"),
            ("?cursor=2", "home http://127.0.0.1:8080/api/models/org/name/tree/main?cursor=2"),
            ("http://user:pw@127.0.0.1:8080/x", "home http://127.0.0.1:8080/x"),
            ("http://127.0.0.1:8080@evil.test/x", "elsewhere http://evil.test/x"),
            ("http://127.0.0.1:8080@127.0.0.1:9/x", "elsewhere http://127.0.0.1:9/x"),
            ("http://127.0.0.1:80800/x", "nowhere"),
            ("http://127.0.0.1:8081/x", "elsewhere http://127.0.0.1:8081/x"),
            ("http://127.0.0.1:8080.evil.test/x", "nowhere"),
            ("http://127.0.0.1/x", "elsewhere http://127.0.0.1/x"),
            ("https://127.0.0.1:8080/x", "elsewhere https://127.0.0.1:8080/x"),
            ("//evil.test/x", "elsewhere http://evil.test/x"),
            ("\\\\evil.test\\x", "elsewhere http://evil.test/x"),
            ("http:\\\\evil.test", "elsewhere http://evil.test/"),
            ("http://evil.test\\@127.0.0.1:8080/", "elsewhere http://evil.test/@127.0.0.1:8080/"),
            ("ftp://127.0.0.1:8080/x", "nowhere"),
            ("file:///etc/passwd", "nowhere"),
            ("javascript:x", "nowhere"),
            // Links to the Hub itself are followed at the mirror.
            (
                "https://huggingface.co/api/models/org/name/tree/main?cursor=a%3D",
                "home http://127.0.0.1:8080/api/models/org/name/tree/main?cursor=a%3D",
            ),
            ("https://HuggingFace.CO:443/x", "home http://127.0.0.1:8080/x"),
            ("http://hf.co/x", "home http://127.0.0.1:8080/x"),
            ("https://huggingface.co.evil.test/x", "elsewhere https://huggingface.co.evil.test/x"),
            ("https://huggingface.co:8443/x", "elsewhere https://huggingface.co:8443/x"),
            ("https://huggingface.co@evil.test/x", "elsewhere https://evil.test/x"),
        ] {
            assert_eq!(follow(hub, link), place, "{link}");
        }
        let official = "https://huggingface.co";
        for (link, place) in [
            ("https://huggingface.co:443/x", "home https://huggingface.co/x"),
            ("https://HUGGINGFACE.co/x", "home https://huggingface.co/x"),
            ("http://huggingface.co/x", "home https://huggingface.co/x"),
            ("https://cdn-lfs.hf.co/x", "elsewhere https://cdn-lfs.hf.co/x"),
            ("https://huggingface.co.evil.test/", "elsewhere https://huggingface.co.evil.test/"),
        ] {
            assert_eq!(follow(official, link), place, "{link}");
        }
        let below = "https://mirror.corp/hf/";
        assert_eq!(follow(below, "https://huggingface.co/api/x?a=1"), "home https://mirror.corp/hf/api/x?a=1");
        assert_eq!(follow(below, "http://mirror.corp/hf/api/x"), "home https://mirror.corp/hf/api/x");
        assert_eq!(follow(below, "http://mirror.corp:8080/x"), "elsewhere http://mirror.corp:8080/x");
        assert_eq!(follow(below, "/api/x"), "home https://mirror.corp/api/x");
    }

    #[test]
    fn endpoints_are_urls_and_never_show_their_login() {
        let endpoint = Endpoint::parse("HTTPS://me:p%40ss@Mirror.Corp:443/hf/?x#y").unwrap();
        assert_eq!(endpoint.shown(), "https://mirror.corp/hf");
        assert_eq!(endpoint.login, Some(("me".into(), Secret::new("p@ss".into()))));
        assert!(!format!("{endpoint:?}").contains("p@ss"));
        assert_eq!(endpoint.url("/api/x").unwrap().as_str(), "https://mirror.corp/hf/api/x");
        for text in ["http://huggingface.co", "https://hf.co/", "https://WWW.huggingface.co:443"] {
            assert_eq!(Endpoint::parse(text).unwrap().shown(), "https://huggingface.co");
        }
        for text in ["hf-mirror.com", "huggingface.co/", "ftp://x", "https://", "http://a b"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
        assert!(!Endpoint::parse("me:secret@mirror").unwrap_err().contains("secret"));
    }

    #[test]
    fn the_link_header_is_parsed_by_its_specification() {
        for (value, next) in [
            ("<https://x/a?c=1>; rel=\"next\"", Some("https://x/a?c=1")),
            ("<https://x/a,b>; rel=next", Some("https://x/a,b")),
            ("<https://x/p>; rel=\"prev\", <https://x/n>; title=\"a, b\"; REL=\"last NEXT\"", Some("https://x/n")),
            ("<https://x/p>; rel=\"prev\"; title=\"rel=next, <y>\"", None),
            ("</rel>; rel=\"nextish\"", None),
            ("</n>;rel='next'", Some("/n")),
            ("", None),
            ("<unfinished", None),
        ] {
            assert_eq!(next_link(value).as_deref(), next, "{value}");
        }
    }

    #[test]
    fn a_revision_is_one_segment() {
        assert_eq!(escape_segment("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escape_segment("v1.0_x-y~é"), "v1.0_x-y~%C3%A9");
    }
}
