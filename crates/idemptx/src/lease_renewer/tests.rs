use bytes::Bytes;
use idemptx_core::coordination::WaitLimits;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement};

use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

use super::*;
use crate::single_flight::{SingleFlight, Update, WaitSlot, Waiter};

#[tokio::test]
async fn a_lease_is_renewed_until_its_heartbeat_is_dropped() {
    let (store, renewer) = kept();
    let (ended, goes_on) = (claimed(&store, 1).await, claimed(&store, 2).await);
    let heartbeats = (renewer.keep_alive(&ended), renewer.keep_alive(&goes_on));
    store.performed(Operation::Renew, 10).await;
    drop(heartbeats.0);
    // What was on its way when the heartbeat ended is over by the time that others have come.
    store.performed(Operation::Renew, store.calls(Operation::Renew) + 2).await;
    store.advance(LEASE * 2);
    store.performed(Operation::Renew, store.calls(Operation::Renew) + 4).await;
    assert!(is_orphan(&store, &ended).await);
    assert!(!is_orphan(&store, &goes_on).await);
    assert!(!heartbeats.1.loss().is_lost());
}

#[tokio::test]
async fn a_lost_lease_is_reported() {
    let (store, renewer) = kept();
    let lease = claimed(&store, 1).await;
    let heartbeat = renewer.keep_alive(&lease);
    let lost = Arc::clone(heartbeat.loss());
    store.memory().release(&lease).await.unwrap();
    timeout(PATIENCE, lost.wait()).await.unwrap();
    assert!(lost.is_lost());
}

#[tokio::test]
async fn a_renewal_without_a_verdict_is_repeated_while_the_lease_lives() {
    let (store, renewer) = kept();
    let lease = claimed(&store, 1).await;
    store.next(Operation::Renew, Behavior::Fail(ErrorKind::Unavailable));
    store.next(Operation::Renew, Behavior::DelayReply(Gate::closed()));
    store.next(Operation::Renew, Behavior::Fail(ErrorKind::Internal));
    let heartbeat = renewer.keep_alive(&lease);
    store.called(Operation::Renew, 6).await;
    assert!(!heartbeat.loss().is_lost());
}

#[test]
fn a_paused_clock_of_the_application_does_not_stop_heartbeats() {
    let runtime = |paused| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(paused).build().unwrap()
    };
    let (store, renewer) = kept();
    let heartbeat = runtime(true).block_on(async {
        tokio::time::advance(Duration::from_secs(3600)).await;
        renewer.keep_alive(&claimed(&store, 1).await)
    });
    runtime(false).block_on(store.called(Operation::Renew, 3));
    assert!(!heartbeat.loss().is_lost());
}

