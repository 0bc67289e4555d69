//! The tables of the protocol: a stored record, a request, and a line that describes the exchange.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri};

use super::passage::{Passage, Stored, describe};
use super::recall::recalled;
use super::world::{begin, fingerprint, head_parts, response, rules, token};
use crate::exchange::{
    Action, Answer, BodyEnd, Deferred, Directive, Event, Exchange, Handled, Head, ProbeResult,
    Rules,
};
use crate::key::{Key, Scope};
use crate::outcome::{Bypass, Code, Outcome};
use crate::policy::{
    KeyPattern, KeySyntax, Mode, OnLargeBody, OnNotReplayable, OnOrphan, OnStoreError, Policy,
    ScopeRule,
};
use crate::store::{ErrorKind, StoreError};
use crate::time::Timestamp;

/// The difference of a row's policy from the draft's.
type Change = fn(&mut Policy);
type Row<'a> = (Stored, &'a str, Change, &'a str);

/// The usual end of the handler.
const CREATED: Handled = Handled::Whole { status: StatusCode::CREATED, directive: None };

#[test]
fn what_is_stored_and_what_comes_decide() {
    use Stored::*;
    let quarantine: Change = |policy| policy.on_orphan = OnOrphan::Quarantine;
    let payments: Change = |policy| {
        *policy = Policy::payments();
        policy.scope = Some(ScopeRule::Shared);
    };
    let open: Change = |policy| policy.on_store_error = OnStoreError::FailOpen;
    let shadow: Change = |policy| policy.mode = Mode::Shadow;
    let waits: Change = |policy| policy.wait = Duration::from_secs(9);
    let reexecutes: Change = |policy| policy.on_not_replayable = OnNotReplayable::Reexecute;
    let draft: Change = |_| {};
    let rows: &[Row<'_>] = &[
        (Nothing, "a", draft, "claim, execute 1, settle Completed, own stored"),
        (Running, "a", draft, "claim, refuse 409 in-progress"),
        (Running, "b", draft, "claim, refuse 422 key-reused"),
        (Running, "a", waits, "claim, wait 9000, refuse 409 in-progress"),
        (Running, "b", waits, "claim, refuse 422 key-reused"),
        (Running, "a", shadow, "claim, pass WouldRefuse(InProgress)"),
        (Orphan, "a", draft, "claim, claim over orphan, execute 2, settle Completed, own stored"),
        (Orphan, "b", draft, "claim, refuse 422 key-reused"),
        (Orphan, "a", quarantine, "claim, refuse 409 outcome-unknown"),
        (Orphan, "b", quarantine, "claim, refuse 422 key-reused"),
        (Orphan, "a", payments, "claim, refuse 409 outcome-unknown"),
        (Done(201), "a", draft, "claim, replay 201 first"),
        (Done(201), "b", draft, "claim, refuse 422 key-reused"),
        (Done(422), "a", draft, "claim, replay 422 first"),
        (
            Done(422),
            "b",
            draft,
            "claim, claim over result, execute 2, settle Completed, own stored",
        ),
        (
            Done(400),
            "b",
            draft,
            "claim, claim over result, execute 2, settle Completed, own stored",
        ),
        (Done(422), "b", payments, "claim, refuse 422 key-reused"),
        (Done(201), "a", shadow, "claim, pass WouldReplay"),
        (Done(201), "b", shadow, "claim, pass WouldRefuse(KeyReused)"),
        (NoBody, "a", draft, "claim, refuse 409 result-unavailable 201"),
        (NoBody, "b", draft, "claim, refuse 422 key-reused"),
        (
            NoBody,
            "a",
            reexecutes,
            "claim, claim over result, execute 2, settle Completed, own stored",
        ),
        (NoBody, "b", reexecutes, "claim, refuse 422 key-reused"),
        (Done(201), "a", reexecutes, "claim, replay 201 first"),
        (Unknown, "a", draft, "claim, refuse 409 outcome-unknown"),
        (Unknown, "b", draft, "claim, refuse 422 key-reused"),
        (Spent, "a", draft, "claim, refuse 409 key-expired"),
        (Spent, "b", draft, "claim, refuse 422 key-reused"),
        (Corrupt, "a", draft, "claim, refuse 409 outcome-unknown"),
        (Corrupt, "a", open, "claim, refuse 409 outcome-unknown"),
        (Down, "a", draft, "claim, refuse 503 store-unavailable, release deferred"),
        (Down, "a", open, "claim, pass Unprotected, release deferred"),
        (Down, "a", shadow, "claim, pass WouldRefuse(StoreUnavailable), release deferred"),
    ];
    for (number, (stored, body, change, expected)) in rows.iter().enumerate() {
        let rules = rules(*change);
        let passage = Passage::new(&rules, *stored);
        let record = passage.cell.record.clone().filter(|_| !passage.cell.corrupt);
        assert_eq!(&passage.play(body, CREATED), expected, "row {number}");
        if let Some(record) = record {
            // A driver that already has the record answers the same, or claims.
            let replay = expected.strip_prefix("claim, ").filter(|it| it.starts_with("replay"));
            let recalled = recalled(&rules, &record, body);
            assert_eq!(recalled.as_deref(), replay, "row {number}");
        }
    }
}

