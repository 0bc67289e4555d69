//! Histories of a few records, every answer of which is compared with a map.

use std::collections::BTreeMap;

use super::Harness;
use super::report::{Broken, ensure};
use super::trial::{LONG, Told, Trial, fenced, held_by, result, settled_as};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::record::State;
use crate::store::{
    Claim, ClaimRequest, Expected, Query, RecordSnapshot, RecordStatus, Settlement, Store,
};

/// A step of a history, as plain data, for generators that make histories and make them shorter.
///
/// Any numbers name a record and an actor: they are taken modulo the few there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// An actor claims a record: with the claim request it holds it by, if it does.
    Claim {
        /// Which record.
        record: u8,
        /// Who claims it.
        actor: u8,
        /// Whose orphan or result may be replaced.
        expected: Option<Replaceable>,
        /// What becomes of the claim.
        life: Life,
    },
    /// An actor settles a record, whether it is its own or not.
    Settle {
        /// Which record.
        record: u8,
        /// Who settles it.
        actor: u8,
        /// As what: running and spent count as done.
        state: State,
        /// What becomes of the result.
        life: Life,
    },
    /// An actor releases a record.
    Release {
        /// Which record.
        record: u8,
        /// Who releases it.
        actor: u8,
    },
    /// An actor renews its lease on a record.
    Renew {
        /// Which record.
        record: u8,
        /// Who renews it.
        actor: u8,
    },
    /// Somebody looks.
    Lookup {
        /// At which record.
        record: u8,
    },
}

/// What a claim may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaceable {
    /// The orphan of this actor.
    Orphan(u8),
    /// The result of this actor.
    Settled(u8),
}

/// What becomes of what was written, before the next step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It stays as it is.
    Stays,
    /// The lease lapses, or the response expires.
    Lapses,
    /// It is forgotten.
    Ends,
}

/// A few records of one scope in a store, and what they have to be.
pub(super) struct World<'a, H> {
    trial: &'a Trial<'a, H>,
    ids: Vec<RecordId>,
    /// Each actor has a claim request of its own for each record.
    claim_requests: Vec<Vec<ClaimRequest>>,
    records: BTreeMap<RecordId, Modelled>,
    fences: BTreeMap<RecordId, u64>,
}

/// What a record has to be: whose, and with which result.
struct Modelled {
    claim_request: ClaimRequest,
    lease: Lease,
    lapses: bool,
    result: Option<Settlement>,
}

impl<'a, H: Harness> World<'a, H> {
    pub(super) fn new(trial: &'a Trial<'a, H>) -> Self {
        let scope = trial.id();
        let ids = (0..RECORDS).map(|_| {
            let mut bytes = *trial.id().as_bytes();
            bytes.iter_mut().zip(scope.scope_bytes()).for_each(|(to, from)| *to = from);
            RecordId::from_bytes(bytes)
        });
        let claim_requests =
            (0..RECORDS).map(|_| (0..ACTORS).map(|_| trial.claim_request()).collect());
        let (records, fences) = (BTreeMap::new(), BTreeMap::new());
        Self {
            trial,
            ids: ids.collect(),
            claim_requests: claim_requests.collect(),
            records,
            fences,
        }
    }

