//! The steps of the contract, in SQL, inside the transaction of the caller.
//!
//! Each has one statement that writes, so that a step happens or does not, independent of the
//! others
//! in its transaction.

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State, Undecodable};
use idemptx_core::store::{
    Claim, ClaimInfo, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement,
};
use rusqlite::{Connection, OptionalExtension, Statement, params};

use super::boot_clock::BootTime;

/// A step that was taken, though not committed yet.
#[derive(Debug)]
pub(super) struct Committed<T> {
    pub(super) verdict: T,
    /// True if the step wrote anything.
    pub(super) wrote: bool,
}

/// Reason for a step without a result.
#[derive(Debug)]
pub(super) enum Refused {
    /// A refusal by the contract.
    Kind(ErrorKind),
    Undecodable(Undecodable),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

pub(super) type StepResult<T> = Result<Committed<T>, Refused>;

fn wrote<T>(verdict: T) -> StepResult<T> {
    Ok(Committed { verdict, wrote: true })
}

fn stands<T>(verdict: T) -> StepResult<T> {
    Ok(Committed { verdict, wrote: false })
}

fn fenced<T>() -> StepResult<T> {
    Err(Refused::Kind(ErrorKind::Fenced))
}

/// Looks for records.
#[derive(Debug)]
pub(super) struct RecordReader<'c>(Statement<'c>);

impl<'c> RecordReader<'c> {
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection
            .prepare("SELECT record, era, turns, expires FROM records WHERE id = ?1")
            .map(Self)
    }

    /// Returns the record as of now.
    pub(super) fn find(
        &mut self,
        id: &RecordId,
        now: BootTime,
    ) -> Result<Option<StoredRow>, Refused> {
        let read = |row: &rusqlite::Row<'_>| {
            let record = row.get_ref(0)?.as_blob()?;
            Ok((Bytes::copy_from_slice(record), row.get(1)?, row.get(2)?, row.get(3)?))
        };
        let row: Option<(Bytes, i64, i64, i64)> =
            self.0.query_row([id.as_bytes()], read).optional()?;
        let Some((record, era, turns, _)) = row.filter(|(.., expires)| *expires > now.micros)
        else {
            return Ok(None);
        };
        let record = Record::decode(id, &record).map_err(Refused::Undecodable)?;
        Ok(Some(match record.state {
            State::Running => {
                let lease_end = if era == now.era { turns } else { now.micros };
                let holder = ClaimInfo::new(&record, now.until(lease_end));
                StoredRow::Held(record.lease(), holder)
            }
            State::Completed if turns <= now.micros => {
                StoredRow::Settled(record.with_response_expired())
            }
            _ => StoredRow::Settled(record),
        }))
    }
}

/// A record as it is by now.
#[derive(Debug)]
pub(super) enum StoredRow {
    Held(Lease, ClaimInfo),
    Settled(Record),
}

impl StoredRow {
    fn attempt(&self) -> (u32, u64) {
        match self {
            Self::Held(lease, _) => (lease.attempt, lease.fence),
            Self::Settled(record) => (record.attempt, record.fence),
        }
    }

    fn is_over(&self, expected: Option<Expected>) -> bool {
        match (self, expected) {
            (Self::Held(_, holder), Some(Expected::Orphan(token))) => {
                holder.is_orphan() && holder.token == token
            }
            (Self::Settled(record), Some(Expected::Settled(token))) => record.token == token,
            _ => false,
        }
    }
}

impl From<StoredRow> for Claim {
    fn from(found: StoredRow) -> Self {
        Self::Found(found.into())
    }
}

impl From<StoredRow> for RecordSnapshot {
    fn from(found: StoredRow) -> Self {
        match found {
            StoredRow::Held(_, holder) => Self::Held(holder),
            StoredRow::Settled(record) => Self::Settled(record),
        }
    }
}

/// The steps that write.
#[derive(Debug)]
pub(super) struct RecordWriter<'c> {
    reader: RecordReader<'c>,
    insert: Statement<'c>,
    replace: Statement<'c>,
    renew: Statement<'c>,
    settle: Statement<'c>,
    release: Statement<'c>,
    due: Statement<'c>,
    spend: Statement<'c>,
    forget: Statement<'c>,
    postpone: Statement<'c>,
    next_due: Statement<'c>,
}

