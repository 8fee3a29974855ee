//! Safe repairs: a ref with white space around its commit, as left by `echo` and editors, is rewritten without it.
//! huggingface_hub treats the white space as part of the commit, and then finds no snapshot offline.

use std::fs;
use std::path::Path;

use super::layout::{self, Layout};
use super::lock::{self, Mode};
use super::{place, read, remove};
use crate::error::{Error, Result};
use crate::model::ids::{Commit, RefName, RepoName};

/// Rewrites a ref as its bare commit if it is still a commit surrounded by white space. Returns `false` if there is nothing
/// to repair.
///
/// # Errors
/// If the ref cannot be written.
pub fn repair_ref(layout: &Layout, repo: &RepoName, name: &RefName) -> Result<bool> {
    let path = layout.reference(repo, name);
    let Some(commit) = untidy_commit(layout, &path) else { return Ok(false) };
    match lock::try_tool_lock(layout, Mode::Shared)? {
        Some(_lock) => place::write_ref(layout, repo, name, &commit, true).map(|()| true),
        None => Err(Error::failed(format!("cannot repair {}", crate::error::shown(&path)))
            .because("another hf-cache-sync is deleting from this cache")
            .hint("run it again once that is done")),
    }
}

/// Returns the commit of a ref with white space around it; `None` if there is none, or if it is not a ref.
fn untidy_commit(layout: &Layout, path: &Path) -> Option<Commit> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    if !is_file || !remove::is_inside(layout.root(), path) {
        return None;
    }
    let content = String::from_utf8(read::read_small(path, layout::MAX_REF).ok()??).ok()?;
    let bare = layout::bare_commit(&content);
    (bare != content).then(|| bare.parse().ok()).flatten()
}

/// Returns whether a ref is this commit with white space around it.
pub fn is_untidy(layout: &Layout, path: &Path, commit: &Commit) -> bool {
    untidy_commit(layout, path).as_ref() == Some(commit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;

    #[test]
    fn repairs_only_a_commit_with_white_space() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("hub"));
        let repo = RepoName::new(RepoType::Model, "org/name".parse().unwrap());
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let name: RefName = "refs/pr/1".parse().unwrap();
        let path = layout.reference(&repo, &name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for (content, is_repaired) in [
            (format!("{commit}\n"), true),
            (format!("{commit}\r\n"), true),
            (format!("\u{feff} {commit}\t\n\n"), true),
            (commit.to_string(), false),
            (format!("{commit}x\n"), false),
            (format!("{commit}\n{commit}\n"), false),
            (format!("{commit}\n# main"), false),
            (String::new(), false),
            ("\n".into(), false),
            (format!("{commit}{}", " ".repeat(1000)), false),
        ] {
            fs::write(&path, &content).unwrap();
            assert_eq!(repair_ref(&layout, &repo, &name).unwrap(), is_repaired, "{content:?}");
            let expected = if is_repaired { commit } else { &content };
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        assert!(!repair_ref(&layout, &repo, &RefName::main()).unwrap(), "nothing is created");
        assert!(!layout.reference(&repo, &RefName::main()).exists());
    }
}
