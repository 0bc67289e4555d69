//! The parts of a state that its successors share, each described once.
//!
//! A state differs from the one before in one client or step, and to describe a state is most of
//! what an exploration does.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

/// A part that never changes, with a digest of its description.
#[derive(Clone)]
pub(super) struct Shared<T>(Rc<(T, [u8; 16])>);

impl<T: fmt::Debug> From<T> for Shared<T> {
    fn from(part: T) -> Self {
        let digest = digest(&part);
        Self(Rc::new((part, digest)))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

/// Shows the digest, by which states are told apart.
impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", u128::from_be_bytes(self.0.1))
    }
}

/// Returns a digest of what a value shows of itself.
pub(super) fn digest(value: &impl fmt::Debug) -> [u8; 16] {
    let digest = blake3::hash(format!("{value:?}").as_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&digest.as_bytes()[..16]);
    short
}
