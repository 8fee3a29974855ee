//! The manifest, which maps the files of a revision to blobs. No I/O.
//!
//! The JSON is that of hf-cache-sync 0.1.0 (`repo`, `revision`, `repo_type`, `files` of `path`, `blob`, `size`;
//! 2-space indent, ASCII, no final newline), plus a top-level `tree`: the content of the cache's
//! `trees/<commit>.json`, which 0.1.0 ignores. A parsed [`Manifest`] is valid: see [`Manifest::parse`].
//!
//! Manifests are untrusted. Unknown content is kept as text, so that memory is always a small multiple of the input.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

pub use super::file_list::ManifestFile;
use super::file_list::{check_count, check_paths};
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::model::filter::PathFilter;
use crate::model::ids::{BlobId, Commit, RepoId, RepoName, RepoPath, RepoType};
use crate::model::json::{self, Compact, Entries, List, Object, Python, Scalar};

/// The files of one revision, as far as they were present on the machines that pushed it. It is always valid, as
/// described at [`Manifest::parse`].
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    repo: RepoName,
    revision: Commit,
    /// Sorted by path. Shared by copies: there may be a million.
    files: Arc<Vec<ManifestFile>>,
    tree: Option<Arc<Tree>>,
    /// Top-level keys that this version does not know, as the text of an object; empty without any. They are kept when a
    /// manifest is merged.
    extra: Arc<Vec<u8>>,
}

impl Manifest {
    /// Creates a manifest. The files may be in any order.
    ///
    /// # Errors
    /// The reason, if it would not be valid; see [`Manifest::parse`].
    pub fn new(
        repo: RepoName,
        revision: Commit,
        mut files: Vec<ManifestFile>,
        tree: Option<Arc<Tree>>,
    ) -> Result<Self, String> {
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let manifest = Manifest { repo, revision, files: Arc::new(files), tree, extra: Arc::default() };
        manifest.check()?;
        Ok(manifest)
    }

