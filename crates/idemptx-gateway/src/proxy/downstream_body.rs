//! Response bodies, to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame, SizeHint};
use idemptx::Outcome;
use idemptx::tower::{BodyError, ResponseBody};
use idemptx_core::key::RecordId;
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;

use crate::recorder::AccessLine;
use crate::upstream::UpstreamBody;

/// The body of a response to a client.
#[derive(Debug)]
pub(crate) struct DownstreamBody {
    content: Content,
    /// Logged at the end, if requests are logged.
    access: Option<Box<AccessLine>>,
}

#[derive(Debug)]
enum Content {
    Plain(UpstreamBody),
    Layered(ResponseBody<UpstreamBody>),
}

impl DownstreamBody {
    pub(crate) const fn plain(body: UpstreamBody) -> Self {
        Self { content: Content::Plain(body), access: None }
    }

    pub(crate) const fn layered(body: ResponseBody<UpstreamBody>) -> Self {
        Self { content: Content::Layered(body), access: None }
    }

    /// Returns how the exchange ended, if the engine has answered.
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        self.layered_body().and_then(ResponseBody::outcome)
    }

    /// Returns the id of the operation's record, if the engine has answered under a key.
    pub(super) fn record_id(&self) -> Option<RecordId> {
        self.layered_body().and_then(ResponseBody::record_id)
    }

    const fn layered_body(&self) -> Option<&ResponseBody<UpstreamBody>> {
        match &self.content {
            Content::Layered(body) => Some(body),
            Content::Plain(_) => None,
        }
    }

    /// Logs the request at the end of the body.
    pub(super) fn logged_as(mut self, line: AccessLine) -> Self {
        self.access = Some(Box::new(line));
        self
    }
}

impl Drop for DownstreamBody {
    fn drop(&mut self) {
        let is_complete = self.is_end_stream();
        if let Some(access) = &mut self.access {
            // hyper does not read on a body whose end it knows, or that HEAD does without.
            access.is_complete |= is_complete || access.method == Method::HEAD;
        }
    }
}

impl Body for DownstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = match &mut self.content {
            Content::Plain(body) => Pin::new(body).poll_frame(cx),
            Content::Layered(body) => Pin::new(body).poll_frame(cx),
        };
        if let Some(access) = &mut self.access {
            match &polled {
                Poll::Ready(Some(Ok(frame))) => {
                    access.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                Poll::Ready(None) => access.is_complete = true,
                _ => {}
            }
        }
        // As in the head of the response: the field is for the gateway alone.
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            trailers.remove(IDEMPOTENCY_OUTCOME);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Plain(body) => body.is_end_stream(),
            Content::Layered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Plain(body) => body.size_hint(),
            Content::Layered(body) => body.size_hint(),
        }
    }
}
