//! A wire to a server that breaks, or stands still, after a byte of the test's choice.
#![allow(dead_code, reason = "no file of tests uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes on what clients and a server of this host say to each other.
#[derive(Debug)]
pub(crate) struct Wire {
    port: u16,
    fault: Arc<Fault>,
    accepting: JoinHandle<()>,
}

/// A direction on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Towards {
    Server,
    Client,
}

/// What happens when so many bytes have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The connection breaks, for both.
    Break,
    /// Nothing passes any more in that direction, until the connection is cut.
    Hold,
}

#[derive(Debug)]
struct Fault {
    plan: Mutex<Option<Plan>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    towards: Towards,
    bytes_left: usize,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everything passes, and if a plan has been made, it has not come to it yet.
    Passing,
    Broken,
    Holding,
}

impl Wire {
    /// A wire to a port of this host.
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = watch::Sender::new(State::Passing);
        let fault = Arc::new(Fault { plan: Mutex::default(), state });
        let accepting = tokio::spawn(accept(listener, server, fault.clone()));
        Self { port, fault, accepting }
    }

    /// Where its clients connect.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Plans what happens once, after so many more bytes towards somebody.
    pub(crate) fn plan(&self, towards: Towards, after: usize, then: Then) {
        self.fault.state.send_replace(State::Passing);
        *self.fault.plan() = Some(Plan { towards, bytes_left: after, then });
    }

    /// Waits until it has come to what was planned.
    pub(crate) async fn reached(&self) {
        let mut states = self.fault.state.subscribe();
        states.wait_for(|state| *state != State::Passing).await.unwrap();
    }

    /// Whether it has come to what was planned.
    pub(crate) fn is_reached(&self) -> bool {
        *self.fault.state.borrow() != State::Passing
    }

    /// Breaks the connection on which something is held, which then never arrives.
    pub(crate) fn cut(&self) {
        self.fault.state.send_replace(State::Broken);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Fault {
    fn plan(&self) -> std::sync::MutexGuard<'_, Option<Plan>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of so many bytes may pass, and what happens then.
    fn allow(&self, towards: Towards, bytes: usize) -> (usize, Option<Then>) {
        let mut planned = self.plan();
        let Some(plan) = planned.as_mut().filter(|plan| plan.towards == towards) else {
            return (bytes, None);
        };
        if bytes <= plan.bytes_left {
            plan.bytes_left -= bytes;
            return (bytes, None);
        }
        let allowed = (plan.bytes_left, Some(plan.then));
        *planned = None;
        allowed
    }

    async fn cut(&self) {
        let mut states = self.state.subscribe();
        let _ = states.wait_for(|state| *state != State::Holding).await;
    }
}

async fn accept(listener: TcpListener, server: u16, fault: Arc<Fault>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(connect(client, server, fault.clone()));
    }
}

/// Both ends are closed when either is, or when the wire breaks.
async fn connect(mut client: TcpStream, server: u16, fault: Arc<Fault>) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
    let Ok(mut server) = TcpStream::connect(address).await else { return };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = pass(from_client, to_server, Towards::Server, &fault) => {}
        () = pass(from_server, to_client, Towards::Client, &fault) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    towards: Towards,
    fault: &Fault,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let (now, then) = fault.allow(towards, count);
        if to.write_all(&buffer[..now]).await.is_err() {
            return;
        }
        match then {
            None => {}
            Some(Then::Break) => {
                fault.state.send_replace(State::Broken);
                return;
            }
            Some(Then::Hold) => {
                fault.state.send_replace(State::Holding);
                return fault.cut().await;
            }
        }
    }
}

const BUFFER_BYTES: usize = 64 << 10;
