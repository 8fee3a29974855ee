//! The target of requests for a bucket: its URL and the region to sign for, and how both change after a redirect. No I/O.

use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::answer::Refusal;
use super::connection::target;
use crate::error::{Error, Result};
use crate::net::RESERVED;

/// The place of the bucket's name in a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// In the path.
    Path,
    /// In the host.
    Virtual,
}

/// Host suffixes of providers that, according to their documentation, refuse path style at least for new buckets: Alibaba
/// OSS, Tencent COS, Volcengine TOS, Tigris.
const NO_PATH_STYLE: [&str; 5] =
    [".aliyuncs.com", ".myqcloud.com", ".volces.com", ".storage.tigris.dev", ".storage.dev"];

/// Whether the store at this host is known to refuse path style.
pub(super) fn refuses_path_style(host: &str) -> bool {
    NO_PATH_STYLE.iter().any(|end| host.ends_with(end))
}

/// The address of a bucket, from which its URL is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) bucket: String,
    /// URL without a trailing slash; `None` for AWS's own endpoint.
    pub(super) endpoint: Option<String>,
    pub(super) region: String,
    pub(super) style: Style,
    /// Use AWS's endpoints that also support IPv6.
    pub(super) dual_stack: bool,
    /// Use AWS's FIPS 140 endpoints.
    pub(super) fips: bool,
}

/// An address with the URL built from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) address: Address,
    /// URL of the bucket, without a trailing slash.
    pub(super) base: String,
}

impl Address {
    /// Builds the route to this address.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] if AWS has no such endpoint.
    pub(super) fn into_route(self) -> Result<Route> {
        let base = match &self.endpoint {
            None => self.aws_url()?,
            Some(endpoint) if self.style == Style::Path => format!("{endpoint}/{}", self.bucket),
            Some(endpoint) => match endpoint.split_once("://") {
                Some((scheme, rest)) => format!("{scheme}://{}.{rest}", self.bucket),
                None => endpoint.clone(),
            },
        };
        Ok(Route { address: self, base })
    }

    /// Returns the bucket's URL at AWS, by the rules for regional endpoints in its SDKs' `endpoint-rule-set`.
    fn aws_url(&self) -> Result<String> {
        let failed = |why: &str| {
            Error::usage(format!("AWS has no endpoint for bucket '{}' in region '{}'", self.bucket, self.region))
                .because(why)
                .hint("check storage.bucket and storage.region (AWS_REGION)")
        };
        if !is_label(&self.region) {
            return Err(failed("a region's name has only letters, digits and '-'"));
        }
        if self.bucket.ends_with("--x-s3") {
            return Err(failed("it is a directory bucket (S3 Express One Zone), which this tool does not support"));
        }
        let suffix = aws_suffix(&self.region);
        if self.fips && suffix == "amazonaws.com.cn" {
            return Err(failed("AWS's regions in China have no FIPS endpoints"));
        }
        let service = if self.fips { "s3-fips" } else { "s3" };
        let stack = if self.dual_stack { ".dualstack" } else { "" };
        let region = if self.region == "aws-global" { String::new() } else { format!(".{}", self.region) };
        let host = format!("{service}{stack}{region}.{suffix}");
        // The `*` in a certificate matches one label, so a bucket name with a dot goes in the path.
        let in_host = self.style == Style::Virtual && (3..=63).contains(&self.bucket.len()) && is_label(&self.bucket);
        Ok(match in_host {
            true => format!("https://{}.{host}", self.bucket),
            false => format!("https://{host}/{}", self.bucket),
        })
    }

