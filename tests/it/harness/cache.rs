//! Caches as huggingface_hub writes them, and buckets as hf-cache-sync 0.1.0 writes them. Built here from the
//! documented layout alone, so that the program is not checked against itself.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::cache_dir::{DAY, set_last_used};
use super::store::Store;
use super::{git_sha1, sha256};

/// A commit hash.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Another commit hash.
pub const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// How a snapshot refers to its files' contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Relative links to `blobs/`, as on Linux and macOS.
    Links,
    /// Like `Links`, but LFS blobs are themselves links into the shared store: two hops.
    Shared,
    /// Regular files in `snapshots/` and an empty `blobs/`, for file systems without links.
    Real,
    /// Regular files that are hard links into `blobs/`.
    Hardlinks,
}

/// A file of a revision.
#[derive(Debug, Clone)]
pub struct Content {
    /// Path in the repo.
    pub path: String,
    /// Contents.
    pub bytes: Vec<u8>,
    /// Whether the Hub stores it in LFS or Xet.
    pub lfs: bool,
}

impl Content {
    /// Returns the name of its blob.
    pub fn etag(&self) -> String {
        if self.lfs { sha256(&self.bytes) } else { git_sha1(&self.bytes) }
    }

    /// Its name in the cache-wide store.
    pub fn xet_hash(&self) -> String {
        hf_cache_sync::internals::hash::xet_hash(self.bytes.as_ref() as &[u8]).unwrap().to_string()
    }
}

/// A revision of a repo, to write into a cache or a bucket, or to compare with one.
#[derive(Debug, Clone)]
pub struct Revision {
    /// `model`, `dataset`, `space` or `kernel`.
    pub kind: String,
    /// `org/name`
    pub id: String,
    /// The commit.
    pub commit: String,
    /// All files of the commit.
    pub files: Vec<Content>,
    /// Paths that have not been downloaded.
    pub absent: Vec<String>,
    /// The refs that point to it.
    pub refs: Vec<String>,
    /// Whether the cache has a tree file for it.
    pub tree: bool,
    /// How its files refer to their contents.
    pub layout: Layout,
}

impl Revision {
    /// Returns an empty revision at [`COMMIT`], with `main` pointing to it.
    pub fn new(kind: &str, id: &str) -> Self {
        Revision {
            kind: kind.into(),
            id: id.into(),
            commit: COMMIT.into(),
            files: Vec::new(),
            absent: Vec::new(),
            refs: vec!["main".into()],
            tree: false,
            layout: Layout::Links,
        }
    }

    /// Returns a model with a configuration and weights.
    pub fn model(id: &str) -> Self {
        let weights = super::weights(id.len() as u64, 300_000);
        Revision::new("model", id).git("config.json", "{\"model_type\": \"bert\"}\n").lfs("model.safetensors", weights)
    }

    /// Adds a file that is stored in git.
    pub fn git(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.files.push(Content { path: path.into(), bytes: bytes.as_ref().to_vec(), lfs: false });
        self
    }

    /// Adds a file that is stored in LFS.
    pub fn lfs(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.files.push(Content { path: path.into(), bytes: bytes.as_ref().to_vec(), lfs: true });
        self
    }

    /// Sets the commit.
    pub fn at(mut self, commit: &str) -> Self {
        self.commit = commit.into();
        self
    }

    /// Sets the refs, which replace `main`.
    pub fn refs(mut self, refs: &[&str]) -> Self {
        self.refs = refs.iter().map(|name| name.to_string()).collect();
        self
    }

    /// Adds the tree file.
    pub fn with_tree(mut self) -> Self {
        self.tree = true;
        self
    }

    /// Sets the layout.
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Marks files as not downloaded.
    pub fn without(mut self, paths: &[&str]) -> Self {
        self.absent = paths.iter().map(|path| path.to_string()).collect();
        self
    }

    /// Returns the files that have been downloaded.
    pub fn present(&self) -> impl Iterator<Item = &Content> {
        self.files.iter().filter(|file| !self.absent.contains(&file.path))
    }

    /// Returns the file with this path.
    pub fn file(&self, path: &str) -> &Content {
        self.files.iter().find(|file| file.path == path).unwrap()
    }

    /// Returns the name of a file's blob.
    pub fn etag(&self, path: &str) -> String {
        self.file(path).etag()
    }

    /// `models--org--name`
    pub fn folder(&self) -> String {
        format!("{}s--{}", self.kind, self.id.replace('/', "--"))
    }

    /// Returns its folder in a cache.
    pub fn dir(&self, hub: &Path) -> PathBuf {
        hub.join(self.folder())
    }

    /// Returns its snapshot folder in a cache.
    pub fn snapshot(&self, hub: &Path) -> PathBuf {
        self.dir(hub).join("snapshots").join(&self.commit)
    }

    /// Returns the path of a file's blob in a cache.
    pub fn blob(&self, hub: &Path, path: &str) -> PathBuf {
        self.dir(hub).join("blobs").join(self.etag(path))
    }

