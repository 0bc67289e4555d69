//! Graceful shutdown: a signal to all connections, and the wait for their end.

use tokio::sync::{mpsc, watch};

/// Signals connections to close, and waits for them.
#[derive(Debug)]
pub(crate) struct ShutdownTrigger {
    close: watch::Sender<bool>,
    open: mpsc::Receiver<()>,
}

/// Held by every connection.
#[derive(Clone, Debug)]
pub(crate) struct ShutdownWatch {
    close: watch::Receiver<bool>,
    _open: mpsc::Sender<()>,
}

/// Returns both ends.
pub(crate) fn channel() -> (ShutdownTrigger, ShutdownWatch) {
    let (close, closing) = watch::channel(false);
    let (held, open) = mpsc::channel(1);
    (ShutdownTrigger { close, open }, ShutdownWatch { close: closing, _open: held })
}

impl ShutdownTrigger {
    /// Signals all connections to close, and waits for the last one.
    pub(crate) async fn finish(&mut self) {
        self.close.send_replace(true);
        // Nothing is ever sent: the channel closes when the last sender is dropped.
        while self.open.recv().await.is_some() {}
    }
}

impl ShutdownWatch {
    /// Resolves when the shutdown is signalled.
    pub(crate) async fn requested(&mut self) {
        // A dropped trigger counts as a signal.
        let _ = self.close.wait_for(|close| *close).await;
    }
}
