//! The watcher of a record that another process holds.

use std::sync::Arc;
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Token;
use idemptx_core::store::{ErrorKind, RecordSnapshot, Store};
use tokio::time::{sleep, timeout};

use crate::engine::Inner;
use crate::retry::Backoff;
use crate::single_flight::{Leader, Update};
use crate::time_limit::limited;

/// Watches a record that another process claimed with `token`, until it changes or no request waits
/// any more.
pub(super) async fn watch_record<S: Store>(
    engine: Arc<Inner<S>>,
    id: RecordId,
    token: Token,
    leader: Leader,
) {
    let limit = engine.policy().claim_timeout;
    let mut backoff = Backoff::new(POLL_MIN, POLL_MAX);
    while leader.is_awaited() {
        // First the watch, then the look: a change in between is not missed.
        let watch = timeout(limit, engine.store().watch(&id)).await.ok().flatten();
        let found = limited(limit, engine.store().lookup(&id)).await;
        let pause = if watch.is_some() { POLL_MAX } else { backoff.next_pause() };
        let left = match found.map_err(|error| error.kind()) {
            Ok(Some(RecordSnapshot::Held(holder)))
                if holder.token == token && !holder.is_orphan() =>
            {
                holder.remaining
            }
            Ok(Some(RecordSnapshot::Settled(record))) => {
                return leader.complete(&Update::Settled(record));
            }
            Ok(_) | Err(ErrorKind::Corrupt) => return leader.complete(&Update::Changed),
            Err(_) => pause,
        };
        let poll_again = sleep(pause.min(left + POLL_MIN));
        match watch {
            Some(watch) => {
                tokio::select! { () = watch => {}, () = poll_again => {} }
            }
            None => poll_again.await,
        }
    }
}

const POLL_MIN: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(250);
