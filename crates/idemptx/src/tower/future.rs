use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Response;
use idemptx_core::exchange::Rules;
use idemptx_core::outcome::Outcome;
use pin_project_lite::pin_project;

use super::body::ResponseBody;
use super::marker::Marker;
use crate::detachable::Detachable;

pin_project! {
    /// The future of a response; dropping it does not cancel a handler that runs under a key.
    pub struct ResponseFuture<F, B, E> {
        #[pin]
        state: State<F, B, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B, E> {
        // Not under a key: the inner service's own future, and the outcome to mark its response
        // with.
        Pass {
            #[pin]
            inner: F,
            outcome: Option<BypassMark>,
        },
        // Nothing is claimed yet: dropped here, it leaves nothing.
        Opening {
            opening: BoxOpening<B, E>,
        },
        Running {
            exchange: Exchange<B, E>,
        },
        Refused {
            response: Option<Box<Response<ResponseBody<B>>>>,
        },
    }
}

/// The mark of the response to a request that no key protects.
pub(super) struct BypassMark {
    pub(super) rules: Arc<Rules>,
    pub(super) outcome: Outcome,
    pub(super) fills_extensions: bool,
}

/// A request under a key whose body has been read.
pub(super) enum Opened<B, E> {
    /// A result of this process answers it.
    Answered(Response<ResponseBody<B>>),
    /// The store has to be asked.
    Running(Exchange<B, E>),
}

type Exchange<B, E> = Detachable<Result<Response<ResponseBody<B>>, E>>;
pub(super) type BoxOpening<B, E> = Pin<Box<dyn Future<Output = Opened<B, E>> + Send>>;
pub(super) type BoxExchange<B, E> =
    Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, E>> + Send>>;

impl<F, B, E> ResponseFuture<F, B, E> {
    pub(super) const fn pass(inner: F, mark: BypassMark) -> Self {
        Self { state: State::Pass { inner, outcome: Some(mark) } }
    }

    /// The future of a request whose outcome another layer of the same engine will know.
    pub(super) const fn nested(inner: F) -> Self {
        Self { state: State::Pass { inner, outcome: None } }
    }

    pub(super) const fn keyed(opening: BoxOpening<B, E>) -> Self {
        Self { state: State::Opening { opening } }
    }

    pub(super) fn refused(response: Response<ResponseBody<B>>) -> Self {
        Self { state: State::Refused { response: Some(Box::new(response)) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        if let StateProjection::Opening { opening } = state.as_mut().project() {
            match ready!(opening.as_mut().poll(cx)) {
                Opened::Answered(response) => return Poll::Ready(Ok(response)),
                Opened::Running(exchange) => state.set(State::Running { exchange }),
            }
        }
        match state.project() {
            StateProjection::Running { exchange } => Pin::new(exchange).poll(cx),
            // It has become the above.
            StateProjection::Opening { .. } => Poll::Pending,
            StateProjection::Refused { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(*response)),
                // Polled after its end, for which no future promises anything.
                None => Poll::Pending,
            },
            StateProjection::Pass { inner, outcome } => {
                let Poll::Ready(response) = inner.poll(cx) else { return Poll::Pending };
                Poll::Ready(response.map(|response| {
                    let Some(BypassMark { rules, outcome, fills_extensions }) = outcome.take()
                    else {
                        return response.map(ResponseBody::nested);
                    };
                    let response = response.map(ResponseBody::inner);
                    let marker = Marker { fills_extensions, ..Marker::of(&rules) };
                    marker.mark(response, outcome)
                }))
            }
        }
    }
}

impl<F, B, E> fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
