//! Load on a store: each key by several duplicates at once, through handles that share nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::State;
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
};
use tokio::task::JoinSet;

/// Tasks that claim and settle keys until they are told to stop.
pub(crate) struct Load {
    tally: Arc<Tally>,
    workers: JoinSet<()>,
}

/// Counters of a load.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Duration of a handler.
    handler: Duration,
    is_over: AtomicBool,
    keys: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unknown: AtomicU64,
    executions: Mutex<HashMap<RecordId, u32>>,
    reasons: Mutex<Vec<String>>,
}

impl Load {
    /// Starts so many workers, whose keys come from `ids`.
    pub(crate) fn start<S: Store>(
        handles: &[Arc<S>],
        workers: u64,
        ids: impl Fn(u64) -> RecordId + Send + Sync + 'static,
    ) -> Self {
        Self::start_slow(handles, workers, Duration::ZERO, ids)
    }

    /// Does the same with handlers that take their time, and renew their leases meanwhile.
    pub(crate) fn start_slow<S: Store>(
        handles: &[Arc<S>],
        workers: u64,
        handler: Duration,
        ids: impl Fn(u64) -> RecordId + Send + Sync + 'static,
    ) -> Self {
        let tally = Arc::new(Tally { handler, ..Tally::default() });
        let ids = Arc::new(ids);
        let mut tasks = JoinSet::new();
        let next = Arc::new(AtomicU64::new(0));
        for _ in 0..workers {
            let (tally, ids, next) = (tally.clone(), ids.clone(), next.clone());
            let handles = handles.to_vec();
            tasks.spawn(async move {
                while !tally.is_over.load(Ordering::Relaxed) {
                    let id = ids(next.fetch_add(1, Ordering::Relaxed));
                    tally.operation(&handles, id).await;
                    tally.keys.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { tally, workers: tasks }
    }

    /// Number of keys that are done.
    pub(crate) fn keys(&self) -> u64 {
        self.tally.keys.load(Ordering::Relaxed)
    }

    /// Waits until so many more keys are done.
    pub(crate) async fn go_on_for(&self, keys: u64) {
        let goal = self.keys() + keys;
        let done = async {
            while self.keys() < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, done).await;
        assert!(in_time.is_ok(), "stuck at {} keys: {:?}", self.keys(), self.tally.reasons);
    }

    /// Lets the workers finish their keys.
    pub(crate) async fn stop(mut self) -> Arc<Tally> {
        self.tally.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        self.tally
    }
}

impl Tally {
    /// Number of keys that were executed more than once.
    pub(crate) fn doubles(&self) -> usize {
        self.executions.lock().unwrap().values().filter(|count| **count > 1).count()
    }

    /// Number of keys that were executed.
    pub(crate) fn executed(&self) -> usize {
        self.executions.lock().unwrap().len()
    }

    /// Reasons of the failures, the first few.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.reasons.lock().unwrap().clone()
    }

    /// Takes a key through its life: duplicates, a result, a retry.
    async fn operation<S: Store>(self: &Arc<Self>, handles: &[Arc<S>], id: RecordId) {
        let mut duplicates = JoinSet::new();
        for copy in 0..DUPLICATES {
            let (tally, store) = (self.clone(), handles[copy % handles.len()].clone());
            duplicates.spawn(async move { tally.request(&*store, id).await });
        }
        duplicates.join_all().await;
        self.request(&*handles[0], id).await;
    }

    async fn request<S: Store>(&self, store: &S, id: RecordId) {
        let request = request();
        let claim = self.answered(|| store.claim(&id, &request)).await.unwrap();
        let Claim::Granted(lease) = claim else { return };
        *self.executions.lock().unwrap().entry(id).or_default() += 1;
        self.handle(store, &lease).await;
        let done = result(&lease);
        let settled = self.answered(|| store.settle(&lease, &done)).await;
        match settled {
            Ok(()) => {
                let seen = self.answered(|| store.lookup(&id)).await.unwrap();
                // Where a failover forgot it, a later request shows that.
                if let Some(RecordSnapshot::Settled(record)) = seen {
                    assert!(!record.payload.is_empty());
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}"),
        }
    }

    /// Runs a handler for its while.
    async fn handle<S: Store>(&self, store: &S, lease: &Lease) {
        let ends = tokio::time::Instant::now() + self.handler;
        while tokio::time::Instant::now() < ends {
            tokio::time::sleep(RENEWAL.min(self.handler)).await;
            let _ = self.answered(|| store.renew(lease)).await;
        }
    }

    fn note(&self, error: &StoreError) {
        let mut reasons = self.reasons.lock().unwrap();
        if reasons.len() < REASONS_MAX {
            let source = std::error::Error::source(error).map(ToString::to_string);
            reasons.push(format!("{:?}: {}", error.kind(), source.unwrap_or_default()));
        }
    }

    /// Takes a step until it is answered, as an engine does.
    async fn answered<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        mut step: impl FnMut() -> F,
    ) -> Result<T, StoreError> {
        loop {
            let error = match step().await {
                Err(error) if error.kind().is_transient() => error,
                outcome => return outcome,
            };
            let counter = if error.kind().is_unknown() { &self.unknown } else { &self.refused };
            counter.fetch_add(1, Ordering::Relaxed);
            self.note(&error);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Returns a request with a token of its own.
pub(crate) fn request() -> ClaimRequest {
    let mut token = [0; Token::BYTES];
    getrandom::fill(&mut token).unwrap();
    let fingerprint =
        Fingerprint { config: 0, digest: [0; 32], binding: [0; 16], operation: [4; 16] };
    ClaimRequest::new(Token::from_bytes(token), fingerprint, LEASE, RETENTION)
}

/// Returns a result that names its execution.
pub(crate) fn result(lease: &Lease) -> Settlement {
    let payload = Bytes::copy_from_slice(lease.token.as_bytes());
    Settlement::new(State::Completed, payload, RETENTION, RETENTION)
}

/// Returns the id of a number.
pub(crate) fn id(number: u64) -> RecordId {
    let mut bytes = [0; RecordId::BYTES];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    // The halves are what operators see; the second one spreads the records over the slots.
    bytes[RecordId::BYTES / 2..][..8].copy_from_slice(&number.wrapping_mul(SPREAD).to_be_bytes());
    RecordId::from_bytes(bytes)
}

const DUPLICATES: usize = 4;
const REASONS_MAX: usize = 8;
/// A third of a lease of two seconds.
const RENEWAL: Duration = Duration::from_millis(660);
const LEASE: Duration = Duration::from_secs(15);
const RETENTION: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(60);
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
