//! What the cases are written in: the steps of a store, with what each must say.

use std::time::Duration;

use bytes::Bytes;

use super::Harness;
use super::report::{Broken, ensure};
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::record::{Record, State};
use crate::store::{
    Claim, ClaimInfo, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement, Store,
    StoreError,
};

/// One case on one store.
///
/// Steps are named by what they must find: `granted`, `held`, `settled`, `fenced`, `absent`.
pub(super) struct Trial<'a, H> {
    harness: &'a H,
}

impl<'a, H: Harness> Trial<'a, H> {
    pub(super) const fn new(harness: &'a H) -> Self {
        Self { harness }
    }

    pub(super) fn store(&self) -> &'a H::Store {
        self.harness.store()
    }

    pub(super) fn token(&self) -> Token {
        self.harness.token()
    }

    /// A record nobody has ever touched.
    pub(super) fn id(&self) -> RecordId {
        let (scope, key) = (self.token(), self.token());
        let mut bytes = [0; RecordId::BYTES];
        for (to, from) in bytes.iter_mut().zip(scope.as_bytes().iter().chain(key.as_bytes())) {
            *to = *from;
        }
        RecordId::from_bytes(bytes)
    }

    /// A claim request with a new token and a fingerprint of its own, whose lease outlives the case.
    pub(super) fn claim_request(&self) -> ClaimRequest {
        let token = self.token();
        let binding = *token.as_bytes();
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(binding.iter().chain(&binding)) {
            *to = !from;
        }
        ClaimRequest::new(
            token,
            Fingerprint { config: 0x0102_0304, digest, binding, operation: binding },
            LONG,
            LONG,
        )
    }

    /// A claim request whose lease lapses soon; its claim stays.
    pub(super) fn brief_claim_request(&self) -> ClaimRequest {
        ClaimRequest { term: self.tick(), ..self.claim_request() }
    }

    pub(super) fn tick(&self) -> Duration {
        self.harness.tick()
    }

    pub(super) async fn sleep(&self, ticks: u32) {
        self.harness.sleep(self.tick() * ticks).await;
    }

    /// Claims, and has to be granted what was claim request for.
    pub(super) async fn granted(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Lease, Broken> {
        match self.store().claim(id, claim_request).await {
            Ok(Claim::Granted(lease)) => {
                let expected = Lease::granted(*id, claim_request, lease.fence, lease.attempt);
                ensure!(lease == expected, "granted {lease:?} for {claim_request:?} on {id}");
                Ok(lease)
            }
            other => Err(unexpected("a granted claim", &other)),
        }
    }

    /// Claims, and has to be told who holds the record.
    pub(super) async fn held(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<ClaimInfo, Broken> {
        match self.store().claim(id, claim_request).await {
            Ok(Claim::Found(RecordSnapshot::Held(holder))) => Ok(holder),
            other => Err(unexpected("a claim refused because the record is held", &other)),
        }
    }

    /// Claims, and has to be told the result.
    pub(super) async fn settled(
        &self,
        id: &RecordId,
        claim_request: &ClaimRequest,
    ) -> Result<Record, Broken> {
        match self.store().claim(id, claim_request).await {
            Ok(Claim::Found(RecordSnapshot::Settled(record))) => Ok(record),
            other => Err(unexpected("a claim refused because the record is settled", &other)),
        }
    }

    /// Looks up, and has to see a claim in force or lapsed.
    pub(super) async fn seen_held(&self, id: &RecordId) -> Result<ClaimInfo, Broken> {
        match self.store().lookup(id).await {
            Ok(Some(RecordSnapshot::Held(holder))) => Ok(holder),
            other => Err(unexpected("a lookup that finds a claim", &other)),
        }
    }

    /// Looks up, and has to see a result.
    pub(super) async fn seen_settled(&self, id: &RecordId) -> Result<Record, Broken> {
        match self.store().lookup(id).await {
            Ok(Some(RecordSnapshot::Settled(record))) => Ok(record),
            other => Err(unexpected("a lookup that finds a result", &other)),
        }
    }

    /// Looks up, and has to see nothing.
    pub(super) async fn absent(&self, id: &RecordId) -> Result<(), Broken> {
        match self.store().lookup(id).await {
            Ok(None) => Ok(()),
            other => Err(unexpected("a lookup that finds nothing", &other)),
        }
    }

    pub(super) async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), Broken> {
        self.store().settle(lease, done).await.map_err(|error| broken("settle", &error))
    }

    pub(super) async fn release(&self, lease: &Lease) -> Result<(), Broken> {
        self.store().release(lease).await.map_err(|error| broken("release", &error))
    }

    pub(super) async fn renew(&self, lease: &Lease) -> Result<Lease, Broken> {
        self.store().renew(lease).await.map_err(|error| broken("renew", &error))
    }

    /// A claim that has lapsed; its lease.
    pub(super) async fn orphan(&self, id: &RecordId) -> Result<Lease, Broken> {
        let lease = self.granted(id, &self.brief_claim_request()).await?;
        self.lapsed(id).await?;
        Ok(lease)
    }

    /// A claim that has lapsed and was taken over: the former lease and the one in force.
    pub(super) async fn taken_over(&self, id: &RecordId) -> Result<(Lease, Lease), Broken> {
        let former = self.orphan(id).await?;
        let owner = self
            .granted(id, &self.claim_request().expecting(Expected::Orphan(former.token)))
            .await?;
        Ok((former, owner))
    }

    /// A record that was settled as done with a payload of its own: its lease and its result.
    pub(super) async fn done(&self, id: &RecordId) -> Result<(Lease, Settlement), Broken> {
        let lease = self.granted(id, &self.claim_request()).await?;
        let done = done(*self.token().as_bytes());
        self.settle(&lease, &done).await?;
        Ok((lease, done))
    }

    /// Waits until the store says that the claim has lapsed.
    pub(super) async fn lapsed(&self, id: &RecordId) -> Result<(), Broken> {
        for _ in 0..TRIES_MAX {
            self.sleep(1).await;
            if self.seen_held(id).await?.is_orphan() {
                return Ok(());
            }
        }
        Err(Broken(format!("a lease of one tick has not lapsed after {TRIES_MAX}")))
    }

    /// Waits until the store has forgotten the record.
    pub(super) async fn gone(&self, id: &RecordId) -> Result<(), Broken> {
        for _ in 0..TRIES_MAX {
            self.sleep(1).await;
            if matches!(self.store().lookup(id).await, Ok(None)) {
                return Ok(());
            }
        }
        Err(Broken(format!("a record kept for some ticks is still there after {TRIES_MAX}")))
    }

    /// Waits until the store has forgotten the response but not the key.
    pub(super) async fn spent(&self, id: &RecordId) -> Result<Record, Broken> {
        for _ in 0..TRIES_MAX {
            self.sleep(1).await;
            let record = self.seen_settled(id).await?;
            if record.state == State::ResponseExpired {
                return Ok(record);
            }
        }
        Err(Broken(format!("a payload kept for some ticks is still there after {TRIES_MAX}")))
    }

    /// Waits for a watch, but not for ever.
    pub(super) async fn rings(&self, watch: crate::store::Watch) -> Result<(), Broken> {
        let mut watch = watch;
        for _ in 0..TRIES_MAX {
            let mut sleep = std::pin::pin!(self.sleep(1));
            let rang = std::future::poll_fn(|context| {
                if watch.as_mut().poll(context).is_ready() {
                    return std::task::Poll::Ready(true);
                }
                sleep.as_mut().poll(context).map(|()| false)
            });
            if rang.await {
                return Ok(());
            }
        }
        Err(Broken(format!("a watch has not ended after {TRIES_MAX} ticks")))
    }
}

