//! The record that an operator's decision replaces.

use bytes::Bytes;
use idemptx_core::description::Description;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::store::{ClaimInfo, Expected, RecordStatus, RecordSummary};

use super::RecordView;

/// A record that is to be replaced, if it is still what it was.
pub(super) struct Target {
    pub(super) id: RecordId,
    pub(super) expected: Expected,
    pub(super) fingerprint: Fingerprint,
    /// The encoded description, which stays with the record.
    pub(super) description: Bytes,
}

impl Target {
    fn new(id: RecordId, status: RecordStatus, claim: ClaimInfo) -> Self {
        let expected = match status {
            RecordStatus::Running | RecordStatus::Orphaned => Expected::Orphan(claim.token),
            _ => Expected::Settled(claim.token),
        };
        Self { id, expected, fingerprint: claim.fingerprint, description: Bytes::new() }
    }

    pub(super) fn described(self, description: Option<&Description>) -> Self {
        let description = description.map(Description::encode).unwrap_or_default();
        Self { description, ..self }
    }

    pub(super) fn seen(was: &RecordView) -> Self {
        Self::new(was.id, was.status, was.claim)
    }

    pub(super) fn listed(entry: &RecordSummary) -> Self {
        Self::new(entry.id, entry.status, entry.claim)
    }
}
