//! Configuration: YAML, environment and flags, resolved once into a validated [`Config`].
//!
//! Precedence, highest first, as in 0.1.0: flags; for credentials the `B2_APPLICATION_KEY_ID` pair, the
//! `AWS_ACCESS_KEY_ID` pair, the YAML pair, each pair taken whole or not at all; for endpoint, bucket and region
//! `B2_*`, then YAML. Below all of these the standard AWS sources (profiles, SSO, web identity, container, instance
//! metadata), which only the client looks up, when it is first needed. Environment and home are passed in, so that
//! nothing here depends on the process.

mod hub;

pub use hub::Hub;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};

use crate::error::{Error, Result};
use crate::net::Network;

/// The file name that is searched in the current and then in the home directory.
pub const FILE_NAME: &str = ".hf-cache-sync.yaml";

/// Bytes in the gigabyte of `max_local_gb` and `--max-gb` (2^30, as 0.1.0 counts).
pub const GIB: f64 = (1u64 << 30) as f64;

/// Everything a command needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The Hugging Face Hub.
    pub hub: Hub,
    /// Certificates and exceptions from the proxy, for the Hub and the store.
    pub network: Network,
    /// The bucket and how to reach it.
    pub storage: Storage,
    /// The local cache.
    pub cache: Cache,
    /// Team settings.
    pub team: Team,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// What a user should know: unknown keys, ignored halves of credential pairs.
    pub warnings: Vec<String>,
}

/// Where the bucket is.
#[derive(Debug, Clone)]
pub struct Storage {
    /// URL with a scheme; `None`: AWS's own.
    pub endpoint: Option<String>,
    /// Bucket name; see [`Storage::bucket`].
    pub bucket: Option<String>,
    /// Region, when it was given or follows from the endpoint's host.
    pub region: Option<String>,
    /// Whose keys.
    pub credentials: Credentials,
}

impl Storage {
    /// The bucket, required by every command that talks to the store.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`] when none is configured.
    pub fn bucket(&self) -> Result<&str> {
        self.bucket.as_deref().ok_or_else(|| {
            Error::usage("no bucket is configured")
                .hint("set storage.bucket in .hf-cache-sync.yaml (see `hf-cache-sync init`), export B2_BUCKET, or pass --bucket")
        })
    }
}

/// The local cache.
#[derive(Debug, Clone)]
pub struct Cache {
    /// The `hub` folder.
    pub root: PathBuf,
    /// Disk budget of `prune`, in bytes.
    pub max_local_bytes: u64,
    /// Whether LFS/Xet pointer files are pushed too.
    pub sync_xet: bool,
}

/// Team settings.
#[derive(Debug, Clone)]
pub struct Team {
    /// Key prefix: empty, or ending in one `/`.
    pub prefix: String,
    /// Whether repos that look gated are pushed and pulled.
    pub allow_gated: bool,
}

/// A secret text: usable, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A complete key pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Access key id.
    pub id: Secret,
    /// Secret access key.
    pub secret: Secret,
    /// Session token of temporary credentials.
    pub session_token: Option<Secret>,
}

/// Where the credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `B2_APPLICATION_KEY_ID` and `B2_APPLICATION_KEY`.
    B2Env(KeyPair),
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, with `AWS_SESSION_TOKEN` if set.
    AwsEnv(KeyPair),
    /// `storage.access_key` and `storage.secret_key`.
    ConfigFile(KeyPair),
    /// The standard AWS chain: profile, SSO, web identity, container, instance metadata.
    AwsChain,
    /// Half a pair and nothing else: surely not meant, so the AWS chain is not tried. Says which half is missing.
    Incomplete(String),
}

impl Credentials {
    /// The name that `doctor` shows.
    pub fn source(&self) -> &'static str {
        match self {
            Credentials::B2Env(_) => "b2_env",
            Credentials::AwsEnv(_) => "aws_env",
            Credentials::ConfigFile(_) => "config",
            Credentials::AwsChain => "aws_chain",
            Credentials::Incomplete(_) => "none",
        }
    }

    /// The pair, when it is known already.
    pub fn pair(&self) -> Option<&KeyPair> {
        match self {
            Credentials::B2Env(pair) | Credentials::AwsEnv(pair) | Credentials::ConfigFile(pair) => Some(pair),
            Credentials::AwsChain | Credentials::Incomplete(_) => None,
        }
    }
}

