//! The JSON documents of the Hub's API, made from a manifest. Pure.
//!
//! A manifest knows the git oid of each small file, and the SHA-256 of each file in LFS. The other hashes that the Hub
//! reports are derived from these: the pointer file of a file in LFS, the pointer's oid, and the oid of a folder.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::OnceLock;

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

/// Maximum total size of the paths of a commit's folders, in bytes. A path of 4 kB may name 2,000 folders.
const MAX_FOLDERS: usize = 64 << 20;

/// All known files of a commit.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    files: BTreeMap<RepoPath, File>,
    /// Whether no file is missing, which only the commit's tree proves.
    pub is_complete: bool,
    /// Whether the paths of all folders fit into [`MAX_FOLDERS`].
    has_sane_folders: bool,
    /// The git oid of each folder, computed on first use.
    folders: OnceLock<HashMap<String, [u8; 20]>>,
}

/// What a listing of a folder shows.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The folder; `None` for the root.
    pub folder: Option<RepoPath>,
    /// Whether it descends into subfolders.
    pub is_recursive: bool,
    /// The last commit of every entry, if requested.
    pub commit: Option<LastCommit>,
    /// Whether to mark the listing as possibly incomplete. huggingface_hub caches listings, and would treat it as the whole
    /// commit forever; so would a push from its cache. An invalid Xet hash in it prevents both.
    pub is_marked: bool,
}

impl View {
    /// Returns whether it shows an entry that is somewhere below its folder.
    fn shows(&self, path: &str) -> bool {
        let start = self.folder.as_ref().map_or(0, |folder| folder.as_str().len() + 1);
        path.len() > start && (self.is_recursive || !path[start..].contains('/'))
    }
}

/// A listing that is being written.
#[derive(Debug)]
pub struct Cursor {
    view: View,
    /// The file to mark.
    marked: Option<RepoPath>,
    /// The last file that has been written.
    after: Option<RepoPath>,
}

/// The folders of a commit are too many and too deep to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooDeep;

impl Listing {
    /// Returns the files of the tree and those of the manifest.
    pub fn of(manifest: &Manifest) -> Listing {
        let tree = manifest.tree();
        let entries = tree.into_iter().flat_map(|tree| tree.entries());
        let mut files: BTreeMap<RepoPath, File> =
            entries.map(|(path, entry)| (path.clone(), File { blob: entry.blob, size: entry.size })).collect();
        for file in manifest.files() {
            files.insert(file.path.clone(), File { blob: file.blob, size: file.size });
        }
        let mut bytes = 0;
        let mut before = "";
        for path in files.keys() {
            bytes += new_folders(before, path.as_str()).map(str::len).sum::<usize>();
            before = path.as_str();
        }
        let is_complete = tree.is_some_and(|tree| tree.is_portable());
        Listing { files, is_complete, has_sane_folders: bytes <= MAX_FOLDERS, folders: OnceLock::new() }
    }

    /// Returns the file at this path.
    pub fn get(&self, path: &RepoPath) -> Option<&File> {
        self.files.get(path)
    }

    /// Returns all files, sorted by path.
    pub fn files(&self) -> &BTreeMap<RepoPath, File> {
        &self.files
    }

    /// Returns whether there is a folder at this path.
    pub fn has_folder(&self, path: &RepoPath) -> bool {
        self.under(Some(path), None).next().is_some()
    }

    /// Returns the files below a folder (`None` for the root), sorted by path: all, or those after `after`.
    fn under(&self, folder: Option<&RepoPath>, after: Option<&RepoPath>) -> impl Iterator<Item = (&RepoPath, &File)> {
        let prefix = folder.map_or(String::new(), |folder| format!("{folder}/"));
        let start = after.map_or(Bound::Included(prefix.as_str()), |after| Bound::Excluded(after.as_str()));
        let from = self.files.range::<str, _>((start, Bound::Unbounded));
        from.take_while(move |(path, _)| path.as_str().starts_with(&prefix))
    }

