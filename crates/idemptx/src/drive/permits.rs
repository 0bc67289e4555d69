//! Permits to execute.

use std::sync::Arc;
use std::time::Duration;

use idemptx_core::store::{ErrorKind, StoreFailure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Takes a permit to execute; a failure is a certain refusal, since nothing has been sent.
pub(super) async fn acquire(
    permits: Arc<Semaphore>,
    limit: Duration,
) -> Result<OwnedSemaphorePermit, StoreFailure> {
    if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
        return Ok(permit);
    }
    match timeout(limit, permits.acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(ErrorKind::Full.into()),
    }
}
