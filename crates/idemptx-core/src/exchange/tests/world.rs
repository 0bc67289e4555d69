//! A store in a few lines, with the exact contract of [`Store`](crate::store::Store), and the
//! requests that meet in it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use crate::exchange::{Exchange, Head, Rules};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, Names, RecordId, Scope};
use crate::lease::{Lease, Token};
use crate::policy::{Policy, ScopeRule};
use crate::record::{Record, State};
use crate::response::{ReplayRules, StoredResponse};
use crate::store::{
    Claim, ClaimInfo, ClaimRequest, ErrorKind, Expected, RecordSnapshot, Settlement, StoreFailure,
};

/// A store for one record.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub(super) record: Option<Record>,
    /// The start of the lease by the store's clock, in milliseconds.
    pub(super) since: u64,
    /// True if the content cannot be decoded.
    pub(super) corrupt: bool,
}

impl Cell {
    pub(super) fn claim(
        &mut self,
        id: &RecordId,
        claim_request: &ClaimRequest,
        now: u64,
    ) -> Result<Claim, StoreFailure> {
        if self.corrupt {
            return Err(ErrorKind::Corrupt.into());
        }
        let (fence, attempt) = match &self.record {
            None => (1, 1),
            Some(record)
                if record.token == claim_request.token && record.state == State::Running =>
            {
                self.since = now;
                return Ok(Claim::Granted(record.lease()));
            }
            Some(record) if self.is_over(claim_request.expected, record, now) => {
                (record.fence + 1, record.attempt + 1)
            }
            Some(_) => {
                return Ok(Claim::Found(self.seen(now).unwrap()));
            }
        };
        let lease = Lease::granted(*id, claim_request, fence, attempt);
        self.record = Some(Record::running(&lease));
        self.since = now;
        Ok(Claim::Granted(lease))
    }

    pub(super) fn settle(&mut self, lease: &Lease, done: &Settlement) -> Result<(), ErrorKind> {
        match &self.record {
            _ if self.corrupt => Err(ErrorKind::Corrupt),
            Some(record) if record.token == lease.token => {
                if record.state == State::Running {
                    self.record = Some(Record::settled(lease, done));
                }
                Ok(())
            }
            _ => Err(ErrorKind::Fenced),
        }
    }

    pub(super) fn release(&mut self, lease: &Lease) -> Result<(), ErrorKind> {
        match &self.record {
            None => Ok(()),
            Some(it) if it.token == lease.token && it.state == State::Running => {
                self.record = None;
                Ok(())
            }
            Some(_) => Err(ErrorKind::Fenced),
        }
    }

    pub(super) fn renew(&mut self, lease: &Lease, now: u64) -> Result<(), ErrorKind> {
        match &self.record {
            Some(it) if it.token == lease.token && it.state == State::Running => {
                self.since = now;
                Ok(())
            }
            _ => Err(ErrorKind::Fenced),
        }
    }

    pub(super) fn lookup(&self, now: u64) -> Result<Option<RecordSnapshot>, ErrorKind> {
        if self.corrupt { Err(ErrorKind::Corrupt) } else { Ok(self.seen(now)) }
    }

    /// Drops a claim whose retention is over.
    pub(super) fn expire(&mut self, now: u64, early: bool) {
        let age = Duration::from_millis(now.saturating_sub(self.since));
        let is_over = |record: &Record| {
            let retain = if early { Duration::from_millis(1) } else { record.retain };
            record.state == State::Running && age >= retain
        };
        if self.record.as_ref().is_some_and(is_over) {
            self.record = None;
        }
    }

    pub(super) fn is_live(&self, now: u64) -> bool {
        self.record.as_ref().is_some_and(|record| {
            record.state == State::Running && !self.remaining(record, now).is_zero()
        })
    }

    fn is_over(&self, expected: Option<Expected>, record: &Record, now: u64) -> bool {
        match expected {
            None => false,
            Some(Expected::Settled(token)) => {
                token == record.token && record.state != State::Running
            }
            Some(Expected::Orphan(token)) => {
                token == record.token && record.state == State::Running && !self.is_live(now)
            }
        }
    }

    fn seen(&self, now: u64) -> Option<RecordSnapshot> {
        let record = self.record.as_ref()?;
        Some(match record.state {
            State::Running => {
                RecordSnapshot::Held(ClaimInfo::new(record, self.remaining(record, now)))
            }
            _ => RecordSnapshot::Settled(record.clone()),
        })
    }

    fn remaining(&self, record: &Record, now: u64) -> Duration {
        record.term.saturating_sub(Duration::from_millis(now.saturating_sub(self.since)))
    }
}

pub(super) fn rules(change: impl FnOnce(&mut Policy)) -> Arc<Rules> {
    let mut policy = Policy::draft();
    policy.scope = Some(ScopeRule::Shared);
    change(&mut policy);
    Arc::new(Rules::new(policy))
}

pub(super) fn token(n: u8) -> Token {
    Token::from_bytes([n; Token::BYTES])
}

pub(super) fn key() -> Key {
    Key::new("8e03978e", 255).unwrap()
}

pub(super) fn id() -> RecordId {
    RecordId::new(&Scope::shared(), &key(), None, &Names::new("", None))
}

/// Returns the fingerprint of a keyed POST with this body.
pub(super) fn fingerprint(rules: &Arc<Rules>, body: &str) -> Fingerprint {
    fingerprints(rules, body).remove(0)
}

/// Returns the fingerprints of a keyed POST under every secret.
pub(super) fn fingerprints(rules: &Arc<Rules>, body: &str) -> Vec<Fingerprint> {
    let (method, uri, headers) = head_parts();
    let head = Head::new(&method, &uri, &headers);
    let mut prints = Exchange::begin(rules, &head).0.fingerprinters(&head).unwrap();
    prints.update(body.as_bytes());
    prints.try_finish().unwrap()
}

pub(super) fn begin(rules: &Arc<Rules>) -> Exchange {
    let (method, uri, headers) = head_parts();
    Exchange::begin(rules, &Head::new(&method, &uri, &headers)).0
}

pub(super) fn head_parts() -> (Method, Uri, HeaderMap) {
    let mut headers = HeaderMap::new();
    headers.insert("idempotency-key", HeaderValue::from_static("8e03978e"));
    (Method::POST, Uri::from_static("/orders"), headers)
}

pub(super) fn response(status: u16, body: &str) -> StoredResponse {
    let status = StatusCode::from_u16(status).unwrap();
    let body = Bytes::copy_from_slice(body.as_bytes());
    StoredResponse::capture(status, &HeaderMap::new(), body, None, &ReplayRules::default())
}
