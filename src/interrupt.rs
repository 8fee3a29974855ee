//! Requests to stop: Ctrl-C, or SIGTERM as sent by systemd and CI runners.

/// Listens for signals from its creation on, so that none is lost before the first wait.
#[derive(Debug)]
pub struct Interruption {
    #[cfg(unix)]
    signals: [Option<tokio::signal::unix::Signal>; 2],
}

impl Interruption {
    /// Starts listening. From then on, these signals no longer end the process by themselves.
    #[cfg(unix)]
    pub fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        Interruption { signals: [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).ok()) }
    }

    /// Starts listening.
    #[cfg(not(unix))]
    pub fn listen() -> Self {
        Interruption {}
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        {
            async fn wait(signal: &mut Option<tokio::signal::unix::Signal>) {
                let received = match signal {
                    Some(signal) => signal.recv().await,
                    None => None,
                };
                if received.is_none() {
                    std::future::pending().await
                }
            }
            let [interrupt, terminate] = &mut self.signals;
            tokio::select! {
                () = wait(interrupt) => {}
                () = wait(terminate) => {}
            }
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
