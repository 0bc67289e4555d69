//! The ids of records, and the other digests that name an operation.

use std::fmt;

use http::HeaderName;

use super::{FieldLines, Key, Scope};
use crate::digest::{Absorb, Purpose, first};
use crate::secret::Secret;

/// The name of a record in a store: a digest of scope and key, keyed if there is a secret.
///
/// The digest reveals neither of them, and no two pairs share an id.
/// The text form has 32 hexadecimal digits for the scope, a colon, and 32 for the key within the
/// scope, so that an operator can find all records of a scope.
///
/// # Security
///
/// With a [`Secret`], readers of the store cannot test guesses of a key, and clients cannot choose
/// keys that land on a chosen id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId([u8; RecordId::BYTES]);

impl RecordId {
    /// The length of an id.
    pub const BYTES: usize = 32;

    /// Derives the id of the record of `key` in `scope`.
    ///
    /// `route` is the method and the raw path if the policy's `key_space` is `route`.
    #[must_use]
    pub fn new(scope: &Scope, key: &Key, route: Option<(&str, &str)>, names: &Names) -> Self {
        let space = match route {
            None if scope.as_bytes().is_empty() => names.shared_space,
            _ => names.space(scope, route),
        };
        let name = names.key.digest(&[], &[&space, key.as_str().as_bytes()]);
        let name: [u8; 16] = first(&name);
        let space: [u8; 16] = first(&space);
        Self::of_halves(space, name)
    }

    /// Derives the id of the record of a step of this operation, by the step's label.
    ///
    /// The id differs from that of every operation and every other step.
    #[must_use]
    pub fn step(&self, label: &str) -> Self {
        let digest = Purpose::new(STEP_CONTEXT, None).digest(&[], &[&self.0, label.as_bytes()]);
        let name: [u8; 16] = first(&digest);
        Self::of_halves(self.steps_scope(), name)
    }

    /// Derives the half of the ids of this operation's steps that names their scope.
    ///
    /// The steps of an operation are a scope of their own: labels are the application's, so only
    /// a listing of that scope finds them all.
    #[must_use]
    pub fn steps_scope(&self) -> [u8; 16] {
        first(&Purpose::new(STEPS_CONTEXT, None).digest(&[], &[&self.0]))
    }

    fn of_halves(space: [u8; 16], name: [u8; 16]) -> Self {
        let mut id = [0; Self::BYTES];
        let (first, second) = id.split_at_mut(space.len());
        first.copy_from_slice(&space);
        second.copy_from_slice(&name);
        Self(id)
    }

    /// Creates an id from the bytes of a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Returns the half that names the scope.
    #[must_use]
    pub fn scope_bytes(&self) -> [u8; 16] {
        let mut half = [0; 16];
        for (to, from) in half.iter_mut().zip(&self.0) {
            *to = *from;
        }
        half
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            if position == 16 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({self})")
    }
}

impl std::str::FromStr for RecordId {
    type Err = InvalidRecordId;

    fn from_str(text: &str) -> Result<Self, InvalidRecordId> {
        let (scope, key) = text.split_once(':').ok_or(InvalidRecordId)?;
        let mut id = [0; Self::BYTES];
        if scope.len() != 32 || key.len() != 32 {
            return Err(InvalidRecordId);
        }
        let digits = scope.bytes().chain(key.bytes()).map(|digit| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(InvalidRecordId),
        });
        for (position, digit) in digits.enumerate() {
            if let Some(byte) = id.get_mut(position / 2) {
                *byte = *byte << 4 | digit?;
            }
        }
        Ok(Self(id))
    }
}

/// The error of parsing a text that is no [`RecordId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRecordId;

impl fmt::Display for InvalidRecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record id is 32 lower-case hexadecimal digits, a colon, and 32 more")
    }
}

impl std::error::Error for InvalidRecordId {}

/// The derivation of record ids, operation digests and keys in one namespace; build it once.
///
/// The naming secret never rotates: an operation has one record id, one operation digest and one
/// derived key per label for as long as its record is kept.
#[derive(Clone)]
pub struct Names {
    namespace: Box<str>,
    scope: Purpose,
    key: Purpose,
    derive: Purpose,
    operation: Purpose,
    binding: Purpose,
    meter: Purpose,
    /// The digest of the shared scope, computed once because most records are in it.
    shared_space: [u8; 32],
}

