//! What a listing shows, and that it shows all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Harness;
use super::join::{join, join_all, poll_once};
use super::report::Verdict::Passed;
use super::report::{Broken, Outcome, ensure};
use super::trial::{LONG, Trial, done, held_live_by, result};

use crate::key::RecordId;
use crate::lease::Lease;
use crate::record::{Record, State};
use crate::store::{
    ClaimInfo, ClaimRequest, ErrorKind, Expected, Inventory, Page, Query, RecordStatus,
    RecordSummary, Settlement,
};

pub(super) async fn a_scope_without_records_lists_nothing<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let scope = trial.id().scope_bytes();
    let listed = walk(trial, &Query::all().in_scope(scope)).await?;
    ensure!(listed.is_empty(), "a scope nobody has ever used lists {listed:?}");
    Ok(Passed)
}

pub(super) async fn a_claim_is_listed_as_running<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let entry = listed(trial, &id).await?;
    is_of(&entry, &lease, RecordStatus::Running)?;
    let RecordSummary { claim, expires_in, payload_bytes, .. } = entry;
    let remaining = claim.remaining;
    ensure!(!remaining.is_zero() && remaining <= lease.term, "{remaining:?} of a lease are left");
    ensure!(expires_in <= lease.retain, "a claim is kept for {expires_in:?}");
    ensure!(payload_bytes == 0, "a claim has a response of {payload_bytes} bytes");
    Ok(Passed)
}

pub(super) async fn an_orphan_is_listed_as_orphaned<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.orphan(&id).await?;
    let entry = listed(trial, &id).await?;
    is_of(&entry, &lease, RecordStatus::Orphaned)?;
    let remaining = entry.claim.remaining;
    ensure!(remaining.is_zero(), "{remaining:?} are left of a lapsed lease");
    ensure!(entry.idle >= lease.term, "the owner was heard of {:?} ago", entry.idle);
    Ok(Passed)
}

pub(super) async fn a_takeover_is_listed_as_the_claim_it_is<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let (_, owner) = trial.taken_over(&id).await?;
    is_of(&listed(trial, &id).await?, &owner, RecordStatus::Running)?;
    Ok(Passed)
}

pub(super) async fn results_are_listed_in_their_state_and_with_their_size<
    H: Harness<Store: Inventory>,
>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for (state, status, payload) in [
        (State::Completed, RecordStatus::Completed, "a response"),
        (State::Completed, RecordStatus::Completed, ""),
        (State::NotReplayable, RecordStatus::NotReplayable, "a head"),
        (State::Unknown, RecordStatus::Unknown, ""),
    ] {
        for retain in [LONG, LONG / 2] {
            let id = trial.id();
            let lease = trial.granted(&id, &trial.claim_request()).await?;
            trial.settle(&lease, &Settlement { retain, ..result(state, payload) }).await?;
            let entry = listed(trial, &id).await?;
            is_of(&entry, &lease, status)?;
            let size = payload.len() as u64;
            ensure!(entry.payload_bytes == size, "{size} bytes are {}", entry.payload_bytes);
            ensure!(entry.claim.remaining.is_zero(), "a result has a lease");
            ensure!(entry.expires_in <= LONG, "it is kept for {:?}", entry.expires_in);
        }
    }
    Ok(Passed)
}

pub(super) async fn a_result_whose_response_has_expired_is_listed_as_spent<
    H: Harness<Store: Inventory>,
>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    trial.settle(&lease, &Settlement { retain: trial.tick(), ..done("response") }).await?;
    trial.spent(&id).await?;
    let entry = listed(trial, &id).await?;
    is_of(&entry, &lease, RecordStatus::ResponseExpired)?;
    ensure!(entry.payload_bytes == 0, "an expired response has {} bytes", entry.payload_bytes);
    Ok(Passed)
}

pub(super) async fn what_was_released_is_not_listed<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    trial.release(&lease).await?;
    not_listed(trial, &id).await?;
    Ok(Passed)
}

pub(super) async fn what_has_ended_is_not_listed<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (claimed, settled) = (trial.id(), trial.id());
    let brief = trial.tick() * 2;
    trial.granted(&claimed, &ClaimRequest { retain: brief, ..trial.brief_claim_request() }).await?;
    let lease = trial.granted(&settled, &trial.claim_request()).await?;
    trial.settle(&lease, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
    trial.gone(&claimed).await?;
    trial.gone(&settled).await?;
    not_listed(trial, &claimed).await?;
    not_listed(trial, &settled).await?;
    Ok(Passed)
}

