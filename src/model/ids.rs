//! Names as types that cannot hold an invalid value. They are parsed once, at the edge.
//!
//! Everything that comes from a bucket, a cache folder or the command line goes through these parsers before it is used
//! in a path or a key. The rules follow huggingface_hub's `validate_repo_id`, git's `check-ref-format`, and the limits
//! of file systems.

mod spec;

pub use spec::{RepoSpec, pattern, repo_type, trim};

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::platform;

/// The reason why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

fn invalid<T>(text: &str, why: impl fmt::Display) -> Result<T, Invalid> {
    Err(Invalid(format!("'{}' {why}", crate::error::printable(text, 120))))
}

/// The type of a repo on the Hub. It is part of a repo's identity, since a model and a dataset may share an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RepoType {
    /// `models--…`
    Model,
    /// `datasets--…`
    Dataset,
    /// `spaces--…`
    Space,
    /// `kernels--…`
    Kernel,
}

impl RepoType {
    /// All types, in listing order.
    pub const ALL: [RepoType; 4] = [RepoType::Model, RepoType::Dataset, RepoType::Space, RepoType::Kernel];

    /// Returns the singular word that manifests and flags use.
    pub fn word(self) -> &'static str {
        match self {
            RepoType::Model => "model",
            RepoType::Dataset => "dataset",
            RepoType::Space => "space",
            RepoType::Kernel => "kernel",
        }
    }
}

impl fmt::Display for RepoType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for RepoType {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match RepoType::ALL.into_iter().find(|t| t.word() == text) {
            Some(found) => Ok(found),
            None => invalid(text, "is not a valid repo type (model, dataset, space, kernel)"),
        }
    }
}

/// A repo id: `name` or `org/name`, following huggingface_hub's rules. Copies share the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoId(Arc<str>);

impl RepoId {
    /// The id as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepoId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let segments: Vec<&str> = text.split('/').collect();
        if segments.len() > 2 {
            return invalid(text, "is not a valid repo id: it has more than one '/' (use `org/name`)");
        }
        for segment in segments {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if segment.is_empty() || segment.len() > 96 {
                return invalid(text, "is not a valid repo id: each part has 1 to 96 characters");
            }
            if !segment.chars().all(|c| word(c) || c == '-' || c == '.') {
                return invalid(text, "is not a valid repo id: only letters, digits, '_', '-' and '.' are allowed");
            }
            if !segment.starts_with(word) || !segment.ends_with(word) {
                return invalid(text, "is not a valid repo id: a part cannot start or end with '-' or '.'");
            }
            if segment.contains("--") || segment.contains("..") {
                return invalid(text, "is not a valid repo id: '--' and '..' are not allowed");
            }
        }
        if text.ends_with(".git") {
            return invalid(text, "is not a valid repo id: it cannot end with '.git'");
        }
        Ok(RepoId(text.into()))
    }
}

/// A repo, identified by its type and id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RepoName {
    /// The type; `repo_type` in manifests.
    #[serde(rename = "repo_type")]
    pub kind: RepoType,
    /// The id, `org/name` or `name`; `repo` in manifests.
    #[serde(rename = "repo")]
    pub id: RepoId,
}

impl RepoName {
    /// Creates the name of a repo from its type and id.
    pub fn new(kind: RepoType, id: RepoId) -> Self {
        RepoName { kind, id }
    }

    /// Returns the folder name in the cache, like huggingface_hub's `repo_folder_name`: `models--org--name`.
    pub fn folder(&self) -> String {
        format!("{}s--{}", self.kind, self.id.0.replace('/', "--"))
    }

    /// The inverse of [`RepoName::folder`]; `None` for a folder that the client would not have created.
    pub fn from_folder(folder: &str) -> Option<Self> {
        let (prefix, rest) = folder.split_once("--")?;
        let kind = prefix.strip_suffix('s')?.parse().ok()?;
        let id = rest.replace("--", "/").parse().ok()?;
        let name = RepoName { kind, id };
        (name.folder() == folder).then_some(name)
    }
}

impl fmt::Display for RepoName {
    /// Writes `org/name` for a model, and `dataset:org/name` and the like for other types.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RepoType::Model => f.write_str(self.id.as_str()),
            kind => write!(f, "{kind}:{}", self.id.as_str()),
        }
    }
}

/// A repo as specified by a user: an id with or without a type (`org/name`, `dataset:org/name`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoQuery {
    /// The type, if it was given.
    pub kind: Option<RepoType>,
    /// The id.
    pub id: RepoId,
}

impl RepoQuery {
    /// Returns whether the query matches this repo, ignoring case.
    pub fn resembles(&self, repo: &RepoName) -> bool {
        self.id.0.eq_ignore_ascii_case(&repo.id.0) && self.kind.is_none_or(|kind| kind == repo.kind)
    }

    /// Returns whether the query matches this repo.
    pub fn matches(&self, repo: &RepoName) -> bool {
        self.id == repo.id && self.kind.is_none_or(|kind| kind == repo.kind)
    }
}