/// Values from the command line, which win over everything.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--cache-dir`
    pub cache_dir: Option<PathBuf>,
    /// `--bucket`
    pub bucket: Option<String>,
    /// `--endpoint`
    pub endpoint: Option<String>,
    /// `--region`
    pub region: Option<String>,
    /// `--prefix`
    pub prefix: Option<String>,
}

/// The process environment, as far as it matters here.
pub struct Environment<'a> {
    /// Looks up a variable.
    pub var: &'a dyn Fn(&str) -> Option<String>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// The current directory.
    pub current: PathBuf,
}

impl Environment<'_> {
    /// A variable that is set and not empty.
    fn get(&self, name: &str) -> Option<String> {
        (self.var)(name).filter(|value| !value.is_empty())
    }

    /// A path as huggingface_hub reads it: `~` first, then `$VAR` and `${VAR}`; an unset variable stays as it is.
    fn expand(&self, text: &str) -> PathBuf {
        let mut path = text.to_string();
        if let Some(rest) = text.strip_prefix('~')
            && (rest.is_empty() || rest.starts_with(['/', std::path::MAIN_SEPARATOR]))
            && let Some(home) = &self.home
        {
            path = format!("{}{rest}", home.display());
        }
        let mut out = String::new();
        let mut rest = path.as_str();
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (name, length) = match after.strip_prefix('{').and_then(|inner| inner.find('}')) {
                Some(end) => (&after[1..=end], end + 2),
                None => {
                    let end = after.find(|c| !word(c)).unwrap_or(after.len());
                    (&after[..end], end)
                }
            };
            match (self.var)(name).filter(|_| !name.is_empty()) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..at + 1 + length]),
            }
            rest = &after[length..];
        }
        out.push_str(rest);
        PathBuf::from(out)
    }

    /// huggingface_hub's default cache: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME, ~/.cache.
    fn default_cache(&self) -> Result<PathBuf> {
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
            if let Some(path) = self.get(name) {
                return Ok(self.expand(&path));
            }
        }
        if let Some(home) = self.get("HF_HOME") {
            return Ok(self.expand(&home).join("hub"));
        }
        let cache = match (self.get("XDG_CACHE_HOME"), &self.home) {
            (Some(path), _) => self.expand(&path),
            (None, Some(home)) => home.join(".cache"),
            (None, None) => {
                return Err(Error::usage("cannot tell where the Hugging Face cache is")
                    .because("there is no home directory")
                    .hint("set HF_HUB_CACHE or pass --cache-dir"));
            }
        };
        Ok(cache.join("huggingface").join("hub"))
    }
}

