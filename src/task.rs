//! Blocking work in async code, and tasks that end early.

use std::convert::Infallible;

use tokio::task::JoinError;

/// Runs blocking work on a separate thread, and passes on its panics.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(ended) => match pass_on(ended).await {},
    }
}

/// Passes on the panic of a task. Tasks that are awaited are cancelled only when the process ends: after that, the caller
/// must not go on.
pub(crate) async fn pass_on(ended: JoinError) -> Infallible {
    match ended.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nothing_follows_a_cancelled_task() {
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        let ended = task.await.unwrap_err();
        assert!(tokio::time::timeout(Duration::ZERO, pass_on(ended)).await.is_err());
    }
}
