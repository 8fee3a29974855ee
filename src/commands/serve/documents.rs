//! The JSON documents of the Hub's API, made from a manifest. Pure.
//!
//! A manifest knows the git oid of each small file, and the SHA-256 of each file in LFS. What else the Hub tells follows from
//! these: the pointer file of a file in LFS, and with it its oid, and the oid of a folder.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};

use super::card;
use crate::model::ids::{BlobId, Commit, RepoName, RepoPath, RepoType};
use crate::model::manifest::Manifest;

/// A file of a commit. Its blob may be missing from the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its blob.
    pub blob: BlobId,
    /// Size in bytes.
    pub size: u64,
}

/// All files of a commit, as far as they are known.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    files: BTreeMap<RepoPath, File>,
    /// Whether these are all of them, which only the commit's tree proves.
    pub is_complete: bool,
}

impl Listing {
    /// Lists the files of the tree, and those of the manifest.
    pub fn of(manifest: &Manifest) -> Listing {
        let tree = manifest.tree();
        let entries = tree.into_iter().flat_map(|tree| tree.entries());
        let mut files: BTreeMap<RepoPath, File> =
            entries.map(|(path, entry)| (path.clone(), File { blob: entry.blob, size: entry.size })).collect();
        for file in manifest.files() {
            files.insert(file.path.clone(), File { blob: file.blob, size: file.size });
        }
        Listing { files, is_complete: tree.is_some_and(|tree| tree.is_portable()) }
    }

    /// Returns the file of this path.
    pub fn get(&self, path: &RepoPath) -> Option<&File> {
        self.files.get(path)
    }

    /// Returns all files, sorted by path.
    pub fn files(&self) -> &BTreeMap<RepoPath, File> {
        &self.files
    }

    /// Whether there is a folder of this path.
    pub fn has_folder(&self, path: &RepoPath) -> bool {
        !self.under(path.as_str()).is_empty()
    }

    /// Returns the files in a folder and in its folders, with their paths in it.
    fn under(&self, folder: &str) -> Vec<(&str, &File)> {
        self.files
            .iter()
            .filter_map(|(path, file)| match folder {
                "" => Some((path.as_str(), file)),
                _ => Some((path.as_str().strip_prefix(folder)?.strip_prefix('/')?, file)),
            })
            .collect()
    }

    /// Returns the listing of a folder (`None` for the root), as the tree endpoint gives it. `commit` is told if it is given.
    pub fn tree(&self, folder: Option<&RepoPath>, is_recursive: bool, commit: Option<&LastCommit>) -> Vec<Value> {
        let folder = folder.map_or("", RepoPath::as_str);
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut folders = BTreeSet::new();
        let mut entries: BTreeMap<String, Value> = BTreeMap::new();
        for (path, file) in self.under(folder) {
            let depths = path.match_indices('/').map(|(end, _)| &path[..end]);
            match is_recursive {
                true => folders.extend(depths),
                false => folders.extend(depths.take(1)),
            }
            if is_recursive || !path.contains('/') {
                entries.insert(format!("{prefix}{path}"), file_entry(&format!("{prefix}{path}"), file, commit));
            }
        }
        for inside in folders {
            let path = format!("{prefix}{inside}");
            entries.insert(path.clone(), self.folder_entry(&path, commit));
        }
        entries.into_values().collect()
    }

    /// Returns the entry of a path, which may be a folder, as the endpoint `paths-info` gives it.
    pub fn entry(&self, path: &str, commit: Option<&LastCommit>) -> Option<Value> {
        let path = path.parse::<RepoPath>().ok()?;
        match self.get(&path) {
            Some(file) => Some(file_entry(path.as_str(), file, commit)),
            None => self.has_folder(&path).then(|| self.folder_entry(path.as_str(), commit)),
        }
    }

