//! Converts the Hub's listing of a commit to a manifest, with the tree that huggingface_hub would store. Pure.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::json;

use crate::model::ids::{BlobId, Commit, RepoName, RepoPath};
use crate::model::manifest::{Manifest, ManifestFile};
use crate::model::tree::Tree;

/// An entry of `/api/…/tree/<commit>?recursive=true`: a file or a folder.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// Its path in the repo.
    pub path: Box<str>,
    #[serde(rename = "type", default)]
    kind: Kind,
    oid: Option<Box<str>>,
    size: Option<u64>,
    lfs: Option<Lfs>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<Box<str>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Directory,
    #[default]
    #[serde(other)]
    File,
}

/// The pointer of an LFS file.
#[derive(Debug, Deserialize)]
struct Lfs {
    oid: Option<Box<str>>,
    size: Option<u64>,
}

/// Converts the listing of a commit. Folders are ignored.
///
/// # Errors
/// If the listing is not valid. It is checked like a manifest from a bucket.
pub fn manifest(repo: RepoName, commit: Commit, mut entries: Vec<Entry>) -> Result<Manifest, String> {
    entries.retain(|entry| entry.kind != Kind::Directory);
    // huggingface_hub sorts by code points, which is the same as byte order.
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut files = Vec::with_capacity(entries.len());
    let mut tree = String::from("{\"format_version\":1,\"files\":{");
    for (at, entry) in entries.into_iter().enumerate() {
        let (oid, size) = match &entry.lfs {
            Some(lfs) => (&lfs.oid, lfs.size),
            None => (&entry.oid, entry.size),
        };
        let missing = |what: &str| format!("'{}' has no {what}", entry.path);
        let path: RepoPath = entry.path.parse().map_err(|e| format!("{e}"))?;
        let blob: BlobId =
            oid.as_deref().ok_or_else(|| missing("hash"))?.parse().map_err(|e| format!("the blob of '{path}': {e}"))?;
        files.push(ManifestFile { path, blob, size: size.ok_or_else(|| missing("size"))? });
        let mut fields = json!({"size": entry.size, "blob_id": entry.oid});
        if let Some(lfs) = &entry.lfs {
            fields["lfs_sha256"] = json!(lfs.oid);
            fields["lfs_size"] = json!(lfs.size);
        }
        if let Some(xet) = &entry.xet_hash {
            fields["xet_hash"] = json!(xet);
        }
        let separator = if at > 0 { "," } else { "" };
        let _ = write!(tree, "{separator}{}:{fields}", json!(entry.path));
    }
    tree.push_str("}}");
    let tree = Tree::from_stranger(tree.into_bytes()).map_err(|e| format!("its tree is not valid: {e}"))?;
    Manifest::new(repo, commit, files, tree.map(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;
    use serde_json::Value;

    fn read(entries: Value) -> Result<Manifest, String> {
        let repo = RepoName::new(RepoType::Dataset, "org/name".parse().unwrap());
        let commit = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        manifest(repo, commit, serde_json::from_value(entries).unwrap())
    }

    #[test]
    fn a_listing_becomes_a_manifest_with_the_tree_of_the_client() {
        let (sha1, sha256) = ("ce013625030ba8dba906f756967f9e9ca394464a", "ab".repeat(32));
        let manifest = read(json!([
            {"type": "directory", "path": "d", "oid": sha1, "size": 0},
            {"type": "file", "path": "d/w.bin", "oid": sha1, "size": 9, "xetHash": sha256,
             "lfs": {"oid": sha256, "size": 9, "pointerSize": 128}},
            {"type": "file", "path": "a.json", "oid": sha1, "size": 6},
        ]))
        .unwrap();
        assert_eq!(manifest.repo().to_string(), "dataset:org/name");
        let names: Vec<(String, String, u64)> =
            manifest.files().iter().map(|file| (file.path.to_string(), file.blob.to_string(), file.size)).collect();
        assert_eq!(names, [("a.json".into(), sha1.into(), 6), ("d/w.bin".into(), sha256.clone(), 9)]);
        let tree = format!(
            "{{\n \"format_version\": 1,\n \"files\": {{\n  \"a.json\": {{\n   \"size\": 6,\n   \"blob_id\": \"{sha1}\"\n  }},\n  \
             \"d/w.bin\": {{\n   \"size\": 9,\n   \"blob_id\": \"{sha1}\",\n   \"lfs_sha256\": \"{sha256}\",\n   \"lfs_size\": 9,\n   \
             \"xet_hash\": \"{sha256}\"\n  }}\n }}\n}}"
        );
        assert_eq!(String::from_utf8(manifest.tree().unwrap().to_json()).unwrap(), tree);
    }

    #[test]
    fn an_invalid_listing_is_rejected() {
        let sha1 = "ce013625030ba8dba906f756967f9e9ca394464a";
        for (path, oid) in [("../x", sha1), ("/x", sha1), ("a\\b", sha1), ("x", "../y"), ("x", "")] {
            assert!(read(json!([{"type": "file", "path": path, "oid": oid, "size": 1}])).is_err(), "{path} {oid}");
        }
        assert!(read(json!([])).is_err(), "no files");
    }
}
