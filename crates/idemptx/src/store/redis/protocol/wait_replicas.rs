//! The number of replicas that are waited for.

use std::fmt;
use std::str::FromStr;

/// Replicas that must have a claim or a result before it counts.
///
/// Written as a number, or as `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReplicas {
    /// This many; zero for none.
    Count(u32),
    /// The replicas that the primary has connected at that time, and at least one.
    All,
}

impl Default for WaitReplicas {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl From<u32> for WaitReplicas {
    fn from(count: u32) -> Self {
        Self::Count(count)
    }
}

impl FromStr for WaitReplicas {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == ALL { Ok(Self::All) } else { text.parse().map(Self::Count) }
    }
}

impl fmt::Display for WaitReplicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::All => f.write_str(ALL),
        }
    }
}

impl WaitReplicas {
    /// Returns how many must acknowledge while this many are connected.
    #[must_use]
    pub fn required(self, connected: u64) -> u64 {
        match self {
            Self::Count(count) => count.into(),
            Self::All => connected.max(1),
        }
    }
}

pub(super) const ALL: &str = "all";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_all_is_read_and_shown_as_it_was_written() {
        for text in ["0", "2", "all"] {
            assert_eq!(text.parse::<WaitReplicas>().unwrap().to_string(), text);
        }
        for wrong in ["", "ALL", "-1", "2.5"] {
            assert!(wrong.parse::<WaitReplicas>().is_err(), "{wrong}");
        }
    }
}
