//! The near cache: what is answered without the store, and what never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use idemptx::store::near::{NearCache, NearLimits};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement, Store, StoreError,
};
use idemptx_core::time::{Clock, Timestamp};
use idemptx_testkit::scripted_store::{Behavior, Gate, Operation, ScriptedStore};

use crate::support::app::{App, engine};
use crate::support::http_client::{posted, send};
use crate::support::records::token;

#[tokio::test]
async fn what_was_settled_here_is_replayed_without_a_round_trip() {
    let process = Process::of(&ScriptedStore::new());
    process.settled(ID, b"result").await;
    let before = process.scripted.total_calls();
    for _ in 0..3 {
        assert_eq!(&process.replayed(ID).await.payload[..], b"result");
        assert_eq!(&process.seen(ID).await.unwrap().payload[..], b"result");
    }
    assert_eq!(process.scripted.total_calls(), before);
    assert_eq!(process.near.hits(), 6);
}

#[tokio::test]
async fn what_another_process_settled_is_asked_for_once() {
    let scripted = ScriptedStore::new();
    Process::of(&scripted).settled(ID, b"result").await;
    let process = Process::of(&scripted);
    let before = scripted.total_calls();
    for _ in 0..3 {
        assert_eq!(&process.replayed(ID).await.payload[..], b"result");
        assert_eq!(&process.seen(ID).await.unwrap().payload[..], b"result");
    }
    assert_eq!(scripted.total_calls(), before + 1);
}

#[tokio::test]
async fn a_claim_is_never_held() {
    let process = Process::of(&ScriptedStore::new());
    process.granted(ID, None).await;
    for calls in 2..5 {
        assert!(matches!(process.claim(ID, None).await, Ok(Claim::Found(RecordSnapshot::Held(_)))));
        assert_eq!(process.scripted.calls(Operation::Claim), calls);
    }
}

#[tokio::test]
async fn an_outcome_that_is_unknown_is_not_held() {
    let process = Process::of(&ScriptedStore::new());
    let lease = process.granted(ID, None).await;
    let unknown = Settlement::new(State::Unknown, Bytes::new(), LONG, LONG);
    process.near.settle(&lease, &unknown).await.unwrap();
    for calls in 2..4 {
        assert_eq!(process.replayed(ID).await.state, State::Unknown);
        assert_eq!(process.scripted.calls(Operation::Claim), calls);
    }
}

#[tokio::test]
async fn a_result_is_held_for_the_hold_time_from_when_the_store_was_asked() {
    let scripted = ScriptedStore::new();
    Process::of(&scripted).settled(ID, b"result").await;
    let process = Process::of(&scripted);
    let (gate, before) = (Gate::closed(), scripted.calls(Operation::Claim));
    scripted.next(Operation::Claim, Behavior::DelayReply(gate.clone()));
    let asks = process.clone();
    let asking = tokio::spawn(async move { asks.replayed(ID).await });
    scripted.performed(Operation::Claim, before + 1).await;
    process.clock.advance(HOLD / 2);
    gate.open();
    asking.await.unwrap();
    process.clock.advance(HOLD / 2 - TICK);
    process.replayed(ID).await;
    assert_eq!(scripted.calls(Operation::Claim), before + 1);
    process.clock.advance(TICK);
    process.replayed(ID).await;
    assert_eq!(scripted.calls(Operation::Claim), before + 2);
}

#[tokio::test]
async fn a_response_is_not_replayed_beyond_its_retention() {
    let process = Process::of(&ScriptedStore::new());
    let lease = process.granted(ID, None).await;
    let brief = HOLD / 10;
    let done = Settlement::new(State::Completed, Bytes::from_static(b"result"), brief, LONG);
    process.near.settle(&lease, &done).await.unwrap();
    assert_eq!(process.replayed(ID).await.state, State::Completed);
    process.clock.advance(brief);
    process.scripted.advance(brief);
    assert_eq!(process.replayed(ID).await.state, State::ResponseExpired);
}

#[tokio::test]
async fn a_result_without_body_is_held_as_long_as_its_key_is_kept() {
    let process = Process::of(&ScriptedStore::new());
    let lease = process.granted(ID, None).await;
    let done = Settlement::new(State::NotReplayable, Bytes::new(), TICK, LONG);
    process.near.settle(&lease, &done).await.unwrap();
    process.clock.advance(HOLD - TICK);
    assert_eq!(process.replayed(ID).await.state, State::NotReplayable);
    assert_eq!(process.scripted.calls(Operation::Claim), 1);
}

