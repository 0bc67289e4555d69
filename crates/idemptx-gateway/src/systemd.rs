//! Tells systemd how far the gateway is (`sd_notify(3)`), where that started it.

use std::env;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The socket of the supervisor, if it wants to be told.
#[derive(Debug)]
pub(crate) struct Supervisor(Option<SocketAddr>);

impl Supervisor {
    /// Takes the socket from the environment.
    pub(crate) fn from_environment() -> Self {
        let address =
            env::var_os("NOTIFY_SOCKET").and_then(|name| address(name.as_encoded_bytes()));
        Self(address)
    }

    /// The gateway serves.
    pub(crate) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// The gateway is about to end.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining");
    }

    /// Sends a datagram; a supervisor that is gone misses it.
    fn tell(&self, state: &str) {
        let Some(address) = &self.0 else { return };
        let sent = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(state.as_bytes(), address));
        if let Err(error) = sent {
            tracing::debug!("the supervisor cannot be told: {error}");
        }
    }
}

/// A path, or a name without a file after `@`.
fn address(name: &[u8]) -> Option<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix(b"@") {
        return SocketAddr::from_abstract_name(name).ok();
    }
    SocketAddr::from_pathname(std::str::from_utf8(name).ok()?).ok()
}
