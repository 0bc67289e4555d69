use std::time::Duration;

use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::Record;
use idemptx_core::store::ClaimRequest;

use super::*;

#[test]
fn the_first_leads_and_the_others_follow() {
    let single_flight = SingleFlight::new();
    let leader = lead(&single_flight, 1);
    let mut followers = [follow(&single_flight, 1), follow(&single_flight, 1)];
    assert!(
        matches!(single_flight.enter(id(2)), Entry::Lead(_)),
        "another record has another leader"
    );
    leader.announce(holder());
    for follower in &mut followers {
        assert!(matches!(follower.try_recv(), Ok(Update::Held(_))));
    }
    assert!(matches!(single_flight.enter(id(1)), Entry::Held(_)));
    leader.complete(&Update::Changed);
    assert!(matches!(single_flight.enter(id(1)), Entry::Lead(_)), "the record is forgotten");
}

#[test]
fn a_waiting_request_gets_the_last_update() {
    let single_flight = SingleFlight::new();
    let leader = lead(&single_flight, 1);
    leader.announce(holder());
    let mut waiter = seat(&single_flight, 1);
    assert!(waiter.update.try_recv().is_err(), "it still runs");
    leader.complete(&Update::Settled(record()));
    assert!(matches!(waiter.update.try_recv(), Ok(Update::Settled(_))));
}

#[test]
fn a_dropped_leader_sends_all_others_to_ask() {
    let single_flight = SingleFlight::new();
    let leader = lead(&single_flight, 1);
    let mut follower = follow(&single_flight, 1);
    let mut waiter = seat(&single_flight, 1);
    drop(leader);
    assert!(matches!(follower.try_recv(), Ok(Update::Changed)));
    assert!(matches!(waiter.update.try_recv(), Ok(Update::Changed)));
    assert!(matches!(single_flight.enter(id(1)), Entry::Lead(_)));
}

#[test]
fn the_first_to_wait_for_another_process_watches_for_all() {
    let single_flight = SingleFlight::new();
    let WaitSlot::Watcher(first, leader) = single_flight.wait(id(1), holder(), LIMITS) else {
        panic!("not watched")
    };
    let second = seat(&single_flight, 1);
    assert!(matches!(single_flight.enter(id(1)), Entry::Held(_)), "no other request need ask");
    assert!(leader.is_awaited());
    drop(first);
    assert!(leader.is_awaited());
    drop(second);
    assert!(!leader.is_awaited());
}

#[test]
fn places_are_limited_and_freed_at_once() {
    let single_flight = SingleFlight::new();
    let leaders = [1, 2, 3].map(|number| lead(&single_flight, number));
    leaders.iter().for_each(|leader| leader.announce(holder()));
    let first = seat(&single_flight, 1);
    let _second = seat(&single_flight, 1);
    assert!(
        matches!(single_flight.wait(id(1), holder(), LIMITS), WaitSlot::Full),
        "two for one key"
    );
    let _third = seat(&single_flight, 2);
    assert!(matches!(single_flight.wait(id(3), holder(), LIMITS), WaitSlot::Full), "three in all");
    drop(first);
    let _fourth = seat(&single_flight, 1);
    assert!(matches!(single_flight.wait(id(3), holder(), LIMITS), WaitSlot::Full));
}

#[test]
fn those_who_only_follow_take_no_place() {
    let single_flight = SingleFlight::new();
    let leader = lead(&single_flight, 1);
    let followers: Vec<_> = (0..10).map(|_| follow(&single_flight, 1)).collect();
    // A request may begin to wait for a claim while another one asks again.
    let _waiter = seat(&single_flight, 1);
    leader.announce(holder());
    assert_eq!(followers.len(), 10);
}

#[test]
fn a_refused_place_is_not_counted() {
    let single_flight = SingleFlight::new();
    let leader = lead(&single_flight, 1);
    leader.announce(holder());
    let waiters = [1, 1].map(|number| seat(&single_flight, number));
    for _ in 0..10 {
        assert!(matches!(single_flight.wait(id(1), holder(), LIMITS), WaitSlot::Full));
    }
    drop(waiters);
    let _two = [1, 1].map(|number| seat(&single_flight, number));
    let WaitSlot::Watcher(_other, _leader) = single_flight.wait(id(2), holder(), LIMITS) else {
        panic!("no place")
    };
}

fn lead(single_flight: &Arc<SingleFlight>, number: u8) -> Leader {
    match single_flight.enter(id(number)) {
        Entry::Lead(leader) => leader,
        other => panic!("{other:?}"),
    }
}

fn follow(single_flight: &Arc<SingleFlight>, number: u8) -> oneshot::Receiver<Update> {
    match single_flight.enter(id(number)) {
        Entry::Follow(update) => update,
        other => panic!("{other:?}"),
    }
}

fn seat(single_flight: &Arc<SingleFlight>, number: u8) -> Waiter {
    match single_flight.wait(id(number), holder(), LIMITS) {
        WaitSlot::Joined(waiter) => waiter,
        other => panic!("{other:?}"),
    }
}

fn holder() -> ClaimInfo {
    ClaimInfo::new(&record(), Duration::from_secs(15))
}

fn record() -> Record {
    let (term, retain) = (Duration::from_secs(15), Duration::from_secs(60));
    let token = Token::from_bytes([1; Token::BYTES]);
    let request = ClaimRequest::new(token, Fingerprint::unchecked(), term, retain);
    Record::running(&Lease::granted(id(1), &request, 1, 1))
}

fn id(number: u8) -> RecordId {
    RecordId::from_bytes([number; RecordId::BYTES])
}

const LIMITS: WaitLimits = WaitLimits { waiters_max: 2, waiters_total_max: 3 };
