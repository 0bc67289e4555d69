//! Sets of response statuses.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use http::StatusCode;

/// A set of response statuses.
///
/// ```
/// use idemptx_core::policy::Statuses;
///
/// let statuses = Statuses::of(&[409, 429]).and(Statuses::classes(&[5]));
/// assert!(statuses.contains(http::StatusCode::BAD_GATEWAY));
/// assert_eq!(statuses.to_string(), "409, 429, 5xx");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses(BTreeSet<u16>);

impl Statuses {
    /// Creates a set of these statuses; a policy accepts 100 to 599.
    #[must_use]
    pub fn of(statuses: &[u16]) -> Self {
        Self(statuses.iter().copied().collect())
    }

    /// Creates a set of all statuses in these classes: 5 stands for 500 to 599.
    #[must_use]
    pub fn classes(classes: &[u16]) -> Self {
        Self(classes.iter().copied().flat_map(class).collect())
    }

    /// Creates the set of all statuses, 100 to 599.
    #[must_use]
    pub fn everything() -> Self {
        Self(STATUSES.collect())
    }

    /// Returns the union with `others`.
    #[must_use]
    pub fn and(mut self, mut others: Self) -> Self {
        self.0.append(&mut others.0);
        self
    }

    /// Returns the set without `others`.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).copied().collect())
    }

    /// Returns true if `status` is in the set.
    #[must_use]
    pub fn contains(&self, status: StatusCode) -> bool {
        self.0.contains(&status.as_u16())
    }

    pub(super) fn all_within(&self, range: &RangeInclusive<u16>) -> bool {
        self.0.iter().all(|status| range.contains(status))
    }

    /// Returns the shortest description: whole classes, and single statuses.
    pub(super) fn terms(&self) -> impl Iterator<Item = Term> {
        self.0.iter().filter_map(|&status| {
            let hundreds = status / 100;
            let whole = class(hundreds).all(|member| self.0.contains(&member));
            match (whole, status % 100) {
                (false, _) => Some(Term::Status(status)),
                (true, 0) => Some(Term::Class(hundreds)),
                (true, _) => None,
            }
        })
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, term) in self.terms().enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            match term {
                Term::Status(status) => write!(f, "{status}")?,
                Term::Class(hundreds) => write!(f, "{hundreds}xx")?,
            }
        }
        Ok(())
    }
}

/// A part of the description of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    Status(u16),
    Class(u16),
}

fn class(hundreds: u16) -> Range<u16> {
    let first = hundreds.saturating_mul(100);
    first..first.saturating_add(100)
}

pub(super) const STATUSES: RangeInclusive<u16> = 100..=599;
