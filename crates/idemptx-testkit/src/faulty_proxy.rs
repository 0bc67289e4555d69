//! A TCP proxy that disconnects, stalls, delays or refuses at a byte of the test's choice.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::refusal::Refusal;

/// A proxy in front of a server of this host.
#[derive(Debug)]
pub struct FaultyProxy {
    port: u16,
    faults: Arc<FaultPlan>,
    accepting: JoinHandle<()>,
}

/// The direction of the bytes that a fault stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// The effect on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks, for both ends.
    Disconnect,
    /// No more bytes pass in that direction until [`FaultyProxy::disconnect`].
    Stall,
    /// Bytes pass in that direction after this time.
    Delay(Duration),
    /// The next request never reaches the server, and is refused in its place; only towards the
    /// server.
    Refuse(Refusal),
}

impl FaultyProxy {
    /// Starts a proxy in front of a port of this host.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = watch::Sender::new(State::Passing);
        let faults = Arc::new(FaultPlan {
            server: AtomicU16::new(server),
            next: Mutex::default(),
            state,
            connections: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, faults.clone()));
        Self { port, faults, accepting }
    }

    /// Returns the port that its clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads later connections to another port of this host.
    pub fn lead_to(&self, server: u16) {
        self.faults.server.store(server, Ordering::Release);
    }

    /// Plans one fault after this many more bytes in a direction.
    pub fn plan(&self, direction: Direction, after: usize, fault: Fault) {
        self.schedule(Plan { trigger: Trigger::Bytes, direction, bytes_left: after, fault });
    }

    /// Plans another fault after those that are planned; its bytes count once they have happened.
    pub fn plan_next(&self, direction: Direction, after: usize, fault: Fault) {
        let plan = Plan { trigger: Trigger::Bytes, direction, bytes_left: after, fault };
        self.faults.next().push_back(plan);
    }

    /// Plans a disconnect of the connection on which a client next sends `pattern`: before the
    /// pattern reaches the server, or, towards the client, before the reply to it arrives.
    pub fn disconnect_at(&self, pattern: &'static [u8], direction: Direction) {
        let (trigger, fault) = (Trigger::Pattern(pattern), Fault::Disconnect);
        self.schedule(Plan { trigger, direction, bytes_left: 0, fault });
    }

    /// Waits until the planned fault has happened.
    pub async fn wait_for_fault(&self) {
        let mut states = self.faults.state.subscribe();
        states.wait_for(|state| *state != State::Passing).await.unwrap();
    }

    /// Returns whether the planned fault has happened.
    pub fn has_faulted(&self) -> bool {
        *self.faults.state.borrow() != State::Passing
    }

    /// Returns whether the bytes of the planned fault count already.
    pub fn has_triggered(&self) -> bool {
        let trigger = self.faults.next().front().map(|plan| plan.trigger);
        !matches!(trigger, Some(Trigger::Pattern(_)))
    }

    /// Breaks the stalled connection; the bytes it held never arrive.
    pub fn disconnect(&self) {
        self.faults.state.send_replace(State::Over);
    }

    /// Ends a stall, and forgets the faults that are planned.
    pub fn heal(&self) {
        self.faults.next().clear();
        self.disconnect();
    }

    fn schedule(&self, plan: Plan) {
        self.faults.state.send_replace(State::Passing);
        *self.faults.next() = VecDeque::from([plan]);
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Debug)]
struct FaultPlan {
    server: AtomicU16,
    next: Mutex<VecDeque<Plan>>,
    state: watch::Sender<State>,
    connections: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    trigger: Trigger,
    direction: Direction,
    bytes_left: usize,
    fault: Fault,
}

/// The start of the byte count.
#[derive(Clone, Copy, Debug)]
enum Trigger {
    /// Bytes count at once, on every connection.
    Bytes,
    /// Bytes count once a client has sent this, in one segment.
    Pattern(&'static [u8]),
    /// Bytes of this connection count.
    Connection(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Passing,
    Over,
    Stalled,
}

impl FaultPlan {
    fn next(&self) -> MutexGuard<'_, VecDeque<Plan>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many of these bytes pass, and the fault that follows them.
    fn allow(&self, connection: u64, direction: Direction, bytes: &[u8]) -> (usize, Option<Fault>) {
        let mut next = self.next();
        let Some(plan) = next.front_mut() else { return (bytes.len(), None) };
        if let Trigger::Pattern(pattern) = plan.trigger
            && direction == Direction::ToServer
            && bytes.windows(pattern.len()).any(|part| part == pattern)
        {
            plan.trigger = Trigger::Connection(connection);
        }
        let is_counted = match plan.trigger {
            Trigger::Bytes => true,
            Trigger::Pattern(_) => false,
            Trigger::Connection(chosen) => chosen == connection,
        };
        if !is_counted || plan.direction != direction {
            return (bytes.len(), None);
        }
        if let Fault::Refuse(refusal) = plan.fault {
            // Only requests can be refused, and only as a whole.
            if refusal.answer_to(bytes).is_none() {
                return (bytes.len(), None);
            }
            plan.bytes_left = 0;
        }
        if bytes.len() <= plan.bytes_left {
            plan.bytes_left -= bytes.len();
            return (bytes.len(), None);
        }
        let allowed = (plan.bytes_left, Some(plan.fault));
        next.pop_front();
        allowed
    }

    async fn wait_for_disconnect(&self) {
        let mut states = self.state.subscribe();
        let _ = states.wait_for(|state| *state != State::Stalled).await;
    }
}

async fn accept(listener: TcpListener, faults: Arc<FaultPlan>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(connect(client, faults.server.load(Ordering::Acquire), faults.clone()));
    }
}

/// Closes both ends when either closes, or when a fault breaks the connection.
async fn connect(mut client: TcpStream, server: u16, faults: Arc<FaultPlan>) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
    let Ok(mut server) = TcpStream::connect(address).await else { return };
    let connection = faults.connections.fetch_add(1, Ordering::Relaxed);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let (refusals, refused) = mpsc::unbounded_channel();
    let (_unused, never) = mpsc::unbounded_channel();
    let [there, back] = [Direction::ToServer, Direction::ToClient].map(|it| (connection, it));
    tokio::select! {
        () = pass(there, from_client, to_server, (&refusals, never), &faults) => {}
        () = pass(back, from_server, to_client, (&refusals, refused), &faults) => {}
    }
}

async fn pass(
    (connection, direction): (u64, Direction),
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    (refusals, mut refused): (&UnboundedSender<Vec<u8>>, UnboundedReceiver<Vec<u8>>),
    faults: &FaultPlan,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(count @ 1..) => count,
                _ => return,
            },
            Some(answer) = refused.recv() => {
                if to.write_all(&answer).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let (allowed, fault) = faults.allow(connection, direction, &buffer[..count]);
        if to.write_all(&buffer[..allowed]).await.is_err() {
            return;
        }
        match fault {
            None => {}
            Some(Fault::Disconnect) => {
                faults.state.send_replace(State::Over);
                return;
            }
            Some(Fault::Delay(time)) => {
                faults.state.send_replace(State::Over);
                tokio::time::sleep(time).await;
                if to.write_all(&buffer[allowed..count]).await.is_err() {
                    return;
                }
            }
            Some(Fault::Refuse(refusal)) => {
                faults.state.send_replace(State::Over);
                let _ = refusals.send(refusal.answer_to(&buffer[..count]).unwrap());
            }
            Some(Fault::Stall) => {
                faults.state.send_replace(State::Stalled);
                return faults.wait_for_disconnect().await;
            }
        }
    }
}

const BUFFER_BYTES: usize = 64 << 10;
