//! `init`: writes a configuration template.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{FILE_NAME, settings};
use crate::error::{Error, Result, shown};
use crate::{files, platform};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync init                     write ./.hf-cache-sync.yaml
  hf-cache-sync init --config team.yaml  write another file
  hf-cache-sync doctor                   check the edited file";

/// Write a configuration template to ./.hf-cache-sync.yaml, or to the file of --config
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// The report of `init`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file.
    #[serde(serialize_with = "crate::lossy::path")]
    pub path: PathBuf,
    /// Whether the file was created; an existing file is left alone.
    pub created: bool,
    /// Whether the user named the file, which then has to be passed to the other commands as well.
    #[serde(skip)]
    pub named: bool,
}

/// Writes the template to the `named` file, or to the default one in the current directory.
///
/// # Errors
/// When the file cannot be written.
pub fn execute(current: &Path, named: Option<PathBuf>) -> Result<Report> {
    let report = |path, created| Report { path, created, named: named.is_some() };
    let path = named.clone().unwrap_or_else(|| current.join(FILE_NAME));
    if path.is_dir() {
        return Err(Error::usage(format!("cannot write the configuration to {}", shown(&path)))
            .because("it is a directory")
            .hint("name a file inside it, such as team.yaml"));
    }
    match write_template(&path, settings::template().as_bytes()) {
        Ok(created) => Ok(report(path, created)),
        Err(error) => Err(Error::io("cannot write", &path, &error)),
    }
}

/// Creates the file, or completes it if an earlier run was interrupted. Returns false if there is another file.
fn write_template(path: &Path, template: &[u8]) -> io::Result<bool> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    platform::set_mode(&mut options, 0o600);
    let (mut file, written) = match options.open(path) {
        Ok(file) => (file, 0),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let start = files::open(path).and_then(|mut file| files::read_rest(&mut file, template.len() as u64 - 1));
            match start {
                Ok(Some(start)) if template.starts_with(&start) => {
                    (files::open_with(OpenOptions::new().write(true), path)?, start.len())
                }
                _ => return Ok(false),
            }
        }
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(written as u64))?;
    file.write_all(&template[written..])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment, Overrides};

    #[test]
    fn the_template_is_a_valid_configuration() {
        let dir = tempfile::tempdir().unwrap();
        assert!(execute(dir.path(), None).unwrap().created);
        let none = |_: &str| None;
        let env = Environment { var: &none, home: Some("/h".into()), current: dir.path().into() };
        let config = Config::load(&Overrides::default(), &env).unwrap();
        assert_eq!(config.storage.bucket.as_deref(), Some("my-hf-cache"));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn an_interrupted_template_is_completed_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let template = settings::template();
        let shorter = (0..template.len()).step_by(97).map(|length| (&template[..length], true));
        for (content, created) in
            shorter.chain([("storage:\n", false), (&*template, false), (&format!("{template}#"), false)])
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(execute(dir.path(), None).unwrap().created, created, "{content:?}");
            let expected = if created { &*template } else { content };
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        }
    }
}
