use bytes::Bytes;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::record::State;
use idemptx_core::store::{Claim, ClaimRequest, RecordSnapshot};
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

use super::*;
use crate::flight::{Flights, Seat, Waiter};

#[tokio::test]
async fn a_lease_is_renewed_until_its_heartbeat_is_dropped() {
    let (store, keeper) = kept();
    let (ended, goes_on) = (claimed(&store, 1).await, claimed(&store, 2).await);
    let heartbeats = (keeper.beat(&ended), keeper.beat(&goes_on));
    store.performed(Operation::Renew, 10).await;
    drop(heartbeats.0);
    // What was on its way when the heartbeat ended is over by the time that others have come.
    store.performed(Operation::Renew, store.calls(Operation::Renew) + 2).await;
    store.advance(LEASE * 2);
    store.performed(Operation::Renew, store.calls(Operation::Renew) + 4).await;
    assert!(is_orphan(&store, &ended).await);
    assert!(!is_orphan(&store, &goes_on).await);
    assert!(!heartbeats.1.lost().is_lost());
}

#[tokio::test]
async fn who_lost_its_lease_is_told() {
    let (store, keeper) = kept();
    let lease = claimed(&store, 1).await;
    let heartbeat = keeper.beat(&lease);
    let lost = Arc::clone(heartbeat.lost());
    store.memory().release(&lease).await.unwrap();
    timeout(PATIENCE, lost.wait()).await.unwrap();
    assert!(lost.is_lost());
}

#[tokio::test]
async fn a_renewal_without_a_verdict_is_repeated_while_the_lease_lives() {
    let (store, keeper) = kept();
    let lease = claimed(&store, 1).await;
    store.next(Operation::Renew, Behavior::Fail(ErrorKind::Unavailable));
    store.next(Operation::Renew, Behavior::DelayReply(Gate::closed()));
    store.next(Operation::Renew, Behavior::Fail(ErrorKind::Internal));
    let heartbeat = keeper.beat(&lease);
    store.called(Operation::Renew, 6).await;
    assert!(!heartbeat.lost().is_lost());
}

#[test]
fn a_paused_clock_of_the_application_does_not_stop_heartbeats() {
    let runtime = |paused| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(paused).build().unwrap()
    };
    let (store, keeper) = kept();
    let heartbeat = runtime(true).block_on(async {
        tokio::time::advance(Duration::from_secs(3600)).await;
        keeper.beat(&claimed(&store, 1).await)
    });
    runtime(false).block_on(store.called(Operation::Renew, 3));
    assert!(!heartbeat.lost().is_lost());
}