    fn folder_entry(&self, path: &str, commit: Option<&LastCommit>) -> Value {
        let mut entry = json!({ "type": "directory", "oid": self.folder_oid(path), "size": 0, "path": path });
        if let Some(commit) = commit {
            entry["lastCommit"] = commit.to_json();
        }
        entry
    }

    /// Returns a stable oid for a folder. It is git's, unless a file in it is executable, which a manifest does not know.
    fn folder_oid(&self, folder: &str) -> String {
        hex(&tree_oid(&self.under(folder)))
    }
}

/// Returns the id of git's tree object for these files.
fn tree_oid(files: &[(&str, &File)]) -> [u8; 20] {
    let mut folders: BTreeMap<&str, Vec<(&str, &File)>> = BTreeMap::new();
    // git sorts a folder as if its name ended with a slash.
    let mut entries: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let entry = |mode: &str, name: &str, oid: &[u8]| [mode.as_bytes(), b" ", name.as_bytes(), b"\0", oid].concat();
    for (path, file) in files {
        match path.split_once('/') {
            Some((folder, rest)) => folders.entry(folder).or_default().push((rest, file)),
            None => drop(entries.insert((*path).into(), entry("100644", path, &oid(file)))),
        }
    }
    for (name, files) in folders {
        entries.insert(format!("{name}/"), entry("40000", name, &tree_oid(&files)));
    }
    let content: Vec<u8> = entries.into_values().flatten().collect();
    git_oid("tree", &content)
}

fn hex(oid: &[u8; 20]) -> String {
    BlobId::Sha1(*oid).to_string()
}

fn git_oid(kind: &str, content: &[u8]) -> [u8; 20] {
    let hasher = Sha1::new().chain_update(format!("{kind} {}\0", content.len())).chain_update(content);
    hasher.finalize().into()
}

/// Returns what git stores for a file in LFS, and its git oid. `None` if the file is not in LFS.
pub fn pointer(file: &File) -> Option<(BlobId, String)> {
    let text = match file.blob {
        BlobId::Sha1(_) => return None,
        BlobId::Sha256(_) => pointer_text(&file.blob, file.size),
    };
    Some((BlobId::Sha1(oid(file)), text))
}