    /// Returns the address that a response redirects to, for requests to be signed again; `None` if it names nothing new,
    /// or a host of another provider.
    pub(super) fn redirected(
        &self,
        refusal: &Refusal,
        region: Option<&str>,
        location: Option<&str>,
    ) -> Option<Address> {
        let region = region.or(refusal.region.as_deref()).or_else(|| expected_region(&refusal.message));
        let region = region.filter(|region| is_region(region));
        let host = refusal.endpoint.as_deref().or_else(|| Some(location?.split_once("://")?.1));
        let host = host.map(|host| host.split('/').next().unwrap_or_default().to_ascii_lowercase());
        let host = host.map(|host| host.strip_prefix(&format!("{}.", self.bucket)).unwrap_or(&host).to_string());
        let mut address = self.clone();
        if let Some(region) = region {
            address.region = region.to_string();
        }
        if let Some(endpoint) = &self.endpoint {
            let (scheme, rest) = endpoint.split_once("://")?;
            let (authority, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
            let authority = match host.filter(|host| is_same_site(host, authority)) {
                Some(host) => host,
                None if address.region != self.region => with_region(authority, &self.region, &address.region),
                None => authority.to_string(),
            };
            let path = if path.is_empty() { String::new() } else { format!("/{path}") };
            address.endpoint = Some(format!("{scheme}://{authority}{path}"));
        }
        (address != *self).then_some(address)
    }
}

impl Route {
    /// Whether requests are encrypted, and so protected from damage on their way.
    pub(super) fn uses_tls(&self) -> bool {
        target(&self.base).2
    }

    /// Whether bytes cross a network on which nothing protects them from damage but what this tool does.
    pub(super) fn needs_checksums(&self) -> bool {
        let (host, _, tls) = target(&self.base);
        let host = host.trim_matches(['[', ']']);
        let is_here = host.eq_ignore_ascii_case("localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        !tls && !is_here
    }

    /// Returns the endpoint as shown in messages; empty for AWS.
    pub(super) fn shown(&self) -> String {
        self.address.endpoint.clone().unwrap_or_default()
    }
}

/// Returns the domain of AWS's hosts in a region. Each partition has its own.
fn aws_suffix(region: &str) -> &'static str {
    const PARTITIONS: [(&str, &str); 6] = [
        ("cn-", "amazonaws.com.cn"),
        ("eusc-", "amazonaws.eu"),
        ("us-iso-", "c2s.ic.gov"),
        ("us-isob-", "sc2s.sgov.gov"),
        ("eu-isoe-", "cloud.adc-e.uk"),
        ("us-isof-", "csp.hci.ic.gov"),
    ];
    let partition = PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix));
    partition.map_or("amazonaws.com", |(_, suffix)| suffix)
}

/// Whether a text is a valid label of a host name, in lower case.
fn is_label(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| is_alphanumeric(&byte) || byte == b'-')
        && text.as_bytes().first().is_some_and(is_alphanumeric)
        && text.as_bytes().last().is_some_and(is_alphanumeric)
}

/// Replaces the region in a host name, if it is one of the labels.
fn with_region(authority: &str, from: &str, to: &str) -> String {
    let label = |label: &str| match label.strip_prefix("s3-").unwrap_or(label) == from {
        true => label.replace(from, to),
        false => label.to_string(),
    };
    authority.split('.').map(label).collect::<Vec<_>>().join(".")
}

/// Returns the expected region from "the region 'us-east-1' is wrong; expecting 'eu-west-1'".
fn expected_region(message: &str) -> Option<&str> {
    let rest = message.split_once("expecting '")?.1;
    Some(rest.split_once('\'')?.0)
}

fn is_region(text: &str) -> bool {
    (1..=60).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Whether two hosts, with ports, belong to the same provider, so that a request for one may be signed for the other.
fn is_same_site(one: &str, other: &str) -> bool {
    let host = |text: &str| target(&format!("https://{text}")).0.trim_matches(['[', ']']).to_ascii_lowercase();
    let (one, other) = (host(one), host(other));
    let is_address = |host: &str| host.parse::<std::net::IpAddr>().is_ok();
    if one == other {
        return true;
    }
    if is_address(&one) || is_address(&other) {
        return false;
    }
    let site = |host: &str| -> Vec<String> {
        let labels: Vec<&str> = host.rsplit('.').collect();
        // `com.cn` and the like are shared by everyone, so `amazonaws.com.cn` is compared by three labels.
        let has_public_suffix = labels.len() > 2 && labels[0].len() == 2 && labels[1].len() <= 3;
        labels.into_iter().take(if has_public_suffix { 3 } else { 2 }).map(String::from).collect()
    };
    site(&one).len() > 1 && site(&one) == site(&other)
}

/// Resolves a `Location` header relative to the URL `from`.
pub(super) fn resolve(from: &str, location: &str) -> Option<String> {
    if location.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return None;
    }
    let lower = location.to_ascii_lowercase();
    let (scheme, rest) = from.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return Some(location.to_string());
    }
    if let Some(host) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{host}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    None
}

