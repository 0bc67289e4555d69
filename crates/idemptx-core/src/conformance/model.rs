//! Histories of a few records, every answer of which is compared with a map.

use std::collections::BTreeMap;

use super::Harness;
use super::case::{Case, Describe, LONG, fenced, held_by, result, settled_as};
use super::report::{Violation, ensure};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::record::State;
use crate::store::{
    Claim, ClaimRequest, Expected, Query, RecordSnapshot, RecordStatus, Settlement, Store,
};

/// A step of a history, as plain data, for generators that make histories and make them shorter.
///
/// Numbers name records and actors, modulo the number of each, so any number is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// An actor claims a record: with the claim request it holds it by, if it does.
    Claim {
        /// The record.
        record: u8,
        /// The actor that claims it.
        actor: u8,
        /// The orphan or result that may be replaced.
        expected: Option<Replaceable>,
        /// The life of the claim.
        life: Life,
    },
    /// An actor settles a record, whether it is its own or not.
    Settle {
        /// The record.
        record: u8,
        /// The actor that settles it.
        actor: u8,
        /// The state of the result; states that cannot be settled count as completed.
        state: State,
        /// The life of the result.
        life: Life,
    },
    /// An actor releases a record.
    Release {
        /// The record.
        record: u8,
        /// The actor that releases it.
        actor: u8,
    },
    /// An actor renews its lease on a record.
    Renew {
        /// The record.
        record: u8,
        /// The actor that renews it.
        actor: u8,
    },
    /// A record is looked up.
    Lookup {
        /// The record.
        record: u8,
    },
}

/// The record that a claim may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaceable {
    /// The orphan of this actor.
    Orphan(u8),
    /// The result of this actor.
    Settled(u8),
}

/// The life of a claim or result before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The record stays as it is.
    Stays,
    /// The lease lapses, or the response expires.
    Lapses,
    /// The record is forgotten.
    Ends,
}

/// A few records of one scope in a store, and what they have to be.
pub(super) struct ModelStore<'a, H> {
    case: &'a Case<'a, H>,
    ids: Vec<RecordId>,
    /// The requests of every actor, for each record.
    requests: Vec<Vec<ClaimRequest>>,
    records: BTreeMap<RecordId, ModelRecord>,
    fences: BTreeMap<RecordId, u64>,
}

/// The expected owner and result of a record.
struct ModelRecord {
    request: ClaimRequest,
    lease: Lease,
    lapses: bool,
    result: Option<Settlement>,
}

impl<'a, H: Harness> ModelStore<'a, H> {
    pub(super) fn new(case: &'a Case<'a, H>) -> Self {
        let scope = case.id();
        let ids = (0..RECORDS).map(|_| {
            let mut bytes = *case.id().as_bytes();
            bytes.iter_mut().zip(scope.scope_bytes()).for_each(|(to, from)| *to = from);
            RecordId::from_bytes(bytes)
        });
        let requests = (0..RECORDS).map(|_| (0..ACTORS).map(|_| case.request()).collect());
        let (records, fences) = (BTreeMap::new(), BTreeMap::new());
        Self { case, ids: ids.collect(), requests: requests.collect(), records, fences }
    }

    /// Takes a step in the store and in the map, and compares what they say.
    pub(super) async fn take(&mut self, step: Step) -> Result<(), Violation> {
        match step {
            Step::Claim { record, actor, expected, life } => {
                let (id, request) = self.named(record, actor)?;
                let token = |of| self.named(record, of).map(|(_, request)| request.token);
                let expected = match expected {
                    None => None,
                    Some(Replaceable::Orphan(of)) => Some(Expected::Orphan(token(of)?)),
                    Some(Replaceable::Settled(of)) => Some(Expected::Settled(token(of)?)),
                };
                // Nobody claims a second time under the token of an earlier claim of its own.
                let own = [Expected::Orphan(request.token), Expected::Settled(request.token)];
                let expected = expected.filter(|expected| !own.contains(expected));
                self.claim(id, ClaimRequest { expected, ..request }, life).await
            }
            Step::Settle { record, actor, state, life } => {
                let (id, request) = self.named(record, actor)?;
                self.settle(id, &request, state, life).await
            }
            Step::Release { record, actor } => {
                let (id, request) = self.named(record, actor)?;
                self.release(id, &request).await
            }
            Step::Renew { record, actor } => {
                let (id, request) = self.named(record, actor)?;
                self.renew(id, &request).await
            }
            Step::Lookup { record } => self.look(self.named(record, 0)?.0).await,
        }
    }

