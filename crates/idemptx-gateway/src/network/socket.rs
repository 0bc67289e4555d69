//! Listening sockets and connections, of TCP and of Unix.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};

use super::unix::{self, SocketFile};
use super::{TcpListener, TcpStream};
use crate::config::ListenAddress;

/// A listening socket.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds an address; a Unix socket has a file with these permissions, which goes when the second
    /// value is dropped.
    pub(crate) async fn bind(
        address: &ListenAddress,
        mode: u32,
    ) -> io::Result<(Self, Option<SocketFile>)> {
        match address {
            ListenAddress::Tcp(address) => Ok((Self::Tcp(TcpListener::bind(address).await?), None)),
            ListenAddress::Unix(path) => {
                let (socket, file) = unix::bind(path, mode).await?;
                Ok((Self::Unix(socket), Some(file)))
            }
        }
    }

    /// Waits for a connection, and returns it with the address that it comes from.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has accepted nothing.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, ClientAddress)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                Ok((Stream::Tcp(stream), ClientAddress::Ip(address.ip())))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                Ok((Stream::Unix(stream), ClientAddress::UnixSocket))
            }
        }
    }

    /// Returns the address that it is bound to, if it has one.
    pub(crate) fn address(&self) -> Option<ListenAddress> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok().map(ListenAddress::Tcp),
            Self::Unix(socket) => {
                let address = socket.local_addr().ok()?;
                address.as_pathname().map(|path| ListenAddress::Unix(path.to_owned()))
            }
        }
    }
}

/// The address that a connection comes from.
///
/// A Unix socket has none: everyone who may open its file can connect, mostly a proxy in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAddress {
    Ip(IpAddr),
    UnixSocket,
}

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for ClientAddress {
    /// Writes the address, or `unix:`, as nginx does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::UnixSocket => f.write_str("unix:"),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects to a Unix socket.
    pub(crate) async fn connect_unix(path: &Path) -> io::Result<Self> {
        UnixStream::connect(path).await.map(Self::Unix)
    }

    /// Takes a connection from the runtime that it belongs to, for another to
    /// [go on](Self::enter_runtime) with.
    #[cfg(not(test))]
    pub(crate) fn leave_runtime(self) -> io::Result<DetachedStream> {
        Ok(match self {
            Self::Tcp(stream) => DetachedStream::Tcp(stream.into_std()?),
            Self::Unix(stream) => DetachedStream::Unix(stream.into_std()?),
        })
    }

    /// Goes on with a connection in the current runtime.
    #[cfg(not(test))]
    pub(crate) fn enter_runtime(stream: DetachedStream) -> io::Result<Self> {
        Ok(match stream {
            DetachedStream::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream)?),
            DetachedStream::Unix(stream) => Self::Unix(UnixStream::from_std(stream)?),
        })
    }

    /// Sends segments at once, although they are small; a Unix socket always does.
    pub(crate) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }
}

/// A connection that belongs to no runtime.
#[cfg(not(test))]
pub(crate) enum DetachedStream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// A simulated network is one thread's.
#[cfg(test)]
impl Stream {
    pub(crate) fn leave_runtime(self) -> io::Result<Self> {
        Ok(self)
    }

    pub(crate) fn enter_runtime(stream: Self) -> io::Result<Self> {
        Ok(stream)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut copy = [0; COPIED_BYTES_MAX];
        match (self.get_mut(), joined(pieces, &mut copy)) {
            (stream, Some(bytes)) => Pin::new(stream).poll_write(cx, bytes),
            (Self::Tcp(stream), None) => Pin::new(stream).poll_write_vectored(cx, pieces),
            (Self::Unix(stream), None) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Returns the pieces as one, if there is but one or all of them are small.
///
/// A call with one piece is the cheaper one: on Linux it saves more than a head and a short body
/// cost to be copied.
fn joined<'a>(pieces: &'a [IoSlice<'_>], copy: &'a mut [u8; COPIED_BYTES_MAX]) -> Option<&'a [u8]> {
    if let [piece] = pieces {
        return Some(piece);
    }
    let mut length = 0;
    for piece in pieces {
        let end = length + piece.len();
        copy.get_mut(length..end)?.copy_from_slice(piece);
        length = end;
    }
    copy.get(..length)
}

/// Room for a head and a short body.
const COPIED_BYTES_MAX: usize = 2048;

#[cfg(test)]
mod tests;