impl fmt::Display for RepoQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => RepoName::new(kind, self.id.clone()).fmt(f),
            None => self.id.fmt(f),
        }
    }
}

impl FromStr for RepoQuery {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (kind, id) = match text.split_once(':') {
            Some((kind, id)) => (Some(kind.parse()?), id),
            None => (None, text),
        };
        Ok(RepoQuery { kind, id: id.parse()? })
    }
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A full commit hash of 40 lowercase hexadecimal digits, which identifies a revision.
///
/// It is stored in place: a bucket may have a million of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Commit([u8; 40]);

impl Commit {
    /// The hash as written.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits")
    }

    /// Returns the first 12 digits, for display.
    pub fn short(&self) -> &str {
        &self.as_str()[..12]
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Commit").field(&self.as_str()).finish()
    }
}

impl FromStr for Commit {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.as_bytes().try_into() {
            Ok(digits) if is_lower_hex(text) => Ok(Commit(digits)),
            _ => invalid(text, "is not a valid commit hash (40 lowercase hexadecimal digits)"),
        }
    }
}

/// The name of a blob, which is the hash of its bytes: sha256 for LFS and Xet files, git's blob sha1 for all others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BlobId {
    /// git's blob sha1, `sha1("blob <length>\0" + bytes)`, with 40 digits.
    Sha1([u8; 20]),
    /// The sha256 of the bytes, with 64 digits.
    Sha256([u8; 32]),
}

impl BlobId {
    /// Returns whether both may be names of the same bytes, by different algorithms.
    pub fn may_be_twin(&self, other: &BlobId) -> bool {
        matches!((self, other), (BlobId::Sha1(_), BlobId::Sha256(_)) | (BlobId::Sha256(_), BlobId::Sha1(_)))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            BlobId::Sha1(bytes) => bytes,
            BlobId::Sha256(bytes) => bytes,
        }
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        let mut length = 0;
        for (byte, pair) in self.bytes().iter().zip(digits.as_chunks_mut().0) {
            *pair = [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]);
            length += 2;
        }
        f.write_str(std::str::from_utf8(&digits[..length]).expect("digits"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlobId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if !matches!(text.len(), 40 | 64) || !is_lower_hex(text) {
            return invalid(text, "is not a valid blob name (40 or 64 lowercase hexadecimal digits)");
        }
        let digit = |b: u8| if b.is_ascii_digit() { b - b'0' } else { b - b'a' + 10 };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Ok(match text.len() {
            40 => BlobId::Sha1(bytes[..20].try_into().expect("20 of 32 bytes")),
            _ => BlobId::Sha256(bytes),
        })
    }
}

/// A ref: a branch, a tag, `refs/pr/1`, or an abbreviated commit hash under which the client cached a revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

impl RefName {
    /// Returns the default branch.
    pub fn main() -> Self {
        RefName("main".to_string())
    }

    /// Returns the ref that is named after its commit, which hf-hub before 1.0 looks for.
    pub fn of_commit(commit: &Commit) -> Self {
        RefName(commit.as_str().to_string())
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RefName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        if text.is_empty() || text.len() > 512 {
            return invalid(text, "is not a valid ref name: it must have 1 to 512 bytes");
        }
        if text.contains(forbidden) || text.contains("..") || text.contains("@{") {
            return invalid(text, "is not a valid ref name: it has characters that git does not allow");
        }
        for segment in text.split('/') {
            if segment.is_empty() || segment.starts_with('.') || segment.ends_with('.') || segment.ends_with(".lock") {
                return invalid(
                    text,
                    "is not a valid ref name: a part is empty, starts or ends with '.', or ends with '.lock'",
                );
            }
            check_segment(text, segment)?;
        }
        Ok(RefName(text.to_string()))
    }
}

/// The path of a file in a repo: relative, `/`-separated, valid UTF-8, and safe to join to a snapshot folder. Copies share
/// the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoPath(Arc<str>);

/// Paths are ordered as their texts are.
impl Borrow<str> for RepoPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl RepoPath {
    /// The path as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between the slashes.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns whether this system can store a file under this exact name.
    pub fn is_storable(&self) -> bool {
        !platform::RESTRICTS_NAMES || self.segments().all(fits_windows)
    }
}

impl FromStr for RepoPath {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > 4000 {
            return invalid(text, "is not a valid file path: it must have 1 to 4000 bytes");
        }
        if text.starts_with('/') {
            return invalid(text, "is not a valid file path: it is absolute");
        }
        if text.contains('\\') {
            return invalid(text, "is not a valid file path: it has a backslash");
        }
        if text.contains(char::is_control) {
            return invalid(text, "is not a valid file path: it has a control character");
        }
        for segment in text.split('/') {
            if matches!(segment, "" | "." | "..") {
                return invalid(text, "is not a valid file path: a part is empty, '.' or '..'");
            }
            // A name that Windows cannot store is valid: a push from there must not treat the file as nonexistent.
            if segment.len() > 255 {
                return invalid(text, "has a part of more than 255 bytes");
            }
        }
        Ok(RepoPath(text.into()))
    }
}

