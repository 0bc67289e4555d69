//! A service that counts executions by key, and can be held up.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Responds to each POST with `201 <name> <key> <executions of this key>`.
#[derive(Clone, Debug)]
pub(crate) struct CountingService {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    name: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    executions: HashMap<String, usize>,
    held: bool,
}

impl CountingService {
    pub(crate) fn start(name: &str) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), name)
    }

    /// Starts one on a listener that exists already.
    pub(crate) fn on(listener: TcpListener, name: &str) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { name: name.to_owned(), ..Shared::default() });
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

    /// Returns the number of executions of each key.
    pub(crate) fn executions(&self) -> HashMap<String, usize> {
        self.state().executions.clone()
    }

    /// Holds all executions from now on.
    pub(crate) fn hold(&self) {
        self.state().held = true;
    }

    /// Finishes the held executions.
    pub(crate) fn release(&self) {
        self.state().held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until this many executions have started in total.
    pub(crate) fn begun(&self, count: usize) {
        let too_few = |state: &mut State| state.executions.values().sum::<usize>() < count;
        let waited = self.shared.changed.wait_timeout_while(self.state(), PATIENCE, too_few);
        let (state, waited) = waited.unwrap();
        assert!(
            !waited.timed_out(),
            "fewer than {count} executions have started: {:?}",
            state.executions
        );
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let mut requests = BufReader::new(stream);
    while let Some(key) = request(&mut requests) {
        let count = executed(shared, &key);
        let body = format!("{} {key} {count}", shared.name);
        let answer =
            format!("HTTP/1.1 201 Created\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if answers.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn executed(shared: &Shared, key: &str) -> usize {
    let mut state = shared.state.lock().unwrap();
    let count = state.executions.entry(key.to_owned()).or_default();
    *count += 1;
    let count = *count;
    shared.changed.notify_all();
    drop(shared.changed.wait_while(state, |state| state.held).unwrap());
    count
}

/// Reads a request and returns its key, or `-`.
fn request(requests: &mut impl BufRead) -> Option<String> {
    let (mut key, mut length) = ("-".to_owned(), 0);
    loop {
        let mut line = String::new();
        if requests.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("idempotency-key") => {
                key = value.trim_matches('"').to_owned();
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?;
            }
            _ => {}
        }
    }
    requests.read_exact(&mut vec![0; length]).ok()?;
    Some(key)
}

const PATIENCE: Duration = Duration::from_secs(20);
