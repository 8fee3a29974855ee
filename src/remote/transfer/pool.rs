//! Running many jobs at once: a few large ones, which bring their own parallelism, beside many small ones.

use std::future::Future;

use tokio::task::JoinSet;

use crate::remote::limit::Limits;

/// Large blobs that are worked on at once; each of them uses many requests.
const LARGE_AT_ONCE: usize = 4;

/// Runs `job` on every item, large ones first, and hands each result to `done` as it comes. Large ones share the limit of
/// parts from the start, so that none begins as if it were alone. All jobs are aborted when the returned future is dropped.
pub async fn run<T, R, F>(
    items: Vec<T>,
    limits: &Limits,
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
    let most = limits.objects.ceiling().max(1);
    let mut free = [most, LARGE_AT_ONCE.min(most)];
    loop {
        for (is_large, queue) in [(true, &mut large), (false, &mut small)] {
            while free[usize::from(is_large)] > 0
                && let Some(item) = queue.next()
            {
                free[usize::from(is_large)] -= 1;
                let share = is_large.then(|| limits.parts.share());
                let work = job(item);
                running.spawn(async move {
                    let result = work.await;
                    drop(share);
                    (is_large, result)
                });
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
