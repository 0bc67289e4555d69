//! Response bodies, to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use idemptx::tower::{BodyError, ResponseBody};
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;

use crate::upstream::UpstreamBody;

/// The body of a response to a client.
#[derive(Debug)]
pub(crate) enum DownstreamBody {
    Plain(UpstreamBody),
    Layered(ResponseBody<UpstreamBody>),
}

impl Body for DownstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = match self.get_mut() {
            Self::Plain(body) => Pin::new(body).poll_frame(cx),
            Self::Layered(body) => Pin::new(body).poll_frame(cx),
        };
        // As in the head of the response: the field is for the gateway alone.
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            trailers.remove(IDEMPOTENCY_OUTCOME);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Layered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Layered(body) => body.size_hint(),
        }
    }
}