    /// Parses and validates a manifest from a bucket.
    ///
    /// # Errors
    /// The reason, unless it is a well-formed manifest: JSON of the right shape, a valid repo and revision, at least
    /// one file, paths that are safe, distinct and not each other's folders, blob names that are hashes, one size per
    /// blob, and a tree (if any) that is valid and agrees with the file list.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let top = Object { entries: Top { size: bytes.len(), ..Top::default() }, refusal: "it is not a JSON object" };
        let Top { repo, revision, kind, files, tree, unportable_tree, extra, .. } = json::parse(bytes, top)?;
        let id: RepoId = text_of(repo, "repo")?.parse().map_err(|e| format!("`repo` {e}"))?;
        let revision: Commit = text_of(revision, "revision")?.parse().map_err(|e| format!("`revision` {e}"))?;
        let kind: RepoType = match kind {
            None | Some(Scalar::Null) => RepoType::Model,
            Some(Scalar::Text(word)) => word.parse().map_err(|e| format!("`repo_type` {e}"))?,
            Some(_) => return Err("`repo_type` is not a text".into()),
        };
        let mut files = files.ok_or(NO_LIST)?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let tree = tree.map(Tree::from_stranger).transpose();
        let tree = tree.map_err(|e| format!("its tree is not valid: {e}"))?.flatten().map(Arc::new);
        // An unportable tree is optional: one that is invalid, or contradicts the files, is ignored.
        let beside = unportable_tree.filter(|_| tree.is_none());
        let beside = beside.and_then(|text| Tree::from_text(text, true).ok().flatten()).filter(Tree::is_harmless);
        let (repo, files) = (RepoName::new(kind, id), Arc::new(files));
        let mut manifest = Manifest { repo, revision, files, tree, extra: Arc::new(extra) };
        manifest.check()?;
        if let Some(tree) = beside.filter(|tree| !tree.is_portable()) {
            manifest.tree = Some(Arc::new(tree));
            if manifest.check().is_err() {
                manifest.tree = None;
            }
        }
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if self.files.is_empty() {
            return Err("it lists no files".into());
        }
        check_count(self.files.len())?;
        check_paths(self.files.iter().map(|file| &file.path))?;
        let mut by_blob: Vec<u32> = (0..self.files.len() as u32).collect();
        let file = |index: u32| &self.files[index as usize];
        by_blob.sort_unstable_by_key(|index| file(*index).blob);
        for pair in by_blob.windows(2) {
            let (one, other) = (file(pair[0]), file(pair[1]));
            if one.blob == other.blob && one.size != other.size {
                return Err(format!("it gives blob {} two sizes", one.blob));
            }
        }
        if self.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size)).is_none() {
            return Err("its sizes add up to more than any disk holds".into());
        }
        match &self.tree {
            Some(tree) if !tree.is_harmless() => Err("its tree has unsafe paths".into()),
            // A name by the other algorithm can only be verified with the bytes.
            Some(tree) => {
                self.files.iter().filter(|file| !tree.may_list_twin(file)).try_for_each(|file| tree.check_file(file))
            }
            None => Ok(()),
        }
    }

    /// Returns the repo.
    pub fn repo(&self) -> &RepoName {
        &self.repo
    }

    /// Returns the revision.
    pub fn revision(&self) -> &Commit {
        &self.revision
    }

    /// Returns the files, sorted by path. There is at least one, and no path is a folder of another.
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// Returns the full listing of the commit, if a client has stored it.
    pub fn tree(&self) -> Option<&Tree> {
        self.tree.as_deref()
    }

    /// Returns every hash in the top-level keys that this version does not know, whether it is a key or a value. It may name
    /// a blob.
    pub fn mentioned_blobs(&self) -> BTreeSet<BlobId> {
        let mut found = BTreeSet::new();
        if !self.extra.is_empty() {
            json::parse(&self.extra, Mentions(&mut found)).expect("it was written as JSON");
        }
        found
    }

    /// Returns the manifest without the listing of the commit.
    pub fn without_tree(self) -> Manifest {
        Manifest { tree: None, ..self }
    }

    /// Returns the manifest with only those files that `keep` accepts; `None` if that is none of them.
    pub fn filtered(&self, keep: impl Fn(&ManifestFile) -> bool) -> Option<Manifest> {
        let files: Vec<_> = self.files.iter().filter(|file| keep(file)).cloned().collect();
        (!files.is_empty()).then(|| Manifest { files: Arc::new(files), ..self.clone() })
    }

    /// Returns the manifest with the blobs that `blob` gives to its files.
    ///
    /// # Errors
    /// The reason, if it would not be valid.
    pub fn with_blobs(&self, blob: impl Fn(&ManifestFile) -> BlobId) -> Result<Manifest, String> {
        let files: Vec<_> = self.files.iter().map(|file| ManifestFile { blob: blob(file), ..file.clone() }).collect();
        let manifest = Manifest { files: Arc::new(files), ..self.clone() };
        manifest.check()?;
        Ok(manifest)
    }

    /// Serialises the manifest like 0.1.0's `json.dumps(.., indent=2)`, followed by our additions.
    pub fn to_json(&self) -> Vec<u8> {
        let tree = self.tree.as_deref();
        let capacity = self.files.len() * 192 + tree.map_or(0, |tree| tree.text().len() * 2) + self.extra.len() + 256;
        let mut out = Python::new("  ", capacity);
        out.text("{\"repo\":");
        out.value(&self.repo.id);
        out.text(",\"revision\":");
        out.value(&self.revision);
        out.text(",\"repo_type\":");
        out.value(&self.repo.kind);
        out.text(",\"files\":");
        out.value(&*self.files);
        if let Some(tree) = tree {
            out.text(if tree.is_portable() { ",\"tree\":" } else { ",\"unportable_tree\":" });
            out.text(tree.text());
        }
        if let [b'{', entries @ .., b'}'] = &**self.extra {
            out.text(",");
            out.text(json::text(entries));
        }
        out.text("}");
        out.finish()
    }

    /// Returns the total size of all files in bytes, with each blob counted once.
    pub fn total_size(&self) -> u64 {
        self.blobs().values().sum()
    }

    /// Returns the blobs, with their sizes in bytes.
    pub fn blobs(&self) -> BTreeMap<BlobId, u64> {
        self.files.iter().map(|file| (file.blob, file.size)).collect()
    }

    /// Returns how many files of the tree, as far as the filter allows them, are missing from the manifest; 0 without a
    /// tree.
    pub fn missing_from_tree(&self, filter: &PathFilter) -> usize {
        let is_missing = |path: &&RepoPath| self.files.binary_search_by(|file| file.path.cmp(path)).is_err();
        let listed = self.tree.iter().flat_map(|tree| tree.entries().map(|(path, _)| path));
        listed.filter(|path| filter.allows(path)).filter(is_missing).count()
    }

    /// Returns how many files of the commit no manifest can contain, according to the tree.
    pub fn unportable_count(&self) -> usize {
        self.tree.as_ref().map_or(0, |tree| tree.unportable_paths().count())
    }

    /// Adds the files of `local` to this manifest (from the bucket), and never removes any. If only the bucket has a
    /// tree, files that it does not list are not added. The local tree is added if it lists all files.
    ///
    /// # Errors
    /// [`crate::error::Cause::Invalid`] if the two have different blobs for a path: a commit cannot change, so one of
    /// them is wrong.
    pub fn merge(&self, local: &Manifest) -> Result<Manifest> {
        let mut files: BTreeMap<&RepoPath, &ManifestFile> = self.files.iter().map(|file| (&file.path, file)).collect();
        // If both have a tree and only one of them lists a file, it is not a stray file: the trees contradict each
        // other.
        let tree = self.tree.as_deref().filter(|_| local.tree.is_none());
        let is_listed = |file: &&ManifestFile| tree.is_none_or(|tree| tree.get(&file.path).is_some());
        for file in local.files.iter().filter(is_listed) {
            let known = files.entry(&file.path).or_insert(file);
            if (known.blob, known.size) != (file.blob, file.size) {
                return Err(Error::invalid(format!(
                    "the bucket and this cache disagree about {}@{}",
                    local.repo,
                    local.revision.short()
                ))
                .because(format!("'{}' is blob {} there and {} here", file.path, known.blob, file.blob))
                .hint("one of them was changed by hand; the bucket was not changed"));
            }
        }
        // Nor is a tree added that lists files by their other names, since earlier versions would reject the manifest.
        let proves =
            |tree: &&Arc<Tree>| files.values().all(|file| tree.get(&file.path).is_some() && !tree.may_list_twin(file));
        let tree = self.tree.clone().or_else(|| local.tree.as_ref().filter(proves).cloned());
        let merged = Manifest {
            repo: self.repo.clone(),
            revision: self.revision.clone(),
            files: Arc::new(files.into_values().cloned().collect()),
            tree,
            extra: self.extra.clone(),
        };
        merged.check().map_err(|why| {
            Error::invalid(format!("cannot merge {}@{} with the bucket's manifest", local.repo, local.revision.short()))
                .because(why)
        })?;
        Ok(merged)
    }
}

