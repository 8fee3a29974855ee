//! A cache folder that is built file by file, as huggingface_hub leaves it, with chosen timestamps.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::git_sha1;
use super::machine::Machine;

/// A machine whose cache is the folder `hub` in its home directory.
pub struct CacheDir {
    /// The machine, without a configured bucket.
    pub machine: Machine,
}

/// Seconds in a day.
pub const DAY: u64 = 24 * 3600;

impl CacheDir {
    /// Creates an empty cache.
    pub fn new() -> CacheDir {
        let mut machine = Machine::unconfigured();
        machine.move_hub_to("hub");
        CacheDir { machine }
    }

    /// Returns the cache folder.
    pub fn root(&self) -> PathBuf {
        self.machine.hub()
    }

    /// Returns the folder that contains the cache.
    pub fn outside(&self) -> PathBuf {
        self.machine.home()
    }

    /// Returns a path in the cache.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root().join(relative)
    }

    /// Whether the cache has this entry; a dangling link counts.
    pub fn exists(&self, relative: &str) -> bool {
        fs::symlink_metadata(self.path(relative)).is_ok()
    }

    /// Writes a file and the folders above it.
    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.backdate_folders(relative);
        path
    }

    /// Backdates the folders of a repo, as in a cache that has been idle for a long time.
    pub fn backdate_folders(&self, relative: &str) {
        let repo = relative.split('/').next().unwrap();
        for folder in ["", "/blobs", "/snapshots", "/refs"].map(|part| self.path(&format!("{repo}{part}"))) {
            if repo.contains("--") && fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir()) {
                set_last_used(&folder, 30 * DAY);
            }
        }
    }

    /// Writes a blob of `size` bytes that was last used `days` ago. The number becomes its name.
    pub fn blob(&self, repo: &str, number: u64, size: usize, days: u64) -> String {
        let id = id(number);
        let path = self.write(&format!("{repo}/blobs/{id}"), vec![b'x'; size]);
        set_last_used(&path, days * DAY);
        id
    }

    /// Writes a git blob with this content that was last used `days` ago, and returns its name.
    pub fn blob_of(&self, repo: &str, content: &str, days: u64) -> String {
        let id = git_sha1(content.as_bytes());
        let path = self.write(&format!("{repo}/blobs/{id}"), content);
        set_last_used(&path, days * DAY);
        id
    }

    /// Writes a snapshot whose files link to blobs as the client's do.
    pub fn snapshot(&self, repo: &str, commit: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(self.path(&format!("{repo}/snapshots/{commit}"))).unwrap();
        for (path, blob) in files {
            let link = self.path(&format!("{repo}/snapshots/{commit}/{path}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let up = "../".repeat(path.split('/').count() + 1);
            super::link(&format!("{up}blobs/{blob}"), &link).unwrap();
        }
        self.backdate_folders(repo);
    }

    /// Writes a ref.
    pub fn reference(&self, repo: &str, name: &str, commit: &str) {
        self.write(&format!("{repo}/refs/{name}"), commit);
    }

    /// Writes a revision with a single blob, and returns its commit.
    pub fn revision(&self, repo: &str, number: u64, size: usize, days: u64) -> String {
        let commit = commit(number);
        let blob = self.blob(repo, number, size, days);
        self.snapshot(repo, &commit, &[("model.bin", &blob)]);
        commit
    }

    /// Writes a payload of the shared store; its list names the blobs that link to it.
    pub fn payload(&self, number: u64, size: usize, days: u64, links: &[(&str, &str)]) -> PathBuf {
        self.write("blobs/.huggingface-shared-blobs", "1\n");
        let hash = format!("{number:064x}");
        let path = self.write(&format!("blobs/{}/{hash}", &hash[..2]), vec![b's'; size]);
        set_last_used(&path, days * DAY);
        let mut list = String::new();
        for (repo, etag) in links {
            let link = self.path(&format!("{repo}/blobs/{etag}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            super::link(&format!("../../blobs/{}/{hash}", &hash[..2]), &link).unwrap();
            list += &format!("{repo}/blobs/{etag}\n");
            self.backdate_folders(repo);
        }
        self.write(&format!("blobs/{}/{hash}.refs", &hash[..2]), list);
        set_last_used(path.parent().unwrap(), days * DAY);
        path
    }

    /// Returns [`CacheDir::contents`] of one repo.
    pub fn contents_of(&self, repo: &str) -> BTreeMap<String, Vec<u8>> {
        self.contents().into_iter().filter(|(name, _)| name.starts_with(repo)).collect()
    }

    /// Returns every entry of the cache with its content or link target, except the tool's own state and lock files.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        collect(&self.root(), &self.root(), &mut found);
        found
    }
}

/// Returns a blob name.
pub fn id(number: u64) -> String {
    format!("{number:064x}")
}

/// Returns a commit hash.
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

/// Sets the access and modification times to this many seconds ago.
pub fn set_last_used(path: &Path, seconds_ago: u64) {
    set_times_to(path, SystemTime::now() - Duration::from_secs(seconds_ago));
}

/// Sets the access and modification times.
pub fn set_times_to(path: &Path, time: SystemTime) {
    set_times(path, FileTimes::new().set_accessed(time).set_modified(time));
}

/// Returns the total size of the files below a folder whose relative path is `counted`; each inode counts once.
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
            // Reading the file must not count as a use.
            let times = FileTimes::new().set_accessed(meta.accessed().unwrap());
            found.insert(name, fs::read(&path).unwrap());
            set_times(&path, times);
        }
    }
}
