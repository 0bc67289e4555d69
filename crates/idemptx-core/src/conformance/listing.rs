//! Listings: the content of each entry, and their completeness.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Harness;
use super::case::{Case, LONG, done, held_live_by, result};
use super::join::{join, join_all, poll_once};
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};

use crate::key::RecordId;
use crate::lease::Lease;
use crate::record::{Record, State};
use crate::store::{
    ClaimInfo, ClaimRequest, ErrorKind, Expected, Inventory, Page, Query, RecordStatus,
    RecordSummary, Settlement,
};

impl<H: Harness<Store: Inventory>> Case<'_, H> {
    pub(super) async fn a_scope_without_records_lists_nothing(&self) -> Outcome {
        let scope = self.id().scope_bytes();
        let listed = walk(self, &Query::all().in_scope(scope)).await?;
        ensure!(listed.is_empty(), "a new scope lists {listed:?}");
        Ok(Passed)
    }

    pub(super) async fn a_claim_is_listed_as_running(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let entry = listed(self, &id).await?;
        is_of(&entry, &lease, RecordStatus::Running)?;
        let RecordSummary { claim, expires_in, payload_bytes, .. } = entry;
        let remaining = claim.remaining;
        ensure!(
            !remaining.is_zero() && remaining <= lease.term,
            "{remaining:?} of a lease are left"
        );
        ensure!(expires_in <= lease.retain, "a claim is kept for {expires_in:?}");
        ensure!(payload_bytes == 0, "a claim has a response of {payload_bytes} bytes");
        Ok(Passed)
    }

    pub(super) async fn an_orphan_is_listed_as_orphaned(&self) -> Outcome {
        let id = self.id();
        let lease = self.orphan(&id).await?;
        let entry = listed(self, &id).await?;
        is_of(&entry, &lease, RecordStatus::Orphaned)?;
        let remaining = entry.claim.remaining;
        ensure!(remaining.is_zero(), "{remaining:?} are left of a lapsed lease");
        ensure!(entry.idle >= lease.term, "the owner was heard of {:?} ago", entry.idle);
        Ok(Passed)
    }

    pub(super) async fn a_takeover_is_listed_as_the_claim_it_is(&self) -> Outcome {
        let id = self.id();
        let (_, owner) = self.taken_over(&id).await?;
        is_of(&listed(self, &id).await?, &owner, RecordStatus::Running)?;
        Ok(Passed)
    }

    pub(super) async fn results_are_listed_in_their_state_and_with_their_size(&self) -> Outcome {
        for (state, status, payload) in [
            (State::Completed, RecordStatus::Completed, "a response"),
            (State::Completed, RecordStatus::Completed, ""),
            (State::NotReplayable, RecordStatus::NotReplayable, "a head"),
            (State::Unknown, RecordStatus::Unknown, ""),
        ] {
            for retain in [LONG, LONG / 2] {
                let id = self.id();
                let lease = self.granted(&id, &self.request()).await?;
                self.settle(&lease, &Settlement { retain, ..result(state, payload) }).await?;
                let entry = listed(self, &id).await?;
                is_of(&entry, &lease, status)?;
                let size = payload.len() as u64;
                ensure!(entry.payload_bytes == size, "{size} bytes are {}", entry.payload_bytes);
                ensure!(entry.claim.remaining.is_zero(), "a result has a lease");
                ensure!(entry.expires_in <= LONG, "it is kept for {:?}", entry.expires_in);
            }
        }
        Ok(Passed)
    }

    pub(super) async fn a_result_whose_response_has_expired_is_listed_as_spent(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        self.settle(&lease, &Settlement { retain: self.tick(), ..done("response") }).await?;
        self.spent(&id).await?;
        let entry = listed(self, &id).await?;
        is_of(&entry, &lease, RecordStatus::ResponseExpired)?;
        ensure!(entry.payload_bytes == 0, "an expired response has {} bytes", entry.payload_bytes);
        Ok(Passed)
    }

    pub(super) async fn what_was_released_is_not_listed(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        self.release(&lease).await?;
        not_listed(self, &id).await?;
        Ok(Passed)
    }

    pub(super) async fn what_has_ended_is_not_listed(&self) -> Outcome {
        let (claimed, settled) = (self.id(), self.id());
        let brief = self.tick() * 2;
        self.granted(&claimed, &ClaimRequest { retain: brief, ..self.brief_request() }).await?;
        let lease = self.granted(&settled, &self.request()).await?;
        self.settle(&lease, &Settlement { retain: brief, key_retain: brief, ..done("x") }).await?;
        self.gone(&claimed).await?;
        self.gone(&settled).await?;
        not_listed(self, &claimed).await?;
        not_listed(self, &settled).await?;
        Ok(Passed)
    }

    pub(super) async fn only_states_that_are_asked_for_are_listed(&self) -> Outcome {
        let scope = Scope::of_every_standing(self).await?;
        for (status, id) in &scope.of {
            let query = Query { filter: scope.all().filter, ..Query::of([*status]) };
            let found = walk(self, &query).await?;
            ensure!(
                found.keys().eq([id]),
                "asked for what is {status}, listed {found:?}, not {id}"
            );
        }
        let in_flight =
            walk(self, &Query { filter: scope.all().filter, ..Query::in_flight() }).await?;
        let expected = [RecordStatus::Running, RecordStatus::Orphaned];
        ensure!(scope.are(&in_flight, &expected), "in flight is {in_flight:?}");
        let in_doubt =
            walk(self, &Query { filter: scope.all().filter, ..Query::in_doubt() }).await?;
        let expected = [RecordStatus::Orphaned, RecordStatus::Unknown];
        ensure!(scope.are(&in_doubt, &expected), "in doubt is {in_doubt:?}");
        Ok(Passed)
    }

    pub(super) async fn only_the_scope_that_is_asked_for_is_listed(&self) -> Outcome {
        let here = claimed_in_one_scope(self, 3).await?;
        claimed_in_one_scope(self, 3).await?;
        let listed = walk(self, &Query::all().in_scope(scope_of(&here))).await?;
        ensure!(listed.keys().eq(&here), "{listed:?} are listed, not {here:?}");
        Ok(Passed)
    }

    pub(super) async fn only_the_record_that_is_asked_for_is_listed(&self) -> Outcome {
        let here = claimed_in_one_scope(self, 3).await?;
        for id in &here {
            let found = walk(self, &Query::all().only(*id)).await?;
            ensure!(found.keys().eq([id]), "asked for {id}, listed {found:?}");
            let results = Query::of([RecordStatus::Completed]).only(*id);
            ensure!(walk(self, &results).await?.is_empty(), "a claim is listed as a result");
        }
        Ok(Passed)
    }

    pub(super) async fn only_what_has_been_left_alone_for_long_is_listed(&self) -> Outcome {
        let old = self.id();
        let lease = self.granted(&old, &self.request()).await?;
        self.sleep(4).await;
        let query = Query::all().only(old);
        let idle = listed(self, &old).await?.idle;
        ensure!(idle >= self.tick() * 3, "it was claimed four ticks ago, not {idle:?}");
        ensure!(
            !walk(self, &query.clone().idle_for(idle)).await?.is_empty(),
            "what is old is not listed"
        );
        let more = query.clone().idle_for(LONG / 2);
        ensure!(walk(self, &more).await?.is_empty(), "what is not old enough is listed");
        self.renew(&lease).await?;
        let renewed = listed(self, &old).await?;
        ensure!(renewed.idle < LONG / 2, "a renewed claim is {:?} old", renewed.idle);
        Ok(Passed)
    }

    pub(super) async fn pages_of_any_size_come_to_everything(&self) -> Outcome {
        let here = claimed_in_one_scope(self, RECORDS).await?;
        for limit in [1, 2, RECORDS - 1, RECORDS, RECORDS + 1, Query::LIMIT_MAX, usize::MAX, 0] {
            let found = walk(self, &Query::all().in_scope(scope_of(&here)).limit(limit)).await?;
            let count = found.len();
            ensure!(found.keys().eq(&here), "{count} of {RECORDS} are on pages of {limit}");
        }
        Ok(Passed)
    }

    pub(super) async fn pages_leave_out_what_is_not_asked_for(&self) -> Outcome {
        let here = claimed_in_one_scope(self, RECORDS).await?;
        let settled: BTreeSet<RecordId> = here.iter().step_by(5).copied().collect();
        for id in &settled {
            let holder = self.seen_held(id).await?;
            let request = ClaimRequest::new(holder.token, holder.fingerprint, LONG, LONG);
            self.settle(&Lease::granted(*id, &request, holder.fence, holder.attempt), &done("x"))
                .await?;
        }
        for limit in [1, 3, Query::LIMIT_MAX] {
            let query = Query::of([RecordStatus::Completed]).in_scope(scope_of(&here)).limit(limit);
            let found = walk(self, &query).await?;
            ensure!(found.keys().eq(&settled), "{} results, not {}", found.len(), settled.len());
        }
        Ok(Passed)
    }

    /// Compares with lookups, with other records in the store.
    pub(super) async fn everything_listed_is_found_and_everything_found_is_listed(
        &self,
    ) -> Outcome {
        let scope = Scope::of_every_standing(self).await?;
        let found = walk(self, &Query::all().limit(Query::LIMIT_MAX)).await?;
        for id in scope.of.values() {
            ensure!(found.contains_key(id), "{id} is not listed");
        }
        for (id, entry) in found.iter().filter(|(_, entry)| entry.expires_in > LONG / 4).take(LOOKS)
        {
            let answer = crate::store::Store::lookup(self.store(), id).await;
            ensure!(matches!(answer, Ok(Some(_))), "{entry:?} is listed, a lookup says {answer:?}");
        }
        Ok(Passed)
    }

    pub(super) async fn what_stays_is_listed_while_others_come_and_go(&self) -> Outcome {
        let here = claimed_in_one_scope(self, RECORDS).await?;
        let scope = scope_of(&here);
        let others = async {
            for round in 0..ROUNDS {
                let lives = (0..CROWD).map(|_| life(self, id_in(self, scope), round % 2 == 0));
                join_all(lives).await.into_iter().collect::<Result<Vec<()>, _>>()?;
            }
            Ok::<_, Violation>(())
        };
        let lists = async {
            for limit in [1, 7, 100, 3] {
                let found = walk(self, &Query::all().in_scope(scope).limit(limit)).await?;
                for id in &here {
                    ensure!(found.contains_key(id), "{id} was there, and is on no page of {limit}");
                }
            }
            Ok::<_, Violation>(())
        };
        let (others, lists) = join(others, lists).await;
        others?;
        lists?;
        Ok(Passed)
    }

    /// The record is an orphan or claimed, and never an orphan of the claim that just took it over.
    pub(super) async fn a_record_that_changes_hands_is_listed_all_the_while(&self) -> Outcome {
        for _ in 0..ROUNDS {
            let id = self.id();
            let orphan = self.orphan(&id).await?;
            let request = self.request().expecting(Expected::Orphan(orphan.token));
            let lists = async {
                let mut answer = Vec::new();
                for _ in 0..LISTS {
                    answer.push(listed(self, &id).await?);
                }
                Ok::<_, Violation>(answer)
            };
            let (answer, owner) = join(lists, self.granted(&id, &request)).await;
            let owner = owner?;
            for entry in answer? {
                if entry.claim.token == orphan.token {
                    is_of(&entry, &orphan, RecordStatus::Orphaned)?;
                } else {
                    is_of(&entry, &owner, RecordStatus::Running)?;
                }
            }
        }
        Ok(Passed)
    }

    pub(super) async fn a_cursor_of_another_store_is_refused(&self) -> Outcome {
        let cursor =
            "-.of-no-store_at-all".parse().map_err(|error| Violation(format!("{error}")))?;
        match self.store().list(&Query::all().after(Some(cursor))).await {
            Err(error) if error.kind() == ErrorKind::Invalid => Ok(Passed),
            answer => Err(Violation(format!("after a cursor of no store comes {answer:?}"))),
        }
    }

    pub(super) async fn listing_changes_nothing(&self) -> Outcome {
        let (live, lapsed) = (self.id(), self.id());
        let lease = self.granted(&live, &self.request()).await?;
        self.orphan(&lapsed).await?;
        for id in [&live, &lapsed] {
            for _ in 0..2 {
                listed(self, id).await?;
            }
        }
        held_live_by(&self.seen_held(&live).await?, &lease)?;
        ensure!(self.seen_held(&lapsed).await?.is_orphan(), "a listing revived the lease");
        self.settle(&lease, &done("result")).await?;
        Ok(Passed)
    }

    pub(super) async fn lists_that_are_dropped_harm_nothing(&self) -> Outcome {
        let here = claimed_in_one_scope(self, 3).await?;
        let query = Query::all().in_scope(scope_of(&here));
        for _ in 0..ROUNDS {
            poll_once(self.store().list(&query)).await;
            let found = walk(self, &query).await?;
            ensure!(found.keys().eq(&here), "{found:?} are listed, not {here:?}");
        }
        Ok(Passed)
    }
}

