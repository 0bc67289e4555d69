//! The store's use of its file; the conformance suite tests the contract itself.

mod crashes;
mod files;
mod model;
mod processes;
mod time;

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::State;
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, Inventory, Query, RecordSnapshot, Settlement, Store, StoreError,
};

use super::SqliteStore;

/// A store that is patient with a busy machine.
fn store(path: &Path) -> SqliteStore {
    SqliteStore::builder(path).timeout(PATIENCE).open().unwrap()
}

fn id(n: u64) -> RecordId {
    let mut bytes = [7; RecordId::BYTES];
    bytes[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    bytes[24..].copy_from_slice(&n.to_be_bytes());
    RecordId::from_bytes(bytes)
}

fn request(n: u64, term: Duration, retain: Duration) -> ClaimRequest {
    let mut token = [1; Token::BYTES];
    token[8..].copy_from_slice(&n.to_be_bytes());
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    ClaimRequest::new(Token::from_bytes(token), fingerprint, term, retain)
}

fn done(payload: impl Into<Bytes>, retain: Duration) -> Settlement {
    Settlement::new(State::Completed, payload.into(), retain, retain)
}

async fn granted(store: &SqliteStore, id: RecordId, request: &ClaimRequest) -> Lease {
    match store.claim(&id, request).await.unwrap() {
        Claim::Granted(lease) => lease,
        other => panic!("not granted: {other:?}"),
    }
}

async fn settled_payload(store: &SqliteStore, id: RecordId) -> Option<Bytes> {
    match store.lookup(&id).await.unwrap() {
        Some(RecordSnapshot::Settled(record)) => Some(record.payload),
        _ => None,
    }
}

/// Waits for a condition that is not announced.
async fn until<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "it did not come about within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The texts of an error and of its cause.
fn told(error: &StoreError) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

const PATIENCE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