fn pointer_text(sha256: &BlobId, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

/// Returns the git oid of a file.
fn oid(file: &File) -> [u8; 20] {
    match file.blob {
        BlobId::Sha1(oid) => oid,
        BlobId::Sha256(_) => git_oid("blob", pointer_text(&file.blob, file.size).as_bytes()),
    }
}

/// Adds what the Hub tells about a file in LFS. `name` is the name of its hash, which differs between endpoints.
fn add_lfs(entry: &mut Value, name: &str, file: &File) {
    if let BlobId::Sha256(_) = file.blob {
        let pointer_size = pointer_text(&file.blob, file.size).len();
        let mut lfs = Map::new();
        lfs.insert(name.into(), file.blob.to_string().into());
        lfs.insert("size".into(), file.size.into());
        lfs.insert("pointerSize".into(), pointer_size.into());
        entry["lfs"] = Value::Object(lfs);
    }
}

fn file_entry(path: &str, file: &File, commit: Option<&LastCommit>) -> Value {
    let mut entry = json!({ "type": "file", "oid": hex(&oid(file)), "size": file.size, "path": path });
    add_lfs(&mut entry, "oid", file);
    if let Some(commit) = commit {
        entry["lastCommit"] = commit.to_json();
    }
    entry
}

/// Marks a listing that may lack files, for huggingface_hub, which keeps listings: it would take this one for all of the
/// commit forever, and so would a push from its cache. With an invalid Xet hash in it, neither does.
pub fn mark_as_partial(entries: &mut [Value]) {
    let is_file = |entry: &&mut Value| entry["type"] == "file";
    // Clients request only files in LFS from Xet, so it had better be another.
    let (in_lfs, others): (Vec<_>, Vec<_>) =
        entries.iter_mut().filter(is_file).partition(|entry| entry.get("lfs").is_some());
    if let Some(entry) = others.into_iter().chain(in_lfs).next() {
        entry["xetHash"] = "".into();
    }
}

/// The last commit of a file, as expanded listings tell it. The history is not in the bucket, so it is that of the listing.
#[derive(Debug, Clone)]
pub struct LastCommit {
    /// The commit.
    pub id: Commit,
    /// Its time, in RFC 3339.
    pub date: String,
}

impl LastCommit {
    fn to_json(&self) -> Value {
        json!({ "id": self.id.as_str(), "title": "", "date": self.date })
    }
}

/// Returns the document about a revision. `card` is the front matter of its README.
pub fn info(
    repo: &RepoName,
    commit: &LastCommit,
    listing: &Listing,
    card: &Map<String, Value>,
    with_blobs: bool,
) -> Value {
    let siblings: Vec<Value> = listing
        .files()
        .iter()
        .map(|(path, file)| {
            let mut sibling = json!({ "rfilename": path.as_str() });
            if with_blobs {
                sibling["size"] = file.size.into();
                sibling["blobId"] = hex(&oid(file)).into();
                add_lfs(&mut sibling, "sha256", file);
            }
            sibling
        })
        .collect();
    let mut info = json!({
        "_id": &hex(&git_oid("blob", repo.to_string().as_bytes()))[..24],
        "id": repo.id.as_str(),
        "sha": commit.id.as_str(),
        "lastModified": commit.date,
        "createdAt": commit.date,
        "author": repo.id.as_str().split_once('/').map(|(author, _)| author),
        "private": false,
        "gated": false,
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "tags": card::tags(card),
        "siblings": siblings,
        "cardData": card,
    });
    if let Some(mut total) = with_blobs.then_some(0u64) {
        listing.files().values().for_each(|file| total = total.saturating_add(file.size));
        info["usedStorage"] = total.into();
    }
    match repo.kind {
        RepoType::Model => {
            info["modelId"] = repo.id.as_str().into();
            for key in ["pipeline_tag", "library_name"] {
                if let Some(Value::String(text)) = card.get(key) {
                    info[key] = text.as_str().into();
                }
            }
        }
        RepoType::Space => {
            if let Some(Value::String(text)) = card.get("sdk") {
                info["sdk"] = text.as_str().into();
            }
        }
        RepoType::Dataset | RepoType::Kernel => {}
    }
    info
}

/// Returns the document about the refs of a repo.
pub fn refs(refs: &BTreeMap<String, Commit>, with_pull_requests: bool) -> Value {
    let mut lists: BTreeMap<&str, Vec<Value>> = ["branches", "tags", "converts"].map(|list| (list, Vec::new())).into();
    if with_pull_requests {
        lists.insert("pullRequests", Vec::new());
    }
    for (name, commit) in refs {
        let (list, short, full) = match name.split('/').collect::<Vec<_>>().as_slice() {
            ["refs", "pr", number] => ("pullRequests", number.to_string(), name.clone()),
            ["refs", "convert", format] => ("converts", format.to_string(), name.clone()),
            ["refs", "tags", rest @ ..] => ("tags", rest.join("/"), name.clone()),
            ["refs", "heads", rest @ ..] => ("branches", rest.join("/"), name.clone()),
            // The cache does not tell tags from branches: a name that looks like a version is a tag.
            _ if is_version(name) => ("tags", name.clone(), format!("refs/tags/{name}")),
            _ => ("branches", name.clone(), format!("refs/heads/{name}")),
        };
        if let Some(list) = lists.get_mut(list) {
            list.push(json!({ "name": short, "ref": full, "targetCommit": commit.as_str() }));
        }
    }
    json!(lists)
}

fn is_version(name: &str) -> bool {
    let digits = name.strip_prefix('v').unwrap_or(name);
    digits.starts_with(|c: char| c.is_ascii_digit()) && digits.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::ManifestFile;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn listing(files: &[(&str, &str, u64)]) -> Listing {
        let files = files.iter().map(|(path, blob, size)| ManifestFile {
            path: path.parse().unwrap(),
            blob: blob.parse().unwrap(),
            size: *size,
        });
        let repo = RepoName::new(RepoType::Model, "org/name".parse().unwrap());
        Listing::of(&Manifest::new(repo, COMMIT.parse().unwrap(), files.collect(), None).unwrap())
    }

    /// The oid of `hello\n`, and of a folder with a file `hello.txt` of that content, according to git.
    const HELLO: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const FOLDER_WITH_HELLO: &str = "aaa96ced2d9a1c8e72c56b253a0e2fe78393feb7";

    #[test]
    fn a_partial_listing_is_marked_at_a_file_outside_lfs() {
        let sha256 = "b".repeat(64);
        let marked = |files: &[(&str, &str, u64)]| {
            let mut entries = listing(files).tree(None, true, None);
            mark_as_partial(&mut entries);
            let marked = entries.iter().filter(|entry| entry["xetHash"] == "");
            marked.map(|entry| entry["path"].as_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(marked(&[("a/x", &sha256, 9), ("b", HELLO, 6), ("c", HELLO, 6)]), ["b"]);
        assert_eq!(marked(&[("a/x", &sha256, 9)]), ["a/x"]);
    }

    #[test]
    fn a_folder_has_gits_oid() {
        let listing = listing(&[("a/hello.txt", HELLO, 6)]);
        let entries = listing.tree(None, false, None);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0]["type"], "directory");
        assert_eq!(entries[0]["path"], "a");
        assert_eq!(entries[0]["oid"], FOLDER_WITH_HELLO);
    }

    #[test]
    fn listings_are_flat_or_recursive_and_may_start_in_a_folder() {
        let sha256 = "a".repeat(64);
        let listing = listing(&[("a/b/c", HELLO, 6), ("a/d", &sha256, 9), ("e", HELLO, 6)]);
        let paths = |folder: Option<&str>, is_recursive| {
            let folder = folder.map(|folder| folder.parse().unwrap());
            let entries = listing.tree(folder.as_ref(), is_recursive, None);
            entries.iter().map(|entry| entry["path"].as_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths(None, false), ["a", "e"]);
        assert_eq!(paths(None, true), ["a", "a/b", "a/b/c", "a/d", "e"]);
        assert_eq!(paths(Some("a"), false), ["a/b", "a/d"]);
        assert_eq!(paths(Some("a"), true), ["a/b", "a/b/c", "a/d"]);
        assert!(paths(Some("x"), true).is_empty());
        let lfs = listing.entry("a/d", None).unwrap();
        assert_eq!(lfs["lfs"]["oid"], sha256);
        assert_eq!(lfs["lfs"]["pointerSize"], 126);
        assert_eq!(listing.entry("a", None).unwrap()["type"], "directory");
        assert!(listing.entry("x", None).is_none() && listing.entry("../e", None).is_none());
    }

    #[test]
    fn refs_are_sorted_into_lists() {
        let names = ["main", "v1.0", "refs/pr/2", "refs/convert/parquet", "feature/x", "1.2.3"];
        let all = names.map(|name| (name.to_string(), COMMIT.parse().unwrap())).into();
        let document = refs(&all, true);
        let names = |list: &str| {
            document[list]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["ref"].as_str().unwrap().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("branches"), ["refs/heads/feature/x", "refs/heads/main"]);
        assert_eq!(names("tags"), ["refs/tags/1.2.3", "refs/tags/v1.0"]);
        assert_eq!(names("converts"), ["refs/convert/parquet"]);
        assert_eq!(names("pullRequests"), ["refs/pr/2"]);
        assert!(refs(&all, false).get("pullRequests").is_none());
    }
}
