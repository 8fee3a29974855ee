//! The cache folder itself: whether it is there, and if not, what is wrong with its path.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::Source;
use crate::error::{Error, Result, plain_io, shown};
use crate::model::ids::RepoName;

const HINT: &str =
    "`pull` creates it; to use another folder, set --cache-dir, cache.hf_cache_dir, HF_HUB_CACHE or HF_HOME";

/// Makes sure that the folder is there; `source` is where its path comes from.
///
/// # Errors
/// [`crate::error::Cause::NotFound`] when it is not there, [`crate::error::Cause::Usage`] when something else is in its place, [`crate::error::Cause::Permission`] when
/// it cannot be looked at.
pub fn check(root: &Path, source: &Source) -> Result<()> {
    let error = match std::fs::metadata(root) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(no_folder(root, source)),
        Err(error) => error,
    };
    let missing = |why: String| {
        Err(Error::not_found(format!("there is no cache at {} (from {source})", shown(root))).because(why).hint(HINT))
    };
    match error.kind() {
        ErrorKind::NotFound => match std::fs::read_link(root) {
            Ok(target) => missing(format!("it is a link to {}, which is not there", shown(&target))),
            Err(_) => missing(match root.ancestors().skip(1).filter(|path| !path.exists()).last() {
                Some(first) if *source == Source::Default => format!("{} is not there", shown(first)),
                Some(first) => format!("{} is not there; is a disk not mounted?", shown(first)),
                None => "that folder is not there".into(),
            }),
        },
        ErrorKind::NotADirectory => missing(match root.ancestors().find(|path| path.is_file()) {
            Some(file) => format!("{} is a file", shown(file)),
            None => plain_io(&error),
        }),
        ErrorKind::PermissionDenied => Err(Error::io("cannot read the cache", root, &error)),
        _ => {
            Err(Error::failed(format!("cannot read the cache {} (from {source})", shown(root)))
                .because(plain_io(&error)))
        }
    }
}

/// The folder that is surely meant, where this one holds no repo: its `hub`, or the one that this repo is in.
pub fn meant(root: &Path) -> Option<PathBuf> {
    if holds_repos(root) {
        return None;
    }
    let name = root.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| RepoName::from_folder(name).is_some()) && root.join("snapshots").is_dir() {
        return root.parent().map(PathBuf::from);
    }
    Some(root.join("hub")).filter(|hub| holds_repos(hub))
}

/// Reads no further than the first repo.
fn holds_repos(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| entry.file_name())
        .any(|name| name.to_str().is_some_and(|name| RepoName::from_folder(name).is_some()))
}

/// What is in the cache's place is something else.
pub fn no_folder(root: &Path, source: &Source) -> Error {
    Error::usage(format!("the cache {} (from {source}) is not a directory", shown(root)))
        .hint("set HF_HUB_CACHE, cache.hf_cache_dir or --cache-dir to the `hub` folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[cfg(unix)]
    #[test]
    fn what_is_wrong_with_a_path_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("hub")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        let said = |name: &str| {
            let error = check(&at(name), &Source::Variable("HF_HOME")).unwrap_err();
            (error.kind(), error.to_string())
        };
        check(&at("hub"), &Source::Default).unwrap();
        for (name, kind, words) in [
            ("none", Kind::NotFound, "(from HF_HOME): that folder is not there"),
            ("a/b/hub", Kind::NotFound, "/a is not there"),
            ("link", Kind::NotFound, "/nowhere, which is not there"),
            ("file", Kind::Usage, "is not a directory"),
            ("file/hub", Kind::NotFound, "/file is a file"),
        ] {
            let (found, text) = said(name);
            assert!(found == kind && text.contains(words), "{name}: {text}");
        }
    }
}