    /// Returns the commit's tree as the client writes it.
    pub fn tree_json(&self) -> Vec<u8> {
        let mut files: Vec<&Content> = self.files.iter().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let entries: Map<String, Value> = files
            .into_iter()
            .map(|file| {
                let size = file.bytes.len();
                let mut entry = match file.lfs {
                    false => json!({"size": size, "blob_id": file.etag()}),
                    true => json!({
                        "size": size, "blob_id": git_sha1(file.etag().as_bytes()), "lfs_sha256": file.etag(),
                        "lfs_size": size,
                    }),
                };
                if file.lfs && self.layout == Layout::Shared {
                    entry["xet_hash"] = file.xet_hash().into();
                }
                (file.path.clone(), entry)
            })
            .collect();
        indented(&json!({"format_version": 1, "files": entries}), b" ")
    }

    /// Writes it into a cache.
    pub fn write(&self, hub: &Path) {
        let (dir, snapshot) = (self.dir(hub), self.snapshot(hub));
        let blobs = dir.join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(hub.join("CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n").unwrap();
        for file in self.present() {
            let (blob, link) = (blobs.join(file.etag()), snapshot.join(&file.path));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            if link.is_symlink() || link.exists() {
                continue;
            }
            match self.layout {
                Layout::Real => {
                    fs::write(&link, &file.bytes).unwrap();
                    continue;
                }
                Layout::Shared if file.lfs => self.write_shared(hub, file),
                // As the client does: an existing blob may be a hard link to that of another repo.
                _ => {
                    let unfinished = blobs.join(format!("{}.incomplete", file.etag()));
                    fs::write(&unfinished, &file.bytes).unwrap();
                    fs::rename(unfinished, &blob).unwrap();
                }
            }
            match self.layout {
                Layout::Hardlinks => fs::hard_link(&blob, &link).unwrap(),
                _ => {
                    let up = "../".repeat(file.path.matches('/').count() + 2);
                    super::link(&format!("{up}blobs/{}", file.etag()), &link).unwrap();
                }
            }
        }
        for name in &self.refs {
            let path = dir.join("refs").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &self.commit).unwrap();
        }
        if self.tree {
            fs::create_dir_all(dir.join("trees")).unwrap();
            fs::write(dir.join("trees").join(format!("{}.json", self.commit)), self.tree_json()).unwrap();
        }
    }

    /// Downloads it as the client does, with a pause after each step: the folders and the ref, then each file under its
    /// lock. A file is linked if its blob exists, and otherwise written to an unfinished file that is renamed to the blob's
    /// name.
    pub fn download(&self, hub: &Path, mut pause: impl FnMut()) {
        let (dir, locks) = (self.dir(hub), hub.join(".locks").join(self.folder()));
        for file in self.present() {
            let (blob, link) = (dir.join("blobs").join(file.etag()), self.snapshot(hub).join(&file.path));
            in_folder(blob.parent().unwrap(), || Ok(())).unwrap();
            in_folder(link.parent().unwrap(), || Ok(())).unwrap();
            for name in &self.refs {
                let path = dir.join("refs").join(name);
                if fs::read_to_string(&path).ok().as_ref() != Some(&self.commit) {
                    let unfinished =
                        path.with_file_name(format!("{}.0123abcd.tmp", path.file_name().unwrap().display()));
                    let write = || fs::write(&unfinished, &self.commit).and_then(|()| fs::rename(&unfinished, &path));
                    in_folder(path.parent().unwrap(), write).unwrap();
                }
            }
            pause();
            if link.exists() {
                continue;
            }
            // Between two files, no lock is held. As long as all files so far are links to old blobs, a prune may take the
            // repo for one that has not been used for long, and delete its folders.
            let lock = locks.join(format!("{}.lock", file.etag()));
            let lock = in_folder(&locks, || fs::File::create(&lock)).unwrap();
            lock.lock().unwrap();
            in_folder(blob.parent().unwrap(), || Ok(())).unwrap();
            if !blob.exists() {
                let unfinished = blob.with_file_name(format!("{}.0123abcd.incomplete", file.etag()));
                let mut out = fs::File::create(&unfinished).unwrap();
                for chunk in file.bytes.chunks(10_000) {
                    out.write_all(chunk).unwrap();
                    pause();
                }
                drop(out);
                fs::rename(unfinished, &blob).unwrap();
                pause();
            }
            let up = "../".repeat(file.path.matches('/').count() + 2);
            let linked =
                in_folder(link.parent().unwrap(), || super::link(&format!("{up}blobs/{}", file.etag()), &link));
            // Another program may have linked it in the meantime.
            assert!(linked.is_ok() || link.exists(), "{}: {linked:?}", link.display());
        }
    }

