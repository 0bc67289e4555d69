//! Tokens that are unique and cannot be guessed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use idemptx_core::lease::Token;

use crate::engine::EngineError;

/// Draws tokens: the system's randomness, stretched, because asking the system for each token costs
/// as much as a whole replay's hashing.
pub(crate) struct Tokens {
    seed: [u8; 32],
    drawn: AtomicU64,
    /// Part of what is hashed, so that a forked process does not draw what its parent draws.
    began: Instant,
}

impl Tokens {
    pub(crate) fn from_system() -> Result<Self, EngineError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|_| EngineError::new("the system has no randomness to make tokens from"))?;
        Ok(Self { seed, drawn: AtomicU64::new(0), began: Instant::now() })
    }

    /// Draws a token that is unique and cannot be guessed.
    pub(crate) fn draw(&self) -> Token {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        Token::drawn(&self.seed, number, self.began.elapsed())
    }
}
