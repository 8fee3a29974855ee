//! Information in a store's host name: the provider, the region, and a bucket in front of it.
//!
//! The table follows the providers' documentation. Nothing is assumed about a host that is not in it.

use crate::hash::is_hex;

/// The operator of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Amazon S3.
    Aws,
    /// Backblaze B2.
    Backblaze,
    /// Wasabi.
    Wasabi,
    /// Scaleway.
    Scaleway,
    /// DigitalOcean Spaces.
    DigitalOcean,
    /// OVHcloud.
    Ovh,
    /// Alibaba Cloud OSS.
    Oss,
    /// Google Cloud Storage.
    Google,
    /// Cloudflare R2.
    R2,
    /// Tencent Cloud COS.
    Tencent,
    /// Another provider, for which only the region matters.
    Other,
}

/// Information in a host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host<'a> {
    /// The provider.
    pub provider: Provider,
    /// The region that requests are signed for, if the name contains or implies it.
    pub region: Option<&'a str>,
    /// The labels in front of the store's own name: the bucket of a virtual-hosted URL.
    pub bucket: Option<&'a str>,
    /// The host without the bucket.
    pub service: &'a str,
}

/// The known hosts. In a pattern, `{r}` is the region, `{a}` an account and `*` anything; the third field is the region if
/// the pattern has none.
const HOSTS: &[(&str, Provider, Option<&str>)] = &[
    ("s3.{r}.amazonaws.com", Provider::Aws, None),
    ("s3.dualstack.{r}.amazonaws.com", Provider::Aws, None),
    ("s3-fips.{r}.amazonaws.com", Provider::Aws, None),
    ("s3-fips.dualstack.{r}.amazonaws.com", Provider::Aws, None),
    ("s3.{r}.amazonaws.com.cn", Provider::Aws, None),
    ("s3.dualstack.{r}.amazonaws.com.cn", Provider::Aws, None),
    ("bucket.*.s3.{r}.vpce.amazonaws.com", Provider::Aws, None),
    ("accesspoint.*.s3.{r}.vpce.amazonaws.com", Provider::Aws, None),
    ("*.s3.{r}.vpce.amazonaws.com", Provider::Aws, None),
    ("s3-accelerate.amazonaws.com", Provider::Aws, None),
    ("s3-accelerate.dualstack.amazonaws.com", Provider::Aws, None),
    ("s3-external-1.amazonaws.com", Provider::Aws, Some("us-east-1")),
    ("s3-fips-{r}.amazonaws.com", Provider::Aws, None),
    ("s3-{r}.amazonaws.com", Provider::Aws, None),
    ("s3.amazonaws.com", Provider::Aws, Some("us-east-1")),
    ("s3.{r}.backblazeb2.com", Provider::Backblaze, None),
    ("s3.{r}.wasabisys.com", Provider::Wasabi, None),
    ("s3.wasabisys.com", Provider::Wasabi, Some("us-east-1")),
    ("s3.{r}.scw.cloud", Provider::Scaleway, None),
    ("{r}.digitaloceanspaces.com", Provider::DigitalOcean, None),
    ("s3.{r}.io.cloud.ovh.net", Provider::Ovh, None),
    ("s3.{r}.perf.cloud.ovh.net", Provider::Ovh, None),
    ("s3.{r}.cloud.ovh.net", Provider::Ovh, None),
    ("s3.{r}.io.cloud.ovh.us", Provider::Ovh, None),
    ("s3.{r}.perf.cloud.ovh.us", Provider::Ovh, None),
    ("s3.oss-accelerate.aliyuncs.com", Provider::Oss, None),
    ("oss-accelerate.aliyuncs.com", Provider::Oss, None),
    ("oss-accelerate-overseas.aliyuncs.com", Provider::Oss, None),
    ("s3.oss-{r}-internal.aliyuncs.com", Provider::Oss, None),
    ("oss-{r}-internal.aliyuncs.com", Provider::Oss, None),
    ("s3.oss-{r}.aliyuncs.com", Provider::Oss, None),
    ("oss-{r}.aliyuncs.com", Provider::Oss, None),
    ("storage.{r}.rep.googleapis.com", Provider::Google, None),
    ("storage.googleapis.com", Provider::Google, Some("auto")),
    ("{a}.eu.r2.cloudflarestorage.com", Provider::R2, Some("auto")),
    ("{a}.fedramp.r2.cloudflarestorage.com", Provider::R2, Some("auto")),
    ("{a}.r2.cloudflarestorage.com", Provider::R2, Some("auto")),
    ("cos.{r}.myqcloud.com", Provider::Tencent, None),
    ("cos.{r}.tencentcos.cn", Provider::Tencent, None),
    ("{r}.linodeobjects.com", Provider::Other, None),
    ("s3.{r}.idrivee2.com", Provider::Other, None),
    ("{r}.your-objectstorage.com", Provider::Other, None),
    ("sos-{r}.exo.io", Provider::Other, None),
    ("obs.{r}.myhuaweicloud.com", Provider::Other, None),
    ("storage.yandexcloud.net", Provider::Other, Some("ru-central1")),
    ("s3.{r}.cloud-object-storage.appdomain.cloud", Provider::Other, None),
    ("s3.private.{r}.cloud-object-storage.appdomain.cloud", Provider::Other, None),
    ("s3.direct.{r}.cloud-object-storage.appdomain.cloud", Provider::Other, None),
    ("*.compat.objectstorage.{r}.oraclecloud.com", Provider::Other, None),
    ("storage.{r}.nebius.cloud", Provider::Other, None),
    ("fly.storage.tigris.dev", Provider::Other, Some("auto")),
    ("t3.storage.dev", Provider::Other, Some("auto")),
    (NAMESPACED, Provider::Other, Some("us-east-1")),
];

