//! The PostgreSQL store against failures and settings of a real server.

mod contention;
mod crashes;
mod failover;
mod faults;
mod fixture;
mod full_disk;
mod pooled;
mod server_settings;
mod standby;
mod tables;
mod wake_ups;

#[cfg(feature = "redis")]
pub(crate) use self::fixture::number;