/// Checks that a name can be stored on this system. On Windows, this excludes names that its API silently rewrites.
fn check_segment(text: &str, segment: &str) -> Result<(), Invalid> {
    if segment.len() > 255 {
        return invalid(text, "has a part of more than 255 bytes");
    }
    if platform::RESTRICTS_NAMES && !fits_windows(segment) {
        return invalid(text, "has a part that Windows cannot store");
    }
    Ok(())
}

/// Returns whether Windows stores this name unchanged: no reserved device, no `<>:"|?*`, no trailing dot or space.
fn fits_windows(segment: &str) -> bool {
    let stem = segment.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix).is_some_and(|rest| rest.len() == 1 && rest.as_bytes()[0].is_ascii_digit())
    };
    let device = matches!(stem.as_str(), "con" | "prn" | "aux" | "nul" | "conin$" | "conout$")
        || numbered("com")
        || numbered("lpt");
    !device && !segment.contains(['<', '>', ':', '"', '|', '?', '*']) && !segment.ends_with(['.', ' '])
}

macro_rules! text_like {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}
text_like!(RepoId, Commit, BlobId, RefName, RepoPath);

macro_rules! displays_as_written {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}
displays_as_written!(RepoId, RefName, RepoPath);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bad<T: FromStr<Err = Invalid>>(texts: &[&str]) {
        for text in texts {
            assert!(text.parse::<T>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn repo_ids_follow_the_hub() {
        for good in ["gpt2", "org/name", "team__a/under__score", "a_/b", "a/_b", "Org.x/n-1.0_z"] {
            assert_eq!(good.parse::<RepoId>().unwrap().as_str(), good);
        }
        bad::<RepoId>(&[
            "", "/", "a/", "/a", "a/b/c", "a--b", "a..b", "-a", "a-", ".a", "a.", "a b", "a\\b", "ä", "a\0", "..",
            "x.git",
        ]);
        assert!("x".repeat(97).parse::<RepoId>().is_err());
    }

    #[test]
    fn folders_match_those_of_the_client() {
        let folder = |kind, id: &str| RepoName::new(kind, id.parse().unwrap()).folder();
        assert_eq!(folder(RepoType::Model, "org/name"), "models--org--name");
        assert_eq!(folder(RepoType::Kernel, "gpt2"), "kernels--gpt2");
        for invalid in ["models--", "models--a--b--c", "model--a", "tmpabc", "models--a--", "blobs", "foos--a"] {
            assert_eq!(RepoName::from_folder(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn paths_from_a_bucket_cannot_escape() {
        bad::<RepoPath>(&[
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "..\\x",
            "a\0b",
            "a\nb",
        ]);
        for good in ["a", "a/b.c", "deep/er/ünï/文件 x.bin", "a..b", ".gitattributes", "xy:z", "a:b", "c:/x"] {
            good.parse::<RepoPath>().unwrap();
        }
    }

    #[test]
    fn refs_follow_git() {
        for good in ["main", "refs/pr/1", "v1.0", "feature/x-y", "abc1234"] {
            good.parse::<RefName>().unwrap();
        }
        bad::<RefName>(&[
            "", "/", "a//b", "../x", "a/..", ".x", "x.lock", "a b", "a\n", "a~1", "a:b", "a\\b", "a@{1}", "main/",
        ]);
    }

    #[test]
    fn windows_names_are_checked_on_every_system() {
        for bad in ["con", "CON.txt", "nul", "com1.x", "LPT9", "a:b", "x.", "x ", "a?b"] {
            assert!(!fits_windows(bad), "{bad}");
        }
        for good in ["config.json", "com10", "console", "common", "nullable"] {
            assert!(fits_windows(good), "{good}");
        }
    }

    proptest! {
        #[test]
        fn folder_round_trips(org in "[a-z0-9_]{1,5}(-[a-z0-9_]{1,3})?", name in "[A-Za-z0-9_]{1,8}", kind in 0usize..4) {
            let repo = RepoName::new(RepoType::ALL[kind], format!("{org}/{name}").parse().unwrap());
            prop_assert_eq!(RepoName::from_folder(&repo.folder()), Some(repo));
        }

        #[test]
        fn blob_names_round_trip(bytes in any::<[u8; 32]>()) {
            for id in [BlobId::Sha256(bytes), BlobId::Sha1(bytes[..20].try_into().unwrap())] {
                prop_assert_eq!(id.to_string().parse::<BlobId>().unwrap(), id);
            }
        }

        #[test]
        fn an_accepted_path_stays_inside(text in "[a-c./\\\\:\u{0}-\u{2}]{0,12}") {
            if let Ok(path) = text.parse::<RepoPath>() {
                let joined = std::path::Path::new("/root/snap").join(path.as_str());
                prop_assert!(joined.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
                prop_assert!(joined.starts_with("/root/snap") && joined != std::path::Path::new("/root/snap"));
            }
        }
    }
}
