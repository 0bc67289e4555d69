//! Deserialisers and defaults of single values.

use std::time::Duration;

use http::Method;
use http::uri::Authority;
use serde::{Deserialize, Deserializer};

use super::Origin;

pub(super) const fn yes() -> bool {
    true
}

pub(super) const fn seconds<const N: u64>() -> Duration {
    Duration::from_secs(N)
}

pub(super) const fn count<const N: u32>() -> u32 {
    N
}

pub(super) fn origins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Origin>, D::Error> {
    let urls = Vec::<String>::deserialize(deserializer)?;
    if urls.is_empty() {
        return Err(serde::de::Error::custom("give at least one URL"));
    }
    urls.iter().map(|url| Origin::parse(url).map_err(serde::de::Error::custom)).collect()
}

/// Returns whether an authority names a server: a host, and a port that exists if it has one.
// Of a port that is no number, or is too large, nothing is left but the scheme's default, at which
// there may be another service.
pub(super) fn is_server(authority: &Authority) -> bool {
    let host = authority.host();
    let port =
        authority.as_str().strip_prefix(host).and_then(|rest| match rest.strip_prefix(':') {
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok(),
            Some(_) => None,
            None => rest.is_empty().then_some(1),
        });
    !host.is_empty() && port.is_some_and(|port: u16| port > 0)
}

pub(super) fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Method>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    if names.is_empty() {
        return Err(serde::de::Error::custom("name at least one, or leave it out for all"));
    }
    let method = |name: &String| match name.parse::<Method>() {
        Ok(method) if !name.contains(|it: char| it.is_ascii_lowercase()) => Ok(method),
        _ => Err(serde::de::Error::custom("write methods in capitals, as `POST`")),
    };
    names.iter().map(method).collect()
}

pub(super) fn millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match u64::deserialize(deserializer)? {
        millis @ 0..=HOUR_MS => Ok(Duration::from_millis(millis)),
        _ => Err(serde::de::Error::custom(format!("give {HOUR_MS} milliseconds at most"))),
    }
}

/// A time limit; zero means none.
pub(super) fn optional_millis<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    millis(deserializer).map(Some)
}

pub(super) fn positive_millis<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    match millis(deserializer)? {
        Duration::ZERO => Err(serde::de::Error::custom("give at least 1 millisecond")),
        other => Ok(other),
    }
}

pub(super) fn optional_positive_millis<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    positive_millis(deserializer).map(Some)
}

/// A count, or the word `all`.
pub(super) fn count_or_all<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum CountOrWord {
        Count(u32),
        Word(String),
    }
    match CountOrWord::deserialize(deserializer) {
        Ok(CountOrWord::Count(count)) => Ok(Some(count.to_string())),
        Ok(CountOrWord::Word(word)) if word == "all" => Ok(Some(word)),
        _ => Err(serde::de::Error::custom("give a number, or \"all\"")),
    }
}

/// A count of at least 1; one that exceeds the type is its greatest value.
pub(super) fn positive<'de, D: Deserializer<'de>, T: Count>(
    deserializer: D,
) -> Result<T, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(serde::de::Error::custom("give at least 1")),
        number => Ok(T::try_from(number).unwrap_or(T::GREATEST)),
    }
}

/// hyper refuses smaller buffers.
pub(super) fn head_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let bytes = u64::deserialize(deserializer)?;
    let fitting = (HEAD_BYTES_MIN..=HEAD_BYTES_MAX).contains(&bytes).then_some(bytes);
    fitting.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
        serde::de::Error::custom(format!("give {HEAD_BYTES_MIN} to {HEAD_BYTES_MAX} bytes"))
    })
}

pub(super) trait Count: TryFrom<u64> {
    const GREATEST: Self;
}

impl Count for u32 {
    const GREATEST: Self = Self::MAX;
}

impl Count for usize {
    const GREATEST: Self = Self::MAX;
}

const HEAD_BYTES_MIN: u64 = 8 << 10;
const HEAD_BYTES_MAX: u64 = 16 << 20;
const HOUR_MS: u64 = 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_a_host_and_a_port_that_exists() {
        for good in ["shop", "shop:80", "shop:00080", "10.0.0.1:65535", "[::1]", "[::1]:9000"] {
            assert!(is_server(&good.parse().unwrap()), "{good}");
        }
        for bad in ["shop:", "shop:0", "shop:+80", "shop:65536", ":80", "user@shop", "[::1]:"] {
            let authority = bad.parse();
            assert!(!authority.is_ok_and(|it| is_server(&it)), "{bad}");
        }
    }
}
