//! A cache, and optionally a bucket, for the tests in this folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use hf_cache_sync::internals::model::ids::RepoName;

use crate::harness::cache_dir::{CacheDir, DAY};
use crate::harness::machine::{self, Output};
use crate::harness::store::Store;
use crate::harness::{git_sha1, s3};

/// Days since the last use of every blob written here.
const UNUSED_DAYS: u64 = 3;

/// Returns a commit hash that repeats one digit.
pub fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

/// Returns the name of a git blob with this content.
pub fn blob(content: &str) -> String {
    git_sha1(content.as_bytes())
}

/// A cache, and optionally a bucket named `team`.
pub struct World {
    /// The cache.
    pub cache: CacheDir,
    store: Option<Store>,
}

impl World {
    /// Creates a cache without a bucket.
    pub fn offline() -> World {
        World { cache: CacheDir::new(), store: None }
    }

    /// Creates a cache and an empty bucket.
    pub fn online() -> World {
        let mut world = World::offline();
        let store = Store::named("team");
        world.cache.machine.connect(&store.server.url, &store.bucket, "us-east-1");
        world.store = Some(store);
        world
    }

    /// Returns the bucket.
    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("only online worlds have a bucket")
    }

    /// Returns the server of the bucket.
    pub fn server(&self) -> &s3::Server {
        &self.store().server
    }

    /// Returns a path in the working directory of commands.
    pub fn work(&self, name: &str) -> PathBuf {
        self.cache.machine.work().join(name)
    }

    /// Adds a revision to the cache, with these files and refs.
    pub fn snapshot(&self, folder: &str, digit: char, files: &[(&str, &str)], refs: &[&str]) {
        RepoName::from_folder(folder).expect("a valid repo folder name");
        let blobs: Vec<String> =
            files.iter().map(|(_, content)| self.cache.blob_of(folder, content, UNUSED_DAYS)).collect();
        let files: Vec<(&str, &str)> =
            files.iter().zip(&blobs).map(|((path, _), blob)| (*path, blob.as_str())).collect();
        self.cache.snapshot(folder, &commit(digit), &files);
        for name in refs {
            self.cache.reference(folder, name, &commit(digit));
        }
    }

    /// Removes a file or folder from the cache.
    pub fn remove(&self, part: &str) {
        let path = self.cache.path(part);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// Makes an object this many days old.
    pub fn age(&self, key: &str, days: i64) {
        self.store().age(key, -days * DAY as i64);
    }

    /// Stores a manifest with one file, as 0.1.0 writes it.
    pub fn put_manifest(&self, encoded: &str, repo: &str, kind: &str, digit: char) {
        let commit = commit(digit);
        let files = format!("[{{\"path\": \"a.txt\", \"blob\": \"{}\", \"size\": 2}}]", blob("hi"));
        let json = format!(
            "{{\"repo\": \"{repo}\", \"revision\": \"{commit}\", \"repo_type\": \"{kind}\", \"files\": {files}}}"
        );
        self.store().put(&format!("manifests/{encoded}@{commit}.json"), json);
    }

    /// Runs the binary, and normalizes everything in its output that differs between runs.
    pub fn run(&self, args: &[&str]) -> Output {
        self.run_normalized(self.cache.machine.command(args))
    }

    /// Runs the binary on a terminal of this width, with an additional environment variable.
    #[cfg(target_os = "linux")]
    pub fn run_on_terminal(&self, columns: u16, (name, value): (&str, &str), args: &str) -> Output {
        let mut command = self.cache.machine.on_terminal(columns, args);
        command.env(name, value);
        self.run_normalized(command)
    }

    fn run_normalized(&self, command: Command) -> Output {
        let mut output = machine::run(command);
        let home = self.cache.machine.home().display().to_string();
        for text in [&mut output.stdout, &mut output.stderr] {
            *text = text.replace(&home, "[DIR]");
            if let Some(store) = &self.store {
                *text = text.replace(&store.server.url, "[URL]");
            }
        }
        output
    }
}
