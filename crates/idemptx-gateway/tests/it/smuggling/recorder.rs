//! An upstream that records its requests, and parses them as strictly as possible.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// An upstream that responds to every request with 200.
#[derive(Debug)]
pub(crate) struct Recorder {
    address: SocketAddr,
    seen: Arc<(Mutex<Vec<Received>>, Condvar)>,
}

/// A request, or the reason why bytes are none.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// `METHOD target body`, or the error.
    pub(crate) what: String,
    /// The headers, with names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Received {
    /// Returns whether it is an incomplete request.
    pub(crate) fn breaks_off(&self) -> bool {
        self.what.starts_with("nonsense: ") && self.what.contains("break")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Recorder {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let all = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seen) = (stream.unwrap(), Arc::clone(&all));
                thread::spawn(move || serve(stream, &seen));
            }
        });
        Self { address, seen }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes everything since the last call.
    pub(crate) fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *self.seen.0.lock().unwrap())
    }

    /// Does the same, once there is something.
    pub(crate) fn wait(&self) -> Vec<Received> {
        let (seen, changed) = &*self.seen;
        let (mut seen, waited) = changed
            .wait_timeout_while(seen.lock().unwrap(), PATIENCE, |seen| seen.is_empty())
            .unwrap();
        assert!(!waited.timed_out(), "the upstream received nothing");
        std::mem::take(&mut *seen)
    }
}

fn serve(stream: TcpStream, (seen, changed): &(Mutex<Vec<Received>>, Condvar)) {
    let mut answers = stream.try_clone().unwrap();
    let mut stream = BufReader::new(stream);
    let mut count = 0;
    loop {
        match request(&mut stream) {
            Ok(None) => return,
            Ok(Some(request)) => {
                let redirect = request.what.contains("/redirect");
                count += 1;
                seen.lock().unwrap().push(request);
                changed.notify_all();
                let (status, body) =
                    if redirect { ("302 Found", "there") } else { ("200 OK", "ok") };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLocation: http://127.0.0.1:1/\r\n\
                     X-Count: {count}\r\n\r\n{body}",
                    body.len()
                );
                if answers.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Err(wrong) => {
                // A head whose body the client broke off is no request.
                let what = format!("nonsense: {wrong}");
                seen.lock().unwrap().push(Received { what, headers: Vec::new() });
                changed.notify_all();
                return;
            }
        }
    }
}

fn request(stream: &mut impl BufRead) -> Result<Option<Received>, String> {
    let Some(line) = line(stream)? else { return Ok(None) };
    let mut headers = Vec::new();
    loop {
        let field = self::line(stream)?.ok_or("the head breaks off")?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').ok_or(format!("no colon in {field:?}"))?;
        if name.is_empty() || name.contains(|it: char| !it.is_ascii_graphic()) {
            return Err(format!("the name {name:?}"));
        }
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let all = |name: &str| -> Vec<&str> {
        let found = headers.iter().filter(|(it, _)| it == name);
        found.map(|(_, value)| value.as_str()).collect()
    };
    let body = match (&*all("content-length"), &*all("transfer-encoding")) {
        ([], []) => Vec::new(),
        ([length], []) => {
            let mut body = vec![0; length.parse().map_err(|_| format!("length {length:?}"))?];
            stream.read_exact(&mut body).map_err(|_| "the body breaks off".to_owned())?;
            body
        }
        ([], ["chunked"]) => chunks(stream, &mut headers)?,
        (lengths, codings) => return Err(format!("framing {lengths:?} {codings:?}")),
    };
    let (line, version) = line.rsplit_once(' ').ok_or(format!("the line {line:?}"))?;
    if version != "HTTP/1.1" || line.matches(' ').count() != 1 {
        return Err(format!("the line {line:?}"));
    }
    let what = format!("{line} {}", String::from_utf8_lossy(&body)).trim_end().to_owned();
    Ok(Some(Received { what, headers }))
}

fn chunks(
    stream: &mut impl BufRead,
    headers: &mut Vec<(String, String)>,
) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let size = line(stream)?.ok_or("the chunks break off")?;
        let bytes = usize::from_str_radix(&size, 16).map_err(|_| format!("chunk {size:?}"))?;
        if bytes == 0 {
            break;
        }
        let mut chunk = vec![0; bytes + 2];
        stream.read_exact(&mut chunk).map_err(|_| "a chunk breaks off".to_owned())?;
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk's end".to_owned());
        }
        chunk.truncate(bytes);
        body.append(&mut chunk);
    }
    while let Some(trailer) = line(stream)?.filter(|it| !it.is_empty()) {
        let (name, value) = trailer.split_once(':').ok_or("a trailer without a colon")?;
        headers.push((format!("trailer {}", name.to_ascii_lowercase()), value.trim().to_owned()));
    }
    Ok(body)
}

/// A line that ends with CRLF and has no other of them; `None` at the end.
fn line(stream: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    match stream.read_until(b'\n', &mut line) {
        // A connection that is reset while it is idle is over as well.
        Ok(0) | Err(_) if line.is_empty() => return Ok(None),
        _ => {}
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let line = line.strip_suffix(b"\r\n").ok_or(format!("the line's end in {text:?}"))?;
    if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(format!("control characters in {text:?}"));
    }
    Ok(Some(String::from_utf8_lossy(line).into_owned()))
}

const PATIENCE: Duration = Duration::from_secs(30);
