//! The cache folder itself: whether it exists, and if not, why.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::Source;
use crate::error::{Error, Result, plain_io, shown};
use crate::model::ids::RepoName;

const HINT: &str =
    "`pull` creates it; to use another folder, set --cache-dir, cache.hf_cache_dir, HF_HUB_CACHE or HF_HOME";

/// Checks that the folder exists. `source` says where its path was configured.
///
/// # Errors
/// [`crate::error::Cause::NotFound`] if it does not exist, [`crate::error::Cause::Usage`] if it is not a folder,
/// [`crate::error::Cause::Permission`] if it cannot be accessed.
pub fn check(root: &Path, source: &Source) -> Result<()> {
    let error = match std::fs::metadata(root) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(not_a_directory(root, source)),
        Err(error) => error,
    };
    let missing = |why: String| {
        Err(Error::not_found(format!("there is no cache at {} (from {source})", shown(root))).because(why).hint(HINT))
    };
    match error.kind() {
        ErrorKind::NotFound => match std::fs::read_link(root) {
            Ok(target) => missing(format!("it is a link to {}, which does not exist", shown(&target))),
            Err(_) => missing(match root.ancestors().skip(1).filter(|path| !path.exists()).last() {
                Some(first) if *source == Source::Default => format!("{} does not exist", shown(first)),
                Some(first) => format!("{} does not exist; is a disk not mounted?", shown(first)),
                None => "that folder does not exist".into(),
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

/// Suggests the folder that was probably meant if `root` holds no repos: its `hub`, or the cache that contains it if it
/// is itself a repo.
pub fn suggest_root(root: &Path) -> Option<PathBuf> {
    if holds_repos(root) {
        return None;
    }
    let name = root.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| RepoName::from_folder(name).is_some()) && root.join("snapshots").is_dir() {
        return root.parent().map(PathBuf::from);
    }
    Some(root.join("hub")).filter(|hub| holds_repos(hub))
}

/// Returns whether the folder holds any repo.
fn holds_repos(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| entry.file_name())
        .any(|name| name.to_str().is_some_and(|name| RepoName::from_folder(name).is_some()))
}

/// Returns the error for a cache path that is not a folder.
pub fn not_a_directory(root: &Path, source: &Source) -> Error {
    Error::usage(format!("the cache {} (from {source}) is not a directory", shown(root)))
        .hint("set HF_HUB_CACHE, cache.hf_cache_dir or --cache-dir to the `hub` folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[cfg(unix)]
    #[test]
    fn errors_say_what_is_wrong_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("hub")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        let check_at = |name: &str| {
            let error = check(&at(name), &Source::Variable("HF_HOME")).unwrap_err();
            (error.kind(), error.to_string())
        };
        check(&at("hub"), &Source::Default).unwrap();
        for (name, kind, words) in [
            ("none", Kind::NotFound, "(from HF_HOME): that folder does not exist"),
            ("a/b/hub", Kind::NotFound, "/a does not exist"),
            ("link", Kind::NotFound, "/nowhere, which does not exist"),
            ("file", Kind::Usage, "is not a directory"),
            ("file/hub", Kind::NotFound, "/file is a file"),
        ] {
            let (found, text) = check_at(name);
            assert!(found == kind && text.contains(words), "{name}: {text}");
        }
    }
}
