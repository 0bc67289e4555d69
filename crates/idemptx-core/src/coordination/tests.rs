use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::record::{Record, State};
use crate::store::{ClaimInfo, ClaimRequest, ErrorKind, Settlement};
use crate::time::Timestamp;

#[test]
fn a_lease_is_renewed_at_a_third_of_its_term_and_sooner_after_a_failure() {
    let mut leases = LeaseSchedule::new();
    assert!(leases.add(lease(1, 1), "first", at(0)), "nothing was planned");
    assert_eq!(leases.plan(), Some(at(10_000)));
    assert!(!leases.add(lease(2, 1), "second", at(4)), "it is due later");
    assert!(leases.take_due(at(9_999)).is_empty());
    let due: Vec<_> = leases.take_due(at(10_000)).into_iter().map(|(_, holder)| *holder).collect();
    assert_eq!(due, ["first"]);
    assert_eq!(leases.renewed(&token(1), Err(ErrorKind::Unavailable), at(10_500)), None);
    assert_eq!(leases.plan(), Some(at(10_004)), "the second one's turn");
    assert_eq!(leases.take_due(at(10_004)).len(), 1);
    assert_eq!(leases.plan(), Some(at(11_500)), "a second after the failure");
}

#[test]
fn a_lost_lease_is_reported_once_and_not_renewed_again() {
    let mut leases = LeaseSchedule::new();
    leases.add(lease(1, 1), "holder", at(0));
    assert_eq!(leases.renewed(&token(1), Err(ErrorKind::Fenced), at(1)), Some("holder"));
    assert_eq!(leases.renewed(&token(1), Err(ErrorKind::Fenced), at(2)), None);
    assert_eq!((leases.plan(), leases.is_empty()), (None, true));
}

#[test]
fn an_operation_is_repeated_with_growing_pauses_until_it_is_confirmed() {
    let journal = Journal::default();
    let mut settling = journal.admit(settling(b"done"), at(0)).unwrap();
    let mut pauses = Vec::new();
    for _ in 0..6 {
        match settling.attempted(Err(ErrorKind::Unavailable), at(0), &journal) {
            Next::Repeat(pause) => pauses.push(pause.as_millis()),
            Next::Over(update) => panic!("{update:?}"),
        }
    }
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1000]);
    assert_eq!(journal.unconfirmed(), 1);
    let over = settling.attempted(Ok(()), at(0), &journal);
    assert!(matches!(over, Next::Over(Update::Settled(record)) if record.payload == "done"));
    assert_eq!(journal.unconfirmed(), 1, "until those who wait have heard of it");
    settling.close(&journal);
    assert_eq!(journal.unconfirmed(), 0);
}

#[test]
fn an_operation_that_another_owner_overtook_is_over() {
    let journal = Journal::default();
    for kind in [ErrorKind::Fenced, ErrorKind::Corrupt] {
        for operation in [settling(b"late"), release(1), release(0)] {
            let mut late = journal.admit(operation, at(0)).unwrap();
            let next = late.attempted(Err(kind), at(0), &journal);
            assert!(matches!(next, Next::Over(Update::Changed)), "{next:?}");
            late.close(&journal);
        }
    }
    assert_eq!(journal.unconfirmed(), 0);
}

#[test]
fn an_operation_is_given_up_after_an_hour() {
    let journal = Journal::default();
    let mut settling = journal.admit(settling(b"lost"), at(0)).unwrap();
    let failed = Err(ErrorKind::Unavailable);
    assert!(matches!(settling.attempted(failed, at(3_599_000), &journal), Next::Repeat(_)));
    assert!(matches!(settling.attempted(failed, at(3_600_000), &journal), Next::Over(_)));
    settling.close(&journal);
    assert_eq!(journal.unconfirmed(), 0);
}

#[test]
fn a_claim_that_may_still_come_is_released_again_until_its_lease_would_have_lapsed() {
    let journal = Journal::default();
    let mut release = journal.admit(release(0), at(0)).unwrap();
    let (mut millis, mut releases, mut outcome) = (0, Vec::new(), Ok(()));
    while let Next::Repeat(pause) = release.attempted(outcome, at(millis), &journal) {
        assert_eq!(journal.unconfirmed(), 0, "a drain waits for the first one only");
        millis += u64::try_from(pause.as_millis()).unwrap();
        releases.push(millis);
        outcome = if releases.len() == 3 { Err(ErrorKind::Unavailable) } else { Ok(()) };
    }
    let expected = [50, 150, 350, 750, 1550, 3150, 6350, 12_750, 25_550, 30_000];
    assert_eq!(releases, expected, "ever more rarely, whatever becomes of one");
}

#[test]
fn clients_that_leave_cannot_stop_all_others() {
    let journal = Journal::default();
    let mut admitted: Vec<_> =
        (0..Journal::UNACKNOWLEDGED_MAX).map(|_| journal.admit(release(0), at(0))).collect();
    assert!(admitted.iter().all(Option::is_some));
    assert!(journal.admit(release(0), at(0)).is_none(), "such a claim lapses");
    assert!(!journal.is_full());
    assert!(journal.admit(release(1), at(0)).is_some(), "a granted one is always released");
    let mut one = admitted.pop().flatten().unwrap();
    assert!(matches!(one.attempted(Err(ErrorKind::Fenced), at(0), &journal), Next::Over(_)));
    one.close(&journal);
    assert!(journal.admit(release(0), at(0)).is_some());
}

