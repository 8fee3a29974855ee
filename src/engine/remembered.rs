//! The bucket's manifests that this cache has read before, so that a `pull-all` with nothing to do reads none of them. Files
//! are named by the MD5 of their content, which the listing shows for the object on most stores.

use std::fs::{self, FileTimes};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::bucket::read::Memory;
use crate::cache::layout::Layout;
use crate::cache::read::read_small;
use crate::cache::{inside, place};
use crate::hash::md5_hex;
use crate::platform::Opening;

/// Size of the largest manifest to remember, in bytes.
const LARGEST: u64 = 1 << 20;
/// How old the time of a file in use may get. Files that are not in use are removed after [`crate::cache::leftovers::UNUSED_MANIFEST`].
const REFRESH: Duration = Duration::from_secs(24 * 3600);

/// The manifests that are remembered in a cache.
pub struct Remembered {
    layout: Layout,
    is_read_only: bool,
}

impl Remembered {
    /// Returns the manifests that are remembered in this cache. If it is `is_read_only`, none are added.
    pub fn new(layout: Layout, is_read_only: bool) -> Remembered {
        Remembered { layout, is_read_only }
    }

    fn path(&self, md5: &str) -> PathBuf {
        self.layout.manifests().join(md5)
    }
}

impl Memory for Remembered {
    fn recall(&self, md5: &str, size: u64) -> Option<Vec<u8>> {
        if size > LARGEST {
            return None;
        }
        let path = self.path(md5);
        let bytes = read_small(&path, size).ok().flatten()?;
        let modified = fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok();
        let is_old = modified.is_some_and(|time| time.elapsed().is_ok_and(|age| age > REFRESH));
        if is_old && !self.is_read_only {
            let times = FileTimes::new().set_modified(SystemTime::now());
            let file = inside::open_file(self.layout.root(), &path, Opening::Any, 0o666);
            let _ = file.and_then(|file| file.set_times(times));
        }
        Some(bytes)
    }

    fn keep(&self, bytes: &[u8]) {
        if self.is_read_only || bytes.len() as u64 > LARGEST {
            return;
        }
        let path = self.path(&md5_hex(bytes));
        if let Err(error) = place::write_small(&self.layout, &path, bytes, false) {
            tracing::debug!("a manifest is not remembered: {error}");
        }
    }
}
