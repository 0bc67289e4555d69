//! Messages of a subscription.
//!
//! Subscriptions have a connection of their own.
//! Redis bounds what may queue up for a subscriber far more narrowly than for a client that asks,
//! so a burst of large answers on a shared connection would have it closed.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use idemptx_core::key::RecordId;
use redis::{PushInfo, PushKind, Value};

use crate::store::notifier::Notifier;

/// Returns the callback of a subscribed connection for its messages.
///
/// A node that gives a slot away ends the subscriptions to its channels, unasked.
/// The client library takes that for the answer to whatever was asked next, so `is_cut_off` says
/// that the connection is to be replaced; then the waiting tasks look again.
pub(super) fn listener(
    notifier: &Arc<Notifier>,
    is_cut_off: Arc<AtomicBool>,
) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
    let source = notifier.source();
    move |push| {
        if let Some(id) = id_in(&push) {
            source.notify(&id);
        } else if push.kind == PushKind::SUnsubscribe {
            is_cut_off.store(true, Ordering::Release);
            source.notify_all();
        }
        Ok(())
    }
}

fn id_in(push: &PushInfo) -> Option<RecordId> {
    let (PushKind::Message | PushKind::SMessage, Some(Value::BulkString(id))) =
        (&push.kind, push.data.last())
    else {
        return None;
    };
    std::str::from_utf8(id).ok()?.parse().ok()
}