impl Names {
    /// Creates the names of a namespace under the naming secret.
    ///
    /// # Security
    ///
    /// Without a secret, a reader of the store can test guesses of keys.
    #[must_use]
    pub fn new(namespace: &str, secret: Option<&Secret>) -> Self {
        let mut names = Self {
            namespace: namespace.into(),
            scope: Purpose::new(SCOPE_CONTEXT, secret),
            key: Purpose::new(KEY_CONTEXT, secret),
            derive: Purpose::new(DERIVE_CONTEXT, secret),
            operation: Purpose::new(OPERATION_CONTEXT, secret),
            binding: Purpose::new(BINDING_CONTEXT, secret),
            meter: Purpose::new(METER_CONTEXT, secret),
            shared_space: [0; 32],
        };
        names.shared_space = names.space(&Scope::shared(), None);
        names
    }

    /// Derives a key for a call to another system, named by `label`.
    ///
    /// The key depends on the namespace, naming secret, scope, binding, key and label alone, so
    /// that every attempt of an operation derives the same one.
    /// The binding is the [digest](Self::binding) of the headers to which the client's key is
    /// bound, empty without such headers: two principals who chose the same key derive different
    /// ones.
    #[must_use]
    pub fn derive(&self, scope: &Scope, binding: &[u8], key: &Key, label: &str) -> String {
        let (namespace, key) = (self.namespace.as_bytes(), key.as_str().as_bytes());
        let parts = [namespace, scope.as_bytes(), binding, key, label.as_bytes()];
        let derived: [u8; DERIVED_BYTES] = first(&self.derive.digest(&[], &parts));
        derived.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the digest of the headers to which a key is bound; empty without such headers.
    pub(crate) fn binding(&self, bind: &[HeaderName], lines: &FieldLines) -> Vec<u8> {
        if bind.is_empty() {
            return Vec::new();
        }
        let mut names: Vec<_> = bind.iter().collect();
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        let mut digest = self.binding.begin_short();
        for name in names {
            let values = || lines.iter().filter(|(of, _)| of == name);
            digest.part(name.as_str().as_bytes());
            digest.absorb(&(values().count() as u64).to_be_bytes());
            values().for_each(|(_, value)| digest.part(value.as_bytes()));
        }
        digest.finalize().to_vec()
    }

    /// Returns the name under which the new keys of a principal are counted.
    ///
    /// It covers neither the key nor the route, because a client chooses both.
    pub(crate) fn meter_id(&self, scope: &Scope, binding: &[u8]) -> [u8; 16] {
        let parts = [self.namespace.as_bytes(), scope.as_bytes(), binding];
        first(&self.meter.digest(&[], &parts))
    }

    /// Returns the digest of an HTTP operation: its method and its path as the client sent it.
    pub(crate) fn http_operation(&self, method: &str, path: &str) -> [u8; 16] {
        self.operation_digest(KIND_HTTP, &[method.as_bytes(), path.as_bytes()])
    }

    /// Returns the digest of all work that is not an HTTP request.
    pub(crate) fn work_operation(&self) -> [u8; 16] {
        self.operation_digest(KIND_WORK, &[])
    }

    fn operation_digest(&self, kind: u8, parts: &[&[u8]]) -> [u8; 16] {
        first(&self.operation.digest(&[kind], parts))
    }

    fn space(&self, scope: &Scope, route: Option<(&str, &str)>) -> [u8; 32] {
        let (namespace, scope) = (self.namespace.as_bytes(), scope.as_bytes());
        match route {
            None => self.scope.digest(&[], &[namespace, scope]),
            Some((method, path)) => {
                self.scope.digest(&[], &[namespace, scope, method.as_bytes(), path.as_bytes()])
            }
        }
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

const SCOPE_CONTEXT: &str = "idemptx 2026-11 v1 record: scope";
const KEY_CONTEXT: &str = "idemptx 2026-11 v1 record: key in scope";
const STEPS_CONTEXT: &str = "idemptx 2026-11 v1 record: steps of an operation";
const STEP_CONTEXT: &str = "idemptx 2026-11 v1 record: step";
const DERIVE_CONTEXT: &str = "idemptx 2026-11 v1 derived key";
const OPERATION_CONTEXT: &str = "idemptx 2026-11 v1 operation";
const BINDING_CONTEXT: &str = "idemptx 2026-11 v1 derived key: binding";
const METER_CONTEXT: &str = "idemptx 2026-11 v1 meter of new keys";
const KIND_HTTP: u8 = b'h';
const KIND_WORK: u8 = b'w';
/// The length of a derived key.
///
/// 160 bits are unguessable, and their 40 hexadecimal digits fit the 45 bytes that the strictest
/// peers accept.
pub(super) const DERIVED_BYTES: usize = 20;
