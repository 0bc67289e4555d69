//! The language of the cases: the steps of a store, with the answer that each must give.

use std::time::Duration;

use bytes::Bytes;

use super::Harness;
use super::report::{Violation, ensure};
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::record::{Record, State};
use crate::store::{
    Claim, ClaimInfo, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement, Store,
    StoreError,
};

/// The context of one case: the store, and its harness.
///
/// Steps are named by what they must find: `granted`, `held`, `settled`, `fenced`, `absent`.
pub(super) struct Case<'a, H> {
    harness: &'a H,
}

impl<'a, H: Harness> Case<'a, H> {
    pub(super) const fn new(harness: &'a H) -> Self {
        Self { harness }
    }

    pub(super) const fn harness(&self) -> &'a H {
        self.harness
    }

    pub(super) fn store(&self) -> &'a H::Store {
        self.harness.store()
    }

    pub(super) fn other_handle(&self) -> Option<&'a H::Store> {
        self.harness.other_handle()
    }

    pub(super) fn token(&self) -> Token {
        self.harness.token()
    }

    /// Returns the id of a new record.
    pub(super) fn id(&self) -> RecordId {
        let (scope, key) = (self.token(), self.token());
        let mut bytes = [0; RecordId::BYTES];
        for (to, from) in bytes.iter_mut().zip(scope.as_bytes().iter().chain(key.as_bytes())) {
            *to = *from;
        }
        RecordId::from_bytes(bytes)
    }

    /// Creates a request with a new token and fingerprint, whose lease outlives the case.
    pub(super) fn request(&self) -> ClaimRequest {
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

    /// Creates a request whose lease lapses soon, and whose claim is kept.
    pub(super) fn brief_request(&self) -> ClaimRequest {
        ClaimRequest { term: self.tick(), ..self.request() }
    }

    pub(super) fn tick(&self) -> Duration {
        self.harness.tick()
    }

    pub(super) async fn sleep(&self, ticks: u32) {
        self.harness.sleep(self.tick() * ticks).await;
    }

    /// Claims, and must be granted the request.
    pub(super) async fn granted(
        &self,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Lease, Violation> {
        match self.store().claim(id, request).await {
            Ok(Claim::Granted(lease)) => {
                let expected = Lease::granted(*id, request, lease.fence, lease.attempt);
                ensure!(lease == expected, "granted {lease:?} for {request:?} on {id}");
                Ok(lease)
            }
            other => Err(unexpected("a granted claim", &other)),
        }
    }

    /// Claims, and must find a claim.
    pub(super) async fn held(
        &self,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<ClaimInfo, Violation> {
        match self.store().claim(id, request).await {
            Ok(Claim::Found(RecordSnapshot::Held(holder))) => Ok(holder),
            other => Err(unexpected("a claim refused because the record is held", &other)),
        }
    }

    /// Claims, and must find a result.
    pub(super) async fn settled(
        &self,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Record, Violation> {
        match self.store().claim(id, request).await {
            Ok(Claim::Found(RecordSnapshot::Settled(record))) => Ok(record),
            other => Err(unexpected("a claim refused because the record is settled", &other)),
        }
    }

    /// Looks up, and must find a claim in force or lapsed.
    pub(super) async fn seen_held(&self, id: &RecordId) -> Result<ClaimInfo, Violation> {
        match self.store().lookup(id).await {
            Ok(Some(RecordSnapshot::Held(holder))) => Ok(holder),
            other => Err(unexpected("a lookup that finds a claim", &other)),
        }
    }

    /// Looks up, and must find a result.
    pub(super) async fn seen_settled(&self, id: &RecordId) -> Result<Record, Violation> {
        match self.store().lookup(id).await {
            Ok(Some(RecordSnapshot::Settled(record))) => Ok(record),
            other => Err(unexpected("a lookup that finds a result", &other)),
        }
    }

    /// Looks up, and must find nothing.
    pub(super) async fn absent(&self, id: &RecordId) -> Result<(), Violation> {
        match self.store().lookup(id).await {
            Ok(None) => Ok(()),
            other => Err(unexpected("a lookup that finds nothing", &other)),
        }
    }

    pub(super) async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), Violation> {
        self.store().settle(lease, done).await.map_err(|error| violation("settle", &error))
    }

    pub(super) async fn release(&self, lease: &Lease) -> Result<(), Violation> {
        self.store().release(lease).await.map_err(|error| violation("release", &error))
    }

    pub(super) async fn renew(&self, lease: &Lease) -> Result<Lease, Violation> {
        self.store().renew(lease).await.map_err(|error| violation("renew", &error))
    }

    /// Creates an orphan, and returns its lease.
    pub(super) async fn orphan(&self, id: &RecordId) -> Result<Lease, Violation> {
        let lease = self.granted(id, &self.brief_request()).await?;
        self.lapsed(id).await?;
        Ok(lease)
    }

    /// Creates an orphan that was taken over, and returns the former lease and the one in force.
    pub(super) async fn taken_over(&self, id: &RecordId) -> Result<(Lease, Lease), Violation> {
        let former = self.orphan(id).await?;
        let owner =
            self.granted(id, &self.request().expecting(Expected::Orphan(former.token))).await?;
        Ok((former, owner))
    }

    /// Settles a new record with a unique payload, and returns its lease and its result.
    pub(super) async fn done(&self, id: &RecordId) -> Result<(Lease, Settlement), Violation> {
        let lease = self.granted(id, &self.request()).await?;
        let done = done(*self.token().as_bytes());
        self.settle(&lease, &done).await?;
        Ok((lease, done))
    }

    /// Waits until the store says that the claim has lapsed.
    pub(super) async fn lapsed(&self, id: &RecordId) -> Result<(), Violation> {
        for _ in 0..TRIES_MAX {
            self.sleep(1).await;
            if self.seen_held(id).await?.is_orphan() {
                return Ok(());
            }
        }
        Err(Violation(format!("a lease of one tick has not lapsed after {TRIES_MAX}")))
    }

    /// Waits until the store has forgotten the record.
    pub(super) async fn gone(&self, id: &RecordId) -> Result<(), Violation> {
        for _ in 0..TRIES_MAX {
            self.sleep(1).await;
            if matches!(self.store().lookup(id).await, Ok(None)) {
                return Ok(());
            }
        }
        Err(Violation(format!("a record kept for some ticks is still there after {TRIES_MAX}")))
    }

    /// Waits until the store has forgotten the response but not the key.
    pub(super) async fn spent(&self, id: &RecordId) -> Result<Record, Violation> {
        for _ in 0..TRIES_MAX {
            self.sleep(1).await;
            let record = self.seen_settled(id).await?;
            if record.state == State::ResponseExpired {
                return Ok(record);
            }
        }
        Err(Violation(format!("a payload kept for some ticks is still there after {TRIES_MAX}")))
    }

    /// Waits for a watch, but not for ever.
    pub(super) async fn watch_ends(&self, watch: crate::store::Watch) -> Result<(), Violation> {
        let mut watch = watch;
        for _ in 0..TRIES_MAX {
            let mut sleep = std::pin::pin!(self.sleep(1));
            let ended = std::future::poll_fn(|context| {
                if watch.as_mut().poll(context).is_ready() {
                    return std::task::Poll::Ready(true);
                }
                sleep.as_mut().poll(context).map(|()| false)
            });
            if ended.await {
                return Ok(());
            }
        }
        Err(Violation(format!("a watch has not ended after {TRIES_MAX} ticks")))
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

/// Checks that the record is what `lease` settled as `done`.
pub(super) fn settled_as(
    record: &Record,
    lease: &Lease,
    done: &Settlement,
) -> Result<(), Violation> {
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

/// Checks that `lease` holds the record.
pub(super) fn held_by(holder: &ClaimInfo, lease: &Lease) -> Result<(), Violation> {
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

/// Checks that `lease` holds the record, and has not lapsed.
pub(super) fn held_live_by(holder: &ClaimInfo, lease: &Lease) -> Result<(), Violation> {
    held_by(holder, lease)?;
    ensure!(!holder.is_orphan(), "a lease of {:?} lapsed at once", lease.term);
    Ok(())
}

/// Checks that the step was refused because the caller is not the owner.
pub(super) fn fenced<T>(step: &str, result: Result<T, StoreError>) -> Result<(), Violation> {
    match result {
        Ok(_) => Err(Violation(format!("{step} succeeded for a caller that is not the owner"))),
        Err(error) if error.kind() == ErrorKind::Fenced => Ok(()),
        Err(error) => Err(violation(step, &error)),
    }
}

/// Describes an answer in a few words.
pub(super) trait Describe {
    fn describe(&self) -> String;
}

impl Describe for Claim {
    fn describe(&self) -> String {
        match self {
            Self::Granted(lease) => format!("granted as attempt {}", lease.attempt),
            Self::Found(found) => found.describe(),
        }
    }
}

impl Describe for RecordSnapshot {
    fn describe(&self) -> String {
        match self {
            Self::Held(holder) => holder.describe(),
            Self::Settled(record) => record.describe(),
        }
    }
}

impl Describe for Option<RecordSnapshot> {
    fn describe(&self) -> String {
        match self {
            None => "nothing".to_owned(),
            Some(found) => found.describe(),
        }
    }
}

impl Describe for ClaimInfo {
    fn describe(&self) -> String {
        format!("held as attempt {} for another {:?}", self.attempt, self.remaining)
    }
}

impl Describe for Record {
    fn describe(&self) -> String {
        format!("settled as {:?} with {} bytes", self.state, self.payload.len())
    }
}

fn unexpected<T: Describe>(expected: &str, answer: &Result<T, StoreError>) -> Violation {
    match answer {
        Ok(answer) => {
            Violation(format!("expected {expected}; the store said: {}", answer.describe()))
        }
        Err(error) => Violation(format!("expected {expected}; the store failed: {error:?}")),
    }
}

fn violation(step: &str, error: &StoreError) -> Violation {
    Violation(format!("{step} failed: {error:?}"))
}

/// Terms and retentions that must not end while a case runs.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// The tries of a wait, with one tick in between, so that a slow machine does not fail.
const TRIES_MAX: u32 = 200;
