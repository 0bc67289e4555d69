//! JSON (RFC 8259) as far as a fingerprint needs it: strings are decoded, numbers count by their
//! exact decimal value.
//!
//! Numbers never become floating point, where 9007199254740992 and 9007199254740993 are one, and so
//! would be two different payments.

use std::borrow::Cow;

use crate::digest::{Absorb, Digest};

/// A JSON value; members are sorted by name.
pub(super) enum Value<'a> {
    /// One of `true`, `false` and `null`.
    Word(&'a [u8]),
    Number(Decimal),
    Text(Cow<'a, [u8]>),
    Array(Vec<Value<'a>>),
    Object(Vec<(Cow<'a, [u8]>, Value<'a>)>),
}

impl Value<'_> {
    /// Hashes the value so that no other one gives the same bytes.
    pub(super) fn hash(&self, hasher: &mut Digest) {
        match self {
            Self::Word(text) => {
                hasher.update(b"a");
                hasher.part(text);
            }
            Self::Number(number) => {
                hasher.update(if number.negative { b"-" } else { b"+" });
                hasher.update(&number.exponent.to_be_bytes());
                hasher.part(&number.digits);
            }
            Self::Text(text) => {
                hasher.update(b"\"");
                hasher.part(text);
            }
            Self::Array(values) => {
                hasher.update(b"[");
                super::hash_count(hasher, values.len());
                values.iter().for_each(|value| value.hash(hasher));
            }
            Self::Object(members) => {
                hasher.update(b"{");
                super::hash_count(hasher, members.len());
                for (name, value) in members {
                    hasher.part(name);
                    value.hash(hasher);
                }
            }
        }
    }
}

/// An exact decimal number, `digits × 10^exponent`, in the one form that every value has.
pub(super) struct Decimal {
    negative: bool,
    /// Without zeros at either end; empty for zero, which has no sign.
    digits: Vec<u8>,
    exponent: i64,
}

impl Decimal {
    fn new(negative: bool, whole: &[u8], fraction: &[u8], exponent: i64) -> Option<Self> {
        let mut digits = [whole, fraction].concat();
        let significant =
            digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
        let zeros = i64::try_from(digits.len() - significant).ok()?;
        digits.truncate(significant);
        let leading = digits.iter().take_while(|digit| **digit == b'0').count();
        digits.drain(..leading);
        if digits.is_empty() {
            return Some(Self { negative: false, digits, exponent: 0 });
        }
        let fraction = i64::try_from(fraction.len()).ok()?;
        let exponent = exponent.checked_add(zeros)?.checked_sub(fraction)?;
        Some(Self { negative, digits, exponent })
    }
}

/// Returns true for JSON: `application/json`, `text/json`, or a `+json` suffix.
pub(super) fn is_type(essence: &[u8]) -> bool {
    let ends_with = |suffix: &[u8]| {
        essence
            .len()
            .checked_sub(suffix.len())
            .and_then(|at| essence.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    };
    ends_with(b"/json") || ends_with(b"+json")
}

/// Parses a whole document.
///
/// Returns `None` for invalid JSON or UTF-8, and for documents on which parsers disagree: duplicate
/// names, unpaired surrogates, more than [`JSON_DEPTH_MAX`] levels.
pub(super) fn parse(document: &[u8]) -> Option<Value<'_>> {
    std::str::from_utf8(document).ok()?;
    let mut parser = Parser { rest: document };
    let value = parser.value(JSON_DEPTH_MAX)?;
    parser.skip_spaces();
    parser.rest.is_empty().then_some(value)
}

/// A JSON pointer (RFC 6901); the default names the whole document.
#[derive(Clone, Debug, Default)]
pub(super) struct Pointer(Vec<String>);

impl Pointer {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        text.strip_prefix('/')?.split('/').map(unescape).collect::<Option<_>>().map(Self)
    }

    pub(super) fn find<'v, 'a>(&self, document: &'v Value<'a>) -> Option<&'v Value<'a>> {
        self.0.iter().try_fold(document, |value, token| match value {
            Value::Object(members) => {
                members.get(position(members, token)?).map(|(_, value)| value)
            }
            Value::Array(values) => values.get(array_index(token)?),
            Value::Word(_) | Value::Number(_) | Value::Text(_) => None,
        })
    }
}

impl Pointer {
    /// Removes the value at the pointer, if there is one.
    pub(super) fn remove(&self, document: &mut Value<'_>) {
        let Some((last, parents)) = self.0.split_last() else {
            // The pointer names the whole document.
            *document = Value::Word(b"");
            return;
        };
        let parent = parents.iter().try_fold(document, |value, token| match value {
            Value::Object(members) => {
                let position = position(members, token)?;
                members.get_mut(position).map(|(_, value)| value)
            }
            Value::Array(values) => values.get_mut(array_index(token)?),
            Value::Word(_) | Value::Number(_) | Value::Text(_) => None,
        });
        match parent {
            Some(Value::Object(members)) => {
                if let Some(position) = position(members, last) {
                    members.remove(position);
                }
            }
            // The place stays, so that other pointers still name the same elements.
            Some(Value::Array(values)) => {
                let element = array_index(last).and_then(|index| values.get_mut(index));
                element.into_iter().for_each(|element| *element = Value::Word(b""));
            }
            _ => {}
        }
    }
}

fn position(members: &[(Cow<'_, [u8]>, Value<'_>)], name: &str) -> Option<usize> {
    members.binary_search_by(|(member, _)| (**member).cmp(name.as_bytes())).ok()
}

