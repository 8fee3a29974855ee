//! The source of a value.

use std::fmt;
use std::path::PathBuf;

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A command-line option, without its dashes.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// The YAML file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line of the value, if known.
        line: Option<usize>,
        /// The key, such as `storage.bucket`.
        key: String,
    },
    /// The host of the endpoint.
    Host,
    /// The built-in default.
    Default,
}

impl fmt::Display for Source {
    /// Completes "the path comes from …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => write!(f, "--{name}"),
            Source::Variable(name) => f.write_str(name),
            Source::File { path, line: Some(line), key } => write!(f, "{key} on line {line} of {}", path.display()),
            Source::File { path, line: None, key } => write!(f, "{key} in {}", path.display()),
            Source::Host => f.write_str("the endpoint's host"),
            Source::Default => f.write_str("the default"),
        }
    }
}
