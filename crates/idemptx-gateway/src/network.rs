//! Sockets: the operating system's, or those of a simulated network in this crate's unit tests.

#[cfg(not(test))]
pub(crate) use tokio::net::{TcpListener, TcpStream};
#[cfg(test)]
pub(crate) use turmoil::net::{TcpListener, TcpStream};
