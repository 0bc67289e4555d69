//! ReplyReader as they come in: the Redis protocol, version 2.

use std::fmt;

use bytes::Bytes;
use idemptx::store::redis::protocol::Reply;

/// The received bytes that are not yet a whole reply.
///
/// # Security
///
/// Total over arbitrary bytes: nesting, lengths and numbers of elements are limited before anything
/// is reserved for them.
#[derive(Debug, Default)]
pub(super) struct ReplyReader {
    rest: Vec<u8>,
    /// The length at which the rest may hold a whole reply.
    enough: usize,
}

/// An error for bytes that no server of this protocol sends; the connection is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MalformedReply(&'static str);

impl fmt::Display for MalformedReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a reply of the Redis protocol (RESP2): {}", self.0)
    }
}

impl ReplyReader {
    /// Takes received bytes and passes each whole reply to `take`.
    ///
    /// # Errors
    ///
    /// [`MalformedReply`]; replies before it have been passed on.
    pub(super) fn feed(
        &mut self,
        data: &[u8],
        mut take: impl FnMut(Reply),
    ) -> Result<(), MalformedReply> {
        if self.rest.is_empty() {
            let (read, enough) = read_all(data, &mut take)?;
            self.rest.extend_from_slice(data.get(read..).unwrap_or_default());
            self.enough = enough;
            return Ok(());
        }
        self.rest.extend_from_slice(data);
        if self.rest.len() < self.enough {
            return Ok(());
        }
        let (read, enough) = read_all(&self.rest, &mut take)?;
        self.rest.drain(..read);
        self.enough = enough;
        if self.rest.is_empty() {
            self.rest.shrink_to(REST_BYTES_KEPT);
        }
        Ok(())
    }
}

/// Reads whole replies; returns their length and the minimum length of the next one.
fn read_all(data: &[u8], take: &mut impl FnMut(Reply)) -> Result<(usize, usize), MalformedReply> {
    let mut read = 0;
    loop {
        let mut cursor = Cursor { data, at: read, start: read, elements: 0 };
        match cursor.reply(0) {
            Ok(reply) => take(reply),
            Err(Stop::Incomplete(enough)) => return Ok((read, enough.saturating_sub(read))),
            Err(Stop::Malformed(reason)) => return Err(MalformedReply(reason)),
        }
        read = cursor.at;
    }
}

/// The reason there is no reply.
enum Stop {
    /// Incomplete until this many bytes have arrived.
    Incomplete(usize),
    Malformed(&'static str),
}

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
    /// The start of the whole reply.
    start: usize,
    elements: usize,
}

impl<'a> Cursor<'a> {
    fn reply(&mut self, depth: usize) -> Result<Reply, Stop> {
        let kind = *self.data.get(self.at).ok_or(Stop::Incomplete(self.at + 1))?;
        if !b"+-:$*".contains(&kind) {
            return Err(Stop::Malformed("it begins with no known type"));
        }
        self.at += 1;
        let line = self.line()?;
        match kind {
            b'+' => Ok(Reply::Bytes(Bytes::copy_from_slice(line))),
            b'-' => Ok(Reply::Error(Bytes::copy_from_slice(line))),
            b':' => integer(line).map(Reply::Integer),
            b'$' => match length(line, REPLY_BYTES_MAX)? {
                None => Ok(Reply::Nil),
                Some(length) => self.bulk(length),
            },
            _ => match length(line, ELEMENTS_MAX)? {
                None => Ok(Reply::Nil),
                Some(_) if depth >= DEPTH_MAX => Err(Stop::Malformed("nested too deeply")),
                Some(length) => self.array(length, depth),
            },
        }
    }

    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let window = rest.get(..LINE_BYTES_MAX).unwrap_or(rest);
        let Some(length) = window.iter().position(|byte| *byte == b'\n') else {
            if window.len() == LINE_BYTES_MAX {
                return Err(Stop::Malformed("a line is too long"));
            }
            return Err(Stop::Incomplete(self.data.len() + 1));
        };
        self.at += length + 1;
        let line = window.get(..length).unwrap_or_default();
        line.strip_suffix(b"\r").ok_or(Stop::Malformed("a line ends without a carriage return"))
    }

    fn bulk(&mut self, length: usize) -> Result<Reply, Stop> {
        let end = self.at + length;
        if end - self.start > REPLY_BYTES_MAX {
            return Err(Stop::Malformed("it is too long"));
        }
        let Some(ending) = self.data.get(end..end + 2) else {
            return Err(Stop::Incomplete(end + 2));
        };
        if ending != b"\r\n" {
            return Err(Stop::Malformed("a string is longer than it says"));
        }
        let bytes = self.data.get(self.at..end).unwrap_or_default();
        self.at = end + 2;
        Ok(Reply::Bytes(Bytes::copy_from_slice(bytes)))
    }

    fn array(&mut self, length: usize, depth: usize) -> Result<Reply, Stop> {
        self.elements += length;
        if self.elements > ELEMENTS_MAX {
            return Err(Stop::Malformed("too many elements"));
        }
        let mut elements = Vec::with_capacity(length);
        for _ in 0..length {
            elements.push(self.reply(depth + 1)?);
        }
        Ok(Reply::Array(elements))
    }
}

fn integer(line: &[u8]) -> Result<i64, Stop> {
    let number = std::str::from_utf8(line).ok().and_then(|digits| digits.parse().ok());
    number.ok_or(Stop::Malformed("a number is none"))
}

/// Parses a length; `None` for -1, which stands for nil.
fn length(line: &[u8], max: usize) -> Result<Option<usize>, Stop> {
    match integer(line)? {
        -1 => Ok(None),
        length => match usize::try_from(length) {
            Ok(length) if length <= max => Ok(Some(length)),
            _ => Err(Stop::Malformed("a length is impossible")),
        },
    }
}

/// The default limit of Redis for one string.
const REPLY_BYTES_MAX: usize = 512 << 20;
const LINE_BYTES_MAX: usize = 64 << 10;
/// More elements than a server has settings, names and values counted.
const ELEMENTS_MAX: usize = 4_096;
const DEPTH_MAX: usize = 8;
const REST_BYTES_KEPT: usize = 64 << 10;
