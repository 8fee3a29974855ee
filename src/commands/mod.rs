//! The commands. Each gathers what is there, makes a pure plan, stops there for `--dry-run`, executes, and returns
//! a report; none of them prints.

pub mod completions;
pub mod config;
pub mod diff;
pub mod doctor;
pub mod init;
pub mod list;
pub mod man;
pub mod prune;
pub mod pull;
pub mod pull_all;
pub mod push;
pub mod size;
pub mod status;
pub mod watch;
pub mod when;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::cache::layout::Layout;
use crate::cache::lock::{self, Lock};
use crate::cache::place;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::progress::{Event, Progress, waiting};
use crate::remote::client::Bucket;
use crate::remote::limit::{Caps, Limits};
use crate::remote::transfer::Context;
use size::{ByteRate, Memory};

/// What every command gets.
#[derive(Clone)]
pub struct Session {
    /// The configuration.
    pub config: Config,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// The time of the start.
    pub now: SystemTime,
}

impl Session {
    /// The local cache.
    pub fn layout(&self) -> Layout {
        Layout::new(&self.config.cache.root)
    }

    /// Makes sure that there is a cache: only a pull makes one. A wrong path is more likely than an empty cache.
    ///
    /// # Errors
    /// [`Kind::NotFound`] that says where the path comes from.
    pub fn need_cache(&self) -> Result<()> {
        crate::cache::root::check(&self.config.cache.root, &self.config.cache.source)
    }

    /// The bucket.
    ///
    /// # Errors
    /// When it is not configured, or there are no credentials.
    pub async fn bucket(&self) -> Result<Bucket> {
        Bucket::connect(&self.config, self.progress.clone()).await
    }

    /// What transfers need, within `caps`; `sync` flushes each blob to the disk.
    pub fn transfers(&self, bucket: &Bucket, caps: Caps, sync: bool) -> Context {
        Context {
            bucket: bucket.clone(),
            hub: None,
            limits: Limits::new(caps, bucket.round_trip()),
            hashes: Arc::default(),
            flushes: Arc::default(),
            progress: self.progress.clone(),
            layout: self.layout(),
            max_parts: u64::from(self.config.storage.max_parts),
            sync,
            earlier: Arc::default(),
        }
    }

    /// Takes this tool's lock on the cache, waiting for a `prune` that is at work. Who is alone sweeps up first.
    ///
    /// # Errors
    /// When the cache cannot be written to.
    pub async fn lock_shared(&self) -> Result<Lock> {
        if let Some(alone) = lock::try_tool_lock(&self.layout(), lock::Mode::Exclusive)?
            && alone.is_real()
        {
            place::sweep(&self.layout(), self.now);
        }
        let note = "another hf-cache-sync is deleting from this cache: waiting for it";
        wait_for(&*self.progress, note, || lock::try_tool_lock(&self.layout(), lock::Mode::Shared)).await
    }
}

/// Tries until the lock is free. The first seconds pass without a word.
pub(crate) async fn wait_for(
    progress: &dyn Progress,
    note: &str,
    attempt: impl Fn() -> Result<Option<Lock>>,
) -> Result<Lock> {
    let mut pause = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    let mut told = false;
    // "another process is downloading org/name/file: waiting for it"
    let _waiting = waiting(note.trim_end_matches(": waiting for it").to_string());
    loop {
        if let Some(lock) = attempt()? {
            return Ok(lock);
        }
        if waited > Duration::from_secs(3) && !told {
            progress.event(Event::Note(note.to_string()));
            told = true;
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Options of commands that move blobs.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TransferArgs {
    /// Requests in flight at most; without it the number adapts to the store
    #[arg(long, value_name = "N", allow_negative_numbers = true,
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Bytes per second at most, over all requests together, such as 50MB/s
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    pub bwlimit: Option<ByteRate>,

    /// Memory at most, such as 64MiB: caps the requests in flight
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_memory: Option<Memory>,
}

impl TransferArgs {
    /// What the transfers may use.
    pub fn caps(&self) -> Caps {
        Caps {
            workers: self.workers.map(usize::from),
            memory: self.max_memory.map(|memory| memory.0),
            rate: self.bwlimit.map(|rate| rate.0),
        }
    }
}

/// A number of blobs and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Blobs.
    pub blobs: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    /// Counts one more blob.
    pub fn add(&mut self, bytes: u64) {
        self.blobs += 1;
        self.bytes += bytes;
    }

    /// Counts one less.
    pub fn take(&mut self, bytes: u64) {
        self.blobs = self.blobs.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.blobs += other.blobs;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The kind of a run with these failures; `None` when there are none.
pub fn kind_of(failures: &[Error]) -> Option<Kind> {
    Kind::of_many(failures.iter().map(|failure| failure.kind))
}
