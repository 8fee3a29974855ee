//! A cache and a bucket for the tests of this folder, and running the real binary on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hf_cache_sync::hash::BlobHasher;
use hf_cache_sync::model::ids::RepoName;

use crate::harness::s3::{ACCESS_KEY, SECRET_KEY, Server};

/// Days since the last use of every blob that is written here.
const UNUSED_DAYS: u64 = 3;

/// A commit of one digit.
pub fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

/// The name of the blob with this content, as git names it.
pub fn blob(content: &str) -> String {
    let mut hasher = BlobHasher::git(content.len() as u64);
    hasher.update(content.as_bytes());
    hasher.finish().to_string()
}

/// What a run of the binary gave.
pub struct Run {
    /// Stdout, with what differs from run to run replaced.
    pub out: String,
    /// Stderr, likewise.
    pub err: String,
    /// Exit code.
    pub code: i32,
}

impl Run {
    /// Everything that a person sees.
    pub fn text(&self) -> String {
        format!("exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.out, self.err)
    }

    /// Stdout as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// A folder with a home, a cache, and the bucket `team`.
pub struct World {
    dir: tempfile::TempDir,
    /// The server, when there is one.
    pub server: Option<Server>,
}

impl World {
    /// Without a bucket.
    pub fn offline() -> World {
        let dir = tempfile::tempdir().unwrap();
        for part in ["home", "hub", "store/team"] {
            fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        World { dir, server: None }
    }

    /// With an empty bucket.
    pub async fn online() -> World {
        let mut world = World::offline();
        world.server = Some(Server::start(&world.path("store"), 0, ACCESS_KEY, SECRET_KEY).await);
        world
    }

    /// A path in the folder.
    pub fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    /// Adds a revision to the cache: files with their contents, and refs to it.
    pub fn snapshot(&self, folder: &str, digit: char, files: &[(&str, &str)], refs: &[&str]) {
        RepoName::from_folder(folder).expect("a repo folder's name");
        let repo = self.path("hub").join(folder);
        fs::create_dir_all(repo.join("blobs")).unwrap();
        for (path, content) in files {
            let link = repo.join("snapshots").join(commit(digit)).join(path);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let target = repo.join("blobs").join(blob(content));
            fs::write(&target, content).unwrap();
            set_time(&target, UNUSED_DAYS);
            let up = "../".repeat(path.matches('/').count() + 2);
            std::os::unix::fs::symlink(format!("{up}blobs/{}", blob(content)), link).unwrap();
        }
        for name in refs {
            let path = repo.join("refs").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, commit(digit)).unwrap();
        }
    }

    /// Removes a part of the cache.
    pub fn remove(&self, part: &str) {
        let path = self.path("hub").join(part);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// Puts an object into the bucket as another program would.
    pub fn put(&self, key: &str, content: &str) {
        let path = self.path("store/team").join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Makes an object so many days old.
    pub fn age(&self, key: &str, days: u64) {
        set_time(&self.path("store/team").join(key), days);
    }

    /// Removes an object.
    pub fn delete(&self, key: &str) {
        fs::remove_file(self.path("store/team").join(key)).unwrap();
    }

    /// A manifest as 0.1.0 writes it, with one file.
    pub fn put_manifest(&self, encoded: &str, repo: &str, kind: &str, digit: char) {
        let commit = commit(digit);
        let files = format!("[{{\"path\": \"a.txt\", \"blob\": \"{}\", \"size\": 2}}]", blob("hi"));
        let json = format!(
            "{{\"repo\": \"{repo}\", \"revision\": \"{commit}\", \"repo_type\": \"{kind}\", \"files\": {files}}}"
        );
        self.put(&format!("manifests/{encoded}@{commit}.json"), &json);
    }

    /// Runs the binary.
    pub fn run(&self, args: &[&str]) -> Run {
        let mut command = assert_cmd::Command::cargo_bin("hf-cache-sync").unwrap();
        command.env_clear().current_dir(self.path("home")).env("HOME", self.path("home")).args(args);
        command.env("HF_HUB_CACHE", self.path("hub")).timeout(Duration::from_secs(60));
        if let Some(server) = &self.server {
            command.env("B2_ENDPOINT", &server.url).env("B2_BUCKET", "team").env("B2_REGION", "us-east-1");
            command.env("B2_APPLICATION_KEY_ID", ACCESS_KEY).env("B2_APPLICATION_KEY", SECRET_KEY);
        }
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        Run {
            out: self.stable(&output.stdout),
            err: self.stable(&output.stderr),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// Runs the binary on a terminal so many columns wide, with this variable as well; all that it shows there is
    /// `out`. The terminal is that of script(1), from util-linux.
    #[cfg(target_os = "linux")]
    pub fn run_on_terminal(&self, columns: u16, (name, value): (&str, &str), args: &str) -> Run {
        let line = format!("stty rows 24 cols {columns} && exec '{}' {args}", env!("CARGO_BIN_EXE_hf-cache-sync"));
        let mut command = assert_cmd::Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env_clear().current_dir(self.path("home")).env("HOME", self.path("home"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TERM", "xterm").env(name, value);
        let output = command.env("HF_HUB_CACHE", self.path("hub")).timeout(Duration::from_secs(60)).output();
        let output = output.expect("script, of util-linux, is there");
        Run {
            out: self.stable(&output.stdout),
            err: self.stable(&output.stderr),
            code: output.status.code().unwrap_or(-1),
        }
    }

    fn stable(&self, bytes: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(bytes).replace(&*self.dir.path().to_string_lossy(), "[DIR]");
        if let Some(server) = &self.server {
            text = text.replace(&server.url, "[URL]");
        }
        text
    }
}

fn set_time(path: &Path, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400 + 60);
    let times = fs::FileTimes::new().set_accessed(then).set_modified(then);
    fs::File::options().write(true).open(path).unwrap().set_times(times).unwrap();
}
