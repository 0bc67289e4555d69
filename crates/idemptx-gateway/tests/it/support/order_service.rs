//! A service without protection, whose responses count.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Counts its executions; `/fail` answers 503, `/slow` waits until opened, `/die` closes the connection, `/half` does so
/// in the middle of its response.
#[derive(Clone, Debug)]
pub(crate) struct OrderService {
    pub(crate) address: SocketAddr,
    shared: Arc<(Mutex<Counted>, Condvar)>,
}

#[derive(Debug, Default)]
struct Counted {
    executed: usize,
    is_open: bool,
}

impl OrderService {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Self { address, shared: Arc::default() };
        let serving = upstream.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || while serving.answer(&stream).is_some() {});
            }
        });
        upstream
    }

    pub(crate) fn executed(&self) -> usize {
        self.shared.0.lock().unwrap().executed
    }

    /// Waits until this many requests have arrived.
    pub(crate) fn reach(&self, executed: usize) {
        let (counted, told) = &*self.shared;
        let counted = counted.lock().unwrap();
        let limit = Duration::from_secs(20);
        let waited = told.wait_timeout_while(counted, limit, |it| it.executed < executed).unwrap();
        assert!(!waited.1.timed_out(), "fewer than {executed} requests have arrived");
    }

    /// Lets `/slow` respond from now on.
    pub(crate) fn open(&self) {
        self.shared.0.lock().unwrap().is_open = true;
        self.shared.1.notify_all();
    }

    fn answer(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (counted, told) = &*self.shared;
        let mut counted = counted.lock().unwrap();
        counted.executed += 1;
        let number = counted.executed;
        told.notify_all();
        if path.starts_with("/slow") {
            counted = told.wait_while(counted, |counted| !counted.is_open).unwrap();
        }
        drop(counted);
        if path.starts_with("/die") {
            return None;
        }
        let body = format!("{{\"n\":{number}}}");
        let is_failure = path.starts_with("/fail");
        let status = if is_failure { "503 Service Unavailable" } else { "201 Created" };
        let breaks_off = path.starts_with("/half");
        let length = if breaks_off { body.len() * 2 } else { body.len() };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n"
        );
        (&mut &*stream).write_all(format!("{head}\r\n{body}").as_bytes()).ok()?;
        (!breaks_off).then_some(())
    }
}
