//! Bodies: random, streamed, and broken.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::run::Run;

/// The bytes that `/abort` sends before it fails: half of what it declares.
pub const HALF_BYTES: usize = 512;

/// Returns `length` bytes, which differ with `seed`.
#[must_use]
pub fn random(seed: &str, length: usize) -> Bytes {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let mut state = hasher.finish() | 1;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
    while bytes.len() < length {
        // xorshift64: quick, and no two runs alike, which is all that is asked of it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// `line`, `count` times with a pause of `gap` milliseconds between two of them.
pub(super) fn chunks(run: Run, line: String, count: u64, gap: u64) -> Body {
    let line = Bytes::from(line);
    Body::from_stream(stream::unfold((run, 0), move |(run, sent)| {
        let line = line.clone();
        async move {
            if sent == count {
                run.streamed();
                return None;
            }
            if sent > 0 && gap > 0 {
                tokio::time::sleep(Duration::from_millis(gap)).await;
            }
            Some((Ok::<_, io::Error>(line), (run, sent + 1)))
        }
    }))
}

/// [`HALF_BYTES`], and then a failure.
pub(super) fn half() -> Body {
    let half = stream::iter([Ok(Bytes::from_static(&[b'x'; HALF_BYTES]))]);
    Body::from_stream(half.chain(stream::once(async {
        // So that the half is on its way when the rest fails.
        tokio::task::yield_now().await;
        Err(io::Error::other("the body breaks off, as it was asked to"))
    })))
}
