//! Limits on client connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::network::ClientAddress;
use crate::recorder::OpenConnection;
use crate::shutdown::ShutdownWatch;

/// Limits the connections in total and per client address.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimit {
    connections: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
    each_max: usize,
}

impl ConnectionLimit {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self::of(limits.connections_max, limits.connections_per_ip_max)
    }

    /// Limits them to these numbers.
    pub(crate) fn of(max: usize, each_max: usize) -> Self {
        let all = max.min(Semaphore::MAX_PERMITS);
        Self { connections: Arc::new(Semaphore::new(all)), each: Arc::default(), each_max }
    }

    /// Waits until another connection may be accepted.
    pub(crate) async fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    /// Returns a permit, unless the address has too many connections; a Unix socket has none.
    pub(crate) fn try_acquire(
        &self,
        address: ClientAddress,
        permit: OwnedSemaphorePermit,
    ) -> Option<ConnectionPermit> {
        let ClientAddress::Ip(address) = address else {
            return Some(ConnectionPermit { _counted: None, _permit: permit });
        };
        let address = counted(address);
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let count = each.entry(address).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        let counted = CountedAddress { address, each: Arc::clone(&self.each) };
        Some(ConnectionPermit { _counted: Some(counted), _permit: permit })
    }
}

/// Returns the address that a connection counts towards: of IPv6 the network of 64 bits, all of whose
/// addresses a single host can have.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        address => address,
    }
}

/// A client's connection, open until the last clone is dropped: it counts towards the limits and
/// the metrics, and a drain waits for it.
#[derive(Clone, Debug)]
pub(crate) struct ClientConnection(Arc<Held>);

#[derive(Debug)]
struct Held {
    _permit: ConnectionPermit,
    _open: OpenConnection,
    _shutdown: ShutdownWatch,
}

impl ClientConnection {
    pub(crate) fn new(
        permit: ConnectionPermit,
        open: OpenConnection,
        shutdown: ShutdownWatch,
    ) -> Self {
        Self(Arc::new(Held { _permit: permit, _open: open, _shutdown: shutdown }))
    }

    /// Returns a handle for requests, which may outlive the connection.
    pub(crate) fn downgrade(&self) -> RequestConnection {
        RequestConnection(Arc::downgrade(&self.0))
    }
}

/// The connection of a request, as long as it is open.
#[derive(Clone, Debug)]
pub(crate) struct RequestConnection(Weak<Held>);

impl RequestConnection {
    /// Keeps the connection open, unless it has ended.
    pub(crate) fn hold(&self) -> Option<ClientConnection> {
        self.0.upgrade().map(ClientConnection)
    }
}

/// Counts a connection until it is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    _counted: Option<CountedAddress>,
    _permit: OwnedSemaphorePermit,
}

/// Counts a connection of an address until it is dropped.
#[derive(Debug)]
struct CountedAddress {
    address: IpAddr,
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for CountedAddress {
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

const NETWORK: u128 = u128::MAX << 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_addresses_of_one_ipv6_network_count_together() {
        let limit = ConnectionLimit::of(10, 1);
        let mut open = Vec::new();
        let mut may_connect = async |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            let permit = limit.try_acquire(address.into(), limit.reserve().await.unwrap());
            let is_open = permit.is_some();
            open.extend(permit);
            is_open
        };
        for (address, expected) in [
            ("2001:db8::1", true),
            ("2001:db8::ffff:1", false),
            ("2001:db8:0:1::1", true),
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", false),
            ("10.0.0.2", true),
        ] {
            assert_eq!(may_connect(address).await, expected, "{address}");
        }
        drop(open);
        assert!(limit.each.lock().unwrap().is_empty());
    }
}
