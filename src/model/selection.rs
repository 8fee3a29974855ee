//! The selection of a command: repos, revisions and files. Pure. [`crate::cache::select`] resolves it against a cache.

use std::fmt::Display;

use super::filter::{PathFilter, RepoFilter};
use super::ids::{Commit, RepoName, RepoSpec};
use crate::error::{Error, Result, printable};

/// Repos, revisions and files. The default is everything.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The requested repos, each with its revision if one is given; all repos if empty.
    pub repos: Vec<RepoSpec>,
    /// Which of the repos.
    pub filter: RepoFilter,
    /// Which files of their revisions.
    pub paths: PathFilter,
}

impl Selection {
    /// Selects these repos, or all if there are none.
    pub fn of(repos: Vec<RepoSpec>) -> Selection {
        Selection { repos, ..Selection::default() }
    }

    /// Applies `-r REVISION` to the requested repo.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] if there is not exactly one repo, or it has another revision.
    pub fn at_revision(mut self, revision: Option<&str>) -> Result<Selection> {
        let Some(revision) = revision else { return Ok(self) };
        match self.repos.as_mut_slice() {
            [one] => one.revision = one.revision_with(Some(revision))?.map(String::from),
            [] => {
                return Err(Error::usage("-r needs a repo").hint("give a REPO_ID as well, as in org/name -r main"));
            }
            [..] => {
                return Err(Error::usage("-r applies to one repo, but there are several")
                    .hint("give each repo its own revision as org/name@revision, such as org/name@v1.0"));
            }
        }
        Ok(self)
    }

    /// Returns whether the filter allows the repo. It may still not be one of the requested ones.
    pub fn allows(&self, repo: &RepoName) -> bool {
        self.filter.allows(repo)
    }
}

impl RepoSpec {
    /// Combines the revision in the text with the one of `-r`; `None` if neither is given.
    ///
    /// # Errors
    /// [`crate::error::Cause::Usage`] if the two differ, or that of `-r` is empty.
    pub fn revision_with<'a>(&'a self, given: Option<&'a str>) -> Result<Option<&'a str>> {
        let given = given.map(super::ids::trim);
        if given == Some("") {
            return Err(Error::usage("the ref name after -r is empty").hint("write it as in -r main, or omit -r"));
        }
        match (self.revision.as_deref(), given) {
            (Some(a), Some(b)) if a != b => {
                let (a, b) = (printable(a, 100), printable(b, 100));
                Err(Error::usage(format!("the id says revision '{a}' but -r says '{b}'")).hint("remove one of them"))
            }
            (a, b) => Ok(a.or(b)),
        }
    }
}

/// Returns the error for an abbreviated commit that matches several commits of a repo.
pub fn ambiguous_commit(shown: &str, repo: impl Display, commits: &[&Commit]) -> Error {
    let commits: Vec<&str> = commits.iter().map(|commit| commit.as_str()).collect();
    Error::usage(format!("'{shown}' is ambiguous in {repo}"))
        .because(format!("it matches {}", commits.join(", ")))
        .hint("give more digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_applies_to_exactly_one_repo() {
        let of = |texts: &[&str]| Selection::of(texts.iter().map(|text| text.parse().unwrap()).collect());
        let revision = |texts, given| of(texts).at_revision(given).map(|all| all.repos[0].revision.clone());
        assert_eq!(revision(&["org/a"], None).unwrap(), None);
        assert_eq!(revision(&["org/a"], Some(" v1 ")).unwrap().as_deref(), Some("v1"));
        assert_eq!(revision(&["org/a@v1"], Some("v1")).unwrap().as_deref(), Some("v1"));
        assert_eq!(revision(&["org/a@v1", "org/b"], None).unwrap().as_deref(), Some("v1"));
        for (texts, given) in [(&["org/a@v1"][..], "v2"), (&["org/a"], " "), (&["org/a", "org/b"], "v1"), (&[], "v1")] {
            assert_eq!(of(texts).at_revision(Some(given)).unwrap_err().cause, crate::error::Cause::Usage, "{texts:?}");
        }
    }
}
