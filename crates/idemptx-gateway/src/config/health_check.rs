//! How an upstream's addresses are asked whether they are well.

use std::time::Duration;

use http::uri::PathAndQuery;
use idemptx_core::policy::Statuses;
use serde::{Deserialize, Deserializer};

use super::values::{positive, positive_millis, saturated};

/// How each address of an upstream is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthCheck {
    /// What is asked for, with GET.
    pub path: PathAndQuery,
    /// How often, a tenth more or less.
    pub interval: Duration,
    /// How long it may take, connecting included.
    pub timeout: Duration,
    /// How many good answers in a row make it well.
    pub healthy_after: u32,
    /// How many bad ones in a row, or none, make it sick.
    pub unhealthy_after: u32,
    /// The statuses of good answers.
    pub statuses: Statuses,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthCheckTable {
    #[serde(deserialize_with = "path")]
    path: PathAndQuery,
    #[serde(default, deserialize_with = "positive_millis")]
    interval_ms: Option<Duration>,
    #[serde(default, deserialize_with = "positive_millis")]
    timeout_ms: Option<Duration>,
    #[serde(default, deserialize_with = "positive")]
    healthy_after: Option<u64>,
    #[serde(default, deserialize_with = "positive")]
    unhealthy_after: Option<u64>,
    #[serde(default, deserialize_with = "statuses")]
    statuses: Option<Statuses>,
}

impl From<HealthCheckTable> for HealthCheck {
    fn from(table: HealthCheckTable) -> Self {
        Self {
            path: table.path,
            interval: table.interval_ms.unwrap_or(INTERVAL),
            timeout: table.timeout_ms.unwrap_or(TIMEOUT),
            healthy_after: table.healthy_after.map_or(HEALTHY_AFTER, saturated),
            unhealthy_after: table.unhealthy_after.map_or(UNHEALTHY_AFTER, saturated),
            statuses: table.statuses.unwrap_or_else(|| Statuses::classes(&[2])),
        }
    }
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathAndQuery, D::Error> {
    let text = String::deserialize(deserializer)?;
    let path = text.parse().ok().filter(|_| text.starts_with('/'));
    path.ok_or_else(|| serde::de::Error::custom("a path begins with `/`"))
}

fn statuses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Statuses>, D::Error> {
    let mut all = Statuses::default();
    for status in Vec::<Status>::deserialize(deserializer)? {
        all = all.and(match status {
            Status::Class(class) => match CLASSES.iter().zip(1..).find(|it| *it.0 == class) {
                Some((_, class)) => Statuses::classes(&[class]),
                None => return Err(serde::de::Error::custom(ADVICE)),
            },
            Status::One(status @ 100..=599) => Statuses::of(&[status]),
            Status::One(_) => return Err(serde::de::Error::custom(ADVICE)),
        });
    }
    match all == Statuses::default() {
        true => Err(serde::de::Error::custom(ADVICE)),
        false => Ok(Some(all)),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Status {
    Class(String),
    One(u16),
}

const ADVICE: &str = "write a list of statuses and classes, as `[204, \"3xx\"]`";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(2);
const HEALTHY_AFTER: u32 = 2;
const UNHEALTHY_AFTER: u32 = 3;
