//! The admin listener of a running gateway.

mod access;
mod log;
mod probes;
mod records;
mod scarcity;
