//! The limits of a route's requests, where they differ from those of its upstream and of clients.

use std::time::Duration;

use serde::Deserialize;

use super::values::optional_millis;
use super::{Limits, Upstream};

/// The limits of a route; what is not set is as for every other route. Zero means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RouteLimits {
    /// Requests or responses are streams: no time limit but those that are set here.
    pub stream: bool,
    /// The time limit from the end of the request to the head of the response.
    #[serde(rename = "response_timeout_ms", deserialize_with = "optional_millis")]
    pub response_timeout: Option<Duration>,
    /// The time limit of a pause within the response, or of a silent tunnel.
    #[serde(rename = "pause_timeout_ms", deserialize_with = "optional_millis")]
    pub pause_timeout: Option<Duration>,
    /// The time limit of a pause within the request's body.
    #[serde(rename = "body_pause_ms", deserialize_with = "optional_millis")]
    pub body_pause: Option<Duration>,
    /// The minimum average rate of the request's body in bytes per second.
    pub body_rate_min: Option<u64>,
    /// The maximum size of the request's body.
    pub body_bytes_max: Option<u64>,
}

impl RouteLimits {
    pub(crate) fn response_timeout(&self, upstream: &Upstream) -> Duration {
        self.time(self.response_timeout, upstream.response_timeout)
    }

    pub(crate) fn pause_timeout(&self, upstream: &Upstream) -> Duration {
        self.time(self.pause_timeout, upstream.pause_timeout)
    }

    pub(crate) fn body_pause(&self, limits: &Limits) -> Duration {
        self.time(self.body_pause, limits.pause)
    }

    pub(crate) fn body_rate_min(&self, limits: &Limits) -> u64 {
        self.body_rate_min.unwrap_or(if self.stream { 0 } else { limits.body_rate_min })
    }

    pub(crate) fn body_bytes_max(&self, limits: &Limits) -> u64 {
        match self.body_bytes_max {
            Some(0) => u64::MAX,
            Some(bytes) => bytes,
            None if self.stream => u64::MAX,
            None => limits.body_bytes_max,
        }
    }

    fn time(&self, own: Option<Duration>, usual: Duration) -> Duration {
        match own {
            Some(Duration::ZERO) => NEVER,
            Some(own) => own,
            None if self.stream => NEVER,
            None => usual,
        }
    }
}

/// Longer than any connection lives, and short enough to be added to a clock.
pub(crate) const NEVER: Duration = Duration::from_secs(365 * 86_400);