pub(super) async fn only_states_that_are_asked_for_are_listed<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let scope = Scope::of_every_standing(trial).await?;
    for (status, id) in &scope.of {
        let query = Query { filter: scope.all().filter, ..Query::of([*status]) };
        let found = walk(trial, &query).await?;
        ensure!(found.keys().eq([id]), "asked for what is {status}, listed {found:?}, not {id}");
    }
    let in_flight =
        walk(trial, &Query { filter: scope.all().filter, ..Query::in_flight() }).await?;
    let expected = [RecordStatus::Running, RecordStatus::Orphaned];
    ensure!(scope.are(&in_flight, &expected), "in flight is {in_flight:?}");
    let in_doubt = walk(trial, &Query { filter: scope.all().filter, ..Query::in_doubt() }).await?;
    let expected = [RecordStatus::Orphaned, RecordStatus::Unknown];
    ensure!(scope.are(&in_doubt, &expected), "in doubt is {in_doubt:?}");
    Ok(Passed)
}

pub(super) async fn only_the_scope_that_is_asked_for_is_listed<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let here = claimed_in_one_scope(trial, 3).await?;
    claimed_in_one_scope(trial, 3).await?;
    let listed = walk(trial, &Query::all().in_scope(scope_of(&here))).await?;
    ensure!(listed.keys().eq(&here), "{listed:?} are listed, not {here:?}");
    Ok(Passed)
}

pub(super) async fn only_the_record_that_is_asked_for_is_listed<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let here = claimed_in_one_scope(trial, 3).await?;
    for id in &here {
        let found = walk(trial, &Query::all().only(*id)).await?;
        ensure!(found.keys().eq([id]), "asked for {id}, listed {found:?}");
        let results = Query::of([RecordStatus::Completed]).only(*id);
        ensure!(walk(trial, &results).await?.is_empty(), "a claim is listed as a result");
    }
    Ok(Passed)
}

pub(super) async fn only_what_has_been_left_alone_for_long_is_listed<
    H: Harness<Store: Inventory>,
>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let old = trial.id();
    let lease = trial.granted(&old, &trial.claim_request()).await?;
    trial.sleep(4).await;
    let query = Query::all().only(old);
    let idle = listed(trial, &old).await?.idle;
    ensure!(idle >= trial.tick() * 3, "it was claimed four ticks ago, not {idle:?}");
    ensure!(
        !walk(trial, &query.clone().idle_for(idle)).await?.is_empty(),
        "what is old is not listed"
    );
    let more = query.clone().idle_for(LONG / 2);
    ensure!(walk(trial, &more).await?.is_empty(), "what is not old enough is listed");
    trial.renew(&lease).await?;
    let renewed = listed(trial, &old).await?;
    ensure!(renewed.idle < LONG / 2, "a renewed claim is {:?} old", renewed.idle);
    Ok(Passed)
}

pub(super) async fn pages_of_any_size_come_to_everything<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let here = claimed_in_one_scope(trial, RECORDS).await?;
    for limit in [1, 2, RECORDS - 1, RECORDS, RECORDS + 1, Query::LIMIT_MAX, usize::MAX, 0] {
        let found = walk(trial, &Query::all().in_scope(scope_of(&here)).limit(limit)).await?;
        let count = found.len();
        ensure!(found.keys().eq(&here), "{count} of {RECORDS} are on pages of {limit}");
    }
    Ok(Passed)
}

pub(super) async fn pages_leave_out_what_is_not_asked_for<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let here = claimed_in_one_scope(trial, RECORDS).await?;
    let settled: BTreeSet<RecordId> = here.iter().step_by(5).copied().collect();
    for id in &settled {
        let holder = trial.seen_held(id).await?;
        let claim_request = ClaimRequest::new(holder.token, holder.fingerprint, LONG, LONG);
        trial
            .settle(&Lease::granted(*id, &claim_request, holder.fence, holder.attempt), &done("x"))
            .await?;
    }
    for limit in [1, 3, Query::LIMIT_MAX] {
        let query = Query::of([RecordStatus::Completed]).in_scope(scope_of(&here)).limit(limit);
        let found = walk(trial, &query).await?;
        ensure!(found.keys().eq(&settled), "{} results, not {}", found.len(), settled.len());
    }
    Ok(Passed)
}

/// Whatever else is in the store, and nothing that is not.
pub(super) async fn everything_listed_is_found_and_everything_found_is_listed<
    H: Harness<Store: Inventory>,