/// The characters to encode in a key in a URL's path, where `/` stays.
const KEY: &AsciiSet = &RESERVED.remove(b'/');

/// Percent-encodes a key or a query value for a URL. `/` stays in keys.
pub(super) fn encoded(text: &str, keep_slash: bool) -> String {
    utf8_percent_encode(text, if keep_slash { KEY } else { RESERVED }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(endpoint: Option<&str>, region: &str, style: Style) -> Address {
        let endpoint = endpoint.map(String::from);
        Address { bucket: "b".into(), endpoint, region: region.into(), style, dual_stack: false, fips: false }
    }

    #[test]
    fn the_bucket_goes_in_the_path_or_in_the_host() {
        let base = |address: Address| address.into_route().unwrap().base;
        assert_eq!(base(address(Some("http://h:1/x"), "r", Style::Path)), "http://h:1/x/b");
        assert_eq!(base(address(Some("http://h:1"), "r", Style::Virtual)), "http://b.h:1");
        let aws = Address { bucket: "my-bucket".into(), ..address(None, "eu-west-1", Style::Virtual) };
        assert_eq!(base(aws.clone()), "https://my-bucket.s3.eu-west-1.amazonaws.com");
        assert_eq!(base(Address { style: Style::Path, ..aws.clone() }), "https://s3.eu-west-1.amazonaws.com/my-bucket");
        assert_eq!(
            base(Address { dual_stack: true, ..aws.clone() }),
            "https://my-bucket.s3.dualstack.eu-west-1.amazonaws.com"
        );
        assert_eq!(
            base(Address { region: "us-east-2".into(), fips: true, ..aws.clone() }),
            "https://my-bucket.s3-fips.us-east-2.amazonaws.com"
        );
        assert_eq!(
            base(Address { region: "cn-north-1".into(), ..aws.clone() }),
            "https://my-bucket.s3.cn-north-1.amazonaws.com.cn"
        );
        // The `*` in a certificate matches one label.
        assert_eq!(
            base(Address { bucket: "my.bucket".into(), ..aws.clone() }),
            "https://s3.eu-west-1.amazonaws.com/my.bucket"
        );
        for (region, host) in [
            ("us-gov-west-1", "s3.us-gov-west-1.amazonaws.com"),
            ("eusc-de-east-1", "s3.eusc-de-east-1.amazonaws.eu"),
            ("us-iso-east-1", "s3.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "s3.us-isob-east-1.sc2s.sgov.gov"),
            ("aws-global", "s3.amazonaws.com"),
        ] {
            assert_eq!(base(Address { region: region.into(), ..aws.clone() }), format!("https://my-bucket.{host}"));
        }
        assert!(Address { region: "not a region".into(), ..aws.clone() }.into_route().is_err());
        assert!(Address { region: "cn-north-1".into(), fips: true, ..aws.clone() }.into_route().is_err());
        assert!(Address { bucket: "b--use1-az4--x-s3".into(), ..aws }.into_route().is_err());
    }

    #[test]
    fn redirects_to_a_region_or_a_host_of_the_same_provider_are_followed() {
        let refusal = |message: &str, region: Option<&str>, endpoint: Option<&str>| Refusal {
            message: message.into(),
            region: region.map(String::from),
            endpoint: endpoint.map(String::from),
            ..Refusal::default()
        };
        let aws = address(None, "us-east-1", Style::Virtual);
        let redirected = |address: &Address, refusal: &Refusal, region, location| {
            let address = address.redirected(refusal, region, location)?;
            Some((address.endpoint.unwrap_or_default(), address.region))
        };
        let is = |endpoint: &str, region: &str| Some((endpoint.to_string(), region.to_string()));
        let none = Refusal::default();
        assert_eq!(redirected(&aws, &none, Some("eu-west-1"), None), is("", "eu-west-1"));
        assert_eq!(redirected(&aws, &none, Some("us-east-1"), None), None);
        let wrong = refusal("the region 'us-east-1' is wrong; expecting 'eu-west-2'", None, None);
        assert_eq!(redirected(&aws, &wrong, None, None), is("", "eu-west-2"));
        assert_eq!(redirected(&aws, &none, Some("no region/at all"), None), None);
        let wasabi = address(Some("https://s3.us-east-1.wasabisys.com"), "us-east-1", Style::Path);
        let moved = refusal("", None, Some("s3.eu-central-1.wasabisys.com"));
        assert_eq!(redirected(&wasabi, &moved, None, None), is("https://s3.eu-central-1.wasabisys.com", "us-east-1"));
        assert_eq!(
            redirected(&wasabi, &none, Some("eu-central-1"), None),
            is("https://s3.eu-central-1.wasabisys.com", "eu-central-1")
        );
        let bad = refusal("", None, Some("s3.evil.example"));
        assert_eq!(redirected(&wasabi, &bad, None, None), None);
        let location = Some("https://b.s3.eu-central-2.wasabisys.com/key?x");
        assert_eq!(
            redirected(&wasabi, &none, None, location),
            is("https://s3.eu-central-2.wasabisys.com", "us-east-1")
        );
        let local = address(Some("http://127.0.0.1:9000"), "us-east-1", Style::Path);
        assert_eq!(redirected(&local, &none, Some("home"), None), is("http://127.0.0.1:9000", "home"));
        let port = refusal("", None, Some("127.0.0.1:9001"));
        assert_eq!(redirected(&local, &port, None, None), is("http://127.0.0.1:9001", "us-east-1"));
    }

    #[test]
    fn only_plain_http_to_another_machine_needs_checksums() {
        for (endpoint, needed) in [
            (None, false),
            (Some("https://minio.internal:9000"), false),
            (Some("http://minio.internal:9000"), true),
            (Some("http://10.0.0.1"), true),
            (Some("http://[fd00::1]:9000"), true),
            (Some("http://127.0.0.1:9000"), false),
            (Some("http://[::1]:9000"), false),
            (Some("http://localhost"), false),
        ] {
            let route = address(endpoint, "us-east-1", Style::Path).into_route().unwrap();
            assert_eq!(route.needs_checksums(), needed, "{endpoint:?}");
        }
    }

    #[test]
    fn hosts_of_one_provider_are_recognized() {
        for (one, other, same) in [
            ("s3.a.example.com", "s3.b.example.com", true),
            ("s3.cn-north-1.amazonaws.com.cn", "evil.com.cn", false),
            ("s3.cn-north-1.amazonaws.com.cn", "s3.cn-west.amazonaws.com.cn", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1:1", "10.0.0.1:2", true),
            ("minio", "minio2", false),
            ("a.example.com", "example.com.evil.org", false),
        ] {
            assert_eq!(is_same_site(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn locations_are_absolute_or_relative() {
        let from = "https://h:1/b/k?x";
        assert_eq!(resolve(from, "https://cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(resolve(from, "/y?z").as_deref(), Some("https://h:1/y?z"));
        assert_eq!(resolve(from, "//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(resolve(from, "ftp://x"), None);
        assert_eq!(resolve(from, "/a\r\nb"), None);
        assert_eq!(encoded("a b/ü+%", true), "a%20b/%C3%BC%2B%25");
        assert_eq!(encoded("a/b", false), "a%2Fb");
    }
}