/// The key of a tree with unportable paths. Under the key `tree`, it would make earlier versions reject the whole
/// manifest.
const UNPORTABLE_TREE_KEY: &str = "unportable_tree";
/// The reason to reject a manifest without a list of files.
const NO_LIST: &str = "`files` is not a list";

/// The top level of a manifest.
#[derive(Default)]
struct Top<'de> {
    /// Size of the document, which no text in it exceeds. A buffer that grows is copied, and then takes twice the memory.
    size: usize,
    repo: Option<Scalar<'de>>,
    revision: Option<Scalar<'de>>,
    kind: Option<Scalar<'de>>,
    files: Option<Vec<ManifestFile>>,
    tree: Option<Vec<u8>>,
    unportable_tree: Option<Vec<u8>>,
    extra: Vec<u8>,
}

impl<'de> Entries<'de> for Top<'de> {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        let size = self.size;
        let text_of_value = |map: &mut A| {
            let mut text = Vec::with_capacity(size);
            map.next_value_seed(Compact(&mut text))?;
            Ok((text != b"null").then_some(text))
        };
        match &*key {
            "repo" => self.repo = Some(map.next_value()?),
            "revision" => self.revision = Some(map.next_value()?),
            "repo_type" => self.kind = Some(map.next_value()?),
            "files" => {
                let mut files = Vec::new();
                let add = |entry: FileEntry<'de>| {
                    check_count(files.len() + 1)?;
                    files.push(entry.parse()?);
                    Ok(())
                };
                let element =
                    || Object { entries: FileEntry::default(), refusal: "an entry of `files` is not an object" };
                map.next_value_seed(List { element, done: add, refusal: NO_LIST })?;
                self.files = Some(files);
            }
            "tree" => self.tree = text_of_value(map)?,
            UNPORTABLE_TREE_KEY => self.unportable_tree = text_of_value(map)?,
            _ => {
                self.extra.reserve(size.saturating_sub(self.extra.len()));
                self.extra.pop();
                self.extra.push(if self.extra.is_empty() { b'{' } else { b',' });
                serde_json::to_writer(&mut self.extra, &key).map_err(A::Error::custom)?;
                self.extra.push(b':');
                map.next_value_seed(Compact(&mut self.extra))?;
                self.extra.push(b'}');
            }
        }
        Ok(())
    }
}

