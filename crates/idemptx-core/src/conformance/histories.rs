//! Random histories, every answer of which is compared with a model of ten lines a step.
//!
//! The histories are the same in every run; only ids and tokens differ.

use super::case::{Case, Describe, LONG, fenced, held_by, result, settled_as};
use super::listing::{is_of, walk};
use super::model::ModelStore;
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};
use super::{Harness, Life, Replaceable, Step};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::record::State;
use crate::store::{Claim, ClaimRequest, Expected, Inventory, RecordSnapshot, Settlement, Store};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn live_claims_behave_as_in_the_model(&self) -> Outcome {
        for seed in 0..LIVE_HISTORIES {
            History::new(self, seed, false).play(LIVE_STEPS).await?;
        }
        Ok(Passed)
    }

    /// Every claim and every renewal is left to lapse before the next step.
    pub(super) async fn orphans_behave_as_in_the_model(&self) -> Outcome {
        for seed in 0..ORPHAN_HISTORIES {
            History::new(self, seed, true).play(ORPHAN_STEPS).await?;
        }
        Ok(Passed)
    }

    /// Some stay, some lapse, some end.
    pub(super) async fn a_few_records_behave_as_in_a_map(&self) -> Outcome {
        for seed in 0..HISTORIES {
            let steps = random_steps(seed);
            let mut model = ModelStore::new(self);
            for (place, step) in steps.iter().enumerate() {
                model.take(*step).await.map_err(|Violation(why)| {
                    Violation(format!("{why}, at step {place}, {step:?}, of {steps:?}"))
                })?;
            }
            model.compare().await?;
        }
        Ok(Passed)
    }
}

impl<H: Harness<Store: Inventory>> Case<'_, H> {
    /// Plays the same histories, with a listing after every step.
    pub(super) async fn a_few_records_are_listed_as_in_a_map(&self) -> Outcome {
        for seed in 0..HISTORIES {
            play(self, &random_steps(seed)).await?;
        }
        Ok(Passed)
    }
}

/// Takes steps, and compares what is listed after each of them with what the map holds.
pub(super) async fn play<H: Harness<Store: Inventory>>(
    case: &Case<'_, H>,
    steps: &[Step],
) -> Result<(), Violation> {
    let mut model = ModelStore::new(case);
    for (place, step) in steps.iter().enumerate() {
        let at =
            |Violation(why)| Violation(format!("{why}, at step {place}, {step:?}, of {steps:?}"));
        model.take(*step).await.map_err(at)?;
        let found = walk(case, &model.query().limit(2)).await.map_err(at)?;
        let expected = model.listed_claims();
        ensure!(found.keys().eq(expected.keys()), "{found:?} listed after {place} of {steps:?}");
        for (entry, (status, lease)) in found.values().zip(expected.values()) {
            is_of(entry, lease, *status).map_err(at)?;
        }
    }
    model.compare().await
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

/// A record in the model: its owner, and the result that was settled.
#[derive(Clone, Debug)]
struct ModelRecord {
    lease: Lease,
    result: Option<Settlement>,
}

/// A record, the claim requests of a few actors for it, and the model.
struct History<'a, H> {
    case: &'a Case<'a, H>,
    id: RecordId,
    requests: Vec<ClaimRequest>,
    orphans: bool,
    random: Random,
    model: Option<ModelRecord>,
    fence_last: u64,
    steps: String,
}

impl<'a, H: Harness> History<'a, H> {
    fn new(case: &'a Case<'a, H>, seed: u64, orphans: bool) -> Self {
        let term = if orphans { case.tick() / 10 } else { LONG };
        let requests = (0..ACTORS).map(|_| ClaimRequest { term, ..case.request() }).collect();
        let random = Random(SEED ^ seed);
        let id = case.id();
        let (model, steps) = (None, String::new());
        Self { case, id, requests, orphans, random, model, fence_last: 0, steps }
    }

