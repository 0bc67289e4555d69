//! A body that yields the pieces of a script.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use idemptx_testkit::scripted_store::Gate;

/// A piece of the script.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// A pause until the gate opens.
    Wait(Gate),
    Error,
    Panic,
}

impl Piece {
    pub(crate) fn data(bytes: impl Into<Bytes>) -> Self {
        Self::Data(bytes.into())
    }
}

/// A body that yields these pieces in order.
pub(crate) struct ScriptedBody {
    pieces: VecDeque<Piece>,
    declared: Option<u64>,
    taken: Arc<AtomicUsize>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl ScriptedBody {
    pub(crate) fn new(pieces: impl IntoIterator<Item = Piece>) -> Self {
        Self {
            pieces: pieces.into_iter().collect(),
            declared: None,
            taken: Arc::default(),
            waiting: None,
        }
    }

    /// Declares its length in the size hint.
    pub(crate) fn declaring(mut self, bytes: u64) -> Self {
        self.declared = Some(bytes);
        self
    }

    /// Returns the counter of data pieces taken, which outlives the body.
    pub(crate) fn taken(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.taken)
    }
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            let frame = match self.pieces.pop_front() {
                None => return Poll::Ready(None),
                Some(Piece::Data(bytes)) => {
                    self.taken.fetch_add(1, Ordering::SeqCst);
                    Ok(Frame::data(bytes))
                }
                Some(Piece::Trailers(trailers)) => Ok(Frame::trailers(trailers)),
                Some(Piece::Error) => Err(io::Error::other("the body failed as scripted")),
                Some(Piece::Panic) => panic!("the body panicked as scripted"),
                Some(Piece::Wait(gate)) => {
                    self.waiting = Some(Box::pin(async move { gate.opened().await }));
                    continue;
                }
            };
            return Poll::Ready(Some(frame));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.waiting.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.declared.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
