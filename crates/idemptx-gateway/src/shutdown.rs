//! Ending: what is asked to close, and when all of it has.

use tokio::sync::{mpsc, watch};

/// Asks connections to close, and knows when they have.
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

/// Both ends.
pub(crate) fn channel() -> (ShutdownTrigger, ShutdownWatch) {
    let (close, closing) = watch::channel(false);
    let (held, open) = mpsc::channel(1);
    (ShutdownTrigger { close, open }, ShutdownWatch { close: closing, _open: held })
}

impl ShutdownTrigger {
    /// Asks all to close, and waits until the last has.
    pub(crate) async fn finish(&mut self) {
        self.close.send_replace(true);
        // Nothing is ever sent: it ends when the last sender is dropped.
        while self.open.recv().await.is_some() {}
    }
}

impl ShutdownWatch {
    /// Resolves when it is time to close.
    pub(crate) async fn requested(&mut self) {
        // Without anybody to announce it, it is time as well.
        let _ = self.close.wait_for(|close| *close).await;
    }
}
