//! The gateway on a simulated network: what becomes of requests whose links are cut, one-way or
//! both ways, slow, or held and then delivered after all.
//!
//! Clients, gateways and the service behind them are hosts in one thread.
//! [turmoil](https://docs.rs/turmoil) carries what they send, and its clock moves only when nobody
//! has anything left to do, so that a time-out of seconds costs nothing and nothing depends on how
//! fast the machine is.
//! The gateway is the whole of it, with its sockets put in place by [`crate::network`]; gateways
//! share a memory store, which outlives every cut.
//!
//! Leases and heartbeats keep the machine's time, because the thread that renews them is outside
//! of the simulation: none lapses here.
//! `tests/suite/tests/black_box/crashes.rs` has processes that die, over stores that remain.

mod client;
mod cuts;
mod random;
mod seeds;
mod service;
mod world;
