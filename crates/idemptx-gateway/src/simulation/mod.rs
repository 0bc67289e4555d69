//! The gateway on a simulated network whose links are cut in one or both directions, slow, or held
//! and delivered later.
//!
//! Callers, gateways and the backend are hosts in one thread.
//! [turmoil](https://docs.rs/turmoil) is the network; its clock moves only when every host is idle,
//! so that a timeout of seconds takes no time and the speed of the machine does not matter.
//! The gateway is complete but for its sockets, which [`crate::network`] replaces in unit tests:
//! that is why the simulation is not an integration test.
//! The gateways share a memory store, which outlives every partition.
//!
//! Leases and their renewals use the machine's clock, because the renewing thread is not part of
//! the simulation: no lease lapses here.
//! `tests/suite` kills processes in front of stores that remain.

mod backend;
mod caller;
mod cluster;
mod partitions;
mod random;
mod schedules;
