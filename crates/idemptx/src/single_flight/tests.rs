use std::time::Duration;

use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::store::ClaimRequest;

use super::*;

#[test]
fn the_first_leads_and_the_others_follow() {
    let flights = Flights::new(16, 16);
    let pilot = lead(&flights, 1);
    let mut followers = [follow(&flights, 1), follow(&flights, 1)];
    assert!(matches!(flights.enter(id(2)), Entrance::Lead(_)), "another record, another flight");
    pilot.held(holder());
    for follower in &mut followers {
        assert!(matches!(follower.try_recv(), Ok(News::Held(_))));
    }
    assert!(matches!(flights.enter(id(1)), Entrance::Held(_)));
    pilot.land(&News::Changed);
    assert!(matches!(flights.enter(id(1)), Entrance::Lead(_)), "the record is forgotten");
}

#[test]
fn who_waits_is_told_the_end() {
    let flights = Flights::new(16, 16);
    let pilot = lead(&flights, 1);
    pilot.held(holder());
    let mut waiter = seat(&flights, 1);
    assert!(waiter.news.try_recv().is_err(), "it is still under way");
    pilot.land(&News::Settled(record()));
    assert!(matches!(waiter.news.try_recv(), Ok(News::Settled(_))));
}

#[test]
fn a_pilot_that_vanishes_sends_everybody_to_ask() {
    let flights = Flights::new(16, 16);
    let pilot = lead(&flights, 1);
    let mut follower = follow(&flights, 1);
    let mut waiter = seat(&flights, 1);
    drop(pilot);
    assert!(matches!(follower.try_recv(), Ok(News::Changed)));
    assert!(matches!(waiter.news.try_recv(), Ok(News::Changed)));
    assert!(matches!(flights.enter(id(1)), Entrance::Lead(_)));
}

#[test]
fn the_first_to_wait_for_another_process_keeps_watch_for_all() {
    let flights = Flights::new(16, 16);
    let Seat::Vigil(first, pilot) = flights.wait(id(1), holder()) else { panic!("not watched") };
    let second = seat(&flights, 1);
    assert!(matches!(flights.enter(id(1)), Entrance::Held(_)), "nobody else need ask");
    assert!(pilot.is_awaited());
    drop(first);
    assert!(pilot.is_awaited());
    drop(second);
    assert!(!pilot.is_awaited());
}

#[test]
fn places_are_limited_and_freed_at_once() {
    let flights = Flights::new(2, 3);
    let pilots = [1, 2, 3].map(|number| lead(&flights, number));
    pilots.iter().for_each(|pilot| pilot.held(holder()));
    let first = seat(&flights, 1);
    let _second = seat(&flights, 1);
    assert!(matches!(flights.wait(id(1), holder()), Seat::Full), "two for one key");
    let _third = seat(&flights, 2);
    assert!(matches!(flights.wait(id(3), holder()), Seat::Full), "three in all");
    drop(first);
    let _fourth = seat(&flights, 1);
    assert!(matches!(flights.wait(id(3), holder()), Seat::Full));
}

#[test]
fn those_who_only_follow_take_no_place() {
    let flights = Flights::new(2, 2);
    let pilot = lead(&flights, 1);
    let followers: Vec<_> = (0..10).map(|_| follow(&flights, 1)).collect();
    // Somebody may begin to wait for a holder while another request asks anew.
    let _waiter = seat(&flights, 1);
    pilot.held(holder());
    assert_eq!(followers.len(), 10);
}

#[test]
fn a_refused_place_is_not_counted() {
    let flights = Flights::new(1, 2);
    let pilot = lead(&flights, 1);
    pilot.held(holder());
    let waiter = seat(&flights, 1);
    for _ in 0..10 {
        assert!(matches!(flights.wait(id(1), holder()), Seat::Full));
    }
    drop(waiter);
    let _one = seat(&flights, 1);
    let Seat::Vigil(_other, _pilot) = flights.wait(id(2), holder()) else { panic!("no place") };
}

fn lead(flights: &Arc<Flights>, number: u8) -> Pilot {
    match flights.enter(id(number)) {
        Entrance::Lead(pilot) => pilot,
        other => panic!("{other:?}"),
    }
}

fn follow(flights: &Arc<Flights>, number: u8) -> oneshot::Receiver<News> {
    match flights.enter(id(number)) {
        Entrance::Follow(news) => news,
        other => panic!("{other:?}"),
    }
}

fn seat(flights: &Arc<Flights>, number: u8) -> Waiter {
    match flights.wait(id(number), holder()) {
        Seat::Taken(waiter) => waiter,
        other => panic!("{other:?}"),
    }
}

fn holder() -> ClaimInfo {
    ClaimInfo::new(&record(), Duration::from_secs(15))
}

fn record() -> Record {
    let (term, retain) = (Duration::from_secs(15), Duration::from_secs(60));
    let token = Token::from_bytes([1; Token::BYTES]);
    let claim_request = ClaimRequest::new(token, Fingerprint::unchecked(), term, retain);
    Record::running(&Lease::granted(id(1), &claim_request, 1, 1))
}

fn id(number: u8) -> RecordId {
    RecordId::from_bytes([number; RecordId::BYTES])
}
