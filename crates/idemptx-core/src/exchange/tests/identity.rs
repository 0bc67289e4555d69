//! The identity of an operation: its record, its digest and its derived keys.

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, StatusCode, Uri};

use super::passage::{Passage, Stored};
use super::world::{begin, fingerprint, fingerprints, head_parts, rules, token};
use crate::exchange::{Action, BodyEnd, Event, Exchange, Handled, Head, Operation, Rules};
use crate::fingerprint::{BodyRule, Fingerprint, FingerprintRule};
use crate::key::{Key, RecordId, Scope};
use crate::policy::{KeySpace, Policy, ScopeRule};
use crate::secret::Secret;
use crate::stats::KeyMeter;
use crate::time::Timestamp;

const CREATED: Handled = Handled::Whole { status: StatusCode::CREATED, directive: None };

/// The parts of a request that identify its operation.
#[derive(Clone, Copy)]
struct Sent {
    method: Verb,
    path: &'static str,
    client_path: Option<&'static str>,
    credential: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Verb {
    Post,
    Patch,
}

const SENT: Sent =
    Sent { method: Verb::Post, path: "/orders", client_path: None, credential: None };

impl Sent {
    fn operation(self, rules: &Arc<Rules>) -> (Operation, Fingerprint) {
        let (_, _, mut headers) = head_parts();
        if let Some(credential) = self.credential {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(credential));
        }
        let method = match self.method {
            Verb::Post => Method::POST,
            Verb::Patch => Method::PATCH,
        };
        let uri = Uri::from_static(self.path);
        let head = Head::new(&method, &uri, &headers).sent_to(self.client_path);
        let (exchange, _) = Exchange::begin(rules, &head);
        let print = exchange.fingerprinters(&head).unwrap().try_finish().unwrap().remove(0);
        (exchange.operation().unwrap().clone(), print)
    }
}

/// Plays a request with `mine` against a response that was stored for `theirs`.
fn play(rules: &Arc<Rules>, status: u16, theirs: Fingerprint, mine: Fingerprint) -> String {
    let mut passage = Passage::new(rules, Stored::Done(status));
    passage.cell.record.as_mut().unwrap().fingerprint = theirs;
    passage.play_with(mine, CREATED)
}

fn secret(id: u8) -> Secret {
    Secret::new(id, &[id; 16]).unwrap()
}

#[test]
fn another_operation_is_refused_whatever_is_compared_of_requests() {
    let other_path = Sent { path: "/refunds", ..SENT };
    let other_method = Sent { method: Verb::Patch, ..SENT };
    let body = |body| FingerprintRule { body, ..FingerprintRule::default() };
    let comparisons = [None, Some(body(BodyRule::Raw)), Some(body(BodyRule::None))];
    for theirs in &comparisons {
        for mine in &comparisons {
            let [theirs, mine] =
                [theirs, mine].map(|rule| rules(|policy| policy.fingerprint.clone_from(rule)));
            let stored = SENT.operation(&theirs).1;
            for other in [other_path, other_method] {
                let other = other.operation(&mine).1;
                assert_eq!(play(&mine, 201, stored, other), "claim, refuse 422 key-reused");
                // A corrected request may have another path; it is executed, never answered.
                assert_eq!(
                    play(&mine, 422, stored, other),
                    "claim, claim over result, execute 2, settle Completed, own stored"
                );
            }
            assert_eq!(
                play(&mine, 201, stored, SENT.operation(&mine).1),
                "claim, replay 201 first"
            );
        }
    }
}

#[test]
fn a_job_and_a_request_are_never_one_operation() {
    let rules = rules(|policy| policy.fingerprint = None);
    let job = rules.fingerprints(&[b"a"])[0];
    let request = SENT.operation(&rules).1;
    assert_eq!(play(&rules, 201, job, request), "claim, refuse 422 key-reused");
    assert_eq!(play(&rules, 201, request, job), "claim, refuse 422 key-reused");
    assert_eq!(play(&rules, 201, job, job), "claim, replay 201 first");
}

#[test]
fn the_path_that_counts_is_the_one_the_client_sent() {
    let nested = |client_path| Sent { client_path: Some(client_path), ..SENT };
    let (a, b) = (nested("/tenants/a/orders"), nested("/tenants/b/orders"));
    for key_space in [KeySpace::Scope, KeySpace::Route] {
        let rules = rules(|policy| policy.key_space = key_space);
        let (theirs, mine) = (a.operation(&rules), b.operation(&rules));
        assert_eq!(theirs.0.id() == mine.0.id(), key_space == KeySpace::Scope);
        assert_eq!(play(&rules, 201, theirs.1, mine.1), "claim, refuse 422 key-reused");
        assert_eq!(play(&rules, 201, theirs.1, a.operation(&rules).1), "claim, replay 201 first");
    }
}

