//! The suite that every store passes, ours and third parties'; feature `conformance`.
//!
//! The suite owns the list of cases: a store adds a [`Harness`] of ten lines and one call of
//! [`run`], and every later case comes to it with the next release.
//! It starts nothing and depends on no runtime; it awaits only the store's futures and
//! [`Harness::sleep`].
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use idemptx_core::conformance::{self, Harness};
//! use idemptx_core::lease::Token;
//! use idemptx_core::store::Store;
//! # fn random() -> [u8; 16] { [7; 16] }
//! # async fn sleep(_: Duration) {}
//!
//! struct MyHarness<S>(S);
//!
//! impl<S: Store> Harness for MyHarness<S> {
//!     type Store = S;
//!
//!     fn store(&self) -> &S {
//!         &self.0
//!     }
//!
//!     fn token(&self) -> Token {
//!         Token::from_bytes(random())
//!     }
//!
//!     async fn sleep(&self, wait: Duration) {
//!         sleep(wait).await; // of your runtime
//!     }
//! }
//!
//! # async fn check(my_store: impl Store) {
//! conformance::run(&MyHarness(my_store)).await.assert_passed();
//! # }
//! ```
//!
//! A store that can list what it holds adds a call of [`run_inventory`].

mod case;
mod claims;
mod concurrency;
mod descriptions;
mod handles;
mod histories;
mod join;
mod listing;
mod lookups;
mod model;
mod refusals;
mod releases;
mod renewals;
mod report;
mod retention;
mod settlements;
mod takeovers;
mod watching;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::key::RecordId;
use crate::lease::Token;
use crate::store::{Inventory, Store};

use self::case::Case;
pub use self::model::{Life, Replaceable, Step};
pub use self::report::{Finding, Report, Verdict};

/// The parts that a store's author supplies: the store, randomness, and time.
pub trait Harness: Sync {
    /// The type of the store under test.
    type Store: Store;

    /// Returns the store under test; every case uses new records, so it need not be empty.
    fn store(&self) -> &Self::Store;

    /// Returns another handle of the same store, as another process has one; without it, the cases
    /// of two handles are skipped.
    fn other_handle(&self) -> Option<&Self::Store> {
        None
    }

    /// Returns a token that was never returned before, not even by an earlier run on the store.
    fn token(&self) -> Token;

    /// Lets `wait` pass by the store's clock.
    ///
    /// A store under simulated time turns its clock on by this much and returns at once.
    fn sleep(&self, wait: Duration) -> impl Future<Output = ()> + Send;

    /// Writes these bytes in the place of an existing record, as a later release would write a
    /// record that this one cannot read; false if that is not possible, which skips the case.
    ///
    /// The record in `bytes` is complete, and whatever the store keeps beside it stays as it is.
    fn overwrite(&self, id: &RecordId, bytes: Bytes) -> impl Future<Output = bool> + Send {
        let _ = (id, bytes);
        std::future::ready(false)
    }

    /// Makes the store refuse every claim for certain, as a server does that takes no writes, or
    /// ends that; false if that is not possible, which skips the case.
    fn refuse(&self, refuses: bool) -> impl Future<Output = bool> + Send {
        let _ = refuses;
        std::future::ready(false)
    }

    /// Returns the unit of the short terms and retentions in the suite.
    ///
    /// No case depends on the machine being faster than it; a store with a coarse clock takes a
    /// longer one.
    fn tick(&self) -> Duration {
        TICK
    }
}

/// Takes the steps of a history, and compares every answer of the store, and a listing after every
/// step, with what a map of records says.
///
/// The suite plays random histories; this is for generators that find others, and shorten those
/// that fail.
///
/// # Errors
///
/// Returns a text that names the step and the violation.
///
/// # Cancel safety
///
/// The same as for [`run`].
pub async fn play<H: Harness<Store: Inventory>>(harness: &H, steps: &[Step]) -> Result<(), String> {
    let case = Case::new(harness);
    histories::play(&case, steps).await.map_err(|violation| violation.0)
}

