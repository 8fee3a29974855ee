//! Configuration: YAML, environment and flags, resolved once into a validated [`Config`].
//!
//! Precedence, highest first, as in 0.1.0: flags; for credentials the `B2_APPLICATION_KEY_ID` pair, the
//! `AWS_ACCESS_KEY_ID` pair, the YAML pair, each pair taken whole or not at all; for all other settings the variables
//! of this tool and `B2_*`, then YAML, then the variables of other tools. Below all of these the standard AWS sources
//! (profiles, SSO, web identity, container, instance metadata), which only the client looks up, when it is first needed.
//!
//! [`settings`] defines each setting once; [`resolve`] finds what is given for it; here it gets its type.

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
pub use resolve::{Given, Overrides};
pub use source::Source;
pub use values::{Addressing, Checksums, Encryption, GigaBytes, host_of, is_backblaze};

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::net::Network;
use resolve::Resolution;

/// The file name that is searched in the current and then in the home directory.
pub const FILE_NAME: &str = ".hf-cache-sync.yaml";

/// The variable that names a file.
pub const FILE_VARIABLE: &str = "HF_CACHE_SYNC_CONFIG";

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
    /// What was made of what was given, where that may surprise.
    pub notes: Vec<String>,
    /// What was given for each setting, and where.
    pub given: Vec<Given>,
}

/// Where the bucket is, and how it wants to be talked to.
#[derive(Debug, Clone)]
pub struct Storage {
    /// URL with a scheme; `None`: AWS's own.
    pub endpoint: Option<String>,
    /// Bucket name; see [`Storage::bucket`].
    pub bucket: Option<String>,
    /// Region, when it was given or follows from the endpoint's host.
    pub region: Option<String>,
    /// Whose keys. Not used where `unsigned` is set.
    pub credentials: Credentials,
    /// Where the bucket stands in a URL.
    pub addressing: Addressing,
    /// What is sent with PutObject and UploadPart for the store to compare.
    pub checksums: Checksums,
    /// The encryption that PutObject and CreateMultipartUpload ask for; `None`: the bucket's own.
    pub encryption: Option<Encryption>,
    /// The storage class that PutObject and CreateMultipartUpload ask for; `None`: the bucket's own.
    pub storage_class: Option<String>,
    /// Whether every request says that its sender pays (`x-amz-request-payer: requester`).
    pub requester_pays: bool,
    /// Whether requests go without a signature, and no credentials are looked for.
    pub unsigned: bool,
    /// The most parts of one upload.
    pub max_parts: u32,
    /// Whether AWS's own endpoint is the one that IPv6 reaches too. Never set together with `endpoint`.
    pub dual_stack: bool,
    /// Whether AWS's own endpoint is the one validated for FIPS 140. Never set together with `endpoint`.
    pub fips: bool,
}

impl Storage {
    /// What looks wrong with the credentials by their shape alone.
    pub fn suspicion(&self) -> Option<&'static str> {
        self.credentials.pair()?.suspicion(self.endpoint.as_deref())
    }

    /// The bucket, required by every command that talks to the store.
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
    /// Where its path comes from.
    pub source: Source,
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

impl Config {
    /// Resolves the configuration.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] that names the file and line, the variable or the option that cannot be used.
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
        assert!(!format!("{:?}", load(Some(YAML), &[], Overrides::default()).unwrap()).contains("y-secret"));
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
}
