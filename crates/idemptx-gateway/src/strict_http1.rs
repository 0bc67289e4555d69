//! Rejects HTTP/1.1 messages that can be parsed in more than one way (request smuggling).
//!
//! hyper parses as leniently as RFC 9112 allows: it accepts a bare line feed as the end of a line,
//! prefers `Transfer-Encoding` where there is a `Content-Length` too, and takes the last of several
//! codings. A proxy in front of the gateway may parse the same bytes differently, and then the body
//! of one parser is the next request of the other.
//! So this reader follows the boundaries of messages before hyper sees them. Where they are
//! ambiguous it substitutes bytes that hyper rejects: the client gets 400 and the connection is
//! closed.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use memchr::{memchr, memchr2};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::activity::Activity;

/// A stream that passes on only unambiguous HTTP/1.1 messages.
///
/// HTTP/2 is recognised by its preface and passes unchecked, as does everything after an upgrade.
#[derive(Debug)]
pub(crate) struct StrictHttp1<S> {
    stream: S,
    framing: Framing,
    /// The rest of the bytes that replace the ambiguous ones.
    replacement: Option<&'static [u8]>,
    upgraded: UpgradeFlag,
    activity: Arc<Activity>,
}

/// Set when the connection has switched to another protocol.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpgradeFlag(Arc<AtomicBool>);

impl UpgradeFlag {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl<S> StrictHttp1<S> {
    pub(crate) fn new(
        stream: S,
        line_bytes_max: usize,
        upgraded: UpgradeFlag,
        activity: Arc<Activity>,
    ) -> Self {
        Self {
            stream,
            framing: Framing::new(line_bytes_max),
            replacement: None,
            upgraded,
            activity,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StrictHttp1<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(replacement) = this.replacement.filter(|left| !left.is_empty()) {
            this.replacement = Some(copy_into(replacement, buffer));
            return Poll::Ready(Ok(()));
        }
        if this.replacement.is_some() {
            return poll_discard(&mut this.stream, cx);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if this.upgraded.is_set() {
            return Poll::Ready(Ok(()));
        }
        let read = buffer.filled().get(before..).unwrap_or_default();
        // A client that has sent all it has may close its half, and still gets its answer: hyper
        // would take it for one that has left.
        if read.is_empty() && this.framing.is_between() && this.activity.defers_end(cx) {
            return Poll::Pending;
        }
        if let Err(Ambiguous { at }) = this.framing.read(read) {
            buffer.set_filled(before + at);
            this.replacement = Some(copy_into(REPLACEMENT, buffer));
        }
        Poll::Ready(Ok(()))
    }
}

/// Copies as much as fits, and returns the rest.
fn copy_into(replacement: &'static [u8], buffer: &mut ReadBuf<'_>) -> &'static [u8] {
    let (now, later) = replacement.split_at(replacement.len().min(buffer.remaining()));
    buffer.put_slice(now);
    later
}

/// Discards input until its end, which is passed on.
fn poll_discard<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        let mut bytes = [0; 1024];
        let mut discarded = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut discarded))?;
        if discarded.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StrictHttp1<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The parser's state.
#[derive(Debug)]
struct Framing {
    position: Position,
    /// The beginning of an incomplete line.
    line: Vec<u8>,
    line_bytes_max: usize,
    length: Option<u64>,
    chunked: bool,
    /// Set after the first request.
    is_later: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    FirstLine,
    Field,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    /// The bytes of another protocol, which are not parsed.
    Elsewhere,
}

/// The offset of the first byte that can be parsed in two ways.
#[derive(Debug, PartialEq, Eq)]
struct Ambiguous {
    at: usize,
}

impl Framing {
    const fn new(line_bytes_max: usize) -> Self {
        Self {
            position: Position::FirstLine,
            line: Vec::new(),
            line_bytes_max,
            length: None,
            chunked: false,
            is_later: false,
        }
    }

    /// Returns whether a message has ended and no other has begun.
    fn is_between(&self) -> bool {
        self.is_later && self.position == Position::FirstLine && self.line.is_empty()
    }

