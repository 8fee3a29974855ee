//! The process environment: variables, home directory and current directory. It is passed in, so that nothing in this
//! module depends on the process.

use std::path::PathBuf;

use super::source::Source;
use crate::error::{Error, Result};

/// The parts of the process environment that the configuration depends on.
pub struct Environment<'a> {
    /// Looks up a variable.
    pub var: &'a dyn Fn(&str) -> Option<String>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// The current directory.
    pub current: PathBuf,
}

impl Environment<'_> {
    /// Returns a variable that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.var)(name).filter(|value| !value.is_empty())
    }

    /// Expands `~` and `~/…` to the home directory.
    pub(super) fn expand_home(&self, text: &str) -> String {
        match (text.strip_prefix('~'), &self.home) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(['/', std::path::MAIN_SEPARATOR]) => {
                format!("{}{rest}", home.display())
            }
            _ => text.to_string(),
        }
    }

    /// Expands a path as huggingface_hub does: first `~`, then `$VAR` and `${VAR}`. Unset variables are left as they are.
    pub(super) fn expand(&self, text: &str) -> PathBuf {
        let path = self.expand_home(text);
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
            match Some(name).filter(|name| !name.is_empty()).and_then(|name| (self.var)(name)) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..at + 1 + length]),
            }
            rest = &after[length..];
        }
        out.push_str(rest);
        PathBuf::from(out)
    }

    /// Returns huggingface_hub's default cache, from HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME or
    /// ~/.cache, in that order.
    pub(super) fn default_cache(&self) -> Result<(PathBuf, Source)> {
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
            if let Some(path) = self.get(name) {
                return Ok((self.expand(&path), Source::Variable(name)));
            }
        }
        if let Some(home) = self.get("HF_HOME") {
            return Ok((self.expand(&home).join("hub"), Source::Variable("HF_HOME")));
        }
        let (cache, source) = match (self.get("XDG_CACHE_HOME"), &self.home) {
            (Some(path), _) => (self.expand(&path), Source::Variable("XDG_CACHE_HOME")),
            (None, Some(home)) => (home.join(".cache"), Source::Default),
            (None, None) => {
                return Err(Error::usage("cannot find the Hugging Face cache")
                    .because("there is no home directory")
                    .hint("set HF_HUB_CACHE or pass --cache-dir"));
            }
        };
        Ok((cache.join("huggingface").join("hub"), source))
    }
}
