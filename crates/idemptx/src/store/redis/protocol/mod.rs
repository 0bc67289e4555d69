//! What the Redis store says and hears, without a connection: for drivers that have their own.
//!
//! A step of the [store contract](idemptx_core::store) is a short dialogue: a [`Command`] goes out,
//! a [`Reply`] comes in, and the step either asks something else or has its verdict.
//! [`RedisStore`](super::RedisStore) holds these dialogues over its own connections; the Python
//! package holds them inside asyncio's loop.
//!
//! For a server without scripts (or a test double of one) each step can also be taken as a
//! transaction: read under `WATCH`, [`decide`](ClaimStep::decide), write in `MULTI`.

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{Bid, Claim, Seen, Settlement, StoreError};

/// How records are named and laid out; shared by all steps of a store.
#[derive(Debug)]
pub struct Layout {}

impl Layout {
    /// The layout under a prefix such as `idem:`.
    #[must_use]
    pub fn new(prefix: &str) -> Self;
    /// Where the ends of awaited claims are published, each as its record's id in text.
    pub fn channel(&self) -> &str;
    /// The keys of a record, and of its response where that is kept apart.
    pub fn keys(&self, id: &RecordId) -> [String; 2];
}

/// A command: its name and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {}

impl Command {
    pub fn arguments(&self) -> impl ExactSizeIterator<Item = &[u8]>;
    /// Appends it as the Redis protocol has it: an array of bulk strings.
    pub fn encode(&self, out: &mut Vec<u8>);
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    Nil,
    Integer(i64),
    /// A bulk string, or a simple one such as `OK`.
    Bytes(Bytes),
    Array(Vec<Reply>),
    /// An error, its code first.
    Error(Bytes),
}

/// What follows a reply.
#[derive(Debug)]
pub enum Next<T> {
    Ask(Command),
    Done(Result<T, StoreError>),
}

/// A step as a dialogue.
pub trait Step: Sized {
    type Verdict;
    /// The first command. `micros` is the server's clock, as well as the caller knows it, in
    /// microseconds since the epoch; asked anew when the command is sent again after a lost connection.
    fn begin(&mut self, layout: &Layout, micros: u64) -> Command;
    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<Self::Verdict>;
    /// The step as a transaction: a pure function of what was read under WATCH.
    fn decide(&self, layout: &Layout, read: Read) -> Decision<Self::Verdict>;
}

/// What was read of a record.
pub struct Read {
    pub record: Option<Bytes>,
    /// As PTTL gives it: milliseconds, negative if there is no expiry or no record.
    pub pttl: i64,
    pub response: Option<Bytes>,
    pub micros: u64,
}

/// What a transaction does.
pub struct Decision<T> {
    /// To be sent in one MULTI; nothing if the verdict stands as it is.
    pub writes: Vec<Command>,
    /// The verdict, if the writes were executed.
    pub verdict: Result<T, StoreError>,
}

pub struct ClaimStep {}   // new(id: RecordId, bid: Bid)            Verdict = Claim
pub struct SettleStep {}  // new(lease: Lease, done: Settlement)    Verdict = ()
pub struct ReleaseStep {} // new(lease: Lease)                      Verdict = ()
pub struct RenewStep {}   // new(lease: Lease)                      Verdict = ()   (Lease unchanged)
pub struct LookupStep {}  // new(id: RecordId)                      Verdict = Option<Seen>
pub struct WatchStep {}   // new(id: RecordId)                      Verdict = bool: whether somebody claims it