#[test]
fn a_probe_decides_what_becomes_of_an_orphan() {
    let rules = rules(|policy| policy.on_orphan = OnOrphan::Probe);
    let happened = ProbeResult::Happened(response(201, "found"));
    let rows = [
        (Stored::Orphan, happened.clone(), "claim over orphan, settle Completed, replay 201 found"),
        (
            Stored::Orphan,
            ProbeResult::NotHappened,
            "claim over orphan, execute 2, settle Completed, own stored",
        ),
        (Stored::Orphan, ProbeResult::Unknown, "refuse 409 outcome-unknown"),
        (Stored::Unknown, happened, "claim over result, settle Completed, replay 201 found"),
    ];
    for (stored, probed, expected) in rows {
        let mut passage = Passage::new(&rules, stored);
        passage.probed = Some(probed);
        assert_eq!(passage.play("a", CREATED), format!("claim, probe 1, {expected}"));
    }
}

#[test]
fn an_answer_that_could_not_be_read_back_is_no_answer() {
    let rules = rules(|policy| policy.on_orphan = OnOrphan::Probe);
    let mut passage = Passage::new(&rules, Stored::Orphan);
    passage.probed = Some(ProbeResult::Happened(response(103, "hints")));
    assert_eq!(passage.play("a", CREATED), "claim, probe 1, refuse 409 outcome-unknown");
}

#[test]
fn the_gate_admits_in_order() {
    let key = ("idempotency-key", "k");
    let draft: Change = |_| {};
    let required: Change = |policy| policy.required = true;
    let strict: Change = |policy| policy.key_syntax = KeySyntax::StrictSf;
    let uuid: Change = |policy| policy.key_pattern = KeyPattern::new("uuid").ok();
    let tenant: Change =
        |policy| policy.scope = Some(ScopeRule::Header(HeaderName::from_static("x-tenant")));
    let credential: Change =
        |policy| policy.scope = Some(ScopeRule::Header(http::header::AUTHORIZATION));
    let custom: Change = |policy| policy.scope = Some(ScopeRule::Custom);
    let cookie: Change = |policy| policy.scope = Some(ScopeRule::Cookie("sid".to_owned()));
    let shadow: Change = |policy| {
        policy.mode = Mode::Shadow;
        policy.required = true;
    };
    const METHOD: &str = "pass Method { keyed: false }";
    type Gate<'a> = (&'a str, &'a [(&'static str, &'static str)], Change, &'a str);
    let rows: &[Gate<'_>] = &[
        ("CONNECT", &[key], draft, "pass NotHttp"),
        ("POST", &[key, ("upgrade", "websocket")], draft, "read"),
        (
            "POST",
            &[key, ("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings")],
            draft,
            "read",
        ),
        ("POST", &[("upgrade", "h2c")], required, "refuse 400 missing-key"),
        ("POST", &[key, ("content-type", "application/grpc+proto")], draft, "read"),
        ("POST", &[("content-type", "application/grpc")], required, "refuse 400 missing-key"),
        ("OPTIONS", &[("access-control-request-method", "POST")], draft, METHOD),
        ("GET", &[key], draft, "pass Method { keyed: true }"),
        ("GET", &[], required, METHOD),
        ("POST", &[("idempotency-key", "undefined")], draft, "read"),
        ("POST", &[("idempotency-key", "undefined")], uuid, "refuse 400 invalid-key"),
        ("POST", &[key], uuid, "refuse 400 invalid-key"),
        ("POST", &[], draft, "pass NoKey"),
        ("POST", &[], required, "refuse 400 missing-key"),
        ("POST", &[], shadow, "pass WouldRefuse(MissingKey)"),
        ("POST", &[key, key], draft, "refuse 400 invalid-key"),
        ("POST", &[("idempotency-key", "")], draft, "refuse 400 invalid-key"),
        ("POST", &[key], strict, "refuse 400 invalid-key"),
        ("POST", &[("idempotency-key", "\"k\"")], strict, "read"),
        ("POST", &[key], tenant, "refuse 400 scope-unresolved"),
        (
            "POST",
            &[key, ("x-tenant", "a"), ("x-tenant", "b")],
            tenant,
            "refuse 400 scope-unresolved",
        ),
        ("POST", &[key, ("x-tenant", "a")], tenant, "read"),
        ("POST", &[key], credential, "refuse 401 scope-unresolved"),
        ("POST", &[key], custom, "refuse 401 scope-unresolved"),
        ("POST", &[key], cookie, "refuse 401 scope-unresolved"),
        ("POST", &[key, ("cookie", "xsid=a; sid=")], cookie, "refuse 401 scope-unresolved"),
        ("POST", &[key, ("cookie", "a=sid; sid=b=c")], cookie, "read"),
        ("POST", &[key, ("cookie", "a=1"), ("cookie", "sid=b")], cookie, "read"),
        ("POST", &[key, ("cookie", "sid=a; sid=b")], cookie, "refuse 400 scope-unresolved"),
        ("PATCH", &[key], draft, "read"),
    ];
    for (number, (method, lines, change, expected)) in rows.iter().enumerate() {
        let mut headers = HeaderMap::new();
        for (name, value) in *lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let method = method.parse::<Method>().unwrap();
        let uri = Uri::from_static("/orders");
        let head = Head::new(&method, &uri, &headers);
        let (_, action) = Exchange::begin(&rules(*change), &head);
        let trace = match action {
            Action::ReadBody { .. } => "read".to_owned(),
            action => describe(action),
        };
        assert_eq!(&trace, expected, "row {number}");
    }
}