    /// Starts a listing of a folder for the tree endpoint.
    ///
    /// # Errors
    /// If the folders cannot be listed.
    pub fn list(&self, view: View) -> Result<Cursor, TooDeep> {
        self.folder_oids()?;
        let marked = view.is_marked.then(|| self.find_to_mark(&view)).flatten().cloned();
        Ok(Cursor { view, marked, after: None })
    }

    /// Adds the next file of a listing, preceded by the folders that begin with it. Returns false at the end.
    pub fn advance(&self, cursor: &mut Cursor, mut add: impl FnMut(Value)) -> bool {
        let Ok(oids) = self.folder_oids() else { return false };
        let Cursor { view, marked, after } = cursor;
        let Some((path, file)) = self.under(view.folder.as_ref(), after.as_ref()).next() else { return false };
        let text = path.as_str();
        for inside in new_folders(after.as_ref().map_or("", RepoPath::as_str), text) {
            if view.shows(inside) {
                add(folder_entry(inside, oids, view.commit.as_ref()));
            }
        }
        if view.shows(text) {
            let mut entry = file_entry(text, file, view.commit.as_ref());
            if marked.as_ref() == Some(path) {
                entry["xetHash"] = "".into();
            }
            add(entry);
        }
        *after = Some(path.clone());
        true
    }

    /// Returns the entry in `siblings` of the first file after this path, and advances `after` to it.
    pub fn next_sibling(&self, after: &mut Option<RepoPath>, with_blobs: bool) -> Option<Value> {
        let (path, file) = self.under(None, after.as_ref()).next()?;
        let mut sibling = json!({ "rfilename": path.as_str() });
        if with_blobs {
            sibling["size"] = file.size.into();
            sibling["blobId"] = hex(&oid(file)).into();
            add_lfs(&mut sibling, "sha256", file);
        }
        *after = Some(path.clone());
        Some(sibling)
    }

    /// Returns the file to mark in an incomplete listing. Clients fetch only files in LFS through Xet, so one outside LFS is
    /// preferred.
    fn find_to_mark(&self, view: &View) -> Option<&RepoPath> {
        let listed = || self.under(view.folder.as_ref(), None).filter(|(path, _)| view.shows(path.as_str()));
        let other = listed().find(|(_, file)| matches!(file.blob, BlobId::Sha1(_)));
        other.or_else(|| listed().next()).map(|(path, _)| path)
    }

    /// Returns the entry of a path, which may be a folder, for the `paths-info` endpoint.
    ///
    /// # Errors
    /// If it is a folder, and the folders cannot be listed.
    pub fn entry(&self, path: &str, commit: Option<&LastCommit>) -> Result<Option<Value>, TooDeep> {
        let Ok(path) = path.parse::<RepoPath>() else { return Ok(None) };
        Ok(match self.get(&path) {
            Some(file) => Some(file_entry(path.as_str(), file, commit)),
            None if self.has_folder(&path) => Some(folder_entry(path.as_str(), self.folder_oids()?, commit)),
            None => None,
        })
    }

    fn folder_oids(&self) -> Result<&HashMap<String, [u8; 20]>, TooDeep> {
        if !self.has_sane_folders {
            return Err(TooDeep);
        }
        Ok(self.folders.get_or_init(|| find_folder_oids(&self.files)))
    }
}

/// Returns the folders of a path that do not contain the preceding path in sorted order, the outermost first.
fn new_folders<'a>(before: &str, path: &'a str) -> impl Iterator<Item = &'a str> {
    let shared = before.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
    path.match_indices('/').filter(move |(end, _)| *end >= shared).map(|(end, _)| &path[..end])
}

