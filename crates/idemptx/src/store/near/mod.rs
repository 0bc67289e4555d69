//! A cache of results in this process, so that a replay needs no round trip.
//!
//! ```
//! use std::time::Duration;
//! use idemptx::store::MemoryStore;
//! use idemptx::store::near::{NearCache, NearLimits};
//!
//! # let remote = MemoryStore::new();
//! let store = NearCache::new(remote, NearLimits::bytes(64 << 20).hold(Duration::from_secs(1)));
//! ```
//!
//! The cache holds results, never a claim: the store decides each time if a request may execute.
//! A claim that names no record to replace, and a lookup, are answered from it; everything else
//! goes to the store, and drops what is held of the record.
//! So it can make a retry quicker, and answer one while the store cannot be reached, but never
//! cause an execution.
//!
//! # How long
//!
//! A result is held for the hold time, one second unless set, from the moment at which the store
//! was asked for it; one that this process settled, no longer than its response is retained.
//! How much is left of another's retention a store does not say: such a one may outlive it by the
//! hold time.
//! An unknown outcome is not held, because it is going to be resolved.
//!
//! A settled record never changes by itself, but it can be replaced or removed: by a request that
//! may replace a stored 400 or 422 (the policy's `rebind`), by a probe, by an operator.
//! What this process does is noticed at once.
//! What another one does is noticed when the hold time is over: until then a retry may get the
//! former answer.
//! Where nothing of the kind happens, or is not urgent, hold longer.
//!
//! # Limits
//!
//! Beyond its bytes the oldest goes first.
//! They are shared out among 16 parts: what is larger than one part is not held.
//!
//! # Together with sealing
//!
//! `NearCache` around `Sealed` holds responses in the clear, and a replay costs no decryption;
//! `AnyStore` always puts them so.
//! `Sealed` around `NearCache` holds them sealed, and opens them with each replay.

mod cache;
mod near_cache;

pub use self::near_cache::{NearCache, NearLimits};