#[test]
fn an_application_may_refuse_keys_of_another_form() {
    let (method, uri, headers) = head_parts();
    let uuid_only = |key: &Key| key.as_str().len() == 36;
    let head = Head::new(&method, &uri, &headers).accepting(Some(&uuid_only));
    let (_, action) = Exchange::begin(&rules(|_| {}), &head);
    assert_eq!(describe(action), "refuse 400 invalid-key");
}

#[test]
fn a_body_that_cannot_be_read_claims_nothing() {
    let rows: [(BodyEnd, OnLargeBody, &str); 6] = [
        (BodyEnd::TooLarge, OnLargeBody::Reject, "refuse 413 body-too-large"),
        (BodyEnd::TooLarge, OnLargeBody::Skip, "pass LargeBody"),
        (BodyEnd::TooLarge, OnLargeBody::Stream, "refuse 413 body-too-large"),
        (BodyEnd::NoRoom, OnLargeBody::Stream, "refuse 503 store-unavailable"),
        (BodyEnd::Failed, OnLargeBody::Reject, "refuse 400 body-unreadable"),
        (BodyEnd::Failed, OnLargeBody::Skip, "refuse 400 body-unreadable"),
    ];
    for (end, choice, expected) in rows {
        let mut exchange = begin(&rules(|policy| policy.on_large_body = choice));
        assert!(exchange.abandon().is_none());
        let action = exchange.step(Event::Body(end, token(1)), Timestamp::default());
        assert_eq!(describe(action), expected);
    }
}

#[test]
fn a_key_of_another_principal_is_refused_like_a_reused_one() {
    let rules = rules(|policy| {
        policy.scope = Some(ScopeRule::Bind(vec![http::header::AUTHORIZATION]));
    });
    let print = |credential: Option<&'static str>| {
        let (method, uri, mut headers) = head_parts();
        if let Some(credential) = credential {
            headers.insert(http::header::AUTHORIZATION, HeaderValue::from_static(credential));
        }
        let head = Head::new(&method, &uri, &headers);
        let (exchange, _) = Exchange::begin(&rules, &head);
        exchange.fingerprinters(&head).unwrap().try_finish().unwrap().remove(0)
    };
    for state in [Stored::Done(201), Stored::Done(422), Stored::Running, Stored::Orphan] {
        for (mine, theirs, same) in [
            (Some("Bearer a"), Some("Bearer a"), true),
            (Some("Bearer a"), Some("Bearer b"), false),
            (None, Some("Bearer b"), false),
            (Some("Bearer a"), None, false),
        ] {
            let mut passage = Passage::new(&rules, state);
            if let Some(record) = &mut passage.cell.record {
                record.fingerprint = print(theirs);
            }
            let trace = passage.play_with(print(mine), CREATED);
            assert_eq!(trace != "claim, refuse 422 key-reused", same, "{trace}");
        }
    }
}

