//! What the gateway is seen to do: counted, told to the inspector, and written to the log.
//!
//! The library knows nothing of this: a request's end is read from its
//! [`Outcome`](idemptx::Outcome), and the store is wrapped.

mod health;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use idemptx::Outcome;
use idemptx_core::key::RecordId;

pub(crate) use self::health::Health;
pub(crate) use self::store::Observed;
use crate::admin::story::{Event, Story};
use crate::metrics::{Metrics, UpstreamAnswer, words};
use crate::traces::Traces;

/// Sees everything; shared by all that happens.
#[derive(Debug)]
pub(crate) struct Observer {
    /// `None` without an admin listener, where nobody would ever look.
    eyes: Option<Eyes>,
    /// Whether every request is worth a line at the level `info`.
    log_access: bool,
    health: Health,
    traces: Traces,
}

#[derive(Debug)]
struct Eyes {
    metrics: Metrics,
    story: Story,
}

/// A request that has its answer.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) method: &'a Method,
    /// Without the query.
    pub(crate) path: &'a str,
    /// `None` if it is for no route.
    pub(crate) route: Option<&'a Arc<str>>,
    pub(crate) status: u16,
    pub(crate) outcome: Option<&'a Outcome>,
    /// Of the record that its key names.
    pub(crate) record: Option<&'a RecordId>,
    /// When its head had come.
    pub(crate) began: Instant,
}

impl Observer {
    /// One that only writes the log.
    pub(crate) fn logging(log_access: bool) -> Self {
        Self { eyes: None, log_access, health: Health::new(), traces: Traces::none() }
    }

    /// One that counts, too, for an admin listener.
    pub(crate) fn counting(log_access: bool) -> Self {
        let eyes = Eyes { metrics: Metrics::new(), story: Story::new() };
        Self { eyes: Some(eyes), ..Self::logging(log_access) }
    }

    /// The same, with traces.
    pub(crate) fn tracing(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.eyes.as_ref().map(|eyes| &eyes.metrics)
    }

    pub(crate) const fn health(&self) -> &Health {
        &self.health
    }

    pub(crate) const fn traces(&self) -> &Traces {
        &self.traces
    }

    pub(crate) fn story(&self) -> Option<&Story> {
        self.eyes.as_ref().map(|eyes| &eyes.story)
    }

    /// A request has its answer.
    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        let took = ended.began.elapsed();
        self.log(ended, took);
        let Some(Eyes { metrics, story }) = &self.eyes else { return };
        if let Some(route) = ended.route {
            metrics.request(route, ended.outcome, took);
        }
        let Some(id) = ended.record else { return };
        match ended.outcome {
            Some(Outcome::Replayed | Outcome::Fenced { code: None, .. }) => {
                story.tell_replayed(id, ended.began);
            }
            Some(Outcome::Refused(code) | Outcome::Fenced { code: Some(code), .. }) => {
                story.tell(id, Event::Refused(*code))
            }
            Some(Outcome::Executed { stored, .. }) => {
                story.tell(id, Event::Executed { stored: *stored });
            }
            _ => {}
        }
    }

    /// One line for a request.
    ///
    /// # Security
    ///
    /// Neither a query nor a header's value nor a body is in it, at any level.
    fn log(&self, ended: &Ended<'_>, took: Duration) {
        let (outcome, reason) = words(ended.outcome);
        let attempt = match ended.outcome {
            Some(Outcome::Executed { attempt, .. } | Outcome::Fenced { attempt, .. }) => {
                Some(*attempt)
            }
            _ => None,
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "idemptx::access",
                    method = ended.method.as_str(),
                    path = ended.path,
                    route = ended.route.map(|it| &**it),
                    status = ended.status,
                    outcome,
                    reason = (!reason.is_empty()).then_some(reason),
                    attempt,
                    key = ended.record.map(hashed),
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                )
            };
        }
        if self.log_access {
            line!(info);
        } else {
            line!(debug);
        }
    }

    /// An upstream answered, or did not.
    pub(crate) fn upstream(&self, upstream: &Arc<str>, answer: UpstreamAnswer, took: Duration) {
        if let Some(metrics) = self.metrics() {
            metrics.upstream(upstream, answer, took);
        }
    }

    /// A client has connected; tells of its end when dropped.
    pub(crate) fn connected(self: &Arc<Self>) -> Connected {
        if let Some(metrics) = self.metrics() {
            metrics.connected();
        }
        Connected(Arc::clone(self))
    }

    /// A configuration was read again.
    pub(crate) fn reloaded(&self, taken: bool) {
        if let Some(metrics) = self.metrics() {
            metrics.reloaded(taken);
        }
    }
}

/// Counts as a connection until dropped.
#[derive(Debug)]
pub(crate) struct Connected(Arc<Observer>);

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(metrics) = self.0.metrics() {
            metrics.disconnected();
        }
    }
}

/// The first digits of an id: enough to find lines that belong together, too few to find a key.
pub(crate) fn hashed(id: &RecordId) -> String {
    id.as_bytes().iter().skip(KEY_AT).take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Where the half of an id begins that names the key.
const KEY_AT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_by_eight_digits_of_the_half_that_names_it() {
        let id = "00112233445566778899aabbccddeeff:8e03978e0123456789abcdef01234567";
        assert_eq!(hashed(&id.parse().unwrap()), "8e03978e");
    }
}
