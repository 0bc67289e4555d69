//! A record in memory, in a compact form.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::store::{ClaimInfo, ClaimRequest, Expected, RecordSummary, Settlement};
use idemptx_core::time::{Timestamp, millis};

/// A record without its id, and the moments at which it changes by itself.
pub(super) struct Slot {
    state: State,
    token: Token,
    attempt: u32,
    fence: u64,
    fingerprint: Fingerprint,
    term_millis: u32,
    retain_millis: u64,
    payload: Bytes,
    /// End of the lease or, once settled, of the response's retention.
    turns: Timestamp,
    expires: Timestamp,
    /// Time of its entry in the queue; never after [`Self::due`].
    pub(super) queued: Timestamp,
}

impl Slot {
    /// A claim in force.
    pub(super) fn claimed(
        request: &ClaimRequest,
        fence: u64,
        attempt: u32,
        now: Timestamp,
    ) -> Self {
        Self {
            state: State::Running,
            token: request.token,
            attempt,
            fence,
            fingerprint: request.fingerprint,
            term_millis: u32::try_from(millis(request.term)).unwrap_or(u32::MAX),
            retain_millis: millis(request.retain),
            payload: request.description.clone(),
            turns: now.after(request.term),
            expires: now.after(request.retain),
            queued: Self::NEVER,
        }
    }

    /// Puts the next claim in its place, and lets it stand in the queue where it does.
    pub(super) fn replace(&mut self, request: &ClaimRequest, fence: u64, now: Timestamp) {
        let attempt = self.attempt.saturating_add(1);
        *self = Self { queued: self.queued, ..Self::claimed(request, fence, attempt, now) };
    }

    /// Restarts the term and the claim's retention.
    pub(super) fn renew(&mut self, now: Timestamp) {
        self.turns = now.after(self.term());
        self.expires = now.after(self.retain());
    }

    /// Makes a result final.
    pub(super) fn settle(&mut self, done: &Settlement, now: Timestamp) {
        self.state = done.state;
        self.payload = done.payload.clone();
        self.retain_millis = millis(done.key_retain);
        self.expires = now.after(done.key_retain);
        self.turns = match done.state {
            State::Completed => now.after(done.retain).min(self.expires),
            _ => self.expires,
        };
    }

    /// Forgets the response if its time has come.
    pub(super) fn turn(&mut self, now: Timestamp) {
        if self.state == State::Completed && self.turns <= now {
            self.state = State::ResponseExpired;
            self.payload = Bytes::new();
        }
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Returns true if the record was settled in this state.
    pub(super) fn was_settled_as(&self, state: State) -> bool {
        let original =
            if self.state == State::ResponseExpired { State::Completed } else { self.state };
        original == state
    }

    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        self.expires <= now
    }

    /// Returns true for a claim whose lease has not lapsed.
    pub(super) fn is_live(&self, now: Timestamp) -> bool {
        self.is_running() && now < self.turns
    }

    /// Returns true if a claim request that expects this may replace the record.
    pub(super) fn is_over(&self, expected: Option<Expected>, now: Timestamp) -> bool {
        match expected {
            None => false,
            Some(Expected::Settled(token)) => token == self.token && !self.is_running(),
            Some(Expected::Orphan(token)) => {
                token == self.token && self.is_running() && !self.is_live(now)
            }
        }
    }

    /// Returns the time at which the record next takes less memory.
    pub(super) fn due(&self) -> Timestamp {
        if self.state == State::Completed { self.turns.min(self.expires) } else { self.expires }
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Returns the claim in force, unless the record is settled.
    pub(super) fn holder(&self, id: &RecordId, now: Timestamp) -> Option<ClaimInfo> {
        let remaining = self.turns.since(now);
        self.is_running().then(|| ClaimInfo::new(&Record::running(&self.lease(id)), remaining))
    }

    pub(super) fn record(&self, id: &RecordId) -> Record {
        let mut record = Record::running(&self.lease(id));
        record.state = self.state;
        record.payload = self.payload.clone();
        record
    }

    /// Returns the summary for operators, unless the record has expired.
    pub(super) fn entry(&self, id: &RecordId, now: Timestamp) -> Option<RecordSummary> {
        if self.has_expired(now) {
            return None;
        }
        let is_spent = self.state == State::Completed && self.turns <= now;
        let record =
            if is_spent { self.record(id).with_response_expired() } else { self.record(id) };
        let age = Duration::from_millis(now.as_millis().saturating_sub(self.fence / 1000));
        Some(RecordSummary::new(&record, self.turns.since(now), self.expires.since(now), age))
    }

    pub(super) fn lease(&self, id: &RecordId) -> Lease {
        let request = ClaimRequest::new(self.token, self.fingerprint, self.term(), self.retain())
            .described(if self.is_running() { self.payload.clone() } else { Bytes::new() });
        Lease::granted(*id, &request, self.fence, self.attempt)
    }

    /// A time that never comes.
    pub(super) const NEVER: Timestamp = Timestamp::from_millis(u64::MAX);

    fn term(&self) -> Duration {
        Duration::from_millis(self.term_millis.into())
    }

    fn retain(&self) -> Duration {
        Duration::from_millis(self.retain_millis)
    }
}

/// A slot, its share of the map and of the queue, and what an allocation costs beside its content.
pub(super) const RECORD_BYTES: usize = 320;
