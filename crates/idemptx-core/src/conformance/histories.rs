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
use crate::store::{Bid, Claim, Inventory, Over, Seen, Settlement, Store};

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
        for (entry, (standing, lease)) in found.values().zip(expected.values()) {
            is_of(entry, lease, *standing).map_err(at)?;
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
        let over = match below(3) {
            0 => None,
            1 => Some(Replaceable::Orphan(other)),
            _ => Some(Replaceable::Settled(other)),
        };
        let state = match below(4) {
            0 => State::DoneNobody,
            1 => State::Unknown,
            _ => State::Done,
        };
        match below(8) {
            0..=3 => Step::Claim { record, actor, over, life },
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

/// One record, the bids of a few actors for it, and the model.
struct History<'a, H> {
    trial: &'a Trial<'a, H>,
    id: RecordId,
    bids: Vec<Bid>,
    orphans: bool,
    random: Random,
    model: Option<Modelled>,
    fence_last: u64,
    steps: String,
}

impl<'a, H: Harness> History<'a, H> {
    fn new(trial: &'a Trial<'a, H>, seed: u64, orphans: bool) -> Self {
        let term = if orphans { trial.tick() / 10 } else { LONG };
        let bids = (0..ACTORS).map(|_| Bid { term, ..trial.bid() }).collect();
        let random = Random(SEED ^ seed);
        let id = trial.id();
        let (model, steps) = (None, String::new());
        Self { trial, id, bids, orphans, random, model, fence_last: 0, steps }
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
        let bid = self.random.one_of(&self.bids)?;
        let token = self.random.one_of(&self.bids)?.token;
        let over =
            if self.random.below(2) == 0 { Over::Orphan(token) } else { Over::Settled(token) };
        match self.random.below(8) {
            0..=3 if token == bid.token => self.claim(&bid).await,
            0..=3 => self.claim(&bid.over(over)).await,
            4 => self.settle(&bid).await,
            5 => self.release(&bid).await,
            6 => self.renew(&bid).await,
            _ => self.lookup().await,
        }
    }

    async fn claim(&mut self, bid: &Bid) -> Result<(), Broken> {
        self.note("claim", bid);
        let told = self.trial.store().claim(&self.id, bid).await;
        let told = told.map_err(|error| Broken(format!("a claim failed: {error:?}")))?;
        let attempt = match &self.model {
            None => 1,
            Some(Modelled { lease, result: None }) if lease.token == bid.token => {
                let again = told == Claim::Granted(lease.clone());
                ensure!(again, "a claim sent again came to: {}", told.told());
                return self.lapse().await;
            }
            Some(Modelled { lease, result })
                if bid.over == Some(Over::Settled(lease.token)) && result.is_some()
                    || bid.over == Some(Over::Orphan(lease.token))
                        && self.orphans
                        && result.is_none() =>
            {
                lease.attempt + 1
            }
            Some(Modelled { lease, result }) => {
                return match (told, result) {
                    (Claim::Held(holder), None) => {
                        ensure!(holder.is_orphan() == self.orphans, "{} is left", holder.told());
                        held_by(&holder, lease)
                    }
                    (Claim::Settled(record), Some(result)) => settled_as(&record, lease, result),
                    (told, _) => Err(Broken(format!("a refused claim came to: {}", told.told()))),
                };
            }
        };
        let Claim::Granted(lease) = told else {
            return Err(Broken(format!("a good claim came to: {}", told.told())));
        };
        let expected = Lease::granted(self.id, bid, lease.fence, attempt);
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

    async fn settle(&mut self, bid: &Bid) -> Result<(), Broken> {
        self.note("settle", bid);
        let done = result(State::Done, *bid.token.as_bytes());
        let lease = self.lease_of(bid);
        let told = self.trial.store().settle(&lease, &done).await;
        match &mut self.model {
            Some(model) if model.lease.token == bid.token => {
                model.result = Some(done);
                told.map_err(|error| Broken(format!("the owner cannot settle: {error:?}")))
            }
            _ => fenced("settle", told),
        }
    }

    async fn release(&mut self, bid: &Bid) -> Result<(), Broken> {
        self.note("release", bid);
        let told = self.trial.store().release(&self.lease_of(bid)).await;
        match &self.model {
            Some(model) if model.lease.token != bid.token || model.result.is_some() => {
                fenced("release", told)
            }
            _ => {
                self.model = None;
                told.map_err(|error| Broken(format!("the owner cannot release: {error:?}")))
            }
        }
    }

    async fn renew(&mut self, bid: &Bid) -> Result<(), Broken> {
        self.note("renew", bid);
        let lease = self.lease_of(bid);
        let told = self.trial.store().renew(&lease).await;
        match &self.model {
            Some(model) if model.lease.token == bid.token && model.result.is_none() => {
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
            (Some(Modelled { lease, result: None }), Some(Seen::Held(holder))) => {
                held_by(&holder, lease)
            }
            (Some(Modelled { lease, result: Some(result) }), Some(Seen::Settled(record))) => {
                settled_as(&record, lease, result)
            }
            (_, told) => Err(Broken(format!("a lookup came to: {}", told.told()))),
        }
    }

    /// The lease in force if it is the bidder's, else one that never was.
    fn lease_of(&self, bid: &Bid) -> Lease {
        match &self.model {
            Some(model) if model.lease.token == bid.token => model.lease.clone(),
            _ => Lease::granted(self.id, bid, self.fence_last, 1),
        }
    }

    /// Lets what was claimed become an orphan, in a history of orphans.
    async fn lapse(&self) -> Result<(), Broken> {
        if self.orphans { self.trial.lapsed(&self.id).await } else { Ok(()) }
    }

    fn note(&mut self, step: &str, bid: &Bid) {
        let actor = |token| self.bids.iter().position(|bid| bid.token == token);
        let over = bid.over.map(|over| match over {
            Over::Orphan(token) => format!(" over the orphan of {:?}", actor(token)),
            Over::Settled(token) => format!(" over the result of {:?}", actor(token)),
        });
        let actor = actor(bid.token).unwrap_or_default();
        let line = format!("{step} by {actor}{}; ", over.unwrap_or_default());
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

    fn one_of(&mut self, bids: &[Bid]) -> Result<Bid, Broken> {
        let position = usize::try_from(self.below(bids.len() as u64)).unwrap_or_default();
        bids.get(position).cloned().ok_or_else(|| Broken("a history without actors".to_owned()))
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
