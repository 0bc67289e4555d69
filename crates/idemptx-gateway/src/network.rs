//! Sockets: the operating system's, or a simulated network's in this crate's unit tests.
//!
//! The alias is the only difference between tests and what is shipped.

mod socket;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) use self::socket::{ClientAddress, Listener, Stream};
pub(crate) use self::unix::{SocketFile, check as check_socket};
#[cfg(not(test))]
pub(crate) use tokio::net::{TcpListener, TcpStream, lookup_host};
#[cfg(test)]
pub(crate) use turmoil::net::{TcpListener, TcpStream, lookup_host};

/// Returns the listening socket, of TCP or of Unix, that a supervisor has opened and passed as the
/// standard input.
///
/// It stays open when this process ends, with the connections that are not accepted yet, so that
/// another process goes on with them.
#[cfg(not(test))]
pub(crate) fn inherited() -> io::Result<Listener> {
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::net::UnixListener;

    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let socket = std::net::TcpListener::from(socket);
    socket.set_nonblocking(true)?;
    // An error names what it is instead, such as a terminal.
    if let Err(error) = socket.local_addr() {
        let socket = UnixListener::from(OwnedFd::from(socket));
        socket.local_addr().map_err(|_| error)?;
        return tokio::net::UnixListener::from_std(socket).map(Listener::Unix);
    }
    TcpListener::from_std(socket).map(Listener::Tcp)
}

/// A simulated host inherits nothing.
#[cfg(test)]
pub(crate) fn inherited() -> io::Result<Listener> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Connects to a host by the first of its addresses that answers (RFC 8305 §5).
///
/// The next address is tried when one fails, or has not answered for a moment, so that one that is
/// not reachable costs that moment and not the whole time limit. The families take turns.
///
/// # Errors
///
/// The error of the address that failed last.
///
/// # Cancel safety
///
/// Dropped, it leaves no connection behind.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let found: Vec<_> = lookup_host((host, port)).await?.collect();
    let first_is_ipv6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (like_first, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first_is_ipv6);
    let mut others = others.into_iter();
    let mut addresses = Vec::new();
    for address in like_first {
        addresses.push(address);
        addresses.extend(others.next());
    }
    addresses.extend(others);
    connect_any(addresses).await
}

async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.into_iter();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let mut attempts = JoinSet::new();
    loop {
        let next = addresses.next();
        let is_last = next.is_none();
        if let Some(address) = next {
            attempts.spawn(TcpStream::connect(address));
        }
        let ended = if is_last {
            attempts.join_next().await
        } else {
            match timeout(ATTEMPT_DELAY, attempts.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => failure = error,
            Some(Err(error)) => failure = io::Error::other(error),
            None if is_last => return Err(failure),
            None => {}
        }
    }
}

/// RFC 8305 §8.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_does_not_answer_does_not_stand_in_the_way_of_the_next() {
        let mut simulation = turmoil::Builder::new().build();
        for host in ["silent", "well"] {
            simulation.host(host, || async {
                let listener = TcpListener::bind(("0.0.0.0", 80)).await?;
                loop {
                    let _accepted = listener.accept().await?;
                }
            });
        }
        simulation.client("gateway", async {
            turmoil::hold("gateway", "silent");
            let address = |host| SocketAddr::new(turmoil::lookup(host), 80);
            let refused = SocketAddr::new(turmoil::lookup("well"), 81);
            for addresses in [
                vec![address("silent"), address("well")],
                vec![refused, address("silent"), address("well")],
            ] {
                let stream = connect_any(addresses).await?;
                assert_eq!(stream.peer_addr()?, address("well"));
            }
            assert!(connect_any(vec![refused]).await.is_err());
            assert!(connect_any(Vec::new()).await.is_err());
            Ok(())
        });
        simulation.run().unwrap();
    }
}
