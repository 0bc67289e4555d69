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
/// It is in memory where there is room.
///
/// Tests create one themselves when the configuration names files in it.
pub fn server_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;

    let mut named = tempfile::Builder::new();
    named.prefix("idemptx-");
    // A busy disk may stall a flush for longer than a step of a store may take.
    let in_memory = has_room(MEMORY_DISK).then(|| named.tempdir_in(MEMORY_DISK).ok()).flatten();
    let directory = in_memory.unwrap_or_else(|| named.tempdir().unwrap());
    // PostgreSQL runs as another user where the tests run as root.
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), readable).unwrap();
    directory
}

/// Returns true if a directory is on a file system with room for the servers of several tests.
fn has_room(directory: &str) -> bool {
    rustix::fs::statvfs(directory)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= SERVERS_BYTES)
}

/// Settings of the URL of a server, with which steps wait for a slow machine.
const PATIENCE: &str = "timeout_ms=20000&connect_timeout_ms=20000";
/// The file system in memory that Linux has.
const MEMORY_DISK: &str = "/dev/shm";
const SERVERS_BYTES: u64 = 1 << 30;