#[test]
fn a_record_made_under_another_rule_is_accepted_save_in_payments() {
    for (payments, expected) in
        [(false, "claim, replay 201 first"), (true, "claim, refuse 422 key-reused")]
    {
        let rules = rules(|policy| {
            if payments {
                *policy = Policy::payments();
                policy.scope = Some(ScopeRule::Shared);
            }
        });
        let mut passage = Passage::new(&rules, Stored::Done(201));
        if let Some(record) = &mut passage.cell.record {
            record.fingerprint.config ^= 1;
        }
        assert_eq!(passage.play("a", CREATED), expected);
    }
}

#[test]
fn a_claim_answered_late_is_renewed_before_the_handler_starts() {
    let rules = rules(|_| {});
    for (late, expected) in [
        (7_500, "claim, execute 1, settle Completed, own stored"),
        (7_501, "claim, renew, execute 1, settle Completed, own stored"),
    ] {
        let mut passage = Passage::new(&rules, Stored::Nothing);
        passage.claim_takes = late;
        assert_eq!(passage.play("a", CREATED), expected);
    }
}

#[test]
fn a_lease_that_is_always_renewed_too_late_is_given_up() {
    let rules = rules(|_| {});
    let mut passage = Passage::new(&rules, Stored::Nothing);
    (passage.claim_takes, passage.renew_takes) = (8_000, 8_000);
    let trace = "claim, renew, renew, renew, release, refuse 503 store-unavailable";
    assert_eq!(passage.play("a", CREATED), trace);
}

#[test]
fn losing_the_record_is_never_an_own_success() {
    let rules = rules(|_| {});
    let rows: [(Stored, &str); 5] = [
        (Stored::Done(201), "look, replay 201 first"),
        (Stored::Nothing, "look, refuse 409 in-progress"),
        (Stored::Running, "look, wait 15000, refuse 409 in-progress"),
        (Stored::Orphan, "look, refuse 409 in-progress"),
        (Stored::NoBody, "look, refuse 409 result-unavailable 201"),
    ];
    for (becomes, expected) in rows {
        let mut passage = Passage::new(&rules, Stored::Nothing);
        passage.lost_to = Some(becomes);
        let trace = passage.play("a", CREATED);
        assert_eq!(trace, format!("claim, execute 1, settle Completed, {expected}"));
    }
}

#[test]
fn losing_the_record_before_a_release_is_never_an_own_success() {
    let rules = rules(|_| {});
    let released = Some(Directive::Release);
    let handled = Handled::Whole { status: StatusCode::CREATED, directive: released };
    let rows: [(Stored, &str); 5] = [
        (Stored::Done(201), "look, replay 201 first"),
        (Stored::Running, "look, wait 15000, refuse 409 in-progress"),
        (Stored::Orphan, "look, refuse 409 in-progress"),
        (Stored::NoBody, "look, refuse 409 result-unavailable 201"),
        (Stored::Unknown, "look, refuse 409 in-progress"),
    ];
    for (becomes, expected) in rows {
        let mut passage = Passage::new(&rules, Stored::Nothing);
        passage.lost_to = Some(becomes);
        let trace = passage.play("a", handled);
        assert_eq!(trace, format!("claim, execute 1, release, {expected}"));
    }
}

#[test]
fn a_result_that_cannot_be_settled_is_answered_and_settled_later() {
    let rules = rules(|_| {});
    let mut passage = Passage::new(&rules, Stored::Nothing);
    passage.settle_fails = true;
    let trace = passage.play("a", CREATED);
    assert_eq!(trace, "claim, execute 1, settle Completed, own, settle Completed deferred");
}

