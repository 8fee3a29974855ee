//! Finds out which commit a release is built from, for `--version`: by reading `.git`, so that git itself is not needed.
//! From a packaged crate, and in a debug build, which would be built again after every commit, there is none.

use std::fs;
use std::path::{Path, PathBuf};

/// Letters of a commit that are shown.
const SHORT: usize = 9;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HF_CACHE_SYNC_COMMIT");
    let package = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let given = std::env::var("HF_CACHE_SYNC_COMMIT").ok().filter(|text| !text.trim().is_empty());
    let commit = given.or_else(|| if is_release { commit_of(Path::new(".git")) } else { None });
    let commit = commit.map(|text| text.trim().to_ascii_lowercase()).filter(|text| is_commit(text));
    let version = match commit {
        Some(commit) => format!("{package} ({})", &commit[..SHORT]),
        None => package,
    };
    println!("cargo:rustc-env=HF_CACHE_SYNC_VERSION={version}");
}

fn is_commit(text: &str) -> bool {
    text.len() >= SHORT && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The commit that is checked out in the repository of this package, and no other: `git` is its own `.git`.
fn commit_of(git: &Path) -> Option<String> {
    let dir = match fs::read_to_string(git) {
        // A worktree or a submodule.
        Ok(link) => PathBuf::from(link.strip_prefix("gitdir:")?.trim()),
        Err(_) => git.to_path_buf(),
    };
    let head = read(&dir.join("HEAD"))?;
    let Some(name) = head.strip_prefix("ref:").map(str::trim) else { return Some(head) };
    let common = fs::read_to_string(dir.join("commondir")).map_or(dir.clone(), |path| dir.join(path.trim()));
    // A commit changes the ref; one that was packed until now appears as a file, which the log tells.
    read(&dir.join("logs/HEAD"));
    let loose = read(&common.join(name));
    let packed = || {
        let packed = read(&common.join("packed-refs"))?;
        let line = packed.lines().find(|line| line.split_once(' ').is_some_and(|(_, known)| known == name))?;
        Some(line.split_once(' ')?.0.to_string())
    };
    loose.or_else(packed)
}

/// Reads a file, whose changes then matter.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo:rerun-if-changed={}", path.display());
    Some(text)
}
