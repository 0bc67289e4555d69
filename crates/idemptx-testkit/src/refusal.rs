//! Refusals by servers, in the bytes of their protocols.

/// An error with which a server refuses a request without executing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Redis, with the text of the error, code first.
    Redis(&'static str),
    /// PostgreSQL, with the code of the error.
    Postgres(&'static str),
}

impl Refusal {
    /// Returns the answers to all requests in these bytes; `None` if they are no whole requests of
    /// an open session.
    pub fn answer_to(self, requests: &[u8]) -> Option<Vec<u8>> {
        let (count, answer) = match self {
            Self::Redis(text) => (commands_in(requests)?, format!("-{text}\r\n").into_bytes()),
            Self::Postgres(code) => (queries_in(requests)?, error_response(code)),
        };
        (count > 0).then(|| answer.repeat(count))
    }
}

/// Counts commands of RESP.
fn commands_in(mut bytes: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !bytes.is_empty() {
        let arguments = number(&mut bytes, b'*')?;
        for _ in 0..arguments {
            let length = number(&mut bytes, b'$')?;
            bytes = bytes.get(length + 2..)?;
        }
        count += 1;
    }
    Some(count)
}

/// Takes a line with this first byte and a number.
fn number(bytes: &mut &[u8], first: u8) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (bytes.get(..end)?, bytes.get(end + 2..)?);
    *bytes = rest;
    std::str::from_utf8(line.strip_prefix(&[first])?).ok()?.parse().ok()
}

/// Counts what PostgreSQL answers with an error and its readiness: simple queries, and groups of
/// messages that end with `Sync`.
fn queries_in(mut bytes: &[u8]) -> Option<usize> {
    let mut count = 0;
    while let Some((kind, rest)) = bytes.split_first() {
        // A session begins with a message that has no kind.
        if !kind.is_ascii_alphabetic() {
            return None;
        }
        let length = u32::from_be_bytes(*rest.first_chunk()?);
        bytes = rest.get(usize::try_from(length).ok()?..)?;
        match kind {
            b'Q' | b'S' => count += 1,
            b'p' | b'X' => return None,
            _ => {}
        }
    }
    Some(count)
}

fn error_response(code: &str) -> Vec<u8> {
    let fields = format!("SERROR\0VERROR\0C{code}\0Mas the test wants it\0\0");
    let mut answer = vec![b'E'];
    answer.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
    answer.extend(fields.into_bytes());
    // Ready for the next query, in no transaction.
    answer.extend(b"Z\0\0\0\x05I");
    answer
}