impl Config {
    /// Resolves the configuration.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`] with file, line and key when the YAML cannot be used.
    pub fn load(overrides: &Overrides, env: &Environment<'_>) -> Result<Config> {
        let file = find_file(overrides, env)?;
        let mut warnings = Vec::new();
        let raw = match &file {
            Some(path) => read_file(path, &mut warnings)?,
            None => RawConfig::default(),
        };
        let RawConfig { storage, cache, team } = raw;
        let (storage, cache, team) = (storage.unwrap_or_default(), cache.unwrap_or_default(), team.unwrap_or_default());

        let pick = |flag: &Option<String>, variable: &str, yaml: Option<String>| {
            let given = flag.clone().or_else(|| env.get(variable)).or(yaml);
            given.map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
        };
        let endpoint = pick(&overrides.endpoint, "B2_ENDPOINT", storage.endpoint)
            .or_else(|| env.get("AWS_ENDPOINT_URL_S3"))
            .or_else(|| env.get("AWS_ENDPOINT_URL"));
        let endpoint = endpoint.map(|text| check_endpoint(&text)).transpose()?;
        let bucket = pick(&overrides.bucket, "B2_BUCKET", storage.bucket);
        if let Some(name) = &bucket {
            check_bucket(name)?;
        }
        let region = pick(&overrides.region, "B2_REGION", storage.region)
            .or_else(|| env.get("AWS_REGION"))
            .or_else(|| env.get("AWS_DEFAULT_REGION"))
            .or_else(|| endpoint.as_deref().and_then(region_of_host));
        let credentials = pick_credentials(env, storage.access_key, storage.secret_key, &mut warnings);

        let root = match (&overrides.cache_dir, cache.hf_cache_dir.filter(|dir| !dir.is_empty())) {
            (Some(dir), _) => dir.clone(),
            (None, Some(dir)) => env.expand(&dir),
            (None, None) => env.default_cache()?,
        };
        let prefix = match overrides.prefix.clone().or(team.prefix) {
            Some(text) => check_prefix(&text)?,
            None => String::new(),
        };
        Ok(Config {
            hub: Hub::from_environment(env),
            network: Network::from_environment(|name| env.get(name), |text| env.current.join(env.expand(text))),
            storage: Storage { endpoint, bucket, region, credentials },
            cache: Cache {
                root: env.current.join(root),
                max_local_bytes: cache.max_local_gb.unwrap_or(GigaBytes((50.0 * GIB) as u64)).0,
                sync_xet: cache.sync_xet.unwrap_or_default().0,
            },
            team: Team { prefix, allow_gated: team.allow_gated.unwrap_or_default().0 },
            file,
            warnings,
        })
    }
}

fn find_file(overrides: &Overrides, env: &Environment<'_>) -> Result<Option<PathBuf>> {
    if let Some(path) = &overrides.file {
        return Ok(Some(env.current.join(path)));
    }
    let places = [Some(&env.current), env.home.as_ref()];
    Ok(places.into_iter().flatten().map(|dir| dir.join(FILE_NAME)).find(|path| path.symlink_metadata().is_ok()))
}

