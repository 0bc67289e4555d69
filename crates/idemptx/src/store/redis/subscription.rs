//! What a subscription brings.
//!
//! Subscriptions have a connection of their own.
//! Redis bounds what may queue up for a subscriber far more narrowly than for a client that asks,
//! so a burst of large answers on a shared connection would have it closed.

use std::convert::Infallible;
use std::sync::Arc;

use idemptx_core::key::RecordId;
use redis::{PushInfo, PushKind, Value};

use crate::store::waiters::Waiters;

/// What a connection with a subscription calls for everything that comes in.
pub(super) fn listener(
    waiters: &Arc<Waiters>,
) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
    let ear = waiters.ear();
    move |push| {
        if let Some(id) = id_in(&push) {
            ear.hear(&id);
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
