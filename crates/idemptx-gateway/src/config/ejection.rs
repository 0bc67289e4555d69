//! The ejection of an upstream's addresses whose requests fail.

use std::time::Duration;

use idemptx_core::policy::Statuses;
use serde::{Deserialize, Deserializer};

use super::health_check::statuses;
use super::invalid_config::InvalidSetting;
use super::values::{count, positive, positive_millis, seconds};

/// The conditions under which an address is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Ejection {
    /// The number of consecutive failures after which an address is ejected.
    #[serde(deserialize_with = "positive", default = "count::<5>")]
    pub failures: u32,
    /// The statuses that count as failures, beside responses that do not come.
    #[serde(deserialize_with = "statuses", default = "gateway_failures")]
    pub statuses: Statuses,
    /// The time of the first ejection; the second one in a row takes twice as long, and so on.
    #[serde(rename = "base_ms", deserialize_with = "positive_millis", default = "seconds::<30>")]
    pub base: Duration,
    /// The longest time.
    #[serde(rename = "max_ms", deserialize_with = "positive_millis", default = "seconds::<300>")]
    pub max: Duration,
    /// The maximum share of the addresses that may be a last resort before no more are ejected, in
    /// percent.
    #[serde(deserialize_with = "percent", default = "count::<50>")]
    pub share_max: u32,
}

impl Ejection {
    /// Returns how many of this number of addresses may be a last resort: at least one, and never
    /// all.
    pub(crate) fn addresses_max(&self, count: usize) -> usize {
        let share = count.saturating_mul(self.share_max as usize) / 100;
        share.max(1).min(count.saturating_sub(1))
    }

    pub(super) fn validate(&self, position: &str) -> Result<(), InvalidSetting> {
        if self.base <= self.max {
            return Ok(());
        }
        let text = "`max_ms` must not be less than `base_ms`";
        Err(InvalidSetting::at(["upstream", position, "ejection"], text))
    }
}

fn gateway_failures() -> Statuses {
    Statuses::of(&[502, 503, 504])
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        share @ 1..=100 => Ok(share),
        _ => Err(serde::de::Error::custom("give 1 to 100 percent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_leaves_at_least_one_address_and_ejects_at_least_one() {
        let ejection = |share_max| Ejection { share_max, ..toml::from_str("").unwrap() };
        for (share, count, expected) in
            [(50, 1, 0), (50, 2, 1), (10, 3, 1), (50, 5, 2), (100, 2, 1), (100, 5, 4), (50, 0, 0)]
        {
            assert_eq!(ejection(share).addresses_max(count), expected, "{share} % of {count}");
        }
    }
}