/// A replayable result, kept for an hour.
pub(super) fn done(payload: impl AsRef<[u8]>) -> Settlement {
    result(State::Completed, payload)
}

/// A result of the given state, kept for an hour.
pub(super) fn result(state: State, payload: impl AsRef<[u8]>) -> Settlement {
    Settlement::new(state, Bytes::copy_from_slice(payload.as_ref()), LONG, LONG)
}

/// The record must be what `lease` settled as `done`.
pub(super) fn settled_as(record: &Record, lease: &Lease, done: &Settlement) -> Result<(), Broken> {
    ensure!(record.id == lease.id, "the record is of {}, not of {}", record.id, lease.id);
    ensure!(record.state == done.state, "the state is {:?}, not {:?}", record.state, done.state);
    ensure!(
        record.payload == done.payload,
        "the payload of {} bytes is not the one of {} bytes that was settled",
        record.payload.len(),
        done.payload.len()
    );
    ensure!(record.token == lease.token, "the token is {}, not {}", record.token, lease.token);
    ensure!(record.fence == lease.fence, "the fence is {}, not {}", record.fence, lease.fence);
    ensure!(
        record.attempt == lease.attempt,
        "the attempt is {}, not {}",
        record.attempt,
        lease.attempt
    );
    ensure!(record.fingerprint == lease.fingerprint, "the fingerprint is not the claim's");
    Ok(())
}

