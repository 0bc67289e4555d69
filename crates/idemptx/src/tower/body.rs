use std::borrow::Cow;
use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use idemptx_core::exchange::Operation;
use idemptx_core::key::RecordId;
use idemptx_core::outcome::Outcome;
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;
use pin_project_lite::pin_project;

use super::live::LiveBody;
#[cfg(feature = "spool")]
use crate::spool::Spooled;

/// The error of a body that broke off: the wrapped body's own.
pub type BodyError = Box<dyn StdError + Send + Sync>;

pin_project! {
    /// The body that the inner service gets: the request's own, or what was read of it.
    pub struct RequestBody<B> {
        spooled: Spool,
        buffered: Whole,
        broken: Option<BodyError>,
        #[pin]
        rest: Option<B>,
    }
}

impl<B> RequestBody<B> {
    pub(super) fn inner(body: B) -> Self {
        Self {
            spooled: Spool::default(),
            buffered: Whole::default(),
            broken: None,
            rest: Some(body),
        }
    }

    /// A body that broke off after what was read of it.
    pub(super) fn broken(read: Whole, error: BodyError) -> Self {
        Self { spooled: Spool::default(), buffered: read, broken: Some(error), rest: None }
    }

    /// Puts back what was read of it, before what is left.
    pub(super) fn put_back(&mut self, read: Whole) {
        self.buffered = read;
    }

    /// Puts the error back that ended it, after what was read.
    pub(super) fn break_off(&mut self, error: BodyError) {
        self.broken = Some(error);
        self.rest = None;
    }
}

#[cfg(feature = "spool")]
impl<B> RequestBody<B> {
    /// Puts back what was written to a file, before what was [put back](Self::put_back).
    pub(super) fn put_back_file(&mut self, read: Spooled) {
        self.spooled = Spool(Some(Box::new(read)));
    }
}

impl<B> Body for RequestBody<B>
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
        let this = self.project();
        if let Some(piece) = ready!(this.spooled.poll_piece(cx)) {
            return Poll::Ready(Some(piece.map(Frame::data)));
        }
        if let Some(frame) = this.buffered.pop() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match this.rest.as_pin_mut() {
            None => Poll::Ready(None),
            Some(rest) => rest.poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.spooled.left() == 0
            && self.buffered.is_empty()
            && self.broken.is_none()
            && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Some(rest) => rest.size_hint(),
            // How much is missing is not known.
            None if self.broken.is_some() => SizeHint::default(),
            None => SizeHint::with_exact(0),
        };
        plus(rest, &self.buffered, self.spooled.left())
    }
}

/// The part of a body that is in a file, if there is one.
#[cfg(feature = "spool")]
#[derive(Default)]
struct Spool(Option<Box<Spooled>>);

/// No part of a body is in a file.
#[cfg(not(feature = "spool"))]
#[derive(Default)]
struct Spool(());

impl Spool {
    #[cfg(feature = "spool")]
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let piece = ready!(body.poll_piece(cx));
        if piece.is_none() {
            self.0 = None;
        }
        Poll::Ready(piece.map(|piece| piece.map_err(Into::into)))
    }

    #[cfg(not(feature = "spool"))]
    fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        Poll::Ready(None)
    }

    fn left(&self) -> u64 {
        #[cfg(feature = "spool")]
        return self.0.as_ref().map_or(0, |body| body.left());
        #[cfg(not(feature = "spool"))]
        return 0;
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

pin_project! {
    /// The body that the client gets: the inner service's own, or one that was captured.
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
        end: Option<ExchangeEnd>,
    }
}

/// The end of a response's exchange.
#[derive(Debug)]
struct ExchangeEnd {
    outcome: Outcome,
    /// Names the record, in less room than its id takes.
    operation: Option<Operation>,
}

