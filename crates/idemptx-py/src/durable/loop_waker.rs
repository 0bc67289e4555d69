//! Wakes an event loop when a store's steps can make progress.

use std::io::{self, Read, Write};
#[cfg(unix)]
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

#[cfg(not(unix))]
use std::net::TcpStream as Stream;
#[cfg(unix)]
use std::os::unix::net::UnixStream as Stream;

/// Notified from any thread, drained in the event loop's thread.
///
/// Notifying takes no interpreter lock, so that a store's thread never waits for a busy loop.
pub(super) struct LoopWaker {
    /// The tasks woken since the last drain.
    woken: Mutex<Vec<u64>>,
    sender: Stream,
    receiver: Stream,
}

impl LoopWaker {
    pub(super) fn new() -> io::Result<Self> {
        let (sender, receiver) = pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        Ok(Self { woken: Mutex::default(), sender, receiver })
    }

    /// The descriptor that is readable while tasks are woken, for the event loop to watch.
    pub(super) fn descriptor(&self) -> i64 {
        #[cfg(unix)]
        return i64::from(self.receiver.as_raw_fd());
        #[cfg(not(unix))]
        return std::os::windows::io::AsRawSocket::as_raw_socket(&self.receiver) as i64;
    }

    fn notify(&self, id: u64) {
        let is_first = {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            woken.push(id);
            woken.len() == 1
        };
        if is_first {
            // A write fails only when the buffer is full, and then the descriptor is readable.
            let _ = (&self.sender).write(&[1]);
        }
    }

    /// Takes the woken tasks. The descriptor is drained first, so that later wake-ups are signalled.
    pub(super) fn answer(&self) -> Vec<u64> {
        let mut rings = [0; 64];
        let _ = (&self.receiver).read(&mut rings);
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Wakes one task.
pub(super) struct TaskWaker {
    pub(super) loop_waker: Arc<LoopWaker>,
    pub(super) id: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.loop_waker.notify(self.id);
    }
}

#[cfg(unix)]
fn pair() -> io::Result<(Stream, Stream)> {
    Stream::pair()
}

/// Replaces the socket pair, where the platform has none, by a loopback connection.
#[cfg(not(unix))]
fn pair() -> io::Result<(Stream, Stream)> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let sender = Stream::connect(listener.local_addr()?)?;
    loop {
        let (receiver, caller) = listener.accept()?;
        if caller == sender.local_addr()? {
            return Ok((sender, receiver));
        }
    }
}
