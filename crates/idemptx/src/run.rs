//! The engine without HTTP: jobs, message consumers, command handlers.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use idemptx_core::exchange::{Exchange, Handled, Operation};
use idemptx_core::key::{InvalidKey, Key, Scope};
use idemptx_core::outcome::{Code, Outcome, Rejection};
use idemptx_core::response::{ReplayRules, StoredResponse};
use idemptx_core::store::Store;
use idemptx_core::time::Clock;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::detachable::Detachable;
use crate::drive::{Driven, Driver, Failure, Reply, Work, WorkResult, drive};
use crate::engine::{Engine, Observation};
use crate::execution::Execution;

impl<S: Store> Engine<S> {
    /// Runs `work` once for `key`, and returns its value to every caller with that key.
    ///
    /// `request` is what the work depends on: it makes the fingerprint, so that a key that is used
    /// again for something else is refused rather than answered with the wrong value.
    /// The policy applies as it does to HTTP requests: waiting, leases, orphans, retention.
    ///
    /// ```
    /// # use idemptx::{Engine, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let invoice: u64 = engine
    ///     .run("message-17", b"order 4711", async |execution| {
    ///         println!("attempt {}", execution.attempt());
    ///         Ok::<_, std::io::Error>(1001)
    ///     })
    ///     .await?;
    /// assert_eq!(invoice, 1001);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RunError::InvalidKey`] for a key that is none, or not of the form that the policy or
    /// [`accept_keys`](crate::EngineBuilder::accept_keys) demands.
    /// [`RunError::Refused`] when nothing was run and there is no value to return.
    /// [`RunError::Failed`] with the work's own error; the key is then free again, or quarantined,
    /// by the policy's `on_panic`, unless the work has said otherwise with
    /// [`Execution::set_outcome`].
    /// [`RunError::Panicked`] likewise; in shadow mode the panic propagates instead.
    ///
    /// # Cancel safety
    ///
    /// The work runs in the caller's task, and goes on in a task of the runtime when the returned
    /// future is dropped.
    pub async fn run<T, E, F, R>(
        &self,
        key: &str,
        request: &[u8],
        work: F,
    ) -> Result<T, RunError<E>>
    where
        F: FnOnce(Execution) -> R + Send + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        self.run_in(Scope::shared(), key, request, work).await
    }

    /// Does the same as [`run`](Self::run), with the key in a scope.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// As [`run`](Self::run).
    pub async fn run_in<T, E, F, R>(
        &self,
        scope: Scope,
        key: &str,
        request: &[u8],
        work: F,
    ) -> Result<T, RunError<E>>
    where
        F: FnOnce(Execution) -> R + Send + 'static,
        R: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let inner = self.inner();
        let key = Key::new(key, inner.policy().key_bytes_max).map_err(RunError::InvalidKey)?;
        inner.policy().check_key(&key).map_err(RunError::InvalidKey)?;
        if inner.accepts().is_some_and(|accepts| !accepts(&key)) {
            return Err(RunError::InvalidKey(InvalidKey::Refused));
        }
        let token = inner.token();
        let operation = Operation::new(inner.rules(), scope, key);
        let unprotected = operation.clone();
        let fingerprints = inner.rules().fingerprints(&[request]);
        let now = inner.clock().now();
        let (exchange, action) =
            Exchange::begin_operation(inner.rules(), operation, fingerprints, token, now);
        let mut driver = Driver::new(inner, exchange.typical(inner.typical_now()));
        let bytes_max = inner.policy().response_bytes_max;
        let job = JobWork { work, bytes_max, made: PhantomData };
        let attachment = driver.attachment();
        let (observation, record) = (Observation::begin(inner), unprotected.id());
        // Inside, so that the outcome is reported without a caller too.
        let driving = async move {
            let driven = drive(&mut driver, action, job).await;
            drop(driver);
            match &driven {
                Driven::Pass(bypass, _) => {
                    observation.end(&Outcome::Bypassed(*bypass), Some(record));
                }
                Driven::Reply(_, outcome) => observation.end(outcome, Some(record)),
            }
            driven
        };
        let exchange = Detachable::new(attachment, Box::pin(driving));
        let reply = match exchange.await {
            Driven::Reply(reply, _) => reply,
            Driven::Pass(_, job) => {
                let execution = Execution::unprotected(unprotected, Arc::clone(inner.rules()));
                return (job.work)(execution).await.map_err(RunError::Failed);
            }
        };
        match reply {
            Reply::Own(Ok(value)) => Ok(value),
            Reply::Own(Err(error))
            | Reply::Refuse { product: Some(Err(error)), .. }
            | Reply::Broken(Failure::Value(Err(error))) => Err(RunError::Failed(error)),
            Reply::Replay(response) => serde_json::from_slice(&response.body)
                .map_err(|error| RunError::Undecodable(error.into())),
            Reply::Broken(Failure::Value(Ok(value))) => Ok(value),
            Reply::Broken(Failure::Panic(payload)) => resume_unwind(payload),
            Reply::Refuse { rejection, .. } if rejection.code == Code::HandlerFailed => {
                Err(RunError::Panicked(*rejection))
            }
            Reply::Refuse { rejection, .. } => Err(RunError::Refused(*rejection)),
        }
    }
}

/// A call of [`Engine::run`] without a value.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError<E> {
    /// The key is not valid.
    InvalidKey(InvalidKey),
    /// Nothing was run; the rejection says why, and when to try again.
    Refused(Rejection),
    /// The work ran and failed.
    Failed(E),
    /// The work ran and panicked.
    Panicked(Rejection),
    /// A value is stored, but it is not of the type that was asked for.
    Undecodable(Box<dyn std::error::Error + Send + Sync>),
}

impl<E: fmt::Display> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKey(invalid) => write!(f, "invalid key: {invalid}"),
            Self::Refused(rejection) => write!(f, "refused: {}", rejection.code),
            Self::Failed(_) => f.write_str("the work failed"),
            Self::Panicked(_) => f.write_str("the work panicked"),
            Self::Undecodable(_) => f.write_str("the stored value is of another type"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for RunError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::InvalidKey(invalid) => Some(invalid),
            Self::Undecodable(error) => Some(&**error),
            Self::Refused(_) | Self::Panicked(_) => None,
        }
    }
}

struct JobWork<F, T> {
    work: F,
    bytes_max: usize,
    made: PhantomData<fn() -> T>,
}

impl<F, R, T, E> Work for JobWork<F, T>
where
    F: FnOnce(Execution) -> R + Send + 'static,
    R: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + Send + 'static,
    E: Send + 'static,
{
    type Product = Result<T, E>;

    async fn run(self, execution: Execution) -> WorkResult<Self::Product> {
        let result = (self.work)(execution.clone()).await;
        let (status, directive) = (StatusCode::OK, execution.outcome());
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                return WorkResult { product: Some(Err(error)), ..WorkResult::failed(directive) };
            }
        };
        let (handled, json) = match serde_json::to_vec(&value) {
            Ok(json) if json.len() <= self.bytes_max => {
                (Handled::Whole { status, directive }, json)
            }
            // It happened; that its value cannot be stored must not make it happen again.
            _ => (Handled::Partial { status, directive }, Vec::new()),
        };
        let payload = Some(json_payload(json.into()));
        WorkResult { handled, product: Some(Ok(value)), payload, flow: None }
    }
}

/// Encodes a value for the store.
pub(crate) fn json_payload(json: Bytes) -> Bytes {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let rules = ReplayRules::default();
    StoredResponse::capture(StatusCode::OK, &headers, json, None, &rules).encode()
}
