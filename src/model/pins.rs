//! Pins: the patterns of `--keep` and `cache.keep`, whose revisions `prune` never evicts. Pure.
//!
//! A pattern is one of [`super::filter`], optionally followed by `@` and a pattern for the revision, which is compared
//! with the refs that name it and with its commit. Four or more digits of a commit are enough.

use super::filter::RepoPattern;
use super::glob::Glob;
use super::ids::{Commit, RefName, RepoName};
use crate::error::{Error, Result, printable};

/// Patterns for revisions that are never evicted.
#[derive(Debug, Clone, Default)]
pub struct Pins(Vec<Pin>);

#[derive(Debug, Clone)]
struct Pin {
    /// As the user wrote it.
    text: String,
    repo: RepoPattern,
    revision: Option<RevisionPattern>,
}

#[derive(Debug, Clone)]
struct RevisionPattern {
    text: String,
    glob: Glob,
}

impl Pins {
    /// Parses the values of an option.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] for a pattern that is not valid.
    pub fn new(flag: &str, texts: &[String]) -> Result<Pins> {
        let pin = |text: &String| {
            Pin::parse(text).map_err(|why| {
                Error::usage(format!("--{flag} '{}' is not a valid pattern", printable(text, 100)))
                    .because(why)
                    .hint("patterns are like org/*, dataset:org/name, org/name@v1.0, *@main")
            })
        };
        texts.iter().map(pin).collect::<Result<Vec<_>>>().map(Pins)
    }

    /// Parses patterns that are separated by commas or white space, neither of which occurs in the name of a repo.
    ///
    /// # Errors
    /// The first pattern that is not valid, and why.
    pub fn parse_list(text: &str) -> Result<Pins, String> {
        let texts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|text| !text.is_empty());
        let pin = |text: &str| Pin::parse(text).map_err(|why| format!("'{}': {why}", printable(text, 100)));
        texts.map(pin).collect::<Result<Vec<_>, _>>().map(Pins)
    }

    /// Returns these and more.
    pub fn and(mut self, more: Pins) -> Pins {
        self.0.extend(more.0);
        self
    }

    /// Returns whether a pattern matches the revision, which these refs name.
    pub fn match_revision(&self, repo: &RepoName, commit: &Commit, refs: &[RefName]) -> bool {
        self.0.iter().any(|pin| pin.matches(repo, commit, refs))
    }

    /// Returns the patterns that match none of these revisions.
    pub fn unmatched<'a>(&'a self, revisions: &[(&RepoName, &Commit, Vec<RefName>)]) -> impl Iterator<Item = &'a str> {
        let is_used = |pin: &Pin| revisions.iter().any(|(repo, commit, refs)| pin.matches(repo, commit, refs));
        self.0.iter().filter(move |pin| !is_used(pin)).map(|pin| pin.text.as_str())
    }
}

impl Pin {
    fn matches(&self, repo: &RepoName, commit: &Commit, refs: &[RefName]) -> bool {
        self.repo.matches(repo) && self.revision.as_ref().is_none_or(|revision| revision.matches(commit, refs))
    }

    fn parse(text: &str) -> Result<Pin, String> {
        let (repo, revision) = match text.trim().split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let revision = match revision {
            Some("") => return Err("the revision after the @ is empty".into()),
            Some(text) => Some(RevisionPattern { text: text.to_string(), glob: Glob::parse(text)? }),
            None => None,
        };
        Ok(Pin { text: text.trim().to_string(), repo: RepoPattern::parse(repo)?, revision })
    }
}

impl RevisionPattern {
    fn matches(&self, commit: &Commit, refs: &[RefName]) -> bool {
        let is_prefix = self.text.len() >= 4 && commit.as_str().starts_with(&self.text);
        is_prefix || self.glob.matches(commit.as_str()) || refs.iter().any(|name| self.glob.matches(name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;

    #[test]
    fn pins_match_repos_and_revisions() {
        let commit: Commit = "abcd".repeat(10).parse().unwrap();
        let repo = |kind| RepoName::new(kind, "org/name".parse().unwrap());
        let matches = |text: &str, kind, refs: &[&str]| {
            let refs: Vec<RefName> = refs.iter().map(|name| name.parse().unwrap()).collect();
            Pins::parse_list(text).unwrap().match_revision(&repo(kind), &commit, &refs)
        };
        for (text, refs, expected) in [
            ("", &["main"][..], false),
            ("org/*", &[], true),
            ("other/*, org/name", &[], true),
            ("model:org/*", &[], true),
            ("dataset:org/*", &[], false),
            ("org/name@main", &["main", "v1.0"], true),
            ("org/name@v*", &["main", "v1.0"], true),
            ("org/name@v2*", &["main", "v1.0"], false),
            ("*@refs/pr/*", &["refs/pr/3"], true),
            ("*@main", &[], false),
            ("org/name@abcdab", &[], true),
            ("org/name@abc", &[], false),
            ("org/name@*", &[], true),
        ] {
            assert_eq!(matches(text, RepoType::Model, refs), expected, "{text}");
        }
        assert!(matches("dataset:org/*", RepoType::Dataset, &[]));
        assert!(matches("org/*", RepoType::Dataset, &[]), "a pattern without a type applies to all types");
    }

    #[test]
    fn patterns_without_a_match_are_named() {
        let commit: Commit = "abcd".repeat(10).parse().unwrap();
        let repo = RepoName::new(RepoType::Model, "org/name".parse().unwrap());
        let revisions = [(&repo, &commit, vec!["main".parse().unwrap()])];
        let pins = Pins::parse_list("org/*, orgg/*, org/name@main, org/name@v1, dataset:org/name, abcd/*").unwrap();
        let unmatched: Vec<&str> = pins.unmatched(&revisions).collect();
        assert_eq!(unmatched, ["orgg/*", "org/name@v1", "dataset:org/name", "abcd/*"]);
        assert_eq!(pins.unmatched(&[]).count(), 6);
    }

    #[test]
    fn invalid_pins_are_rejected() {
        for bad in ["org/name@", "@main", "org/[a", "planet:x", "models--org--name"] {
            assert!(Pins::parse_list(bad).is_err(), "{bad}");
            let error = Pins::new("keep", &[bad.to_string()]).unwrap_err();
            assert!(error.what.starts_with("--keep '"), "{error}");
        }
    }
}