/// The record must be held by `lease`.
pub(super) fn held_by(holder: &ClaimInfo, lease: &Lease) -> Result<(), Broken> {
    let expected = ClaimInfo {
        token: lease.token,
        fence: lease.fence,
        attempt: lease.attempt,
        fingerprint: lease.fingerprint,
        remaining: holder.remaining,
    };
    ensure!(*holder == expected, "{holder:?} holds the record that {lease:?} claimed");
    ensure!(
        holder.remaining <= lease.term,
        "{:?} are left of a term of {:?}",
        holder.remaining,
        lease.term
    );
    Ok(())
}

/// The record must be held by `lease`, which must not have lapsed.
pub(super) fn held_live_by(holder: &ClaimInfo, lease: &Lease) -> Result<(), Broken> {
    held_by(holder, lease)?;
    ensure!(!holder.is_orphan(), "a lease of {:?} lapsed at once", lease.term);
    Ok(())
}

/// The step must have been refused because the caller is not the owner.
pub(super) fn fenced<T>(step: &str, result: Result<T, StoreError>) -> Result<(), Broken> {
    match result {
        Ok(_) => Err(Broken(format!("{step} succeeded for somebody who is not the owner"))),
        Err(error) if error.kind() == ErrorKind::Fenced => Ok(()),
        Err(error) => Err(broken(step, &error)),
    }
}

/// What a step said, short enough to read.
pub(super) trait Told {
    fn told(&self) -> String;
}

impl Told for Claim {
    fn told(&self) -> String {
        match self {
            Self::Granted(lease) => format!("granted as attempt {}", lease.attempt),
            Self::Found(found) => found.told(),
        }
    }
}

impl Told for RecordSnapshot {
    fn told(&self) -> String {
        match self {
            Self::Held(holder) => holder.told(),
            Self::Settled(record) => record.told(),
        }
    }
}

impl Told for Option<RecordSnapshot> {
    fn told(&self) -> String {
        match self {
            None => "nothing".to_owned(),
            Some(found) => found.told(),
        }
    }
}

impl Told for ClaimInfo {
    fn told(&self) -> String {
        format!("held as attempt {} for another {:?}", self.attempt, self.remaining)
    }
}

impl Told for Record {
    fn told(&self) -> String {
        format!("settled as {:?} with {} bytes", self.state, self.payload.len())
    }
}

fn unexpected<T: Told>(expected: &str, told: &Result<T, StoreError>) -> Broken {
    match told {
        Ok(told) => Broken(format!("expected {expected}; the store said: {}", told.told())),
        Err(error) => Broken(format!("expected {expected}; the store failed: {error:?}")),
    }
}

fn broken(step: &str, error: &StoreError) -> Broken {
    Broken(format!("{step} failed: {error:?}"))
}

/// For terms and retentions that must not end while a case runs.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// How often a wait looks again; with one tick in between, so slow machines are only slow.
const TRIES_MAX: u32 = 200;