#[tokio::test]
async fn a_release_is_repeated_until_it_is_confirmed() {
    let (store, keeper) = kept();
    let lease = claimed(&store, 1).await;
    store.next(Operation::Release, Behavior::Fail(ErrorKind::Unavailable));
    store.next(Operation::Release, Behavior::LoseReply(ErrorKind::Unavailable));
    keeper.deferred(Job::Release(lease.clone()));
    timeout(PATIENCE, keeper.idle()).await.unwrap();
    assert_eq!(store.calls(Operation::Release), 3);
    assert_eq!(store.memory().lookup(&lease.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_claim_that_nobody_heard_of_is_released_until_it_cannot_come_any_more() {
    let (store, keeper) = kept();
    let (id, claim_request) = (id(1), claim_request(LEASE));
    let began = Instant::now();
    keeper.deferred(Job::Release(Lease::granted(id, &claim_request, 0, 0)));
    store.performed(Operation::Release, 1).await;
    assert!(matches!(store.memory().claim(&id, &claim_request).await, Ok(Claim::Granted(_))));
    timeout(PATIENCE, keeper.idle()).await.unwrap();
    assert!(began.elapsed() > LEASE);
    assert_eq!(store.memory().lookup(&id).await.unwrap(), None);
}

#[tokio::test]
async fn a_release_of_what_somebody_else_holds_is_over() {
    let (store, keeper) = kept();
    claimed(&store, 1).await;
    let other =
        ClaimRequest::new(Token::from_bytes([9; 16]), Fingerprint::unchecked(), LEASE, RETAIN);
    keeper.deferred(Job::Release(Lease::granted(id(1), &other, 0, 0)));
    timeout(PATIENCE, keeper.idle()).await.unwrap();
    assert_eq!(store.calls(Operation::Release), 1);
}

#[tokio::test]
async fn a_result_is_settled_on_a_living_lease_and_told_to_those_who_wait() {
    let (store, keeper) = kept();
    let lease = claimed(&store, 1).await;
    let (mut waiter, pilot) = awaited(&lease);
    store.always(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    let heartbeat = Some(keeper.beat(&lease));
    let done = Settlement::new(State::Completed, Bytes::from_static(b"done"), RETAIN, RETAIN);
    keeper.deferred(Job::Settle { lease: lease.clone(), done, heartbeat, pilot: Some(pilot) });
    store.called(Operation::Renew, 4).await;
    assert!(waiter.news.try_recv().is_err());
    store.always(Operation::Settle, Behavior::Succeed);
    let news = timeout(PATIENCE, &mut waiter.news).await.unwrap().unwrap();
    assert!(matches!(news, News::Settled(record) if record.payload == "done"));
    timeout(PATIENCE, keeper.idle()).await.unwrap();
    assert!(matches!(store.memory().lookup(&lease.id).await, Ok(Some(RecordSnapshot::Settled(_)))));
    assert!(keeper.shared.beats().running.is_empty());
}

#[tokio::test]
async fn a_result_that_came_too_late_sends_those_who_wait_to_ask() {
    let (store, keeper) = kept();
    let lease = claimed(&store, 1).await;
    store.memory().release(&lease).await.unwrap();
    let (mut waiter, pilot) = awaited(&lease);
    keeper.deferred(settling(lease, Some(pilot)));
    let news = timeout(PATIENCE, &mut waiter.news).await.unwrap().unwrap();
    assert!(matches!(news, News::Changed));
}

#[tokio::test]
async fn releases_that_take_a_whole_lease_hold_nothing_else_up() {
    let (store, keeper) = kept();
    for number in 0..200 {
        let claim_request = claim_request(Duration::from_secs(3600));
        keeper.deferred(Job::Release(Lease::granted(id(number), &claim_request, 0, 0)));
    }
    keeper.deferred(settling(claimed(&store, 201).await, None));
    store.performed(Operation::Settle, 1).await;
}

#[tokio::test]
async fn when_too_much_is_unconfirmed_nothing_new_may_begin() {
    let (store, keeper) = kept();
    let gate = Gate::closed();
    store.always(Operation::Release, Behavior::DelayReply(gate.clone()));
    let lease = Lease::granted(id(1), &claim_request(LEASE), 1, 1);
    for _ in 1..RESULTS_MAX {
        keeper.deferred(Job::Release(lease.clone()));
    }
    assert!(!keeper.is_full());
    keeper.deferred(Job::Release(lease));
    assert!(keeper.is_full());
    gate.open();
    timeout(PATIENCE, keeper.idle()).await.unwrap();
    assert!(!keeper.is_full());
}

#[tokio::test]
async fn clients_that_leave_cannot_stop_everybody() {
    let (_store, keeper) = kept();
    for number in 0..UNHEARD_MAX + 100 {
        let claim_request = claim_request(Duration::from_secs(3600));
        let id = id(u8::try_from(number % 256).unwrap());
        keeper.deferred(Job::Release(Lease::granted(id, &claim_request, 0, 0)));
    }
    assert!(!keeper.is_full());
    assert_eq!(keeper.shared.unheard.load(Ordering::Relaxed), UNHEARD_MAX);
}

#[tokio::test]
async fn the_bytes_of_unconfirmed_results_are_limited() {
    let (store, keeper) = kept();
    let gate = Gate::closed();
    store.always(Operation::Settle, Behavior::DelayReply(gate.clone()));
    let payload = Bytes::from(vec![0; 64 << 20]);
    let lease = claimed(&store, 1).await;
    for _ in 0..4 {
        assert!(!keeper.is_full());
        let done = Settlement::new(State::Completed, payload.clone(), RETAIN, RETAIN);
        let job = Job::Settle { lease: lease.clone(), done, heartbeat: None, pilot: None };
        keeper.deferred(job);
    }
    assert!(keeper.is_full());
    gate.open();
    timeout(PATIENCE, keeper.idle()).await.unwrap();
    assert!(!keeper.is_full());
}

#[tokio::test]
async fn the_thread_ends_with_the_engine_once_its_work_is_done() {
    let store = Arc::new(ScriptedStore::new());
    let scripted = ScriptedStore::clone(&store);
    let remaining = Arc::downgrade(&store);
    let keeper = Keeper::new(store);
    drop(keeper.beat(&claimed(&scripted, 1).await));
    keeper.deferred(settling(claimed(&scripted, 2).await, None));
    drop(keeper);
    scripted.performed(Operation::Settle, 1).await;
    let deadline = Instant::now() + PATIENCE;
    while remaining.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the thread goes on");
        std::thread::yield_now();
    }
}

fn kept() -> (ScriptedStore, Keeper<ScriptedStore>) {
    let store = ScriptedStore::new();
    (store.clone(), Keeper::new(Arc::new(store)))
}

async fn claimed(store: &ScriptedStore, number: u8) -> Lease {
    let token = Token::from_bytes([number; Token::BYTES]);
    let claim_request = ClaimRequest::new(token, Fingerprint::unchecked(), LEASE, RETAIN);
    match store.memory().claim(&id(number), &claim_request).await {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

async fn is_orphan(store: &ScriptedStore, lease: &Lease) -> bool {
    let seen = store.memory().lookup(&lease.id).await;
    matches!(seen, Ok(Some(RecordSnapshot::Held(holder))) if holder.is_orphan())
}

fn settling(lease: Lease, pilot: Option<Pilot>) -> Job {
    let done = Settlement::new(State::Completed, Bytes::from_static(b"done"), RETAIN, RETAIN);
    Job::Settle { lease, done, heartbeat: None, pilot }
}

/// Somebody who waits for a record, and whoever tells.
fn awaited(lease: &Lease) -> (Waiter, Pilot) {
    let holder = idemptx_core::store::ClaimInfo::new(&Record::running(lease), LEASE);
    match Flights::new(16, 16).wait(lease.id, holder) {
        Seat::Vigil(waiter, pilot) => (waiter, pilot),
        other => panic!("{other:?}"),
    }
}

fn claim_request(term: Duration) -> ClaimRequest {
    ClaimRequest::new(Token::from_bytes([1; 16]), Fingerprint::unchecked(), term, RETAIN)
}

fn id(number: u8) -> RecordId {
    RecordId::from_bytes([number; RecordId::BYTES])
}

const LEASE: Duration = Duration::from_millis(100);
const RETAIN: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);
