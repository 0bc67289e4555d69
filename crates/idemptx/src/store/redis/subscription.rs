//! Messages of a subscription.
//!
//! Subscriptions have a connection of their own.
//! Redis bounds what may queue up for a subscriber far more narrowly than for a client that asks,
//! so a burst of large answers on a shared connection would have it closed.

use std::convert::Infallible;
use std::sync::Arc;

use idemptx_core::key::RecordId;
use redis::{PushInfo, PushKind, Value};

use crate::store::notifier::Notifier;

/// Returns the callback of a subscribed connection for its messages.
pub(super) fn listener(
    notifier: &Arc<Notifier>,
) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
    let source = notifier.source();
    move |push| {
        if let Some(id) = id_in(&push) {
            source.notify(&id);
        }
        Ok(())
    }
}

fn id_in(push: &PushInfo) -> Option<RecordId> {
    let (PushKind::Message, Some(Value::BulkString(id))) = (&push.kind, push.data.last()) else {
        return None;
    };
    std::str::from_utf8(id).ok()?.parse().ok()
}
