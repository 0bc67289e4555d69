//! Limits on client connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// Limits the connections in total and per client address.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimit {
    connections: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
    each_max: usize,
}

impl ConnectionLimit {
    pub(crate) fn new(limits: &Limits) -> Self {
        let all = limits.connections_max.min(Semaphore::MAX_PERMITS);
        Self {
            connections: Arc::new(Semaphore::new(all)),
            each: Arc::default(),
            each_max: limits.connections_per_ip_max,
        }
    }

    /// Waits until another connection may be accepted.
    pub(crate) async fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    /// Returns a permit, unless the address has too many connections.
    pub(crate) fn try_acquire(
        &self,
        address: IpAddr,
        permit: OwnedSemaphorePermit,
    ) -> Option<ConnectionPermit> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let count = each.entry(address).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { address, each: Arc::clone(&self.each), _permit: permit })
    }
}

/// Counts a connection until it is dropped.
pub(crate) struct ConnectionPermit {
    address: IpAddr,
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = each.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                each.remove(&self.address);
            }
        }
    }
}
