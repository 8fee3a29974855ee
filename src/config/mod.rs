//! Configuration: flags, environment and YAML, resolved once into a validated [`Config`].
//!
//! Precedence, highest first, as in 0.1.0:
//! - Credentials: the `B2_APPLICATION_KEY_ID` pair, the `AWS_ACCESS_KEY_ID` pair, the YAML pair, then the standard AWS
//!   sources (profiles, SSO, web identity, container, instance metadata). Halves of different pairs are never combined.
//!   The AWS sources are consulted lazily, by the client.
//! - All other settings: flags, this tool's own variables and `B2_*`, YAML, then the variables of other tools.
//!
//! [`settings`] defines each setting once, [`resolve`] finds its value, and this module turns the values into types.

pub mod credentials;
mod environment;
pub mod hosts;
mod hub;
pub mod resolve;
pub mod settings;
mod source;
pub mod values;
mod yaml;

pub use credentials::{Credentials, KeyPair, Secret};
pub use environment::Environment;
pub use hub::Hub;
pub use resolve::{Overrides, SettingValue};
pub use source::Source;
pub use values::{Addressing, Checksums, Encryption, GigaBytes, host_of, is_backblaze};

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::model::pins::Pins;
use crate::net::Network;
use resolve::Resolution;

/// The configuration file's name, looked for in the current directory and then in the home directory.
pub const FILE_NAME: &str = ".hf-cache-sync.yaml";

/// The environment variable that names the configuration file.
pub const FILE_VARIABLE: &str = "HF_CACHE_SYNC_CONFIG";

/// The validated configuration that commands run with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The Hugging Face Hub.
    pub hub: Hub,
    /// Certificate bundles and proxy exceptions, for both the Hub and the store.
    pub network: Network,
    /// The bucket, and how to reach it.
    pub storage: Storage,
    /// The local cache.
    pub cache: Cache,
    /// Team settings.
    pub team: Team,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Warnings for the user, such as unknown keys and incomplete credential pairs that were ignored.
    pub warnings: Vec<String>,
    /// Adjustments to the user's values that may come as a surprise.
    pub notes: Vec<String>,
    /// The value of each setting and its source.
    pub values: Vec<SettingValue>,
}

/// The bucket, and how to talk to its store.
#[derive(Debug, Clone)]
pub struct Storage {
    /// URL with a scheme, or `None` for AWS's own endpoint.
    pub endpoint: Option<String>,
    /// Bucket name; see [`Storage::bucket`].
    pub bucket: Option<String>,
    /// The region, if it is configured or can be inferred from the endpoint's host.
    pub region: Option<String>,
    /// The credentials; unused if `unsigned` is set.
    pub credentials: Credentials,
    /// Whether the bucket is part of the host or of the path.
    pub addressing: Addressing,
    /// The checksum sent with PutObject and UploadPart for the store to verify.
    pub checksums: Checksums,
    /// The encryption requested by PutObject and CreateMultipartUpload, or `None` for the bucket's default.
    pub encryption: Option<Encryption>,
    /// The storage class requested by PutObject and CreateMultipartUpload, or `None` for the bucket's default.
    pub storage_class: Option<String>,
    /// Whether requests are billed to the requester (`x-amz-request-payer: requester`).
    pub requester_pays: bool,
    /// Whether requests are sent unsigned, without looking for credentials.
    pub unsigned: bool,
    /// Maximum number of parts in a multipart upload.
    pub max_parts: u32,
    /// How long the store may take to respond.
    pub timeout: Duration,
    /// Whether to use AWS's dual-stack endpoint, which is also reachable over IPv6. Never set together with `endpoint`.
    pub dual_stack: bool,
    /// Whether to use AWS's FIPS 140 endpoint. Never set together with `endpoint`.
    pub fips: bool,
}

impl Storage {
    /// Returns what looks wrong with the credentials, judging by their format alone.
    pub fn suspicion(&self) -> Option<&'static str> {
        self.credentials.pair()?.suspicion(self.endpoint.as_deref())
    }

    /// Returns the bucket's name, which every command that talks to the store requires.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] when none is configured.
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
    /// The source of `root`.
    pub source: Source,
    /// Disk budget of `prune`, in bytes.
    pub max_local_bytes: u64,
    /// Whether `prune` evicts only what the bucket holds.
    pub prune_require_remote: bool,
    /// Revisions that `prune` never evicts.
    pub keep: Pins,
    /// Whether to push LFS/Xet pointer files as well.
    pub sync_xet: bool,
}