pin_project! {
    #[project = KindProjection]
    enum Kind<B> {
        // Nested: another layer of the same engine is around this one, and reads the fields.
        Inner { #[pin] body: B, is_nested: bool },
        Whole { whole: Whole },
        Live { body: LiveBody },
    }
}

impl<B> ResponseBody<B> {
    pub(super) const fn inner(body: B) -> Self {
        Self::of(Kind::Inner { body, is_nested: false })
    }

    pub(super) const fn nested(body: B) -> Self {
        Self::of(Kind::Inner { body, is_nested: true })
    }

    pub(crate) const fn whole(whole: Whole) -> Self {
        Self::of(Kind::Whole { whole })
    }

    pub(super) const fn live(body: LiveBody) -> Self {
        Self::of(Kind::Live { body })
    }

    const fn of(kind: Kind<B>) -> Self {
        Self { kind, end: None }
    }

    pub(super) fn end_exchange(&mut self, outcome: Outcome, operation: Option<Operation>) {
        self.end = Some(ExchangeEnd { outcome, operation });
    }

    /// Returns how the exchange ended; `None` inside of another layer of the same engine.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.end.as_ref().map(|end| &end.outcome)
    }

    /// Returns the id of the operation's record; `None` without a key.
    #[must_use]
    pub fn record_id(&self) -> Option<RecordId> {
        self.end.as_ref().and_then(|end| end.operation.as_ref()).map(Operation::id)
    }
}

impl<B> Body for ResponseBody<B>
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
        let mut polled = match self.project().kind.project() {
            KindProjection::Inner { body, is_nested } => {
                let polled = body.poll_frame(cx).map_err(Into::into);
                if *is_nested {
                    return polled;
                }
                polled
            }
            KindProjection::Whole { whole } => Poll::Ready(whole.pop().map(Ok)),
            KindProjection::Live { body } => body.poll_frame(cx),
        };
        // The handler's instruction to this layer; clients never see it, as in the head.
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            trailers.remove(IDEMPOTENCY_OUTCOME);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body, .. } => body.is_end_stream(),
            Kind::Whole { whole } => whole.is_empty(),
            Kind::Live { body } => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body, .. } => body.size_hint(),
            Kind::Whole { whole } => plus(SizeHint::with_exact(0), whole, 0),
            Kind::Live { .. } => SizeHint::default(),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

/// The part of a body that was read: its data and its trailers.
#[derive(Clone, Default)]
pub(crate) struct Whole {
    /// The first piece, apart because most bodies have one only; empty if there is none.
    first: Bytes,
    /// The other pieces, of which none is empty.
    #[expect(clippy::box_collection, reason = "most bodies have none, and each is moved often")]
    more: Option<Box<VecDeque<Bytes>>>,
    trailers: Option<Box<HeaderMap>>,
}

impl Whole {
    pub(super) fn of(body: Bytes, trailers: HeaderMap) -> Self {
        let mut whole = Self::default();
        whole.push(body);
        whole.end(trailers);
        whole
    }

    /// Takes the next piece.
    ///
    /// Small ones are put together: a body that comes byte by byte must not cost a handle for each.
    fn push(&mut self, piece: Bytes) {
        let small = |bytes: &Bytes| bytes.len() < PIECE_BYTES_MIN;
        let last = self.more.as_mut().and_then(|more| more.back_mut()).unwrap_or(&mut self.first);
        if last.is_empty() {
            *last = piece;
        } else if small(last) && small(&piece) {
            *last = [&**last, &*piece].concat().into();
        } else if !piece.is_empty() {
            self.more.get_or_insert_default().push_back(piece);
        }
    }

    /// Takes the trailers.
    pub(super) fn end(&mut self, trailers: HeaderMap) {
        self.trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
    }