/// Returns an oid for each folder. It is git's, unless a file in it is executable, which a manifest does not record.
fn find_folder_oids(files: &BTreeMap<RepoPath, File>) -> HashMap<String, [u8; 20]> {
    /// A folder whose files are being read.
    struct Open<'a> {
        path: &'a str,
        entries: BTreeMap<String, Vec<u8>>,
    }
    impl Open<'_> {
        fn add(&mut self, key: String, mode: &str, name: &str, oid: &[u8; 20]) {
            // git sorts a folder as if its name ended with a slash.
            self.entries.insert(key, [mode.as_bytes(), b" ", name.as_bytes(), b"\0", oid].concat());
        }
    }
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_string();
    let mut oids = HashMap::new();
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut close = |open: &mut Vec<Open<'_>>| {
        let Some(done) = open.pop() else { return };
        let content: Vec<u8> = done.entries.into_values().flatten().collect();
        let oid = git_oid("tree", &content);
        if let Some(parent) = open.last_mut() {
            let name = name(done.path);
            parent.add(format!("{name}/"), "40000", &name, &oid);
        }
        oids.insert(done.path.to_string(), oid);
    };
    for (path, file) in files {
        let text = path.as_str();
        while open.last().is_some_and(|last| text.strip_prefix(last.path).is_none_or(|rest| !rest.starts_with('/'))) {
            close(&mut open);
        }
        let known = open.last().map_or("", |last| last.path);
        let deeper: Vec<&str> = new_folders(known, text).filter(|folder| folder.len() > known.len()).collect();
        open.extend(deeper.into_iter().map(|path| Open { path, entries: BTreeMap::new() }));
        if let Some(folder) = open.last_mut() {
            let name = name(text);
            folder.add(name.clone(), "100644", &name, &oid(file));
        }
    }
    while !open.is_empty() {
        close(&mut open);
    }
    oids
}

fn folder_entry(path: &str, oids: &HashMap<String, [u8; 20]>, commit: Option<&LastCommit>) -> Value {
    let mut entry = json!({ "type": "directory", "oid": hex(&oids[path]), "size": 0, "path": path });
    if let Some(commit) = commit {
        entry["lastCommit"] = commit.to_json();
    }
    entry
}

fn hex(oid: &[u8; 20]) -> String {
    BlobId::Sha1(*oid).to_string()
}

fn git_oid(kind: &str, content: &[u8]) -> [u8; 20] {
    let hasher = Sha1::new().chain_update(format!("{kind} {}\0", content.len())).chain_update(content);
    hasher.finalize().into()
}

/// Returns the git oid and the text of the pointer of a file in LFS; `None` if the file is not in LFS.
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

/// Adds the Hub's information about a file in LFS. `name` is the name of its hash, which differs between endpoints.
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

/// The last commit of a file, for expanded listings. The history is not in the bucket, so it is the listed commit.
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

