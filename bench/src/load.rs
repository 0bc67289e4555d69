//! A client that costs little, so that the server is what is measured.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::time::timeout;

use crate::series::Series;
use crate::{Measured, app, machine};

/// The requests to send to a server: their path, body and used keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) path: &'static str,
    pub(crate) body: &'static str,
    /// The first of the keys that [`Keys::Used`] means: each belongs to one wish.
    pub(crate) used_from: u64,
}

pub(crate) const ORDER: Wish = Wish { path: "/orders", body: app::WISH, used_from: 0 };

/// The keys that requests carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    None,
    /// A new key for each request.
    Fresh,
    /// A key out of a few that were all used before.
    Used,
}

/// The number of requests that a client sent, their duration and latencies.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    /// The latency of each request, in microseconds.
    pub(crate) latencies: Series,
}

/// Makes the keys known that [`Keys::Used`] means.
pub(crate) fn prepare(address: SocketAddr, wish: Wish) -> Measured<()> {
    one_by_one(address, wish, Keys::Used, USED)
}

/// Sends so many requests on one connection.
pub(crate) fn one_by_one(
    address: SocketAddr,
    wish: Wish,
    keys: Keys,
    requests: u64,
) -> Measured<()> {
    on_its_core(async move {
        let mut connection = Connection::open(address, wish, keys, 0).await?;
        for _ in 0..requests {
            connection.exchange().await?;
        }
        Ok(())
    })
}

/// Sends requests on keep-alive connections, the next as soon as the last is answered.
pub(crate) fn run(address: SocketAddr, wish: Wish, keys: Keys, window: Duration) -> Measured<Done> {
    on_its_core(async move {
        let mut connections = Vec::new();
        for number in 0..CONNECTIONS {
            connections.push(Connection::open(address, wish, keys, number).await?);
        }
        let began = Instant::now();
        let tasks: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    let mut sent = began.elapsed();
                    while sent < window {
                        connection.exchange().await?;
                        let answered = began.elapsed();
                        latencies.push((answered - sent).as_secs_f64() * 1e6);
                        sent = answered;
                    }
                    io::Result::Ok(latencies)
                })
            })
            .collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.append(&mut task.await.map_err(io::Error::other)??);
        }
        Ok(Done {
            requests: latencies.len() as f64,
            seconds: began.elapsed().as_secs_f64(),
            latencies: latencies.into_iter().collect(),
        })
    })
}

/// Sends so many requests a second, each at its time or as soon as its connection is free.
///
/// What a request waits for its connection counts as its own time.
pub(crate) fn paced(
    address: SocketAddr,
    wish: Wish,
    keys: Keys,
    window: Duration,
    rate: f64,
) -> Measured<Done> {
    on_its_core(async move {
        let interval = Duration::from_secs_f64(CONNECTIONS as f64 / rate);
        let began = tokio::time::Instant::now();
        let mut tasks = Vec::new();
        for number in 0..CONNECTIONS {
            let mut connection = Connection::open(address, wish, keys, number).await?;
            tasks.push(tokio::spawn(async move {
                let mut due = interval.mul_f64(number as f64 / CONNECTIONS as f64);
                let mut latencies = Vec::new();
                while due < window {
                    let is_late = began.elapsed() > due;
                    tokio::time::sleep_until(began + due).await;
                    // The timer's own lateness is nobody's.
                    let from = if is_late { due } else { began.elapsed() };
                    connection.exchange().await?;
                    latencies.push((began.elapsed() - from).as_secs_f64() * 1e6);
                    due += interval;
                }
                io::Result::Ok(latencies)
            }));
        }
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.append(&mut task.await.map_err(io::Error::other)??);
        }
        Ok(Done {
            requests: latencies.len() as f64,
            seconds: began.elapsed().as_secs_f64(),
            latencies: latencies.into_iter().collect(),
        })
    })
}

/// Opens so many connections, has one request answered over each, and looks while they are open.
pub(crate) fn held<T: Send>(
    address: SocketAddr,
    wish: Wish,
    connections: u64,
    look: impl FnOnce() -> T + Send,
) -> Measured<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut open = Vec::new();
        for number in 0..connections {
            let mut connection = Connection::open(address, wish, Keys::None, number).await?;
            connection.exchange().await?;
            open.push(connection);
        }
        Ok(look())
    })
}

