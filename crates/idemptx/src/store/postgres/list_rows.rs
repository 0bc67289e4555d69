//! Listing of the records, for operators.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{Page, Query, RecordStatus, RecordStatuses, RecordSummary, StoreError};
use tokio_postgres::Row;

use super::postgres_failure::PostgresFailure;
use super::row::letter;
use super::runtime_pool::RuntimePool;
use super::statement::Sql;
use crate::store::listing::{Listing, Walked};

/// Lists one page.
pub(super) async fn list(
    pool: &RuntimePool,
    query: &Query,
    unexpected: impl Fn() -> PostgresFailure,
) -> Result<Page, StoreError> {
    let mut listing = Listing::of(query);
    let Some((first, last)) = listing.range()? else { return Ok(listing.end(true)) };
    let walk_max = i64::try_from(listing.walk_max()).unwrap_or(i64::MAX);
    let (first, last) = (&first.as_bytes()[..], &last.as_bytes()[..]);
    let letters = letters(query.statuses);
    let rows = pool.ask(Sql::List, &[&first, &last, &walk_max, &letters]).await?;
    let mut walked = 0;
    for row in &rows {
        walked = row.try_get::<_, i64>("walked").map_err(|_| unexpected())?;
        let (id, seen) = read(row).ok_or_else(&unexpected)?;
        if !listing.take(id, seen) {
            return Ok(listing.end(false));
        }
    }
    Ok(listing.end(walked < walk_max))
}

/// Returns the letters of these states in the table; the row's times narrow them down.
fn letters(statuses: RecordStatuses) -> Vec<&'static str> {
    statuses
        .iter()
        .map(|status| match status {
            RecordStatus::Completed | RecordStatus::ResponseExpired => letter(State::Completed),
            RecordStatus::NotReplayable => letter(State::NotReplayable),
            RecordStatus::Unknown => letter(State::Unknown),
            _ => letter(State::Running),
        })
        .collect()
}

fn read(row: &Row) -> Option<(RecordId, Walked)> {
    let id = row.try_get::<_, &[u8]>("id").ok()?;
    let id = RecordId::from_bytes(id.try_into().ok()?);
    let head = Bytes::copy_from_slice(row.try_get::<_, &[u8]>("head").ok()?);
    let payload: Option<i64> = row.try_get("payload").ok()?;
    let micros = |column| row.try_get(column).ok().map(span);
    let (expires_in, age) = (micros("expires_in")?, micros("age")?);
    if expires_in.is_zero() {
        return Some((id, Walked::Expired));
    }
    let Ok(record) = Record::decode(&id, &head) else { return Some((id, Walked::Unreadable)) };
    let record =
        if record.apart && payload.is_none() { record.with_response_expired() } else { record };
    let remaining = micros("remaining")?.min(record.term);
    let mut entry = RecordSummary::new(&record, remaining, expires_in, age);
    entry.payload_bytes = u64::try_from(payload.unwrap_or(0)).unwrap_or(0);
    Some((id, Walked::Record(entry)))
}

fn span(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
