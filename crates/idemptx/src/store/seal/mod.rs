//! Results that are encrypted before they reach a store.
//!
//! ```
//! use idemptx::store::MemoryStore;
//! use idemptx::store::seal::{SealKeys, Sealed};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The first key seals. The others open what was sealed before.
//! let keys: SealKeys = "
//!     2:SyiSg7E1oGMzBj/VDzjSCVUQp/ouT1A99cU41oXE2PE=
//!     1:4f6c64206b6579732073746179207468657265207768696c65206e6565646564
//! "
//! .parse()?;
//! let store = Sealed::new(MemoryStore::new(), keys);
//! # Ok(()) }
//! ```
//!
//! # What is sealed
//!
//! The payload of every result: status, headers, body and trailers of the response.
//! A reader of the store, its backups or its replication sees the length of a result, and nothing
//! else.
//! A writer to the store can neither change a response nor move it to another key, another
//! request or another state: what does not open is refused as
//! [`Corrupt`](idemptx_core::store::ErrorKind::Corrupt), which is neither executed nor deleted.
//!
//! What is **not** sealed, because stores work with it or compare it: the record's id and the
//! request's fingerprint (digests; a [secret](idemptx_core::secret) in the policy keys them, and
//! should be there whenever sealing is), the state, the token, the fence, the attempt and the
//! times.
//! Nor can sealing keep anybody who can write to the store from deleting a record, or from putting
//! an older record of the same key back as a whole.
//! In the process' own memory responses are as they were.
//!
//! # Keys
//!
//! A key has an id, which is stored beside what it seals, and 32 bytes; see [`SealKeys`].
//! To rotate, put a new key first and leave the old one after it until the last record that it
//! sealed has expired, which takes as long as the policy's `retain`.
//! Where several processes share a store, give all of them the new key in second place before any
//! gets it in the first.
//!
//! # Adopting
//!
//! Records from before sealing do not open.
//! [`Seal::accept_unsealed`] lets them pass until they have expired; as long as it is on, a writer
//! to
//! the store can forge results.
//!
//! # The format
//!
//! Integers are big-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | format: `0xE1`; `0xE0` to `0xEF` are reserved for its successors, and no response begins so |
//! | 1 | flags: bit 0, compressed; the others 0 |
//! | 2..6 | id of the key |
//! | 6..30 | nonce, random |
//! | 30..n-16 | what was sealed, encrypted with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) |
//! | n-16..n | authentication tag |
//!
//! The associated data are bytes 0..6 of the above, then of the [record](idemptx_core::record):
//! the state's letter (1 byte), the id (32), the token (16), and the fingerprint as the record has
//! it: configuration (4), digest (32), binding (16).
//!
//! What was sealed is the payload.
//! If compressed, it is the payload's length (4 bytes) and one Zstandard frame (RFC 8878); the
//! length is at most 64 MiB, and a reader must look at it before it inflates anything.
//! A writer compresses, at level 1, what has more than 1 KiB and gets smaller by an eighth or more.
//!
//! The key is the 32 bytes themselves; from a longer secret it is derived with BLAKE3's
//! `derive_key` under the context `idemptx 2026-11 v1 seal key`.
//! An outcome that is unknown and a response that has expired have no payload, and nothing to seal.
//!
//! # Security
//!
//! A compressed length says something about the content.
//! Where an attacker can see lengths in the store *and* have text of his own put beside a secret in
//! the same response, turn [compression](Seal::compress) off.
//!

mod envelope;
mod keys;
mod sealed;

pub use self::envelope::Unopened;
pub use self::keys::{InvalidKeys, SealKey, SealKeys};
pub use self::sealed::{Seal, Sealed};

#[cfg(test)]
mod tests;
