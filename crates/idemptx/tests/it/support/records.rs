//! Claims and settlements, and what is expected of a store that takes them.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, RecordSnapshot, Settlement, Store, StoreError,
};

pub(crate) fn id(number: u64) -> RecordId {
    let mut bytes = [0; RecordId::BYTES];
    // Neighbours are as far from each other as the ids of two keys.
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    bytes[24..].copy_from_slice(&number.to_be_bytes());
    RecordId::from_bytes(bytes)
}

/// Returns a claim request with a fresh token.
pub(crate) fn claim_request() -> ClaimRequest {
    ClaimRequest::new(token(), FINGERPRINT, MINUTE, 10 * MINUTE)
}

/// Returns a token that no other process draws.
pub(crate) fn token() -> Token {
    let mut bytes = [0; Token::BYTES];
    getrandom::fill(&mut bytes).unwrap();
    Token::from_bytes(bytes)
}

pub(crate) fn done(response: impl Into<Bytes>) -> Settlement {
    Settlement::new(State::Completed, response.into(), 10 * MINUTE, 10 * MINUTE)
}

pub(crate) async fn granted(store: &impl Store, id: RecordId) -> Lease {
    granted_to(store, id, &claim_request()).await
}

pub(crate) async fn granted_to(
    store: &impl Store,
    id: RecordId,
    claim_request: &ClaimRequest,
) -> Lease {
    match store.claim(&id, claim_request).await {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("not granted: {other:?}"),
    }
}

pub(crate) async fn settled(store: &impl Store, id: RecordId) -> Record {
    match store.claim(&id, &claim_request()).await {
        Ok(Claim::Found(RecordSnapshot::Settled(record))) => record,
        other => panic!("not settled: {other:?}"),
    }
}

pub(crate) fn kind<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> ErrorKind {
    outcome.unwrap_err().kind()
}

/// The operator's text: what happened, not what to do.
pub(crate) fn reason(error: &StoreError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// Takes a step until the store is available, as a driver does.
pub(crate) async fn eventually<T>(
    mut step: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match step().await {
            Err(error) if error.kind().is_transient() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            outcome => return outcome,
        }
    }
}

pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.expect("it did not happen")
}

pub(crate) const FINGERPRINT: Fingerprint =
    Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
