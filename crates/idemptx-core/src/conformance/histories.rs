//! Random histories, every answer of which is compared with a model of ten lines a step.
//!
//! The histories are the same in every run; only ids and tokens differ.

use super::inventory::{is_of, walk};
use super::model::World;
use super::report::Verdict::Passed;
use super::report::{Broken, Outcome, ensure};
use super::trial::{LONG, Told, Trial, fenced, held_by, result, settled_as};
use super::{Harness, Life, Replaceable, Step};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::record::State;
use crate::store::{Claim, ClaimRequest, Expected, Inventory, RecordSnapshot, Settlement, Store};

pub(super) async fn live_claims_behave_as_in_the_model<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for seed in 0..LIVE_HISTORIES {
        History::new(trial, seed, false).play(LIVE_STEPS).await?;
    }
    Ok(Passed)
}

/// Every claim and every renewal is left to lapse before the next step.
pub(super) async fn orphans_behave_as_in_the_model<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    for seed in 0..ORPHAN_HISTORIES {
        History::new(trial, seed, true).play(ORPHAN_STEPS).await?;
    }
    Ok(Passed)
}

/// Some stay, some lapse, some end.
pub(super) async fn a_few_records_behave_as_in_a_map<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    for seed in 0..HISTORIES {
        let steps = random_steps(seed);
        let mut world = World::new(trial);
        for (place, step) in steps.iter().enumerate() {
            world.take(*step).await.map_err(|Broken(why)| {
                Broken(format!("{why}, at step {place}, {step:?}, of {steps:?}"))
            })?;
        }
        world.compare().await?;
    }
    Ok(Passed)
}

/// The same histories, with a listing after every step.
pub(super) async fn a_few_records_are_listed_as_in_a_map<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for seed in 0..HISTORIES {
        play(trial, &random_steps(seed)).await?;
    }
    Ok(Passed)
}

/// Takes steps, and compares what is listed after each of them with what the map holds.
pub(super) async fn play<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
    steps: &[Step],
) -> Result<(), Broken> {
    let mut world = World::new(trial);
    for (place, step) in steps.iter().enumerate() {
        let at = |Broken(why)| Broken(format!("{why}, at step {place}, {step:?}, of {steps:?}"));
        world.take(*step).await.map_err(at)?;
        let found = walk(trial, &world.query().limit(2)).await.map_err(at)?;
        let expected = world.standings();
        ensure!(found.keys().eq(expected.keys()), "{found:?} listed after {place} of {steps:?}");
        for (entry, (status, lease)) in found.values().zip(expected.values()) {
            is_of(entry, lease, *status).map_err(at)?;
        }
    }
    world.compare().await
}

/// A history of a few records, the same in every run.
fn random_steps(seed: u64) -> Vec<Step> {
    let mut random = Random(SEED ^ seed);
    let mut below = move |bound| u8::try_from(random.below(bound)).unwrap_or_default();
    let step = |_| {
        let (record, actor, other) = (below(4), below(3), below(3));
        // Whatever waits takes its time.
        let life = match below(8) {
            0 => Life::Lapses,
            1 => Life::Ends,
            _ => Life::Stays,
        };
        let expected = match below(3) {
            0 => None,
            1 => Some(Replaceable::Orphan(other)),
            _ => Some(Replaceable::Settled(other)),
        };
        let state = match below(4) {
            0 => State::NotReplayable,
            1 => State::Unknown,
            _ => State::Completed,
        };
        match below(8) {
            0..=3 => Step::Claim { record, actor, expected, life },
            4 => Step::Settle { record, actor, state, life },
            5 => Step::Release { record, actor },
            6 => Step::Renew { record, actor },
            _ => Step::Lookup { record },
        }
    };
    (0..STEPS).map(step).collect()
}

/// What the model says of a record: whose it is, and what was settled.
#[derive(Clone, Debug)]
struct Modelled {
    lease: Lease,
    result: Option<Settlement>,
}

