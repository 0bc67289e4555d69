//! The order of requests where there are too few connections.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Wake, Waker};

use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;
use crate::config::Config;

/// An address that may have one connection at a time, and its server.
fn with_one_connection() -> (Arc<Address>, UnixListener, TempDir) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("up.sock");
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:8080\"\n\
         [[upstream]]\nname = \"up\"\nurls = [\"unix:{}\"]\nconnections_max = 1\n\
         [[route]]\nupstream = \"up\"\n",
        path.display()
    );
    let config = Config::parse("gateway.toml", &text, |_| None).unwrap();
    let upstream = &config.upstreams[0];
    let address = Address::new(upstream.origins[0].clone(), None, upstream);
    (Arc::new(address), UnixListener::bind(&path).unwrap(), directory)
}

#[tokio::test]
async fn a_connection_that_is_returned_goes_to_the_first_that_waits() {
    let (address, _server, _directory) = with_one_connection();
    let in_use = address.connection(false).await.unwrap();
    let mut first = pin!(address.connection(false));
    let mut second = pin!(address.connection(false));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut cx).is_pending());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    in_use.release_connection();
    // It comes before those that were woken have run.
    let mut newcomer = pin!(address.connection(false));
    assert!(newcomer.as_mut().poll(&mut cx).is_pending());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    for waiting in [first, second, newcomer] {
        waiting.await.unwrap().release_connection();
    }
}

/// Counts the room that there is when it wakes.
struct RoomWhenWoken(Arc<Address>, AtomicU64);

impl Wake for RoomWhenWoken {
    fn wake(self: Arc<Self>) {
        self.1.store(self.0.room.available_permits() as u64, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn whoever_is_woken_by_a_connection_that_closes_finds_its_room() {
    let (address, _server, _directory) = with_one_connection();
    let permit = Arc::clone(&address.room).try_acquire_owned().unwrap();
    let slot = ConnectionSlot { _permit: permit, _freed: NotifyFreed(Arc::clone(&address)) };
    let woken = Arc::new(RoomWhenWoken(Arc::clone(&address), AtomicU64::new(u64::MAX)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut waiting = pin!(address.connection(false));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(slot);
    assert_eq!(woken.1.load(Ordering::Relaxed), 1);
}
