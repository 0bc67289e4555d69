//! Listing of the records by the reading threads, for operators.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{Page, Query, RecordSummary, StoreError};
use rusqlite::blob::Blob;
use rusqlite::{Connection, MAIN_DB, params};

use super::boot_clock::{BootTime, StoreClock};
use super::file::DatabaseFile;
use super::sqlite_failure::SqliteCause;
use crate::store::listing::{Listing, Walked};

/// Lists one page.
pub(super) fn list(
    connection: &Connection,
    query: &Query,
    file: &DatabaseFile,
    clock: &StoreClock,
) -> Result<Page, StoreError> {
    if !file.is_in_place() {
        return Err(file.fail(SqliteCause::Replaced).into());
    }
    let mut listing = Listing::of(query);
    let Some(range) = listing.range()? else { return Ok(listing.end(true)) };
    let walked = walk(connection, &mut listing, range, clock.now());
    let is_complete = walked.map_err(|error| StoreError::from(file.sqlite(error)))?;
    Ok(listing.end(is_complete))
}

/// Takes one record after the other, and says whether they came to an end.
fn walk(
    connection: &Connection,
    listing: &mut Listing<'_>,
    (first, last): (RecordId, RecordId),
    now: BootTime,
) -> rusqlite::Result<bool> {
    // Rows and what is read of them piecemeal have to be of one moment.
    let snapshot = connection.unchecked_transaction()?;
    let mut statement = snapshot.prepare(WALK)?;
    let walk_max = listing.walk_max();
    let mut rows = statement.query(params![first.as_bytes(), last.as_bytes(), walk_max as i64])?;
    let (mut blob, mut walked) = (None, 0);
    while let Some(row) = rows.next()? {
        walked += 1;
        let Ok(id) = row.get(0).map(RecordId::from_bytes) else { continue };
        let head = head(connection, &mut blob, row.get(1)?)?;
        let stored = Stored { head, length: row.get(2)?, era: row.get(3)? };
        if !listing.take(id, stored.seen(&id, row.get(4)?, row.get(5)?, now)) {
            return Ok(false);
        }
    }
    Ok(walked < walk_max)
}

/// Reads the beginning of a record, without the pages of its response that a query would load.
fn head<'c>(
    connection: &'c Connection,
    blob: &mut Option<Blob<'c>>,
    row: i64,
) -> rusqlite::Result<Bytes> {
    let blob = match blob {
        Some(blob) => {
            blob.reopen(row)?;
            blob
        }
        None => blob.insert(connection.blob_open(MAIN_DB, "records", "record", row, true)?),
    };
    let mut head = vec![0; Record::LISTED_BYTES.min(blob.len())];
    blob.read_at_exact(&mut head, 0)?;
    Ok(head.into())
}

/// A row as far as it is read.
struct Stored {
    head: Bytes,
    length: i64,
    era: i64,
}

impl Stored {
    fn seen(&self, id: &RecordId, turns: i64, expires: i64, now: BootTime) -> Walked {
        if expires <= now.micros {
            return Walked::Expired;
        }
        let Ok(record) = Record::decode(id, &self.head) else { return Walked::Unreadable };
        let is_spent = record.state == State::Completed && turns <= now.micros;
        let record = if is_spent { record.with_response_expired() } else { record };
        let remaining = if self.era == now.era { now.until(turns) } else { Duration::ZERO };
        let fence = i64::try_from(record.fence).unwrap_or(i64::MAX);
        let age = BootTime { micros: fence, ..now }.until(now.micros);
        let mut entry = RecordSummary::new(&record, remaining, now.until(expires), age);
        if !is_spent {
            let payload = self.length - Record::HEAD_BYTES as i64;
            entry.payload_bytes = u64::try_from(payload).unwrap_or(0);
        }
        Walked::Record(entry)
    }
}

const WALK: &str = "\
    SELECT id, rowid, length(record), era, turns, expires FROM records \
    WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3";