>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let scope = Scope::of_every_standing(trial).await?;
    let found = walk(trial, &Query::all().limit(Query::LIMIT_MAX)).await?;
    for id in scope.of.values() {
        ensure!(found.contains_key(id), "{id} is not listed");
    }
    for (id, entry) in found.iter().filter(|(_, entry)| entry.expires_in > LONG / 4).take(LOOKS) {
        let told = crate::store::Store::lookup(trial.store(), id).await;
        ensure!(matches!(told, Ok(Some(_))), "{entry:?} is listed, a lookup says {told:?}");
    }
    Ok(Passed)
}

pub(super) async fn what_stays_is_listed_while_others_come_and_go<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let here = claimed_in_one_scope(trial, RECORDS).await?;
    let scope = scope_of(&here);
    let others = async {
        for round in 0..ROUNDS {
            let lives = (0..CROWD).map(|_| life(trial, id_in(trial, scope), round % 2 == 0));
            join_all(lives).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        }
        Ok::<_, Broken>(())
    };
    let lists = async {
        for limit in [1, 7, 100, 3] {
            let found = walk(trial, &Query::all().in_scope(scope).limit(limit)).await?;
            for id in &here {
                ensure!(found.contains_key(id), "{id} was there, and is on no page of {limit}");
            }
        }
        Ok::<_, Broken>(())
    };
    let (others, lists) = join(others, lists).await;
    others?;
    lists?;
    Ok(Passed)
}

/// It is an orphan or somebody's, and never an orphan of the one who has just taken it over.
pub(super) async fn a_record_that_changes_hands_is_listed_all_the_while<
    H: Harness<Store: Inventory>,
>(
    trial: &Trial<'_, H>,
) -> Outcome {
    for _ in 0..ROUNDS {
        let id = trial.id();
        let orphan = trial.orphan(&id).await?;
        let claim_request = trial.claim_request().expecting(Expected::Orphan(orphan.token));
        let lists = async {
            let mut told = Vec::new();
            for _ in 0..LISTS {
                told.push(listed(trial, &id).await?);
            }
            Ok::<_, Broken>(told)
        };
        let (told, owner) = join(lists, trial.granted(&id, &claim_request)).await;
        let owner = owner?;
        for entry in told? {
            if entry.claim.token == orphan.token {
                is_of(&entry, &orphan, RecordStatus::Orphaned)?;
            } else {
                is_of(&entry, &owner, RecordStatus::Running)?;
            }
        }
    }
    Ok(Passed)
}

pub(super) async fn a_cursor_of_another_store_is_refused<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let cursor = "-.of-no-store_at-all".parse().map_err(|error| Broken(format!("{error}")))?;
    match trial.store().list(&Query::all().after(Some(cursor))).await {
        Err(error) if error.kind() == ErrorKind::Invalid => Ok(Passed),
        told => Err(Broken(format!("after a cursor of no store comes {told:?}"))),
    }
}

pub(super) async fn listing_changes_nothing<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (live, lapsed) = (trial.id(), trial.id());
    let lease = trial.granted(&live, &trial.claim_request()).await?;
    trial.orphan(&lapsed).await?;
    for id in [&live, &lapsed] {
        for _ in 0..2 {
            listed(trial, id).await?;
        }
    }
    held_live_by(&trial.seen_held(&live).await?, &lease)?;
    ensure!(trial.seen_held(&lapsed).await?.is_orphan(), "a listing revived the lease");
    trial.settle(&lease, &done("result")).await?;
    Ok(Passed)
}

pub(super) async fn lists_that_are_dropped_harm_nothing<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let here = claimed_in_one_scope(trial, 3).await?;
    let query = Query::all().in_scope(scope_of(&here));
    for _ in 0..ROUNDS {
        poll_once(trial.store().list(&query)).await;
        let found = walk(trial, &query).await?;
        ensure!(found.keys().eq(&here), "{found:?} are listed, not {here:?}");
    }
    Ok(Passed)
}

/// A scope with one record of every standing.
struct Scope {
    scope: [u8; 16],
    of: BTreeMap<RecordStatus, RecordId>,
}

impl Scope {
    async fn of_every_standing<H: Harness<Store: Inventory>>(
        trial: &Trial<'_, H>,
    ) -> Result<Self, Broken> {
        let scope = trial.id().scope_bytes();
        let mut of = BTreeMap::new();
        for status in RecordStatus::ALL {
            let id = id_in(trial, scope);
            come_to(trial, &id, status).await?;
            of.insert(status, id);
        }
        Ok(Self { scope, of })
    }

    fn all(&self) -> Query {
        Query::all().in_scope(self.scope)
    }

    fn are(&self, listed: &BTreeMap<RecordId, RecordSummary>, statuses: &[RecordStatus]) -> bool {
        let expected: BTreeSet<_> =
            statuses.iter().filter_map(|status| self.of.get(status)).collect();
        listed.keys().eq(expected)
    }
}

