//! Path patterns of routes.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer};

/// A path pattern, compared byte by byte with paths, in which encodings that mean the same and
/// parameters of segments do not count.
///
/// `*` matches one segment, and so does a name in braces; `**` at the end any number of them:
/// `/orders`, `/orders/*/refund`, `/orders/{id}`, `/api/**`.
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
        if path.contains(';') {
            return Err("leave parameters (`;…`) out: they are cut off before paths are compared");
        }
        let (path, open) = match path.strip_suffix("**") {
            Some("") => return Ok(Self { text: text.to_owned(), ..Self::any() }),
            Some(path) => (path.strip_suffix('/').ok_or(STARS)?, true),
            None => (path, false),
        };
        let segment = |segment: &str| match segment {
            "*" => Ok(Segment::Any),
            named if is_named(named) => Ok(Segment::Any),
            exact if exact.contains(['*', '{', '}']) => Err(STARS),
            "." | ".." => Err("leave `.` and `..` out: requests with them are refused"),
            exact => Ok(Segment::Exactly(normalised(exact).into_owned())),
        };
        let segments = path.split('/').map(segment).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), segments, open })
    }

    /// Returns a path that it matches.
    #[must_use]
    pub(crate) fn sample(&self) -> String {
        let segment = |segment: &Segment| match segment {
            Segment::Exactly(exact) => format!("/{exact}"),
            Segment::Any => "/x".to_owned(),
        };
        let path: String = self.segments.iter().map(segment).collect();
        if self.open { format!("{path}/x") } else { path }
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

    /// Returns whether a path matches that is free of such encodings and parameters.
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

/// Returns a path as patterns are compared with it: without encodings that mean the same
/// (RFC 3986 §6.2.2), and without the parameters of segments.
///
/// The path is forwarded as it was sent. Servers decode it, and some ignore parameters, so a client
/// must not get past a route's policy by writing its path in another way.
pub(crate) fn normalised(path: &str) -> Cow<'_, str> {
    if !path.contains(['%', ';']) {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').map(|segment| {
        let mut decoded = String::with_capacity(segment.len());
        let mut rest = segment.split(';').next().unwrap_or_default();
        while let Some((before, escape)) = rest.split_once('%') {
            decoded.push_str(before);
            let digits = escape.get(..2).unwrap_or_default();
            let byte = u8::from_str_radix(digits, 16).ok().map(char::from);
            match byte.filter(|_| digits.len() == 2) {
                Some(plain) if means_itself(plain) => decoded.push(plain),
                Some(_) => decoded.extend(["%", &digits.to_ascii_uppercase()]),
                None => {
                    decoded.push('%');
                    rest = escape;
                    continue;
                }
            }
            rest = escape.get(2..).unwrap_or_default();
        }
        decoded.push_str(rest);
        decoded
    });
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

/// Returns whether a character means the same in a path, encoded or not.
const fn means_itself(character: char) -> bool {
    character.is_ascii_graphic() && !matches!(character, '/' | '\\' | '%' | ';' | '?' | '#')
}

/// Returns whether a segment is a name in braces, as frameworks write a parameter.
fn is_named(segment: &str) -> bool {
    let name = segment.strip_prefix('{').and_then(|it| it.strip_suffix('}')).unwrap_or_default();
    !name.is_empty() && name.chars().all(|it| it.is_ascii_alphanumeric() || it == '_')
}

const STARS: &str = "`*` or `{name}` stands for one whole segment, `**` at the end for all that \
                     follow";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_path_with_stars() {
        let cases = [
            ("/orders", "/orders", true),
            ("/orders", "/orders/", false),
            ("/orders", "/Orders", false),
            ("/orders", "/orders2", false),
            ("/orders/*", "/orders/1", true),
            ("/orders/*", "/orders/", false),
            ("/orders/*", "/orders/1/2", false),
            ("/orders/*/refund", "/orders/1/refund", true),
            ("/orders/{id}/refund", "/orders/1/refund", true),
            ("/orders/{id}", "/orders/", false),
            ("/%7Bid%7D", "/{id}", true),
            ("/%7Bid%7D", "/1", false),
            ("/orders/**", "/orders", true),
            ("/orders/**", "/orders/", true),
            ("/orders/**", "/orders/1/2", true),
            ("/orders/**", "/ordersx", false),
            ("/**", "/", true),
            ("/**", "*", true),
            ("/", "/", true),
            ("/", "/a", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches(path),
                expected,
                "{pattern} {path}"
            );
        }
        for wrong in [
            "",
            "orders",
            "/a**",
            "/**/a",
            "/a?b",
            "/ü",
            "/a b",
            "/a{b}",
            "/{a",
            "/{}",
            "/{a:path}",
            "/a/../b",
            "/./a",
        ] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
