//! Where traces go.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::error::{InvalidConfig, SourceText};
use super::values::{positive_millis, saturated};

/// Where traces go, and how many of them.
///
/// What is `None` is as the standard environment variables of OpenTelemetry say, or else its
/// default.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Traces {
    /// Where spans are sent, its path included.
    pub endpoint: Option<Uri>,
    /// Authorities of the collector's certificate in place of the public ones, as PEM.
    pub ca: Option<PathBuf>,
    /// What spans are sent with, such as a token.
    pub headers: HeaderMap,
    /// What the gateway calls itself.
    pub service_name: Option<String>,
    /// How many of the requests are traced that come without a decision: 1 is all of them.
    pub sample_ratio: Option<f64>,
    /// How long the collector may take for an answer.
    pub timeout: Duration,
    /// How many spans may wait to be sent; others are dropped.
    pub queue_max: usize,
}

impl fmt::Debug for Traces {
    /// Without what may be a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TracesTable {
    #[serde(default, deserialize_with = "endpoint")]
    endpoint: Option<Uri>,
    ca: Option<PathBuf>,
    #[serde(default, deserialize_with = "headers")]
    headers: HeaderMap,
    service_name: Option<String>,
    #[serde(default, deserialize_with = "ratio")]
    sample_ratio: Option<f64>,
    #[serde(default, deserialize_with = "positive_millis")]
    timeout_ms: Option<Duration>,
    #[serde(default, deserialize_with = "queue")]
    queue_max: Option<u64>,
}

impl TracesTable {
    pub(super) fn checked(
        table: Spanned<Self>,
        source: SourceText<'_>,
    ) -> Result<Traces, InvalidConfig> {
        if !cfg!(feature = "otel") {
            return Err(source.error_at(&table.span(), ABSENT));
        }
        let table = table.into_inner();
        Ok(Traces {
            endpoint: table.endpoint,
            ca: table.ca,
            headers: table.headers,
            service_name: table.service_name,
            sample_ratio: table.sample_ratio,
            timeout: table.timeout_ms.unwrap_or(TIMEOUT),
            queue_max: table.queue_max.map_or(QUEUE_MAX, saturated),
        })
    }
}

/// A collector's URL; without a path, spans go where OTLP over HTTP expects them.
fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uri>, D::Error> {
    let advice = || serde::de::Error::custom("write `http://host:port` or `https://host:port`");
    let uri: Uri = String::deserialize(deserializer)?.parse().map_err(|_| advice())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority().filter(|it| known && !it.as_str().contains('@'));
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
        // The value may be a secret, so that no message has it.
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

fn queue<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match u64::deserialize(deserializer)? {
        spans @ 1..=QUEUE_GREATEST => Ok(Some(spans)),
        _ => Err(serde::de::Error::custom(format!("give 1 to {QUEUE_GREATEST}"))),
    }
}

const ABSENT: &str = "this program was built without traces: build it with `--features otel`";
const PATH: &str = "/v1/traces";
const TIMEOUT: Duration = Duration::from_secs(10);
const QUEUE_MAX: usize = 2048;
/// The room is taken when the gateway starts.
const QUEUE_GREATEST: u64 = 100_000;