impl<'c> RecordWriter<'c> {
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            reader: RecordReader::new(connection)?,
            insert: connection.prepare(INSERT)?,
            replace: connection.prepare(REPLACE)?,
            renew: connection.prepare(RENEW)?,
            settle: connection.prepare(SETTLE)?,
            release: connection.prepare(RELEASE)?,
            due: connection.prepare(DUE)?,
            spend: connection.prepare(SPEND)?,
            forget: connection.prepare(FORGET)?,
            postpone: connection.prepare(POSTPONE)?,
            next_due: connection.prepare(NEXT_DUE)?,
        })
    }

    /// Claims.
    pub(super) fn claim(
        &mut self,
        id: &RecordId,
        request: &ClaimRequest,
        now: BootTime,
    ) -> StepResult<Claim> {
        let fence = u64::try_from(now.micros).unwrap_or_default();
        let lease = Lease::granted(*id, request, fence, FIRST_ATTEMPT);
        if write(&mut self.insert, &lease, now)? == 1 {
            return wrote(Claim::Granted(lease));
        }
        let Some(found) = self.reader.find(id, now)? else {
            // Nothing else can have come in between, and what has expired was replaced.
            return Err(Refused::Kind(ErrorKind::Internal));
        };
        match found {
            StoredRow::Held(lease, _) if lease.token == request.token => {
                self.restart_term(&lease, now)?;
                wrote(Claim::Granted(lease))
            }
            found if found.is_over(request.expected) => {
                let (attempt, former) = found.attempt();
                let fence = fence.max(former.saturating_add(1));
                let lease = Lease::granted(*id, request, fence, attempt.saturating_add(1));
                write(&mut self.replace, &lease, now)?;
                wrote(Claim::Granted(lease))
            }
            found => stands(found.into()),
        }
    }

    /// Settles.
    pub(super) fn settle(
        &mut self,
        lease: &Lease,
        done: &Settlement,
        now: BootTime,
    ) -> StepResult<()> {
        if settled(&mut self.settle, lease, done, now)? {
            return wrote(());
        }
        match self.reader.find(&lease.id, now)? {
            Some(StoredRow::Settled(record))
                if record.token == lease.token && was_settled_as(&record, done.state) =>
            {
                stands(())
            }
            _ => fenced(),
        }
    }

    /// Releases.
    pub(super) fn release(&mut self, lease: &Lease, now: BootTime) -> StepResult<()> {
        let mark = claim_mark(lease);
        if self.release.execute(params![lease.id.as_bytes(), mark, now.micros])? == 1 {
            return wrote(());
        }
        match self.reader.find(&lease.id, now)? {
            None => stands(()),
            Some(_) => fenced(),
        }
    }

    /// Renews.
    pub(super) fn renew(&mut self, lease: &Lease, now: BootTime) -> StepResult<Lease> {
        match self.reader.find(&lease.id, now)? {
            Some(StoredRow::Held(held, _)) if held.token == lease.token => {
                self.restart_term(&held, now)?;
                wrote(held)
            }
            _ => fenced(),
        }
    }

    /// Removes up to `count` expired records and responses; returns their number.
    pub(super) fn sweep(&mut self, now: BootTime, count: usize) -> rusqlite::Result<usize> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let read = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?))
        };
        let due: Vec<_> =
            self.due.query_map([now.micros, count], read)?.collect::<rusqlite::Result<_>>()?;
        for (row, expires, id) in &due {
            if *expires <= now.micros {
                self.forget.execute([row])?;
            } else if let Some(record) = self.spent(id, now)? {
                self.spend.execute(params![row, record])?;
            } else {
                // What cannot be read is left alone for as long as it was meant to stay.
                self.postpone.execute([row])?;
            }
        }
        Ok(due.len())
    }

    /// Returns the time of the next expiry.
    pub(super) fn next_due(&mut self) -> rusqlite::Result<i64> {
        let due: Option<i64> = self.next_due.query_row([], |row| row.get(0))?;
        Ok(due.unwrap_or(i64::MAX))
    }

    /// Restarts the term and the claim's retention.
    fn restart_term(&mut self, lease: &Lease, now: BootTime) -> Result<(), Refused> {
        let (turns, expires) = (now.after(lease.term), now.after(lease.retain));
        self.renew.execute(params![lease.id.as_bytes(), now.era, turns, expires])?;
        Ok(())
    }

    fn spent(&mut self, id: &[u8], now: BootTime) -> rusqlite::Result<Option<Vec<u8>>> {
        let Some(id) = id.try_into().ok().map(RecordId::from_bytes) else { return Ok(None) };
        match self.reader.find(&id, now) {
            Ok(Some(StoredRow::Settled(record))) => Ok(Some(record.encode())),
            Err(Refused::Sqlite(error)) => Err(error),
            _ => Ok(None),
        }
    }
}

