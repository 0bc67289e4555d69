//! Logs the begin and the end of an outage of the store, each once.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::error::error_text;

/// The outage of the store, if there is one.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// True while there is one, so that a step that succeeds takes no lock.
    is_on: AtomicBool,
    since: Mutex<Option<Instant>>,
}

impl Outage {
    /// Notes a step that failed for lack of an answer.
    pub(super) fn failed(&self, error: &(dyn Error + 'static)) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none() {
            *since = Some(Instant::now());
            self.is_on.store(true, Ordering::Relaxed);
            tracing::warn!("store unavailable, requests with a key get 503: {}", error_text(error));
        }
    }

    /// Notes an answer.
    pub(super) fn answered(&self) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = since.take() {
            self.is_on.store(false, Ordering::Relaxed);
            tracing::info!("store available again, after {} ms", since.elapsed().as_millis());
        }
    }
}
