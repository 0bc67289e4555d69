//! The spans of lease holders.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use idemptx_core::lease::{Lease, Token};
use opentelemetry::trace::SpanContext;

/// Maps leases that this process holds to the spans of their requests.
#[derive(Debug, Default)]
pub(super) struct LeaseSpans(Mutex<HashMap<Token, LeaseSpan>>);

#[derive(Debug)]
struct LeaseSpan {
    span: SpanContext,
    until: Instant,
}

impl LeaseSpans {
    /// Adds a lease.
    pub(super) fn insert(&self, lease: &Lease, span: SpanContext) {
        let now = Instant::now();
        let mut spans = self.spans();
        if spans.len() >= SPANS_MAX {
            // A lease that was neither settled nor released is still here.
            spans.retain(|_, spans| spans.until > now);
        }
        if spans.len() < SPANS_MAX {
            spans.insert(lease.token, LeaseSpan { span, until: now + lease.term });
        }
    }

    /// Returns the span of a lease's holder, if it is known.
    pub(super) fn span_of(&self, lease: &Lease) -> Option<SpanContext> {
        let mut spans = self.spans();
        let spans = spans.get_mut(&lease.token)?;
        spans.until = Instant::now() + lease.term;
        Some(spans.span.clone())
    }

    /// Removes a lease.
    pub(super) fn remove(&self, lease: &Lease) {
        self.spans().remove(&lease.token);
    }

    fn spans(&self) -> MutexGuard<'_, HashMap<Token, LeaseSpan>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Steps of further leases are not traced.
const SPANS_MAX: usize = 16_384;
