//! Secrets that key record names and fingerprints.

use std::fmt;

/// A secret with an id, which keys record names and fingerprints.
///
/// Only its holder can name a record, or test a guess of a body against a fingerprint.
/// `Debug` never shows the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    id: u8,
    key: [u8; 32],
}

impl Secret {
    /// Creates a secret from key material (32 random bytes are best) and an id that stays the same
    /// when secrets rotate.
    ///
    /// # Errors
    ///
    /// Returns [`WeakSecret`] for material of less than 16 bytes.
    pub fn new(id: u8, material: &[u8]) -> Result<Self, WeakSecret> {
        if material.len() < MATERIAL_BYTES_MIN {
            return Err(WeakSecret);
        }
        Ok(Self { id, key: blake3::derive_key(SECRET_CONTEXT, material) })
    }

    /// Returns the id, which is stored with everything the secret keyed.
    #[must_use]
    pub const fn id(&self) -> u8 {
        self.id
    }

    pub(crate) const fn expose(&self) -> &[u8; 32] {
        &self.key
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).field("key", &"[redacted]").finish()
    }
}

/// The error for a secret of less than 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeakSecret;

impl fmt::Display for WeakSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a secret needs at least {MATERIAL_BYTES_MIN} bytes; generate 32 random ones")
    }
}

impl std::error::Error for WeakSecret {}

const SECRET_CONTEXT: &str = "idemptx 2026-11 v1 secret";
const MATERIAL_BYTES_MIN: usize = 16;
