//! The context of a command: its configuration, and the cache, the bucket, transfers and locks that follow from it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::bucket::client::Bucket;
use crate::cache::layout::Layout;
use crate::cache::lock::{self, Lock};
use crate::cache::{leftovers, pushable, staging};
use crate::config::Config;
use crate::error::Result;
use crate::model::selection::Selection;
use crate::progress::{Event, Progress, waiting};
use crate::transfer::Context;
use crate::transfer::limit::{Caps, Limits};

/// The context of a command.
#[derive(Clone)]
pub struct Session {
    /// The configuration.
    pub config: Config,
    /// The receiver of progress events.
    pub progress: Arc<dyn Progress>,
    /// The time when the command started.
    pub now: SystemTime,
}

impl Session {
    /// Returns the paths of the local cache.
    pub fn layout(&self) -> Layout {
        Layout::new(&self.config.cache.root)
    }

    /// Checks that the cache exists, since only a pull creates one, and a wrong path is more likely than an empty cache.
    ///
    /// # Errors
    /// [`crate::error::Cause::NotFound`], with the source of the path.
    pub fn need_cache(&self) -> Result<()> {
        crate::cache::root::check(&self.config.cache.root, &self.config.cache.source)
    }

    /// Returns the options for a push of this selection, as configured.
    pub fn push_options(&self, selection: Selection) -> pushable::Options {
        let config = &self.config;
        pushable::Options { selection, allow_gated: config.team.allow_gated, sync_xet: config.cache.sync_xet }
    }

    /// Connects to the bucket.
    ///
    /// # Errors
    /// If it is not configured, or there are no credentials.
    pub async fn bucket(&self) -> Result<Bucket> {
        Bucket::connect(&self.config, self.progress.clone()).await
    }

    /// Returns the context of transfers within `caps`. With `sync`, each blob is flushed to the disk.
    pub fn transfers(&self, bucket: &Bucket, caps: Caps, sync: bool) -> Context {
        Context {
            bucket: bucket.clone(),
            limits: Limits::new(caps, bucket.round_trip()),
            hash_pool: Arc::default(),
            flushes: Arc::default(),
            progress: self.progress.clone(),
            layout: self.layout(),
            max_parts: u64::from(self.config.storage.max_parts),
            bytes: 0,
            sync,
            earlier: Arc::default(),
            arrivals: None,
        }
    }

    /// Takes this tool's shared lock on the cache, waiting for a running `prune`. If no other process holds it, leftovers are
    /// removed first.
    ///
    /// # Errors
    /// If the cache cannot be written to.
    pub async fn lock_shared(&self) -> Result<Lock> {
        if let Some(alone) = lock::try_tool_lock(&self.layout(), lock::Mode::Exclusive)?
            && alone.is_real()
        {
            leftovers::remove(&self.layout(), self.now);
            staging::prepare(&self.layout());
        }
        let note = "another hf-cache-sync is deleting from this cache: waiting for it";
        wait_for(&*self.progress, note, || lock::try_tool_lock(&self.layout(), lock::Mode::Shared)).await
    }
}

/// Retries until the lock is free. The note is shown after a few seconds.
pub(crate) async fn wait_for(
    progress: &dyn Progress,
    note: &str,
    attempt: impl Fn() -> Result<Option<Lock>>,
) -> Result<Lock> {
    let mut pause = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    let mut is_noted = false;
    // "another process is downloading org/name/file: waiting for it"
    let _waiting = waiting(note.trim_end_matches(": waiting for it").to_string());
    loop {
        if let Some(lock) = attempt()? {
            return Ok(lock);
        }
        if waited > Duration::from_secs(3) && !is_noted {
            progress.event(Event::Note(note.to_string()));
            is_noted = true;
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}
