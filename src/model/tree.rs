//! The full listing of a commit, as huggingface_hub keeps it in `trees/<commit>.json`. No I/O.
//!
//! A tree may be untrusted, as part of a manifest. It is kept as text, so that memory is always a small multiple of the
//! input.

use std::borrow::Cow;

use serde::de::{Error as _, IgnoredAny, MapAccess};

use super::file_list::{ManifestFile, check_count, check_paths};
use super::ids::{BlobId, RepoPath};
use super::json::{self, Compact, Entries, Object, Python, Scalar};

/// The full listing of a commit, as huggingface_hub stores it in `trees/<commit>.json` (`format_version` 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    /// The whole tree as compact JSON.
    text: Vec<u8>,
    /// Sorted by path.
    entries: Vec<(RepoPath, TreeEntry)>,
    /// The paths that no manifest can contain, sorted.
    unsupported: Vec<Unportable>,
}

/// An entry whose path no manifest can contain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Unportable {
    path: String,
    /// Whether the rest of the entry is valid.
    is_valid: bool,
}

/// The entry of a file in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// The name of its blob: the LFS sha256 if there is one, or else the git sha1.
    pub blob: BlobId,
    /// Size in bytes.
    pub size: u64,
    /// The Xet hash, by which huggingface_hub names the file in its cache-wide store. It is the client's word: it cannot
    /// be computed from the SHA-256.
    pub xet_hash: Option<BlobId>,
}

impl Tree {
    /// Parses a tree of this cache. Returns `Ok(None)` for an unknown `format_version`, which huggingface_hub ignores
    /// as well. An unportable path, such as one with a backslash, does not invalidate the others: see
    /// [`Tree::is_portable`].
    ///
    /// # Errors
    /// The reason, if the tree is invalid in any other way.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut text = Vec::new();
        json::parse(bytes, Compact(&mut text))?;
        Self::from_text(text, true)
    }

    /// Parses a tree that does not come from this cache, from compact JSON. No invalid entry is accepted.
    ///
    /// # Errors
    /// The reason, if it is not valid.
    pub fn from_stranger(text: Vec<u8>) -> Result<Option<Self>, String> {
        Self::from_text(text, false)
    }

    /// Parses a tree from compact JSON. From a bucket, no invalid entry is accepted, since huggingface_hub does not validate
    /// the paths and hashes of a tree.
    pub(super) fn from_text(text: Vec<u8>, is_local: bool) -> Result<Option<Self>, String> {
        let version = Object { entries: Version(None), refusal: "it is not a JSON object" };
        if json::parse(&text, version)?.0 != Some(Scalar::Number(1)) {
            return Ok(None);
        }
        let files = Object { entries: TreeFiles::new(is_local), refusal: "it is not a JSON object" };
        let TreeFiles { list, .. } = json::parse(&text, files)?;
        let TreeList { mut entries, mut unsupported, .. } = list.ok_or(NO_FILES)?;
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        unsupported.sort_unstable();
        check_paths(entries.iter().map(|(path, _)| path))?;
        Ok(Some(Tree { text, entries, unsupported }))
    }

    /// Returns the whole tree as compact JSON.
    pub(super) fn text(&self) -> &str {
        json::text(&self.text)
    }

    /// Returns whether all of its paths can be in a manifest.
    pub fn is_portable(&self) -> bool {
        self.unsupported.is_empty()
    }

    /// Returns the paths that no manifest can contain.
    pub fn unportable_paths(&self) -> impl Iterator<Item = &str> {
        self.unsupported.iter().map(|entry| entry.path.as_str())
    }

    /// Returns whether its unportable paths stay inside the snapshot on any system, and their hashes are valid, since
    /// huggingface_hub validates neither.
    pub fn is_harmless(&self) -> bool {
        let plain = |path: &String| path.replace('\\', "/").replace(|c: char| c.is_control(), "_");
        self.unsupported.iter().all(|Unportable { path, is_valid }| {
            *is_valid && !path.contains(['\0', ':']) && plain(path).parse::<RepoPath>().is_ok()
        })
    }

    /// Returns whether the commit has a file with this path, which may be unportable.
    pub fn lists(&self, path: &str) -> bool {
        let valid = path.parse::<RepoPath>().is_ok_and(|path| self.get(&path).is_some());
        valid || self.unsupported.binary_search_by(|known| known.path.as_str().cmp(path)).is_ok()
    }

    /// Returns the content of `trees/<commit>.json`, as `json.dump(.., indent=1)` writes it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Python::new(" ", self.text.len() * 2);
        out.text(self.text());
        out.finish()
    }

    /// Returns the entry of this path.
    pub fn get(&self, path: &RepoPath) -> Option<&TreeEntry> {
        let index = self.entries.binary_search_by(|(known, _)| known.cmp(path)).ok()?;
        Some(&self.entries[index].1)
    }

    /// Returns all portable files of the commit, sorted by path.
    pub fn entries(&self) -> impl Iterator<Item = (&RepoPath, &TreeEntry)> {
        self.entries.iter().map(|(path, entry)| (path, entry))
    }

    /// Returns whether the tree lists this file with the same size, but by a name of the other algorithm, so that both
    /// may be right: a mirror may use the sha256 of a file that the Hub keeps in git.
    pub fn may_list_twin(&self, file: &ManifestFile) -> bool {
        self.get(&file.path).is_some_and(|entry| entry.size == file.size && entry.blob.may_be_twin(&file.blob))
    }

    /// Checks that the tree lists this file with the same blob and size.
    ///
    /// # Errors
    /// The difference.
    pub fn check_file(&self, file: &ManifestFile) -> Result<(), String> {
        let Some(entry) = self.get(&file.path) else {
            return Err(format!("the commit's tree does not list '{}'", file.path));
        };
        if entry.blob != file.blob {
            return Err(format!(
                "the commit's tree says that '{}' is blob {}, not {}",
                file.path, entry.blob, file.blob
            ));
        }
        if entry.size != file.size {
            return Err(format!(
                "the commit's tree says that '{}' has {} bytes, not {}",
                file.path, entry.size, file.size
            ));
        }
        Ok(())
    }
}