    async fn play(mut self, steps: usize) -> Result<(), Violation> {
        for _ in 0..steps {
            self.step().await.map_err(|Violation(why)| {
                Violation(format!("{why}, at the end of this history: {}", self.steps))
            })?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), Violation> {
        let request = self.random.one_of(&self.requests)?;
        let token = self.random.one_of(&self.requests)?.token;
        let expected = if self.random.below(2) == 0 {
            Expected::Orphan(token)
        } else {
            Expected::Settled(token)
        };
        match self.random.below(8) {
            0..=3 if token == request.token => self.claim(&request).await,
            0..=3 => self.claim(&request.expecting(expected)).await,
            4 => self.settle(&request).await,
            5 => self.release(&request).await,
            6 => self.renew(&request).await,
            _ => self.lookup().await,
        }
    }

    async fn claim(&mut self, request: &ClaimRequest) -> Result<(), Violation> {
        self.note("claim", request);
        let answer = self.case.store().claim(&self.id, request).await;
        let answer = answer.map_err(|error| Violation(format!("a claim failed: {error:?}")))?;
        let attempt = match &self.model {
            None => 1,
            Some(ModelRecord { lease, result: None }) if lease.token == request.token => {
                let again = answer == Claim::Granted(lease.clone());
                ensure!(again, "a claim sent again came to: {}", answer.describe());
                return self.lapse().await;
            }
            Some(ModelRecord { lease, result })
                if request.expected == Some(Expected::Settled(lease.token)) && result.is_some()
                    || request.expected == Some(Expected::Orphan(lease.token))
                        && self.orphans
                        && result.is_none() =>
            {
                lease.attempt + 1
            }
            Some(ModelRecord { lease, result }) => {
                return match (answer, result) {
                    (Claim::Found(RecordSnapshot::Held(holder)), None) => {
                        ensure!(
                            holder.is_orphan() == self.orphans,
                            "{} is left",
                            holder.describe()
                        );
                        held_by(&holder, lease)
                    }
                    (Claim::Found(RecordSnapshot::Settled(record)), Some(result)) => {
                        settled_as(&record, lease, result)
                    }
                    (answer, _) => {
                        Err(Violation(format!("a refused claim came to: {}", answer.describe())))
                    }
                };
            }
        };
        let Claim::Granted(lease) = answer else {
            return Err(Violation(format!("a good claim came to: {}", answer.describe())));
        };
        let expected = Lease::granted(self.id, request, lease.fence, attempt);
        ensure!(lease == expected, "granted {lease:?} instead of {expected:?}");
        ensure!(
            lease.fence > self.fence_last || (attempt == 1 && lease.fence == self.fence_last),
            "the fence {} follows {}",
            lease.fence,
            self.fence_last
        );
        self.fence_last = lease.fence;
        self.model = Some(ModelRecord { lease, result: None });
        self.lapse().await
    }

    async fn settle(&mut self, request: &ClaimRequest) -> Result<(), Violation> {
        self.note("settle", request);
        let done = result(State::Completed, *request.token.as_bytes());
        let lease = self.lease_of(request);
        let answer = self.case.store().settle(&lease, &done).await;
        match &mut self.model {
            Some(model) if model.lease.token == request.token => {
                model.result = Some(done);
                answer.map_err(|error| Violation(format!("the owner cannot settle: {error:?}")))
            }
            _ => fenced("settle", answer),
        }
    }

    async fn release(&mut self, request: &ClaimRequest) -> Result<(), Violation> {
        self.note("release", request);
        let answer = self.case.store().release(&self.lease_of(request)).await;
        match &self.model {
            Some(model) if model.lease.token != request.token || model.result.is_some() => {
                fenced("release", answer)
            }
            _ => {
                self.model = None;
                answer.map_err(|error| Violation(format!("the owner cannot release: {error:?}")))
            }
        }
    }

    async fn renew(&mut self, request: &ClaimRequest) -> Result<(), Violation> {
        self.note("renew", request);
        let lease = self.lease_of(request);
        let answer = self.case.store().renew(&lease).await;
        match &self.model {
            Some(model) if model.lease.token == request.token && model.result.is_none() => {
                let answer = answer
                    .map_err(|error| Violation(format!("the owner cannot renew: {error:?}")))?;
                ensure!(answer == lease, "renewed to {answer:?} instead of {lease:?}");
                self.lapse().await
            }
            _ => fenced("renew", answer),
        }
    }

    async fn lookup(&mut self) -> Result<(), Violation> {
        self.steps.push_str("lookup; ");
        let answer = self.case.store().lookup(&self.id).await;
        let answer = answer.map_err(|error| Violation(format!("a lookup failed: {error:?}")))?;
        match (&self.model, answer) {
            (None, None) => Ok(()),
            (Some(ModelRecord { lease, result: None }), Some(RecordSnapshot::Held(holder))) => {
                held_by(&holder, lease)
            }
            (
                Some(ModelRecord { lease, result: Some(result) }),
                Some(RecordSnapshot::Settled(record)),
            ) => settled_as(&record, lease, result),
            (_, answer) => Err(Violation(format!("a lookup came to: {}", answer.describe()))),
        }
    }

    /// The lease in force if it is the requester's, else one that never was.
    fn lease_of(&self, request: &ClaimRequest) -> Lease {
        match &self.model {
            Some(model) if model.lease.token == request.token => model.lease.clone(),
            _ => Lease::granted(self.id, request, self.fence_last, 1),
        }
    }

    /// Lets what was claimed become an orphan, in a history of orphans.
    async fn lapse(&self) -> Result<(), Violation> {
        if self.orphans { self.case.lapsed(&self.id).await } else { Ok(()) }
    }

    fn note(&mut self, step: &str, request: &ClaimRequest) {
        let actor = |token| self.requests.iter().position(|request| request.token == token);
        let expected = request.expected.map(|expected| match expected {
            Expected::Orphan(token) => format!(" over the orphan of {:?}", actor(token)),
            Expected::Settled(token) => format!(" over the result of {:?}", actor(token)),
        });
        let actor = actor(request.token).unwrap_or_default();
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

    fn one_of(&mut self, requests: &[ClaimRequest]) -> Result<ClaimRequest, Violation> {
        let position = usize::try_from(self.below(requests.len() as u64)).unwrap_or_default();
        requests
            .get(position)
            .cloned()
            .ok_or_else(|| Violation("a history without actors".to_owned()))
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
