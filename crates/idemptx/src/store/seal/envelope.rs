//! The bytes of a sealed payload, as the [module](super) lays them out.

use std::cell::RefCell;
use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::store::{ClaimInfo, RecordStatus, RecordSummary};
use zstd::bulk::{Compressor, Decompressor};

use super::keys::{SealKey, SealKeys};

/// Associated data of a sealed payload, without which it does not open.
#[derive(Clone, Copy, Debug)]
pub(super) struct SealContext<'a> {
    id: &'a RecordId,
    token: &'a Token,
    fingerprint: &'a Fingerprint,
    state: State,
}

impl<'a> SealContext<'a> {
    /// The record that a lease is settled as.
    pub(super) const fn settling(lease: &'a Lease, state: State) -> Self {
        let Lease { id, token, fingerprint, .. } = lease;
        Self { id, token, fingerprint, state }
    }

    /// A record that was read.
    pub(super) const fn of(record: &'a Record) -> Self {
        let Record { id, token, fingerprint, state, .. } = record;
        Self { id, token, fingerprint, state: *state }
    }

    /// A record that was listed.
    pub(super) const fn listed(entry: &'a RecordSummary) -> Self {
        let state = match entry.status {
            RecordStatus::Completed => State::Completed,
            RecordStatus::NotReplayable => State::NotReplayable,
            RecordStatus::Unknown => State::Unknown,
            RecordStatus::ResponseExpired => State::ResponseExpired,
            // Orphans too.
            _ => State::Running,
        };
        let ClaimInfo { token, fingerprint, .. } = &entry.claim;
        Self { id: &entry.id, token, fingerprint, state }
    }

    /// The associated data; every part has one length, so that no two owners have the same.
    fn associated(&self, head: &[u8]) -> Vec<u8> {
        let Fingerprint { config, digest, binding, operation, .. } = self.fingerprint;
        let mut data = Vec::with_capacity(ASSOCIATED_BYTES);
        data.extend_from_slice(head);
        data.push(self.state.letter());
        data.extend_from_slice(self.id.as_bytes());
        data.extend_from_slice(self.token.as_bytes());
        data.extend_from_slice(&config.to_be_bytes());
        data.extend_from_slice(digest);
        data.extend_from_slice(binding);
        data.extend_from_slice(operation);
        debug_assert_eq!(data.len(), ASSOCIATED_BYTES, "every part has one length");
        data
    }
}

/// Seals a payload under a key; `None` if the cipher refuses, which it does to none of this size.
pub(super) fn seal(
    key: &SealKey,
    owner: SealContext<'_>,
    payload: &[u8],
    compress: bool,
    nonce: &[u8; NONCE_BYTES],
) -> Option<Bytes> {
    let compressed = if compress { compressed(payload) } else { None };
    let flags = if compressed.is_some() { COMPRESSED } else { 0 };
    let plain = compressed.as_deref().unwrap_or(payload);
    let mut envelope = Vec::with_capacity(PLAIN_AT + plain.len() + TAG_BYTES);
    envelope.extend_from_slice(&[FORMAT, flags]);
    envelope.extend_from_slice(&key.id().to_be_bytes());
    let associated = owner.associated(&envelope);
    envelope.extend_from_slice(nonce);
    envelope.extend_from_slice(plain);
    let inside = envelope.get_mut(PLAIN_AT..)?;
    let tag = XChaCha20Poly1305::new(key.expose().into())
        .encrypt_inout_detached(&XNonce::from(*nonce), &associated, inside.into())
        .ok()?;
    envelope.extend_from_slice(&tag);
    Some(envelope.into())
}

