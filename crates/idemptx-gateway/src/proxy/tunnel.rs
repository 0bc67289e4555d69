//! Bytes between a client and an upstream that have left HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::sleep;

/// Copies bytes both ways, until either side closes or neither has sent anything for `idle_max`.
pub(super) async fn join<A, B>(client: A, upstream: B, idle_max: Duration)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let received = Arc::new(AtomicU64::new(0));
    let mut client = Counted { io: client, received: Arc::clone(&received) };
    let mut upstream = Counted { io: upstream, received: Arc::clone(&received) };
    let idle = async {
        let mut before = None;
        // The limit is kept to within half of it, without a timer for every read.
        let mut quiet = 0;
        while quiet < 2 {
            sleep(idle_max / 2).await;
            let now = Some(received.load(Ordering::Relaxed));
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
    };
    tokio::select! {
        // Either side may close at any time.
        _ = copy_bidirectional(&mut client, &mut upstream) => {}
        () = idle => tracing::debug!("closing a tunnel without traffic"),
    }
}

/// A stream whose received bytes are counted.
struct Counted<I> {
    io: I,
    received: Arc<AtomicU64>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let read = buffer.filled().len().saturating_sub(before);
        self.received.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