/// Hugging Face's own gateway: `https://s3.hf.co/<namespace>`.
const NAMESPACED: &str = "s3.hf.co";

/// Maximum number of parts in a multipart upload at Scaleway.
const SCALEWAY_PARTS: u32 = 1_000;

/// Looks up the host name of an endpoint; returns `None` if it is unknown. `host` must be lowercase, without a port.
pub fn recognise(host: &str) -> Option<Host<'_>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let labels: Vec<&str> = host.split('.').collect();
    HOSTS.iter().find_map(|(pattern, provider, fixed)| {
        let pattern: Vec<&str> = pattern.split('.').collect();
        let ahead = labels.len().checked_sub(pattern.len())?;
        let mut region = None;
        for (label, wanted) in labels[ahead..].iter().zip(&pattern) {
            match match_label(label, wanted)? {
                "" => {}
                found => region = Some(found),
            }
        }
        let length = labels[ahead..].join(".").len();
        let service = &host[host.len() - length..];
        let bucket = (ahead > 0).then(|| &host[..host.len() - length - 1]);
        Some(Host { provider: *provider, region: region.or(*fixed), bucket, service })
    })
}

/// Matches a label against a label of a pattern; returns the region in it, or an empty string if it has none.
fn match_label<'a>(label: &'a str, wanted: &str) -> Option<&'a str> {
    if wanted == "*" {
        return Some("");
    }
    if wanted == "{a}" {
        return is_hex(label, 32).then_some("");
    }
    let Some((before, after)) = wanted.split_once("{r}") else { return (label == wanted).then_some("") };
    let region = label.strip_prefix(before)?.strip_suffix(after)?;
    // Regions start with a letter and contain a digit or a hyphen, or have at most four letters, like those of
    // Scaleway and OVH ("gra", "sbg", "waw"). No other label of a host name looks like that.
    let is_region = region.starts_with(|c: char| c.is_ascii_lowercase())
        && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && (region.contains(|c: char| c.is_ascii_digit() || c == '-') || region.len() <= 4)
        && !matches!(region, "s3" | "io" | "perf" | "eu" | "cdn" | "r2" | "oss")
        && !region.starts_with("website");
    is_region.then_some(region)
}