fn read_file(path: &Path, warnings: &mut Vec<String>) -> Result<RawConfig> {
    let unusable = || Error::usage(format!("cannot use the configuration {}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| unusable().because(crate::error::plain_io(&e)))?;
    let hint = "correct that line, or write a fresh file with `hf-cache-sync init` elsewhere and compare";
    let value: serde_yaml::Value =
        serde_yaml::from_str(&text).map_err(|e| unusable().because(e.to_string()).hint(hint))?;
    if value.is_null() {
        return Ok(RawConfig::default());
    }
    if !value.is_mapping() {
        return Err(unusable().because("line 1: expected the sections storage, cache and team").hint(hint));
    }
    let raw = serde_yaml::from_str(&text).map_err(|e| unusable().because(e.to_string()).hint(hint))?;
    warnings.extend(unknown_keys(&value).into_iter().map(|warning| format!("{}: {warning}", path.display())));
    Ok(raw)
}

/// The YAML file. Unknown keys are allowed (and warned about), a key without a value is as good as absent.
#[derive(Default, Deserialize)]
struct RawConfig {
    storage: Option<RawStorage>,
    cache: Option<RawCache>,
    team: Option<RawTeam>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a section with keys and values")]
struct RawStorage {
    endpoint: Option<String>,
    bucket: Option<String>,
    region: Option<String>,
    access_key: Option<Secret>,
    secret_key: Option<Secret>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a section with keys and values")]
struct RawCache {
    max_local_gb: Option<GigaBytes>,
    sync_xet: Option<Flag>,
    hf_cache_dir: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a section with keys and values")]
struct RawTeam {
    prefix: Option<String>,
    allow_gated: Option<Flag>,
}

/// Every key there is, for the "did you mean" of an unknown one.
const KNOWN_KEYS: [(&str, &[&str]); 3] = [
    ("storage", &["endpoint", "bucket", "region", "access_key", "secret_key"]),
    ("cache", &["max_local_gb", "sync_xet", "hf_cache_dir"]),
    ("team", &["prefix", "allow_gated"]),
];

fn unknown_keys(value: &serde_yaml::Value) -> Vec<String> {
    let mut found = Vec::new();
    let sections: Vec<&str> = KNOWN_KEYS.iter().map(|(section, _)| *section).collect();
    for (section, inner) in value.as_mapping().into_iter().flatten() {
        let section = section.as_str().unwrap_or("?");
        match KNOWN_KEYS.iter().find(|(known, _)| *known == section) {
            None => found.push(unknown_key("", section, &sections)),
            Some((_, keys)) => {
                for (key, _) in inner.as_mapping().into_iter().flatten() {
                    let key = key.as_str().unwrap_or("?");
                    if !keys.contains(&key) {
                        found.push(unknown_key(&format!("{section}."), key, keys));
                    }
                }
            }
        }
    }
    found
}

fn unknown_key(section: &str, key: &str, known: &[&str]) -> String {
    let nearest = nearest(key, known.iter().copied()).next();
    let shown = crate::error::printable(key, 60);
    match nearest {
        Some(nearest) => format!("unknown key `{section}{shown}` is ignored; did you mean `{section}{nearest}`?"),
        None => format!("unknown key `{section}{shown}` is ignored"),
    }
}

/// The names that look most like `wanted`, best first; those that do not look like it at all are left out.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(f64, &str)> = names
        .map(|name| {
            let lower = name.to_lowercase();
            let tail = |text: &str| text.rsplit('/').next().unwrap_or_default().to_string();
            let score = strsim::jaro_winkler(&wanted, &lower).max(strsim::jaro_winkler(&tail(&wanted), &tail(&lower)));
            (score, name)
        })
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().map(|(_, name)| name)
}

/// A plain YAML value, handed to `convert` inside the parser's visitor, so that its error gets line and key.
fn scalar<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    convert: impl FnOnce(serde_yaml::Value) -> Option<T>,
    expected: &'static str,
) -> std::result::Result<T, D::Error> {
    struct Scalar<F>(F, &'static str);

    impl<T, F: FnOnce(serde_yaml::Value) -> Option<T>> Scalar<F> {
        fn convert<E: de::Error>(self, value: serde_yaml::Value) -> std::result::Result<T, E> {
            (self.0)(value).ok_or_else(|| E::custom(format!("expected {}", self.1)))
        }
    }

    impl<T, F: FnOnce(serde_yaml::Value) -> Option<T>> de::Visitor<'_> for Scalar<F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }
        fn visit_bool<E: de::Error>(self, value: bool) -> std::result::Result<T, E> {
            self.convert(value.into())
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<T, E> {
            self.convert(value.into())
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<T, E> {
            self.convert(value.into())
        }
        fn visit_f64<E: de::Error>(self, value: f64) -> std::result::Result<T, E> {
            self.convert(value.into())
        }
        fn visit_str<E: de::Error>(self, value: &str) -> std::result::Result<T, E> {
            self.convert(value.into())
        }
    }
    deserializer.deserialize_any(Scalar(convert, expected))
}

impl<'de> Deserialize<'de> for Secret {
    /// Like a text, but a value of another type is never repeated in the error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = |value: serde_yaml::Value| value.as_str().map(|text| Secret(text.to_string()));
        scalar(deserializer, text, "a text: put the key in quotes")
    }
}

/// A YAML boolean. 0.1.0 read YAML 1.1, so `yes` and `off` count; a quoted "false" does not.
#[derive(Default, Clone, Copy)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let flag = |value: serde_yaml::Value| match value {
            serde_yaml::Value::Bool(value) => Some(Flag(value)),
            serde_yaml::Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" => Some(Flag(true)),
                "no" | "off" => Some(Flag(false)),
                _ => None,
            },
            _ => None,
        };
        scalar(deserializer, flag, "true or false, without quotes")
    }
}

/// A number of gigabytes (2^30), kept in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GigaBytes(pub u64);

impl GigaBytes {
    /// `None` for a negative, infinite or absurd number.
    pub fn new(gigabytes: f64) -> Option<Self> {
        let bytes = gigabytes * GIB;
        (bytes >= 0.0 && bytes < (1u64 << 60) as f64).then_some(GigaBytes(bytes as u64))
    }
}