#[test]
fn an_operation_keeps_its_record_and_its_derived_keys_while_secrets_rotate() {
    let under = |secrets: &[u8]| {
        let secrets: Vec<_> = secrets.iter().map(|id| secret(*id)).collect();
        rules(|policy| {
            policy.secrets = secrets;
            policy.naming_secret = Some(secret(9));
        })
    };
    let (before, after) = (under(&[1]), under(&[2, 1]));
    let (old, new) = (SENT.operation(&before).0, SENT.operation(&after).0);
    assert_eq!(old.id(), new.id());
    assert_eq!(old.derive("charge", &before), new.derive("charge", &after));
    assert_ne!(old.derive("charge", &before), old.derive("mail", &before));

    // A record that was made before the rotation is compared under the secret that made it.
    let stored = fingerprint(&before, "a");
    for (body, expected) in [("a", "replay"), ("b", "refuse")] {
        let mut exchange = begin(&after);
        let now = Timestamp::default();
        let whole = Event::Body(BodyEnd::Whole(fingerprints(&after, body)), token(1));
        let Action::Claim { id, claim_request } = exchange.step(whole, now) else { panic!() };
        let mut cell = Passage::new(&before, Stored::Done(201)).cell;
        cell.record.as_mut().unwrap().fingerprint = stored;
        let claimed = Event::Claimed(cell.claim(&id, &claim_request, 0));
        let described = super::passage::describe(exchange.step(claimed, now));
        assert!(described.starts_with(expected), "{body}: {described}");
    }
}

#[test]
fn the_naming_secret_names_records_and_derives_keys() {
    let under = |naming: Option<u8>| rules(|policy| policy.naming_secret = naming.map(secret));
    let all = [None, Some(1), Some(2)].map(under);
    let ids = all.each_ref().map(|rules| SENT.operation(rules).0.id());
    let keys = all.each_ref().map(|rules| SENT.operation(rules).0.derive("charge", rules));
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
}

#[test]
fn two_principals_who_chose_one_key_derive_two() {
    let bound = rules(|policy| policy.scope = Some(ScopeRule::Bind(vec![AUTHORIZATION])));
    let by = |credential| Sent { credential, ..SENT }.operation(&bound).0;
    let (alice, bob, anyone) = (by(Some("Bearer a")), by(Some("Bearer b")), by(None));
    assert_eq!(alice.id(), bob.id());
    let derived = [&alice, &bob, &anyone].map(|operation| operation.derive("charge", &bound));
    assert!(derived[0] != derived[1] && derived[1] != derived[2] && derived[0] != derived[2]);
    assert_eq!(by(Some("Bearer a")).derive("charge", &bound), derived[0]);
    // Where keys are bound to nothing, a refreshed credential changes nothing.
    let shared = rules(|_| {});
    let by = |credential| Sent { credential, ..SENT }.operation(&shared).0.derive("x", &shared);
    assert_eq!(by(Some("Bearer a")), by(Some("Bearer b")));
}

#[test]
fn new_keys_are_counted_for_each_principal_and_not_for_each_path() {
    let admits = |meter: &mut KeyMeter, sent: Sent, rules: &Arc<Rules>| {
        meter.admits(sent.operation(rules).0.meter_id(rules), 1, Timestamp::default())
    };
    let bound = rules(|policy| policy.scope = Some(ScopeRule::Bind(vec![AUTHORIZATION])));
    let by = |credential| Sent { credential, ..SENT };
    let (mallory, alice) = (by(Some("Bearer mallory")), by(Some("Bearer alice")));
    let mut meter = KeyMeter::default();
    let admitted = [mallory, mallory, alice].map(|sent| admits(&mut meter, sent, &bound));
    assert_eq!(admitted, [true, false, true]);

    let routed = rules(|policy| policy.key_space = KeySpace::Route);
    let on = |path| Sent { path, ..SENT };
    let mut meter = KeyMeter::default();
    let admitted = ["/a", "/b", "/c"].map(|path| admits(&mut meter, on(path), &routed));
    assert_eq!(admitted, [true, false, false]);
}

#[test]
fn two_operations_of_one_key_on_two_routes_derive_two() {
    let on = |path: &'static str, rules: &Arc<Rules>| {
        Sent { path, ..SENT }.operation(rules).0.derive("charge", rules)
    };
    let by_route = rules(|policy| policy.key_space = KeySpace::Route);
    assert_ne!(on("/orders", &by_route), on("/refunds", &by_route));
    assert_eq!(on("/orders", &by_route), on("/orders", &by_route));
    let by_scope = rules(|policy| policy.key_space = KeySpace::Scope);
    assert_eq!(on("/orders", &by_scope), on("/refunds", &by_scope));
}

#[test]
fn services_in_two_namespaces_share_neither_records_nor_derived_keys() {
    let named = |namespace| {
        let mut policy = Policy::draft();
        policy.scope = Some(ScopeRule::Shared);
        let rules = Rules::in_namespace(policy, namespace);
        let operation = Operation::new(&rules, Scope::new("acme"), Key::new("k", 255).unwrap());
        (operation.id(), operation.derive("charge", &rules))
    };
    let [none, a, b]: [(RecordId, String); 3] = ["", "a", "b"].map(named);
    assert!(none.0 != a.0 && a.0 != b.0 && none.0 != b.0);
    assert!(none.1 != a.1 && a.1 != b.1 && none.1 != b.1);
}

#[test]
fn a_claim_is_kept_for_two_leases_at_least() {
    for (retain, lease, expected) in [(1, 15, 30), (40, 15, 40), (86_400, 15, 86_400)] {
        let [retain, lease, expected] = [retain, lease, expected].map(Duration::from_secs);
        let rules = rules(|policy| {
            (policy.retain, policy.key_retain, policy.lease) = (retain, retain, lease);
        });
        let mut exchange = begin(&rules);
        let whole = Event::Body(BodyEnd::Whole(vec![fingerprint(&rules, "a")]), token(1));
        let action = exchange.step(whole, Timestamp::default());
        let Action::Claim { claim_request, .. } = action else { panic!("{action:?}") };
        assert_eq!(claim_request.retain, expected);
    }
}