    /// Compares all that there is.
    pub(super) async fn compare(&self) -> Result<(), Violation> {
        for id in &self.ids {
            self.look(*id).await?;
        }
        Ok(())
    }

    /// Returns the query for everything in the model.
    pub(super) fn query(&self) -> Query {
        Query::all().in_scope(self.ids.first().map(RecordId::scope_bytes).unwrap_or_default())
    }

    /// Returns the expected answer to that query.
    pub(super) fn listed_claims(&self) -> BTreeMap<RecordId, (RecordStatus, Lease)> {
        let status = |modelled: &ModelRecord| match &modelled.result {
            None if modelled.lapses => RecordStatus::Orphaned,
            None => RecordStatus::Running,
            Some(result) => RecordStatus::of(result.state, LONG),
        };
        let shown = |(id, modelled): (&RecordId, &ModelRecord)| {
            (*id, (status(modelled), modelled.lease.clone()))
        };
        self.records.iter().map(shown).collect()
    }

    async fn claim(
        &mut self,
        id: RecordId,
        request: ClaimRequest,
        life: Life,
    ) -> Result<(), Violation> {
        if let Some(held) = self.records.get(&id).filter(|held| held.is_claim_of(&request)) {
            // A claim request that is sent again is the same claim request.
            let answer = self.claim_answer(&id, &held.request).await?;
            let again = answer == Claim::Granted(held.lease.clone());
            ensure!(again, "a claim sent again came to: {}", answer.describe());
            return self.wait(id, Life::Stays).await;
        }
        let request = self.living(request, life);
        let answer = self.claim_answer(&id, &request).await?;
        let attempt = match self.records.get(&id) {
            None => 1,
            Some(held) if held.may_be_replaced(request.expected) => held.lease.attempt + 1,
            Some(held) => return held.check_answer(answer),
        };
        let Claim::Granted(lease) = answer else {
            return Err(Violation(format!("a good claim came to: {}", answer.describe())));
        };
        let expected = Lease::granted(id, &request, lease.fence, attempt);
        ensure!(lease == expected, "granted {lease:?} instead of {expected:?}");
        let last = self.fences.insert(id, lease.fence).unwrap_or_default();
        let grows = lease.fence > last || attempt == 1 && lease.fence == last;
        ensure!(grows, "the fence {} follows {last}", lease.fence);
        let lapses = life != Life::Stays;
        self.records.insert(id, ModelRecord { request, lease, lapses, result: None });
        self.wait(id, life).await
    }

    async fn claim_answer(
        &self,
        id: &RecordId,
        request: &ClaimRequest,
    ) -> Result<Claim, Violation> {
        let answer = self.case.store().claim(id, request).await;
        answer.map_err(|error| Violation(format!("a claim failed: {error:?}")))
    }