impl std::str::FromStr for GigaBytes {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = text.trim().parse().ok().and_then(GigaBytes::new);
        number.ok_or_else(|| "expected a number of gigabytes, 0 or more".to_string())
    }
}

impl<'de> Deserialize<'de> for GigaBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let bytes = |value: serde_yaml::Value| match value {
            serde_yaml::Value::Number(number) => number.as_f64().and_then(GigaBytes::new),
            serde_yaml::Value::String(text) => text.parse().ok(),
            _ => None,
        };
        scalar(deserializer, bytes, "a number of gigabytes, 0 or more")
    }
}

fn pick_credentials(
    env: &Environment<'_>,
    access_key: Option<Secret>,
    secret_key: Option<Secret>,
    warnings: &mut Vec<String>,
) -> Credentials {
    let mut halves = Vec::new();
    let mut pair = |id_from: &str, id: Option<Secret>, secret_from: &str, secret: Option<Secret>| {
        let (set, missing) = match (id, secret) {
            (Some(id), Some(secret)) => return Some(KeyPair { id, secret, session_token: None }),
            (Some(_), None) => (id_from, secret_from),
            (None, Some(_)) => (secret_from, id_from),
            (None, None) => return None,
        };
        halves.push(format!("{set} is set without {missing}"));
        None
    };
    let env_pair = |id: &str, secret: &str| (env.get(id).map(Secret), env.get(secret).map(Secret));

    let (id, secret) = env_pair("B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY");
    let b2 = pair("B2_APPLICATION_KEY_ID", id, "B2_APPLICATION_KEY", secret).map(Credentials::B2Env);
    let (id, secret) = env_pair("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
    let session_token = env.get("AWS_SESSION_TOKEN").map(Secret);
    let aws = pair("AWS_ACCESS_KEY_ID", id, "AWS_SECRET_ACCESS_KEY", secret)
        .map(|pair| Credentials::AwsEnv(KeyPair { session_token, ..pair }));
    let given = |key: Option<Secret>| key.filter(|key| !key.0.is_empty());
    let file = pair("storage.access_key", given(access_key), "storage.secret_key", given(secret_key))
        .map(Credentials::ConfigFile);
    match b2.or(aws).or(file) {
        Some(found) => {
            warnings.extend(halves.into_iter().map(|half| format!("{half}: this half of a pair is ignored")));
            found
        }
        None if halves.is_empty() => Credentials::AwsChain,
        None => Credentials::Incomplete(halves.join("; ")),
    }
}

/// An endpoint URL; `https://` is put before a bare host, as B2's pages show it.
fn check_endpoint(text: &str) -> Result<String> {
    // What stands before an `@` may be a secret: it is never repeated.
    let shown = text.rsplit_once('@').map_or(text.to_string(), |(_, host)| format!("…@{host}"));
    let wrong = |why: &str| {
        Err(Error::usage(format!("the endpoint '{}' cannot be used", crate::error::printable(&shown, 200)))
            .because(why)
            .hint("it looks like https://s3.us-west-004.backblazeb2.com (storage.endpoint, B2_ENDPOINT or --endpoint)"))
    };
    let url = if text.contains("://") { text.to_string() } else { format!("https://{text}") };
    let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else {
        return wrong("it is neither http:// nor https://");
    };
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() || rest.contains(|c: char| c.is_whitespace() || c.is_control() || "?#".contains(c)) {
        return wrong("it has no host, or characters that do not belong in a URL");
    }
    if host.contains('@') {
        return wrong("credentials do not belong in the URL");
    }
    let port = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    if port.is_some_and(|(_, port)| port.parse::<u16>().is_err()) {
        return wrong("its port is not a number from 1 to 65535");
    }
    Ok(url.trim_end_matches('/').to_string())
}

fn check_bucket(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if name.chars().all(allowed) && name.len() <= 255 {
        return Ok(());
    }
    Err(Error::usage(format!("the bucket name '{}' cannot be used", crate::error::printable(name, 100)))
        .because("a bucket name has letters, digits, '-', '.' and '_' only")
        .hint("set storage.bucket, B2_BUCKET or --bucket to the bare name, without s3:// and without a path"))
}

/// 0.1.0's rule: `/` stripped at both ends, one `/` appended.
fn check_prefix(text: &str) -> Result<String> {
    let stripped = text.trim_matches('/');
    if stripped.contains(|c: char| c.is_control()) || stripped.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(Error::usage(format!("the prefix '{}' cannot be used", crate::error::printable(text, 100)))
            .because("it has a control character or a '.' or '..' part")
            .hint("set team.prefix or --prefix to something like team-a"));
    }
    Ok(if stripped.is_empty() { String::new() } else { format!("{stripped}/") })
}