#[tokio::test]
async fn a_bid_that_replaces_a_result_goes_to_the_store_and_drops_what_is_held() {
    let process = Process::of(&ScriptedStore::new());
    let former = process.settled(ID, b"first").await;
    let lease = process.granted(ID, Some(Expected::Settled(former.token))).await;
    assert!(matches!(process.claim(ID, None).await, Ok(Claim::Found(RecordSnapshot::Held(_)))));
    assert!(process.seen(ID).await.is_none());
    process.near.settle(&lease, &done(b"second")).await.unwrap();
    assert_eq!(&process.replayed(ID).await.payload[..], b"second");
}

#[tokio::test]
async fn a_bid_that_replaces_another_result_finds_the_one_that_is_there() {
    let process = Process::of(&ScriptedStore::new());
    process.settled(ID, b"first").await;
    let other = Expected::Settled(token());
    let Ok(Claim::Found(RecordSnapshot::Settled(record))) = process.claim(ID, Some(other)).await
    else {
        panic!()
    };
    assert_eq!(&record.payload[..], b"first");
}

#[tokio::test]
async fn an_answer_on_its_way_while_the_record_is_replaced_is_not_held() {
    for step in [Operation::Claim, Operation::Lookup] {
        let scripted = ScriptedStore::new();
        let former = Process::of(&scripted).settled(ID, b"first").await;
        let process = Process::of(&scripted);
        let (gate, before) = (Gate::closed(), scripted.calls(step));
        scripted.next(step, Behavior::DelayReply(gate.clone()));
        let asks = process.clone();
        let asking = tokio::spawn(async move {
            match step {
                Operation::Claim => Some(asks.replayed(ID).await),
                _ => asks.seen(ID).await,
            }
        });
        scripted.performed(step, before + 1).await;
        process.granted(ID, Some(Expected::Settled(former.token))).await;
        gate.open();
        // It was true when the store said so.
        assert_eq!(&asking.await.unwrap().unwrap().payload[..], b"first");
        assert!(
            matches!(process.claim(ID, None).await, Ok(Claim::Found(RecordSnapshot::Held(_)))),
            "{step:?}"
        );
    }
}

#[tokio::test]
async fn a_confirmation_on_its_way_while_the_record_is_replaced_is_not_held() {
    let process = Process::of(&ScriptedStore::new());
    let former = process.granted(ID, None).await;
    let gate = Gate::closed();
    process.scripted.next(Operation::Settle, Behavior::DelayReply(gate.clone()));
    let (settles, lease) = (process.clone(), former.clone());
    let settling = tokio::spawn(async move { settles.near.settle(&lease, &done(b"first")).await });
    process.scripted.performed(Operation::Settle, 1).await;
    process.granted(ID, Some(Expected::Settled(former.token))).await;
    gate.open();
    settling.await.unwrap().unwrap();
    assert!(matches!(process.claim(ID, None).await, Ok(Claim::Found(RecordSnapshot::Held(_)))));
}

#[tokio::test]
async fn an_answer_on_its_way_while_a_replacing_bid_is_under_way_is_not_held() {
    let scripted = ScriptedStore::new();
    let former = Process::of(&scripted).settled(ID, b"first").await;
    let process = Process::of(&scripted);
    // The claim request is sent, and reaches the store after somebody has read the result.
    let (gate, before) = (Gate::closed(), scripted.calls(Operation::Claim));
    scripted.next(Operation::Claim, Behavior::DelayOperation(gate.clone()));
    let claim_requests = process.clone();
    let bidding = tokio::spawn(async move {
        claim_requests.granted(ID, Some(Expected::Settled(former.token))).await
    });
    scripted.called(Operation::Claim, before + 1).await;
    assert_eq!(&process.replayed(ID).await.payload[..], b"first");
    gate.open();
    bidding.await.unwrap();
    assert!(matches!(process.claim(ID, None).await, Ok(Claim::Found(RecordSnapshot::Held(_)))));
}

#[tokio::test]
async fn of_two_answers_on_their_way_the_later_claims_is_held() {
    for later_comes_first in [false, true] {
        let scripted = ScriptedStore::new();
        let (process, other) = (Process::of(&scripted), Process::of(&scripted));
        let former = other.settled(ID, b"first").await;
        let gates = [Gate::closed(), Gate::closed()];
        let mut asking = Vec::new();
        for gate in &gates {
            let before = scripted.calls(Operation::Lookup);
            scripted.next(Operation::Lookup, Behavior::DelayReply(gate.clone()));
            let asks = process.clone();
            asking.push(tokio::spawn(async move { asks.seen(ID).await }));
            scripted.performed(Operation::Lookup, before + 1).await;
            if asking.len() == 1 {
                let lease = other.granted(ID, Some(Expected::Settled(former.token))).await;
                other.near.settle(&lease, &done(b"second")).await.unwrap();
            }
        }
        for turn in [later_comes_first, !later_comes_first].map(usize::from) {
            gates[turn].open();
            (&mut asking[turn]).await.unwrap().unwrap();
        }
        let before = scripted.total_calls();
        assert_eq!(&process.replayed(ID).await.payload[..], b"second");
        assert_eq!(scripted.total_calls(), before);
    }
}

