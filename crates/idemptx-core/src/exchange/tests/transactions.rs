//! The exchanges of handlers whose transaction settles, each described in a line.

use http::StatusCode;

use super::passage::{Ends, Passage, Stored};
use super::world::rules;
use crate::exchange::{Directive, Handled};
use crate::policy::{Mode, OnPanic, Policy};

/// The difference of a row's policy from the draft's.
type Change = fn(&mut Policy);

#[test]
fn a_transaction_counts_only_when_it_is_known_to_be_committed() {
    let shadow: Change = |policy| policy.mode = Mode::Shadow;
    let draft: Change = |_| {};
    let rows: &[(Ends, Change, &str)] = &[
        (Ends::Well, draft, "own stored"),
        (Ends::RolledBack, draft, "release, refuse 503 store-unavailable"),
        (Ends::RolledBack, shadow, "release, refuse 503 store-unavailable"),
        (Ends::AnswerLost, draft, "release, look, replay 201 own"),
        (Ends::StoreLost, draft, "release, refuse 503 store-unavailable, release deferred"),
    ];
    for (number, (ends, change, expected)) in rows.iter().enumerate() {
        let rules = rules(*change);
        let mut passage = Passage::new(&rules, Stored::Nothing);
        passage.transaction = Some(*ends);
        let trace = passage.play("a", whole(201, None));
        assert_eq!(
            trace,
            format!("claim, execute 1, commit Completed, {expected}"),
            "row {number}"
        );
    }
}

#[test]
fn a_transaction_whose_record_was_taken_over_is_never_an_own_success() {
    let rules = rules(|_| {});
    for (becomes, expected) in [
        (Stored::Done(201), "look, replay 201 first"),
        (Stored::Running, "look, wait 15000, refuse 409 in-progress"),
    ] {
        let mut passage = Passage::new(&rules, Stored::Nothing);
        (passage.transaction, passage.lost_to) = (Some(Ends::Well), Some(becomes));
        let trace = passage.play("a", whole(201, None));
        assert_eq!(trace, format!("claim, execute 1, commit Completed, {expected}"));
    }
}

#[test]
fn only_a_success_is_committed() {
    let ok = StatusCode::OK;
    let rows: [(Handled, &str); 9] = [
        (whole(200, None), "commit Completed, own stored"),
        (whole(303, None), "commit Completed, own stored"),
        (Handled::Partial { status: ok, directive: None }, "commit NotReplayable, own"),
        (whole(422, None), "settle Completed, own stored"),
        (whole(500, Some(Directive::Store)), "settle Completed, own stored"),
        (whole(201, Some(Directive::Unknown)), "settle Unknown, own"),
        (whole(201, Some(Directive::Release)), "release, own"),
        (whole(503, None), "release, own"),
        (Handled::Failed { directive: None }, "release, refuse 500 handler-failed unstored"),
    ];
    let rules = rules(|_| {});
    for (handled, expected) in rows {
        let mut passage = Passage::new(&rules, Stored::Nothing);
        passage.transaction = Some(Ends::Well);
        assert_eq!(passage.play("a", handled), format!("claim, execute 1, {expected}"));
    }
}

#[test]
fn what_a_handler_has_decided_counts_although_it_fails() {
    let draft: Change = |_| {};
    let quarantine: Change = |policy| policy.on_panic = OnPanic::Quarantine;
    let failed = "refuse 500 handler-failed unstored";
    let (kept, unknown, freed) = ("settle NotReplayable", "settle Unknown", "release");
    // Whether it failed before it had a response, or with one that broke off.
    for (directive, before, breaks) in [
        (Directive::Store, [kept, kept], [kept, kept]),
        (Directive::Unknown, [unknown, unknown], [unknown, unknown]),
        // Of a response that broke off, `release` counts as if nothing had been said.
        (Directive::Release, [freed, freed], [freed, unknown]),
    ] {
        let directive = Some(directive);
        for (handled, expected) in
            [(Handled::Failed { directive }, before), (Handled::BrokenOff { directive }, breaks)]
        {
            for (change, expected) in [draft, quarantine].into_iter().zip(expected) {
                let rules = rules(change);
                let mut passage = Passage::new(&rules, Stored::Nothing);
                passage.transaction = Some(Ends::Well);
                let trace = passage.play("a", handled);
                assert_eq!(trace, format!("claim, execute 1, {expected}, {failed}"), "{handled:?}");
            }
        }
    }
}

fn whole(status: u16, directive: Option<Directive>) -> Handled {
    Handled::Whole { status: StatusCode::from_u16(status).unwrap(), directive }
}
