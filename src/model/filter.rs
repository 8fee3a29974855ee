//! The filters of `--include` and `--exclude`: [`RepoFilter`] for repos, [`PathFilter`] for the files of a revision. The
//! patterns are those of [`super::glob`]. Pure.

use std::fmt;

use super::glob::Glob;
use crate::error::{Error, Result, printable};
use crate::model::ids::{RepoName, RepoPath, RepoType};

/// Include and exclude patterns for repos. A type before a colon (`dataset:org/*`) limits a pattern to that type. A
/// pattern without one applies to all types.
#[derive(Debug, Clone, Default)]
pub struct RepoFilter {
    include: Vec<RepoPattern>,
    exclude: Vec<RepoPattern>,
}

/// A pattern for repo ids.
#[derive(Debug, Clone)]
pub(super) struct RepoPattern {
    kind: Option<RepoType>,
    id: Glob,
}

impl RepoFilter {
    /// Parses the patterns.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] for a pattern that is not valid: an unclosed `[`, an empty range, an unknown
    /// type, or an empty pattern.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let hint = "patterns are like org/*, dataset:org/*, *-GGUF, model-[0-9]";
        let parse = |flag, texts| parse_all(flag, texts, RepoPattern::parse, hint);
        Ok(RepoFilter { include: parse("include", include)?, exclude: parse("exclude", exclude)? })
    }

    /// Returns whether the repo is included, or there are no include patterns, and is not excluded.
    pub fn allows(&self, repo: &RepoName) -> bool {
        let any = |patterns: &[RepoPattern]| patterns.iter().any(|pattern| pattern.matches(repo));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

impl RepoPattern {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let endpoint = std::env::var("HF_ENDPOINT").ok();
        let (kind, id) = crate::model::ids::pattern(text, endpoint.as_deref())?;
        Ok(RepoPattern { kind, id: Glob::parse(id)? })
    }

    pub(super) fn matches(&self, repo: &RepoName) -> bool {
        self.kind.is_none_or(|kind| kind == repo.kind) && self.id.matches(repo.id.as_str())
    }
}

/// Include and exclude patterns for the files of a revision, like huggingface_hub's `allow_patterns` and
/// `ignore_patterns`: each is compared with the whole path, and a trailing `/` stands for everything below a folder.
#[derive(Debug, Clone, Default)]
pub struct PathFilter {
    include: Vec<PathPattern>,
    exclude: Vec<PathPattern>,
}

/// A pattern for paths.
#[derive(Debug, Clone)]
struct PathPattern {
    text: String,
    glob: Glob,
}

impl PathFilter {
    /// Parses the patterns.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] for a pattern that is not valid: an unclosed `[`, an empty range, or an empty
    /// pattern.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let parse_one = |text: &str| {
            let glob = if text.ends_with('/') { Glob::parse(&format!("{text}*")) } else { Glob::parse(text) };
            glob.map(|glob| PathPattern { text: text.to_string(), glob })
        };
        let hint = "patterns are like '*.safetensors', 'onnx/*', 'model-0000[1-4]*'";
        let parse = |flag, texts| parse_all(flag, texts, parse_one, hint);
        Ok(PathFilter { include: parse("include", include)?, exclude: parse("exclude", exclude)? })
    }

    /// Returns whether there are no patterns, so that every file is allowed.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Returns whether the file is included, or there are no include patterns, and is not excluded.
    pub fn allows(&self, path: &RepoPath) -> bool {
        let any = |patterns: &[PathPattern]| patterns.iter().any(|pattern| pattern.glob.matches(path.as_str()));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// Returns the include patterns that match none of these paths.
    pub fn unmatched_includes<'a>(
        &'a self,
        paths: impl Iterator<Item = &'a RepoPath> + Clone,
    ) -> impl Iterator<Item = &'a str> {
        let matches = move |glob: &Glob| paths.clone().any(|path| glob.matches(path.as_str()));
        self.include.iter().filter(move |pattern| !matches(&pattern.glob)).map(|pattern| pattern.text.as_str())
    }
}

impl fmt::Display for PathFilter {
    /// Shows the patterns as options: `--include '*.json' --exclude 'onnx/'`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let include = self.include.iter().map(|pattern| ("--include", pattern));
        let all = include.chain(self.exclude.iter().map(|pattern| ("--exclude", pattern)));
        let all: Vec<String> = all.map(|(flag, one)| format!("{flag} '{}'", printable(&one.text, 100))).collect();
        f.write_str(&all.join(" "))
    }
}

/// Parses the patterns of a flag with `parse`.
fn parse_all<T>(flag: &str, texts: &[String], parse: impl Fn(&str) -> Result<T, String>, hint: &str) -> Result<Vec<T>> {
    let all = texts.iter().map(|text| {
        parse(text).map_err(|why| {
            Error::usage(format!("--{flag} '{}' is not a valid pattern", printable(text, 100))).because(why).hint(hint)
        })
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_limit_patterns_and_exclude_wins_over_include() {
        let repo = |kind, id: &str| RepoName::new(kind, id.parse().unwrap());
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let filter = RepoFilter::new(&texts(&["dataset:org/*", "gpt2"]), &texts(&["*/secret"])).unwrap();
        assert!(filter.allows(&repo(RepoType::Dataset, "org/a")));
        assert!(!filter.allows(&repo(RepoType::Model, "org/a")));
        assert!(filter.allows(&repo(RepoType::Model, "gpt2")) && filter.allows(&repo(RepoType::Space, "gpt2")));
        assert!(!filter.allows(&repo(RepoType::Dataset, "org/secret")));
        let all = RepoFilter::new(&[], &texts(&["model:*"])).unwrap();
        assert!(all.allows(&repo(RepoType::Kernel, "org/a")) && !all.allows(&repo(RepoType::Model, "org/a")));
    }

    #[test]
    fn invalid_patterns_are_rejected() {
        for bad in ["", "org/[a", "org/[]", "org/[!]", "[z-a]", "foo:org/*", "dataset:"] {
            let error = RepoFilter::new(&[bad.to_string()], &[]).unwrap_err();
            assert_eq!(error.cause, crate::error::Cause::Usage, "{bad}");
            assert!(error.what.contains("--include"), "{error}");
        }
    }

    #[test]
    fn files_are_filtered_like_by_huggingface_hub() {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let allowed = |include: &[&str], exclude: &[&str]| {
            let filter = PathFilter::new(&texts(include), &texts(exclude)).unwrap();
            let paths = ["config.json", "model.safetensors", "onnx/model.onnx", "onnx/q/x.json"];
            paths.into_iter().filter(|path| filter.allows(&path.parse().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(allowed(&[], &[]).len(), 4);
        assert_eq!(allowed(&["*.json"], &[]), ["config.json", "onnx/q/x.json"]);
        assert_eq!(allowed(&["onnx/"], &[]), ["onnx/model.onnx", "onnx/q/x.json"]);
        assert_eq!(allowed(&["onnx"], &[]), [""; 0]);
        assert_eq!(allowed(&["onnx/", "config.json"], &["*.onnx"]), ["config.json", "onnx/q/x.json"]);
        assert_eq!(allowed(&[], &["onnx/"]), ["config.json", "model.safetensors"]);
        let error = PathFilter::new(&[], &texts(&["[a"])).unwrap_err();
        assert!(error.what.contains("--exclude"), "{error}");
    }
}