    /// Backdates everything in its folder by this many days, as if it had been idle since.
    pub fn age(&self, hub: &Path, days: u64) {
        let mut left = vec![self.dir(hub)];
        while let Some(path) = left.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            if !meta.is_symlink() {
                set_last_used(&path, days * DAY);
            }
        }
    }

    fn write_shared(&self, hub: &Path, file: &Content) {
        let store = hub.join("blobs");
        let xet = file.xet_hash();
        let payload = store.join(&xet[..2]).join(&xet);
        fs::create_dir_all(payload.parent().unwrap()).unwrap();
        fs::write(store.join(".huggingface-shared-blobs"), "1\n").unwrap();
        fs::write(&payload, &file.bytes).unwrap();
        let mut users = payload.clone().into_os_string();
        users.push(".refs");
        fs::write(users, format!("{}/blobs/{}\n", self.folder(), file.etag())).unwrap();
        let blob = self.dir(hub).join("blobs").join(file.etag());
        if blob.symlink_metadata().is_err() {
            super::link(&format!("../../blobs/{}/{xet}", &xet[..2]), &blob).unwrap();
        }
    }

    /// Returns the repo id as it is encoded in keys.
    pub fn encoded(&self) -> String {
        self.id.replace('/', "__")
    }

    /// `manifests/…`
    pub fn manifest_key(&self) -> String {
        format!("manifests/{}@{}.json", self.encoded(), self.commit)
    }

    /// `blobs/…`
    pub fn blob_key(&self, path: &str) -> String {
        format!("blobs/{}", self.etag(path))
    }

    /// Returns the manifest, so that tests can alter it before they publish it.
    pub fn manifest(&self) -> Value {
        let mut files: Vec<&Content> = self.present().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let files: Vec<Value> = files
            .iter()
            .map(|file| json!({"path": file.path, "blob": file.etag(), "size": file.bytes.len()}))
            .collect();
        json!({"repo": self.id, "revision": self.commit, "repo_type": self.kind, "files": files})
    }

    /// Returns the objects that 0.1.0 creates for it.
    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let blobs = self.present().map(|file| (format!("blobs/{}", file.etag()), file.bytes.clone()));
        let manifest = (self.manifest_key(), indented(&self.manifest(), b"  "));
        let to_ref = |name: &String| (format!("refs/{}/{name}", self.encoded()), self.commit.clone().into_bytes());
        blobs.chain([manifest]).chain(self.refs.iter().map(to_ref)).collect()
    }

    /// Publishes it to the bucket as 0.1.0 does.
    pub fn publish(&self, store: &Store) {
        for (key, bytes) in self.objects() {
            store.put(&key, bytes);
        }
    }

    /// Asserts that the cache has all of it, byte for byte, in the client's layout: blobs under their names, relative
    /// links (on Windows hard links), refs without a newline, the tree.
    #[track_caller]
    pub fn assert_pulled(&self, hub: &Path) {
        for file in self.present() {
            let link = self.snapshot(hub).join(&file.path);
            if cfg!(unix) {
                let text = fs::read_link(&link).unwrap_or_else(|error| panic!("{}: {error}", link.display()));
                let up = "../".repeat(file.path.matches('/').count() + 2);
                assert_eq!(text, Path::new(&format!("{up}blobs/{}", file.etag())), "{}", file.path);
            } else {
                assert!(super::is_same_file(&link, &self.blob(hub, &file.path)), "{}", file.path);
            }
            assert!(fs::read(&link).unwrap() == file.bytes, "{} has different contents", file.path);
        }
        assert_eq!(count_files(&self.snapshot(hub)), self.present().count());
        for name in &self.refs {
            assert_eq!(fs::read_to_string(self.dir(hub).join("refs").join(name)).unwrap(), self.commit, "{name}");
        }
        if self.tree {
            let tree = self.dir(hub).join("trees").join(format!("{}.json", self.commit));
            assert_eq!(fs::read_to_string(tree).unwrap(), String::from_utf8(self.tree_json()).unwrap());
        }
    }

    /// Asserts that the bucket has all of it, byte for byte.
    #[track_caller]
    pub fn assert_published(&self, store: &Store) {
        for file in self.present() {
            assert!(store.get(&format!("blobs/{}", file.etag())) == file.bytes, "{} has different contents", file.path);
        }
        let manifest: Value = serde_json::from_slice(&store.get(&self.manifest_key())).unwrap();
        let expected = self.manifest();
        for key in ["repo", "revision", "repo_type", "files"] {
            assert_eq!(manifest[key], expected[key], "{key}");
        }
    }
}

/// Counts the files and links below a folder.
pub fn count_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|entry| if entry.file_type().unwrap().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

/// Returns JSON as Python's `json.dumps` writes it with this indent: non-ASCII characters are escaped.
pub fn indented(value: &Value, indent: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent);
    serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut out, formatter)).unwrap();
    let text = String::from_utf8(out).unwrap();
    let escaped = |c: char| match c.is_ascii() {
        true => c.to_string(),
        false => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
    };
    text.chars().map(escaped).collect::<String>().into_bytes()
}

/// Creates something in a folder, which another process may delete at any moment.
fn in_folder<T>(folder: &Path, create: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    for _ in 0..100 {
        match fs::create_dir_all(folder).and_then(|()| create()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            created => return created,
        }
    }
    create()
}
