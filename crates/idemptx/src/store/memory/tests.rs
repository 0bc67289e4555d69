use std::sync::atomic::AtomicU64;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::lease::Token;
use idemptx_core::record::State;
use idemptx_core::store::{Expected, RecordSnapshot};

use super::slot::RECORD_BYTES;
use super::*;

#[tokio::test]
async fn a_lease_lapses_and_a_record_expires_at_the_moment_the_clock_says() {
    let (store, clock) = simulated(BYTES_MAX);
    let held = request(1, SECOND, HOUR);
    granted(&store, id(1), &held).await;
    clock.pass(SECOND - MILLISECOND);
    assert_eq!(remaining(&store, id(1)).await, Some(MILLISECOND));
    clock.pass(MILLISECOND);
    assert_eq!(remaining(&store, id(1)).await, Some(Duration::ZERO));
    clock.pass(HOUR - SECOND - MILLISECOND);
    assert_eq!(remaining(&store, id(1)).await, Some(Duration::ZERO));
    clock.pass(MILLISECOND);
    assert_eq!(remaining(&store, id(1)).await, None);
}

#[tokio::test]
async fn fences_grow_even_when_the_clock_stands_still() {
    let (store, _clock) = simulated(BYTES_MAX);
    let mut last = 0;
    for attempt in 0..100 {
        let lease = granted(&store, id(1), &request(attempt, SECOND, HOUR)).await;
        assert!(lease.fence > last, "{} after {last}", lease.fence);
        last = lease.fence;
        store.release(&lease).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_store_refuses_new_keys_and_evicts_nothing() {
    let (store, clock) = simulated(10 * RECORD_BYTES);
    let mut leases = Vec::new();
    for n in 0..10 {
        leases.push(granted(&store, id(n), &request(n, SECOND, HOUR)).await);
    }
    clock.pass(SECOND * 2);
    let refused = store.claim(&id(10), &request(10, SECOND, HOUR)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full);
    for lease in &leases {
        store.renew(lease).await.unwrap();
    }
    assert_eq!(store.lookup(&id(10)).await.unwrap(), None);
}

#[tokio::test]
async fn a_full_store_still_settles_and_takes_over() {
    let (store, clock) = simulated(RECORD_BYTES);
    let orphan = granted(&store, id(1), &request(1, SECOND, HOUR)).await;
    clock.pass(SECOND);
    let owner =
        granted(&store, id(1), &request(2, SECOND, HOUR).expecting(Expected::Orphan(orphan.token)))
            .await;
    store.settle(&owner, &done(1 << 20, HOUR)).await.unwrap();
    assert_eq!(store.bytes(), RECORD_BYTES + (1 << 20));
}

#[tokio::test]
async fn a_full_store_has_room_again_once_something_has_expired() {
    let (store, clock) = simulated(10 * RECORD_BYTES);
    for n in 0..10 {
        granted(&store, id(n), &request(n, SECOND, HOUR)).await;
    }
    clock.pass(HOUR);
    granted(&store, id(10), &request(10, SECOND, HOUR)).await;
    assert_eq!((store.len(), store.bytes()), (1, RECORD_BYTES));
}

#[tokio::test]
async fn memory_is_given_back_after_the_records_have_expired() {
    let (store, clock) = simulated(BYTES_MAX);
    for n in 0..100_000 {
        let lease = granted(&store, id(n), &request(n, SECOND, HOUR)).await;
        store.settle(&lease, &done(64, HOUR)).await.unwrap();
    }
    assert_eq!((store.len(), store.bytes()), (100_000, 100_000 * (RECORD_BYTES + 64)));
    clock.pass(HOUR);
    store.sweep();
    assert_eq!((store.len(), store.bytes()), (0, 0));
    assert!(capacity(&store) <= SHARDS * 32, "{} places are kept", capacity(&store));
}

#[tokio::test]
async fn steps_alone_give_memory_back() {
    let (store, clock) = simulated(BYTES_MAX);
    for n in 0..10_000 {
        granted(&store, id(n), &request(n, SECOND, SECOND)).await;
    }
    clock.pass(SECOND);
    for n in 10_000..20_000 {
        granted(&store, id(n), &request(n, SECOND, SECOND)).await;
    }
    assert!(store.len() < 11_000, "{} records are left", store.len());
}

#[tokio::test]
async fn a_response_that_is_forgotten_gives_its_memory_back_before_its_key() {
    let (store, clock) = simulated(BYTES_MAX);
    let lease = granted(&store, id(1), &request(1, SECOND, HOUR)).await;
    let mut kept = done(1 << 20, SECOND);
    kept.key_retain = HOUR;
    store.settle(&lease, &kept).await.unwrap();
    clock.pass(SECOND);
    store.sweep();
    assert_eq!((store.len(), store.bytes()), (1, RECORD_BYTES));
    clock.pass(HOUR);
    store.sweep();
    assert_eq!((store.len(), store.bytes()), (0, 0));
}

#[tokio::test]
async fn claiming_and_releasing_one_key_for_ever_takes_no_memory() {
    let (store, clock) = simulated(BYTES_MAX);
    for n in 0..10_000 {
        let lease = granted(&store, id(1), &request(n, SECOND, HOUR)).await;
        store.renew(&lease).await.unwrap();
        store.release(&lease).await.unwrap();
        clock.pass(MILLISECOND);
    }
    assert_eq!((store.len(), store.bytes()), (0, 0));
    assert!(capacity(&store) <= SHARDS * 32, "{} places are kept", capacity(&store));
}

#[tokio::test]
async fn a_settlement_that_is_no_result_is_refused() {
    let (store, _clock) = simulated(BYTES_MAX);
    let lease = granted(&store, id(1), &request(1, SECOND, HOUR)).await;
    for state in [State::Running, State::ResponseExpired] {
        let none = Settlement::new(state, Bytes::new(), HOUR, HOUR);
        assert_eq!(store.settle(&lease, &none).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(remaining(&store, id(1)).await, Some(SECOND));
}

#[tokio::test]
async fn a_result_is_not_settled_as_another_one() {
    let (store, _clock) = simulated(BYTES_MAX);
    let lease = granted(&store, id(1), &request(1, SECOND, HOUR)).await;
    store.settle(&lease, &done(3, HOUR)).await.unwrap();
    let other = Settlement::new(State::Unknown, Bytes::new(), HOUR, HOUR);
    assert_eq!(store.settle(&lease, &other).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(store.bytes(), RECORD_BYTES + 3);
}

#[tokio::test]
async fn a_replay_shares_the_settled_payload() {
    let (store, _clock) = simulated(BYTES_MAX);
    let lease = granted(&store, id(1), &request(1, SECOND, HOUR)).await;
    let done = done(1000, HOUR);
    store.settle(&lease, &done).await.unwrap();
    let Claim::Found(RecordSnapshot::Settled(record)) =
        store.claim(&id(1), &request(2, SECOND, HOUR)).await.unwrap()
    else {
        panic!("a settled record is there");
    };
    assert_eq!(record.payload.as_ptr(), done.payload.as_ptr());
}

#[tokio::test]
async fn watchers_leave_nothing_behind() {
    let (store, _clock) = simulated(BYTES_MAX);
    let lease = granted(&store, id(1), &request(1, SECOND, HOUR)).await;
    let dropped = store.watch(&id(1)).await.unwrap();
    let mut polled = store.watch(&id(1)).await.unwrap();
    let kept = store.watch(&id(1)).await.unwrap();
    let mut context = Context::from_waker(Waker::noop());
    assert!(polled.as_mut().poll(&mut context).is_pending());
    assert_eq!(watched(&store), 1);
    drop((dropped, polled));
    assert_eq!(watched(&store), 1);
    store.settle(&lease, &done(1, HOUR)).await.unwrap();
    assert_eq!(watched(&store), 0);
    kept.await;

    drop(store.watch(&id(1)).await.unwrap());
    assert_eq!(watched(&store), 0);
}

#[tokio::test]
async fn a_watcher_of_a_former_claim_leaves_the_watchers_of_the_next_registered() {
    let (store, _clock) = simulated(BYTES_MAX);
    let former = granted(&store, id(1), &request(1, SECOND, HOUR)).await;
    let early = store.watch(&id(1)).await.unwrap();
    store.release(&former).await.unwrap();
    let owner = granted(&store, id(1), &request(2, SECOND, HOUR)).await;
    let late = store.watch(&id(1)).await.unwrap();
    drop(early);
    assert_eq!(watched(&store), 1);
    store.settle(&owner, &done(1, HOUR)).await.unwrap();
    late.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_that_claim_one_key_agree_on_its_owner() {
    let store = MemoryStore::new();
    for n in 0..200 {
        let claims: Vec<_> = (0..8)
            .map(|actor| {
                let store = store.clone();
                tokio::spawn(async move {
                    let request = request(n * 8 + actor, HOUR, HOUR);
                    let Claim::Granted(lease) = store.claim(&id(n), &request).await.unwrap() else {
                        return 0;
                    };
                    store.settle(&lease, &done(64, HOUR)).await.unwrap();
                    1
                })
            })
            .collect();
        let mut owners = 0;
        for claim in claims {
            owners += claim.await.unwrap();
        }
        assert_eq!(owners, 1);
    }
    assert_eq!((store.len(), store.bytes()), (200, 200 * (RECORD_BYTES + 64)));
}

#[test]
fn ids_that_agree_in_most_bytes_are_spread_over_the_shards() {
    let store = MemoryStore::new();
    for position in 0..RecordId::BYTES {
        let mut shards: Vec<*const Mutex<Shard>> = (0..=u8::MAX)
            .map(|byte| {
                let mut bytes = [0; RecordId::BYTES];
                bytes[position] = byte;
                std::ptr::from_ref(store.0.shard(&RecordId::from_bytes(bytes)))
            })
            .collect();
        shards.sort_unstable();
        shards.dedup();
        assert!(shards.len() > SHARDS / 2, "byte {position} chooses {} shards", shards.len());
    }
}

#[derive(Debug, Default)]
struct Simulated(AtomicU64);

impl Simulated {
    fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

fn simulated(bytes_max: usize) -> (MemoryStore, Arc<Simulated>) {
    let clock = Arc::new(Simulated::default());
    (MemoryStore::builder().bytes_max(bytes_max).clock(clock.clone()).build(), clock)
}

fn id(n: u64) -> RecordId {
    let mut bytes = [7; RecordId::BYTES];
    bytes[24..].copy_from_slice(&n.to_be_bytes());
    RecordId::from_bytes(bytes)
}

fn request(n: u64, term: Duration, retain: Duration) -> ClaimRequest {
    let mut token = [1; Token::BYTES];
    token[8..].copy_from_slice(&n.to_be_bytes());
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    ClaimRequest::new(Token::from_bytes(token), fingerprint, term, retain)
}

fn done(bytes: usize, retain: Duration) -> Settlement {
    Settlement::new(State::Completed, Bytes::from(vec![9; bytes]), retain, retain)
}

async fn granted(store: &MemoryStore, id: RecordId, request: &ClaimRequest) -> Lease {
    match store.claim(&id, request).await.unwrap() {
        Claim::Granted(lease) => lease,
        other => panic!("not granted: {other:?}"),
    }
}

async fn remaining(store: &MemoryStore, id: RecordId) -> Option<Duration> {
    match store.lookup(&id).await.unwrap() {
        Some(RecordSnapshot::Held(holder)) => Some(holder.remaining),
        None => None,
        other => panic!("not held: {other:?}"),
    }
}

fn capacity(store: &MemoryStore) -> usize {
    store.0.shards.iter().map(|shard| lock(shard).capacity()).sum()
}

fn watched(store: &MemoryStore) -> usize {
    store.0.notifier.len()
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
