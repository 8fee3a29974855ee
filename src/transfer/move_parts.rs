//! Moves the parts of a large blob from its source to its sink: the one loop for every direction.
//!
//! The loop decides how many parts are in flight, and lets the hash keep up. What moves a part, and what is noted once it
//! has arrived, belongs to the source and the sink: see `download.rs` and `upload.rs`.

use std::ops::Range;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::hashing::OrderedHash;
use super::limit::Limits;
use crate::task::pass_on;

/// The parts of a blob that are still to be moved, and those in flight. Dropping it aborts them.
pub(super) struct Parts<'a, S, T> {
    limits: &'a Limits,
    hash: &'a Arc<OrderedHash>,
    waiting: std::vec::IntoIter<Range<u64>>,
    running: JoinSet<T>,
    /// Returns the work that moves a range of bytes.
    start: S,
}

/// Moves these ranges of a blob. `start` returns the work for one of them, which runs as a task of its own.
pub(super) fn move_parts<'a, S, F, T, E>(
    limits: &'a Limits,
    hash: &'a Arc<OrderedHash>,
    ranges: Vec<Range<u64>>,
    start: S,
) -> Parts<'a, S, Result<T, E>>
where
    S: FnMut(Range<u64>) -> F,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    Parts { limits, hash, waiting: ranges.into_iter(), running: JoinSet::new(), start }
}

impl<S, F, T, E> Parts<'_, S, Result<T, E>>
where
    S: FnMut(Range<u64>) -> F,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    /// Returns the result of the next part that has been moved, in any order; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<T, E>> {
        loop {
            let next = self.waiting.as_slice().first().cloned();
            if next.is_none() && self.running.is_empty() {
                return None;
            }
            let bytes = next.as_ref().map_or(0, |range| range.end - range.start);
            let streams = self.limits.parts.streams();
            let is_behind = self.hash.is_behind(streams);
            let can_start = next.is_some() && self.running.len() < streams && !is_behind;
            tokio::select! {
                permit = self.limits.parts.permit(bytes), if can_start => {
                    let range = self.waiting.next().expect("there is one if it can start");
                    let work = (self.start)(range);
                    self.running.spawn(async move {
                        let mut permit = permit;
                        let moved = work.await?;
                        permit.count(bytes);
                        Ok(moved)
                    });
                }
                () = self.hash.advanced(), if next.is_some() && is_behind => {}
                Some(ended) = self.running.join_next() => match ended {
                    Ok(result) => return Some(result),
                    Err(ended) => match pass_on(ended).await {},
                },
            }
        }
    }
}
