//! Combines the commands of many tasks into one write.
//!
//! A task that sends a command wakes the task of the connection, and the runtime runs a task that
//! was just woken before all others: the commands of tasks that are ready together would be a write
//! and a packet each, which cost both sides more than what is in them.
//! So a connection lets those go first who are ready, and writes when its turn comes again.
//! A single command waits for nothing but that.

use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;

/// A stream whose every write comes one turn of the runtime later.
#[derive(Debug)]
pub(super) struct CoalescingWriter<S> {
    stream: S,
    has_waited: bool,
}

impl CoalescingWriter<TcpStream> {
    pub(super) async fn tcp(host: &str, port: u16) -> io::Result<Self> {
        let stream = first(lookup_host((host, port)).await?).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive())?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
        Ok(Self { stream, has_waited: false })
    }
}

#[cfg(unix)]
impl CoalescingWriter<UnixStream> {
    pub(super) async fn unix(path: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path).await?, has_waited: false })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CoalescingWriter<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CoalescingWriter<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !std::mem::replace(&mut self.has_waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.has_waited = written.is_pending();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connects to all addresses of a host at once, and keeps the first that answers: one at which
/// there is no answer delays nothing.
async fn first(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    for address in addresses {
        attempts.spawn(TcpStream::connect(address));
    }
    let mut failure = io::Error::other("the host has no address");
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error,
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Keepalive probes, which find a peer that is gone while nothing is sent.
pub(super) const fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(SILENCE_MAX).with_interval(PROBE_INTERVAL)
}

/// Time after which a peer that acknowledges nothing is gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::timeout;

    use super::*;

    /// Binds an address that does not answer, because its queue is full.
    async fn silent() -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) =
            timeout(Duration::from_millis(500), TcpStream::connect(address)).await
        {
            waiting.push(connected.unwrap());
        }
        (listener, waiting)
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_holds_up_no_other() {
        let (silent, _waiting) = silent().await;
        let answering = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let wanted = answering.local_addr().unwrap();
        let addresses = [silent.local_addr().unwrap(), wanted];
        // Far less than the system takes to give up.
        let connected = timeout(Duration::from_secs(60), first(addresses.into_iter())).await;
        assert_eq!(connected.unwrap().unwrap().peer_addr().unwrap(), wanted);
    }
}