/// Team settings.
#[derive(Debug, Clone)]
pub struct Team {
    /// Key prefix: empty, or ending in a single `/`.
    pub prefix: String,
    /// Whether to push and pull repos that look gated.
    pub allow_gated: bool,
}

impl Config {
    /// Resolves the configuration.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`], naming the file and line, the variable or the option that is invalid.
    pub fn load(overrides: &Overrides, env: &Environment<'_>) -> Result<Config> {
        Resolution::gather(overrides, env).into_config()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::path::Path;

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
                        access_key: yk\n  secret_key: y-secret\ncache:\n  max_local_gb: 1.5\nteam:\n  prefix: /t/x/\n  allow_gated: true\n";

    #[test]
    fn incomplete_credential_pairs_are_ignored() {
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
    fn debug_output_has_no_secrets() {
        let yaml =
            "storage:\n  bucket: b\n  endpoint: http://store:1\n  access_key: f-SEKRIT\n  secret_key: g-SEKRIT\n";
        let vars = [
            ("B2_APPLICATION_KEY_ID", "a-SEKRIT"),
            ("B2_APPLICATION_KEY", "b-SEKRIT"),
            ("AWS_ACCESS_KEY_ID", "c-SEKRIT"),
            ("AWS_SECRET_ACCESS_KEY", "d-SEKRIT"),
            ("AWS_SESSION_TOKEN", "e-SEKRIT"),
            ("HF_TOKEN", "hf_SEKRIT"),
            ("HF_ENDPOINT", "http://user:SEKRIT@hub"),
            ("HTTPS_PROXY", "http://user:SEKRIT@proxy:1"),
        ];
        // Each time, the first pair is left out.
        for left_out in [0, 2, 5] {
            let config = load(Some(yaml), &vars[left_out..], Overrides::default()).unwrap();
            assert!(!format!("{config:?}").contains("SEKRIT"), "{config:?}");
        }
        let var = |name: &str| Some(vars.iter().find(|(known, _)| *known == name)?.1.to_string());
        let env = Environment { var: &var, home: None, current: "/now".into() };
        // An endpoint with a password is refused.
        let endpoint = Overrides::default().with("endpoint", "http://user:SEKRIT@store");
        for overrides in [Overrides::default(), endpoint] {
            let found = Resolution::gather(&overrides, &env);
            assert!(!format!("{found:?}").contains("SEKRIT"), "{found:?}");
        }
    }

    #[test]
    fn flags_win_over_environment_over_yaml() {
        let env = [("B2_BUCKET", "eb"), ("B2_REGION", "er"), ("AWS_ENDPOINT_URL", "http://x:1")];
        let config = load(Some(YAML), &env, Overrides::default().with("bucket", "fb")).unwrap();
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
    fn errors_name_file_line_and_key_but_no_secret() {
        let text = |yaml: &str| load(Some(yaml), &[], Overrides::default()).unwrap_err().to_string();
        let flag = text("team:\n  allow_gated: \"false\"\n");
        assert!(flag.contains(FILE_NAME) && flag.contains("allow_gated") && flag.contains("line 2"), "{flag}");
        let secret = text("storage:\n  secret_key: 123456789\n");
        assert!(secret.contains("secret_key") && secret.contains("line 2") && !secret.contains("123456"), "{secret}");
        assert!(text("storage: [1]\n").contains("line 1"));
        assert!(text("cache:\n  max_local_gb: -1\n").contains("max_local_gb"));
        assert!(text("a: [\n").contains("line"));
        assert!(text("- a\n").contains("line 1"));
        assert!(!format!("{:?}", load(Some(YAML), &[], Overrides::default()).unwrap()).contains("y-secret"));
    }

    #[test]
    fn unknown_keys_warn_and_suggest_the_nearest() {
        let yaml = "storage:\n  buket: x\n  endpoint:\nzzz: 1\nteam:\n  allow_gated: yes\n";
        let config = load(Some(yaml), &[], Overrides::default()).unwrap();
        assert!(config.warnings[0].contains("`storage.buket` is ignored; did you mean `storage.bucket`?"));
        assert!(config.warnings[1].ends_with("unknown key `zzz` is ignored"));
        assert!(config.team.allow_gated);
        assert!(load(Some(""), &[], Overrides::default()).unwrap().warnings.is_empty());
    }

    #[test]
    fn cache_location_matches_huggingface_hub() {
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
}
