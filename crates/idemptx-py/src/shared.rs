//! State shared by all exchanges under one set of rules: clock, tokens and statistics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use idemptx_core::exchange::{Operation, Rules};
use idemptx_core::lease::Token;
use idemptx_core::policy::Policy;
use idemptx_core::stats::{KeyMeter, TypicalTime};
use idemptx_core::time::{Timestamp, millis};

pub(crate) struct Shared {
    rules: Arc<Rules>,
    namespace: Box<str>,
    /// `CLOCK_MONOTONIC` advances while the process is stopped, as the start rule needs.
    made: Instant,
    tokens: Tokens,
    typical: TypicalTime,
    meter: Mutex<KeyMeter>,
}

impl Shared {
    pub(crate) fn new(policy: Policy, namespace: &str) -> Result<Arc<Self>, getrandom::Error> {
        Ok(Arc::new(Self {
            rules: Arc::new(Rules::in_namespace(policy, namespace)),
            namespace: namespace.into(),
            made: Instant::now(),
            tokens: Tokens::from_system()?,
            typical: TypicalTime::default(),
            meter: Mutex::default(),
        }))
    }

    pub(crate) fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn policy(&self) -> &Policy {
        self.rules.policy()
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(millis(self.made.elapsed()))
    }

    pub(crate) fn token(&self) -> Token {
        self.tokens.draw()
    }

    /// The typical duration of handlers.
    pub(crate) fn typical(&self) -> &TypicalTime {
        &self.typical
    }

    /// Counts a new key; returns `false` if its principal may have no more this minute.
    pub(crate) fn meter(&self, operation: &Operation) -> bool {
        let Some(limit) = self.policy().new_keys_per_minute_max else { return true };
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.admits(operation.meter_id(&self.rules), limit, self.now())
    }
}

/// Draws tokens: the system's randomness, stretched, because asking the system for each token costs
/// as much as a whole replay's hashing.
pub(crate) struct Tokens {
    seed: [u8; 32],
    drawn: AtomicU64,
    began: Instant,
}

impl Tokens {
    pub(crate) fn from_system() -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self { seed, drawn: AtomicU64::new(0), began: Instant::now() })
    }

    fn draw(&self) -> Token {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        Token::drawn(&self.seed, number, self.moment())
    }

    /// The time since the seed was drawn, with the process in the upper half of its seconds.
    ///
    /// Servers fork their workers after they have loaded the application: seed and counter are then
    /// the same in all of them, and so may the moment be.
    fn moment(&self) -> Duration {
        let elapsed = self.began.elapsed();
        let process = u64::from(std::process::id()) << 32;
        Duration::new(process | (elapsed.as_secs() & u64::from(u32::MAX)), elapsed.subsec_nanos())
    }
}
