//! The exchanges of handlers whose transaction settles, each described in a line.

use http::StatusCode;

use super::passage::{Ends, Passage, Stored};
use super::world::{Cell, fingerprint, id, response, rules, token};
use crate::exchange::{Directive, Handled, confirmed};
use crate::lease::Lease;
use crate::outcome::{Code, Outcome};
use crate::policy::{Mode, OnPanic, Policy};
use crate::record::{Record, State};
use crate::store::{Claim, ClaimInfo, ClaimRequest, ErrorKind, RecordSnapshot, Settlement};

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
    let rows: [(Handled, &str); 10] = [
        (whole(200, None), "commit Completed, own stored"),
        (whole(303, None), "commit Completed, own stored"),
        (Handled::Partial { status: ok, directive: None }, "commit NotReplayable, own"),
        (Handled::Flowing { status: ok, directive: None }, "commit NotReplayable, own"),
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

#[test]
fn another_execution_counts_as_such_only_where_this_one_has_lost_to_it() {
    let rules = rules(|_| {});
    let fenced = |code| Outcome::Fenced { attempt: 1, code };
    let released = Some(Directive::Release);
    let unavailable = Outcome::Refused(Code::StoreUnavailable);
    let rows = [
        (Some(Stored::Done(201)), None, whole(201, None), fenced(None)),
        (Some(Stored::Running), None, whole(201, None), fenced(Some(Code::InProgress))),
        (Some(Stored::Done(201)), None, whole(201, released), fenced(None)),
        (Some(Stored::Done(201)), None, Handled::Failed { directive: None }, fenced(None)),
        (Some(Stored::Done(201)), Some(Ends::Well), whole(201, None), fenced(None)),
        // Its own settlement is what it is answered with.
        (None, Some(Ends::AnswerLost), whole(201, None), Outcome::Replayed),
        (None, Some(Ends::RolledBack), whole(201, None), unavailable),
    ];
    for (number, (becomes, transaction, handled, expected)) in rows.into_iter().enumerate() {
        let mut passage = Passage::new(&rules, Stored::Nothing);
        (passage.lost_to, passage.transaction) = (becomes, transaction);
        let (trace, outcome) = passage.play_to_outcome(fingerprint(&rules, "a"), handled);
        assert_eq!(outcome, expected, "row {number}: {trace}");
    }
}

#[test]
fn only_the_very_settlement_confirms_one_that_the_handler_made_itself() {
    let rules = rules(|_| {});
    let mut cell = Cell::default();
    let policy = rules.policy();
    let claim =
        ClaimRequest::new(token(1), fingerprint(&rules, "a"), policy.lease, policy.key_retain);
    let Ok(Claim::Granted(lease)) = cell.claim(&id(), &claim, 0) else { panic!() };
    let done = |state, body| Settlement::by(policy, state, response(201, body).encode());
    let own = done(State::Completed, "own");
    let fenced = Some(Err(ErrorKind::Fenced));
    let held = Ok(Some(RecordSnapshot::Held(ClaimInfo::of(&lease))));
    let other = Lease { token: token(2), ..lease.clone() };
    let settled = |lease: &Lease, done: &Settlement| {
        Ok(Some(RecordSnapshot::Settled(Record::settled(lease, done))))
    };
    let rows = [
        (settled(&lease, &own), Some(Ok(()))),
        // It returned another response: its client gets the one that retries will get.
        (settled(&lease, &done(State::Completed, "another")), fenced),
        (settled(&lease, &done(State::NotReplayable, "own")), fenced),
        (settled(&other, &own), fenced),
        (Ok(Some(RecordSnapshot::Held(ClaimInfo::of(&other)))), fenced),
        (Ok(None), fenced),
        (held, None),
        (Err(ErrorKind::Unavailable), None),
        (Err(ErrorKind::Corrupt), None),
    ];
    for (number, (looked, expected)) in rows.into_iter().enumerate() {
        assert_eq!(confirmed(&lease, &own, &looked), expected, "row {number}");
    }
}

fn whole(status: u16, directive: Option<Directive>) -> Handled {
    Handled::Whole { status: StatusCode::from_u16(status).unwrap(), directive }
}