#[test]
fn when_too_much_is_unconfirmed_nothing_new_may_begin() {
    let journal = Journal::default();
    let mut admitted: Vec<_> =
        (1..Journal::ENTRIES_MAX).map(|_| journal.admit(release(1), at(0))).collect();
    assert!(!journal.is_full());
    admitted.push(journal.admit(settling(b"a result is kept all the same"), at(0)));
    assert!(journal.is_full());
    let mut one = admitted.pop().flatten().unwrap();
    assert!(matches!(one.attempted(Ok(()), at(0), &journal), Next::Over(_)));
    one.close(&journal);
    assert!(!journal.is_full());
}

#[test]
fn the_bytes_of_unconfirmed_results_are_limited() {
    let (journal, payload) = (Journal::default(), Bytes::from(vec![0; 64 << 20]));
    let mut admitted = Vec::new();
    for _ in 0..4 {
        assert!(!journal.is_full());
        let done = Settlement::new(State::Completed, payload.clone(), TERM, TERM);
        admitted.push(journal.admit(Unconfirmed::Settle(lease(1, 1), done), at(0)).unwrap());
    }
    assert!(journal.is_full());
    let mut one = admitted.pop().unwrap();
    assert!(matches!(one.attempted(Ok(()), at(0), &journal), Next::Over(_)));
    one.close(&journal);
    assert!(!journal.is_full());
}

proptest! {
    /// In any order of requests a record has one leader at a time, everyone who
    /// listens hears exactly one update unless it left, and the count of those who wait is right.
    #[test]
    fn everyone_who_listens_is_told_exactly_once(steps in prop::collection::vec((0..6_u8, 0..3_u8), 1..200)) {
        let mut flight = SingleFlight::new(Arc::new(AtomicUsize::new(0)));
        let limits = WaitLimits { waiters_max: 3, waiters_total_max: 5 };
        let (mut leaders, mut deaf) = (BTreeSet::new(), BTreeSet::new());
        let mut places: Vec<(u8, Place, u32)> = Vec::new();
        let (mut listeners, mut heard) = (0_u32, BTreeSet::new());
        for (step, record) in steps {
            let record_id = id(record);
            match step {
                0 => match flight.enter(record_id, || { listeners += 1; listeners }) {
                    Entry::Lead => prop_assert!(leaders.insert(record), "two lead"),
                    Entry::Follow | Entry::Held(_) => prop_assert!(leaders.contains(&record)),
                },
                1 => match flight.wait(record_id, holder(record), limits, || { listeners += 1; listeners }) {
                    Waiting::Full => {
                        let here = places.iter().filter(|it| it.0 == record && !heard.contains(&it.2)).count();
                        prop_assert!(here == limits.waiters_max || places.len() == limits.waiters_total_max);
                    }
                    Waiting::Joined(place) => places.push((record, place, listeners)),
                    Waiting::Watch(place) => {
                        prop_assert!(leaders.insert(record), "two watch");
                        places.push((record, place, listeners));
                    }
                },
                2 if leaders.contains(&record) => {
                    for listener in flight.announce(&record_id, holder(record)) {
                        prop_assert!(heard.insert(listener));
                    }
                }
                3 | 4 => {
                    if let Some(at) = places.iter().position(|it| it.0 == record) {
                        let (_, place, listener) = places.remove(at);
                        flight.leave(&record_id, place);
                        if !heard.contains(&listener) {
                            deaf.insert(listener);
                        }
                    }
                }
                5 if leaders.remove(&record) => {
                    for listener in flight.complete(&record_id) {
                        prop_assert!(heard.insert(listener));
                    }
                }
                _ => {}
            }
            prop_assert_eq!(flight.waiting(), places.len());
            let awaited = places.iter().any(|it| it.0 == record && !heard.contains(&it.2));
            prop_assert_eq!(flight.is_awaited(&record_id), awaited);
        }
        for record in leaders {
            for listener in flight.complete(&id(record)) {
                prop_assert!(heard.insert(listener));
            }
        }
        prop_assert!(heard.is_disjoint(&deaf), "one that left is not told");
        prop_assert_eq!(heard.len() + deaf.len(), listeners as usize);
    }
}

fn settling(payload: &'static [u8]) -> Unconfirmed {
    let done = Settlement::new(State::Completed, Bytes::from_static(payload), RETAIN, RETAIN);
    Unconfirmed::Settle(lease(1, 1), done)
}

fn release(fence: u64) -> Unconfirmed {
    Unconfirmed::Release(lease(1, fence))
}

fn lease(number: u8, fence: u64) -> Lease {
    let request = ClaimRequest::new(token(number), Fingerprint::unchecked(), TERM, RETAIN);
    Lease::granted(id(number), &request, fence, 1)
}

fn holder(number: u8) -> ClaimInfo {
    ClaimInfo::new(&Record::running(&lease(number, 1)), TERM)
}

const fn token(number: u8) -> Token {
    Token::from_bytes([number; Token::BYTES])
}

fn id(number: u8) -> RecordId {
    RecordId::from_bytes([number; RecordId::BYTES])
}

const fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

const TERM: Duration = Duration::from_secs(30);
const RETAIN: Duration = Duration::from_secs(86_400);
