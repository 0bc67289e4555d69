//! Propagation of the current span through futures.

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use http::Extensions;
use opentelemetry::Context;
use pin_project_lite::pin_project;

/// The parent of new spans; empty without tracing.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceContext(pub(super) Option<Context>);

impl TraceContext {
    /// Takes the context out of a request's extensions.
    pub(crate) fn of(extensions: &mut Extensions) -> Self {
        extensions.remove().unwrap_or_default()
    }

    /// Attaches the context to a request that another task may handle.
    pub(super) fn attach_to(&self, extensions: &mut Extensions) {
        if self.0.is_some() {
            extensions.insert(self.clone());
        }
    }

    /// Makes the context current whenever the future is polled.
    pub(crate) fn instrument<F>(&self, future: F) -> Instrumented<F> {
        Instrumented { future, context: self.0.clone() }
    }
}

pin_project! {
    /// A future that runs within a trace context.
    pub(crate) struct Instrumented<F> {
        #[pin]
        future: F,
        context: Option<Context>,
    }
}

impl<F: Future> Future for Instrumented<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _current = this.context.clone().map(Context::attach);
        this.future.poll(cx)
    }
}
