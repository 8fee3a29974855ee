//! A cache, and where it is wanted a bucket, for the tests of this folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use hf_cache_sync::internals::model::ids::RepoName;

use crate::harness::cache_dir::{CacheDir, DAY};
use crate::harness::machine::{self, Ran};
use crate::harness::store::Store;
use crate::harness::{git_sha1, s3};

/// Days since the last use of every blob that is written here.
const UNUSED_DAYS: u64 = 3;

/// A commit of one digit.
pub fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

/// The name of the blob with this content, as git names it.
pub fn blob(content: &str) -> String {
    git_sha1(content.as_bytes())
}

/// A cache, and the bucket `team`.
pub struct World {
    /// The cache.
    pub cache: CacheDir,
    store: Option<Store>,
}

impl World {
    /// Without a bucket.
    pub fn offline() -> World {
        World { cache: CacheDir::new(), store: None }
    }

    /// With an empty bucket.
    pub fn online() -> World {
        let mut world = World::offline();
        let store = Store::named("team");
        world.cache.machine.connect(&store.server.url, &store.bucket, "us-east-1");
        world.store = Some(store);
        world
    }

    /// The bucket.
    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("a world that is online")
    }

    /// The server with the bucket.
    pub fn server(&self) -> &s3::Server {
        &self.store().server
    }

    /// A file in the current directory of commands.
    pub fn work(&self, name: &str) -> PathBuf {
        self.cache.machine.work().join(name)
    }

    /// Adds a revision to the cache: files with their contents, and refs to it.
    pub fn snapshot(&self, folder: &str, digit: char, files: &[(&str, &str)], refs: &[&str]) {
        RepoName::from_folder(folder).expect("a repo folder's name");
        let blobs: Vec<String> =
            files.iter().map(|(_, content)| self.cache.blob_of(folder, content, UNUSED_DAYS)).collect();
        let files: Vec<(&str, &str)> =
            files.iter().zip(&blobs).map(|((path, _), blob)| (*path, blob.as_str())).collect();
        self.cache.snapshot(folder, &commit(digit), &files);
        for name in refs {
            self.cache.reference(folder, name, &commit(digit));
        }
    }

    /// Removes a part of the cache.
    pub fn remove(&self, part: &str) {
        let path = self.cache.path(part);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// Makes an object so many days old.
    pub fn age(&self, key: &str, days: i64) {
        self.store().age(key, -days * DAY as i64);
    }

    /// A manifest as 0.1.0 writes it, with one file.
    pub fn put_manifest(&self, encoded: &str, repo: &str, kind: &str, digit: char) {
        let commit = commit(digit);
        let files = format!("[{{\"path\": \"a.txt\", \"blob\": \"{}\", \"size\": 2}}]", blob("hi"));
        let json = format!(
            "{{\"repo\": \"{repo}\", \"revision\": \"{commit}\", \"repo_type\": \"{kind}\", \"files\": {files}}}"
        );
        self.store().put(&format!("manifests/{encoded}@{commit}.json"), json);
    }

    /// Runs the binary; in what it says, what differs from run to run is replaced.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.stable(self.cache.machine.command(args))
    }

    /// Runs the binary on a terminal so many columns wide, with this variable as well.
    #[cfg(target_os = "linux")]
    pub fn run_on_terminal(&self, columns: u16, (name, value): (&str, &str), args: &str) -> Ran {
        let mut command = self.cache.machine.on_terminal(columns, args);
        command.env(name, value);
        self.stable(command)
    }

    fn stable(&self, command: Command) -> Ran {
        let mut ran = machine::run(command);
        let home = self.cache.machine.home().display().to_string();
        for text in [&mut ran.stdout, &mut ran.stderr] {
            *text = text.replace(&home, "[DIR]");
            if let Some(store) = &self.store {
                *text = text.replace(&store.server.url, "[URL]");
            }
        }
        ran
    }
}
