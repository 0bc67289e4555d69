//! Origins whose scripts may read the answers that the gateway gives itself.

use http::HeaderValue;
use serde::{Deserialize, Deserializer};

/// The origins whose scripts may read refusals and replays (the CORS protocol of Fetch, §3.3).
///
/// The upstream answers preflights, and adds its own fields to its own answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Cors {
    /// The origins, such as `https://shop.example`, or `*` alone.
    #[serde(deserialize_with = "origins")]
    pub origins: Vec<HeaderValue>,
    /// Scripts may send cookies and read the answers.
    #[serde(default)]
    pub credentials: bool,
}

impl Cors {
    /// Returns whether browsers would refuse every answer (Fetch, §3.3.5).
    pub(super) fn is_refused_by_browsers(&self) -> bool {
        self.credentials && self.origins.iter().any(|it| it == ANY)
    }

    /// Returns the value of `Access-Control-Allow-Origin` for a request from this origin.
    pub(crate) fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.origins.iter().any(|it| it == ANY) {
            return Some(HeaderValue::from_static(ANY));
        }
        self.origins.contains(origin).then(|| origin.clone())
    }
}

fn origins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HeaderValue>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| {
        let is_origin = text == ANY
            || text.split_once("://").is_some_and(|(scheme, authority)| {
                !scheme.is_empty() && !authority.is_empty() && !authority.contains('/')
            });
        HeaderValue::from_str(text).ok().filter(|_| is_origin)
    };
    let origins: Option<Vec<_>> = texts.iter().map(parse).collect();
    origins.filter(|origins| !origins.is_empty()).ok_or_else(|| {
        serde::de::Error::custom(
            "write origins as a browser sends them, such as `https://shop.example`, or `*`",
        )
    })
}

const ANY: &str = "*";
