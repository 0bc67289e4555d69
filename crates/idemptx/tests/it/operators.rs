//! Orphans, retention, and what operators do about records: the same on every store.

mod decisions;
mod environment;
mod failures;
mod forgotten_steps;
mod names;
mod orphans;
mod purges;
mod retention;

/// Runs each test against every store, in a separate environment.
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
                    super::$group::$test(&super::environment::Environment::$store()).await;
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
    forgotten_steps::the_steps_of_a_forgotten_operation_go_with_it,
    forgotten_steps::a_purge_takes_the_steps_along,
}

use idemptx::store::MemoryStore;
