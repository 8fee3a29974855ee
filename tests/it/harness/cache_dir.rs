//! A cache folder that is built file by file, as huggingface_hub leaves it, with times of one's choice.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::git_sha1;
use super::machine::Machine;

/// A machine with a cache in the folder `hub` of its home directory.
pub struct CacheDir {
    /// The machine; no bucket is configured.
    pub machine: Machine,
}

/// A day.
pub const DAY: u64 = 24 * 3600;

impl CacheDir {
    /// An empty cache.
    pub fn new() -> CacheDir {
        let mut machine = Machine::unconfigured();
        machine.keep_hub_in("hub");
        CacheDir { machine }
    }

    /// The cache.
    pub fn root(&self) -> PathBuf {
        self.machine.hub()
    }

    /// The folder in which the cache is.
    pub fn outside(&self) -> PathBuf {
        self.machine.home()
    }

    /// Something in the cache.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root().join(relative)
    }

    /// Whether something is in the cache, be it a link that leads nowhere.
    pub fn exists(&self, relative: &str) -> bool {
        fs::symlink_metadata(self.path(relative)).is_ok()
    }

    /// A file, with its folders.
    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.settle(relative);
        path
    }

    /// Makes the folders of a repo as old as those of a cache in which nothing came or went for long.
    pub fn settle(&self, relative: &str) {
        let repo = relative.split('/').next().unwrap();
        for folder in ["", "/blobs", "/snapshots", "/refs"].map(|part| self.path(&format!("{repo}{part}"))) {
            if repo.contains("--") && fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir()) {
                used(&folder, 30 * DAY);
            }
        }
    }

    /// A blob of so many bytes, last used days ago. The number is its name.
    pub fn blob(&self, repo: &str, number: u64, size: usize, days: u64) -> String {
        let id = id(number);
        let path = self.write(&format!("{repo}/blobs/{id}"), vec![b'x'; size]);
        used(&path, days * DAY);
        id
    }

    /// A blob of git with this content, last used days ago; returns its name.
    pub fn blob_of(&self, repo: &str, content: &str, days: u64) -> String {
        let id = git_sha1(content.as_bytes());
        let path = self.write(&format!("{repo}/blobs/{id}"), content);
        used(&path, days * DAY);
        id
    }

    /// A snapshot whose files are the client's links to blobs.
    pub fn snapshot(&self, repo: &str, commit: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(self.path(&format!("{repo}/snapshots/{commit}"))).unwrap();
        for (path, blob) in files {
            let link = self.path(&format!("{repo}/snapshots/{commit}/{path}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let up = "../".repeat(path.split('/').count() + 1);
            super::link(&format!("{up}blobs/{blob}"), &link).unwrap();
        }
        self.settle(repo);
    }

    /// A ref.
    pub fn reference(&self, repo: &str, name: &str, commit: &str) {
        self.write(&format!("{repo}/refs/{name}"), commit);
    }

    /// A revision of one blob.
    pub fn revision(&self, repo: &str, number: u64, size: usize, days: u64) -> String {
        let commit = commit(number);
        let blob = self.blob(repo, number, size, days);
        self.snapshot(repo, &commit, &[("model.bin", &blob)]);
        commit
    }

    /// A payload of the cache-wide store; its list names the blobs that link to it.
    pub fn payload(&self, number: u64, size: usize, days: u64, links: &[(&str, &str)]) -> PathBuf {
        self.write("blobs/.huggingface-shared-blobs", "1\n");
        let hash = format!("{number:064x}");
        let path = self.write(&format!("blobs/{}/{hash}", &hash[..2]), vec![b's'; size]);
        used(&path, days * DAY);
        let mut list = String::new();
        for (repo, etag) in links {
            let link = self.path(&format!("{repo}/blobs/{etag}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            super::link(&format!("../../blobs/{}/{hash}", &hash[..2]), &link).unwrap();
            list += &format!("{repo}/blobs/{etag}\n");
            self.settle(repo);
        }
        self.write(&format!("blobs/{}/{hash}.refs", &hash[..2]), list);
        used(path.parent().unwrap(), days * DAY);
        path
    }

    /// Of one repo, as [`Hub::contents`].
    pub fn contents_of(&self, repo: &str) -> BTreeMap<String, Vec<u8>> {
        self.contents().into_iter().filter(|(name, _)| name.starts_with(repo)).collect()
    }

    /// Every name below the cache with its content or link text, but for the tool's own state and lock files.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        collect(&self.root(), &self.root(), &mut found);
        found
    }
}

/// A blob name.
pub fn id(number: u64) -> String {
    format!("{number:064x}")
}

/// A commit hash.
pub fn commit(number: u64) -> String {
    format!("{number:040x}")
}

fn set_times(path: &Path, times: FileTimes) {
    #[cfg(unix)]
    let file = File::open(path);
    #[cfg(windows)]
    let file = {
        use std::os::windows::fs::OpenOptionsExt;
        // FILE_WRITE_ATTRIBUTES, and FILE_FLAG_BACKUP_SEMANTICS for folders.
        File::options().access_mode(0x100).custom_flags(0x0200_0000).open(path)
    };
    file.unwrap().set_times(times).unwrap();
}

/// Sets access and modification time to so many seconds ago.
pub fn used(path: &Path, seconds_ago: u64) {
    let then = SystemTime::now() - Duration::from_secs(seconds_ago);
    set_times(path, FileTimes::new().set_accessed(then).set_modified(then));
}

/// Bytes of all files below a folder whose path from there is `counted`, each inode once.
pub fn disk_usage(root: &Path, counted: impl Fn(&str) -> bool) -> u64 {
    let mut seen = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() && counted(path.strip_prefix(root).unwrap().to_str().unwrap()) {
                seen.insert(hf_cache_sync::platform::inode(&path, &meta).unwrap().id, meta.len());
            }
        }
    }
    seen.values().sum()
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            if name == ".locks" {
                continue;
            }
            found.insert(format!("{name}/"), Vec::new());
            collect(root, &path, found);
        } else if meta.is_symlink() {
            found.insert(name, fs::read_link(&path).unwrap().to_str().unwrap().into());
        } else if !meta.is_file() {
            found.insert(name, Vec::new());
        } else {
            // Looking must not count as use.
            let times = FileTimes::new().set_accessed(meta.accessed().unwrap());
            found.insert(name, fs::read(&path).unwrap());
            set_times(&path, times);
        }
    }
}
