//! Sentinels, which know the primary of a service.
//!
//! They are asked at each connect, all at once, and the one that has heard of the latest promotion
//! counts: another may go on naming the old primary, which takes writes again once it is back.
//! The server that is named must say of itself that it is a primary, too.
//! A task beside each connection hears when they promote a replica, so that a primary that was cut
//! off from them is left although its connections work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use redis::{PushInfo, PushKind, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{pipeline, reply};
use super::endpoint::{Endpoint, Line};
use super::protocol::sentinel;
use super::redis_connection::send_all;
use super::redis_failure::RedisFailure;
use crate::time_limit::limited_or;

/// The sentinels of a service.
pub(super) struct Sentinels {
    service: String,
    sentinels: Vec<Endpoint>,
    /// Credentials and certificates of the primary, whichever it is.
    primary: Endpoint,
    /// Index of the sentinel that is listened to: the one that knew best.
    first: AtomicUsize,
    switches: AtomicU64,
}

impl Sentinels {
    pub(super) fn new(service: String, sentinels: Vec<Endpoint>, primary: Endpoint) -> Self {
        let (first, switches) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { service, sentinels, primary, first, switches }
    }

    /// Returns the name of the service.
    pub(super) fn service(&self) -> &str {
        &self.service
    }

    /// Number of the promotions that were heard of: a connection of an earlier one is to be left.
    pub(super) fn switches(&self) -> u64 {
        self.switches.load(Ordering::Acquire)
    }

    /// Returns true if records, or the name of the service, cross a network in plain text.
    pub(super) fn is_plaintext(&self) -> bool {
        // The addresses of the servers are known to the sentinels only.
        self.sentinels.iter().any(Endpoint::is_plaintext)
            || (!self.primary.is_tls() && !self.sentinels.iter().all(Endpoint::is_local))
    }

    /// Asks all sentinels for the primary, for at most `limit`, and returns what the best informed of
    /// them says.
    pub(super) async fn primary(self: &Arc<Self>, limit: Duration) -> Result<Named, RedisFailure> {
        let mut asking = JoinSet::new();
        for (turn, sentinel) in self.sentinels.iter().enumerate() {
            let (sentinels, sentinel) = (Arc::clone(self), sentinel.clone());
            asking.spawn(async move {
                let late = || RedisFailure::timed_out(sentinel.name(), limit);
                (turn, limited_or(limit, sentinels.ask(&sentinel), late).await)
            });
        }
        let mut best: Option<(usize, Named)> = None;
        let mut failure = None;
        loop {
            let more = match best {
                None => asking.join_next().await,
                // One that is silent must not hold up what the others know.
                Some(_) => timeout(OTHERS_MAX, asking.join_next()).await.ok().flatten(),
            };
            match more {
                Some(Ok((turn, Ok(named)))) => {
                    if best.as_ref().is_none_or(|(_, known)| named.promotion > known.promotion) {
                        best = Some((turn, named));
                    }
                }
                Some(Ok((_, Err(error)))) => failure = Some(error),
                // A task ends with its runtime only.
                Some(Err(_)) => {}
                None => break,
            }
        }
        match best {
            Some((turn, named)) => {
                self.first.store(turn, Ordering::Relaxed);
                Ok(named)
            }
            None => {
                Err(failure.unwrap_or_else(|| RedisFailure::no_primary(self.primary.name(), "")))
            }
        }
    }

    fn in_turn(&self, first: usize) -> impl Iterator<Item = (usize, &Endpoint)> {
        let count = self.sentinels.len().max(1);
        let turns = (0..count).map(move |turn| (first.wrapping_add(turn)) % count);
        turns.filter_map(|turn| Some((turn, self.sentinels.get(turn)?)))
    }

    async fn ask(&self, endpoint: &Endpoint) -> Result<Named, RedisFailure> {
        let attempt = |info| async move {
            let failed = |error| RedisFailure::redis(endpoint.name(), error);
            endpoint.connect(info).await.map_err(failed)
        };
        let line = endpoint.attempt(attempt).await?;
        self.ask_on(endpoint, &line).await
    }

    async fn ask_on(&self, endpoint: &Endpoint, line: &Line) -> Result<Named, RedisFailure> {
        let failed = |error| RedisFailure::redis(endpoint.name(), error);
        let questions =
            [sentinel::primary_of(&self.service), sentinel::knowledge_of(&self.service)];
        let answers = send_all(line.connection.clone(), &pipeline(&questions)).await;
        let mut answers = answers.map_err(failed)?.into_iter();
        let address = answers.next().unwrap_or(Value::Nil).extract_error().map_err(failed)?;
        // One that refuses this is believed all the same, if no other knows better.
        let promotion = answers.next().and_then(reply).as_ref().map_or(0, sentinel::config_epoch);
        match reply(address).as_ref().and_then(sentinel::address) {
            Some((host, port)) => {
                let endpoint = self.primary.at(&host, port).named(self.primary.name().clone());
                Ok(Named { endpoint, promotion })
            }
            None => Err(RedisFailure::no_primary(endpoint.name(), &self.service)),
        }
    }

    /// Listens until another primary is promoted than this one.
    pub(super) async fn listen(self: Arc<Self>, connected: Named, limit: Duration) {
        let mut turn = self.first.load(Ordering::Relaxed);
        loop {
            if let Some((_, sentinel)) = self.in_turn(turn).next()
                && self.listen_to(sentinel, &connected, limit).await.is_ok()
            {
                self.switches.fetch_add(1, Ordering::AcqRel);
                return;
            }
            turn = turn.wrapping_add(1);
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    /// Returns `Ok` once the primary is another, and an error when the sentinel is gone.
    async fn listen_to(
        &self,
        endpoint: &Endpoint,
        connected: &Named,
        limit: Duration,
    ) -> Result<(), RedisFailure> {
        let failed = |error| RedisFailure::redis(endpoint.name(), error);
        let (sender, mut promotions) = mpsc::channel(1);
        let receive = move |push: PushInfo| {
            if push.kind == PushKind::Message {
                // One is enough, and the channel has room for it.
                let _ = sender.try_send(());
            }
            Ok(())
        };
        let subscribing = async {
            let attempt = |info| {
                let receive = receive.clone();
                async move { endpoint.listen(info, receive).await.map_err(failed) }
            };
            let mut line = endpoint.attempt(attempt).await?;
            line.connection.subscribe(&sentinel::PROMOTIONS).await.map_err(failed)?;
            Ok(line)
        };
        let late = || RedisFailure::timed_out(endpoint.name(), limit);
        let line = limited_or(limit, subscribing, late).await?;
        loop {
            // Asked again each time: what happened before the subscription is not heard, and the
            // message is of any service.
            let named = limited_or(limit, self.ask_on(endpoint, &line), late).await?;
            let is_other = named.endpoint.address() != connected.endpoint.address();
            // The same server may be promoted again, after another one that was not heard of.
            if named.promotion > connected.promotion
                || is_other && named.promotion == connected.promotion
            {
                return Ok(());
            }
            // Not every sentinel tells at once, and each knows at once.
            let _ = timeout(ASK_AGAIN, promotions.recv()).await;
        }
    }
}

/// A server that a sentinel names as the primary.
pub(super) struct Named {
    pub(super) endpoint: Endpoint,
    /// The number of its promotion.
    pub(super) promotion: u64,
}

/// The time for the other sentinels to answer, once one has.
const OTHERS_MAX: Duration = Duration::from_millis(250);
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_secs(1);