#[tokio::test]
async fn a_release_is_repeated_until_it_is_confirmed() {
    let (store, renewer) = kept();
    let lease = claimed(&store, 1).await;
    store.next(Operation::Release, Behavior::Fail(ErrorKind::Unavailable));
    store.next(Operation::Release, Behavior::LoseReply(ErrorKind::Unavailable));
    renewer.enqueue(release(lease.clone()), None, None);
    timeout(PATIENCE, renewer.idle()).await.unwrap();
    assert_eq!(store.calls(Operation::Release), 3);
    assert_eq!(store.memory().lookup(&lease.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_claim_that_is_carried_out_after_its_release_is_released_again() {
    let (store, renewer) = kept();
    let (id, request) = (id(1), request(LEASE));
    renewer.enqueue(release(Lease::granted(id, &request, 0, 0)), None, None);
    timeout(PATIENCE, renewer.idle()).await.unwrap();
    assert!(matches!(store.memory().claim(&id, &request).await, Ok(Claim::Granted(_))));
    let released = store.calls(Operation::Release);
    store.performed(Operation::Release, released + 1).await;
    assert_eq!(store.memory().lookup(&id).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_granted_claim_is_released_however_long_the_store_is_away() {
    let store = ScriptedStore::new();
    let shared = Arc::new(Shared::new(Arc::new(store.clone())));
    let lease = claimed(&store, 1).await;
    store.always(Operation::Release, Behavior::Fail(ErrorKind::Unavailable));
    let (tasks, inbox) = mpsc::unbounded_channel();
    let confirmation = shared.journal.admit(release(lease.clone()), shared.now()).unwrap();
    let (over, _) = oneshot::channel();
    tasks.send(BackgroundTask { confirmation, heartbeat: None, leader: None, over }).unwrap();
    drop(tasks);
    let tasks = tokio::task::LocalSet::new();
    let running = tasks.run_until(background::run(Arc::clone(&shared), inbox));
    let away = async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(store.memory().lookup(&lease.id).await.unwrap().is_some());
        store.always(Operation::Release, Behavior::Succeed);
    };
    tokio::join!(running, away);
    assert_eq!(store.memory().lookup(&lease.id).await.unwrap(), None);
    assert_eq!(shared.journal.unconfirmed(), 0);
}

#[tokio::test]
async fn a_result_is_settled_on_a_living_lease_and_announced_to_those_who_wait() {
    let (store, renewer) = kept();
    let lease = claimed(&store, 1).await;
    let (mut waiter, leader) = awaited(&lease);
    store.always(Operation::Settle, Behavior::Fail(ErrorKind::Unavailable));
    let heartbeat = Some(renewer.keep_alive(&lease));
    let done = Settlement::new(State::Completed, Bytes::from_static(b"done"), RETAIN, RETAIN);
    renewer.enqueue(Unconfirmed::Settle(lease.clone(), done), heartbeat, Some(leader));
    store.called(Operation::Renew, 4).await;
    assert!(waiter.update.try_recv().is_err());
    store.always(Operation::Settle, Behavior::Succeed);
    let update = timeout(PATIENCE, &mut waiter.update).await.unwrap().unwrap();
    assert!(matches!(update, Update::Settled(record) if record.payload == "done"));
    timeout(PATIENCE, renewer.idle()).await.unwrap();
    assert!(matches!(store.memory().lookup(&lease.id).await, Ok(Some(RecordSnapshot::Settled(_)))));
    assert!(renewer.shared.leases().is_empty());
}

#[tokio::test]
async fn a_result_that_came_too_late_sends_those_who_wait_to_ask() {
    let (store, renewer) = kept();
    let lease = claimed(&store, 1).await;
    store.memory().release(&lease).await.unwrap();
    let (mut waiter, leader) = awaited(&lease);
    renewer.enqueue(settling(lease), None, Some(leader));
    let update = timeout(PATIENCE, &mut waiter.update).await.unwrap().unwrap();
    assert!(matches!(update, Update::Changed));
}

#[tokio::test]
async fn releases_that_take_a_whole_lease_hold_nothing_else_up() {
    let (store, renewer) = kept();
    for number in 0..200 {
        let request = request(Duration::from_secs(3600));
        renewer.enqueue(release(Lease::granted(id(number), &request, 0, 0)), None, None);
    }
    renewer.enqueue(settling(claimed(&store, 201).await), None, None);
    store.performed(Operation::Settle, 1).await;
}

#[tokio::test]
async fn the_thread_ends_with_the_engine_once_its_work_is_done() {
    let store = Arc::new(ScriptedStore::new());
    let told = ScriptedStore::clone(&store);
    let remaining = Arc::downgrade(&store);
    let renewer = LeaseRenewer::new(store);
    drop(renewer.keep_alive(&claimed(&told, 1).await));
    renewer.enqueue(settling(claimed(&told, 2).await), None, None);
    drop(renewer);
    told.performed(Operation::Settle, 1).await;
    let deadline = Instant::now() + PATIENCE;
    while remaining.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the thread goes on");
        std::thread::yield_now();
    }
}

fn kept() -> (ScriptedStore, LeaseRenewer<ScriptedStore>) {
    let store = ScriptedStore::new();
    (store.clone(), LeaseRenewer::new(Arc::new(store)))
}

async fn claimed(store: &ScriptedStore, number: u8) -> Lease {
    let token = Token::from_bytes([number; Token::BYTES]);
    let request = ClaimRequest::new(token, Fingerprint::unchecked(), LEASE, RETAIN);
    match store.memory().claim(&id(number), &request).await {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

async fn is_orphan(store: &ScriptedStore, lease: &Lease) -> bool {
    let seen = store.memory().lookup(&lease.id).await;
    matches!(seen, Ok(Some(RecordSnapshot::Held(holder))) if holder.is_orphan())
}

fn release(lease: Lease) -> Unconfirmed {
    Unconfirmed::Release(lease)
}

fn settling(lease: Lease) -> Unconfirmed {
    let done = Settlement::new(State::Completed, Bytes::from_static(b"done"), RETAIN, RETAIN);
    Unconfirmed::Settle(lease, done)
}

/// A request that waits for a record, and its leader.
fn awaited(lease: &Lease) -> (Waiter, Leader) {
    let holder = idemptx_core::store::ClaimInfo::new(&Record::running(lease), LEASE);
    let limits = WaitLimits { waiters_max: 1, waiters_total_max: 1 };
    match SingleFlight::new().wait(lease.id, holder, limits) {
        WaitSlot::Watcher(waiter, leader) => (waiter, leader),
        other => panic!("{other:?}"),
    }
}

fn request(term: Duration) -> ClaimRequest {
    ClaimRequest::new(Token::from_bytes([1; 16]), Fingerprint::unchecked(), term, RETAIN)
}

fn id(number: u8) -> RecordId {
    RecordId::from_bytes([number; RecordId::BYTES])
}

const LEASE: Duration = Duration::from_millis(100);
const RETAIN: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);
