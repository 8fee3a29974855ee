//! The values of settings: cleaning, validation, and the types they are parsed into.

use std::str::FromStr;

use crate::error::printable;
use crate::model::pins::Pins;

/// Bytes in a gigabyte of `max_local_gb` and `--max-gb` (2^30, as in 0.1.0).
pub const GIB: f64 = (1u64 << 30) as f64;
/// Maximum number of parts in a multipart upload to S3.
pub const MAX_PARTS: u32 = 10_000;
/// Default number of seconds in which a store has to respond.
pub const TIMEOUT: u64 = 60;
/// Largest value for it.
pub const MAX_TIMEOUT: u64 = 3600;

/// Strips what files, editors and shells leave around a value: white space of any kind, a byte order mark, one pair of
/// quotes.
///
/// # Errors
/// When a control character remains. The error does not contain the value.
pub fn clean(text: &str) -> Result<&str, String> {
    let blank = |c: char| c.is_whitespace() || "\u{feff}\u{200b}\u{0}".contains(c);
    let trimmed = text.trim_matches(blank);
    let quoted = |quote: char| trimmed.strip_prefix(quote).and_then(|inner| inner.strip_suffix(quote));
    let bare = quoted('"').or_else(|| quoted('\'')).map_or(trimmed, |inner| inner.trim_matches(blank));
    match bare.chars().find(|c| c.is_control()) {
        None => Ok(bare),
        Some(c) => Err(format!("it contains a {}", describe_control(c))),
    }
}

fn describe_control(c: char) -> String {
    match c {
        '\n' | '\r' => "line break".to_string(),
        '\t' => "tab".to_string(),
        '\u{1b}' => "control character (ESC)".to_string(),
        c => format!("control character (U+{:04X})", u32::from(c)),
    }
}

/// How the bucket is addressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Addressing {
    /// By path, unless the store is known to reject that.
    #[default]
    Auto,
    /// `https://host/bucket/key`
    Path,
    /// `https://bucket.host/key`
    Virtual,
}

/// The checksum sent with PutObject and UploadPart for the store to verify.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Checksums {
    /// None, unless the store requires one.
    #[default]
    Auto,
    /// None.
    None,
    /// The `Content-MD5` header.
    Md5,
    /// The `x-amz-checksum-crc32` header.
    Crc32,
}

/// The server-side encryption that uploads request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// The value of the `x-amz-server-side-encryption` header: `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub algorithm: String,
    /// Id or ARN of the KMS key, unless it is the account's default key.
    pub kms_key_id: Option<String>,
}

impl FromStr for Addressing {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Addressing::Auto),
            "path" => Ok(Addressing::Path),
            "virtual" => Ok(Addressing::Virtual),
            _ => Err(()),
        }
    }
}

impl FromStr for Checksums {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Checksums::Auto),
            "none" => Ok(Checksums::None),
            "md5" => Ok(Checksums::Md5),
            "crc32" => Ok(Checksums::Crc32),
            _ => Err(()),
        }
    }
}

/// The error for an invalid number of gigabytes.
pub(super) const GIGABYTES: &str = "expected a plain number of GiB, 0 or more, such as 50";

/// A number of gigabytes (2^30 bytes), stored in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GigaBytes(pub u64);

impl GigaBytes {
    /// Returns `None` for a negative, infinite or absurdly large number.
    pub fn new(gigabytes: f64) -> Option<Self> {
        let bytes = gigabytes * GIB;
        (bytes >= 0.0 && bytes < (1u64 << 60) as f64).then_some(GigaBytes(bytes as u64))
    }
}

impl FromStr for GigaBytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().parse().ok().and_then(GigaBytes::new);
        number.ok_or_else(|| GIGABYTES.to_string())
    }
}

pub(super) fn any(text: &str) -> Result<String, String> {
    Ok(text.to_string())
}

/// Accepts one of `all`, ignoring case.
pub(super) fn choice(text: &str, all: &[&str]) -> Result<String, String> {
    match all.iter().find(|known| known.eq_ignore_ascii_case(text)) {
        Some(known) => Ok(known.to_string()),
        None => Err(format!("expected {}", listed(all))),
    }
}

fn listed(all: &[&str]) -> String {
    match all.split_last() {
        Some((last, [])) => last.to_string(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

pub(super) fn switch(text: &str) -> Result<String, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok("true".into()),
        "false" | "no" | "off" | "0" => Ok("false".into()),
        _ => Err("expected true or false".into()),
    }
}

/// Validates a switch; also accepts `requester`, the value that other tools expect in AWS_REQUEST_PAYER.
pub(super) fn requester_pays(text: &str) -> Result<String, String> {
    if text.eq_ignore_ascii_case("requester") { Ok("true".into()) } else { switch(text) }
}

/// Validates patterns for revisions, which are separated by commas.
pub(super) fn pins(text: &str) -> Result<String, String> {
    Pins::parse_list(text).map(|_| text.to_string())
}

pub(super) fn gigabytes(text: &str) -> Result<String, String> {
    text.parse::<GigaBytes>().map(|_| text.trim().to_string())
}

/// Validates a number of seconds.
pub(super) fn timeout(text: &str) -> Result<String, String> {
    match text.parse::<u64>() {
        Ok(seconds) if (1..=MAX_TIMEOUT).contains(&seconds) => Ok(seconds.to_string()),
        _ => Err(format!("expected a whole number of seconds from 1 to {MAX_TIMEOUT}")),
    }
}

pub(super) fn max_parts(text: &str) -> Result<String, String> {
    match text.parse::<u32>() {
        Ok(parts) if (1..=MAX_PARTS).contains(&parts) => Ok(parts.to_string()),
        _ => Err(format!("expected a whole number from 1 to {MAX_PARTS}")),
    }
}

/// Validates the value of an HTTP header.
pub(super) fn header(text: &str) -> Result<String, String> {
    match text.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(text.to_string()),
        false => Err("expected ASCII letters, digits and symbols, without spaces".into()),
    }
}

