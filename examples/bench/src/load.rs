//! A client that costs little, so that the server is what is measured.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Measured, app, machine};

/// Which keys requests carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    None,
    /// Each its own.
    Fresh,
    /// One of a few, all used before.
    Used,
}

/// What a client got done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
}

/// Makes the keys known that [`Keys::Used`] means.
pub(crate) fn prepare(address: SocketAddr) -> Measured<()> {
    on_its_core(async move {
        let mut connection = Connection::open(address, Keys::Used, 0).await?;
        for _ in 0..USED {
            connection.exchange().await?;
        }
        Ok(())
    })
}

/// Sends requests on keep-alive connections, the next as soon as the last is answered.
pub(crate) fn run(address: SocketAddr, keys: Keys, window: Duration) -> Measured<Done> {
    on_its_core(async move {
        let mut connections = Vec::new();
        for number in 0..CONNECTIONS {
            connections.push(Connection::open(address, keys, number).await?);
        }
        let began = Instant::now();
        let tasks: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                tokio::spawn(async move {
                    let mut requests = 0.0;
                    while began.elapsed() < window {
                        connection.exchange().await?;
                        requests += 1.0;
                    }
                    io::Result::Ok(requests)
                })
            })
            .collect();
        let mut requests = 0.0;
        for task in tasks {
            requests += task.await.map_err(io::Error::other)??;
        }
        Ok(Done { requests, seconds: began.elapsed().as_secs_f64() })
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
    answer: Vec<u8>,
    keys: Keys,
    next: u64,
}

impl Connection {
    async fn open(address: SocketAddr, keys: Keys, number: u64) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let key = match keys {
            Keys::None => String::new(),
            _ => format!("idempotency-key: {:032x}\r\n", 0),
        };
        // The key comes first, so that its place is known.
        let request = format!(
            "POST /orders HTTP/1.1\r\n{key}host: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{}",
            app::WISH.len(),
            app::WISH,
        );
        // Connections share the used keys, and no others; nor do runs.
        let next = match keys {
            Keys::Used => number * (USED / CONNECTIONS),
            _ => nanos() ^ (number << 56),
        };
        Ok(Self { stream, request: request.into(), answer: Vec::new(), keys, next })
    }

    async fn exchange(&mut self) -> io::Result<()> {
        if self.keys != Keys::None {
            let key = if self.keys == Keys::Used { self.next % USED } else { self.next };
            self.next = self.next.wrapping_add(1);
            let digits = format!("{key:032x}");
            if let Some(place) = self.request.get_mut(KEY_AT..KEY_AT + digits.len()) {
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
                break;
            }
        }
        if self.answer.starts_with(b"HTTP/1.1 201") {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&self.answer).into_owned()))
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|it| it == b"\r\n\r\n") else { return false };
    let length = answer
        .windows(LENGTH.len())
        .position(|it| it == LENGTH)
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
const USED: u64 = 1024;
const KEY_AT: usize = "POST /orders HTTP/1.1\r\nidempotency-key: ".len();
const LENGTH: &[u8] = b"content-length:";
