//! Which span the holder of a lease belongs to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use idemptx_core::lease::{Lease, Token};
use opentelemetry::trace::SpanContext;

/// The spans of requests whose lease may yet be renewed, settled or released here.
#[derive(Debug, Default)]
pub(super) struct LeaseSpans(Mutex<HashMap<Token, LeaseSpan>>);

#[derive(Debug)]
struct LeaseSpan {
    span: SpanContext,
    until: Instant,
}

impl LeaseSpans {
    /// A lease was granted to the request of a span.
    pub(super) fn insert(&self, lease: &Lease, span: SpanContext) {
        let now = Instant::now();
        let mut spans = self.spans();
        if spans.len() >= SPANS_MAX {
            // Whoever neither settles nor releases leaves it here.
            spans.retain(|_, spans| spans.until > now);
        }
        if spans.len() < SPANS_MAX {
            spans.insert(lease.token, LeaseSpan { span, until: now + lease.term });
        }
    }

    /// The span of its holder, if that is known.
    pub(super) fn span_of(&self, lease: &Lease) -> Option<SpanContext> {
        let mut spans = self.spans();
        let spans = spans.get_mut(&lease.token)?;
        spans.until = Instant::now() + lease.term;
        Some(spans.span.clone())
    }

    /// A lease is over.
    pub(super) fn remove(&self, lease: &Lease) {
        self.spans().remove(&lease.token);
    }

    fn spans(&self) -> MutexGuard<'_, HashMap<Token, LeaseSpan>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More leases than this at a time are held without steps in their traces.
const SPANS_MAX: usize = 16_384;