/// `s3.<region>.backblazeb2.com`, `s3.<region>.amazonaws.com`.
fn region_of_host(endpoint: &str) -> Option<String> {
    let host = host_of(endpoint);
    let region = host
        .strip_prefix("s3.")?
        .strip_suffix(".backblazeb2.com")
        .or_else(|| host.strip_prefix("s3.")?.strip_suffix(".amazonaws.com"))?;
    (!region.is_empty() && !region.contains('.')).then(|| region.to_string())
}

/// The host of an endpoint URL, lowercase, without port.
pub fn host_of(endpoint: &str) -> String {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[').and_then(|inner| inner.find(']')) {
        Some(end) => &authority[..end + 2],
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.to_ascii_lowercase()
}

/// Whether the endpoint is Backblaze's own, which gets its user agent.
pub fn is_backblaze(endpoint: &str) -> bool {
    let host = host_of(endpoint);
    host == "backblazeb2.com" || host.ends_with(".backblazeb2.com")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn load(yaml: Option<&str>, vars: &[(&str, &str)], overrides: Overrides) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(yaml) = yaml {
            std::fs::write(dir.path().join(FILE_NAME), yaml).unwrap();
        }
        let vars: HashMap<String, String> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let var = move |name: &str| vars.get(name).cloned();
        let env = Environment { var: &var, home: Some("/home/u".into()), current: dir.path().into() };
        Config::load(&overrides, &env)
    }

    const YAML: &str = "storage:\n  endpoint: https://s3.us-west-000.backblazeb2.com\n  bucket: b\n  region: r\n  \
                        access_key: yk\n  secret_key: ys\ncache:\n  max_local_gb: 1.5\nteam:\n  prefix: /t/x/\n  allow_gated: true\n";

    #[test]
    fn credential_pairs_are_whole_or_ignored() {
        let b2 = [("B2_APPLICATION_KEY_ID", "i"), ("B2_APPLICATION_KEY", "s")];
        let aws = [("AWS_ACCESS_KEY_ID", "i"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_SESSION_TOKEN", "t")];
        let source = |vars: &[(&str, &str)], yaml| load(yaml, vars, Overrides::default()).unwrap();
        assert_eq!(source(&[b2, [aws[0], aws[1]]].concat(), Some(YAML)).storage.credentials.source(), "b2_env");
        let from_aws = source(&[&b2[..1], &aws[..]].concat(), Some(YAML));
        assert_eq!(from_aws.storage.credentials.source(), "aws_env");
        assert!(from_aws.storage.credentials.pair().unwrap().session_token.is_some());
        assert!(from_aws.warnings[0].contains("B2_APPLICATION_KEY_ID is set without B2_APPLICATION_KEY"));
        assert_eq!(source(&aws[..1], Some(YAML)).storage.credentials.source(), "config");
        let half = source(&aws[..1], None).storage.credentials;
        assert_eq!(half, Credentials::Incomplete("AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY".into()));
        assert_eq!(source(&[], None).storage.credentials.source(), "aws_chain");
    }

    #[test]
    fn flags_win_over_environment_over_yaml() {
        let env = [("B2_BUCKET", "eb"), ("B2_REGION", "er"), ("AWS_ENDPOINT_URL", "http://x:1")];
        let config = load(Some(YAML), &env, Overrides { bucket: Some("fb".into()), ..Default::default() }).unwrap();
        assert_eq!(config.storage.bucket().unwrap(), "fb");
        assert_eq!(config.storage.region.as_deref(), Some("er"));
        assert_eq!(config.storage.endpoint.as_deref(), Some("https://s3.us-west-000.backblazeb2.com"));
        assert_eq!((config.team.prefix.as_str(), config.team.allow_gated), ("t/x/", true));
        assert_eq!(config.cache.max_local_bytes, 1_610_612_736);
        let none = load(None, &env, Overrides::default()).unwrap();
        assert_eq!(none.storage.endpoint.as_deref(), Some("http://x:1"));
        let b2 = load(None, &[("B2_ENDPOINT", "s3.eu-central-003.backblazeb2.com/")], Overrides::default()).unwrap();
        assert_eq!(b2.storage.endpoint.as_deref(), Some("https://s3.eu-central-003.backblazeb2.com"));
        assert_eq!(b2.storage.region.as_deref(), Some("eu-central-003"));
    }

    #[test]
    fn errors_name_file_line_and_key_and_no_secret() {
        let text = |yaml: &str| load(Some(yaml), &[], Overrides::default()).unwrap_err().to_string();
        let flag = text("team:\n  allow_gated: \"false\"\n");
        assert!(flag.contains(FILE_NAME) && flag.contains("allow_gated") && flag.contains("line 2"), "{flag}");
        let secret = text("storage:\n  secret_key: 123456789\n");
        assert!(secret.contains("secret_key") && secret.contains("line 2") && !secret.contains("123456"), "{secret}");
        assert!(text("storage: [1]\n").contains("line 1"));
        assert!(text("cache:\n  max_local_gb: -1\n").contains("max_local_gb"));
        assert!(text("a: [\n").contains("line"));
        assert!(text("- a\n").contains("line 1"));
        assert!(!format!("{:?}", load(Some(YAML), &[], Overrides::default()).unwrap()).contains("ys"));
    }

    #[test]
    fn unknown_keys_warn_and_name_the_nearest() {
        let yaml = "storage:\n  buket: x\n  endpoint:\nzzz: 1\nteam:\n  allow_gated: yes\n";
        let config = load(Some(yaml), &[], Overrides::default()).unwrap();
        assert!(config.warnings[0].contains("`storage.buket` is ignored; did you mean `storage.bucket`?"));
        assert!(config.warnings[1].ends_with("unknown key `zzz` is ignored"));
        assert!(config.team.allow_gated);
        assert!(load(Some(""), &[], Overrides::default()).unwrap().warnings.is_empty());
    }

    #[test]
    fn the_cache_is_where_the_client_looks() {
        let root =
            |yaml: Option<&str>, vars: &[(&str, &str)]| load(yaml, vars, Overrides::default()).unwrap().cache.root;
        assert_eq!(root(None, &[]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(root(None, &[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(root(None, &[("HF_HOME", "~/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/home/u/h/hub"));
        assert_eq!(
            root(None, &[("HF_HUB_CACHE", "$D/${E}/c$"), ("D", "/d"), ("HF_HOME", "/h")]),
            Path::new("/d/${E}/c$")
        );
        assert_eq!(root(None, &[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/h")]), Path::new("/old"));
        let yaml = Some("cache:\n  hf_cache_dir: ~/mine\n");
        assert_eq!(root(yaml, &[("HF_HUB_CACHE", "/x")]), Path::new("/home/u/mine"));
    }

    #[test]
    fn endpoints_and_buckets_are_checked() {
        for bad in ["ftp://x", "https://", "http://a b", "https://u:p@h", "http://h:99999", "http://h/?q"] {
            assert!(check_endpoint(bad).is_err(), "{bad}");
        }
        assert_eq!(check_endpoint("localhost:9000").unwrap(), "https://localhost:9000");
        assert_eq!(host_of("http://[::1]:9000/x"), "[::1]");
        assert!(check_bucket("s3://x").is_err());
        assert!(check_prefix("a/../b").is_err());
        assert!(
            is_backblaze("https://s3.us-west-004.backblazeb2.com") && !is_backblaze("https://backblazeb2.com.evil.org")
        );
    }
}