/// Decodes a token of a pointer: `~1` is a slash, `~0` a tilde, and a tilde alone is malformed.
fn unescape(token: &str) -> Option<String> {
    let mut pieces = token.split('~');
    let mut text = pieces.next()?.to_owned();
    for piece in pieces {
        let (escaped, rest) = match piece.as_bytes().first()? {
            b'0' => ('~', piece.get(1..)?),
            b'1' => ('/', piece.get(1..)?),
            _ => return None,
        };
        text.push(escaped);
        text.push_str(rest);
    }
    Some(text)
}

fn array_index(token: &str) -> Option<usize> {
    let canonical = token == "0" || !token.starts_with(['0', '+']);
    canonical.then(|| token.parse().ok())?
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    fn value(&mut self, depth: usize) -> Option<Value<'a>> {
        self.skip_spaces();
        match self.rest.first()? {
            b'{' => self.object(depth.checked_sub(1)?),
            b'[' => self.array(depth.checked_sub(1)?),
            b'"' => self.string().map(Value::Text),
            b'-' | b'0'..=b'9' => self.number(),
            _ => [&b"true"[..], b"false", b"null"]
                .into_iter()
                .find(|word| self.skip(word))
                .map(Value::Word),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value<'a>> {
        let mut members = Vec::new();
        self.expect(b"{")?;
        self.skip_spaces();
        if !self.skip(b"}") {
            loop {
                self.skip_spaces();
                let name = self.string()?;
                self.skip_spaces();
                self.expect(b":")?;
                members.push((name, self.value(depth)?));
                if self.ends(b"}")? {
                    break;
                }
            }
        }
        members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let twice = |pair: &[_]| matches!(pair, [(one, _), (other, _)] if one == other);
        (!members.windows(2).any(twice)).then_some(Value::Object(members))
    }

    fn array(&mut self, depth: usize) -> Option<Value<'a>> {
        let mut values = Vec::new();
        self.expect(b"[")?;
        self.skip_spaces();
        if !self.skip(b"]") {
            loop {
                values.push(self.value(depth)?);
                if self.ends(b"]")? {
                    break;
                }
            }
        }
        Some(Value::Array(values))
    }

    fn number(&mut self) -> Option<Value<'a>> {
        let negative = self.skip(b"-");
        let whole = if self.skip(b"0") { &b""[..] } else { self.digits()? };
        let fraction = if self.skip(b".") { self.digits()? } else { b"" };
        let mut exponent = 0;
        if self.skip(b"e") || self.skip(b"E") {
            let sign = if self.skip(b"-") { -1 } else { 1 };
            let _ = sign == 1 && self.skip(b"+");
            // An exponent beyond this range makes the whole body count by its bytes.
            exponent = sign * std::str::from_utf8(self.digits()?).ok()?.parse::<i64>().ok()?;
        }
        Decimal::new(negative, whole, fraction, exponent).map(Value::Number)
    }

    fn digits(&mut self) -> Option<&'a [u8]> {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        (count > 0).then_some(digits)
    }

    fn string(&mut self) -> Option<Cow<'a, [u8]>> {
        self.expect(b"\"")?;
        let plain = self.plain()?;
        if self.skip(b"\"") {
            return Some(Cow::Borrowed(plain));
        }
        let mut text = plain.to_vec();
        while !self.skip(b"\"") {
            self.expect(b"\\")?;
            let escaped = self.escaped()?;
            text.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
            text.extend_from_slice(self.plain()?);
        }
        Some(Cow::Owned(text))
    }

    /// Reads up to the next quote, backslash or (forbidden) control character.
    fn plain(&mut self) -> Option<&'a [u8]> {
        let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1F);
        let (plain, rest) = self.rest.split_at_checked(self.rest.iter().position(special)?)?;
        self.rest = rest;
        Some(plain)
    }

    fn escaped(&mut self) -> Option<char> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(match byte {
            b'"' | b'\\' | b'/' => char::from(*byte),
            b'b' => '\u{8}',
            b'f' => '\u{C}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.code_point(),
            _ => return None,
        })
    }

    /// Reads one UTF-16 code unit, or two that make a pair.
    fn code_point(&mut self) -> Option<char> {
        let unit = self.code_unit()?;
        let mut units = [unit, 0];
        let paired = matches!(unit, 0xD800..0xDC00);
        if paired {
            self.expect(b"\\u")?;
            units = [unit, self.code_unit()?];
        }
        char::decode_utf16(units.into_iter().take(1 + usize::from(paired))).next()?.ok()
    }

    fn code_unit(&mut self) -> Option<u16> {
        let (digits, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        digits.iter().try_fold(0, |unit: u16, digit| {
            let digit = char::from(*digit).to_digit(16).and_then(|digit| digit.try_into().ok());
            digit.map(|digit: u16| unit << 4 | digit)
        })
    }

    /// Returns true at the end of a list, and false after a comma.
    fn ends(&mut self, close: &[u8]) -> Option<bool> {
        self.skip_spaces();
        if self.skip(close) { Some(true) } else { self.expect(b",").map(|()| false) }
    }

    fn expect(&mut self, text: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    fn skip(&mut self, text: &[u8]) -> bool {
        self.expect(text).is_some()
    }

    fn skip_spaces(&mut self) {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }
}

/// The deepest nesting of arrays and objects that is parsed; real documents stay far below it.
const JSON_DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests;
