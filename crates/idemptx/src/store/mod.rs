//! The stores that come with this crate; the contract is [`idemptx_core::store::Store`].
//!
//! | store | seen by | survives | for |
//! |---|---|---|---|
//! | [`MemoryStore`] | one process | nothing | tests, and services of a single process |

mod memory;

pub use self::memory::{MemoryStore, MemoryStoreBuilder};
