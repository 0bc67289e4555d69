//! What a handler sees of the execution it is part of.

use std::fmt;
use std::sync::Arc;

use idemptx_core::exchange::{Operation, Rules};
use idemptx_core::lease::Token;

use crate::keeper::Lost;

/// The execution that a handler runs in; a cheap handle.
///
/// The tower layer puts it into the request's extensions, so that an axum handler takes it as
/// `Extension<Execution>` (or `Option<Extension<Execution>>` where a key is optional).
#[derive(Clone)]
pub struct Execution(Arc<Inner>);

struct Inner {
    operation: Operation,
    rules: Arc<Rules>,
    token: Token,
    fence: u64,
    attempt: u32,
    lost: Arc<Lost>,
}

impl Execution {
    pub(crate) fn new(
        operation: Operation,
        rules: Arc<Rules>,
        lease: &idemptx_core::lease::Lease,
        lost: Arc<Lost>,
    ) -> Self {
        Self(Arc::new(Inner {
            operation,
            rules,
            token: lease.token,
            fence: lease.fence,
            attempt: lease.attempt,
            lost,
        }))
    }

    /// The execution of work that runs without a claim, because the policy says so: attempt 1, a
    /// token and a fence of zero.
    #[cfg(feature = "json")]
    pub(crate) fn unprotected(operation: Operation, rules: Arc<Rules>) -> Self {
        let (token, lost) = (Token::from_bytes([0; Token::BYTES]), Arc::default());
        Self(Arc::new(Inner { operation, rules, token, fence: 0, attempt: 1, lost }))
    }

    /// The client's key, quotes and escapes undone.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.operation.key().as_str()
    }

    /// Which execution of this operation it is: 1, or more after an orphan was taken over.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// The random token of this execution's claim.
    #[must_use]
    pub fn token(&self) -> Token {
        self.0.token
    }

    /// A number greater than that of any earlier execution of this operation that may still be
    /// running: give it to systems that can refuse a stale writer.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.0.fence
    }

    /// A key for a call to another system, named by `label`.
    ///
    /// It depends on scope, key and label (and the policy's secret) alone: every attempt derives
    /// the same, so a downstream system that honours keys executes once, however often we do.
    #[must_use]
    pub fn derive(&self, label: &str) -> String {
        self.0.operation.derive(label, &self.0.rules)
    }

    /// Whether somebody took the operation over: what this handler still does is in vain.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.lost.is_lost()
    }

    /// Resolves once the lease is lost; pending as long as all is well.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn lost(&self) {
        self.0.lost.wait().await;
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution")
            .field("attempt", &self.0.attempt)
            .field("fence", &self.0.fence)
            .finish_non_exhaustive()
    }
}
