//! Where a value comes from.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This option of the command line, without its dashes.
    Flag(&'static str),
    /// This environment variable.
    Variable(&'static str),
    /// The YAML file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line of the value, where it is known.
        line: Option<usize>,
        /// The key, such as `storage.bucket`.
        key: String,
    },
    /// The host of the endpoint.
    Host,
    /// Nothing was given.
    Default,
}

impl fmt::Display for Source {
    /// As in "the path comes from …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => write!(f, "--{name}"),
            Source::Variable(name) => f.write_str(name),
            Source::File { path, line: Some(line), key } => write!(f, "{key} in line {line} of {}", path.display()),
            Source::File { path, line: None, key } => write!(f, "{key} in {}", path.display()),
            Source::Host => f.write_str("the endpoint's host"),
            Source::Default => f.write_str("the default"),
        }
    }
}
