//! Opens connections.

use std::io;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::config::Origin;
use crate::network::TcpStream;
use crate::request_body::UpstreamRequestBody;
use crate::tls::Connector;
use crate::write_timeout::WriteTimeout;

/// Opens an HTTP/1.1 connection; `guard` is dropped when it closes.
pub(super) async fn http1<R: Send + 'static>(
    origin: &Origin,
    tls: Option<&Connector>,
    write_timeout: Duration,
    guard: R,
) -> io::Result<http1::SendRequest<UpstreamRequestBody>> {
    let stream = connect(origin, write_timeout).await?;
    match tls {
        None => handshake_http1(TokioIo::new(stream), guard).await,
        Some(tls) => handshake_http1(TokioIo::new(tls.connect(origin, stream).await?), guard).await,
    }
}

/// Opens an HTTP/2 connection.
pub(super) async fn http2(
    origin: &Origin,
    tls: Option<&Connector>,
    write_timeout: Duration,
) -> io::Result<http2::SendRequest<UpstreamRequestBody>> {
    let stream = connect(origin, write_timeout).await?;
    match tls {
        None => handshake_http2(TokioIo::new(stream)).await,
        Some(tls) => handshake_http2(TokioIo::new(tls.connect(origin, stream).await?)).await,
    }
}

async fn connect(origin: &Origin, write_timeout: Duration) -> io::Result<WriteTimeout<TcpStream>> {
    let host = origin.authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, origin.port())).await?;
    stream.set_nodelay(true)?;
    Ok(WriteTimeout::new(stream, write_timeout))
}

async fn handshake_http1<I, R>(
    io: I,
    guard: R,
) -> io::Result<http1::SendRequest<UpstreamRequestBody>>
where
    I: Read + Write + Send + Unpin + 'static,
    R: Send + 'static,
{
    let handshake = http1::Builder::new().max_header_size(HEAD_BYTES_MAX).handshake(io);
    let (sender, connection) = handshake.await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        // Errors are reported to the request that they affect.
        let _ = connection.with_upgrades().await;
        drop(guard);
    });
    Ok(sender)
}

async fn handshake_http2<I>(io: I) -> io::Result<http2::SendRequest<UpstreamRequestBody>>
where
    I: Read + Write + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(hyper_util::rt::TokioTimer::new());
    builder.keep_alive_interval(KEEP_ALIVE).max_header_list_size(HEAD_BYTES_MAX as u32);
    let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// The maximum size of a response's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The interval of HTTP/2 pings on a connection in use.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