/// Validates one half of a key pair, or a token.
///
/// # Errors
/// When it contains a character that is not allowed in a header. The error does not contain the value.
pub fn credential(text: &str) -> Result<String, String> {
    match text.chars().all(|c| c.is_ascii() && !c.is_ascii_control()) {
        true => Ok(text.to_string()),
        false => Err("it contains a character that keys never contain; copy it again".into()),
    }
}

/// Validates a region's name, which is used in host names and signatures.
///
/// # Errors
/// When it contains a character that is not allowed in a region.
pub fn region(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match text.chars().all(allowed) && text.len() <= 100 && text.split('.').all(|label| !label.is_empty()) {
        true => Ok(text.to_string()),
        false => Err("a region consists of letters, digits, '-', '_' and '.', as in us-west-004".into()),
    }
}

pub(super) fn storage_class(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match text.chars().all(allowed) && text.len() <= 64 {
        true => Ok(text.to_ascii_uppercase()),
        false => Err("expected a name such as STANDARD, STANDARD_IA, ONEZONE_IA or INTELLIGENT_TIERING".into()),
    }
}

pub(super) fn bucket(text: &str) -> Result<String, String> {
    if let Some(rest) = text.split_once("://").map(|(_, rest)| rest) {
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let shown = |text: &str| printable(text, 100);
        return Err(match (text.starts_with("http"), prefix.is_empty()) {
            (true, _) => {
                "it is a URL: the store's URL goes into --endpoint, and --bucket takes a plain name".to_string()
            }
            (_, true) => format!("give the name alone: --bucket {}", shown(name)),
            _ => {
                format!("give the name and the prefix separately: --bucket {} --prefix {}", shown(name), shown(prefix))
            }
        });
    }
    if let Some((name, prefix)) = text.split_once('/') {
        let (name, prefix) = (printable(name, 100), printable(prefix.trim_matches('/'), 100));
        return Err(match prefix.is_empty() {
            true => format!("give the name alone: --bucket {name}"),
            false => format!("give the name and the prefix separately: --bucket {name} --prefix {prefix}"),
        });
    }
    // What all stores together accept: several accept a single character, underscores and capitals, or two dots in a row.
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match text.chars().all(is_allowed) && text.len() <= 255 && !text.starts_with('.') {
        true => Ok(text.to_string()),
        false => {
            Err("a bucket name consists of letters, digits, '-', '.' and '_', and does not start with a '.'".into())
        }
    }
}

/// Normalises a prefix as 0.1.0 does: strips `/` from both ends and appends a single `/`.
pub(super) fn prefix(text: &str) -> Result<String, String> {
    let stripped = text.trim_matches('/');
    if text.contains("://") {
        return Err("it is a URL: the prefix is the part after the bucket's name, such as team-a".into());
    }
    if stripped.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("it contains a '.' or '..' segment; expected something like team-a".into());
    }
    if stripped.len() > 512 {
        return Err("it is longer than 512 bytes, half of the 1024 that a key may have".into());
    }
    Ok(if stripped.is_empty() { String::new() } else { format!("{stripped}/") })
}

/// Validates an endpoint URL. A bare host, as shown on B2's pages, gets `https://`.
pub(crate) fn endpoint(text: &str) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => ("https".to_string(), text),
    };
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err(match scheme.as_str() {
            "s3" => "it names a bucket: use --bucket, and --prefix for its path; the endpoint is the store's URL",
            _ => "it starts with neither http:// nor https://",
        }
        .into());
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || rest.contains(|c: char| c.is_whitespace() || c.is_control() || "?#\\".contains(c)) {
        return Err("it has no host, or contains characters that are not allowed in a URL".into());
    }
    if host.contains('@') {
        return Err("credentials do not belong in the URL".into());
    }
    let (name, port) = match host.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((inner, port)) => {
            if inner.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("the text in brackets is not an IPv6 address".into());
            }
            ("", port.strip_prefix(':').or(if port.is_empty() { None } else { Some("none") }))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err("its port is not a number from 1 to 65535".into());
    }
    if !host.starts_with('[')
        && (name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)))
    {
        return Err("its host contains characters other than letters, digits, '-' and '.'".into());
    }
    let labels: Vec<&str> = name.strip_suffix('.').unwrap_or(name).split('.').collect();
    let fits =
        |label: &&str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-');
    let numeric = labels.last().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    let is_host = labels.iter().all(fits) && (!numeric || name.parse::<std::net::Ipv4Addr>().is_ok());
    if !host.starts_with('[') && !is_host {
        return Err("its host is neither a valid name nor an address".into());
    }
    let escaped = |at: usize| path.get(at + 1..at + 3).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let allowed = |(at, c): (usize, char)| match c {
        '%' => escaped(at),
        c => c.is_ascii_alphanumeric() || "/-._~!$&'()*+,;=:@".contains(c),
    };
    if !path.char_indices().all(allowed) {
        return Err("its path contains characters that are not allowed in a URL".into());
    }
    Ok(format!("{scheme}://{}/{path}", host.to_ascii_lowercase()).trim_end_matches('/').to_string())
}