/// An endpoint that holds more than the store's URL, split into its parts.
#[derive(Debug, PartialEq, Eq)]
pub struct SplitEndpoint {
    /// The URL of the store alone.
    pub endpoint: String,
    /// The bucket.
    pub bucket: String,
    /// The rest of the path, after the bucket.
    pub prefix: Option<String>,
}

/// Removes the bucket from an endpoint, whether it is in front of a known store's host or at the end of the path.
/// Returns the remaining endpoint and the bucket, or `None` if there is no bucket in it.
///
/// # Errors
/// When the endpoint holds a bucket other than the configured one, or a bucket followed by a prefix.
pub fn split_bucket(url: &str, bucket: Option<&str>) -> Result<Option<(String, String)>, SplitEndpoint> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = super::host_of(url);
    let found = recognise(&host);
    if let Some(Host { bucket: Some(named), service, .. }) = found {
        let port = authority.strip_prefix(host.as_str()).unwrap_or_default();
        let endpoint = format!("{scheme}://{service}{port}");
        return match bucket.is_none_or(|bucket| bucket == named) && (path.is_empty() || Some(path) == bucket) {
            true => Ok(Some((endpoint, named.to_string()))),
            false => Err(SplitEndpoint { endpoint, bucket: named.to_string(), prefix: None }),
        };
    }
    let path = path.trim_matches('/');
    if path.is_empty() {
        return Ok(None);
    }
    let endpoint = |base: &str| format!("{scheme}://{authority}/{base}").trim_end_matches('/').to_string();
    let (first, after) = path.split_once('/').unwrap_or((path, ""));
    let (base, last) = path.rsplit_once('/').unwrap_or(("", path));
    // In Hugging Face's gateway, the first path segment is a user or an organisation, and belongs to the endpoint.
    if host == NAMESPACED {
        return Ok(match (bucket, after.is_empty()) {
            (None, false) => Some((endpoint(first), after.to_string())),
            (Some(bucket), false) if bucket == after => Some((endpoint(first), after.to_string())),
            _ => None,
        });
    }
    match bucket {
        Some(bucket) if bucket == last => Ok(Some((endpoint(base), last.to_string()))),
        // No known store has a base path, so this is another bucket, or one followed by a prefix.
        Some(bucket) if found.is_some() || bucket == first => {
            let prefix = (!after.is_empty()).then(|| after.to_string());
            Err(SplitEndpoint { endpoint: endpoint(""), bucket: first.to_string(), prefix })
        }
        Some(_) => Ok(None),
        None if after.is_empty() && super::values::bucket(first).is_ok() => Ok(Some((endpoint(""), first.to_string()))),
        None => {
            Err(SplitEndpoint { endpoint: endpoint(""), bucket: first.to_string(), prefix: Some(after.to_string()) })
        }
    }
}

/// Returns the region of a known host.
pub fn region_of(host: &str) -> Option<String> {
    recognise(host)?.region.map(str::to_string)
}

/// Returns the minimum length of a bucket's name, for stores that document one.
pub fn min_name_of(host: &str) -> usize {
    match recognise(host).map(|host| host.provider) {
        // Oracle accepts a single character.
        None | Some(Provider::Other) => 1,
        Some(Provider::Backblaze) => 6,
        Some(_) => 3,
    }
}

