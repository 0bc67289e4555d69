//! Expectations of a payload, and their check.

use std::net::SocketAddr;

use super::attacks::Case;
use super::recorder::{Received, Recorder};
use crate::support::raw_client::{RawClient, answers};

/// The expected response, connection state and upstream requests.
#[derive(Clone, Debug)]
pub(super) struct Expect {
    statuses: Vec<u16>,
    closes: bool,
    code: Option<&'static str>,
    seen: Vec<&'static str>,
    /// The upstream may have seen the beginning of a request.
    begun: bool,
    lacks: &'static [&'static str],
    has: &'static [(&'static str, &'static str)],
}

/// Answered with this status by the gateway itself, and the connection closed.
pub(super) fn refused(status: u16) -> Expect {
    Expect { closes: true, ..answered(status) }
}

/// Answered with this status by the gateway itself; the connection goes on.
pub(super) fn answered(status: u16) -> Expect {
    Expect { statuses: vec![status], ..forwarded(&[]) }
}

/// Closed without a word.
pub(super) fn closed() -> Expect {
    Expect { closes: true, ..forwarded(&[]) }
}

/// The upstream sees these, each as `METHOD target body`, and answers each with 200.
pub(super) fn forwarded(seen: &[&'static str]) -> Expect {
    Expect {
        statuses: seen.iter().map(|_| 200).collect(),
        closes: false,
        code: None,
        seen: seen.to_vec(),
        begun: false,
        lacks: &[],
        has: &[],
    }
}

impl Expect {
    /// Later bytes get this status, and the connection is closed.
    pub(super) fn then_refused(mut self, status: u16) -> Self {
        self.statuses.push(status);
        self.then_closed()
    }

    pub(super) fn then_closed(self) -> Self {
        Self { closes: true, ..self }
    }

    /// The problem's code.
    pub(super) fn saying(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The upstream has seen a request that broke off.
    pub(super) fn having_begun(self) -> Self {
        Self { begun: true, ..self }
    }

    /// The upstream answered so.
    pub(super) fn with_status(self, status: u16) -> Self {
        Self { statuses: vec![status], ..self }
    }

    /// The upstream does not see fields of these names.
    pub(super) fn without(self, lacks: &'static [&'static str]) -> Self {
        Self { lacks, ..self }
    }

    /// The upstream sees these fields.
    pub(super) fn with(self, has: &'static [(&'static str, &'static str)]) -> Self {
        Self { has, ..self }
    }
}

/// Sends a payload on a new connection, and describes a deviation from the expectation, if any.
pub(super) fn check(gateway: SocketAddr, upstream: &Recorder, case: &Case) -> Result<(), String> {
    let (_, request, expect) = case;
    // Those of a case that has failed are not this one's.
    upstream.take();
    let mut client = RawClient::connect(gateway);
    client.send(request.replace('⏎', "\r\n"));
    let mut all = Vec::new();
    if !expect.closes {
        for _ in &expect.statuses {
            match client.answer() {
                Ok(answer) => all.push(answer),
                Err(nothing) => return Err(format!("{all:?}, then {nothing:?}")),
            }
        }
        // Whatever it was, it is over: the connection's next request is answered as such.
        client.send("GET /alive HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
    }
    let rest = client.rest().map_err(|_| format!("{all:?}, and is not closed"))?;
    let (mut last, left) = answers(&rest);
    all.append(&mut last);
    let statuses: Vec<_> = all.iter().map(|answer| answer.status).collect();
    let alive = (!expect.closes).then_some((200, "GET /alive"));
    let expected: Vec<_> =
        expect.statuses.iter().copied().chain(alive.map(|(status, _)| status)).collect();
    if statuses != expected || !left.is_empty() {
        let left = String::from_utf8_lossy(left);
        return Err(format!("answered {statuses:?} {left}, expected {expected:?}"));
    }
    if let (Some(code), Some(first)) = (expect.code, all.first())
        && !first.text().contains(&format!("\"code\":\"{code}\""))
    {
        return Err(format!("it is not {code}: {}", first.text()));
    }
    let mut seen = upstream.take();
    if expect.begun {
        // The upstream may hear later than the client that it is over.
        while !seen.iter().any(Received::breaks_off) {
            seen.append(&mut upstream.wait());
        }
        seen.retain(|it| !it.breaks_off());
    }
    let what: Vec<_> = seen.iter().map(|it| it.what.as_str()).collect();
    let expected: Vec<_> = expect.seen.iter().copied().chain(alive.map(|(_, what)| what)).collect();
    if what != expected {
        return Err(format!("the upstream saw {what:?}, expected {expected:?}"));
    }
    let Some(first) = seen.first() else { return Ok(()) };
    if let Some(there) = expect.lacks.iter().find(|name| first.header(name).is_some()) {
        return Err(format!("the upstream saw {there}: {:?}", first.headers));
    }
    match expect.has.iter().find(|(name, value)| first.header(name) != Some(value)) {
        Some(other) => Err(format!("the upstream did not see {other:?}: {:?}", first.headers)),
        None => Ok(()),
    }
}
