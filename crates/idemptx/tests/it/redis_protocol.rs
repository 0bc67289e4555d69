//! The Redis store's dialogue, held over a plain connection: scripts and transactions come to the
//! same.

mod cases;
mod old_server;
mod redis_probe;
mod side_by_side;
