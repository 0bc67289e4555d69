//! The application's hook for orphans.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idemptx_core::exchange::{Exchange, ProbeResult};
use idemptx_core::key::{Key, RecordId, Scope};
use idemptx_core::store::Store;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Inner;

/// An operation whose executor is gone without a result, for the probe hook.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Orphan {
    /// The client's key.
    pub key: Key,
    /// The scope of the key.
    pub scope: Scope,
    /// The number of the execution that is gone, from 1.
    pub attempt: u32,
    derived: Derive,
}

#[derive(Clone)]
struct Derive(Arc<dyn Fn(&str) -> String + Send + Sync>);

impl fmt::Debug for Derive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Derive")
    }
}

impl Orphan {
    /// Returns the key that the execution derived for `label`, to look its effect up by.
    #[must_use]
    pub fn derive(&self, label: &str) -> String {
        (self.derived.0)(label)
    }
}

pub(super) type ProbeFn =
    Arc<dyn Fn(Orphan) -> Pin<Box<dyn Future<Output = ProbeResult> + Send>> + Send + Sync>;

/// The records about which the hook is being asked.
///
/// Each is asked about once at a time, however many retries there are: they share the result.
#[derive(Debug, Default)]
pub(super) struct Probes(Mutex<HashMap<RecordId, watch::Receiver<Option<ProbeResult>>>>);

impl Probes {
    fn enter(&self, id: RecordId) -> Turn<'_> {
        let mut running = self.running();
        if let Some(result) = running.get(&id) {
            return Turn::Follow(result.clone());
        }
        let (sender, result) = watch::channel(None);
        running.insert(id, result);
        Turn::Lead(Asking { probes: self, id, result: sender })
    }

    /// The lock is never held while foreign code runs.
    fn running(&self) -> MutexGuard<'_, HashMap<RecordId, watch::Receiver<Option<ProbeResult>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Turn<'a> {
    Lead(Asking<'a>),
    Follow(watch::Receiver<Option<ProbeResult>>),
}

/// A call of the hook; dropped without a result, it lets another request call it.
struct Asking<'a> {
    probes: &'a Probes,
    id: RecordId,
    result: watch::Sender<Option<ProbeResult>>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        // Before the sender is gone, so that a request that finds no result finds a free place.
        self.probes.running().remove(&self.id);
    }
}

impl<S: Store> Inner<S> {
    /// Asks the application's hook; without one, or without an answer, nothing is known.
    ///
    /// A call counts as an execution for the limit on those: it is the application's code, too.
    pub(crate) async fn probe(&self, exchange: &Exchange, attempt: u32) -> ProbeResult {
        let (Some(probe), Some(operation)) = (&self.shared.hooks.probe, exchange.operation())
        else {
            return ProbeResult::Unknown;
        };
        let id = operation.id();
        loop {
            let asking = match self.shared.probes.enter(id) {
                Turn::Lead(asking) => asking,
                Turn::Follow(mut result) => match result.wait_for(Option::is_some).await {
                    Ok(result) => return result.clone().unwrap_or(ProbeResult::Unknown),
                    Err(_) => continue,
                },
            };
            let (named, rules) = (operation.clone(), Arc::clone(&self.rules));
            let orphan = Orphan {
                key: operation.key().clone(),
                scope: operation.scope().clone(),
                attempt,
                derived: Derive(Arc::new(move |label| named.derive(label, &rules))),
            };
            let ask = async {
                let _permit = self.permits().acquire_owned().await;
                probe(orphan).await
            };
            let result = timeout(PROBE_TIMEOUT, ask).await.unwrap_or(ProbeResult::Unknown);
            asking.result.send_replace(Some(result.clone()));
            return result;
        }
    }
}

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
