//! Values of the file that are read in more than one place, or in a way of their own.

use std::time::Duration;

use http::Method;
use serde::{Deserialize, Deserializer};

use super::{Origin, Pattern};

pub(super) fn yes() -> bool {
    true
}

pub(super) fn origins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Origin>, D::Error> {
    let urls = Vec::<String>::deserialize(deserializer)?;
    if urls.is_empty() {
        return Err(serde::de::Error::custom("give at least one URL"));
    }
    urls.iter().map(|url| Origin::parse(url).map_err(serde::de::Error::custom)).collect()
}

pub(super) fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Method>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let method = |name: &String| match name.parse::<Method>() {
        Ok(method) if !name.contains(|it: char| it.is_ascii_lowercase()) => Ok(method),
        _ => Err(serde::de::Error::custom("write methods in capitals, as `POST`")),
    };
    names.iter().map(method).collect()
}

pub(super) fn pattern<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Pattern>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Pattern::parse(&text).map(Some).map_err(serde::de::Error::custom)
}

pub(super) fn millis<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    match u64::deserialize(deserializer)? {
        millis @ 0..=HOUR_MS => Ok(Some(Duration::from_millis(millis))),
        _ => Err(serde::de::Error::custom(format!("give {HOUR_MS} milliseconds at most"))),
    }
}

pub(super) fn positive_millis<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    match millis(deserializer)? {
        Some(Duration::ZERO) => Err(serde::de::Error::custom("give at least 1 millisecond")),
        other => Ok(other),
    }
}

pub(super) fn positive<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(serde::de::Error::custom("give at least 1")),
        number => Ok(Some(number)),
    }
}

/// What hyper's buffer must hold at least.
pub(super) fn head_bytes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    match u64::deserialize(deserializer)? {
        bytes @ HEAD_BYTES_MIN..=HEAD_BYTES_MAX => Ok(Some(bytes)),
        _ => {
            let advice = format!("give {HEAD_BYTES_MIN} to {HEAD_BYTES_MAX} bytes");
            Err(serde::de::Error::custom(advice))
        }
    }
}

/// A number, or the greatest there is.
pub(super) fn saturated<T: TryFrom<u64> + Bounded>(number: u64) -> T {
    T::try_from(number).unwrap_or(T::GREATEST)
}

pub(super) trait Bounded {
    const GREATEST: Self;
}

impl Bounded for u32 {
    const GREATEST: Self = Self::MAX;
}

impl Bounded for usize {
    const GREATEST: Self = Self::MAX;
}

const HEAD_BYTES_MIN: u64 = 8 << 10;
const HEAD_BYTES_MAX: u64 = 16 << 20;
const HOUR_MS: u64 = 60 * 60 * 1000;
