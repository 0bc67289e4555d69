//! The store that keeps its records in Redis or Valkey.
//!
//! A record is one string under `{prefix}{` id `}`, and a claim that finds nothing, or a settled
//! record, is one native command: `SET … NX GET PX`, hence Redis 7.0.
//! Everything else is a script that compares before it writes.
//! A claim is written and renewed with its retention as its time to live, so that
//! *retention − time to live* is the age of its lease by the server's clock alone.
//!
//! The id stands in braces, so a cluster has a record, its response and its wake-ups in one slot.
//! A node that does not serve it says so before it executes anything: such refusals are followed
//! with the same token, by our own connections, of which each node has one for commands and one for
//! wake-ups. The client library's cluster client sends commands again after failures of any kind.
//!
//! What is said and what an answer means is in [`protocol`], without a connection; `RedisStore`
//! (the feature `redis`) brings connections for tokio.
//!
//! # What it promises
//!
//! What Redis promises for acknowledged writes: with one server and `appendfsync always`,
//! everything; with `everysec`, all but the last second at a loss of power; **with replicas, no
//! more than asynchronous replication** — a claim acknowledged by a primary may be unknown to the
//! replica that is promoted, and then its operation runs twice, unless
//! `failover_grace` and `wait_replicas` of the builder prevent it.
//! The [start-up check](protocol::check) says which of these a server's configuration amounts to.
//!
//! # Permissions
//!
//! The least that a user needs, with the default prefix, is
//! `~idem:* &idem:* -@all +set +get +getrange +setrange +del +pexpire +pttl +time +eval +evalsha
//! +publish`; besides, `+hello +subscribe` for wake-ups across processes, `+select` for a database
//! other than 0, `+info +config|get` for the check, and `+scan +exists +strlen` for
//! [listing](idemptx_core::store::Inventory).
//! A cluster takes `+cluster|slots +asking`, and `+spublish +ssubscribe` instead of `+publish
//! +subscribe`; servers behind sentinels take `+role`, a grace period `+info`, and waiting for
//! replicas `+wait`, for all of them `+info` besides, and for the disk `+waitaof`.

#[cfg(feature = "redis")]
mod client;
#[cfg(feature = "redis")]
mod cluster_listing;
#[cfg(feature = "redis")]
mod cluster_nodes;
#[cfg(feature = "redis")]
mod coalescing_writer;
#[cfg(feature = "redis")]
mod data_history;
#[cfg(feature = "redis")]
mod deployment;
#[cfg(feature = "redis")]
mod endpoint;
#[cfg(feature = "redis")]
mod node;
pub mod protocol;
#[cfg(feature = "redis")]
mod recent;
#[cfg(feature = "redis")]
mod redis_connection;
#[cfg(feature = "redis")]
mod redis_failure;
#[cfg(feature = "redis")]
mod redis_store;
#[cfg(feature = "redis")]
mod redis_store_builder;
#[cfg(feature = "redis")]
mod sentinels;
#[cfg(feature = "redis")]
mod server_clock;
#[cfg(feature = "redis")]
mod step_runner;
#[cfg(feature = "redis")]
mod subscription;
#[cfg(feature = "redis")]
mod url;

pub use self::protocol::WaitReplicas;
#[cfg(feature = "redis")]
pub use self::redis_store::RedisStore;
#[cfg(feature = "redis")]
pub use self::redis_store_builder::RedisStoreBuilder;
#[cfg(feature = "redis")]
pub(super) use self::redis_store_builder::STEP_LIMIT;
#[cfg(feature = "redis")]
pub use self::url::InvalidUrl;