#[test]
fn a_scope_that_has_too_many_new_keys_is_slowed_down() {
    let rules = rules(|policy| policy.new_keys_per_minute_max = Some(1));
    for (within, expected) in [
        (true, "claim, meter, execute 1, settle Completed, own stored"),
        (false, "claim, meter, release, refuse 429 too-many-keys"),
    ] {
        let mut passage = Passage::new(&rules, Stored::Nothing);
        passage.within = within;
        assert_eq!(passage.play("a", CREATED), expected);
    }
}

#[test]
fn want_of_room_is_refused_even_where_a_store_that_is_away_is_not() {
    let rules = rules(|policy| policy.on_store_error = OnStoreError::FailOpen);
    let mut exchange = begin(&rules);
    let prints = vec![fingerprint(&rules, "a")];
    exchange.step(Event::Body(BodyEnd::Whole(prints), token(1)), Timestamp::default());
    let full = Event::Claimed(Err(ErrorKind::Full.into()));
    assert_eq!(describe(exchange.step(full, Timestamp::default())), "refuse 503 store-unavailable");
}

#[test]
fn a_certain_refusal_leaves_nothing_to_release_and_passes_its_hint_on() {
    let refused = StoreError::new(ErrorKind::Refused).with_retry_after(Duration::from_secs(7));
    for choice in [OnStoreError::FailClosed, OnStoreError::FailOpen] {
        let rules = rules(|policy| policy.on_store_error = choice);
        let mut exchange = begin(&rules);
        let prints = vec![fingerprint(&rules, "a")];
        exchange.step(Event::Body(BodyEnd::Whole(prints), token(1)), Timestamp::default());
        let event = Event::Claimed(Err(refused.failure()));
        let action = exchange.step(event, Timestamp::default());
        let Action::Answer { answer, deferred: None } = action else { panic!("{action:?}") };
        match (choice, answer) {
            (OnStoreError::FailClosed, Answer::Refuse(rejection)) => {
                assert_eq!(rejection.code, Code::StoreUnavailable);
                assert_eq!(rejection.retry_after, Some(Duration::from_secs(7)));
            }
            (OnStoreError::FailOpen, Answer::Pass(Bypass::Unprotected)) => {}
            (_, answer) => panic!("{choice:?}: {answer:?}"),
        }
    }
}

#[test]
fn a_client_that_leaves_early_leaves_no_claim() {
    let rules = rules(|_| {});
    let mut exchange = begin(&rules);
    let prints = vec![fingerprint(&rules, "a")];
    let now = Timestamp::default();
    exchange.step(Event::Body(BodyEnd::Whole(prints), token(1)), now);
    assert!(
        matches!(exchange.abandon(), Some(Deferred::Release(lease)) if lease.token == token(1))
    );
}

#[test]
fn every_outcome_is_marked_as_the_policy_says() {
    let plain = rules(|_| {});
    let original = rules(|policy| {
        *policy = Policy::idemptx();
        policy.scope = Some(ScopeRule::Shared);
    });
    let operation =
        crate::exchange::Operation::new(&plain, Scope::shared(), Key::new("k", 255).unwrap());
    let print = fingerprint(&plain, "a");
    let marks = |rules: &Rules, outcome: &Outcome| {
        let mut headers = HeaderMap::new();
        crate::response_headers::mark(&mut headers, rules, outcome, Some(&operation), Some(&print));
        let mut lines: Vec<_> = headers
            .iter()
            .filter(|(name, _)| *name != "x-idempotency-signature")
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.join(", ")
    };
    let stored = Outcome::Executed { attempt: 1, stored: true };
    let unstored = Outcome::Executed { attempt: 1, stored: false };
    assert_eq!(marks(&plain, &stored), "");
    assert_eq!(marks(&plain, &unstored), "idempotency-stored: false");
    assert_eq!(marks(&plain, &Outcome::Replayed), "idempotent-replayed: true");
    assert_eq!(marks(&plain, &Outcome::Bypassed(Bypass::NoKey)), "");
    assert_eq!(marks(&plain, &Outcome::Bypassed(Bypass::Unprotected)), "idempotency-stored: false");
    assert_eq!(
        marks(&plain, &Outcome::Bypassed(Bypass::WouldReplay)),
        "idempotency-status: would-replay"
    );
    assert_eq!(marks(&original, &stored), "idempotency-key: k, x-idempotency-status: new");
    assert_eq!(
        marks(&original, &Outcome::Replayed),
        "idempotency-key: k, idempotent-replayed: true, x-idempotency-status: hit"
    );
}
