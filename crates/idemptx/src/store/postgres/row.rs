//! Records as the table has them.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State, Undecodable};
use idemptx_core::store::{ClaimInfo, Settlement};
use idemptx_core::time::millis;
use tokio_postgres::Row;

/// State of an id in the store.
#[derive(Debug)]
pub(super) struct RowState {
    record: Bytes,
    remaining: Duration,
    response: Option<Bytes>,
}

impl RowState {
    pub(super) fn read(row: &Row) -> Option<Self> {
        let record = row.try_get::<_, &[u8]>("record").ok()?;
        let remaining = row.try_get::<_, i64>("remaining").ok()?;
        let response = row.try_get::<_, Option<&[u8]>>("response").ok()?;
        Some(Self {
            record: Bytes::copy_from_slice(record),
            remaining: Duration::from_micros(u64::try_from(remaining).unwrap_or(0)),
            response: response.map(Bytes::copy_from_slice),
        })
    }

    /// Decodes the row as of now.
    pub(super) fn decode(self, id: &RecordId) -> Result<RowStatus, Undecodable> {
        let mut record = Record::decode(id, &self.record)?;
        if record.state == State::Running {
            return Ok(RowStatus::Held { record, remaining: self.remaining });
        }
        if record.apart {
            record.apart = false;
            match self.response {
                Some(payload) => record.payload = payload,
                None => record = record.with_response_expired(),
            }
        }
        Ok(RowStatus::Settled(record))
    }
}

/// A record that can be read.
#[derive(Debug)]
pub(super) enum RowStatus {
    Held { record: Record, remaining: Duration },
    Settled(Record),
}

impl RowStatus {
    /// Returns the record of a claim with more time left than its term: the server's clock has gone
    /// back since it was granted, as it does in a failover to a server with another clock.
    pub(super) fn lengthened(&self) -> Option<&Record> {
        let Self::Held { record, remaining } = self else { return None };
        let term = Duration::from_millis(u64::try_from(term_millis(record.term)).unwrap_or(0));
        (*remaining > term).then_some(record)
    }

    /// Returns the claim of an unsettled record.
    pub(super) fn holder(record: &Record, remaining: Duration) -> ClaimInfo {
        ClaimInfo::new(record, remaining.min(record.term))
    }
}

/// Columns that a settlement writes.
pub(super) struct Settled {
    pub(super) state: &'static str,
    pub(super) record: Vec<u8>,
    pub(super) retain: i64,
    /// The response, where it expires before its key.
    pub(super) response: Option<Bytes>,
    pub(super) response_retain: Option<i64>,
}

impl Settled {
    pub(super) fn new(lease: &Lease, done: &Settlement) -> Self {
        let (response_retain, retain) =
            (kept_millis(done.retain), kept_millis(done.key_retain.max(done.retain)));
        let mut record = Record::settled(lease, done);
        record.retain = done.key_retain.max(done.retain);
        // Only a response that can be replayed ends before its key does.
        let is_apart = done.state == State::Completed && response_retain < retain;
        if is_apart {
            record.apart = true;
            record.payload = Bytes::new();
        }
        Self {
            state: letter(done.state),
            record: record.encode(),
            retain,
            response: is_apart.then(|| done.payload.clone()),
            response_retain: is_apart.then_some(response_retain),
        }
    }
}

/// A retention as the statements take it.
pub(super) fn kept_millis(retain: Duration) -> i64 {
    i64::try_from(millis(retain.clamp(RETAIN_MIN, RETAIN_MAX))).unwrap_or(i64::MAX)
}

/// A lease's term as the statements take it.
pub(super) fn term_millis(term: Duration) -> i64 {
    i64::try_from(millis(term.min(RETAIN_MAX))).unwrap_or(i64::MAX)
}

/// The letter that a record has for its state.
pub(super) const fn letter(state: State) -> &'static str {
    match state {
        State::Completed => "D",
        State::NotReplayable => "N",
        State::Unknown => "U",
        State::ResponseExpired => "S",
        _ => "R",
    }
}

const RETAIN_MIN: Duration = Duration::from_millis(1);
const RETAIN_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
