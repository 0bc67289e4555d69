//! The access log: one line for each request, at the end of its response.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Method, Version};

use crate::config::{AccessFormat, Log};
use crate::logging;
use crate::network::ClientAddress;

/// A request whose response's head is ready; logged when dropped, at the end of the response.
///
/// # Security
///
/// It contains neither the query nor header values, save the request's id, nor bodies.
#[derive(Debug)]
pub(crate) struct AccessLine {
    pub(crate) log: Log,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) version: Version,
    pub(crate) client: ClientAddress,
    pub(crate) request_id: HeaderValue,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) upstream: Option<String>,
    pub(crate) status: u16,
    pub(crate) code: Option<&'static str>,
    pub(crate) outcome: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) attempt: Option<u32>,
    pub(crate) record: Option<String>,
    /// The address that answered, and after which time.
    pub(crate) answered: Option<AnsweredBy>,
    pub(crate) began: Instant,
    /// The time to the head of the response.
    pub(crate) head: Duration,
    /// Bytes of the request's body.
    pub(crate) received: Arc<AtomicU64>,
    /// Bytes of the response's body.
    pub(crate) sent: u64,
    /// True once the client has got all of the response.
    pub(crate) is_complete: bool,
}

/// An extension of responses: the address of the upstream that answered.
#[derive(Clone, Debug)]
pub(crate) struct AnsweredBy {
    pub(crate) address: Arc<str>,
    pub(crate) took: Duration,
}

impl AccessLine {
    /// Returns whether requests are logged at all.
    pub(crate) fn is_wanted(log: Log) -> bool {
        log.access || tracing::enabled!(target: "idemptx::access", tracing::Level::DEBUG)
    }

    fn fields(&self, took: Duration) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "idemptx::access",
                    method = self.method.as_str(),
                    path = self.path,
                    client = %self.client,
                    request_id = self.request_id.to_str().unwrap_or_default(),
                    route = self.route.as_deref(),
                    upstream = self.upstream,
                    address = self.answered.as_ref().map(|it| &*it.address),
                    status = self.status,
                    code = self.code,
                    outcome = self.outcome,
                    reason = (!self.reason.is_empty()).then_some(self.reason),
                    attempt = self.attempt,
                    record = self.record,
                    bytes_in = self.received.load(Ordering::Relaxed),
                    bytes_out = self.sent,
                    upstream_ms = self.answered.as_ref().map(|it| millis(it.took)),
                    head_ms = millis(self.head),
                    took_ms = millis(took),
                    client_gone = (!self.is_complete).then_some(true),
                )
            };
        }
        if self.log.access {
            line!(info);
        } else {
            line!(debug);
        }
    }

    /// Returns the line in the common log format, with further fields after it.
    fn common(&self, took: Duration, now: Duration) -> String {
        let mut line = format!("{} - - [{}] \"{} ", self.client, timestamp(now), self.method);
        for character in self.path.chars() {
            match character {
                '"' | '\\' => line.extend(['\\', character]),
                it if it.is_control() => line.extend(it.escape_default()),
                it => line.push(it),
            }
        }
        let protocol = match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        };
        // Writing to a String does not fail.
        let _ = write!(line, " {protocol}\" {} {}", self.status, self.sent);
        let id = self.request_id.to_str().unwrap_or_default();
        let optional = [
            ("request_id", Some(id)),
            ("route", self.route.as_deref()),
            ("upstream", self.upstream.as_deref()),
            ("outcome", Some(self.outcome)),
            ("reason", Some(self.reason).filter(|it| !it.is_empty())),
            ("record", self.record.as_deref()),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                let _ = write!(line, " {name}={}", logging::unquoted(&format!("{value:?}")));
            }
        }
        let _ = writeln!(line, " took_ms={}", millis(took));
        line
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        match self.log.access_format {
            AccessFormat::Common if self.log.access => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                logging::stderr().line(self.common(took, now).into_bytes());
            }
            _ => self.fields(took),
        }
    }
}

/// Formats a time in UTC as the common log format does: `29/Nov/2026:03:01:12 +0000`.
fn timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar repeats every 400 years; counted from March, a leap day ends its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 2, 0) } else { (month - 10, 1) };
    let year = year + era * 400 + next_year;
    let name = MONTHS.get(usize::try_from(month).unwrap_or_default()).copied().unwrap_or_default();
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{day:02}/{name}/{year}:{hour:02}:{minute:02}:{second:02} +0000")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_space_is_one_value() {
        let line = AccessLine {
            log: Log::default(),
            method: Method::POST,
            path: "/a\"b".to_owned(),
            version: Version::HTTP_2,
            client: ClientAddress::UnixSocket,
            request_id: HeaderValue::from_static("r-1"),
            route: Some("everything else".into()),
            upstream: Some("shop".to_owned()),
            status: 201,
            code: None,
            outcome: "executed",
            reason: "",
            attempt: None,
            record: None,
            answered: None,
            began: Instant::now(),
            head: Duration::ZERO,
            received: Arc::default(),
            sent: 7,
            is_complete: true,
        };
        let shown = line.common(Duration::from_millis(5), Duration::ZERO);
        let expected = "unix: - - [01/Jan/1970:00:00:00 +0000] \"POST /a\\\"b HTTP/2.0\" 201 7 \
            request_id=r-1 route=\"everything else\" upstream=shop outcome=executed took_ms=5\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "01/Jan/1970:00:00:00 +0000"),
            (951_782_400, "29/Feb/2000:00:00:00 +0000"),
            (1_709_251_199, "29/Feb/2024:23:59:59 +0000"),
            (1_795_921_272, "29/Nov/2026:03:01:12 +0000"),
            (4_102_444_799, "31/Dec/2099:23:59:59 +0000"),
            (4_107_542_400, "01/Mar/2100:00:00:00 +0000"),
        ] {
            assert_eq!(timestamp(Duration::from_secs(seconds)), text);
        }
    }
}