/// Returns the host of an endpoint URL, in lowercase and without the port.
pub fn host_of(endpoint: &str) -> String {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[').and_then(|inner| inner.find(']')) {
        Some(end) => &authority[..end + 2],
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.to_ascii_lowercase()
}

/// Whether the endpoint is Backblaze's own, which gets a special user agent.
pub fn is_backblaze(endpoint: &str) -> bool {
    let host = host_of(endpoint);
    host == "backblazeb2.com" || host.ends_with(".backblazeb2.com")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surrounding_noise_is_stripped() {
        for text in ["k", " k\n", "\u{feff}k\r\n", "\tk\u{a0}", "\"k\"", "'k' ", "\" k \"\n", "k\0"] {
            assert_eq!(clean(text), Ok("k"), "{text:?}");
        }
        assert_eq!(clean("\"k"), Ok("\"k"));
        assert_eq!(clean("''k''"), Ok("'k'"));
        assert_eq!(clean("\""), Ok("\""));
        assert_eq!(clean(" \n"), Ok(""));
        for text in ["a\nb", "a\tb", "a\u{1b}[31m", "\u{7}a", "a\u{85}b", "a\u{7f}"] {
            assert!(clean(text).is_err(), "{text:?}");
        }
        assert!(!clean("secret\nx").unwrap_err().contains("secret"));
    }

    #[test]
    fn endpoints_are_urls() {
        for bad in [
            "ftp://x",
            "https://",
            "http://a b",
            "https://u:p@h",
            "http://h:99999",
            "http://h:0",
            "http://h/?q",
            "s3://b",
            "http://[::1",
            "http://[::1]x",
            "http://:9000",
            "http://h:",
            "http://ho%73t",
            "http://h/ä",
            "http://ä",
            "http://[zz]:1",
            "://x",
            "http:///x",
            "http://a..b",
            "http://-",
            "http://256.1.1.1",
            "http://h/a%zz",
            "http://h/{a}|b",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        for (text, url) in [
            ("localhost:9000", "https://localhost:9000"),
            ("HTTP://Minio.LAN:9000/", "http://minio.lan:9000"),
            ("http://[::1]:9000/base", "http://[::1]:9000/base"),
            ("http://[::1]", "http://[::1]"),
        ] {
            assert_eq!(endpoint(text).unwrap(), url);
        }
        assert_eq!(host_of("http://[::1]:9000/x"), "[::1]");
        assert!(
            is_backblaze("https://s3.us-west-004.backblazeb2.com") && !is_backblaze("https://backblazeb2.com.evil.org")
        );
    }

    #[test]
    fn buckets_and_prefixes_are_validated() {
        assert!(bucket("s3://b/p/q").unwrap_err().contains("--bucket b --prefix p/q"));
        assert!(bucket("s3://b/").unwrap_err().contains("--bucket b"));
        assert!(bucket("b/p").unwrap_err().contains("--prefix p"));
        assert!(bucket("https://h/b").unwrap_err().contains("endpoint"));
        assert!(["a b", ".", "..", ".team", "b\u{e9}"].into_iter().all(|name| bucket(name).is_err()));
        assert!(["x", "Team_Cache", "a..b", "team.cache-1"].into_iter().all(|name| bucket(name).is_ok()));
        assert!(prefix("a/../b").is_err() && prefix("s3://b/x").is_err());
        assert_eq!(prefix("/a/b/").unwrap(), "a/b/");
        assert_eq!(prefix("/").unwrap(), "");
    }

    #[test]
    fn choices_and_numbers_are_validated() {
        assert_eq!(choice("Virtual", &["auto", "virtual"]).unwrap(), "virtual");
        assert_eq!(choice("x", &["auto", "path", "virtual"]).unwrap_err(), "expected auto, path or virtual");
        assert!(
            timeout("0").is_err() && timeout("3601").is_err() && timeout("1.5").is_err() && timeout("3600").is_ok()
        );
        assert!(max_parts("0").is_err() && max_parts("10001").is_err() && max_parts("1.5").is_err());
        assert_eq!(requester_pays("requester").unwrap(), "true");
        assert!(gigabytes("inf").is_err() && gigabytes("NaN").is_err() && gigabytes("1e30").is_err());
        assert_eq!(storage_class("standard_ia").unwrap(), "STANDARD_IA");
    }
}