/// Sends every key on `each` connections at once, which alternate between both servers; any
/// response counts.
pub(crate) fn at_once(addresses: [SocketAddr; 2], keys: u64, each: usize) -> Measured<()> {
    on_its_core(async move {
        let mut tasks = Vec::new();
        for group in 0..GROUPS {
            let barrier = Arc::new(Barrier::new(each));
            for address in addresses.into_iter().cycle().take(each) {
                let mut connection = Connection::open(address, ORDER, Keys::Fresh, 0).await?;
                let barrier = Arc::clone(&barrier);
                tasks.push(tokio::spawn(async move {
                    for key in (group..keys).step_by(GROUPS as usize) {
                        connection.next = key;
                        barrier.wait().await;
                        connection.answered().await?;
                    }
                    io::Result::Ok(())
                }));
            }
        }
        let all = async {
            for task in tasks {
                task.await.map_err(io::Error::other)??;
            }
            Ok(())
        };
        // One that fails leaves the others at their barrier.
        timeout(PATIENCE, all).await.map_err(io::Error::other)?
    })
}

/// Runs a client in a thread on the clients' core.
fn on_its_core<T: Send + 'static>(
    client: impl Future<Output = io::Result<T>> + Send + 'static,
) -> Measured<T> {
    let thread = std::thread::spawn(|| {
        machine::stay_on(machine::MEASURING);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(client)
    });
    Ok(thread.join().map_err(|_| "the client broke down")??)
}

/// A connection, with a request that is changed in place.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    key_at: usize,
    answer: Vec<u8>,
    keys: Keys,
    used_from: u64,
    next: u64,
}

impl Connection {
    async fn open(address: SocketAddr, wish: Wish, keys: Keys, number: u64) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let key = match keys {
            Keys::None => String::new(),
            _ => format!("{KEY_HEADER}{:032x}\r\n", 0),
        };
        // The key comes first, so that its place is known.
        let line = format!("POST {} HTTP/1.1\r\n", wish.path);
        let key_at = line.len() + KEY_HEADER.len();
        let request = format!(
            "{line}{key}host: bench\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{}",
            wish.body.len(),
            wish.body,
        );
        // Connections share the used keys, and no others; nor do runs.
        let next = match keys {
            Keys::Used => number * (USED / CONNECTIONS),
            _ => nanos() ^ (number << 56),
        };
        Ok(Self {
            stream,
            request: request.into(),
            key_at,
            answer: Vec::new(),
            keys,
            used_from: wish.used_from,
            next,
        })
    }

    /// Sends the next request, which must succeed.
    async fn exchange(&mut self) -> io::Result<()> {
        self.answered().await?;
        if self.answer.starts_with(b"HTTP/1.1 201") {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&self.answer).into_owned()))
    }

    /// Sends the next request, and takes its whole answer.
    async fn answered(&mut self) -> io::Result<()> {
        if self.keys != Keys::None {
            let key =
                if self.keys == Keys::Used { self.used_from + self.next % USED } else { self.next };
            self.next = self.next.wrapping_add(1);
            let digits = format!("{key:032x}");
            if let Some(place) = self.request.get_mut(self.key_at..self.key_at + digits.len()) {
                place.copy_from_slice(digits.as_bytes());
            }
        }
        self.stream.write_all(&self.request).await?;
        self.answer.clear();
        loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if is_whole(&self.answer) {
                return Ok(());
            }
        }
    }
}

/// Returns whether a message with a length is complete.
pub(crate) fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|it| it == b"\r\n\r\n") else { return false };
    let length = answer
        .windows(LENGTH.len())
        .position(|it| it.eq_ignore_ascii_case(LENGTH))
        .and_then(|at| answer.get(at + LENGTH.len()..head))
        .and_then(|digits| {
            let digits = digits.split(|byte| *byte == b'\r').next()?;
            std::str::from_utf8(digits).ok()?.trim().parse::<usize>().ok()
        });
    length.is_some_and(|length| answer.len() >= head + 4 + length)
}

fn nanos() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(0) & (u64::MAX >> 8)
}

const CONNECTIONS: u64 = 32;
const GROUPS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(300);
const USED: u64 = 1024;
const KEY_HEADER: &str = "idempotency-key: ";
const LENGTH: &[u8] = b"content-length:";