/// An entry of `files`.
#[derive(Default)]
struct FileEntry<'de> {
    path: Option<Scalar<'de>>,
    blob: Option<Scalar<'de>>,
    size: Option<Scalar<'de>>,
}

impl<'de> Entries<'de> for FileEntry<'de> {
    fn entry<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "path" => self.path = Some(map.next_value()?),
            "blob" => self.blob = Some(map.next_value()?),
            "size" => self.size = Some(map.next_value()?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl FileEntry<'_> {
    fn parse(self) -> Result<ManifestFile, String> {
        let path: RepoPath = text_of(self.path, "path")?.parse().map_err(|e| format!("{e}"))?;
        let blob = text_of(self.blob, "blob")?.parse().map_err(|e| format!("the blob of '{path}': {e}"))?;
        let Some(Scalar::Number(size)) = self.size else {
            return Err(format!("the size of '{path}' is not a whole number of bytes"));
        };
        Ok(ManifestFile { path, blob, size })
    }
}

fn text_of<'de>(value: Option<Scalar<'de>>, key: &str) -> Result<Cow<'de, str>, String> {
    match value {
        Some(Scalar::Text(text)) => Ok(text),
        Some(_) => Err(format!("`{key}` is not a text")),
        None => Err(format!("`{key}` is missing")),
    }
}

/// Collects every text that is a hash.
struct Mentions<'a>(&'a mut BTreeSet<BlobId>);

impl<'de> DeserializeSeed<'de> for Mentions<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Mentions<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.extend(text.parse::<BlobId>());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Mentions(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Mentions(self.0))?.is_some() {
            map.next_value_seed(Mentions(self.0))?;
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;
    use proptest::prelude::*;
    use serde_json::Value;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    fn file(path: &str, blob: &str, size: u64) -> Value {
        serde_json::json!({"path": path, "blob": blob, "size": size})
    }

    fn manifest(files: Vec<Value>) -> Value {
        serde_json::json!({"repo": "org/name", "revision": COMMIT, "repo_type": "model", "files": files})
    }

    /// Returns the value as it is written to a bucket.
    fn written(value: &Value) -> String {
        let mut out = Python::new("  ", 0);
        out.text(&value.to_string());
        String::from_utf8(out.finish()).unwrap()
    }

