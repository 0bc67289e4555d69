//! What a real PostgreSQL can do to the store, and what the store makes of it.

mod contention;
mod crashes;
mod faults;
mod fixture;
mod full_disk;
mod pooled;
mod server_settings;
mod standby;
mod tables;
mod wake_ups;
