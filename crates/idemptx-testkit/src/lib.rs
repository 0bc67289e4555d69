//! Support for tests: real servers that a test owns, a proxy and a store that fail on demand.
//!
//! | module | provides |
//! |---|---|
//! | [`certificates`] | a certificate authority for one test |
//! | [`child_process`] | child processes that end with the test |
//! | [`faulty_proxy`] | a TCP proxy that disconnects, stalls, delays or refuses at a chosen byte |
//! | [`pgbouncer`], [`postgres_server`], [`redis_server`] | servers on their own ports |
//! | [`redis_cluster`], [`redis_sentinels`] | several Redis servers that belong together |
//! | [`mod@released_program`] | programs that no package of the system has |
//! | [`refusal`] | errors of servers, in the bytes of their protocols |
//! | [`reserved_port`] | a port that stays free for one server |
//! | [`scripted_store`] | a memory store whose operations fail, stall and are counted |
//! | [`small_disk`] | a file system that fills up |
//!
//! Everything here panics on failure, as a test does.
//! A server is killed, and its directory removed, when its value is dropped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

pub mod certificates;
pub mod child_process;
pub mod faulty_proxy;
pub mod pgbouncer;
pub mod postgres_server;
pub mod redis_cluster;
pub mod redis_sentinels;
pub mod redis_server;
pub mod refusal;
pub mod released_program;
pub mod reserved_port;
pub mod scripted_store;
pub mod small_disk;
mod unprivileged;

pub use certificates::CertificateAuthority;
pub use child_process::{ChildProcess, Signal};
pub use faulty_proxy::FaultyProxy;
pub use pgbouncer::PgBouncer;
pub use postgres_server::PostgresServer;
pub use redis_cluster::RedisCluster;
pub use redis_sentinels::{LoneSentinel, RedisSentinels};
pub use redis_server::RedisServer;
pub use refusal::Refusal;
pub use released_program::released_program;
pub use reserved_port::ReservedPort;
pub use scripted_store::ScriptedStore;
pub use small_disk::SmallDisk;

/// Creates the directory of a server, which is removed with the returned value.
///
/// Tests create one themselves when the configuration names files in it.
pub fn server_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::Builder::new().prefix("idemptx-").tempdir().unwrap();
    // PostgreSQL runs as another user where the tests run as root.
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), readable).unwrap();
    directory
}
