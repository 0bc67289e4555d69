//! Bodies over HTTP/2 that their clients cut off.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::body::{BodyError, CUT_OFF};

/// Makes a request's body over HTTP/2 fail where its stream ended without END_STREAM.
///
/// A client may reset a stream with NO_ERROR in the middle of a body, and hyper then ends the body as
/// if it were whole.
/// The layer notices that by itself where the request has a `Content-Length`.
/// Without one only [`Body::is_end_stream`] of the body that the server received tells, which other
/// layers may hide, such as one that decompresses; so this goes around all of them:
///
/// ```
/// use axum::{Router, routing::post};
/// use idemptx::tower::require_end_stream;
/// # use idemptx::{Engine, store::MemoryStore};
/// use tower::util::MapRequestLayer;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let engine = Engine::builder(MemoryStore::new()).build()?;
/// let app: Router = Router::new()
///     .route("/orders", post(async |order: String| order))
///     .layer(engine.layer())
///     .layer(MapRequestLayer::new(require_end_stream));
/// # Ok(()) }
/// ```
pub fn require_end_stream<B>(request: Request<B>) -> Request<EndStreamBody<B>> {
    let is_http2 = request.version() == Version::HTTP_2;
    request.map(|body| EndStreamBody { body, is_http2 })
}

pin_project! {
    /// A request's body that fails where it was cut off; see [`require_end_stream`].
    #[derive(Debug)]
    pub struct EndStreamBody<B> {
        #[pin]
        body: B,
        is_http2: bool,
    }
}

impl<B> Body for EndStreamBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        let is_cut_off = frame.is_none() && *this.is_http2 && !this.body.is_end_stream();
        Poll::Ready(match frame {
            None if is_cut_off => Some(Err(CUT_OFF.into())),
            frame => frame.map(|frame| frame.map_err(Into::into)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
