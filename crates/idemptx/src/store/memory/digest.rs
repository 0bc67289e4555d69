//! A hash for what is a digest already.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Makes hashers that share one random seed.
///
/// # Security
///
/// Ids are uniform, but without a [`Secret`](idemptx_core::secret::Secret) anybody can search for
/// keys whose ids agree in the few bits that choose a bucket.
/// Multiplying by a secret seed, and folding the product, makes every bit of the id count for
/// every bit of the hash, at a quarter of SipHash's cost.
#[derive(Clone, Copy)]
pub(in crate::store) struct Seeded {
    start: u64,
    factor: u64,
}

impl Seeded {
    /// Takes its seed from the keys that the standard library draws for its own maps.
    pub(in crate::store) fn new() -> Self {
        let random = RandomState::new();
        Self { start: random.hash_one(0), factor: random.hash_one(1) | 1 }
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { hash: self.start, factor: self.factor }
    }
}

/// Folds eight bytes at a time into 64 bits.
pub(in crate::store) struct Folded {
    hash: u64,
    factor: u64,
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.hash = fold(self.hash ^ word, self.factor);
    }

    /// Ignored, because all ids have the same length.
    fn write_usize(&mut self, _length: usize) {}

    /// Folds once more, so that the last word counts as much as the first.
    fn finish(&self) -> u64 {
        fold(self.hash, self.factor)
    }
}

/// Both halves of the product, so that no bit is lost.
fn fold(word: u64, factor: u64) -> u64 {
    let product = u128::from(word) * u128::from(factor);
    (product as u64) ^ ((product >> 64) as u64)
}
