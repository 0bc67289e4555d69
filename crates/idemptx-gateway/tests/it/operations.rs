//! What operators see of a running gateway, and do to it, over its admin listener.

mod access;
mod log;
mod probes;
mod records;