/// A scope with one record of every standing.
struct Scope {
    scope: [u8; 16],
    of: BTreeMap<RecordStatus, RecordId>,
}

impl Scope {
    async fn of_every_standing<H: Harness<Store: Inventory>>(
        case: &Case<'_, H>,
    ) -> Result<Self, Violation> {
        let scope = case.id().scope_bytes();
        let mut of = BTreeMap::new();
        for status in RecordStatus::ALL {
            let id = id_in(case, scope);
            come_to(case, &id, status).await?;
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
    case: &Case<'_, H>,
    id: &RecordId,
    status: RecordStatus,
) -> Result<(), Violation> {
    let request =
        if status == RecordStatus::Orphaned { case.brief_request() } else { case.request() };
    let lease = case.granted(id, &request).await?;
    match status {
        RecordStatus::Running => Ok(()),
        RecordStatus::Orphaned => case.lapsed(id).await,
        RecordStatus::Completed => case.settle(&lease, &done("response")).await,
        RecordStatus::NotReplayable => {
            case.settle(&lease, &result(State::NotReplayable, "head")).await
        }
        RecordStatus::Unknown => case.settle(&lease, &result(State::Unknown, "")).await,
        RecordStatus::ResponseExpired => {
            case.settle(&lease, &Settlement { retain: case.tick(), ..done("brief") }).await?;
            case.spent(id).await.map(drop)
        }
    }
}

/// Comes, and goes in one of the ways there are.
async fn life<H: Harness<Store: Inventory>>(
    case: &Case<'_, H>,
    id: RecordId,
    settles: bool,
) -> Result<(), Violation> {
    let lease = case.granted(&id, &case.request()).await?;
    if settles { case.settle(&lease, &done("x")).await } else { case.release(&lease).await }
}

async fn claimed_in_one_scope<H: Harness<Store: Inventory>>(
    case: &Case<'_, H>,
    count: usize,
) -> Result<BTreeSet<RecordId>, Violation> {
    let scope = case.id().scope_bytes();
    let ids: BTreeSet<RecordId> = (0..count).map(|_| id_in(case, scope)).collect();
    for id in &ids {
        case.granted(id, &case.request()).await?;
    }
    Ok(ids)
}

/// Returns the id of a new record in this scope.
fn id_in<H: Harness<Store: Inventory>>(case: &Case<'_, H>, scope: [u8; 16]) -> RecordId {
    let mut bytes = *case.id().as_bytes();
    bytes.iter_mut().zip(scope).for_each(|(to, from)| *to = from);
    RecordId::from_bytes(bytes)
}

fn scope_of(ids: &BTreeSet<RecordId>) -> [u8; 16] {
    ids.first().map(RecordId::scope_bytes).unwrap_or_default()
}

pub(super) async fn listed<H: Harness<Store: Inventory>>(
    case: &Case<'_, H>,
    id: &RecordId,
) -> Result<RecordSummary, Violation> {
    let mut found = walk(case, &Query::all().only(*id)).await?;
    found.remove(id).ok_or_else(|| Violation(format!("{id} is not listed")))
}

async fn not_listed<H: Harness<Store: Inventory>>(
    case: &Case<'_, H>,
    id: &RecordId,
) -> Result<(), Violation> {
    for query in [Query::all().only(*id), Query::all().in_scope(id.scope_bytes())] {
        let found = walk(case, &query).await?;
        ensure!(!found.contains_key(id), "{:?} is listed", found.get(id));
    }
    Ok(())
}

/// Reads all pages, with cursors that were text in between.
pub(super) async fn walk<H: Harness<Store: Inventory>>(
    case: &Case<'_, H>,
    query: &Query,
) -> Result<BTreeMap<RecordId, RecordSummary>, Violation> {
    let (mut found, mut query) = (BTreeMap::new(), query.clone());
    for _ in 0..PAGES_MAX {
        let answer = case.store().list(&query).await;
        let page: Page = answer.map_err(|error| Violation(format!("a list failed: {error:?}")))?;
        let (count, most) = (page.entries.len(), query.page_max());
        ensure!(count <= most, "a page of at most {most} has {count} entries");
        for entry in page.entries {
            ensure!(query.admits(&entry), "{query:?} lists {entry:?}");
            found.insert(entry.id, entry);
        }
        let Some(next) = page.next else { return Ok(found) };
        let next =
            next.to_string().parse().map_err(|error| Violation(format!("{error}: {next}")))?;
        query = query.after(Some(next));
    }
    Err(Violation(format!("a walk has not ended after {PAGES_MAX} pages")))
}

pub(super) fn is_of(
    entry: &RecordSummary,
    lease: &Lease,
    status: RecordStatus,
) -> Result<(), Violation> {
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
/// The most records of a store that are looked up; it may hold those of others.
const LOOKS: usize = 200;
const PAGES_MAX: usize = 100_000;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
