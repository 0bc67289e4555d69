//! The form that a policy demands of keys.

use std::fmt;
use std::str::FromStr;

use regex_lite::Regex;

use super::{ConfigError, OnPlaceholderKey, Policy};
use crate::key::{InvalidKey, Key};

/// The form that keys must have: a UUID, or a match of a regular expression over the whole key.
///
/// ```
/// use idemptx_core::policy::KeyPattern;
///
/// let pattern = KeyPattern::new("order-[0-9]{8}")?;
/// assert!(pattern.matches("order-20261129"));
/// assert!(!pattern.matches("my order-20261129"));
/// assert!(KeyPattern::new("uuid_v7")?.matches("0196a3c2-5d5c-7cc0-8f2e-3b1f6a0d9e11"));
/// # Ok::<(), idemptx_core::policy::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct KeyPattern {
    text: Box<str>,
    form: Form,
}

#[derive(Clone)]
enum Form {
    /// The text form of RFC 9562, of this version if one is given.
    Uuid(Option<u8>),
    Expression(Regex),
}

impl KeyPattern {
    /// Reads `uuid`, `uuid_v4`, `uuid_v7`, or any other text as a regular expression.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`] for a malformed expression, or one of more than 1,024 bytes.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        let form = match text {
            "uuid" => Form::Uuid(None),
            "uuid_v4" => Form::Uuid(Some(b'4')),
            "uuid_v7" => Form::Uuid(Some(b'7')),
            _ if text.is_empty() || text.len() > EXPRESSION_BYTES_MAX => {
                let advice = format!("write an expression of 1 to {EXPRESSION_BYTES_MAX} bytes");
                return Err(ConfigError::new("key_pattern", advice));
            }
            // The text must be an expression by itself, not only between these parentheses.
            _ => match Regex::new(text).and_then(|_| Regex::new(&format!("^(?:{text})$"))) {
                Ok(expression) => Form::Expression(expression),
                Err(error) => {
                    let advice = format!(
                        "write `uuid`, `uuid_v4`, `uuid_v7`, or a regular expression ({error})"
                    );
                    return Err(ConfigError::new("key_pattern", advice));
                }
            },
        };
        Ok(Self { text: text.into(), form })
    }

    /// Returns the pattern `uuid_v7`.
    pub(super) fn uuid_v7() -> Self {
        Self { text: "uuid_v7".into(), form: Form::Uuid(Some(b'7')) }
    }

    /// Returns the pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns true if the whole key has this form.
    ///
    /// # Security
    ///
    /// Takes time proportional to the length of the key, for any expression.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        match &self.form {
            Form::Uuid(version) => is_uuid(key, *version),
            Form::Expression(expression) => expression.is_match(key),
        }
    }
}

impl FromStr for KeyPattern {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::new(text)
    }
}

impl PartialEq for KeyPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPattern").field(&self.text).finish()
    }
}

impl Policy {
    /// Checks the form of a key by [`key_pattern`](Self::key_pattern), and refuses placeholders
    /// where the policy does.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidKey::Placeholder`] or [`InvalidKey::Pattern`].
    pub fn check_key(&self, key: &Key) -> Result<(), InvalidKey> {
        let refuses = self.on_placeholder_key == OnPlaceholderKey::Refuse;
        if (refuses || self.key_pattern.is_some()) && is_placeholder(key) {
            return Err(InvalidKey::Placeholder);
        }
        match &self.key_pattern {
            Some(pattern) if !pattern.matches(key.as_str()) => Err(InvalidKey::Pattern),
            _ => Ok(()),
        }
    }

    /// Returns true for a key that the policy accepts but should be logged as a warning, because
    /// a client's template or script failed to fill it in.
    ///
    /// Every client with that fault sends the same key, so the second one is refused or receives
    /// the response of the first.
    #[must_use]
    pub fn warns_of_key(&self, key: &Key) -> bool {
        self.check_key(key).is_ok() && is_placeholder(key)
    }
}

/// Returns true for values that scripts and templates write in place of a key.
fn is_placeholder(key: &Key) -> bool {
    let text = key.as_str().trim();
    let encloses = |open: &str, close: &str| {
        let start = text.get(..open.len());
        start.is_some_and(|it| it.eq_ignore_ascii_case(open)) && text.ends_with(close)
    };
    let words = ["undefined", "null", "none", "nil", "nan", NIL_UUID];
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
        || encloses("[object", "]")
        || encloses("{{", "}}")
        || encloses("${", "}")
}

/// Returns true for the text form of RFC 9562, in either case.
fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let is_hyphen = |position| matches!(position, 8 | 13 | 18 | 23);
    let mut bytes = text.bytes().enumerate();
    text.len() == NIL_UUID.len()
        && bytes.all(|(position, byte)| match position {
            _ if is_hyphen(position) => byte == b'-',
            // A version is defined for the variant of RFC 9562 only.
            14 => byte.is_ascii_hexdigit() && version.is_none_or(|version| byte == version),
            19 if version.is_some() => matches!(byte, b'8' | b'9' | b'a' | b'b' | b'A' | b'B'),
            _ => byte.is_ascii_hexdigit(),
        })
}

const NIL_UUID: &str = "00000000-0000-0000-0000-000000000000";
const EXPRESSION_BYTES_MAX: usize = 1_024;
