//! `config show`: every setting, its value and its source. Works with an invalid configuration, too.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use crate::config::resolve::Resolution;
use crate::error::{Error, Kind};

const EXAMPLES: &str = "\
Examples:
  hf-cache-sync config show              every setting, its value and its source
  hf-cache-sync config show --json
  hf-cache-sync --bucket other config show";

/// Show the configuration that commands use
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The action
    #[command(subcommand)]
    pub action: Action,
}

/// The actions of `config`.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Print every setting, its value and its source; secrets are hidden
    #[command(after_help = EXAMPLES)]
    Show,
}

/// The report of `config show`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file that was read.
    #[serde(serialize_with = "crate::lossy::optional")]
    pub file: Option<PathBuf>,
    /// The option or variable that names the file, if any.
    pub file_source: Option<String>,
    /// Where the file is looked for unless one is named.
    #[serde(serialize_with = "crate::lossy::all")]
    pub searched: Vec<PathBuf>,
    /// The settings, in the order of the file.
    pub settings: Vec<Row>,
    /// The source of the credentials, as in `doctor`.
    pub credentials: &'static str,
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// Adjustments to the user's values.
    pub notes: Vec<String>,
    /// Invalid values.
    pub failures: Vec<Error>,
}

/// A setting.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name in the file, or the variable if only the environment can set it.
    pub name: String,
    /// Its value; null if there is none or if it is secret.
    pub value: Option<String>,
    /// Whether there is a value that is not shown.
    pub hidden: bool,
    /// Where the value was set; null for the default.
    pub source: Option<String>,
    /// The default value, in words.
    pub default: String,
}

impl Report {
    /// Returns the kind of failure that determines the exit code.
    pub fn failed(&self) -> Option<Kind> {
        self.failures.first().map(|failure| failure.kind())
    }
}

/// Creates the report.
pub fn execute(found: Resolution) -> Report {
    let mut settings: Vec<Row> = Vec::new();
    for given in &found.values {
        let secret = given.setting.is_secret();
        let is_set = given.value.is_some();
        let value = given.value.as_ref().filter(|_| !secret).map(|value| value.to_string_lossy().into_owned());
        settings.push(Row {
            name: given.setting.name(),
            value,
            hidden: secret && is_set,
            source: is_set.then(|| given.source.to_string()).filter(|_| given.source != crate::config::Source::Default),
            default: given.setting.default.to_string(),
        });
    }
    settings.extend(found.variables.into_iter().map(|variable| Row {
        name: variable.name.to_string(),
        hidden: variable.value.is_none(),
        source: Some("environment".to_string()),
        value: variable.value,
        default: "none".to_string(),
    }));
    Report {
        file: found.file,
        file_source: Some(found.file_source).filter(|s| *s != crate::config::Source::Default).map(|s| s.to_string()),
        searched: found.searched,
        settings,
        credentials: found.credentials.source(),
        warnings: found.warnings,
        notes: found.notes,
        failures: found.problems,
    }
}
