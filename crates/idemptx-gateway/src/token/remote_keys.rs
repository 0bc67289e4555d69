//! A set of verification keys that its issuer publishes at a URL.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{KeySet, usable_keys};
use crate::config::RemoteKeySet;
use crate::error::error_text;
use crate::network;
use crate::recorder::Recorder;
use crate::tls::{Connector, TlsError};

/// The keys of a URL, read again now and then; the last good set stays in use.
pub(crate) struct RemoteKeys {
    config: RemoteKeySet,
    tls: Option<Connector>,
    keys: Mutex<Arc<[Value]>>,
    /// Grows with every other set.
    version: AtomicU64,
    fetched: Mutex<Option<Instant>>,
    /// Notified when a token names a key that is not in the set.
    missed: Arc<Notify>,
    /// Notified after the first attempt.
    tried: Notify,
    task: OnceLock<JoinHandle<()>>,
    recorder: Arc<Recorder>,
    /// The last attempt has failed, as readiness was told.
    is_unread: AtomicBool,
}

impl RemoteKeys {
    pub(crate) fn new(config: &RemoteKeySet, recorder: Arc<Recorder>) -> Result<Self, TlsError> {
        let tls = config.origin.tls.then(|| Connector::http1(config.ca.as_deref())).transpose()?;
        Ok(Self {
            config: config.clone(),
            tls,
            keys: Mutex::new(Arc::default()),
            version: AtomicU64::new(0),
            fetched: Mutex::default(),
            missed: Arc::default(),
            tried: Notify::new(),
            task: OnceLock::new(),
            recorder,
            is_unread: AtomicBool::new(false),
        })
    }

    /// Begins with the keys of another set, which stay in use until there are others.
    pub(crate) fn beginning_as(mut self, other: &Self) -> Self {
        let (version, keys) = other.keys();
        let fetched = *other.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        (self.version, self.keys) = (AtomicU64::new(version), Mutex::new(keys));
        self.fetched = Mutex::new(fetched);
        self
    }

    pub(crate) const fn config(&self) -> &RemoteKeySet {
        &self.config
    }

    /// Returns the keys, and a number that grows with every other set.
    pub(super) fn keys(&self) -> (u64, Arc<[Value]>) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        (self.version(), Arc::clone(&keys))
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Returns the time since the set in use was read; `None` before the first one.
    pub(crate) fn age(&self) -> Option<Duration> {
        let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.map(|at| at.elapsed())
    }

    /// Returns the number of keys in the set.
    pub(crate) fn count(&self) -> usize {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Asks for the set again soon: the issuer may have added the key that a token names.
    pub(super) fn miss(&self) {
        self.missed.notify_one();
    }

    /// Reads the set now and then, for as long as it is in use.
    pub(crate) fn start(self: &Arc<Self>) {
        self.task.get_or_init(|| {
            let (keys, missed) = (Arc::downgrade(self), Arc::clone(&self.missed));
            tokio::spawn(async move {
                let mut failures = 0;
                while let Some(keys) = keys.upgrade() {
                    failures = keys.refresh(failures).await;
                    let refresh = keys.config.refresh;
                    drop(keys);
                    if failures > 0 {
                        sleep(backoff(failures).min(refresh)).await;
                    } else {
                        // Tokens with invented key ids must not make requests for the set.
                        let soonest = PAUSE_MIN.min(refresh);
                        sleep(soonest).await;
                        let _ = timeout(refresh.saturating_sub(soonest), missed.notified()).await;
                    }
                }
            })
        });
    }

    /// Resolves after the first attempt to read the set.
    pub(crate) async fn tried(&self) {
        let tried = self.tried.notified();
        if self.version() == 0 {
            tried.await;
        }
    }

    /// Reads the set once, and returns how many attempts have failed in a row.
    async fn refresh(&self, failures: u32) -> u32 {
        let url = &self.config.url;
        let fetched = self.fetch().await;
        self.note(fetched.is_ok());
        self.tried.notify_waiters();
        match fetched {
            Ok(count) => {
                if failures > 0 || self.version() == 1 {
                    tracing::info!(url, "{count} keys for tokens were read");
                }
                0
            }
            Err(error) => {
                if failures == 0 {
                    let left = self.count();
                    tracing::warn!(
                        url,
                        "keys for tokens cannot be read, {left} of before stay in use: {}",
                        error_text(&*error)
                    );
                }
                failures.saturating_add(1)
            }
        }
    }

    /// Tells readiness what has changed.
    fn note(&self, is_read: bool) {
        if self.is_unread.swap(!is_read, Ordering::Relaxed) == is_read {
            self.recorder.readiness().note_key_set(is_read);
        }
    }

    /// Reads the set, and puts it in the place of the one in use if it has a usable key.
    pub(crate) async fn fetch(&self) -> Result<usize, Box<dyn Error + Send + Sync>> {
        let body = timeout(FETCH_MAX, self.get()).await.map_err(|_| "it does not answer")??;
        let set: KeySet = serde_json::from_slice(&body)?;
        let usable = usable_keys(&set.keys);
        if usable == 0 {
            return Err(super::NO_KEY.into());
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if **keys != *set.keys || self.version() == 0 {
            *keys = set.keys.into();
            self.version.fetch_add(1, Ordering::Relaxed);
        }
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(usable)
    }

    async fn get(&self) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        let origin = &self.config.origin;
        let stream = network::connect(origin.authority.host(), origin.port()).await?;
        match &self.tls {
            None => self.get_over(TokioIo::new(stream)).await,
            Some(tls) => self.get_over(TokioIo::new(tls.connect(origin, stream).await?)).await,
        }
    }

    async fn get_over<I>(&self, io: I) -> Result<Bytes, Box<dyn Error + Send + Sync>>
    where
        I: Read + Write + Send + Unpin + 'static,
    {
        let (mut sender, connection) = http1::handshake(io).await?;
        let connection = AbortOnDrop(tokio::spawn(connection));
        let request = Request::get(self.config.target.as_str())
            .header(HOST, self.config.origin.authority.as_str())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("idemptx/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("status {}", response.status().as_u16()).into());
        }
        let body = Limited::new(response.into_body(), SET_BYTES_MAX).collect().await?;
        drop(connection);
        Ok(body.to_bytes())
    }
}

impl Drop for RemoteKeys {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        self.note(true);
    }
}

impl fmt::Debug for RemoteKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteKeys").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Ends a task with its owner.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The pause after so many failures in a row: 1 s, doubled each time.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(BACKOFF_MAX)
}

const FETCH_MAX: Duration = Duration::from_secs(10);
/// Sets have some kilobytes.
const SET_BYTES_MAX: usize = 1 << 20;
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// The least time between two readings, however many tokens name keys that are not there.
const PAUSE_MIN: Duration = Duration::from_secs(10);
