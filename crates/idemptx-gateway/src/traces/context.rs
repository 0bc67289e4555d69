//! The span that what happens here belongs to, carried along.

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use http::Extensions;
use opentelemetry::Context;
use pin_project_lite::pin_project;

/// What spans that are begun along it belong to; nothing where nothing is traced.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceContext(pub(super) Option<Context>);

impl TraceContext {
    /// The one that a request came with.
    pub(crate) fn of(extensions: &mut Extensions) -> Self {
        extensions.remove().unwrap_or_default()
    }

    /// Sends a request on with it, into whichever task.
    pub(super) fn attach_to(&self, extensions: &mut Extensions) {
        if self.0.is_some() {
            extensions.insert(self.clone());
        }
    }

    /// Makes it the current one wherever the future is polled.
    pub(crate) fn instrument<F>(&self, future: F) -> Instrumented<F> {
        Instrumented { future, context: self.0.clone() }
    }
}

pin_project! {
    /// A future that is polled along a trail.
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
