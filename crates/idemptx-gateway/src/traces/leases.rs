//! Which span the holder of a lease belongs to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use idemptx_core::lease::{Lease, Token};
use opentelemetry::trace::SpanContext;

/// The spans of requests whose lease may yet be renewed, settled or released here.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<Token, Held>>);

#[derive(Debug)]
struct Held {
    span: SpanContext,
    until: Instant,
}

impl Leases {
    /// A lease was granted to the request of a span.
    pub(super) fn hold(&self, lease: &Lease, span: SpanContext) {
        let now = Instant::now();
        let mut held = self.held();
        if held.len() >= HELD_MAX {
            // Whoever neither settles nor releases leaves it here.
            held.retain(|_, held| held.until > now);
        }
        if held.len() < HELD_MAX {
            held.insert(lease.token, Held { span, until: now + lease.term });
        }
    }

    /// The span of its holder, if that is known.
    pub(super) fn holder(&self, lease: &Lease) -> Option<SpanContext> {
        let mut held = self.held();
        let held = held.get_mut(&lease.token)?;
        held.until = Instant::now() + lease.term;
        Some(held.span.clone())
    }

    /// A lease is over.
    pub(super) fn forget(&self, lease: &Lease) {
        self.held().remove(&lease.token);
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Token, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More leases than this at a time are held without steps in their traces.
const HELD_MAX: usize = 16_384;
