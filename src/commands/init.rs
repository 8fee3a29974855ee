//! `init`: writes a configuration to fill in.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{FILE_NAME, settings};
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
    match options.open(&path).and_then(|mut file| file.write_all(settings::template().as_bytes())) {
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