async fn come_to<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
    id: &RecordId,
    status: RecordStatus,
) -> Result<(), Broken> {
    let claim_request = if status == RecordStatus::Orphaned {
        trial.brief_claim_request()
    } else {
        trial.claim_request()
    };
    let lease = trial.granted(id, &claim_request).await?;
    match status {
        RecordStatus::Running => Ok(()),
        RecordStatus::Orphaned => trial.lapsed(id).await,
        RecordStatus::Completed => trial.settle(&lease, &done("response")).await,
        RecordStatus::NotReplayable => {
            trial.settle(&lease, &result(State::NotReplayable, "head")).await
        }
        RecordStatus::Unknown => trial.settle(&lease, &result(State::Unknown, "")).await,
        RecordStatus::ResponseExpired => {
            trial.settle(&lease, &Settlement { retain: trial.tick(), ..done("brief") }).await?;
            trial.spent(id).await.map(drop)
        }
    }
}

/// Comes, and goes in one of the ways there are.
async fn life<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
    id: RecordId,
    settles: bool,
) -> Result<(), Broken> {
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    if settles { trial.settle(&lease, &done("x")).await } else { trial.release(&lease).await }
}

async fn claimed_in_one_scope<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
    count: usize,
) -> Result<BTreeSet<RecordId>, Broken> {
    let scope = trial.id().scope_bytes();
    let ids: BTreeSet<RecordId> = (0..count).map(|_| id_in(trial, scope)).collect();
    for id in &ids {
        trial.granted(id, &trial.claim_request()).await?;
    }
    Ok(ids)
}

/// A record of this scope that nobody has ever touched.
fn id_in<H: Harness<Store: Inventory>>(trial: &Trial<'_, H>, scope: [u8; 16]) -> RecordId {
    let mut bytes = *trial.id().as_bytes();
    bytes.iter_mut().zip(scope).for_each(|(to, from)| *to = from);
    RecordId::from_bytes(bytes)
}

fn scope_of(ids: &BTreeSet<RecordId>) -> [u8; 16] {
    ids.first().map(RecordId::scope_bytes).unwrap_or_default()
}

async fn listed<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
    id: &RecordId,
) -> Result<RecordSummary, Broken> {
    let mut found = walk(trial, &Query::all().only(*id)).await?;
    found.remove(id).ok_or_else(|| Broken(format!("{id} is not listed")))
}

async fn not_listed<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
    id: &RecordId,
) -> Result<(), Broken> {
    for query in [Query::all().only(*id), Query::all().in_scope(id.scope_bytes())] {
        let found = walk(trial, &query).await?;
        ensure!(!found.contains_key(id), "{:?} is listed", found.get(id));
    }
    Ok(())
}

/// What is on all pages, with cursors that have been text in between.
pub(super) async fn walk<H: Harness<Store: Inventory>>(
    trial: &Trial<'_, H>,
    query: &Query,
) -> Result<BTreeMap<RecordId, RecordSummary>, Broken> {
    let (mut found, mut query) = (BTreeMap::new(), query.clone());
    for _ in 0..PAGES_MAX {
        let told = trial.store().list(&query).await;
        let page: Page = told.map_err(|error| Broken(format!("a list failed: {error:?}")))?;
        let (count, most) = (page.entries.len(), query.page_max());
        ensure!(count <= most, "a page of at most {most} has {count} entries");
        for entry in page.entries {
            ensure!(query.admits(&entry), "{query:?} lists {entry:?}");
            found.insert(entry.id, entry);
        }
        let Some(next) = page.next else { return Ok(found) };
        let next = next.to_string().parse().map_err(|error| Broken(format!("{error}: {next}")))?;
        query = query.after(Some(next));
    }
    Err(Broken(format!("a walk has not ended after {PAGES_MAX} pages")))
}

pub(super) fn is_of(
    entry: &RecordSummary,
    lease: &Lease,
    status: RecordStatus,
) -> Result<(), Broken> {
    let claim = ClaimInfo::new(&Record::running(lease), entry.claim.remaining);
    ensure!((entry.id, entry.claim) == (lease.id, claim), "{entry:?} is listed of {lease:?}");
    ensure!(entry.status == status, "listed as {}, not as {status}", entry.status);
    ensure!(entry.age <= YEAR, "a claim just made is {:?} old", entry.age);
    Ok(())
}

const RECORDS: usize = 25;
const ROUNDS: u32 = 4;
const CROWD: usize = 16;
const LISTS: usize = 4;
/// How many of everything in a store are looked up, which may be anybody's.
const LOOKS: usize = 200;
const PAGES_MAX: usize = 100_000;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
