//! Orphans, retention, and what operators do about records: the same on every store.
#![cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/app.rs"]
mod app;
#[path = "support/http.rs"]
mod http_client;
#[path = "support/postgres_server.rs"]
mod postgres_server;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/told_store.rs"]
mod told_store;

#[path = "operators/decisions.rs"]
mod decisions;
#[path = "operators/failures.rs"]
mod failures;
#[path = "operators/names.rs"]
mod names;
#[path = "operators/orphans.rs"]
mod orphans;
#[path = "operators/place.rs"]
mod place;
#[path = "operators/purges.rs"]
mod purges;
#[path = "operators/retention.rs"]
mod retention;

/// Each runs against every store, in a place of its own.
macro_rules! on_every_store {
    ($($group:ident::$test:ident,)+) => {
        on_every_store! { in memory: $($group::$test,)+ }
        on_every_store! { in sqlite: $($group::$test,)+ }
        on_every_store! { in postgres: $($group::$test,)+ }
        on_every_store! { in redis: $($group::$test,)+ }
    };
    (in $store:ident: $($group:ident::$test:ident,)+) => {
        mod $store {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$group::$test(&super::place::Place::$store()).await;
                }
            )+
        }
    };
}

on_every_store! {
    orphans::an_orphan_is_dealt_with_as_the_policy_says,
    decisions::a_doubt_is_resolved_once_and_for_all,
    decisions::what_is_in_no_doubt_is_left_alone,
    retention::a_late_retry_is_refused_and_not_run_again,
    purges::what_is_listed_is_purged_and_nothing_else,
}

use idemptx::store::MemoryStore;
