//! Being told to stop: ctrl-c, or SIGTERM as systemd and CI runners send it.

/// Listens from its creation on, so that nothing that comes before the first wait is lost.
#[derive(Debug)]
pub struct Interruption {
    #[cfg(unix)]
    signals: [Option<tokio::signal::unix::Signal>; 2],
}

impl Interruption {
    /// Starts to listen; from now on these signals do not end the process by themselves.
    #[cfg(unix)]
    pub fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        Interruption { signals: [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| signal(kind).ok()) }
    }

    /// Starts to listen.
    #[cfg(not(unix))]
    pub fn listen() -> Self {
        Interruption {}
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        {
            async fn wait(signal: &mut Option<tokio::signal::unix::Signal>) {
                let came = match signal {
                    Some(signal) => signal.recv().await,
                    None => None,
                };
                if came.is_none() {
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