    /// Returns all data in one piece.
    pub(crate) fn joined(&self) -> Cow<'_, [u8]> {
        let Some(more) = &self.more else { return Cow::Borrowed(&self.first) };
        let mut joined = self.first.to_vec();
        more.iter().for_each(|piece| joined.extend_from_slice(piece));
        Cow::Owned(joined)
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        let more = self.more.iter().flat_map(|more| more.iter());
        Some(&self.first).into_iter().filter(|first| !first.is_empty()).chain(more)
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_deref()
    }

    pub(super) fn trailers_mut(&mut self) -> Option<&mut HeaderMap> {
        self.trailers.as_deref_mut()
    }

    /// Gives the next frame away.
    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let next = self.more.as_mut().and_then(|more| more.pop_front()).unwrap_or_default();
        let piece = std::mem::replace(&mut self.first, next);
        if piece.is_empty() {
            return self.trailers.take().map(|trailers| Frame::trailers(*trailers));
        }
        Some(Frame::data(piece))
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.trailers.is_none()
    }
}

/// The end of reading a body within a limit.
pub(crate) enum Read<B> {
    Whole(Whole),
    /// There is more than the limit; what was read, and what is left.
    TooLarge(Whole, B),
    /// The body broke off after what was read.
    Broken(Whole, BodyError),
}

/// Reads a body to its end, or until it exceeds `bytes_max`, showing each piece to `see`.
///
/// A body that declares to be too large is not read at all, and one that ends before the length
/// that it declares is broken: over HTTP/2 hyper takes a stream that was reset with NO_ERROR for one
/// that has ended.
pub(crate) async fn read<B>(mut body: B, bytes_max: u64, mut see: impl FnMut(&[u8])) -> Read<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    let mut whole = Whole::default();
    let declared = body.size_hint().lower();
    if declared > bytes_max {
        return Read::TooLarge(whole, body);
    }
    let mut bytes = 0_u64;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Read::Broken(whole, error.into()),
        };
        match frame.into_data() {
            Ok(data) => {
                bytes = bytes.saturating_add(data.len() as u64);
                see(&data);
                whole.push(data);
                if bytes > bytes_max {
                    return Read::TooLarge(whole, body);
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    whole.end(trailers);
                }
            }
        }
    }
    if bytes < declared { Read::Broken(whole, CUT_OFF.into()) } else { Read::Whole(whole) }
}

/// A size without an upper bound where trailers follow: an exact one becomes a `Content-Length`,
/// and HTTP/1.1 sends no trailers after that (RFC 9112 §7.1.2).
fn plus(hint: SizeHint, buffered: &Whole, spooled: u64) -> SizeHint {
    let bytes = spooled + buffered.pieces().map(|piece| piece.len() as u64).sum::<u64>();
    let mut sum = SizeHint::new();
    sum.set_lower(hint.lower().saturating_add(bytes));
    if let Some(upper) = hint.upper()
        && buffered.trailers.is_none()
    {
        sum.set_upper(upper.saturating_add(bytes));
    }
    sum
}

/// A piece below this is joined to another such piece; at most so many bytes are copied for one.
const PIECE_BYTES_MIN: usize = 512;
pub(super) const CUT_OFF: &str = "the body was cut off before its end";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_comes_byte_by_byte_is_kept_in_few_pieces() {
        let mut whole = Whole::default();
        for number in 0..10_000_u32 {
            whole.push(Bytes::from(vec![number as u8]));
        }
        let pieces = whole.pieces().count();
        assert!(pieces <= 10_000 / PIECE_BYTES_MIN + 1, "{pieces} pieces");
        let expected: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        assert_eq!(*whole.joined(), expected);
    }

    #[test]
    fn large_pieces_are_kept_as_they_came() {
        let mut whole = Whole::default();
        let piece = Bytes::from(vec![7; PIECE_BYTES_MIN]);
        [piece.clone(), Bytes::new(), piece.clone()].into_iter().for_each(|it| whole.push(it));
        assert_eq!(whole.pieces().collect::<Vec<_>>(), [&piece, &piece]);
        assert_eq!(*whole.joined(), [&*piece, &*piece].concat());
        let popped = std::iter::from_fn(|| whole.pop()?.into_data().ok());
        assert_eq!(popped.collect::<Vec<_>>(), [piece.clone(), piece]);
    }
}
