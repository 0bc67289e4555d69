//! Health checks of an upstream's addresses.

use std::time::Duration;

use http::uri::PathAndQuery;
use idemptx_core::policy::Statuses;
use serde::{Deserialize, Deserializer};

use super::values::{count, positive, positive_millis, seconds};

/// The health checks of an upstream's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HealthCheck {
    /// The target of the `GET` request.
    #[serde(deserialize_with = "path")]
    pub path: PathAndQuery,
    /// The interval, which varies by a tenth.
    #[serde(rename = "interval_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<5>")]
    pub interval: Duration,
    /// The time limit, connecting included.
    #[serde(rename = "timeout_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<2>")]
    pub timeout: Duration,
    /// The number of consecutive successes that make an address healthy.
    #[serde(deserialize_with = "positive", default = "count::<2>")]
    pub healthy_after: u32,
    /// The number of consecutive failures that make an address unhealthy.
    #[serde(deserialize_with = "positive", default = "count::<3>")]
    pub unhealthy_after: u32,
    /// The statuses of a success.
    #[serde(deserialize_with = "statuses", default = "successful")]
    pub statuses: Statuses,
}

fn successful() -> Statuses {
    Statuses::classes(&[2])
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathAndQuery, D::Error> {
    let text = String::deserialize(deserializer)?;
    let path = text.parse().ok().filter(|_| text.starts_with('/'));
    path.ok_or_else(|| serde::de::Error::custom("a path begins with `/`"))
}

pub(super) fn statuses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Statuses, D::Error> {
    let mut all = Statuses::default();
    for status in Vec::<StatusOrClass>::deserialize(deserializer)? {
        all = all.and(match status {
            StatusOrClass::Class(class) => {
                match CLASSES.iter().zip(1..).find(|it| *it.0 == class) {
                    Some((_, class)) => Statuses::classes(&[class]),
                    None => return Err(serde::de::Error::custom(ADVICE)),
                }
            }
            StatusOrClass::One(status @ 100..=599) => Statuses::of(&[status]),
            StatusOrClass::One(_) => return Err(serde::de::Error::custom(ADVICE)),
        });
    }
    match all == Statuses::default() {
        true => Err(serde::de::Error::custom(ADVICE)),
        false => Ok(all),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StatusOrClass {
    Class(String),
    One(u16),
}

const ADVICE: &str = "write a list of statuses and classes, as `[204, \"3xx\"]`";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
