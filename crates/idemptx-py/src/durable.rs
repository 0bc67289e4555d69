//! The library's SQLite and PostgreSQL stores, driven by event loops.
//!
//! Waiting happens on threads that never touch Python: those of the stores, and one runtime per
//! process.
//! A step is a future that is polled in the event loop's thread, and whose waker notifies a
//! [`LoopWaker`](loop_waker::LoopWaker): the first notification makes a descriptor readable, and
//! the loop then polls all woken steps at once.
//! A finished step costs at most one wake-up of one thread, and steps that a group commit or a
//! batch finishes together share it. A bridge that resolved futures from other threads would cost
//! a second hop and one wake-up per step.
//!
//! Everything here belongs to the process that created it: see [`ForkGuard`](fork_guard::ForkGuard).

mod fork_guard;
mod loop_handle;
mod loop_waker;
mod native_store;
mod pending_ops;
mod runtime;
mod store_config;
mod task;

pub(crate) use self::loop_handle::{LoopHandle, WatchHandle};
pub(crate) use self::native_store::NativeStore;
