//! The export of traces.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Deserializer};

use super::values::{is_server, positive_millis, seconds};

/// The export of traces.
///
/// A setting that is `None` comes from OpenTelemetry's environment variables, or is their default.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Traces {
    /// The URL that spans are sent to, with its path.
    #[serde(default, deserialize_with = "endpoint")]
    pub endpoint: Option<Uri>,
    /// A PEM file of certificate authorities, instead of the public ones.
    pub ca: Option<PathBuf>,
    /// Headers of the export requests, such as a token.
    #[serde(default, deserialize_with = "headers")]
    pub headers: HeaderMap,
    /// The service name of the gateway.
    pub service_name: Option<String>,
    /// The share of requests to trace if they come without a decision: 1 traces all.
    #[serde(default, deserialize_with = "ratio")]
    pub sample_ratio: Option<f64>,
    /// The time limit of an export request.
    #[serde(rename = "timeout_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<10>")]
    pub timeout: Duration,
    /// The maximum number of waiting spans; others are dropped.
    #[serde(deserialize_with = "queue", default = "queue_max")]
    pub queue_max: usize,
}

impl fmt::Debug for Traces {
    /// Omits the headers, which may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

const fn queue_max() -> usize {
    2048
}

/// A collector's URL, by default with the path of OTLP over HTTP.
fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uri>, D::Error> {
    let advice = || serde::de::Error::custom("write `http://host:port` or `https://host:port`");
    let uri: Uri = String::deserialize(deserializer)?.parse().map_err(|_| advice())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority().filter(|it| known && is_server(it));
    if authority.is_none() || uri.query().is_some() {
        return Err(advice());
    }
    if uri.path() != "/" {
        return Ok(Some(uri));
    }
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static(PATH));
    Uri::from_parts(parts).map(Some).map_err(|_| advice())
}

fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderMap, D::Error> {
    let lines = BTreeMap::<String, String>::deserialize(deserializer)?;
    let line = |(name, value): (String, String)| {
        // The value may be a secret: the message must not contain it.
        let refused = || serde::de::Error::custom(format!("`{name}` cannot be sent as a header"));
        let value = HeaderValue::try_from(value).map_err(|_| refused())?;
        Ok((HeaderName::try_from(&name).map_err(|_| refused())?, value))
    };
    lines.into_iter().map(line).collect()
}

fn ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    match f64::deserialize(deserializer)? {
        ratio if (0.0..=1.0).contains(&ratio) => Ok(Some(ratio)),
        _ => Err(serde::de::Error::custom("give a number from 0 to 1")),
    }
}

fn queue<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        spans @ 1..=QUEUE_GREATEST => Ok(spans),
        _ => Err(serde::de::Error::custom(format!("give 1 to {QUEUE_GREATEST}"))),
    }
}

const PATH: &str = "/v1/traces";
/// The queue is allocated at the start.
const QUEUE_GREATEST: usize = 100_000;
