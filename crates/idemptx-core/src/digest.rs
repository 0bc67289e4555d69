//! Hashing for one purpose: keyed, length-prefixed, and in one pass where there is little to hash.

use std::fmt;

use crate::secret::Secret;

/// A BLAKE3 key for one purpose, derived from a secret or from none: digests for different purposes
/// never match.
#[derive(Clone)]
pub(crate) struct Purpose([u8; 32]);

impl Purpose {
    /// Derives the key; this costs as much as a hash, so do it once.
    pub(crate) fn new(context: &str, secret: Option<&Secret>) -> Self {
        let material = secret.map_or(&[][..], |secret| secret.expose());
        Self(blake3::derive_key(context, material))
    }

    /// Returns the digest of short parts, each with its length, after bytes as they are.
    ///
    /// The same as [`begin`](Self::begin) with these parts, without allocating where they are
    /// short.
    pub(crate) fn digest(&self, plain: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut digest = self.begin_short();
        digest.absorb(plain);
        parts.iter().for_each(|part| digest.part(part));
        digest.finalize()
    }

    /// Begins a digest of parts that are most likely short.
    pub(crate) const fn begin_short(&self) -> ShortDigest<'_> {
        ShortDigest { purpose: self, buffer: [0; ON_STACK_BYTES], length: 0, long: None }
    }

    /// Begins a digest.
    pub(crate) fn begin(&self) -> Digest {
        Digest { purpose: self.clone(), short: Vec::with_capacity(SHORT_BYTES_MIN), long: None }
    }
}

/// Shows nothing of the key.
impl fmt::Debug for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Purpose")
    }
}

/// A digest that is being computed.
///
/// The state of BLAKE3 takes two kilobytes, which does not pay for the few hundred bytes that most
/// inputs have.
#[derive(Clone)]
pub(crate) struct Digest {
    purpose: Purpose,
    short: Vec<u8>,
    long: Option<Box<blake3::Hasher>>,
}

impl Digest {
    /// Adds bytes as they are.
    #[inline]
    pub(crate) fn update(&mut self, bytes: &[u8]) -> &mut Self {
        if self.long.is_none() && self.short.len() + bytes.len() <= SHORT_BYTES_MAX {
            self.short.extend_from_slice(bytes);
        } else {
            let begin = || Box::new(blake3::Hasher::new_keyed(&self.purpose.0));
            let hasher = self.long.get_or_insert_with(begin);
            // Empty once it was added.
            hasher.update(&std::mem::take(&mut self.short)).update(bytes);
        }
        self
    }

    /// Returns the digest of everything added.
    pub(crate) fn finalize(&self) -> [u8; 32] {
        match &self.long {
            Some(hasher) => hasher.finalize().into(),
            None => blake3::keyed_hash(&self.purpose.0, &self.short).into(),
        }
    }
}

impl Absorb for Digest {
    fn absorb(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// A digest that takes no memory as long as its input is short.
pub(crate) struct ShortDigest<'a> {
    purpose: &'a Purpose,
    buffer: [u8; ON_STACK_BYTES],
    length: usize,
    long: Option<Digest>,
}

impl ShortDigest<'_> {
    /// Returns the digest of everything added.
    pub(crate) fn finalize(&self) -> [u8; 32] {
        match &self.long {
            Some(digest) => digest.finalize(),
            None => blake3::keyed_hash(&self.purpose.0, self.absorbed()).into(),
        }
    }

    fn absorbed(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }
}

impl Absorb for ShortDigest<'_> {
    fn absorb(&mut self, bytes: &[u8]) {
        if let Some(digest) = &mut self.long {
            digest.update(bytes);
        } else if let Some(place) = self.buffer.get_mut(self.length..self.length + bytes.len()) {
            place.copy_from_slice(bytes);
            self.length += bytes.len();
        } else {
            let mut digest = self.purpose.begin();
            digest.update(self.absorbed()).update(bytes);
            self.long = Some(digest);
        }
    }
}

/// A digest that takes bytes.
pub(crate) trait Absorb {
    /// Adds bytes as they are.
    fn absorb(&mut self, bytes: &[u8]);

    /// Adds a part with its length, so that no other sequence of parts gives the same bytes.
    fn part(&mut self, part: &[u8]) {
        self.absorb(&(part.len() as u64).to_be_bytes());
        self.absorb(part);
    }
}

/// Returns the first bytes of a digest.
pub(crate) fn first<const N: usize>(digest: &[u8; 32]) -> [u8; N] {
    digest.first_chunk().copied().unwrap_or([0; N])
}

/// One chunk of BLAKE3, which is hashed without a tree.
const SHORT_BYTES_MAX: usize = 1024;
/// Holds the head and the body of most requests.
const SHORT_BYTES_MIN: usize = 512;
/// Holds the parts that name most operations.
const ON_STACK_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_are_hashed_alike() {
        let purpose = Purpose::new("test", None);
        for length in [0, 1, 63, 64, 1023, 1024, 1025, 5000] {
            let bytes = vec![7; length];
            let mut at_once = purpose.begin();
            at_once.update(&bytes);
            let mut piecemeal = purpose.begin();
            bytes.chunks(10).for_each(|piece| {
                piecemeal.update(piece);
            });
            assert_eq!(at_once.finalize(), piecemeal.finalize());
            let expected: [u8; 32] = blake3::keyed_hash(&purpose.0, &bytes).into();
            assert_eq!(at_once.finalize(), expected);
        }
    }

    #[test]
    fn parts_are_hashed_alike_on_the_stack_and_one_by_one() {
        let purpose = Purpose::new("test", None);
        for length in [0, 1, 100, 230, 231, 232, 240, 247, 248, 256, 1024, 5000] {
            let bytes = vec![7; length];
            let mut one_by_one = purpose.begin();
            one_by_one.update(b"h");
            one_by_one.part(b"POST");
            one_by_one.part(&bytes);
            assert_eq!(purpose.digest(b"h", &[b"POST", &bytes]), one_by_one.finalize(), "{length}");
        }
    }
}
