//! Flushes many small files. If they are flushed together, a file system commits once for many of them, and otherwise once
//! for each. So files wait for the previous round to end, and are then flushed together.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Number of threads of a round. All but the first mostly wait for the commit that the first one causes.
const THREADS: usize = 64;

/// The flushes of a run.
#[derive(Default)]
pub struct Flushes(Mutex<Rounds>);

#[derive(Default)]
struct Rounds {
    waiting: Vec<Waiting>,
    /// Whether a round is running, after which the next one starts if there are files.
    is_running: bool,
}

struct Waiting {
    file: Arc<File>,
    flushed: oneshot::Sender<io::Result<()>>,
}

impl Flushes {
    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until the file is on the disk.
    ///
    /// # Errors
    /// If it cannot be flushed.
    pub(super) async fn flush(self: &Arc<Self>, file: Arc<File>) -> io::Result<()> {
        let (flushed, result) = oneshot::channel();
        let is_first = {
            let mut rounds = self.lock();
            rounds.waiting.push(Waiting { file, flushed });
            !std::mem::replace(&mut rounds.is_running, true)
        };
        if is_first {
            let this = self.clone();
            tokio::spawn(async move { while this.round().await {} });
        }
        result.await.unwrap_or_else(|lost| Err(io::Error::other(lost)))
    }

    /// Flushes all waiting files; returns whether there were any.
    async fn round(&self) -> bool {
        let mut files = {
            let mut rounds = self.lock();
            rounds.is_running = !rounds.waiting.is_empty();
            std::mem::take(&mut rounds.waiting)
        };
        let any = !files.is_empty();
        let share = files.len().div_ceil(THREADS);
        let mut threads = JoinSet::new();
        while !files.is_empty() {
            let some = files.split_off(files.len().saturating_sub(share));
            threads.spawn_blocking(move || {
                for Waiting { file, flushed } in some {
                    // The receiver is gone if the run was interrupted.
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