/// Settles in a transaction that is not the store's.
///
/// A settlement that is there is not enough, though it be of this very execution: what it does in
/// another transaction it would do again.
pub(super) fn settle_on(
    connection: &Connection,
    lease: &Lease,
    done: &Settlement,
    now: BootTime,
) -> StepResult<()> {
    let mut statement = connection.prepare(SETTLE)?;
    if settled(&mut statement, lease, done, now)? { wrote(()) } else { fenced() }
}

/// Writes a settlement, and says whether the lease was in force.
fn settled(
    statement: &mut Statement<'_>,
    lease: &Lease,
    done: &Settlement,
    now: BootTime,
) -> Result<bool, Refused> {
    if matches!(done.state, State::Running | State::ResponseExpired) {
        return Err(Refused::Kind(ErrorKind::Invalid));
    }
    let record = Record::settled(lease, done);
    let expires = now.after(done.key_retain.max(done.retain));
    let turns = if done.state == State::Completed { now.after(done.retain) } else { expires };
    let written = statement.execute(params![
        lease.id.as_bytes(),
        claim_mark(lease),
        now.micros,
        record.encode(),
        turns,
        expires,
    ])?;
    Ok(written == 1)
}

fn write(statement: &mut Statement<'_>, lease: &Lease, now: BootTime) -> rusqlite::Result<usize> {
    statement.execute(params![
        lease.id.as_bytes(),
        Record::running(lease).encode(),
        now.era,
        now.after(lease.term),
        now.after(lease.retain),
        now.micros,
    ])
}

/// Returns the first bytes of a claim's record up to the token, for a statement to compare.
fn claim_mark(lease: &Lease) -> Vec<u8> {
    let mut mark = Record::running(lease).encode();
    mark.truncate(MARK_BYTES);
    mark
}

fn was_settled_as(record: &Record, state: State) -> bool {
    let original =
        if record.state == State::ResponseExpired { State::Completed } else { record.state };
    original == state
}

const FIRST_ATTEMPT: u32 = 1;
const MARK_BYTES: usize = Record::TOKEN_AT + Token::BYTES;

const INSERT: &str = "\
    INSERT INTO records (id, record, era, turns, expires, due) VALUES (?1, ?2, ?3, ?4, ?5, ?5) \
    ON CONFLICT (id) DO UPDATE SET record = ?2, era = ?3, turns = ?4, expires = ?5, due = ?5 \
    WHERE records.expires <= ?6";
const REPLACE: &str = "\
    UPDATE records SET record = ?2, era = ?3, turns = ?4, expires = ?5, due = ?5 \
    WHERE id = ?1 AND expires > ?6";
const RENEW: &str = "UPDATE records SET era = ?2, turns = ?3, expires = ?4, due = ?4 WHERE id = ?1";
const SETTLE: &str = "\
    UPDATE records SET record = ?4, turns = ?5, expires = ?6, due = min(?5, ?6) \
    WHERE id = ?1 AND substr(record, 1, length(?2)) = ?2 AND expires > ?3";
const RELEASE: &str = "\
    DELETE FROM records WHERE id = ?1 AND substr(record, 1, length(?2)) = ?2 AND expires > ?3";
const DUE: &str = "\
    SELECT rowid, expires, id FROM records WHERE due <= ?1 ORDER BY due LIMIT ?2";
const SPEND: &str = "UPDATE records SET record = ?2, due = expires WHERE rowid = ?1";
const FORGET: &str = "DELETE FROM records WHERE rowid = ?1";
const POSTPONE: &str = "UPDATE records SET due = expires WHERE rowid = ?1";
const NEXT_DUE: &str = "SELECT min(due) FROM records";
