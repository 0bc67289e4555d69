//! The Redis store's conversation with the server, for drivers with connections of their own kind.
//!
//! A [step](Step) of the [store contract](idemptx_core::store) is a short dialogue: a [`Command`]
//! goes out, a [`Reply`] comes in, and the step either asks something else or has its verdict.
//! `RedisStore` holds these dialogues over its own connections; the Python package holds them
//! inside asyncio's loop.
//!
//! ```
//! use idemptx::store::redis::protocol::{Command, Layout, Next, Reply, Step};
//! use idemptx_core::store::StoreError;
//!
//! /// Takes a step over a connection, given as what answers a command.
//! fn take<S: Step>(
//!     mut step: S,
//!     layout: &Layout,
//!     server_micros: u64,
//!     mut ask: impl FnMut(&Command) -> Reply,
//! ) -> Result<S::Verdict, StoreError> {
//!     let mut command = step.begin(layout, server_micros);
//!     loop {
//!         match step.answer(layout, ask(&command)) {
//!             Next::Ask(next) => command = next,
//!             Next::Done(verdict) => return verdict,
//!         }
//!     }
//! }
//!
//! # use idemptx::store::redis::protocol::LookupStep;
//! # use idemptx_core::key::RecordId;
//! let step = LookupStep::new(RecordId::from_bytes([7; 32]));
//! let found = take(step, &Layout::new("idem:"), 0, |_| Reply::Nil);
//! assert!(matches!(found, Ok(None)));
//! ```
//!
//! A dialogue that its connection did not live to the end of is begun again: every step may be
//! taken twice.
//!
//! For a server without scripts (or a test double of one) each step can also be taken as a
//! transaction: [read](Read) under `WATCH`, [`decide`](Step::decide), write in `MULTI`, and begin
//! again if that was not executed.

#[cfg(feature = "redis")]
pub(super) mod acknowledgement;
pub mod check;
mod claim;
pub mod clock;
pub mod cluster;
mod command;
#[cfg(feature = "redis")]
pub(super) mod epoch;
mod layout;
mod lease;
mod list;
mod lookup;
mod read;
mod refusal;
mod reply;
pub mod rights;
mod scripts;
pub mod sentinel;
mod settle;
mod stored;
mod wait_replicas;
mod watch;

use idemptx_core::store::StoreError;

pub use self::claim::ClaimStep;
pub use self::command::Command;
pub use self::layout::Layout;
pub use self::lease::{ReleaseStep, RenewStep};
pub use self::list::{ListNext, ListStep};
pub use self::lookup::LookupStep;
pub use self::read::Read;
#[cfg(feature = "redis")]
pub(super) use self::refusal::{has_code, refused};
pub use self::reply::Reply;
pub use self::settle::SettleStep;
pub use self::wait_replicas::WaitReplicas;
pub use self::watch::WatchStep;

/// A step as a dialogue, or as a transaction.
pub trait Step: Sized {
    /// Result of the step.
    type Verdict;

    /// Begins the conversation, also again after a lost connection.
    ///
    /// `micros` is the server's clock, as well as the caller knows it, in microseconds since the
    /// Unix epoch; read again when the command is sent again after a lost connection.
    /// It dates nothing but a claim that finds no record, where an error of seconds does no harm.
    fn begin(&mut self, layout: &Layout, micros: u64) -> Command;

    /// Takes the reply to the last command.
    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<Self::Verdict>;

    /// The step as a transaction: a pure function of what was read under `WATCH`.
    fn decide(&self, layout: &Layout, read: Read) -> Decision<Self::Verdict>;
}

/// Continuation after a reply.
#[derive(Debug)]
pub enum Next<T> {
    /// Send this command next, on the same connection or another.
    Ask(Command),
    /// The end of the dialogue.
    Done(Result<T, StoreError>),
}

/// Writes and verdict of a transaction.
#[derive(Debug)]
pub struct Decision<T> {
    /// To be sent in one `MULTI`; nothing if the verdict stands as it is.
    ///
    /// A `PUBLISH` among them is a hint, whose failure fails nothing.
    pub writes: Vec<Command>,
    /// The verdict, if the writes were executed.
    pub verdict: Result<T, StoreError>,
}

impl<T> Decision<T> {
    /// A verdict that needs no writing.
    fn stands(verdict: Result<T, StoreError>) -> Self {
        Self { writes: Vec::new(), verdict }
    }
}
