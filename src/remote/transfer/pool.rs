//! Running many jobs at once: a few large ones, which bring their own parallelism, beside many small ones.

use std::future::Future;

use tokio::task::JoinSet;

/// Large blobs that are worked on at once; each of them uses many requests.
const LARGE_AT_ONCE: usize = 4;

/// Runs `job` on every item, large ones first, and hands each result to `done` as it comes. All jobs are aborted
/// when the returned future is dropped.
pub async fn run<T, R, F>(
    items: Vec<T>,
    small_at_once: usize,
    is_large: impl Fn(&T) -> bool,
    job: impl Fn(T) -> F,
    mut done: impl FnMut(R),
) where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let (large, small): (Vec<T>, Vec<T>) = items.into_iter().partition(is_large);
    let (mut large, mut small) = (large.into_iter(), small.into_iter());
    let mut running: JoinSet<(bool, R)> = JoinSet::new();
    let mut free = [small_at_once.max(1), LARGE_AT_ONCE.min(small_at_once.max(1))];
    loop {
        for (is_large, queue) in [(true, &mut large), (false, &mut small)] {
            while free[usize::from(is_large)] > 0
                && let Some(item) = queue.next()
            {
                free[usize::from(is_large)] -= 1;
                let work = job(item);
                running.spawn(async move { (is_large, work.await) });
            }
        }
        match running.join_next().await {
            None => return,
            Some(Ok((was_large, result))) => {
                free[usize::from(was_large)] += 1;
                done(result);
            }
            Some(Err(failed)) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        }
    }
}