/// Opens what [`seal`] has made for this owner.
///
/// # Security
///
/// Total over arbitrary bytes: nothing is inflated, and nothing handed out, before the tag was
/// found to fit.
pub(super) fn open(
    keys: &SealKeys,
    owner: SealContext<'_>,
    envelope: &[u8],
) -> Result<Bytes, Unopened> {
    match envelope.first() {
        Some(&FORMAT) => {}
        Some(format) if is_sealed(*format) => return Err(Unopened::Format(*format)),
        _ => return Err(Unopened::Unsealed),
    }
    let (head, rest) = envelope.split_first_chunk::<HEAD_BYTES>().ok_or(Unopened::Short)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(Unopened::Short)?;
    let (inside, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Unopened::Short)?;
    let [_, flags, id @ ..] = *head;
    if flags & !COMPRESSED != 0 {
        return Err(Unopened::Format(FORMAT));
    }
    let id = u32::from_be_bytes(id);
    let key = keys.find(id).ok_or(Unopened::UnknownKey(id))?;
    let mut plain = inside.to_vec();
    XChaCha20Poly1305::new(key.expose().into())
        .decrypt_inout_detached(
            &XNonce::from(*nonce),
            &owner.associated(head),
            plain.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .map_err(|_| Unopened::Foreign(id))?;
    if flags & COMPRESSED == 0 { Ok(plain.into()) } else { inflated(&plain) }
}

/// Returns true if this first byte marks a sealed payload, in this format or in a later one.
pub(super) const fn is_sealed(first: u8) -> bool {
    first & 0xF0 == FORMAT & 0xF0
}

/// The payload's length and its Zstandard frame, where that pays.
fn compressed(payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok()?;
    if payload.len() <= COMPRESSED_ABOVE_BYTES || length > INFLATED_BYTES_MAX {
        return None;
    }
    let frame = COMPRESSOR.with(|it| it.try_borrow_mut().ok()?.as_mut()?.compress(payload).ok())?;
    let whole = [&length.to_be_bytes()[..], &frame].concat();
    (whole.len() <= payload.len() - payload.len() / 8).then_some(whole)
}

fn inflated(plain: &[u8]) -> Result<Bytes, Unopened> {
    let (length, frame) = plain.split_first_chunk::<LENGTH_BYTES>().ok_or(Unopened::Short)?;
    let length = u32::from_be_bytes(*length);
    if length > INFLATED_BYTES_MAX {
        return Err(Unopened::TooLarge(length));
    }
    let capacity = usize::try_from(length).map_err(|_| Unopened::TooLarge(length))?;
    let inflate = |it: &RefCell<Option<Decompressor<'_>>>| {
        it.try_borrow_mut().ok()?.as_mut()?.decompress(frame, capacity).ok()
    };
    match DECOMPRESSOR.with(inflate) {
        Some(payload) if payload.len() == capacity => Ok(payload.into()),
        _ => Err(Unopened::Malformed),
    }
}

thread_local! {
    // To make one costs more than to compress a response of some kilobytes.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> =
        RefCell::new(Compressor::new(LEVEL).ok());
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> =
        RefCell::new(Decompressor::new().ok());
}

/// Reason for which a payload does not open; the source of a
/// [`Corrupt`](idemptx_core::store::ErrorKind::Corrupt) error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unopened {
    /// Not sealed.
    Unsealed,
    /// Sealed in another format.
    Format(u8),
    /// Truncated.
    Short,
    /// Sealed under a key that the ring does not have.
    UnknownKey(u32),
    /// Sealed for another record, or altered, under the key of this id.
    Foreign(u32),
    /// Larger than allowed when inflated: this many bytes.
    TooLarge(u32),
    /// Opened, with invalid contents.
    Malformed,
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsealed => f.write_str(
                "a result that is not sealed: if it is from before sealing, accept unsealed \
                 results until the last of them has expired; if not, somebody else wrote it",
            ),
            Self::Format(format) => write!(
                f,
                "a result sealed in format {format:#04x} with features that this release does \
                 not know: upgrade it"
            ),
            Self::Short => f.write_str(
                "a sealed result that is cut short: restore the record from a backup, or find out \
                 about the operation and delete the record from the store",
            ),
            Self::UnknownKey(id) => write!(
                f,
                "a result sealed under key {id}, which is not in the key ring: put it back, \
                 after the first, until the last record under it has expired"
            ),
            Self::Foreign(id) => write!(
                f,
                "a result that does not open under key {id}: it was changed, or moved here from \
                 another record, or that id stands for another key here; find out who writes to \
                 the store"
            ),
            Self::TooLarge(bytes) => write!(
                f,
                "a sealed result of {bytes} bytes, more than this release inflates: upgrade it"
            ),
            Self::Malformed => f.write_str("a sealed result whose compressed content is damaged"),
        }
    }
}

impl std::error::Error for Unopened {}

/// No stored response begins with it: theirs is 1 (RFC 9292, a known-length response).
const FORMAT: u8 = 0xE1;
const COMPRESSED: u8 = 1;
const HEAD_BYTES: usize = 6;
pub(super) const NONCE_BYTES: usize = 24;
const PLAIN_AT: usize = HEAD_BYTES + NONCE_BYTES;
const TAG_BYTES: usize = 16;
const LENGTH_BYTES: usize = 4;
const ASSOCIATED_BYTES: usize = HEAD_BYTES + 1 + RecordId::BYTES + Token::BYTES + 4 + 32 + 16 + 16;

/// Below it, a frame's own head eats up what it saves.
const COMPRESSED_ABOVE_BYTES: usize = 1024;
/// Maximum size of a payload to compress.
const INFLATED_BYTES_MAX: u32 = 64 << 20;
/// The quickest of the ordinary levels: a response is compressed while its client waits.
const LEVEL: i32 = 1;
