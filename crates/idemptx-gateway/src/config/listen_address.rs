//! Addresses to listen on, and the paths of Unix sockets.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenAddress {
    /// An address of TCP; port 0 picks a free port.
    Tcp(SocketAddr),
    /// The path of a Unix socket, written `unix:PATH`.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Returns the address of TCP; `None` for a Unix socket.
    #[must_use]
    pub const fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Returns whether only this host can connect.
    pub(crate) fn is_local(&self) -> bool {
        self.tcp().is_none_or(|address| address.ip().is_loopback())
    }

    /// Returns whether two listeners cannot have this address at a time.
    pub(super) fn is_exclusive(&self) -> bool {
        self.tcp().is_none_or(|address| address.port() != 0)
    }

    /// Returns the address as a URL, or as it is written.
    pub(crate) fn url(&self, tls: bool) -> String {
        match self {
            Self::Tcp(address) => format!("{}://{address}", if tls { "https" } else { "http" }),
            Self::Unix(_) => self.to_string(),
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl FromStr for ListenAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(UNIX) {
            Some(path) => unix_path(path).map(Self::Unix),
            None => text.parse().map(Self::Tcp).map_err(|_| ADVICE),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Parses what follows `unix:`; `///run/a.sock`, as in a URL, is `/run/a.sock`.
pub(super) fn unix_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = match text.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err("write the path of a Unix socket as `unix:/run/idemptx.sock`"),
        None => text,
    };
    if path.is_empty() || path.starts_with('@') || path.ends_with('/') {
        return Err("after `unix:` write the path of a file, as `unix:/run/idemptx.sock`");
    }
    // The system's own limit, `sun_path`.
    UnixAddress::from_pathname(path)
        .map(|_| path.into())
        .map_err(|_| "the path of a Unix socket is too long: at most 107 bytes")
}

/// Deserialises the permissions of a socket's file.
pub(super) fn socket_mode<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
    let mode = mode.filter(|_| (3..=4).contains(&text.len()));
    mode.map(Some).ok_or_else(|| serde::de::Error::custom("write permissions as `\"660\"`"))
}

/// The owner and the group may connect.
pub(crate) const SOCKET_MODE: u32 = 0o660;
/// The beginning of the address of a Unix socket.
pub(super) const UNIX: &str = "unix:";
const ADVICE: &str = "write an address as `127.0.0.1:8080`, or `unix:/run/idemptx.sock`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_tcp_or_the_path_of_a_socket() {
        for (text, shown) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:0", "[::1]:0"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
            ("unix:a.sock", "unix:a.sock"),
        ] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), shown);
        }
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, word) in [
            ("8080", "as `127.0.0.1:8080`"),
            ("localhost:80", "as `127.0.0.1:8080`"),
            ("unix:", "after `unix:`"),
            ("unix:@name", "after `unix:`"),
            ("unix:/run/", "after `unix:`"),
            ("unix://run/a.sock", "as `unix:/run"),
            (&*long, "too long"),
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