#[tokio::test]
async fn a_replacing_bid_that_is_given_up_drops_what_was_read_meanwhile() {
    let process = Process::of(&ScriptedStore::new());
    let former = process.settled(ID, b"first").await;
    let before = process.scripted.calls(Operation::Claim);
    let gate = Gate::closed();
    process.scripted.next(Operation::Claim, Behavior::DelayOperation(gate.clone()));
    let claim_requests = process.clone();
    let bidding = tokio::spawn(async move {
        claim_requests.claim(ID, Some(Expected::Settled(former.token))).await
    });
    process.scripted.called(Operation::Claim, before + 1).await;
    assert_eq!(&process.replayed(ID).await.payload[..], b"first");
    bidding.abort();
    assert!(bidding.await.unwrap_err().is_cancelled());
    // It takes place all the same.
    gate.open();
    process.scripted.performed(Operation::Claim, before + 2).await;
    assert!(matches!(process.claim(ID, None).await, Ok(Claim::Found(RecordSnapshot::Held(_)))));
}

#[tokio::test]
async fn a_change_by_another_process_is_noticed_when_the_hold_time_is_over() {
    let scripted = ScriptedStore::new();
    let (process, other) = (Process::of(&scripted), Process::of(&scripted));
    let former = process.settled(ID, b"first").await;
    let lease = other.granted(ID, Some(Expected::Settled(former.token))).await;
    other.near.settle(&lease, &done(b"second")).await.unwrap();
    assert_eq!(&process.replayed(ID).await.payload[..], b"first");
    process.clock.advance(HOLD);
    assert_eq!(&process.replayed(ID).await.payload[..], b"second");
}