/// Declares each case once: its name, and the function that runs it.
macro_rules! suite {
    (
        $(#[$what:meta])*
        $run:ident, $cases:ident, $store:path:
        $($group:ident { $($case:ident,)+ })+
    ) => {
        /// The names of all cases.
        pub const $cases: &[&str] =
            &[$($(concat!(stringify!($group), "::", stringify!($case)),)+)+];

        $(#[$what])*
        ///
        /// Takes some seconds of the store's time, most of it spent in waiting for leases to
        /// lapse.
        ///
        /// # Cancel safety
        ///
        /// May be dropped at any point; records of the current case stay in the store until their
        /// retention ends, at most an hour.
        pub async fn $run<H: Harness<Store: $store>>(harness: &H) -> Report {
            let mut report = Report::default();
            $($(
                let case = Case::new(harness);
                // In a frame of its own: all of the cases together are more than a stack holds.
                let begin = || Box::pin(case.$case());
                let verdict = begin().await;
                report.add(concat!(stringify!($group), "::", stringify!($case)), verdict);
            )+)+
            report
        }
    };
}

suite! {
    /// Puts a store through every case, one after the other.
    run, CASES, Store:
    claims {
        a_claim_of_nothing_is_granted_as_the_first_attempt,
        a_claim_sent_again_is_granted_unchanged,
        a_claim_sent_again_starts_the_term_again,
        a_claim_sent_again_after_the_lapse_is_granted_unchanged,
        a_claim_sent_again_after_settling_finds_the_result,
        a_live_claim_is_held_against_another_token,
        a_refused_claim_changes_nothing,
        a_lapsed_claim_is_an_orphan_and_not_given_away_unasked,
        claims_of_other_ids_are_independent,
        ids_that_differ_in_one_bit_are_two,
        tokens_that_differ_in_one_bit_are_two,
        ids_and_tokens_are_any_bytes,
        fingerprints_are_any_bytes,
    }
    takeovers {
        an_orphan_is_taken_over,
        a_live_claim_is_not_taken_over,
        an_orphan_is_not_taken_over_under_another_token,
        a_late_result_is_not_taken_over,
        an_orphan_is_not_replaced_as_a_result,
        a_takeover_of_nothing_is_a_first_attempt,
        a_takeover_of_what_another_took_over_is_refused,
        a_takeover_sent_again_is_granted_unchanged,
        attempts_and_fences_go_up_with_every_takeover,
        a_former_owner_finds_the_record_held,
        a_done_record_is_replaced_on_demand,
        an_unknown_record_is_replaced_on_demand,
        a_record_without_body_is_replaced_on_demand,
        a_settled_record_is_not_replaced_under_another_token,
        a_replaced_record_is_released_to_nothing,
    }
    settlements {
        an_empty_payload_comes_back,
        a_payload_of_one_byte_comes_back,
        a_payload_of_every_byte_comes_back,
        a_payload_of_a_mebibyte_comes_back,
        a_result_without_body_comes_back,
        an_unknown_outcome_comes_back,
        settling_again_changes_nothing,
        a_lapsed_lease_settles,
        a_settled_record_never_lapses,
        a_settlement_after_a_takeover_is_fenced,
        a_settlement_after_a_release_is_fenced_and_keeps_nothing,
        a_settlement_of_nothing_is_fenced_and_keeps_nothing,
        a_settlement_with_another_token_is_fenced,
        a_settlement_of_what_another_settled_is_fenced,
        a_settlement_after_a_rebind_is_fenced,
        a_second_attempt_settles_as_such,
    }
    releases {
        a_released_key_is_claimed_afresh,
        releasing_again_succeeds,
        releasing_nothing_succeeds,
        a_lapsed_claim_is_released,
        a_release_with_another_token_is_fenced,
        a_release_after_a_takeover_is_fenced,
        a_release_after_settling_is_fenced,
        a_release_sent_again_after_another_claim_is_fenced,
    }
    renewals {
        a_renewal_returns_the_lease,
        a_renewal_starts_the_term_again,
        a_lapsed_lease_is_renewed_and_live_again,
        a_renewal_with_another_token_is_fenced,
        a_renewal_after_a_takeover_is_fenced,
        a_renewal_after_settling_is_fenced,
        a_renewal_after_a_release_is_fenced_and_claims_nothing,
        a_renewal_of_nothing_is_fenced_and_claims_nothing,
    }
    lookups {
        nothing_is_seen_as_nothing,
        a_claim_is_seen_as_held,
        an_orphan_is_seen_as_lapsed,
        a_result_is_seen_as_settled,
        a_lookup_claims_nothing,
        what_is_recalled_is_what_a_claim_finds,
    }
    retention {
        a_claim_ends_with_its_retention,
        a_renewed_claim_outlives_its_first_retention,
        a_settlement_outlives_the_retention_of_the_claim,
        a_done_record_ends_with_its_retention,
        a_done_record_becomes_spent_where_the_key_is_kept_longer,
        a_spent_record_ends_with_the_retention_of_the_key,
        a_spent_record_is_replaced_only_on_demand,
        a_record_without_body_stays_as_long_as_its_key,
        an_unknown_record_stays_as_long_as_its_key,
        a_key_that_has_ended_is_claimed_afresh,
        a_claim_that_has_ended_cannot_settle,
        a_claim_kept_for_less_than_its_lease_ends_with_its_retention,
    }
    concurrency {
        one_of_many_claims_is_granted,
        a_claim_sent_many_times_at_once_is_one,
        one_of_many_takeovers_is_granted,
        a_settlement_and_a_takeover_at_once_are_one_after_the_other,
        a_settlement_and_a_release_at_once_do_not_both_count,
        every_step_gets_its_own_answer,
        steps_that_are_dropped_harm_nothing,
    }
    watching {
        what_a_store_says_of_watching_is_true,
        a_watch_ends_after_a_settlement,
        a_watch_ends_after_a_release,
        a_watch_that_was_never_polled_misses_nothing,
        every_watch_on_a_record_ends,
        a_dropped_watch_harms_nothing,
    }
    handles {
        a_claim_holds_against_the_other_handle,
        a_result_is_found_through_the_other_handle,
        a_release_frees_the_key_for_the_other_handle,
        claims_through_both_handles_at_once_are_granted_once,
        takeovers_through_both_handles_at_once_are_granted_once,
        a_settlement_and_a_takeover_through_both_handles_are_one_after_the_other,
        a_release_and_a_renewal_through_both_handles_are_one_after_the_other,
        a_watch_ends_after_a_settlement_through_the_other_handle,
    }
    refusals {
        a_certain_refusal_changes_nothing,
        a_record_of_a_later_format_is_refused_and_left_as_it_is,
    }
    histories {
        live_claims_behave_as_in_the_model,
        orphans_behave_as_in_the_model,
        a_few_records_behave_as_in_a_map,
    }
}

suite! {
    /// Puts a store that can list what it holds through every case about that.
    run_inventory, INVENTORY_CASES, Inventory:
    descriptions {
        what_describes_a_claim_stays_with_its_record,
    }
    listing {
        a_scope_without_records_lists_nothing,
        a_claim_is_listed_as_running,
        an_orphan_is_listed_as_orphaned,
        a_takeover_is_listed_as_the_claim_it_is,
        results_are_listed_in_their_state_and_with_their_size,
        a_result_whose_response_has_expired_is_listed_as_spent,
        what_was_released_is_not_listed,
        what_has_ended_is_not_listed,
        only_states_that_are_asked_for_are_listed,
        only_the_scope_that_is_asked_for_is_listed,
        only_the_record_that_is_asked_for_is_listed,
        only_what_has_been_left_alone_for_long_is_listed,
        pages_of_any_size_come_to_everything,
        pages_leave_out_what_is_not_asked_for,
        everything_listed_is_found_and_everything_found_is_listed,
        what_stays_is_listed_while_others_come_and_go,
        a_record_that_changes_hands_is_listed_all_the_while,
        a_cursor_of_another_store_is_refused,
        listing_changes_nothing,
        lists_that_are_dropped_harm_nothing,
    }
    histories {
        a_few_records_are_listed_as_in_a_map,
    }
}

const TICK: Duration = Duration::from_millis(50);