/// Returns the document about a revision, without its list of files, `siblings`. `card` is the front matter of its README.
pub fn info(
    repo: &RepoName,
    commit: &LastCommit,
    listing: &Listing,
    card: &Map<String, Value>,
    with_blobs: bool,
) -> Value {
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
            // The cache does not distinguish tags from branches: a name that looks like a version counts as a tag.
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

    fn entries(listing: &Listing, folder: Option<&str>, is_recursive: bool, is_marked: bool) -> Vec<Value> {
        let folder = folder.map(|folder| folder.parse().unwrap());
        let mut cursor = listing.list(View { folder, is_recursive, commit: None, is_marked }).unwrap();
        let mut entries = Vec::new();
        while listing.advance(&mut cursor, |entry| entries.push(entry)) {}
        entries
    }

    /// The output of `git write-tree` for the folders in `folders_differ_from_files_with_similar_names`.
    const GIT_A: &str = "2a3f4373e0849787bceea0f606f0333ae777a433";
    const GIT_C: &str = "435927d2fe872add393f6b83553075ffeb232cba";
    const GIT_E: &str = "213c715f39380deb21cc1cd70bb87f6fe4caf96b";

    #[test]
    fn a_partial_listing_is_marked_at_a_file_outside_lfs() {
        let sha256 = "b".repeat(64);
        let marked = |files: &[(&str, &str, u64)]| {
            let entries = entries(&listing(files), None, true, true);
            let marked = entries.iter().filter(|entry| entry["xetHash"] == "");
            marked.map(|entry| entry["path"].as_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(marked(&[("a/x", &sha256, 9), ("b", HELLO, 6), ("c", HELLO, 6)]), ["b"]);
        assert_eq!(marked(&[("a/x", &sha256, 9)]), ["a/x"]);
    }

    #[test]
    fn a_folder_has_gits_oid() {
        let listing = listing(&[("a/hello.txt", HELLO, 6)]);
        let entries = entries(&listing, None, false, false);
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
            let entries = entries(&listing, folder, is_recursive, false);
            entries.iter().map(|entry| entry["path"].as_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths(None, false), ["a", "e"]);
        assert_eq!(paths(None, true), ["a", "a/b", "a/b/c", "a/d", "e"]);
        assert_eq!(paths(Some("a"), false), ["a/b", "a/d"]);
        assert_eq!(paths(Some("a"), true), ["a/b", "a/b/c", "a/d"]);
        assert!(paths(Some("x"), true).is_empty());
        let lfs = listing.entry("a/d", None).unwrap().unwrap();
        assert_eq!(lfs["lfs"]["oid"], sha256);
        assert_eq!(lfs["lfs"]["pointerSize"], 126);
        assert_eq!(listing.entry("a", None).unwrap().unwrap()["type"], "directory");
        assert_eq!((listing.entry("x", None), listing.entry("../e", None)), (Ok(None), Ok(None)));
    }

    #[test]
    fn folders_differ_from_files_with_similar_names() {
        let files = ["a-b", "a.txt", "a/b/c", "a/b-c", "a/b.d/e", "ab/c"].map(|path| (path, HELLO, 6));
        let listing = listing(&files);
        let all = entries(&listing, None, true, false);
        let paths: Vec<&str> = all.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
        let expected = ["a-b", "a.txt", "a", "a/b-c", "a/b.d", "a/b.d/e", "a/b", "a/b/c", "ab", "ab/c"];
        assert_eq!(paths, expected);
        let oid = |path: &str| listing.entry(path, None).unwrap().unwrap()["oid"].as_str().unwrap().to_string();
        assert_eq!(["a", "a/b", "a/b.d", "ab"].map(oid), [GIT_A, GIT_C, GIT_E, GIT_C]);
        assert_eq!(entries(&listing, Some("a"), false, false).len(), 3);
    }

    /// This takes minutes if all files are searched for each folder.
    #[test]
    fn lists_many_folders_and_refuses_absurdly_deep_ones() {
        let blob = |number: usize| format!("{number:040x}");
        let many: Vec<(String, String)> = (0..20_000).map(|number| (format!("{number}/x"), blob(number))).collect();
        let of = |files: &[(String, String)]| {
            listing(&files.iter().map(|(path, blob)| (path.as_str(), blob.as_str(), 1)).collect::<Vec<_>>())
        };
        let listing = of(&many);
        assert_eq!(entries(&listing, None, false, false).len(), 20_000);
        assert!(many.iter().all(|(path, _)| listing.entry(&path[..path.len() - 2], None).unwrap().is_some()));
        let deep: Vec<(String, String)> =
            (0..40).map(|number| (format!("{number}/{}x", "a/".repeat(1_900)), blob(number))).collect();
        let deep = of(&deep);
        assert_eq!(deep.list(View::default()).err(), Some(TooDeep));
        assert_eq!(deep.entry("0/a", None), Err(TooDeep));
        assert!(deep.entry("0", None).is_err() && deep.entry("y", None) == Ok(None));
    }

    #[test]
    fn groups_refs_by_kind() {
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
