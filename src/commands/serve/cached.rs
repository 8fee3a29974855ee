//! The content of the cache, for the status page. It is scanned on request, at most once per [`FRESH`].

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Mutex;

use crate::cache::inventory::{Inventory, Repo};
use crate::cache::layout::Layout;
use crate::cache::{scan, usage};
use crate::task::blocking;

/// How long a scan is reused.
const FRESH: Duration = Duration::from_secs(30);

/// A repo in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedRepo {
    /// Its type and id.
    pub repo: String,
    /// The refs of its revisions.
    pub refs: Vec<String>,
    /// Number of revisions.
    pub revisions: usize,
    /// Size of its blobs in bytes.
    pub size: u64,
}

/// The last scan.
#[derive(Debug, Default)]
pub struct Cached(Mutex<Option<(Instant, Vec<CachedRepo>)>>);

impl Cached {
    /// Returns the repos in the cache, the largest first; none if the cache is unreadable.
    pub async fn repos(&self, layout: &Layout) -> Vec<CachedRepo> {
        let mut known = self.0.lock().await;
        if let Some((at, repos)) = known.as_ref()
            && at.elapsed() < FRESH
        {
            return repos.clone();
        }
        let layout = layout.clone();
        let repos =
            blocking(move || scan::scan(layout.root()).map(|inventory| list(&inventory)).unwrap_or_default()).await;
        *known = Some((Instant::now(), repos.clone()));
        repos
    }
}

fn list(inventory: &Inventory) -> Vec<CachedRepo> {
    let one = |repo: &Repo| CachedRepo {
        repo: repo.name.to_string(),
        refs: repo.refs.keys().map(ToString::to_string).collect(),
        revisions: repo.revisions.len(),
        size: usage::unique_bytes([repo]),
    };
    let mut repos: Vec<CachedRepo> = inventory.repos.iter().map(one).collect();
    repos.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.repo.cmp(&b.repo)));
    repos
}