/// One record, the claim requests of a few actors for it, and the model.
struct History<'a, H> {
    trial: &'a Trial<'a, H>,
    id: RecordId,
    claim_requests: Vec<ClaimRequest>,
    orphans: bool,
    random: Random,
    model: Option<Modelled>,
    fence_last: u64,
    steps: String,
}

impl<'a, H: Harness> History<'a, H> {
    fn new(trial: &'a Trial<'a, H>, seed: u64, orphans: bool) -> Self {
        let term = if orphans { trial.tick() / 10 } else { LONG };
        let claim_requests =
            (0..ACTORS).map(|_| ClaimRequest { term, ..trial.claim_request() }).collect();
        let random = Random(SEED ^ seed);
        let id = trial.id();
        let (model, steps) = (None, String::new());
        Self { trial, id, claim_requests, orphans, random, model, fence_last: 0, steps }
    }

    async fn play(mut self, steps: usize) -> Result<(), Broken> {
        for _ in 0..steps {
            self.step().await.map_err(|Broken(why)| {
                Broken(format!("{why}, at the end of this history: {}", self.steps))
            })?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), Broken> {
        let claim_request = self.random.one_of(&self.claim_requests)?;
        let token = self.random.one_of(&self.claim_requests)?.token;
        let expected = if self.random.below(2) == 0 {
            Expected::Orphan(token)
        } else {
            Expected::Settled(token)
        };
        match self.random.below(8) {
            0..=3 if token == claim_request.token => self.claim(&claim_request).await,
            0..=3 => self.claim(&claim_request.expecting(expected)).await,
            4 => self.settle(&claim_request).await,
            5 => self.release(&claim_request).await,
            6 => self.renew(&claim_request).await,
            _ => self.lookup().await,
        }
    }

    async fn claim(&mut self, claim_request: &ClaimRequest) -> Result<(), Broken> {
        self.note("claim", claim_request);
        let told = self.trial.store().claim(&self.id, claim_request).await;
        let told = told.map_err(|error| Broken(format!("a claim failed: {error:?}")))?;
        let attempt = match &self.model {
            None => 1,
            Some(Modelled { lease, result: None }) if lease.token == claim_request.token => {
                let again = told == Claim::Granted(lease.clone());
                ensure!(again, "a claim sent again came to: {}", told.told());
                return self.lapse().await;
            }
            Some(Modelled { lease, result })
                if claim_request.expected == Some(Expected::Settled(lease.token))
                    && result.is_some()
                    || claim_request.expected == Some(Expected::Orphan(lease.token))
                        && self.orphans
                        && result.is_none() =>
            {
                lease.attempt + 1
            }
            Some(Modelled { lease, result }) => {
                return match (told, result) {
                    (Claim::Found(RecordSnapshot::Held(holder)), None) => {
                        ensure!(holder.is_orphan() == self.orphans, "{} is left", holder.told());
                        held_by(&holder, lease)
                    }
                    (Claim::Found(RecordSnapshot::Settled(record)), Some(result)) => {
                        settled_as(&record, lease, result)
                    }
                    (told, _) => Err(Broken(format!("a refused claim came to: {}", told.told()))),
                };
            }
        };
        let Claim::Granted(lease) = told else {
            return Err(Broken(format!("a good claim came to: {}", told.told())));
        };
        let expected = Lease::granted(self.id, claim_request, lease.fence, attempt);
        ensure!(lease == expected, "granted {lease:?} instead of {expected:?}");
        ensure!(
            lease.fence > self.fence_last || (attempt == 1 && lease.fence == self.fence_last),
            "the fence {} follows {}",
            lease.fence,
            self.fence_last
        );
        self.fence_last = lease.fence;
        self.model = Some(Modelled { lease, result: None });
        self.lapse().await
    }

    async fn settle(&mut self, claim_request: &ClaimRequest) -> Result<(), Broken> {
        self.note("settle", claim_request);
        let done = result(State::Completed, *claim_request.token.as_bytes());
        let lease = self.lease_of(claim_request);
        let told = self.trial.store().settle(&lease, &done).await;
        match &mut self.model {
            Some(model) if model.lease.token == claim_request.token => {
                model.result = Some(done);
                told.map_err(|error| Broken(format!("the owner cannot settle: {error:?}")))
            }
            _ => fenced("settle", told),
        }
    }

    async fn release(&mut self, claim_request: &ClaimRequest) -> Result<(), Broken> {
        self.note("release", claim_request);
        let told = self.trial.store().release(&self.lease_of(claim_request)).await;
        match &self.model {
            Some(model) if model.lease.token != claim_request.token || model.result.is_some() => {
                fenced("release", told)
            }
            _ => {
                self.model = None;
                told.map_err(|error| Broken(format!("the owner cannot release: {error:?}")))
            }
        }
    }

    async fn renew(&mut self, claim_request: &ClaimRequest) -> Result<(), Broken> {
        self.note("renew", claim_request);
        let lease = self.lease_of(claim_request);
        let told = self.trial.store().renew(&lease).await;
        match &self.model {
            Some(model) if model.lease.token == claim_request.token && model.result.is_none() => {
                let told =
                    told.map_err(|error| Broken(format!("the owner cannot renew: {error:?}")))?;
                ensure!(told == lease, "renewed to {told:?} instead of {lease:?}");
                self.lapse().await
            }
            _ => fenced("renew", told),
        }
    }

    async fn lookup(&mut self) -> Result<(), Broken> {
        self.steps.push_str("lookup; ");
        let told = self.trial.store().lookup(&self.id).await;
        let told = told.map_err(|error| Broken(format!("a lookup failed: {error:?}")))?;
        match (&self.model, told) {
            (None, None) => Ok(()),
            (Some(Modelled { lease, result: None }), Some(RecordSnapshot::Held(holder))) => {
                held_by(&holder, lease)
            }
            (
                Some(Modelled { lease, result: Some(result) }),
                Some(RecordSnapshot::Settled(record)),
            ) => settled_as(&record, lease, result),
            (_, told) => Err(Broken(format!("a lookup came to: {}", told.told()))),
        }
    }

    /// The lease in force if it is the requester's, else one that never was.
    fn lease_of(&self, claim_request: &ClaimRequest) -> Lease {
        match &self.model {
            Some(model) if model.lease.token == claim_request.token => model.lease.clone(),
            _ => Lease::granted(self.id, claim_request, self.fence_last, 1),
        }
    }

    /// Lets what was claimed become an orphan, in a history of orphans.
    async fn lapse(&self) -> Result<(), Broken> {
        if self.orphans { self.trial.lapsed(&self.id).await } else { Ok(()) }
    }

    fn note(&mut self, step: &str, claim_request: &ClaimRequest) {
        let actor = |token| {
            self.claim_requests.iter().position(|claim_request| claim_request.token == token)
        };
        let expected = claim_request.expected.map(|expected| match expected {
            Expected::Orphan(token) => format!(" over the orphan of {:?}", actor(token)),
            Expected::Settled(token) => format!(" over the result of {:?}", actor(token)),
        });
        let actor = actor(claim_request.token).unwrap_or_default();
        let line = format!("{step} by {actor}{}; ", expected.unwrap_or_default());
        self.steps.push_str(&line);
    }
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_of(&mut self, claim_requests: &[ClaimRequest]) -> Result<ClaimRequest, Broken> {
        let position = usize::try_from(self.below(claim_requests.len() as u64)).unwrap_or_default();
        claim_requests
            .get(position)
            .cloned()
            .ok_or_else(|| Broken("a history without actors".to_owned()))
    }
}

const ACTORS: usize = 3;
const LIVE_HISTORIES: u64 = 24;
const LIVE_STEPS: usize = 80;
const ORPHAN_HISTORIES: u64 = 2;
const ORPHAN_STEPS: usize = 40;
const HISTORIES: u64 = 2;
const STEPS: usize = 60;
const SEED: u64 = 0x1DE3_5EED;