/// The reason to reject a tree without files.
const NO_FILES: &str = "its `files` are not an object";

/// Finds the version of a tree.
struct Version<'de>(Option<Scalar<'de>>);

impl<'de> Entries<'de> for Version<'de> {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "format_version" => self.0 = Some(map.next_value()?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// Finds the files of a tree.
struct TreeFiles {
    is_local: bool,
    list: Option<TreeList>,
}

impl TreeFiles {
    fn new(is_local: bool) -> TreeFiles {
        TreeFiles { is_local, list: None }
    }
}

impl<'de> Entries<'de> for TreeFiles {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "files" => {
                let entries = TreeList { is_local: self.is_local, entries: Vec::new(), unsupported: Vec::new() };
                self.list = Some(map.next_value_seed(Object { entries, refusal: NO_FILES })?);
            }
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// The files of a tree.
struct TreeList {
    is_local: bool,
    entries: Vec<(RepoPath, TreeEntry)>,
    unsupported: Vec<Unportable>,
}

impl<'de> Entries<'de> for TreeList {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        check_count(self.entries.len() + self.unsupported.len() + 1).map_err(A::Error::custom)?;
        let fields = Object { entries: TreeFields::default(), refusal: "an entry of its `files` is not an object" };
        match key.parse::<RepoPath>() {
            Ok(path) => {
                let entry = map.next_value_seed(fields)?.parse();
                let entry = entry.map_err(|why| A::Error::custom(format!("'{path}': {why}")))?;
                self.entries.push((path, entry));
            }
            Err(_) if self.is_local => {
                let is_valid = map.next_value_seed(fields)?.parse().is_ok();
                self.unsupported.push(Unportable { path: key.into_owned(), is_valid });
            }
            Err(why) => return Err(A::Error::custom(why)),
        }
        Ok(())
    }
}

/// An entry of a tree.
#[derive(Default)]
struct TreeFields<'de> {
    size: Option<Scalar<'de>>,
    blob_id: Option<Scalar<'de>>,
    lfs_sha256: Option<Scalar<'de>>,
    lfs_size: Option<Scalar<'de>>,
    xet_hash: Option<Scalar<'de>>,
}

impl<'de> Entries<'de> for TreeFields<'de> {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        let field = match &*key {
            "size" => &mut self.size,
            "blob_id" => &mut self.blob_id,
            "lfs_sha256" => &mut self.lfs_sha256,
            "lfs_size" => &mut self.lfs_size,
            "xet_hash" => &mut self.xet_hash,
            _ => return map.next_value::<IgnoredAny>().map(drop),
        };
        *field = Some(map.next_value()?);
        Ok(())
    }
}

impl TreeFields<'_> {
    fn parse(self) -> Result<TreeEntry, String> {
        let number = |value: Option<Scalar<'_>>, key: &str| match value {
            None | Some(Scalar::Null) => Ok(None),
            Some(Scalar::Number(number)) => Ok(Some(number)),
            Some(_) => Err(format!("`{key}` is not a whole number")),
        };
        let hash = |value: Option<Scalar<'_>>, key: &str| match value {
            None | Some(Scalar::Null) => Ok(None),
            Some(Scalar::Text(text)) => text.parse::<BlobId>().map(Some).map_err(|e| format!("`{key}`: {e}")),
            Some(_) => Err(format!("`{key}` is not a text")),
        };
        let is_sha256 = |id: &BlobId| matches!(id, BlobId::Sha256(_));
        let blob_id = hash(self.blob_id, "blob_id")?.ok_or("`blob_id` is missing")?;
        let size = number(self.size, "size")?.ok_or("`size` is missing")?;
        let lfs = hash(self.lfs_sha256, "lfs_sha256")?;
        let xet_hash = hash(self.xet_hash, "xet_hash")?;
        if is_sha256(&blob_id) || !lfs.iter().chain(xet_hash.iter()).all(is_sha256) {
            return Err("a hash has the wrong length".into());
        }
        Ok(TreeEntry {
            blob: lfs.unwrap_or(blob_id),
            size: if lfs.is_some() { number(self.lfs_size, "lfs_size")?.unwrap_or(size) } else { size },
            xet_hash,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Map;

    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn an_unportable_path_does_not_invalidate_the_tree() {
        let entry = serde_json::json!({"size": 6, "blob_id": SHA1});
        let mut files = Map::new();
        for path in ["a", "a:b", "c/aux", "q?*", "sub\\k", "bell\u{7}"] {
            files.insert(path.into(), entry.clone());
        }
        let bytes = serde_json::json!({"format_version": 1, "files": files}).to_string();
        let tree = Tree::parse(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!(tree.entries().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["a", "a:b", "c/aux", "q?*"]);
        assert!(tree.lists("sub\\k") && tree.lists("a:b") && !tree.lists("b") && !tree.is_portable());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Tree::parse(&bytes);
        }
    }
}
