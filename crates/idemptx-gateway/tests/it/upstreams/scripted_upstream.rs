//! An upstream that follows a script for one request, and behaves for all others.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// The reaction to one request.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// The bytes to send, part by part.
    pub(crate) said: &'static [&'static str],
    /// The number of times the last part is sent.
    pub(crate) repeated: usize,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The connection is closed.
    Closed,
    /// The connection is reset.
    Reset,
    /// No more bytes are sent.
    Hung,
    /// Further requests get proper responses.
    Open,
}

/// An upstream with a queue of scripts.
#[derive(Debug)]
pub(crate) struct ScriptedUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    scripts: Mutex<VecDeque<Script>>,
    reused: AtomicUsize,
}

impl ScriptedUpstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared: Arc<Shared> = Arc::default();
        let all = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&all));
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds the script of the next request.
    pub(crate) fn next(&self, script: Script) {
        self.shared.scripts.lock().unwrap().push_back(script);
    }

    /// Takes the number of requests on connections that had misbehaved before.
    pub(crate) fn take_reused(&self) -> usize {
        self.shared.reused.swap(0, Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut misbehaved = false;
    while request(&mut stream) {
        shared.reused.fetch_add(usize::from(misbehaved), Ordering::SeqCst);
        let Some(script) = shared.scripts.lock().unwrap().pop_front() else {
            finish(&mut stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine");
            continue;
        };
        misbehaved = true;
        let (last, first) = script.said.split_last().unwrap_or((&"", &[]));
        let last = std::iter::repeat_n(last, script.repeated.max(1));
        for part in first.iter().chain(last) {
            if stream.write_all(part.as_bytes()).is_err() {
                return;
            }
        }
        // With a byte unread the system resets the connection.
        if matches!(script.end, End::Reset) {
            return;
        }
        finish(&mut stream);
        match script.end {
            End::Hung => return wait_for_end(&mut stream),
            End::Open => {}
            End::Closed | End::Reset => return,
        }
    }
}

/// Reads a request with a body of two bytes but for its last one, which is there; `false` if none
/// comes.
fn request(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\nh") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => bytes.extend_from_slice(&byte),
            _ => return false,
        }
    }
    matches!(stream.peek(&mut [0]), Ok(1))
}

/// Reads the last byte.
fn finish(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0]);
}

fn wait_for_end(stream: &mut TcpStream) {
    while stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
}
