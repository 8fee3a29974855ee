//! `init`: writes a configuration to fill in.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::FILE_NAME;
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync init                     writes ./.hf-cache-sync.yaml to fill in
  hf-cache-sync doctor                   tells whether it works";

/// Write a configuration template to ./.hf-cache-sync.yaml
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file.
    #[serde(serialize_with = "crate::lossy::path")]
    pub path: PathBuf,
    /// Whether it was written now; a file that is there is left alone.
    pub created: bool,
}

const TEMPLATE: &str = "\
# hf-cache-sync configuration. Searched in the current directory, then in the home directory.
# Command line options, B2_* variables and an exported AWS key pair win over this file. It wins over HF_HUB_CACHE,
# HF_HOME and the other AWS_* variables. See docs/configuration.md.
storage:
  endpoint: https://s3.us-west-000.backblazeb2.com   # Backblaze B2 or any S3-compatible store
  bucket: my-hf-cache
  region: us-west-000
  access_key: \"\"          # better left empty: export B2_APPLICATION_KEY_ID
  secret_key: \"\"          # and B2_APPLICATION_KEY instead

cache:
  max_local_gb: 50        # budget of `hf-cache-sync prune`, in units of 2^30 bytes
  sync_xet: false         # push LFS/Xet pointer files too
  # hf_cache_dir: ~/.cache/huggingface/hub   # default: where huggingface_hub looks

team:
  prefix: \"\"              # all keys in the bucket begin with this
  allow_gated: false      # also push and pull repos whose licence looks gated
";

/// Writes the template into `dir`.
///
/// # Errors
/// When the file cannot be written.
pub fn execute(dir: &Path) -> Result<Report> {
    let path = dir.join(FILE_NAME);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(&path).and_then(|mut file| file.write_all(TEMPLATE.as_bytes())) {
        Ok(()) => Ok(Report { path, created: true }),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Report { path, created: false }),
        Err(error) => Err(Error::io("cannot write", &path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment, Overrides};

    #[test]
    fn the_template_is_a_valid_configuration() {
        let dir = tempfile::tempdir().unwrap();
        assert!(execute(dir.path()).unwrap().created);
        let none = |_: &str| None;
        let env = Environment { var: &none, home: Some("/h".into()), current: dir.path().into() };
        let config = Config::load(&Overrides::default(), &env).unwrap();
        assert_eq!(config.storage.bucket.as_deref(), Some("my-hf-cache"));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }
}
