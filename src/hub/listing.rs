//! Converts the Hub's listing of a commit to a manifest, with the tree that huggingface_hub would store. Pure.

use serde_json::{Map, Value, json};

use crate::model::ids::{Commit, RepoName};
use crate::model::manifest::Manifest;

/// Converts the entries of `/api/…/tree/<commit>?recursive=true`. Folders are ignored.
///
/// # Errors
/// If the listing is not valid. It is checked like a manifest from a bucket.
pub fn manifest(repo: &RepoName, commit: &Commit, entries: &[Value]) -> Result<Manifest, String> {
    let mut files = Vec::new();
    let mut tree: Vec<(&str, Value)> = Vec::new();
    for entry in entries.iter().filter(|entry| entry["type"] != "directory") {
        let path = entry["path"].as_str().ok_or("an entry has no path")?;
        let lfs = entry.get("lfs").filter(|lfs| !lfs.is_null());
        let (blob, size) = match lfs {
            Some(lfs) => (&lfs["oid"], &lfs["size"]),
            None => (&entry["oid"], &entry["size"]),
        };
        files.push(json!({"path": path, "blob": blob, "size": size}));
        let mut tree_entry = json!({"size": entry["size"], "blob_id": entry["oid"]});
        if let Some(lfs) = lfs {
            tree_entry["lfs_sha256"] = lfs["oid"].clone();
            tree_entry["lfs_size"] = lfs["size"].clone();
        }
        if let Some(xet) = entry.get("xetHash").filter(|xet| !xet.is_null()) {
            tree_entry["xet_hash"] = xet.clone();
        }
        tree.push((path, tree_entry));
    }
    // huggingface_hub sorts by code points, which is the same as byte order.
    tree.sort_by_key(|(path, _)| *path);
    let tree: Map<String, Value> = tree.into_iter().map(|(path, entry)| (path.to_string(), entry)).collect();
    let manifest = json!({
        "repo": repo.id, "revision": commit, "repo_type": repo.kind, "files": files,
        "tree": {"format_version": 1, "files": tree},
    });
    Manifest::parse(manifest.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::RepoType;

    fn read(entries: Value) -> Result<Manifest, String> {
        let repo = RepoName::new(RepoType::Dataset, "org/name".parse().unwrap());
        let commit = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        manifest(&repo, &commit, entries.as_array().unwrap())
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