    /// Takes a step in the store and in the map, and compares what they say.
    pub(super) async fn take(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Claim { record, actor, expected, life } => {
                let (id, claim_request) = self.named(record, actor)?;
                let token =
                    |of| self.named(record, of).map(|(_, claim_request)| claim_request.token);
                let expected = match expected {
                    None => None,
                    Some(Replaceable::Orphan(of)) => Some(Expected::Orphan(token(of)?)),
                    Some(Replaceable::Settled(of)) => Some(Expected::Settled(token(of)?)),
                };
                // Nobody claims a second time under the token of an earlier claim of its own.
                let own =
                    [Expected::Orphan(claim_request.token), Expected::Settled(claim_request.token)];
                let expected = expected.filter(|expected| !own.contains(expected));
                self.claim(id, ClaimRequest { expected, ..claim_request }, life).await
            }
            Step::Settle { record, actor, state, life } => {
                let (id, claim_request) = self.named(record, actor)?;
                self.settle(id, &claim_request, state, life).await
            }
            Step::Release { record, actor } => {
                let (id, claim_request) = self.named(record, actor)?;
                self.release(id, &claim_request).await
            }
            Step::Renew { record, actor } => {
                let (id, claim_request) = self.named(record, actor)?;
                self.renew(id, &claim_request).await
            }
            Step::Lookup { record } => self.look(self.named(record, 0)?.0).await,
        }
    }

    /// Compares all that there is.
    pub(super) async fn compare(&self) -> Result<(), Broken> {
        for id in &self.ids {
            self.look(*id).await?;
        }
        Ok(())
    }

    /// What a listing of everything here asks for.
    pub(super) fn query(&self) -> Query {
        Query::all().in_scope(self.ids.first().map(RecordId::scope_bytes).unwrap_or_default())
    }

    /// What such a listing has to show.
    pub(super) fn standings(&self) -> BTreeMap<RecordId, (RecordStatus, Lease)> {
        let status = |modelled: &Modelled| match &modelled.result {
            None if modelled.lapses => RecordStatus::Orphaned,
            None => RecordStatus::Running,
            Some(result) => RecordStatus::of(result.state, LONG),
        };
        let shown = |(id, modelled): (&RecordId, &Modelled)| {
            (*id, (status(modelled), modelled.lease.clone()))
        };
        self.records.iter().map(shown).collect()
    }

    async fn claim(
        &mut self,
        id: RecordId,
        claim_request: ClaimRequest,
        life: Life,
    ) -> Result<(), Broken> {
        if let Some(held) = self.records.get(&id).filter(|held| held.is_claim_of(&claim_request)) {
            // A claim request that is sent again is the same claim request.
            let told = self.told(&id, &held.claim_request).await?;
            let again = told == Claim::Granted(held.lease.clone());
            ensure!(again, "a claim sent again came to: {}", told.told());
            return self.wait(id, Life::Stays).await;
        }
        let claim_request = self.living(claim_request, life);
        let told = self.told(&id, &claim_request).await?;
        let attempt = match self.records.get(&id) {
            None => 1,
            Some(held) if held.may_be_replaced(claim_request.expected) => held.lease.attempt + 1,
            Some(held) => return held.is_told(told),
        };
        let Claim::Granted(lease) = told else {
            return Err(Broken(format!("a good claim came to: {}", told.told())));
        };
        let expected = Lease::granted(id, &claim_request, lease.fence, attempt);
        ensure!(lease == expected, "granted {lease:?} instead of {expected:?}");
        let last = self.fences.insert(id, lease.fence).unwrap_or_default();
        let grows = lease.fence > last || attempt == 1 && lease.fence == last;
        ensure!(grows, "the fence {} follows {last}", lease.fence);
        let lapses = life != Life::Stays;
        self.records.insert(id, Modelled { claim_request, lease, lapses, result: None });
        self.wait(id, life).await
    }

    async fn told(&self, id: &RecordId, claim_request: &ClaimRequest) -> Result<Claim, Broken> {
        let told = self.trial.store().claim(id, claim_request).await;
        told.map_err(|error| Broken(format!("a claim failed: {error:?}")))
    }

    async fn settle(
        &mut self,
        id: RecordId,
        claim_request: &ClaimRequest,
        state: State,
        life: Life,
    ) -> Result<(), Broken> {
        let state = match state {
            State::NotReplayable | State::Unknown => state,
            _ => State::Completed,
        };
        let payload: &[u8] =
            if state == State::Unknown { &[] } else { claim_request.token.as_bytes() };
        let mut done = result(state, payload);
        if life != Life::Stays {
            done.retain = self.trial.tick();
        }
        if life == Life::Ends {
            done.key_retain = self.trial.tick();
        }
        let told = self.trial.store().settle(&self.lease_of(&id, claim_request), &done).await;
        let Some(held) = self
            .records
            .get_mut(&id)
            .filter(|held| held.claim_request.token == claim_request.token)
        else {
            return fenced("settle", told);
        };
        if let Some(before) = &held.result {
            let original = if before.state == State::ResponseExpired {
                State::Completed
            } else {
                before.state
            };
            if original != state {
                return fenced("settle", told);
            }
        }
        told.map_err(|error| Broken(format!("the owner cannot settle: {error:?}")))?;
        if held.result.is_some() {
            return Ok(());
        }
        held.result = Some(done);
        match life {
            Life::Ends => self.wait(id, Life::Ends).await,
            Life::Lapses if state == State::Completed => {
                self.trial.spent(&id).await?;
                if let Some(held) = self.records.get_mut(&id) {
                    held.result = Some(result(State::ResponseExpired, []));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn release(&mut self, id: RecordId, claim_request: &ClaimRequest) -> Result<(), Broken> {
        let told = self.trial.store().release(&self.lease_of(&id, claim_request)).await;
        match self.records.get(&id) {
            Some(held)
                if held.claim_request.token != claim_request.token || held.result.is_some() =>
            {
                fenced("release", told)
            }
            _ => {
                self.records.remove(&id);
                told.map_err(|error| Broken(format!("the owner cannot release: {error:?}")))
            }
        }
    }

    async fn renew(&mut self, id: RecordId, claim_request: &ClaimRequest) -> Result<(), Broken> {
        let lease = self.lease_of(&id, claim_request);
        let told = self.trial.store().renew(&lease).await;
        match self.records.get(&id) {
            Some(held) if held.is_claim_of(claim_request) => {
                let told =
                    told.map_err(|error| Broken(format!("the owner cannot renew: {error:?}")))?;
                ensure!(told == lease, "renewed to {told:?} instead of {lease:?}");
                self.wait(id, Life::Stays).await
            }
            _ => fenced("renew", told),
        }
    }

    async fn look(&self, id: RecordId) -> Result<(), Broken> {
        let told = self.trial.store().lookup(&id).await;
        let told = told.map_err(|error| Broken(format!("a lookup failed: {error:?}")))?;
        match (self.records.get(&id), told) {
            (None, None) => Ok(()),
            (Some(held), Some(RecordSnapshot::Held(holder))) => {
                held.is_told(Claim::Found(RecordSnapshot::Held(holder)))
            }
            (Some(held), Some(RecordSnapshot::Settled(record))) => {
                held.is_told(Claim::Found(RecordSnapshot::Settled(record)))
            }
            (_, told) => Err(Broken(format!("a lookup came to: {}", told.told()))),
        }
    }

    /// Lets happen what is to become of a claim: a brief lease lapses, whatever else is said.
    async fn wait(&mut self, id: RecordId, life: Life) -> Result<(), Broken> {
        if life == Life::Ends {
            self.records.remove(&id);
            return self.trial.gone(&id).await;
        }
        match self.records.get(&id) {
            Some(held) if held.lapses => self.trial.lapsed(&id).await,
            _ => Ok(()),
        }
    }

    /// The claim request with the times that let this become of its claim.
    fn living(&self, claim_request: ClaimRequest, life: Life) -> ClaimRequest {
        let tick = self.trial.tick();
        match life {
            Life::Stays => claim_request,
            Life::Lapses => ClaimRequest { term: tick / 10, ..claim_request },
            Life::Ends => ClaimRequest { term: tick / 10, retain: tick, ..claim_request },
        }
    }

    fn named(&self, record: u8, actor: u8) -> Result<(RecordId, ClaimRequest), Broken> {
        let (record, actor) = (usize::from(record) % RECORDS, usize::from(actor) % ACTORS);
        let id = self.ids.get(record).copied();
        let claim_request = self
            .claim_requests
            .get(record)
            .and_then(|claim_requests| claim_requests.get(actor))
            .cloned();
        id.zip(claim_request).ok_or_else(|| Broken("a history without records".to_owned()))
    }

    /// The lease in force if it is the requester's, else one that never was.
    fn lease_of(&self, id: &RecordId, claim_request: &ClaimRequest) -> Lease {
        match self.records.get(id) {
            Some(held) if held.claim_request.token == claim_request.token => held.lease.clone(),
            _ => Lease::granted(
                *id,
                claim_request,
                self.fences.get(id).copied().unwrap_or_default(),
                1,
            ),
        }
    }
}

impl Modelled {
    fn is_claim_of(&self, claim_request: &ClaimRequest) -> bool {
        self.result.is_none() && self.claim_request.token == claim_request.token
    }

    fn may_be_replaced(&self, expected: Option<Expected>) -> bool {
        match expected {
            Some(Expected::Orphan(token)) => {
                token == self.claim_request.token && self.lapses && self.result.is_none()
            }
            Some(Expected::Settled(token)) => {
                token == self.claim_request.token && self.result.is_some()
            }
            None => false,
        }
    }

    /// Compares it with what somebody was told who is not its owner.
    fn is_told(&self, told: Claim) -> Result<(), Broken> {
        match (told, &self.result) {
            (Claim::Found(RecordSnapshot::Held(holder)), None) => {
                ensure!(holder.is_orphan() == self.lapses, "{} is left", holder.told());
                held_by(&holder, &self.lease)
            }
            (Claim::Found(RecordSnapshot::Settled(record)), Some(result)) => {
                settled_as(&record, &self.lease, result)
            }
            (told, _) => Err(Broken(format!("a record is told to be: {}", told.told()))),
        }
    }
}

const RECORDS: usize = 4;
const ACTORS: usize = 3;