    fn parse(value: &Value) -> Result<Manifest, String> {
        Manifest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn output_equals_that_of_python() {
        let value = manifest(vec![file("ünï/😀.bin", SHA256, 6), file("b\u{7f}", SHA1, 0)]);
        // A control character is no valid path, but the writer must escape it all the same.
        assert!(written(&value).contains(r#""b\u007f""#));
        let parsed = parse(&manifest(vec![file("ünï/😀.bin", SHA256, 6)])).unwrap();
        let expected = format!(
            "{{\n  \"repo\": \"org/name\",\n  \"revision\": \"{COMMIT}\",\n  \"repo_type\": \"model\",\n  \"files\": [\n    \
             {{\n      \"path\": \"\\u00fcn\\u00ef/\\ud83d\\ude00.bin\",\n      \"blob\": \"{SHA256}\",\n      \"size\": 6\n    \
             }}\n  ]\n}}"
        );
        assert_eq!(String::from_utf8(parsed.to_json()).unwrap(), expected);
    }

    #[test]
    fn invalid_manifests_are_rejected() {
        let a = file("a", SHA1, 6);
        let cases = [
            (manifest(vec![file("../x", SHA1, 6)]), "'..'"),
            (manifest(vec![file("/etc/x", SHA1, 6)]), "absolute"),
            (manifest(vec![file("a\\b", SHA1, 6)]), "backslash"),
            (manifest(vec![file("a\0", SHA1, 6)]), "control character"),
            (manifest(vec![file("a", "../../x", 6)]), "not a valid blob name"),
            (manifest(vec![file("a", &SHA1.to_uppercase(), 6)]), "not a valid blob name"),
            (manifest(vec![a.clone(), a.clone()]), "twice"),
            (manifest(vec![a.clone(), file("a-b", SHA1, 6), file("a/b", SHA1, 6)]), "both a file and a folder"),
            (manifest(vec![a.clone(), file("b", SHA1, 7)]), "two sizes"),
            (manifest(vec![file("a", SHA1, u64::MAX), file("b", SHA256, 1)]), "add up"),
            (manifest(vec![]), "no files"),
            (serde_json::json!([]), "not a JSON object"),
            (serde_json::json!({"repo": "a--b", "revision": COMMIT, "files": [a]}), "not a valid repo id"),
            (serde_json::json!({"repo": "a", "revision": "main", "files": [a]}), "not a valid commit hash"),
            (
                serde_json::json!({"repo": "a", "revision": COMMIT, "repo_type": "x", "files": [a]}),
                "not a valid repo type",
            ),
            (serde_json::json!({"repo": "a", "revision": COMMIT, "files": {}}), "not a list"),
        ];
        for (value, why) in cases {
            let error = parse(&value).unwrap_err();
            assert!(error.contains(why), "{value} gave {error:?}, not {why:?}");
        }
        assert!(Manifest::parse(b"\xff{").unwrap_err().contains("not JSON"));
    }

    fn with_tree(tree: Value) -> Value {
        let mut value = manifest(vec![file("a", SHA1, 6)]);
        value["tree"] = tree;
        value
    }

    #[test]
    fn a_tree_is_validated_and_kept_byte_for_byte() {
        let good = "{\n \"format_version\": 1,\n \"files\": {\n  \"a\": {\n   \"size\": 6,\n   \"blob_id\": \"ce013625030ba8dba906f756967f9e9ca394464a\"\n  }\n }\n}";
        let value = with_tree(serde_json::from_str(good).unwrap());
        let parsed = parse(&value).unwrap();
        assert_eq!(String::from_utf8(parsed.tree.as_ref().unwrap().to_json()).unwrap(), good);
        assert_eq!(Manifest::parse(&parsed.to_json()).unwrap(), parsed);

        let tree =
            |path: &str, entry: Value| with_tree(serde_json::json!({"format_version": 1, "files": {path: entry}}));
        for (value, why) in [
            (tree("../a", serde_json::json!({"size": 6, "blob_id": SHA1})), "'..'"),
            (tree("a", serde_json::json!({"size": 6, "blob_id": "../x"})), "not a valid blob name"),
            (
                tree("a", serde_json::json!({"size": 6, "blob_id": SHA1, "lfs_sha256": "../../x"})),
                "not a valid blob name",
            ),
            (tree("a", serde_json::json!({"size": 6, "blob_id": SHA1, "xet_hash": "xyz"})), "not a valid blob name"),
            (tree("a", serde_json::json!({"size": 6, "blob_id": SHA256})), "wrong length"),
            (tree("a", serde_json::json!({"size": 7, "blob_id": SHA1})), "7 bytes"),
            (tree("b", serde_json::json!({"size": 6, "blob_id": SHA1})), "does not list"),
        ] {
            let error = parse(&value).unwrap_err();
            assert!(error.contains(why), "{value} gave {error:?}, not {why:?}");
        }
        // A version that the client would ignore is dropped, not an error.
        assert_eq!(parse(&with_tree(serde_json::json!({"format_version": 2}))).unwrap().tree, None);
    }

    #[test]
    fn merging_never_loses_a_file() {
        let theirs = parse(&manifest(vec![file("a", SHA1, 6), file("b", SHA256, 6)])).unwrap();
        let local = parse(&manifest(vec![file("c", SHA1, 6)])).unwrap();
        let merged = theirs.merge(&local).unwrap();
        assert_eq!(merged.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let other = parse(&manifest(vec![file("a", SHA256, 6)])).unwrap();
        assert_eq!(theirs.merge(&other).unwrap_err().cause, Cause::Invalid);
        let folder = parse(&manifest(vec![file("a/x", SHA1, 6)])).unwrap();
        assert_eq!(theirs.merge(&folder).unwrap_err().cause, Cause::Invalid);
    }

    #[test]
    fn files_that_the_tree_does_not_list_are_not_merged() {
        let tree = serde_json::json!({"format_version": 1, "files": {"a": {"size": 6, "blob_id": SHA1}}});
        let with_tree = parse(&with_tree(tree)).unwrap();
        let without = parse(&manifest(vec![file("a", SHA1, 6), file("engine", SHA256, 6)])).unwrap();
        assert_eq!(with_tree.merge(&without).unwrap(), with_tree, "the bucket's tree knows");
        let merged = without.merge(&with_tree).unwrap();
        assert_eq!(merged, without, "the bucket loses no file, and gets no tree that contradicts it");
        let other = serde_json::json!({"format_version": 1, "files": {
            "a": {"size": 6, "blob_id": SHA1}, "b": {"size": 6, "blob_id": SHA1}}});
        let mut more = manifest(vec![file("a", SHA1, 6), file("b", SHA1, 6)]);
        more["tree"] = other;
        assert_eq!(with_tree.merge(&parse(&more).unwrap()).unwrap_err().cause, Cause::Invalid, "two trees");
    }

    #[test]
    fn an_unportable_tree_has_its_own_key() {
        let entry = serde_json::json!({"size": 6, "blob_id": SHA1});
        let tree = |odd: &str| {
            let files = serde_json::json!({"format_version": 1, "files": {"a": entry, odd: entry}});
            Tree::parse(files.to_string().as_bytes()).unwrap().map(Arc::new)
        };
        let plain = parse(&manifest(vec![file("a", SHA1, 6)])).unwrap();
        for odd in ["sub\\k", "bell\u{7}", "a\\b/c"] {
            let manifest = Manifest { tree: tree(odd), ..plain.clone() };
            let written: Value = serde_json::from_slice(&manifest.to_json()).unwrap();
            assert!(written.get("tree").is_none() && written["unportable_tree"]["files"][odd].is_object());
            let read = Manifest::parse(&manifest.to_json()).unwrap();
            assert_eq!(read, manifest);
            assert_eq!((read.unportable_count(), read.missing_from_tree(&PathFilter::default())), (1, 0));
            assert_eq!(plain.merge(&manifest).unwrap(), manifest);
        }
        for odd in ["../x", "..\\x", "/etc/x", "\\x", "a\\..\\..\\x", "n\0", "c:\\x\\..\\..\\y"] {
            let hostile = Manifest { tree: tree(odd), ..plain.clone() };
            assert_eq!(Manifest::parse(&hostile.to_json()).unwrap(), plain, "{odd}");
        }
        let mut bad_hash = manifest(vec![file("a", SHA1, 6)]);
        bad_hash["unportable_tree"] = serde_json::json!({"format_version": 1, "files": {
            "a": entry, "k\\l": {"size": 6, "blob_id": "../x"}}});
        assert_eq!(parse(&bad_hash).unwrap(), plain);
        let mut other = manifest(vec![file("b", SHA1, 6)]);
        other["unportable_tree"] = serde_json::from_slice(tree("k\\l").unwrap().text().as_bytes()).unwrap();
        assert_eq!(parse(&other).unwrap().tree, None, "it contradicts the files");
    }

    proptest! {
        #[test]
        fn written_manifests_are_read_back(paths in prop::collection::btree_set("[a-zé]{1,4}(/[a-z]{1,3}){0,2}", 1..8), size in 0u64..1 << 40) {
            let value = manifest(paths.iter().map(|path| file(path, SHA256, size)).collect());
            if let Ok(parsed) = parse(&value) {
                let bytes = parsed.to_json();
                prop_assert!(bytes.is_ascii());
                prop_assert_eq!(Manifest::parse(&bytes).unwrap(), parsed);
            }
        }

        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
