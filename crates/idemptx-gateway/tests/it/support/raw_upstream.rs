//! An upstream and a client on plain TCP, without an HTTP library.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::in_process::PATIENCE;

/// An upstream that records every byte it receives.
#[derive(Clone, Debug)]
pub(crate) struct RawUpstream {
    pub(crate) address: SocketAddr,
    /// The bytes of each connection.
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RawUpstream {
    /// Serves each connection with `serve`, which gets its number, from 1.
    pub(crate) async fn start<F, R>(serve: F) -> Self
    where
        F: Fn(usize, RawConnection) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let kept = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(Vec::new());
                    kept.len()
                };
                let _ = stream.set_nodelay(true);
                let connection = RawConnection { stream, number, received: Arc::clone(&kept) };
                tokio::spawn(serve(number, connection));
            }
        });
        Self { address, received }
    }

    /// Returns the number of connections accepted.
    pub(crate) fn connections(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// Returns the bytes of all connections.
    pub(crate) fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap().concat()
    }

    /// Returns the request lines of all connections.
    pub(crate) fn request_lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.received()).into_owned();
        let lines = text.split("\r\n").filter(|line| line.contains(" HTTP/1."));
        lines.map(str::to_owned).collect()
    }
}

/// A connection to a [`RawUpstream`].
pub(crate) struct RawConnection {
    pub(crate) stream: TcpStream,
    number: usize,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RawConnection {
    /// Reads once; returns 0 at the end.
    pub(crate) async fn read(&mut self) -> usize {
        let mut piece = [0; 65536];
        let bytes = self.stream.read(&mut piece).await.unwrap_or(0);
        self.received.lock().unwrap()[self.number - 1].extend_from_slice(&piece[..bytes]);
        bytes
    }

    /// Returns the bytes of this connection.
    pub(crate) fn all(&self) -> Vec<u8> {
        self.received.lock().unwrap()[self.number - 1].clone()
    }

    /// Reads until this many bytes have arrived; returns `false` at the end.
    pub(crate) async fn read_until(&mut self, bytes: usize) -> bool {
        while self.all().len() < bytes {
            if self.read().await == 0 {
                return false;
            }
        }
        true
    }

    /// Reads a request's head and the body that its `Content-Length` declares.
    pub(crate) async fn request(&mut self) -> bool {
        loop {
            let all = String::from_utf8_lossy(&self.all()).into_owned();
            if let Some((head, body)) = all.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse().ok())?
                });
                if body.len() >= length.unwrap_or(0) {
                    return true;
                }
            }
            if self.read().await == 0 {
                return false;
            }
        }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Closes the connection with RST.
    pub(crate) fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }
}

/// Sends bytes, and reads until the connection ends or is silent for a while.
pub(crate) async fn send_raw(address: SocketAddr, bytes: &[u8]) -> RawReply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    rest(&mut stream).await
}

/// Reads until the connection ends or is silent for a while.
pub(crate) async fn rest(stream: &mut TcpStream) -> RawReply {
    let (mut all, mut piece) = (Vec::new(), [0; 65536]);
    loop {
        // The first byte may take long; afterwards only silence shows that no more bytes arrive.
        let limit = if all.is_empty() { PATIENCE } else { SILENCE };
        match timeout(limit, stream.read(&mut piece)).await {
            Err(_) => return RawReply { text: text(&all), closed: false },
            Ok(Ok(0) | Err(_)) => return RawReply { text: text(&all), closed: true },
            Ok(Ok(bytes)) => all.extend_from_slice(&piece[..bytes]),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The bytes that a raw client received.
#[derive(Debug)]
pub(crate) struct RawReply {
    pub(crate) text: String,
    /// The connection has ended.
    pub(crate) closed: bool,
}

impl RawReply {
    /// Returns the statuses of all responses.
    pub(crate) fn statuses(&self) -> Vec<u16> {
        let lines = self.text.split("\r\n").filter_map(|line| line.strip_prefix("HTTP/1.1 "));
        lines.filter_map(|line| line.get(..3)?.parse().ok()).collect()
    }
}

const SILENCE: Duration = Duration::from_secs(1);
