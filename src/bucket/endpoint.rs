//! Where requests for a bucket go: the URL of the bucket and the region that signs, and what is learned of both from
//! answers that send elsewhere. No I/O.

use percent_encoding::{AsciiSet, utf8_percent_encode};

use super::answer::Refusal;
use super::connection::target;
use crate::error::{Error, Result};
use crate::net::RESERVED;

/// Where the bucket's name stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// In the path.
    Path,
    /// In the host.
    Virtual,
}

/// Providers that refuse, for new buckets at the least, a bucket's name in the path; by the ends of their hosts, as
/// their documentation says: Alibaba OSS, Tencent COS, Volcengine TOS, Tigris.
const NO_PATH_STYLE: [&str; 5] =
    [".aliyuncs.com", ".myqcloud.com", ".volces.com", ".storage.tigris.dev", ".storage.dev"];

/// Whether the store at this host is known to refuse path style.
pub(super) fn refuses_path_style(host: &str) -> bool {
    NO_PATH_STYLE.iter().any(|end| host.ends_with(end))
}

/// What a route is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) bucket: String,
    /// URL without a slash at its end; `None`: AWS's own.
    pub(super) endpoint: Option<String>,
    pub(super) region: String,
    pub(super) style: Style,
    /// Of AWS's own endpoints, those that speak IPv6 too.
    pub(super) dual_stack: bool,
    /// Of AWS's own endpoints, those with FIPS 140.
    pub(super) fips: bool,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) way: Way,
    /// URL of the bucket, without a slash at its end.
    pub(super) base: String,
}

impl Way {
    /// # Errors
    /// [`crate::error::Cause::Usage`] when AWS has no such endpoint.
    pub(super) fn route(self) -> Result<Route> {
        let base = match &self.endpoint {
            None => self.of_aws()?,
            Some(endpoint) if self.style == Style::Path => format!("{endpoint}/{}", self.bucket),
            Some(endpoint) => match endpoint.split_once("://") {
                Some((scheme, rest)) => format!("{scheme}://{}.{rest}", self.bucket),
                None => endpoint.clone(),
            },
        };
        Ok(Route { way: self, base })
    }

