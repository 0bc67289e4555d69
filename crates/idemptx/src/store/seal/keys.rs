//! Keys, and how they are written down.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding};
use zeroize::Zeroizing;

/// A key with its id.
///
/// Its bytes are never shown by `Debug`, and are overwritten when it is dropped.
#[derive(Clone)]
pub struct SealKey {
    id: u32,
    bytes: Zeroizing<[u8; SealKey::BYTES]>,
}

impl SealKey {
    /// Length of a key.
    pub const BYTES: usize = 32;

    /// Takes 32 random bytes as the key, or derives one from a longer secret, under an id that
    /// stays with it for as long as anything is sealed under it.
    ///
    /// # Errors
    ///
    /// [`InvalidKeys`] below 32 bytes, above 1 KiB, and for the same byte over and over.
    ///
    /// # Security
    ///
    /// Take it from a random source: this is no place for a password, however long.
    pub fn new(id: u32, secret: &[u8]) -> Result<Self, InvalidKeys> {
        let is_monotonous = secret.windows(2).all(|pair| matches!(pair, [a, b] if a == b));
        if secret.len() < Self::BYTES || is_monotonous {
            return Err(InvalidKeys(Fault::Weak));
        }
        if secret.len() > SECRET_BYTES_MAX {
            return Err(InvalidKeys(Fault::Large));
        }
        let bytes = match secret.try_into() {
            Ok(key) => Zeroizing::new(key),
            Err(_) => Zeroizing::new(blake3::derive_key(KEY_CONTEXT, secret)),
        };
        Ok(Self { id, bytes })
    }

    /// Returns the id, which is stored beside all that the key sealed.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn expose(&self) -> &[u8; Self::BYTES] {
        &self.bytes
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKey").field("id", &self.id).field("bytes", &"[redacted]").finish()
    }
}

/// `ID:SECRET`, the secret in hexadecimal or base64.
impl FromStr for SealKey {
    type Err = InvalidKeys;

    fn from_str(text: &str) -> Result<Self, InvalidKeys> {
        let (id, secret) = text.split_once(':').ok_or(InvalidKeys(Fault::Form))?;
        let id = id.parse().map_err(|_| InvalidKeys(Fault::Form))?;
        let secret = hexadecimal(secret).or_else(|| base64(secret));
        Self::new(id, &secret.ok_or(InvalidKeys(Fault::Form))?)
    }
}

/// A key ring: the first key seals, all of them open.
///
/// As text it is one `ID:SECRET` after the other, on lines of their own or between spaces; the id
/// is a number up to 4294967295, the secret has 32 bytes or more in hexadecimal or base64.
/// What follows a `#` on a line is a comment.
///
/// ```console
/// $ echo "1:$(head -c 32 /dev/urandom | base64)" > seal.keys && chmod 600 seal.keys
/// ```
///
/// Its clones are handles to the same keys.
#[derive(Clone)]
pub struct SealKeys(Arc<KeyRing>);

struct KeyRing {
    first: SealKey,
    older: Vec<SealKey>,
}

impl SealKeys {
    /// A ring of one key; more are [added](Self::and).
    #[must_use]
    pub fn new(first: SealKey) -> Self {
        Self(Arc::new(KeyRing { first, older: Vec::new() }))
    }

    /// Adds another key to open with.
    ///
    /// # Errors
    ///
    /// [`InvalidKeys`] if a key of this id is there, or 256 of them are.
    pub fn and(self, older: SealKey) -> Result<Self, InvalidKeys> {
        if self.find(older.id).is_some() {
            return Err(InvalidKeys(Fault::Twice(older.id)));
        }
        if self.0.older.len() + 1 >= KEYS_MAX {
            return Err(InvalidKeys(Fault::Many));
        }
        let mut all = self.0.older.clone();
        all.push(older);
        Ok(Self(Arc::new(KeyRing { first: self.0.first.clone(), older: all })))
    }

    /// Reads a key ring from a file.
    ///
    /// # Errors
    ///
    /// [`InvalidKeys`] if the file cannot be read or does not hold the text of a key ring.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, InvalidKeys> {
        let mut text = Zeroizing::new(String::new());
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .map_err(|error| InvalidKeys(Fault::Unreadable(error)))?;
        if text.len() as u64 == FILE_BYTES_MAX {
            return Err(InvalidKeys(Fault::Large));
        }
        text.parse()
    }

    /// The key that seals.
    #[must_use]
    pub fn first(&self) -> &SealKey {
        &self.0.first
    }

    pub(super) fn find(&self, id: u32) -> Option<&SealKey> {
        std::iter::once(&self.0.first).chain(&self.0.older).find(|key| key.id == id)
    }
}

impl FromStr for SealKeys {
    type Err = InvalidKeys;

    fn from_str(text: &str) -> Result<Self, InvalidKeys> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let mut keys = lines.flat_map(str::split_whitespace).map(str::parse::<SealKey>);
        let first = keys.next().ok_or(InvalidKeys(Fault::None))??;
        keys.try_fold(Self::new(first), |ring, key| ring.and(key?))
    }
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entry(&self.0.first).entries(&self.0.older).finish()
    }
}

/// Keys that cannot be used; the text never repeats them.
#[derive(Debug)]
pub struct InvalidKeys(Fault);

#[derive(Debug)]
enum Fault {
    Form,
    Weak,
    Large,
    None,
    Many,
    Twice(u32),
    Unreadable(std::io::Error),
}

impl fmt::Display for InvalidKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Fault::Form => f.write_str(
                "a key is written `ID:SECRET`: a number, and 32 random bytes in hexadecimal or \
                 base64",
            ),
            Fault::Weak => {
                write!(f, "a key needs {} random bytes or more", SealKey::BYTES)
            }
            Fault::Large => write!(
                f,
                "too long: a key has {SECRET_BYTES_MAX} bytes at most, and a file of keys \
                 {FILE_BYTES_MAX}"
            ),
            Fault::None => f.write_str("no keys: write one `ID:SECRET` on each line"),
            Fault::Many => write!(f, "a key ring holds {KEYS_MAX} keys at most"),
            Fault::Twice(id) => {
                write!(f, "two keys have the id {id}: give the new one an id of its own")
            }
            Fault::Unreadable(_) => f.write_str("the file of keys cannot be read"),
        }
    }
}

impl std::error::Error for InvalidKeys {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Fault::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

fn hexadecimal(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    let mut digits = text.chars().map(|digit| digit.to_digit(16));
    while let Some(high) = digits.next() {
        let pair = high? << 4 | digits.next()??;
        bytes.push(u8::try_from(pair).ok()?);
    }
    Some(bytes)
}

/// Decodes base64 of either alphabet, padded or not.
fn base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.trim_end_matches('=');
    let bytes = Base64Unpadded::decode_vec(text).or_else(|_| Base64UrlUnpadded::decode_vec(text));
    bytes.ok().map(Zeroizing::new)
}

const KEY_CONTEXT: &str = "idemptx 2026-11 v1 seal key";
const SECRET_BYTES_MAX: usize = 1024;
const FILE_BYTES_MAX: u64 = 1 << 20;
const KEYS_MAX: usize = 256;
