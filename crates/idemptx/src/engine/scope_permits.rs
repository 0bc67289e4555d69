//! Limits on the executions of one principal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

/// The permits of the principals that execute now.
#[derive(Debug)]
pub(super) struct ScopePermits {
    each_max: usize,
    by_principal: Mutex<HashMap<[u8; 16], Weak<Semaphore>>>,
}

impl ScopePermits {
    pub(super) fn new(each_max: u32) -> Self {
        Self { each_max: each_max as usize, by_principal: Mutex::default() }
    }

    /// Returns the permits of a principal, which last while one of them, or of the requests that
    /// wait for one, does.
    pub(super) fn of(&self, principal: [u8; 16]) -> Arc<Semaphore> {
        let mut by_principal = self.by_principal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permits) = by_principal.get(&principal).and_then(Weak::upgrade) {
            return permits;
        }
        // Before the map would grow, so that it is at most twice as large as it must be.
        if by_principal.len() == by_principal.capacity() {
            by_principal.retain(|_, permits| permits.strong_count() > 0);
        }
        let permits = Arc::new(Semaphore::new(self.each_max));
        by_principal.insert(principal, Arc::downgrade(&permits));
        permits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_that_execute_nothing_leave_nothing() {
        let permits = ScopePermits::new(1);
        let kept = permits.of([0; 16]);
        for number in 1..100_000_u32 {
            let mut principal = [0; 16];
            principal.iter_mut().zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
            drop(permits.of(principal));
        }
        assert!(permits.by_principal.lock().unwrap().len() < 1_000);
        assert!(Arc::ptr_eq(&kept, &permits.of([0; 16])));
    }
}
