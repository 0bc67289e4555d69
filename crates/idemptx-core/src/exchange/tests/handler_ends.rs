//! The table of handlers' ends: a line that describes the rest of the exchange.

use http::StatusCode;

use super::passage::{Passage, Stored};
use super::world::rules;
use crate::exchange::{Directive, Handled};
use crate::policy::{Mode, OnPanic, Policy, Statuses};

/// The difference of a row's policy from the draft's.
type Change = fn(&mut Policy);
type Ending<'a> = (Handled, Change, &'a str);

#[test]
fn how_the_handler_ended_decides_what_is_kept() {
    let whole = |status: u16, directive| {
        let status = StatusCode::from_u16(status).unwrap();
        Handled::Whole { status, directive }
    };
    let partial = |status: u16, directive| {
        let status = StatusCode::from_u16(status).unwrap();
        Handled::Partial { status, directive }
    };
    let flowing = |status: u16, directive| {
        let status = StatusCode::from_u16(status).unwrap();
        Handled::Flowing { status, directive }
    };
    let later = "renew, own, release after its body";
    let draft: Change = |_| {};
    let stripe: Change = |policy| *policy = Policy::stripe();
    let quarantine: Change = |policy| policy.on_panic = OnPanic::Quarantine;
    let shadow: Change = |policy| policy.mode = Mode::Shadow;
    let only_2xx: Change = |policy| policy.store_statuses = Statuses::classes(&[2]);
    let stored = "settle Completed, own stored";
    let released = "release, own";
    let mut rows: Vec<Ending<'_>> = vec![
        (whole(500, None), stripe, stored),
        (whole(404, None), only_2xx, released),
        (whole(500, Some(Directive::Store)), draft, stored),
        (whole(201, Some(Directive::Release)), draft, released),
        (whole(201, Some(Directive::Unknown)), draft, "settle Unknown, own"),
        (partial(200, None), draft, "settle NotReplayable, own"),
        (partial(200, Some(Directive::Store)), draft, "settle NotReplayable, own"),
        (partial(503, None), draft, released),
        (partial(200, Some(Directive::Release)), draft, released),
        (flowing(200, None), draft, "settle NotReplayable, own"),
        (flowing(503, Some(Directive::Store)), draft, "settle NotReplayable, own"),
        (flowing(200, Some(Directive::Unknown)), draft, "settle Unknown, own"),
        (flowing(503, None), draft, later),
        (flowing(200, Some(Directive::Release)), draft, later),
        (flowing(200, Some(Directive::Release)), shadow, later),
        (
            flowing(200, Some(Directive::Release)),
            quarantine,
            "renew, own, release after its body or settle Unknown",
        ),
    ];
    for handled in [Handled::Failed { directive: None }, Handled::BrokenOff { directive: None }] {
        rows.push((handled, draft, "release, refuse 500 handler-failed unstored"));
        rows.push((handled, quarantine, "settle Unknown, refuse 500 handler-failed unstored"));
        rows.push((handled, shadow, "release, broken 1, retryable"));
    }
    let unknown = Some(Directive::Unknown);
    for handled in
        [Handled::Failed { directive: unknown }, Handled::BrokenOff { directive: unknown }]
    {
        rows.push((handled, draft, "settle Unknown, refuse 500 handler-failed unstored"));
        rows.push((handled, shadow, "settle Unknown, broken 1"));
    }
    for status in [200, 201, 204, 302, 304, 400, 402, 410, 418, 422, 451] {
        rows.push((whole(status, None), draft, stored));
    }
    for status in [401, 403, 407, 408, 409, 421, 423, 425, 429, 500, 501, 502, 503, 504, 599] {
        rows.push((whole(status, None), draft, released));
    }
    for (number, (handled, change, expected)) in rows.into_iter().enumerate() {
        let trace = Passage::new(&rules(change), Stored::Nothing).play("a", handled);
        assert_eq!(trace, format!("claim, execute 1, {expected}"), "row {number}: {handled:?}");
    }
}