    async fn settle(
        &mut self,
        id: RecordId,
        request: &ClaimRequest,
        state: State,
        life: Life,
    ) -> Result<(), Violation> {
        let state = match state {
            State::NotReplayable | State::Unknown => state,
            _ => State::Completed,
        };
        let payload: &[u8] = if state == State::Unknown { &[] } else { request.token.as_bytes() };
        let mut done = result(state, payload);
        if life != Life::Stays {
            done.retain = self.case.tick();
        }
        if life == Life::Ends {
            done.key_retain = self.case.tick();
        }
        let answer = self.case.store().settle(&self.lease_of(&id, request), &done).await;
        let Some(held) =
            self.records.get_mut(&id).filter(|held| held.request.token == request.token)
        else {
            return fenced("settle", answer);
        };
        if let Some(before) = &held.result {
            let original = if before.state == State::ResponseExpired {
                State::Completed
            } else {
                before.state
            };
            if original != state {
                return fenced("settle", answer);
            }
        }
        answer.map_err(|error| Violation(format!("the owner cannot settle: {error:?}")))?;
        if held.result.is_some() {
            return Ok(());
        }
        held.result = Some(done);
        match life {
            Life::Ends => self.wait(id, Life::Ends).await,
            Life::Lapses if state == State::Completed => {
                self.case.spent(&id).await?;
                if let Some(held) = self.records.get_mut(&id) {
                    held.result = Some(result(State::ResponseExpired, []));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn release(&mut self, id: RecordId, request: &ClaimRequest) -> Result<(), Violation> {
        let answer = self.case.store().release(&self.lease_of(&id, request)).await;
        match self.records.get(&id) {
            Some(held) if held.request.token != request.token || held.result.is_some() => {
                fenced("release", answer)
            }
            _ => {
                self.records.remove(&id);
                answer.map_err(|error| Violation(format!("the owner cannot release: {error:?}")))
            }
        }
    }

    async fn renew(&mut self, id: RecordId, request: &ClaimRequest) -> Result<(), Violation> {
        let lease = self.lease_of(&id, request);
        let answer = self.case.store().renew(&lease).await;
        match self.records.get(&id) {
            Some(held) if held.is_claim_of(request) => {
                let answer = answer
                    .map_err(|error| Violation(format!("the owner cannot renew: {error:?}")))?;
                ensure!(answer == lease, "renewed to {answer:?} instead of {lease:?}");
                self.wait(id, Life::Stays).await
            }
            _ => fenced("renew", answer),
        }
    }

    async fn look(&self, id: RecordId) -> Result<(), Violation> {
        let answer = self.case.store().lookup(&id).await;
        let answer = answer.map_err(|error| Violation(format!("a lookup failed: {error:?}")))?;
        match (self.records.get(&id), answer) {
            (None, None) => Ok(()),
            (Some(held), Some(found)) => held.check_answer(Claim::Found(found)),
            (_, answer) => Err(Violation(format!("a lookup came to: {}", answer.describe()))),
        }
    }

    /// Waits for the life of a record; a brief lease always lapses.
    async fn wait(&mut self, id: RecordId, life: Life) -> Result<(), Violation> {
        if life == Life::Ends {
            self.records.remove(&id);
            return self.case.gone(&id).await;
        }
        match self.records.get(&id) {
            Some(held) if held.lapses => self.case.lapsed(&id).await,
            _ => Ok(()),
        }
    }

    /// The claim request with the times that let this become of its claim.
    fn living(&self, request: ClaimRequest, life: Life) -> ClaimRequest {
        let tick = self.case.tick();
        match life {
            Life::Stays => request,
            Life::Lapses => ClaimRequest { term: tick / 10, ..request },
            Life::Ends => ClaimRequest { term: tick / 10, retain: tick, ..request },
        }
    }

    fn named(&self, record: u8, actor: u8) -> Result<(RecordId, ClaimRequest), Violation> {
        let (record, actor) = (usize::from(record) % RECORDS, usize::from(actor) % ACTORS);
        let id = self.ids.get(record).copied();
        let request = self.requests.get(record).and_then(|requests| requests.get(actor)).cloned();
        id.zip(request).ok_or_else(|| Violation("a history without records".to_owned()))
    }

    /// The lease in force if it is the requester's, else one that never was.
    fn lease_of(&self, id: &RecordId, request: &ClaimRequest) -> Lease {
        match self.records.get(id) {
            Some(held) if held.request.token == request.token => held.lease.clone(),
            _ => Lease::granted(*id, request, self.fences.get(id).copied().unwrap_or_default(), 1),
        }
    }
}

impl ModelRecord {
    fn is_claim_of(&self, request: &ClaimRequest) -> bool {
        self.result.is_none() && self.request.token == request.token
    }

    fn may_be_replaced(&self, expected: Option<Expected>) -> bool {
        match expected {
            Some(Expected::Orphan(token)) => {
                token == self.request.token && self.lapses && self.result.is_none()
            }
            Some(Expected::Settled(token)) => token == self.request.token && self.result.is_some(),
            None => false,
        }
    }

    /// Compares the record with the answer to a request that is not its owner's.
    fn check_answer(&self, answer: Claim) -> Result<(), Violation> {
        match (answer, &self.result) {
            (Claim::Found(RecordSnapshot::Held(holder)), None) => {
                ensure!(holder.is_orphan() == self.lapses, "{} is left", holder.describe());
                held_by(&holder, &self.lease)
            }
            (Claim::Found(RecordSnapshot::Settled(record)), Some(result)) => {
                settled_as(&record, &self.lease, result)
            }
            (answer, _) => {
                Err(Violation(format!("a record is reported to be: {}", answer.describe())))
            }
        }
    }
}

const RECORDS: usize = 4;
const ACTORS: usize = 3;
