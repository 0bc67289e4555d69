//! Sentinels, which know the primary of a service.
//!
//! They are asked at each connect, one after the other, and the server that they name must say of
//! itself that it is a primary: a sentinel may be behind.
//! A task beside each connection hears when they promote a replica, so that a primary that was cut
//! off from them is left although its connections work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use redis::{PushInfo, PushKind};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::client::{packed, reply};
use super::endpoint::{Endpoint, Line};
use super::protocol::sentinel;
use super::redis_connection::send;
use super::redis_failure::RedisFailure;
use crate::time_limit::limited_or;

/// The sentinels of a service.
pub(super) struct Sentinels {
    service: String,
    sentinels: Vec<Endpoint>,
    /// Credentials and certificates of the primary, whichever it is.
    primary: Endpoint,
    /// Index of the sentinel that is asked first: the one that answered last.
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

    /// Asks for the primary, each sentinel for at most `limit`.
    pub(super) async fn primary(&self, limit: Duration) -> Result<Endpoint, RedisFailure> {
        let first = self.first.load(Ordering::Relaxed);
        let mut failure = None;
        for (turn, sentinel) in self.in_turn(first) {
            let asking = self.ask(sentinel);
            let late = || RedisFailure::timed_out(sentinel.name(), limit);
            match limited_or(limit, asking, late).await {
                Ok(primary) => {
                    self.first.store(turn, Ordering::Relaxed);
                    return Ok(primary);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| RedisFailure::no_primary(self.primary.name(), "")))
    }

    /// Asks another sentinel first next time: this one named a server that is no primary.
    pub(super) fn distrust(&self) {
        self.first.fetch_add(1, Ordering::Relaxed);
    }

    fn in_turn(&self, first: usize) -> impl Iterator<Item = (usize, &Endpoint)> {
        let count = self.sentinels.len().max(1);
        let turns = (0..count).map(move |turn| (first.wrapping_add(turn)) % count);
        turns.filter_map(|turn| Some((turn, self.sentinels.get(turn)?)))
    }

    async fn ask(&self, endpoint: &Endpoint) -> Result<Endpoint, RedisFailure> {
        let attempt = |info| async move {
            let failed = |error| RedisFailure::redis(endpoint.name(), error);
            endpoint.connect(info).await.map_err(failed)
        };
        let line = endpoint.attempt(attempt).await?;
        self.ask_on(endpoint, &line).await
    }

    async fn ask_on(&self, endpoint: &Endpoint, line: &Line) -> Result<Endpoint, RedisFailure> {
        let failed = |error| RedisFailure::redis(endpoint.name(), error);
        let question = packed(&sentinel::primary_of(&self.service));
        let answer = reply(send(line.connection.clone(), &question).await.map_err(failed)?);
        match answer.as_ref().and_then(sentinel::address) {
            Some((host, port)) => {
                Ok(self.primary.at(&host, port).named(self.primary.name().clone()))
            }
            None => Err(RedisFailure::no_primary(endpoint.name(), &self.service)),
        }
    }

    /// Listens until another primary is promoted than this one.
    pub(super) async fn listen(self: Arc<Self>, connected: Endpoint, limit: Duration) {
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
        connected: &Endpoint,
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
            let primary = limited_or(limit, self.ask_on(endpoint, &line), late).await?;
            if primary.address() != connected.address() {
                return Ok(());
            }
            // Not every sentinel tells at once, and each knows at once.
            let _ = timeout(ASK_AGAIN, promotions.recv()).await;
        }
    }
}

const LISTEN_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_secs(1);
