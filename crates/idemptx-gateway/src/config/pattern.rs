//! Path patterns of routes.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// A path pattern, compared byte by byte with the path as it was sent.
///
/// `*` matches one segment, `**` at the end any number of them: `/orders`, `/orders/*/refund`,
/// `/api/**`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    segments: Vec<Segment>,
    /// More segments may follow.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exactly(String),
    Any,
}

impl Pattern {
    /// Matches every path.
    #[must_use]
    pub fn any() -> Self {
        Self { text: "/**".to_owned(), segments: Vec::new(), open: true }
    }

    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// Advice on what to write instead.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let path = text.strip_prefix('/').ok_or("a path begins with `/`")?;
        if path.contains(['?', '#']) || !path.is_ascii() || path.contains(char::is_whitespace) {
            return Err("write a path as it is sent, without a query");
        }
        let (path, open) = match path.strip_suffix("**") {
            Some("") => return Ok(Self { text: text.to_owned(), ..Self::any() }),
            Some(path) => (path.strip_suffix('/').ok_or(STARS)?, true),
            None => (path, false),
        };
        let segment = |segment: &str| match segment {
            "*" => Ok(Segment::Any),
            exact if exact.contains('*') => Err(STARS),
            exact => Ok(Segment::Exactly(exact.to_owned())),
        };
        let segments = path.split('/').map(segment).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), segments, open })
    }

    /// Returns whether every path that the other pattern matches is matched by this one.
    #[must_use]
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let all = self.segments.iter().enumerate().all(|(position, segment)| {
            match (segment, other.segments.get(position)) {
                (Segment::Any, Some(Segment::Exactly(exact))) => !exact.is_empty(),
                (Segment::Any, Some(Segment::Any)) => true,
                (own @ Segment::Exactly(_), Some(of)) => own == of,
                (_, None) => false,
            }
        });
        all && (self.open || !other.open && self.segments.len() == other.segments.len())
    }

    /// Returns whether a path matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        if self.open && self.segments.is_empty() {
            return true;
        }
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut sent = path.split('/');
        let all = self.segments.iter().all(|segment| match (segment, sent.next()) {
            (Segment::Any, Some(sent)) => !sent.is_empty(),
            (Segment::Exactly(exact), Some(sent)) => exact == sent,
            (_, None) => false,
        });
        all && (self.open || sent.next().is_none())
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

const STARS: &str = "`*` stands for one whole segment, `**` at the end for all that follow";
