//! Runs many jobs at once: a few large ones, which have their own parallelism, beside many small ones.

use std::future::Future;

use tokio::task::JoinSet;

use crate::task::pass_on;
use crate::transfer::limit::Limits;

/// The minimum number of large blobs in progress; each of them uses many requests.
const LARGE_AT_ONCE: usize = 4;

/// The large items in progress.
#[derive(Default)]
struct Large {
    items: usize,
    /// The number of requests that they can have in flight.
    requests: u64,
}

impl Large {
    /// Returns whether they use so few of the allowed requests that another one should start. A few more than fit are
    /// welcome, since one that starts or ends has fewer requests in flight than it could.
    fn is_too_few(&self, limit: usize, most: usize) -> bool {
        self.items < most && (self.items < LARGE_AT_ONCE || self.requests < limit as u64 * 3 / 2)
    }
}

/// Runs `job` on every item, large ones first, and passes each result to `done` when it is available. `requests` returns
/// how many requests a large item can have in flight, and 0 for a small one: the fewer, the more large items are in
/// progress, so that they use all allowed requests. Large ones share the limit of parts from the start, so that none
/// starts as if it were alone. All jobs are aborted if the returned future is dropped.
pub async fn run<T, R, F>(
    items: Vec<T>,
    limits: &Limits,
    requests: impl Fn(&T) -> u64,
    job: impl Fn(T) -> F,
    mut done: impl FnMut(R),
) where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let (large, small): (Vec<T>, Vec<T>) = items.into_iter().partition(|item| requests(item) > 0);
    let (mut large, mut small) = (large.into_iter(), small.into_iter());
    let mut running: JoinSet<(u64, R)> = JoinSet::new();
    let most = limits.objects.ceiling().max(1);
    let (mut large_running, mut small_running) = (Large::default(), 0);
    loop {
        while large_running.is_too_few(limits.parts.limit(), most)
            && let Some(item) = large.next()
        {
            let requests = requests(&item);
            large_running.items += 1;
            large_running.requests += requests;
            let share = limits.parts.share();
            let work = job(item);
            running.spawn(async move {
                let result = work.await;
                drop(share);
                (requests, result)
            });
        }
        while small_running < most
            && let Some(item) = small.next()
        {
            small_running += 1;
            let work = job(item);
            running.spawn(async move { (0, work.await) });
        }
        match running.join_next().await {
            None => return,
            Some(Ok((requests, result))) => {
                match requests {
                    0 => small_running -= 1,
                    _ => large_running.items -= 1,
                }
                large_running.requests -= requests;
                done(result);
            }
            Some(Err(ended)) => match pass_on(ended).await {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many items with this many requests each are in progress at once.
    fn at_once(requests: u64, limit: usize, most: usize) -> usize {
        let mut large = Large::default();
        while large.is_too_few(limit, most) {
            large.items += 1;
            large.requests += requests;
        }
        large.items
    }

    #[test]
    fn blobs_that_need_few_requests_are_many_at_once() {
        // Far: half a gigabyte each, 40 MB, 15 MB.
        assert_eq!([64, 5, 2].map(|requests| at_once(requests, 64, 384)), [4, 20, 48]);
        // Near, with one worker, with three.
        assert_eq!([at_once(2, 4, 256), at_once(2, 1, 1), at_once(64, 3, 3)], [4, 1, 3]);
    }
}
