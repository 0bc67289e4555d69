//! The part of a fingerprint that covers the body.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use super::content_coding::{ContentCoding, DecompressionBomb, Undecodable};
use super::json_value::{self, Pointer};
use super::rule::{BodyRule, FingerprintRule};
use super::{AUTO_BYTES_MAX, essence, form, hash_count, hash_fields, multipart};
use crate::digest::Digest;

/// The use of the body's bytes.
pub(super) enum Body {
    /// Nothing of the request counts.
    Unchecked,
    /// The body does not count.
    Ignored,
    /// The bytes are hashed as they arrive, followed by their number, which marks their end.
    Raw { length: u64 },
    /// The body is decompressed and parsed once it is complete.
    Kept {
        coding: Option<ContentCoding>,
        structure: Option<Structure>,
        bytes: Vec<u8>,
        bytes_max: usize,
    },
}

impl Body {
    pub(super) fn ignored(hasher: &mut Digest) -> Self {
        hasher.update(&[BODY_IGNORED]);
        Self::Ignored
    }

    /// Begins with the body of a request that has this one `Content-Type`.
    pub(super) fn new(
        rule: &FingerprintRule,
        pointers: &Arc<[Pointer]>,
        content_type: Option<&HeaderValue>,
        headers: &HeaderMap,
        hasher: &mut Digest,
    ) -> Self {
        let essence = content_type.map(essence).unwrap_or_default();
        let structure = match &rule.body {
            BodyRule::Json if json_value::is_type(essence) => Some(Structure::Json),
            BodyRule::Fields(_) if json_value::is_type(essence) => {
                Some(Structure::Fields(Arc::clone(pointers)))
            }
            BodyRule::Exclude(_) if json_value::is_type(essence) => {
                Some(Structure::Exclude(Arc::clone(pointers)))
            }
            BodyRule::Form if form::is_type(essence) => Some(Structure::Form),
            BodyRule::Multipart | BodyRule::Auto if multipart::is_type(essence) => content_type
                .and_then(|line| multipart::boundary(line.as_bytes()))
                .map(|boundary| Structure::Multipart { boundary: boundary.into() }),
            _ => None,
        };
        // Under `raw` the bytes count, whatever they encode.
        let coding = match &rule.body {
            BodyRule::Raw => None,
            _ => ContentCoding::of(headers),
        };
        if structure.is_none() && coding.is_none() {
            hasher.update(&[BODY_RAW]);
            return Self::Raw { length: 0 };
        }
        let bytes_max = match rule.body {
            BodyRule::Auto => AUTO_BYTES_MAX,
            _ if structure.is_none() => AUTO_BYTES_MAX,
            _ => usize::MAX,
        };
        Self::Kept { coding, structure, bytes: Vec::new(), bytes_max }
    }

    /// Takes the next piece.
    pub(super) fn update(&mut self, chunk: &[u8], hasher: &mut Digest) {
        match self {
            Self::Unchecked | Self::Ignored => {}
            Self::Raw { length } => {
                *length += chunk.len() as u64;
                hasher.update(chunk);
            }
            Self::Kept { bytes, bytes_max, .. } if chunk.len() <= *bytes_max - bytes.len() => {
                bytes.extend_from_slice(chunk);
            }
            Self::Kept { bytes, .. } => {
                // A large upload counts by its bytes, so that it can pass through in a stream.
                let length = (bytes.len() as u64).saturating_add(chunk.len() as u64);
                hasher.update(&[BODY_RAW]).update(bytes).update(chunk);
                *self = Self::Raw { length };
            }
        }
    }

    pub(super) const fn is_kept_whole(&self) -> bool {
        matches!(self, Self::Kept { bytes_max: usize::MAX, .. })
    }

    /// Ends the digest of a request.
    pub(super) fn digest(self, mut hasher: Digest) -> Result<[u8; 32], DecompressionBomb> {
        match self {
            Self::Unchecked => return Ok([0; 32]),
            Self::Ignored => {}
            Self::Raw { length } => {
                hasher.update(&length.to_be_bytes());
            }
            Self::Kept { coding: None, structure, bytes, .. } => {
                hash_kept(structure.as_ref(), &bytes, &mut hasher);
            }
            Self::Kept { coding: Some(coding), structure, bytes, .. } => {
                match coding.decode(&bytes) {
                    // As if it had been sent like this.
                    Ok(decoded) => hash_kept(structure.as_ref(), &decoded, &mut hasher),
                    Err(Undecodable::Bomb) => return Err(DecompressionBomb),
                    Err(Undecodable::Malformed | Undecodable::TooLarge) => {
                        hash_kept(None, &bytes, &mut hasher);
                    }
                }
            }
        }
        Ok(hasher.finalize())
    }

    /// Ends the digest of a request, in which a bomb counts by its bytes.
    pub(super) fn digest_of_any(self, hasher: Digest) -> [u8; 32] {
        let defused = match self {
            Self::Kept { coding: Some(coding), structure, bytes, bytes_max } => {
                let is_bomb = matches!(coding.decode(&bytes), Err(Undecodable::Bomb));
                let coding = (!is_bomb).then_some(coding);
                let structure = structure.filter(|_| !is_bomb);
                Self::Kept { coding, structure, bytes, bytes_max }
            }
            body => body,
        };
        // Nothing else fails.
        defused.digest(hasher).unwrap_or_default()
    }
}

fn hash_kept(structure: Option<&Structure>, bytes: &[u8], hasher: &mut Digest) {
    if structure.and_then(|structure| structure.hash(bytes, hasher)).is_none() {
        hasher.update(&[BODY_RAW]).update(bytes);
        hash_count(hasher, bytes.len());
    }
}

/// The format in which the body is parsed.
pub(super) enum Structure {
    Json,
    Fields(Arc<[Pointer]>),
    Exclude(Arc<[Pointer]>),
    Form,
    Multipart { boundary: Box<[u8]> },
}

impl Structure {
    /// Hashes the parsed body; `None`, with nothing hashed, if it is malformed.
    fn hash(&self, body: &[u8], hasher: &mut Digest) -> Option<()> {
        match self {
            Self::Json => {
                let value = json_value::parse(body)?;
                hasher.update(&[BODY_JSON]);
                value.hash(hasher);
            }
            Self::Fields(pointers) => {
                let document = json_value::parse(body)?;
                hasher.update(&[BODY_FIELDS]);
                for pointer in pointers.iter() {
                    let value = pointer.find(&document);
                    hasher.update(&[u8::from(value.is_some())]);
                    value.inspect(|value| value.hash(hasher));
                }
            }
            Self::Exclude(pointers) => {
                let mut document = json_value::parse(body)?;
                hasher.update(&[BODY_EXCLUDE]);
                pointers.iter().for_each(|pointer| pointer.remove(&mut document));
                document.hash(hasher);
            }
            Self::Form => {
                hasher.update(&[BODY_FORM]);
                hash_fields(hasher, &form::fields(body).collect::<Vec<_>>());
            }
            Self::Multipart { boundary } => {
                let parts = multipart::parts(body, boundary)?;
                hasher.update(&[BODY_MULTIPART]);
                hash_count(hasher, parts.len());
                parts.iter().for_each(|part| part.hash(hasher));
            }
        }
        Some(())
    }
}

const BODY_RAW: u8 = b'r';
const BODY_IGNORED: u8 = b'n';
pub(super) const BODY_JSON: u8 = b'j';
const BODY_FIELDS: u8 = b'p';
const BODY_EXCLUDE: u8 = b'x';
const BODY_FORM: u8 = b'f';
const BODY_MULTIPART: u8 = b'm';