    /// Parses the next bytes.
    fn read(&mut self, bytes: &[u8]) -> Result<(), Ambiguous> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += match self.position {
                Position::Elsewhere => return Ok(()),
                Position::Body(left) => {
                    self.content(left, rest, Position::Body, Position::FirstLine)
                }
                Position::Chunk(left) => {
                    self.content(left, rest, Position::Chunk, Position::ChunkEnd)
                }
                _ => self.line(rest).ok_or(Ambiguous { at })?,
            };
        }
        Ok(())
    }

    /// Skips content, and returns its length.
    fn content(
        &mut self,
        left: u64,
        rest: &[u8],
        more: impl Fn(u64) -> Position,
        then: Position,
    ) -> usize {
        let there = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
        let left = left.saturating_sub(there as u64);
        self.position = if left == 0 { then } else { more(left) };
        there
    }

    /// Consumes a line or the available part of it, and returns its length; `None` if ambiguous.
    fn line(&mut self, rest: &[u8]) -> Option<usize> {
        // Most lines are complete: one search finds the end, or what makes the line ambiguous.
        if self.line.is_empty()
            && let Some(end) = memchr2(b'\r', b'\n', rest)
            && let (line, b"\r\n") = (rest.get(..end)?, rest.get(end..end + 2).unwrap_or_default())
        {
            self.position = self.after(line)?;
            return Some(end + 2);
        }
        let Some(end) = memchr(b'\n', rest) else {
            self.line.extend_from_slice(rest);
            // hyper rejects longer lines, so they need not be buffered.
            return (self.line.len() <= self.line_bytes_max).then_some(rest.len());
        };
        let line = rest.get(..end)?;
        let line = if self.line.is_empty() {
            Cow::Borrowed(line)
        } else {
            self.line.extend_from_slice(line);
            Cow::Owned(std::mem::take(&mut self.line))
        };
        let line = line.strip_suffix(b"\r").filter(|line| memchr(b'\r', line).is_none())?;
        self.position = self.after(line)?;
        Some(end + 1)
    }

    /// The state after a line.
    fn after(&mut self, line: &[u8]) -> Option<Position> {
        match self.position {
            // RFC 9112 §2.2: an empty line before a request is skipped.
            Position::FirstLine if line.is_empty() => Some(Position::FirstLine),
            Position::FirstLine => self.after_first(line),
            Position::Field if line.is_empty() => self.after_head(),
            Position::Field => self.field(line).map(|()| Position::Field),
            Position::ChunkSize => {
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
                Some(match number(size, 16)? {
                    0 => Position::Trailer,
                    bytes => Position::Chunk(bytes),
                })
            }
            Position::ChunkEnd => line.is_empty().then_some(Position::ChunkSize),
            Position::Trailer if line.is_empty() => Some(Position::FirstLine),
            other => Some(other),
        }
    }

    fn after_first(&mut self, line: &[u8]) -> Option<Position> {
        if !self.is_later && line == PREFACE {
            return Some(Position::Elsewhere);
        }
        (self.length, self.chunked, self.is_later) = (None, false, true);
        // A target has no fragment, but some servers strip one instead of rejecting it.
        memchr(b'#', line).is_none().then_some(Position::Field)
    }

    /// Applies RFC 9112 §6.3, without the choices that it leaves to the recipient.
    fn after_head(&self) -> Option<Position> {
        match (self.length, self.chunked) {
            (Some(_), true) => None,
            (None, true) => Some(Position::ChunkSize),
            (None | Some(0), false) => Some(Position::FirstLine),
            (Some(bytes), false) => Some(Position::Body(bytes)),
        }
    }

    fn field(&mut self, line: &[u8]) -> Option<()> {
        if let Some(value) = value_of(b"content-length", line) {
            let length = number(value, 10)?;
            return self.length.replace(length).is_none().then_some(());
        }
        if let Some(value) = value_of(b"transfer-encoding", line) {
            let is_first = !std::mem::replace(&mut self.chunked, true);
            return (is_first && value.eq_ignore_ascii_case(b"chunked")).then_some(());
        }
        // Lines that are no fields are rejected by hyper.
        Some(())
    }
}

/// Returns the value of a line, if it has this name.
fn value_of<'a>(name: &[u8], line: &'a [u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// Parses digits only.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    // `from_str_radix` accepts a sign.
    let digits = std::str::from_utf8(digits).ok().filter(|it| !it.starts_with('+'))?;
    u64::from_str_radix(digits, radix).ok()
}

/// Invalid in a head, a chunk and a trailer, and the end of each: hyper answers 400.
const REPLACEMENT: &[u8] = b"\0\r\n\r\n";
/// HTTP/2's first line (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

#[cfg(any(test, fuzzing))]
#[allow(clippy::missing_panics_doc, reason = "a property fails by panicking")]
pub(crate) mod cuts;
#[cfg(test)]
mod tests;
