//! Sockets: the operating system's, or a simulated network's in this crate's unit tests.
//!
//! The alias is the only difference between tests and what is shipped.

#[cfg(not(test))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(test)]
pub(crate) use turmoil::net::{TcpListener, TcpStream};