    /// AWS's own endpoint, by the rules for regional endpoints of its SDKs' `endpoint-rule-set`.
    fn of_aws(&self) -> Result<String> {
        let failed = |why: &str| {
            Error::usage(format!("AWS has no endpoint for bucket '{}' in region '{}'", self.bucket, self.region))
                .because(why)
                .hint("check storage.bucket and storage.region (AWS_REGION)")
        };
        if !is_label(&self.region) {
            return Err(failed("the region's name has letters, digits and '-' only"));
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
        // A certificate's `*` stands for one label, so a bucket with a dot in its name goes into the path.
        let in_host = self.style == Style::Virtual && (3..=63).contains(&self.bucket.len()) && is_label(&self.bucket);
        Ok(match in_host {
            true => format!("https://{}.{host}", self.bucket),
            false => format!("https://{host}/{}", self.bucket),
        })
    }

    /// Where an answer sends requests for this bucket that are signed anew; `None` when it says nothing new, or sends
    /// to a site that is not this store's.
    pub(super) fn elsewhere(&self, refusal: &Refusal, region: Option<&str>, location: Option<&str>) -> Option<Way> {
        let named = region.or(refusal.region.as_deref()).or_else(|| expected(&refusal.message));
        let region = named.filter(|region| is_region(region));
        let host = refusal.endpoint.as_deref().or_else(|| Some(location?.split_once("://")?.1));
        let host = host.map(|host| host.split('/').next().unwrap_or_default().to_ascii_lowercase());
        let host = host.map(|host| host.strip_prefix(&format!("{}.", self.bucket)).unwrap_or(&host).to_string());
        let mut way = self.clone();
        if let Some(region) = region {
            way.region = region.to_string();
        }
        if let Some(endpoint) = &self.endpoint {
            let (scheme, rest) = endpoint.split_once("://")?;
            let (authority, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
            let authority = match host.filter(|host| is_same_site(host, authority)) {
                Some(host) => host,
                None if way.region != self.region => moved(authority, &self.region, &way.region),
                None => authority.to_string(),
            };
            let path = if path.is_empty() { String::new() } else { format!("/{path}") };
            way.endpoint = Some(format!("{scheme}://{authority}{path}"));
        }
        (way != *self).then_some(way)
    }
}

impl Route {
    /// The URL that messages show: the endpoint, empty for AWS.
    pub(super) fn shown(&self) -> String {
        self.way.endpoint.clone().unwrap_or_default()
    }
}

/// What AWS's host names of a region end in: each partition has its own.
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

/// Whether a text can be one label of a host name, in lower case.
fn is_label(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| is_alphanumeric(&byte) || byte == b'-')
        && text.as_bytes().first().is_some_and(is_alphanumeric)
        && text.as_bytes().last().is_some_and(is_alphanumeric)
}

/// The host with the other region, where the region is a label of it.
fn moved(authority: &str, from: &str, to: &str) -> String {
    let label = |label: &str| match label.strip_prefix("s3-").unwrap_or(label) == from {
        true => label.replace(from, to),
        false => label.to_string(),
    };
    authority.split('.').map(label).collect::<Vec<_>>().join(".")
}

/// The region in "the region 'us-east-1' is wrong; expecting 'eu-west-1'".
fn expected(message: &str) -> Option<&str> {
    let rest = message.split_once("expecting '")?.1;
    Some(rest.split_once('\'')?.0)
}

fn is_region(text: &str) -> bool {
    (1..=60).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Whether two hosts, with ports, are of one provider: what is signed for one may be signed for the other.
fn is_same_site(one: &str, other: &str) -> bool {
    let bare = |text: &str| target(&format!("https://{text}")).0.trim_matches(['[', ']']).to_ascii_lowercase();
    let (one, other) = (bare(one), bare(other));
    let is_address = |host: &str| host.parse::<std::net::IpAddr>().is_ok();
    if one == other {
        return true;
    }
    if is_address(&one) || is_address(&other) {
        return false;
    }
    let site = |host: &str| -> Vec<String> {
        let labels: Vec<&str> = host.rsplit('.').collect();
        // `amazonaws.com.cn`: three labels where the last but one is no name of anybody.
        let shared = labels.len() > 2 && labels[0].len() == 2 && labels[1].len() <= 3;
        labels.into_iter().take(if shared { 3 } else { 2 }).map(String::from).collect()
    };
    site(&one).len() > 1 && site(&one) == site(&other)
}

/// The URL that a `Location` means, seen from `from`.
pub(super) fn resolved(from: &str, location: &str) -> Option<String> {
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

/// What is encoded in a key, in a URL's path, where `/` stays.
const KEY: &AsciiSet = &RESERVED.remove(b'/');

/// Percent-encodes a key or a query value for a URL. `/` stays in keys.
pub(super) fn encoded(text: &str, keep_slash: bool) -> String {
    utf8_percent_encode(text, if keep_slash { KEY } else { RESERVED }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(endpoint: Option<&str>, region: &str, style: Style) -> Way {
        let endpoint = endpoint.map(String::from);
        Way { bucket: "b".into(), endpoint, region: region.into(), style, dual_stack: false, fips: false }
    }

    #[test]
    fn the_bucket_stands_in_the_path_or_in_the_host() {
        let base = |way: Way| way.route().unwrap().base;
        assert_eq!(base(way(Some("http://h:1/x"), "r", Style::Path)), "http://h:1/x/b");
        assert_eq!(base(way(Some("http://h:1"), "r", Style::Virtual)), "http://b.h:1");
        let aws = Way { bucket: "my-bucket".into(), ..way(None, "eu-west-1", Style::Virtual) };
        assert_eq!(base(aws.clone()), "https://my-bucket.s3.eu-west-1.amazonaws.com");
        assert_eq!(base(Way { style: Style::Path, ..aws.clone() }), "https://s3.eu-west-1.amazonaws.com/my-bucket");
        assert_eq!(
            base(Way { dual_stack: true, ..aws.clone() }),
            "https://my-bucket.s3.dualstack.eu-west-1.amazonaws.com"
        );
        assert_eq!(
            base(Way { region: "us-east-2".into(), fips: true, ..aws.clone() }),
            "https://my-bucket.s3-fips.us-east-2.amazonaws.com"
        );
        assert_eq!(
            base(Way { region: "cn-north-1".into(), ..aws.clone() }),
            "https://my-bucket.s3.cn-north-1.amazonaws.com.cn"
        );
        // A certificate's `*` stands for one label.
        assert_eq!(
            base(Way { bucket: "my.bucket".into(), ..aws.clone() }),
            "https://s3.eu-west-1.amazonaws.com/my.bucket"
        );
        for (region, host) in [
            ("us-gov-west-1", "s3.us-gov-west-1.amazonaws.com"),
            ("eusc-de-east-1", "s3.eusc-de-east-1.amazonaws.eu"),
            ("us-iso-east-1", "s3.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "s3.us-isob-east-1.sc2s.sgov.gov"),
            ("aws-global", "s3.amazonaws.com"),
        ] {
            assert_eq!(base(Way { region: region.into(), ..aws.clone() }), format!("https://my-bucket.{host}"));
        }
        assert!(Way { region: "not a region".into(), ..aws.clone() }.route().is_err());
        assert!(Way { region: "cn-north-1".into(), fips: true, ..aws.clone() }.route().is_err());
        assert!(Way { bucket: "b--use1-az4--x-s3".into(), ..aws }.route().is_err());
    }

    #[test]
    fn answers_that_name_a_region_or_a_host_of_the_same_provider_are_followed() {
        let refusal = |message: &str, region: Option<&str>, endpoint: Option<&str>| Refusal {
            message: message.into(),
            region: region.map(String::from),
            endpoint: endpoint.map(String::from),
            ..Refusal::default()
        };
        let aws = way(None, "us-east-1", Style::Virtual);
        let there = |way: &Way, refusal: &Refusal, region, location| {
            way.elsewhere(refusal, region, location).map(|way| (way.endpoint.unwrap_or_default(), way.region))
        };
        let is = |endpoint: &str, region: &str| Some((endpoint.to_string(), region.to_string()));
        let none = Refusal::default();
        assert_eq!(there(&aws, &none, Some("eu-west-1"), None), is("", "eu-west-1"));
        assert_eq!(there(&aws, &none, Some("us-east-1"), None), None);
        let wrong = refusal("the region 'us-east-1' is wrong; expecting 'eu-west-2'", None, None);
        assert_eq!(there(&aws, &wrong, None, None), is("", "eu-west-2"));
        assert_eq!(there(&aws, &none, Some("no region/at all"), None), None);
        let wasabi = way(Some("https://s3.us-east-1.wasabisys.com"), "us-east-1", Style::Path);
        let moved = refusal("", None, Some("s3.eu-central-1.wasabisys.com"));
        assert_eq!(there(&wasabi, &moved, None, None), is("https://s3.eu-central-1.wasabisys.com", "us-east-1"));
        assert_eq!(
            there(&wasabi, &none, Some("eu-central-1"), None),
            is("https://s3.eu-central-1.wasabisys.com", "eu-central-1")
        );
        let bad = refusal("", None, Some("s3.evil.example"));
        assert_eq!(there(&wasabi, &bad, None, None), None);
        let location = Some("https://b.s3.eu-central-2.wasabisys.com/key?x");
        assert_eq!(there(&wasabi, &none, None, location), is("https://s3.eu-central-2.wasabisys.com", "us-east-1"));
        let local = way(Some("http://127.0.0.1:9000"), "us-east-1", Style::Path);
        assert_eq!(there(&local, &none, Some("home"), None), is("http://127.0.0.1:9000", "home"));
        let port = refusal("", None, Some("127.0.0.1:9001"));
        assert_eq!(there(&local, &port, None, None), is("http://127.0.0.1:9001", "us-east-1"));
    }

    #[test]
    fn sites_are_compared_whole() {
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
    fn locations_are_whole_or_seen_from_where_they_came() {
        let from = "https://h:1/b/k?x";
        assert_eq!(resolved(from, "https://cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(resolved(from, "/y?z").as_deref(), Some("https://h:1/y?z"));
        assert_eq!(resolved(from, "//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(resolved(from, "ftp://x"), None);
        assert_eq!(resolved(from, "/a\r\nb"), None);
        assert_eq!(encoded("a b/ü+%", true), "a%20b/%C3%BC%2B%25");
        assert_eq!(encoded("a/b", false), "a%2Fb");
    }
}
