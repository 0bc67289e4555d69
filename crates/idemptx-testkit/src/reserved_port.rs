//! Ports that stay free for one server.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A loopback port kept for one server, even while that server is down.
///
/// The socket is bound but does not listen: the system gives the port to no other process that
/// asks for a free one, refuses connections to it, and lets the server bind it explicitly.
#[derive(Debug)]
pub struct ReservedPort(TcpSocket);

impl ReservedPort {
    /// Reserves a free port.
    pub fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self(socket)
    }

    /// Returns its number.
    pub fn number(&self) -> u16 {
        self.address().port()
    }

    /// Returns the loopback address with this port.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}
