//! `serve` as a separate process: the real binary, a real cache on disk, the embedded S3 server, and a small HTTP client. The
//! tests wait for bytes, requests or lines; nothing depends on timing.

mod arriving;
mod client;
mod faults;
#[cfg(feature = "fallback")]
mod hub;
mod operation;
mod strangers;
mod surface;

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::harness::cache::Revision;
use crate::harness::machine::{Machine, Output, Running};
use crate::harness::s3::S3Request;
use crate::harness::store::Store;
use crate::harness::{listing, wait_until};
use client::{Answer, Reply};

/// A running server.
pub struct Serve {
    running: Running,
    port: u16,
}

impl Serve {
    /// Starts a server on a free port.
    #[track_caller]
    pub fn start(machine: &Machine, arguments: &[&str]) -> Serve {
        Serve::of(Running::start(
            machine.command(&[&["--json", "serve", "--listen", "127.0.0.1:0"], arguments].concat()),
        ))
    }

    /// Waits until the server prints its port.
    #[track_caller]
    fn of(mut running: Running) -> Serve {
        let mut port = None;
        wait_until("the server", || {
            let started = running.stdout().lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
            port = started.map(|started| port_of(started["url"].as_str().unwrap()));
            port.is_some() || !running.is_running()
        });
        match port {
            Some(port) => Serve { running, port },
            None => panic!("the server has ended: {:#?}", running.finish()),
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }

    fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path, &[])
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.open(method, path, headers).finish()
    }

    /// Sends a request, and returns once the headers of the response have arrived.
    fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        client::open(self.port, method, path, headers, b"").unwrap()
    }

    #[track_caller]
    fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// Returns a counter of `/metrics`.
    #[track_caller]
    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("hf_cache_sync_{name} ")).map(String::from));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Stops the server, and waits until it has exited.
    #[track_caller]
    fn stop(self) -> Output {
        self.running.signal("-TERM");
        self.running.finish()
    }
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

/// Returns a store with these revisions, as 0.1.0 publishes them, and a machine with an empty cache.
fn setup(revisions: &[Revision]) -> (Store, Machine) {
    let store = Store::new();
    revisions.iter().for_each(|revision| revision.publish(&store));
    let machine = Machine::new(&store);
    fs::create_dir_all(machine.hub()).unwrap();
    (store, machine)
}

/// Publishes a revision from another machine, with the current version.
fn push(store: &Store, revision: &Revision) {
    let machine = Machine::new(store);
    revision.write(&machine.hub());
    machine.ok(&["push"]);
}

/// Returns the URL path of a file.
fn file(revision: &Revision, path: &str) -> String {
    let kind = if revision.kind == "model" { String::new() } else { format!("/{}s", revision.kind) };
    format!("{kind}/{}/resolve/main/{path}", revision.id)
}

/// Returns the number of bytes that these requests for blobs asked for, by key.
fn bytes_requested(seen: &[S3Request], store: &Store) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for request in seen.iter().filter(|request| request.is("GET", "blobs/")) {
        let length = match request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
            Some((from, to)) => to.parse::<u64>().unwrap() + 1 - from.parse::<u64>().unwrap(),
            None => fs::metadata(store.path(&request.key)).map_or(0, |meta| meta.len()),
        };
        *sums.entry(request.key.clone()).or_default() += length;
    }
    sums
}

/// Returns the number of GETs of a blob.
fn gets(seen: &[S3Request], key: &str) -> usize {
    seen.iter().filter(|request| request.is("GET", key)).count()
}

/// Asserts that the cache has no blob of this name, and nothing unfinished that a client could mistake for one.
#[track_caller]
fn assert_no_blob(machine: &Machine, etag: &str) {
    let found = listing(&machine.hub());
    let blobs: Vec<&String> = found.keys().filter(|path| path.contains(&format!("blobs/{etag}"))).collect();
    assert!(blobs.is_empty(), "{blobs:?}");
}
