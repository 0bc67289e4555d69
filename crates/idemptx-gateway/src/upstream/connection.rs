//! Opens connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::streams::{Streams, StreamsExecutor};
use crate::config::Origin;
use crate::network::{self, Stream};
use crate::request_body::UpstreamRequestBody;
use crate::tls::Connector;
use crate::write_timeout::WriteTimeout;

/// The limits of a response's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    pub(super) bytes: usize,
    pub(super) lines: usize,
}

/// Opens an HTTP/1.1 connection; `guard` is dropped when it closes, upgraded or not.
pub(super) async fn http1<R: Send + 'static>(
    origin: &Origin,
    tls: Option<&Connector>,
    write_timeout: Duration,
    limits: HeadLimits,
    guard: R,
) -> io::Result<http1::SendRequest<UpstreamRequestBody>> {
    let stream = connect(origin, write_timeout).await?;
    match tls {
        None => handshake_http1(TokioIo::new(Guarded { stream, guard }), limits).await,
        Some(tls) => {
            let stream = tls.connect(origin, stream).await?;
            handshake_http1(TokioIo::new(Guarded { stream, guard }), limits).await
        }
    }
}

/// Opens an HTTP/2 connection, whose server's limit is kept in `streams`.
pub(super) async fn http2(
    origin: &Origin,
    tls: Option<&Connector>,
    write_timeout: Duration,
    limits: HeadLimits,
    streams: Arc<Streams>,
) -> io::Result<http2::SendRequest<UpstreamRequestBody>> {
    let stream = connect(origin, write_timeout).await?;
    match tls {
        None => handshake_http2(TokioIo::new(stream), limits, streams).await,
        Some(tls) => {
            let stream = tls.connect(origin, stream).await?;
            handshake_http2(TokioIo::new(stream), limits, streams).await
        }
    }
}

async fn connect(origin: &Origin, write_timeout: Duration) -> io::Result<WriteTimeout<Stream>> {
    let stream = match &origin.socket {
        Some(path) => Stream::connect_unix(path).await?,
        None => {
            let host = origin.authority.host().trim_start_matches('[').trim_end_matches(']');
            Stream::Tcp(network::connect(host, origin.port()).await?)
        }
    };
    stream.set_nodelay()?;
    Ok(WriteTimeout::new(stream, write_timeout))
}

async fn handshake_http1<I>(
    io: I,
    limits: HeadLimits,
) -> io::Result<http1::SendRequest<UpstreamRequestBody>>
where
    I: Read + Write + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_header_size(limits.bytes).max_headers(limits.lines);
    let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        // Errors are reported to the request that they affect.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

async fn handshake_http2<I>(
    io: I,
    limits: HeadLimits,
    streams: Arc<Streams>,
) -> io::Result<http2::SendRequest<UpstreamRequestBody>>
where
    I: Read + Write + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(StreamsExecutor(Arc::clone(&streams)));
    builder.timer(hyper_util::rt::TokioTimer::new());
    // Until the server has stated its limit, no stream is opened.
    builder.initial_max_send_streams(0);
    let list_size_max = u32::try_from(limits.bytes).unwrap_or(u32::MAX);
    builder.keep_alive_interval(KEEP_ALIVE).max_header_list_size(list_size_max);
    let (sender, mut connection) = builder.handshake(io).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = &mut connection => break,
                () = streams.progressed() => {
                    streams.set_max(connection.current_max_send_streams());
                }
            }
        }
        // No request waits for room on a connection that has ended.
        streams.set_max(usize::MAX);
    });
    Ok(sender)
}

/// A stream with what is dropped when it closes.
struct Guarded<S, R> {
    stream: S,
    #[expect(dead_code, reason = "dropped with the stream")]
    guard: R,
}

// The guard is never pinned.
impl<S: Unpin, R> Unpin for Guarded<S, R> {}

impl<S: AsyncRead + Unpin, R> AsyncRead for Guarded<S, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, R> AsyncWrite for Guarded<S, R> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The interval of HTTP/2 pings on a connection in use.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
