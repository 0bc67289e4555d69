//! What tells an event loop that steps can go on.

use std::io::{self, Read, Write};
#[cfg(unix)]
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

#[cfg(not(unix))]
use std::net::TcpStream as Stream;
#[cfg(unix)]
use std::os::unix::net::UnixStream as Stream;

/// Rung from any thread, answered in the event loop's.
///
/// Ringing takes no lock of Python's, so that a store's thread never waits for a busy loop.
pub(super) struct Bell {
    /// For what was rung since it was last answered.
    rung: Mutex<Vec<u64>>,
    rope: Stream,
    clapper: Stream,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let (rope, clapper) = pair()?;
        rope.set_nonblocking(true)?;
        clapper.set_nonblocking(true)?;
        Ok(Self { rung: Mutex::default(), rope, clapper })
    }

    /// What is readable while it rings, for the event loop to watch.
    pub(super) fn descriptor(&self) -> i64 {
        #[cfg(unix)]
        return i64::from(self.clapper.as_raw_fd());
        #[cfg(not(unix))]
        return std::os::windows::io::AsRawSocket::as_raw_socket(&self.clapper) as i64;
    }

    fn ring(&self, id: u64) {
        let is_first = {
            let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
            rung.push(id);
            rung.len() == 1
        };
        if is_first {
            // It fails only where it is full, which is as readable as can be.
            let _ = (&self.rope).write(&[1]);
        }
    }

    /// What was rung for. First it is silenced, so that what rings in between rings again.
    pub(super) fn answer(&self) -> Vec<u64> {
        let mut rings = [0; 64];
        let _ = (&self.clapper).read(&mut rings);
        std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Rings for one task.
pub(super) struct Rope {
    pub(super) bell: Arc<Bell>,
    pub(super) id: u64,
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bell.ring(self.id);
    }
}

#[cfg(unix)]
fn pair() -> io::Result<(Stream, Stream)> {
    Stream::pair()
}

/// Where there is no such thing, a connection to ourselves.
#[cfg(not(unix))]
fn pair() -> io::Result<(Stream, Stream)> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let rope = Stream::connect(listener.local_addr()?)?;
    loop {
        let (clapper, caller) = listener.accept()?;
        if caller == rope.local_addr()? {
            return Ok((rope, clapper));
        }
    }
}