/// Returns the maximum number of parts in a multipart upload, for stores that allow fewer than S3.
pub fn max_parts_of(host: &str) -> Option<u32> {
    (recognise(host)?.provider == Provider::Scaleway).then_some(SCALEWAY_PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_follow_from_hosts() {
        const ACCOUNT: &str = "0123456789abcdef0123456789abcdef";
        let r2 = format!("{ACCOUNT}.r2.cloudflarestorage.com");
        let r2_eu = format!("{ACCOUNT}.eu.r2.cloudflarestorage.com");
        for (host, provider, region) in [
            ("s3.eu-central-1.amazonaws.com", Provider::Aws, Some("eu-central-1")),
            ("s3.us-gov-west-1.amazonaws.com", Provider::Aws, Some("us-gov-west-1")),
            ("s3-us-west-2.amazonaws.com", Provider::Aws, Some("us-west-2")),
            ("s3.dualstack.eu-west-3.amazonaws.com", Provider::Aws, Some("eu-west-3")),
            ("s3-fips.us-east-2.amazonaws.com", Provider::Aws, Some("us-east-2")),
            ("s3-fips.dualstack.us-east-2.amazonaws.com", Provider::Aws, Some("us-east-2")),
            ("s3-fips-us-gov-west-1.amazonaws.com", Provider::Aws, Some("us-gov-west-1")),
            ("s3.cn-north-1.amazonaws.com.cn", Provider::Aws, Some("cn-north-1")),
            ("s3.dualstack.cn-northwest-1.amazonaws.com.cn", Provider::Aws, Some("cn-northwest-1")),
            ("s3.amazonaws.com", Provider::Aws, Some("us-east-1")),
            ("s3-external-1.amazonaws.com", Provider::Aws, Some("us-east-1")),
            ("s3-accelerate.amazonaws.com", Provider::Aws, None),
            ("bucket.vpce-0a1b-2c3d.s3.ap-south-1.vpce.amazonaws.com", Provider::Aws, Some("ap-south-1")),
            ("vpce-0a1b-2c3d.s3.ap-south-1.vpce.amazonaws.com", Provider::Aws, Some("ap-south-1")),
            ("s3.hf.co", Provider::Other, Some("us-east-1")),
            ("s3.us-west-004.backblazeb2.com", Provider::Backblaze, Some("us-west-004")),
            ("s3.eu-central-003.backblazeb2.com.", Provider::Backblaze, Some("eu-central-003")),
            ("s3.ap-northeast-1.wasabisys.com", Provider::Wasabi, Some("ap-northeast-1")),
            ("s3.wasabisys.com", Provider::Wasabi, Some("us-east-1")),
            ("s3.fr-par.scw.cloud", Provider::Scaleway, Some("fr-par")),
            ("nyc3.digitaloceanspaces.com", Provider::DigitalOcean, Some("nyc3")),
            ("s3.gra.io.cloud.ovh.net", Provider::Ovh, Some("gra")),
            ("s3.sbg.perf.cloud.ovh.net", Provider::Ovh, Some("sbg")),
            ("s3.eu-west-par.io.cloud.ovh.net", Provider::Ovh, Some("eu-west-par")),
            ("s3.us-east-va.io.cloud.ovh.us", Provider::Ovh, Some("us-east-va")),
            ("oss-cn-hangzhou.aliyuncs.com", Provider::Oss, Some("cn-hangzhou")),
            ("s3.oss-eu-central-1.aliyuncs.com", Provider::Oss, Some("eu-central-1")),
            ("oss-cn-beijing-internal.aliyuncs.com", Provider::Oss, Some("cn-beijing")),
            ("oss-accelerate.aliyuncs.com", Provider::Oss, None),
            ("storage.googleapis.com", Provider::Google, Some("auto")),
            (&r2, Provider::R2, Some("auto")),
            (&r2_eu, Provider::R2, Some("auto")),
            ("cos.ap-guangzhou.myqcloud.com", Provider::Tencent, Some("ap-guangzhou")),
            ("us-east-1.linodeobjects.com", Provider::Other, Some("us-east-1")),
            ("fsn1.your-objectstorage.com", Provider::Other, Some("fsn1")),
            ("sos-ch-gva-2.exo.io", Provider::Other, Some("ch-gva-2")),
            ("s3.us-west-1.idrivee2.com", Provider::Other, Some("us-west-1")),
        ] {
            let found = recognise(host).unwrap_or_else(|| panic!("{host}"));
            assert_eq!((found.provider, found.region, found.bucket), (provider, region, None), "{host}");
            // The same with a bucket in front, even one with dots.
            let virtual_host = format!("team.hf-cache.{host}");
            let found = recognise(&virtual_host).unwrap();
            assert_eq!((found.region, found.bucket), (region, Some("team.hf-cache")), "{virtual_host}");
            assert_eq!(found.service, host.trim_end_matches('.'), "{virtual_host}");
        }
        for host in [
            "minio.lan",
            "localhost",
            "s3.example.com",
            "s3.eu-central-1.amazonaws.com.evil.org",
            "amazonaws.com",
            "backblazeb2.com",
            "s3.us-west-004.backblazeb2.com.example.org",
            "r2.cloudflarestorage.com",
            "",
            ".",
            "x.r2.cloudflarestorage.com",
            "huggingface.co",
            "f004.backblazeb2.com",
            "bucket.s3-website-us-east-1.amazonaws.com",
            "bucket.nyc3.cdn.digitaloceanspaces.com",
        ] {
            assert_eq!(recognise(host), None, "{host}");
        }
    }

    #[test]
    fn a_bucket_is_removed_from_an_endpoint() {
        let removed = |url: &str, bucket: Option<&str>| split_bucket(url, bucket).unwrap().map(|(url, _)| url);
        let b2 = "https://s3.us-west-004.backblazeb2.com";
        assert_eq!(removed(b2, Some("b")), None);
        assert_eq!(removed("https://b.s3.us-west-004.backblazeb2.com", Some("b")).as_deref(), Some(b2));
        assert_eq!(
            split_bucket("https://b.c.s3.us-west-004.backblazeb2.com", None),
            Ok(Some((b2.into(), "b.c".into())))
        );
        assert_eq!(removed("https://s3.us-west-004.backblazeb2.com/b", Some("b")).as_deref(), Some(b2));
        assert_eq!(removed("http://h:9000/base/b", Some("b")).as_deref(), Some("http://h:9000/base"));
        assert_eq!(removed("http://h:9000/b", None).as_deref(), Some("http://h:9000"));
        assert_eq!(removed("http://h:9000/base", Some("b")), None, "a gateway may have a base path");
        assert_eq!(removed("https://s3.hf.co/team", Some("team")), None, "that is the namespace");
        assert_eq!(removed("https://s3.hf.co/team", Some("b")), None);
        assert_eq!(removed("https://s3.hf.co/team/b", Some("b")).as_deref(), Some("https://s3.hf.co/team"));
        assert_eq!(
            split_bucket("https://s3.hf.co/team/b", None),
            Ok(Some(("https://s3.hf.co/team".into(), "b".into())))
        );
        for (url, bucket) in [
            ("https://a.s3.us-west-004.backblazeb2.com", Some("b")),
            ("https://s3.us-west-004.backblazeb2.com/a", Some("b")),
            ("https://s3.us-west-004.backblazeb2.com/b/p", Some("b")),
            ("http://h:9000/b/p", Some("b")),
            ("http://h:9000/b/p", None),
        ] {
            assert!(split_bucket(url, bucket).is_err(), "{url} {bucket:?}");
        }
    }

    #[test]
    fn short_bucket_names_are_possible_at_some_stores() {
        for (host, length) in [
            ("s3.amazonaws.com", 3),
            ("s3.us-west-004.backblazeb2.com", 6),
            ("ns.compat.objectstorage.eu-frankfurt-1.oraclecloud.com", 1),
            ("minio.lan", 1),
        ] {
            assert_eq!(min_name_of(host), length, "{host}");
        }
    }

    #[test]
    fn some_stores_allow_fewer_parts() {
        assert_eq!(max_parts_of("s3.nl-ams.scw.cloud"), Some(1000));
        assert_eq!(max_parts_of("s3.us-west-004.backblazeb2.com"), None);
    }
}
