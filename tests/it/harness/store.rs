//! A bucket on its own server. Its objects are files, so that tests can inspect and change them directly.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hf_cache_sync::internals::config::{Config, Environment, Overrides};
use hf_cache_sync::internals::engine::Session;
use hf_cache_sync::internals::progress::Silent;

use super::machine::{Output, Running};
use super::s3::{ACCESS_KEY, SECRET_KEY, Server};

/// The default bucket name.
pub const BUCKET: &str = "team-cache";

/// A server with one bucket.
pub struct Store {
    /// The server.
    pub server: Server,
    /// The bucket's name.
    pub bucket: String,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Store {
    /// Creates an empty bucket named [`BUCKET`].
    pub fn new() -> Self {
        Store::named(BUCKET)
    }

    /// Creates an empty bucket with another name.
    pub fn named(bucket: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(bucket)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(Server::start(dir.path(), 0, ACCESS_KEY, SECRET_KEY));
        Store { server, bucket: bucket.into(), dir, _runtime: runtime }
    }

    /// Returns the session of a command in this process, with the cache in `hub` and the working directory `current`.
    pub fn session(&self, hub: &Path, current: &Path) -> Session {
        let variable = |name: &str| match name {
            "B2_APPLICATION_KEY_ID" => Some(ACCESS_KEY.to_string()),
            "B2_APPLICATION_KEY" => Some(SECRET_KEY.to_string()),
            "B2_ENDPOINT" => Some(self.server.url.clone()),
            "B2_BUCKET" => Some(self.bucket.clone()),
            "HF_HUB_CACHE" => Some(hub.display().to_string()),
            _ => None,
        };
        let env = Environment { var: &variable, home: None, current: current.into() };
        let config = Config::load(&Overrides::default(), &env).unwrap();
        Session { config, progress: Arc::new(Silent), now: SystemTime::now() }
    }

    /// Starts a command, waits until it reads this key, changes something, and lets it continue. From then on, the server
    /// behaves normally.
    pub fn change_during<T>(
        &self,
        start: impl FnOnce() -> Running,
        key: &str,
        change: impl FnOnce() -> T,
    ) -> (Output, T) {
        let gate = self.server.hold({
            let key = key.to_string();
            move |request| request.is("GET", &key)
        });
        let earlier = self.server.seen();
        let running = start();
        self.server.wait_for(key, |seen| seen[earlier..].iter().any(|request| request.is("GET", key)));
        let changed = change();
        gate.open();
        let output = running.finish();
        self.server.behave();
        (output, changed)
    }

    /// Returns the file that stores a key.
    pub fn path(&self, key: &str) -> PathBuf {
        self.dir.path().join(&self.bucket).join(key)
    }

    /// Writes an object without a request.
    pub fn put(&self, key: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Reads an object.
    pub fn get(&self, key: &str) -> Vec<u8> {
        fs::read(self.path(key)).unwrap_or_else(|error| panic!("{key}: {error}"))
    }

    /// Reads an object as text.
    pub fn text(&self, key: &str) -> String {
        String::from_utf8(self.get(key)).unwrap()
    }

    /// Whether the object exists.
    pub fn has(&self, key: &str) -> bool {
        self.path(key).is_file()
    }

    /// Deletes an object.
    pub fn remove(&self, key: &str) {
        fs::remove_file(self.path(key)).unwrap();
    }

    /// Deletes every object.
    pub fn clear(&self) {
        let bucket = self.path("");
        fs::remove_dir_all(&bucket).unwrap();
        fs::create_dir(bucket).unwrap();
    }

    /// Sets an object's modification time to this many seconds from now, for example to make it the newest or oldest.
    pub fn age(&self, key: &str, seconds: i64) {
        let offset = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        let time = if seconds < 0 { now - offset } else { now + offset };
        fs::File::options().write(true).open(self.path(key)).unwrap().set_modified(time).unwrap();
    }

    /// Returns every key with the sha256 of its object.
    pub fn objects(&self) -> BTreeMap<String, String> {
        let mut found = super::listing(&self.dir.path().join(&self.bucket));
        found.retain(|_, what| what.starts_with("file"));
        found.values_mut().for_each(|what| *what = what.rsplit(' ').next().unwrap().to_string());
        found
    }

    /// Returns every key, in order.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(self.path(&folder)).into_iter().flatten().map(Result::unwrap);
            for entry in entries {
                let name = folder.clone() + entry.file_name().to_str().unwrap();
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(name + "/"),
                    Ok(_) => keys.push(name),
                    Err(error) => panic!("{name}: {error}"),
                }
            }
        }
        keys.sort_unstable();
        keys
    }

    /// Returns every object with its bytes, as they were at one moment: the server may still be carrying out the last
    /// requests of a process that was killed.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let read = || -> BTreeMap<String, Vec<u8>> {
            let object = |key: String| fs::read(self.path(&key)).ok().map(|bytes| (key, bytes));
            self.keys().into_iter().filter_map(object).collect()
        };
        let mut last = read();
        loop {
            let now = read();
            if now == last {
                return now;
            }
            last = now;
        }
    }
}
