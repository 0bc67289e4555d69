//! Content codings (RFC 9110 §8.4.1) of request bodies, undone for the fingerprint.
//!
//! A client that compresses a body again for a retry may get other bytes: gzip keeps the time, and
//! another number of threads splits a body elsewhere.

use std::fmt;
use std::io::{self, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use ruzstd::decoding::StreamingDecoder;

/// A coding that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentCoding {
    /// RFC 1952, of any number of members.
    Gzip,
    /// RFC 1950: `deflate` is the zlib format.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878, of any number of frames.
    Zstd,
}

/// The reason why a body cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undecodable {
    /// It is not in the coding, or is followed by other bytes.
    Malformed,
    /// Its content is larger than [`DECODED_BYTES_MAX`].
    TooLarge,
    /// It is compressed further than [`RATIO_MAX`].
    Bomb,
}

/// The error for a body that is compressed further than honest content is, to exhaust its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecompressionBomb;

impl fmt::Display for DecompressionBomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body's content is more than {RATIO_MAX} times as large as the body")
    }
}

impl std::error::Error for DecompressionBomb {}

impl ContentCoding {
    /// Returns the coding of a body; `None` without one, and for several, which no client applies
    /// to a request in earnest.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(CONTENT_ENCODING).iter();
        let line = lines.next().filter(|_| lines.next().is_none())?;
        let codings = [
            ("gzip", Self::Gzip),
            ("x-gzip", Self::Gzip),
            ("deflate", Self::Deflate),
            ("br", Self::Brotli),
            ("zstd", Self::Zstd),
        ];
        let name = line.as_bytes().trim_ascii();
        let coding = codings.into_iter().find(|(it, _)| name.eq_ignore_ascii_case(it.as_bytes()));
        coding.map(|(_, coding)| coding)
    }

    /// Decodes a whole body.
    ///
    /// # Security
    ///
    /// Accepts arbitrary bytes.
    /// It stops at the limits, so that it takes no more memory than [`DECODED_BYTES_MAX`] and the
    /// window of the coding, which is 16 MiB at most, and time in proportion.
    pub(super) fn decode(self, body: &[u8]) -> Result<Vec<u8>, Undecodable> {
        self.decode_within(body, DECODED_BYTES_MAX)
    }

    fn decode_within(self, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, Undecodable> {
        let (mut decoded, mut rest) = (Vec::new(), body);
        let limits = Limits { body_bytes: body.len(), bytes_max };
        match self {
            Self::Gzip => {
                let left = |it: &MultiGzDecoder<&mut &[u8]>| it.get_ref().len();
                limits.copy(MultiGzDecoder::new(&mut rest), &mut decoded, left)?;
            }
            Self::Deflate => {
                let left = |it: &ZlibDecoder<&mut &[u8]>| it.get_ref().len();
                limits.copy(ZlibDecoder::new(&mut rest), &mut decoded, left)?;
            }
            Self::Brotli => {
                let left = |it: &BrotliDecoder<'_, '_>| it.rest.len();
                limits.copy(BrotliDecoder::new(&mut rest), &mut decoded, left)?;
            }
            Self::Zstd => {
                while !rest.is_empty() {
                    let decoder = StreamingDecoder::new_with_max_window_size(
                        &mut rest,
                        ZSTD_WINDOW_BYTES_MAX,
                    )
                    .map_err(|_| Undecodable::Malformed)?;
                    limits.copy(decoder, &mut decoded, |it| it.get_ref().len())?;
                }
            }
        }
        if rest.is_empty() { Ok(decoded) } else { Err(Undecodable::Malformed) }
    }
}

/// A decoder that leaves what follows the stream, as the library's own reader does not.
struct BrotliDecoder<'a, 'b> {
    rest: &'a mut &'b [u8],
    state: Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>,
    is_over: bool,
}

impl<'a, 'b> BrotliDecoder<'a, 'b> {
    fn new(rest: &'a mut &'b [u8]) -> Self {
        let alloc = StandardAlloc::default;
        let state = Box::new(BrotliState::new(alloc(), alloc(), alloc()));
        Self { rest, state, is_over: false }
    }
}

impl Read for BrotliDecoder<'_, '_> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        if self.is_over {
            return Ok(0);
        }
        let (mut input_left, mut input_at) = (self.rest.len(), 0);
        let (mut room, mut written, mut total) = (piece.len(), 0, 0);
        let result = BrotliDecompressStream(
            &mut input_left,
            &mut input_at,
            self.rest,
            &mut room,
            &mut written,
            piece,
            &mut total,
            &mut self.state,
        );
        *self.rest = self.rest.get(input_at..).unwrap_or_default();
        match result {
            BrotliResult::ResultSuccess => self.is_over = true,
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::NeedsMoreInput | BrotliResult::ResultFailure => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(written)
    }
}

struct Limits {
    body_bytes: usize,
    bytes_max: usize,
}

impl Limits {
    /// Reads a decoder to its end, within the limits; `left` returns how much of the body it has not
    /// read.
    fn copy<R: Read>(
        &self,
        mut decoder: R,
        decoded: &mut Vec<u8>,
        left: impl Fn(&R) -> usize,
    ) -> Result<(), Undecodable> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            let read = decoder.read(&mut piece).map_err(|_| Undecodable::Malformed)?;
            let Some(piece) = piece.get(..read).filter(|piece| !piece.is_empty()) else {
                return Ok(());
            };
            decoded.extend_from_slice(piece);
            let consumed = self.body_bytes.saturating_sub(left(&decoder));
            // A short repetitive text is no bomb, however well it compresses.
            if decoded.len() > RATIO_FREE_BYTES && decoded.len() / RATIO_MAX > consumed {
                return Err(Undecodable::Bomb);
            }
            if decoded.len() > self.bytes_max {
                return Err(Undecodable::TooLarge);
            }
        }
    }
}

/// The largest content that is decoded; a body with more counts by its bytes.
const DECODED_BYTES_MAX: usize = 16 << 20;
/// The most that a body may be compressed: text reaches a tenth of it, and deflate could do five
/// times as much.
const RATIO_MAX: usize = 200;
/// The content for which no ratio counts.
const RATIO_FREE_BYTES: usize = 1 << 20;
/// The largest window of a frame, which its decoder holds back (RFC 9659 §3).
const ZSTD_WINDOW_BYTES_MAX: u64 = 8 << 20;
const PIECE_BYTES: usize = 8 << 10;

#[cfg(test)]
pub(super) mod tests;
