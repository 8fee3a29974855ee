//! Flushing many small files. A file system commits what many of them need at once when they are flushed together, and
//! commits for each when they come one by one. So files wait for the round before to end, and then go together.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Threads of a round. All but the first of them mostly wait for the commit that one causes.
const THREADS: usize = 64;

/// The flushes of a run.
#[derive(Default)]
pub struct Flushes(Mutex<Rounds>);

#[derive(Default)]
struct Rounds {
    waiting: Vec<Waiting>,
    /// Whether a round is going on, after which more are looked for.
    busy: bool,
}

struct Waiting {
    file: Arc<File>,
    flushed: oneshot::Sender<io::Result<()>>,
}

impl Flushes {
    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns when the file is on the disk.
    ///
    /// # Errors
    /// When it cannot be flushed.
    pub(super) async fn flush(self: &Arc<Self>, file: Arc<File>) -> io::Result<()> {
        let (flushed, result) = oneshot::channel();
        let is_first = {
            let mut rounds = self.lock();
            rounds.waiting.push(Waiting { file, flushed });
            !std::mem::replace(&mut rounds.busy, true)
        };
        if is_first {
            let this = self.clone();
            tokio::spawn(async move { while this.round().await {} });
        }
        result.await.unwrap_or_else(|lost| Err(io::Error::other(lost)))
    }

    /// Flushes all that wait; `false` when there was nothing.
    async fn round(&self) -> bool {
        let mut files = {
            let mut rounds = self.lock();
            rounds.busy = !rounds.waiting.is_empty();
            std::mem::take(&mut rounds.waiting)
        };
        let any = !files.is_empty();
        let share = files.len().div_ceil(THREADS);
        let mut threads = JoinSet::new();
        while !files.is_empty() {
            let some = files.split_off(files.len().saturating_sub(share));
            threads.spawn_blocking(move || {
                for Waiting { file, flushed } in some {
                    // Nobody listens any more when the run was interrupted.
                    let _ = flushed.send(file.sync_all());
                }
            });
        }
        while threads.join_next().await.is_some() {}
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn every_file_is_flushed_once() {
        let flushes: Arc<Flushes> = Arc::default();
        let mut running = JoinSet::new();
        for _ in 0..200 {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"bytes").unwrap();
            let flushes = flushes.clone();
            running.spawn(async move { flushes.flush(Arc::new(file)).await });
        }
        let done = running.join_all().await;
        assert!(done.len() == 200 && done.iter().all(Result::is_ok));
        let rounds = flushes.lock();
        assert!(rounds.waiting.is_empty());
    }
}