#[tokio::test]
async fn a_fenced_settlement_drops_what_is_held() {
    let scripted = ScriptedStore::new();
    let (process, other) = (Process::of(&scripted), Process::of(&scripted));
    let lease = process.settled(ID, b"first").await;
    other.granted(ID, Some(Expected::Settled(lease.token))).await;
    let error = process.near.settle(&lease, &done(b"again")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(matches!(process.claim(ID, None).await, Ok(Claim::Found(RecordSnapshot::Held(_)))));
}

#[tokio::test]
async fn settling_again_does_not_change_what_is_held() {
    let process = Process::of(&ScriptedStore::new());
    let lease = process.settled(ID, b"first").await;
    process.near.settle(&lease, &done(b"another")).await.unwrap();
    assert_eq!(&process.replayed(ID).await.payload[..], b"first");
}

#[tokio::test]
async fn retries_are_answered_while_the_store_is_down() {
    let process = Process::of(&ScriptedStore::new());
    process.settled(ID, b"result").await;
    for step in [Operation::Claim, Operation::Lookup] {
        process.scripted.always(step, Behavior::Fail(ErrorKind::Unavailable));
    }
    assert_eq!(&process.replayed(ID).await.payload[..], b"result");
    process.clock.advance(HOLD);
    assert_eq!(process.claim(ID, None).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(process.near.lookup(&ID).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn whoever_changes_a_record_past_it_can_say_so() {
    let process = Process::of(&ScriptedStore::new());
    let other = RecordId::from_bytes([8; RecordId::BYTES]);
    process.settled(ID, b"result").await;
    process.settled(other, b"another").await;
    let before = process.scripted.calls(Operation::Claim);
    process.near.forget(&ID);
    process.replayed(ID).await;
    process.replayed(other).await;
    assert_eq!(process.scripted.calls(Operation::Claim), before + 1);
    process.near.clear();
    assert_eq!(process.near.bytes(), 0);
    process.replayed(other).await;
    assert_eq!(process.scripted.calls(Operation::Claim), before + 2);
}

#[tokio::test]
async fn no_more_bytes_are_held_than_allowed_and_the_oldest_go_first() {
    let scripted = ScriptedStore::new();
    let process = Process::with(&scripted, NearLimits::bytes(BYTES_MAX));
    let ids: Vec<_> = (0..1000_u32).map(numbered).collect();
    for id in &ids {
        process.settled(*id, &[b'x'; 1000]).await;
        assert!(process.near.bytes() <= BYTES_MAX);
    }
    assert!(process.near.bytes() > BYTES_MAX / 2);
    let before = scripted.calls(Operation::Claim);
    process.replayed(ids[999]).await;
    assert_eq!(scripted.calls(Operation::Claim), before, "the youngest is held");
    process.replayed(ids[0]).await;
    assert_eq!(scripted.calls(Operation::Claim), before + 1, "the oldest is not");
}

#[tokio::test]
async fn what_is_larger_than_a_part_is_not_held() {
    let process = Process::with(&ScriptedStore::new(), NearLimits::bytes(BYTES_MAX));
    process.settled(ID, &[b'x'; BYTES_MAX / 16]).await;
    assert_eq!(process.near.bytes(), 0);
    assert_eq!(process.replayed(ID).await.payload.len(), BYTES_MAX / 16);
}

#[tokio::test]
async fn what_is_over_is_given_back_when_it_is_tended() {
    let process = Process::of(&ScriptedStore::new());
    process.settled(ID, b"result").await;
    process.near.maintain();
    assert!(process.near.bytes() > 0);
    process.clock.advance(HOLD);
    process.near.maintain();
    assert_eq!(process.near.bytes(), 0);
}

#[tokio::test]
async fn an_engine_replays_without_its_store_and_replaces_through_it() {
    let scripted = ScriptedStore::new();
    let near = NearCache::new(scripted.clone(), NearLimits::bytes(BYTES_MAX).hold(LONG));
    let app = App::quick(engine(near, |policy| policy));
    app.runs.answer_with(422);
    app.post("k").await.answered(422, "run 1");
    let before = scripted.total_calls();
    for _ in 0..3 {
        let retry = app.post("k").await;
        retry.answered(422, "run 1");
        assert!(retry.is_replay());
    }
    assert_eq!(scripted.total_calls(), before);
    // A corrected request replaces a stored 422.
    app.runs.answer_with(201);
    let corrected = || posted("k", "order 4712");
    send(&app.router, corrected()).await.answered(201, "run 2");
    let retry = send(&app.router, corrected()).await;
    retry.answered(201, "run 2");
    assert!(retry.is_replay());
    assert_eq!(app.runs.began(), 2);
}

/// A process' view of a store.
#[derive(Clone, Debug)]
struct Process {
    near: Arc<NearCache<ScriptedStore>>,
    scripted: ScriptedStore,
    clock: Arc<Turned>,
}

impl Process {
    fn of(scripted: &ScriptedStore) -> Self {
        Self::with(scripted, NearLimits::default())
    }

    fn with(scripted: &ScriptedStore, limits: NearLimits) -> Self {
        let clock = Arc::new(Turned::default());
        let limits = limits.hold(HOLD).clock(clock.clone());
        Self {
            near: Arc::new(NearCache::new(scripted.clone(), limits)),
            scripted: scripted.clone(),
            clock,
        }
    }

    async fn claim(&self, id: RecordId, expected: Option<Expected>) -> Result<Claim, StoreError> {
        let fingerprint =
            Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
        let claim_request = ClaimRequest::new(token(), fingerprint, LONG, LONG);
        self.near
            .claim(
                &id,
                &expected
                    .map_or(claim_request.clone(), |expected| claim_request.expecting(expected)),
            )
            .await
    }

    async fn granted(&self, id: RecordId, expected: Option<Expected>) -> Lease {
        match self.claim(id, expected).await {
            Ok(Claim::Granted(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    async fn settled(&self, id: RecordId, payload: &[u8]) -> Lease {
        let lease = self.granted(id, None).await;
        self.near.settle(&lease, &done(payload)).await.unwrap();
        lease
    }

    async fn replayed(&self, id: RecordId) -> Record {
        match self.claim(id, None).await {
            Ok(Claim::Found(RecordSnapshot::Settled(record))) => record,
            other => panic!("{other:?}"),
        }
    }

    async fn seen(&self, id: RecordId) -> Option<Record> {
        match self.near.lookup(&id).await.unwrap() {
            Some(RecordSnapshot::Settled(record)) => Some(record),
            _ => None,
        }
    }
}

/// A clock that stands still until it is turned on.
#[derive(Debug, Default)]
struct Turned(AtomicU64);

impl Turned {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for Turned {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn done(payload: &[u8]) -> Settlement {
    Settlement::new(State::Completed, Bytes::copy_from_slice(payload), LONG, LONG)
}

fn numbered(number: u32) -> RecordId {
    let mut bytes = [0; RecordId::BYTES];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    RecordId::from_bytes(bytes)
}

const ID: RecordId = RecordId::from_bytes([7; RecordId::BYTES]);
const BYTES_MAX: usize = 256 << 10;
const HOLD: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(3600);
