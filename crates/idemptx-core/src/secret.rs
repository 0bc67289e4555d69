//! Secrets that key record names and fingerprints.

use std::fmt;

/// A secret with its id: whoever does not know it can neither name a record nor test a guess of a
/// body against a fingerprint.
///
/// Its bytes are never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    id: u8,
    key: [u8; 32],
}

impl Secret {
    /// Takes key material of any length (use at least 16 random bytes) under an id that stays with
    /// it when secrets rotate.
    ///
    /// # Errors
    ///
    /// [`WeakSecret`] below 16 bytes.
    pub fn new(id: u8, material: &[u8]) -> Result<Self, WeakSecret> {
        if material.len() < MATERIAL_BYTES_MIN {
            return Err(WeakSecret);
        }
        Ok(Self { id, key: blake3::derive_key(SECRET_CONTEXT, material) })
    }

    /// Its id, stored beside what it keyed.
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

/// A secret of less than 16 bytes.
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
