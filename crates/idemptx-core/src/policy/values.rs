//! Reading and writing the values of a policy in JSON, one implementation for each type.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use super::json_input::{Given, Node};
use super::statuses::{STATUSES, Term};
use super::{ConfigError, KeyPattern, ScopeRule, Statuses};
use crate::fingerprint::{BodyRule, FingerprintRule, HeaderRule, QueryRule};
use crate::outcome::Code;
use crate::problem::ProblemRules;
use crate::response::ReplayRules;
use crate::secret::Secret;
use crate::time::millis;

/// A type of a policy's values.
pub(super) trait JsonValue: Sized {
    /// Reads a value; members that an object leaves out stay as in `current`.
    fn read(given: &Given<'_>, current: &Self) -> Result<Self, ConfigError>;

    fn write(&self) -> Value;
}

impl JsonValue for bool {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        match given.node {
            Node::Bool(truth) => Ok(*truth),
            _ => Err(given.wrong("write true or false")),
        }
    }

    fn write(&self) -> Value {
        (*self).into()
    }
}

macro_rules! whole_numbers {
    ($($number:ty),+) => {
        $(impl JsonValue for $number {
            fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
                given.number()
            }

            fn write(&self) -> Value {
                (*self).into()
            }
        })+
    };
}

whole_numbers!(u64, usize);

impl JsonValue for Option<u32> {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        if matches!(given.node, Node::Null) { Ok(None) } else { given.number().map(Some) }
    }

    fn write(&self) -> Value {
        (*self).into()
    }
}

impl JsonValue for Duration {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        given.number().map(Self::from_millis)
    }

    fn write(&self) -> Value {
        millis(*self).into()
    }
}

impl JsonValue for StatusCode {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        Self::from_u16(given.number()?).map_err(|_| given.wrong("write an HTTP status"))
    }

    fn write(&self) -> Value {
        self.as_u16().into()
    }
}

impl JsonValue for Statuses {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        let sets = given.list(|item| {
            let set = match item.node {
                Node::Text(word) => match word.as_bytes() {
                    [digit @ b'1'..=b'5', b'x', b'x'] => {
                        Some(Self::classes(&[u16::from(digit - b'0')]))
                    }
                    _ => None,
                },
                Node::Number(status) => u16::try_from(*status)
                    .ok()
                    .filter(|status| STATUSES.contains(status))
                    .map(|status| Self::of(&[status])),
                _ => None,
            };
            set.ok_or_else(|| item.wrong("list statuses from 100 to 599, or classes as `5xx`"))
        })?;
        Ok(sets.into_iter().fold(Self::default(), Self::and))
    }

    fn write(&self) -> Value {
        let value = |term| match term {
            Term::Status(status) => Value::from(status),
            Term::Class(hundreds) => Value::from(format!("{hundreds}xx")),
        };
        self.terms().map(value).collect()
    }
}

impl JsonValue for HeaderName {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        given.header()
    }

    fn write(&self) -> Value {
        self.as_str().into()
    }
}

impl JsonValue for HeaderValue {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        Self::from_str(given.text()?).map_err(|_| given.wrong("write the value of a header"))
    }

    fn write(&self) -> Value {
        self.to_str().unwrap_or_default().into()
    }
}

/// Header names, of which a single one needs no list.
pub(super) struct OneOrMore;

impl OneOrMore {
    pub(super) fn read(
        given: &Given<'_>,
        _: &[HeaderName],
    ) -> Result<Vec<HeaderName>, ConfigError> {
        if matches!(given.node, Node::List(_)) {
            return given.list(Given::header);
        }
        let wrong = |_| given.wrong("write the name of a header, or a list");
        given.header().map(|name| vec![name]).map_err(wrong)
    }

    pub(super) fn write(names: &[HeaderName]) -> Value {
        match names {
            [name] => name.write(),
            names => texts(names),
        }
    }
}

impl JsonValue for Vec<Method> {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        given.list(|item| {
            let name = item.text()?;
            if name.contains(|letter: char| letter.is_ascii_lowercase()) {
                return Err(item.wrong("write methods in capitals, as `POST`"));
            }
            Method::from_str(name).map_err(|_| item.wrong("write a method, as `POST`"))
        })
    }

    fn write(&self) -> Value {
        texts(self)
    }
}

impl JsonValue for Vec<super::Expose> {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        given.list(|item| item.text().unwrap_or_default().parse())
    }

    fn write(&self) -> Value {
        texts(self)
    }
}

impl JsonValue for Option<KeyPattern> {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        match given.node {
            Node::Null => Ok(None),
            Node::Text(text) => KeyPattern::new(text).map(Some),
            _ => Err(given.wrong("write `uuid`, `uuid_v4`, `uuid_v7`, or a regular expression")),
        }
    }

    fn write(&self) -> Value {
        self.as_ref().map(KeyPattern::as_str).into()
    }
}

impl JsonValue for Option<ScopeRule> {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        let wrong = || {
            given.wrong(
                "write {\"bind\": [headers]}, {\"header\": name}, {\"cookie\": name}, or `shared` \
                 (as a text)",
            )
        };
        match given.node {
            Node::Text(word) if word == "shared" => Ok(Some(ScopeRule::Shared)),
            Node::Text(word) if word == "custom" => {
                Err(given.wrong("a function cannot be written here; set the scope in code"))
            }
            Node::Object(_) => match given.entries(&["bind", "header", "cookie"])?.as_slice() {
                [("bind", names)] => {
                    names.list(Given::header).map(|names| Some(ScopeRule::Bind(names)))
                }
                [("cookie", name)] => {
                    name.text().map(|name| Some(ScopeRule::Cookie(name.to_owned())))
                }
                [(_, name)] => name.header().map(|name| Some(ScopeRule::Header(name))),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }

    fn write(&self) -> Value {
        match self {
            None => Value::Null,
            Some(ScopeRule::Bind(names)) => json!({ "bind": texts(names) }),
            Some(ScopeRule::Header(name)) => json!({ "header": name.as_str() }),
            Some(ScopeRule::Cookie(name)) => json!({ "cookie": name }),
            Some(ScopeRule::Custom) => "custom".into(),
            Some(ScopeRule::Shared) => "shared".into(),
        }
    }
}

impl JsonValue for Option<FingerprintRule> {
    fn read(given: &Given<'_>, current: &Self) -> Result<Self, ConfigError> {
        match given.node {
            Node::Bool(false) => return Ok(None),
            Node::Object(_) => {}
            _ => return Err(given.wrong("write an object, or false for no comparison")),
        }
        let mut rule = current.clone().unwrap_or_default();
        for (name, entry) in given.entries(&["body", "query", "headers"])? {
            match name {
                "body" => rule.body = JsonValue::read(&entry, &rule.body)?,
                "query" => rule.query = JsonValue::read(&entry, &rule.query)?,
                _ => rule.headers = JsonValue::read(&entry, &rule.headers)?,
            }
        }
        Ok(Some(rule))
    }

    fn write(&self) -> Value {
        let Some(rule) = self else { return false.into() };
        json!({
            "body": rule.body.write(),
            "query": rule.query.write(),
            "headers": rule.headers.write(),
        })
    }
}

impl JsonValue for BodyRule {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        let wrong = || {
            given.wrong(
                "write `auto`, `raw`, `json`, `form`, `multipart`, {\"fields\": [JSON pointers]}, \
                 {\"exclude\": [JSON pointers]}, or `none`",
            )
        };
        match given.node {
            Node::Object(_) => match given.entries(&["fields", "exclude"])?.as_slice() {
                [("fields", pointers)] => pointers.texts().map(Self::Fields),
                [(_, pointers)] => pointers.texts().map(Self::Exclude),
                _ => Err(wrong()),
            },
            Node::Text(word) => match word.as_str() {
                "auto" => Ok(Self::Auto),
                "raw" => Ok(Self::Raw),
                "json" => Ok(Self::Json),
                "form" => Ok(Self::Form),
                "multipart" => Ok(Self::Multipart),
                "none" => Ok(Self::None),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Auto => "auto".into(),
            Self::Raw => "raw".into(),
            Self::Json => "json".into(),
            Self::Form => "form".into(),
            Self::Multipart => "multipart".into(),
            Self::Fields(pointers) => json!({ "fields": pointers }),
            Self::Exclude(pointers) => json!({ "exclude": pointers }),
            Self::None => "none".into(),
        }
    }
}

impl JsonValue for QueryRule {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        match given.node {
            Node::List(_) => given.texts().map(Self::Only),
            Node::Text(word) if word == "raw" => Ok(Self::Raw),
            Node::Text(word) if word == "sorted" => Ok(Self::Sorted),
            Node::Text(word) if word == "none" => Ok(Self::None),
            _ => Err(given.wrong("write `raw`, `sorted`, a list of names, or `none`")),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Raw => "raw".into(),
            Self::Sorted => "sorted".into(),
            Self::Only(names) => texts(names),
            Self::None => "none".into(),
        }
    }
}

impl JsonValue for HeaderRule {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        match given.node {
            Node::List(_) => given.list(Given::header).map(Self::Only),
            Node::Text(word) if word == "all" => Ok(Self::All),
            _ => Err(given.wrong("write a list of headers, or `all`")),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Only(names) => texts(names),
            Self::All => "all".into(),
        }
    }
}

impl JsonValue for ReplayRules {
    fn read(given: &Given<'_>, current: &Self) -> Result<Self, ConfigError> {
        let mut rules = current.clone();
        for (name, entry) in given.entries(&["allow", "cors", "deny", "set_cookie"])? {
            match name {
                "allow" if matches!(entry.node, Node::Null) => rules.allow = None,
                "allow" => rules.allow = Some(entry.list(Given::header)?),
                "cors" => rules.cors = bool::read(&entry, &rules.cors)?,
                "deny" => rules.deny = entry.list(Given::header)?,
                _ => rules.set_cookie = bool::read(&entry, &rules.set_cookie)?,
            }
        }
        Ok(rules)
    }

    fn write(&self) -> Value {
        let allow = self.allow.as_deref().map(texts);
        json!({
            "allow": allow,
            "cors": self.cors,
            "deny": texts(&self.deny),
            "set_cookie": self.set_cookie,
        })
    }
}

impl JsonValue for ProblemRules {
    fn read(given: &Given<'_>, current: &Self) -> Result<Self, ConfigError> {
        let mut rules = current.clone();
        for (name, entry) in given.entries(&["format", "base", "codes", "should_retry"])? {
            match name {
                "codes" => {
                    let named = entry.entries(&Code::ALL.map(Code::as_str))?;
                    let codes = named.iter().filter_map(|(code, name)| {
                        let code = Code::ALL.into_iter().find(|it| it.as_str() == *code)?;
                        Some(name.text().map(|name| (code, name.to_owned().into())))
                    });
                    rules.codes = codes.collect::<Result<_, ConfigError>>()?;
                }
                "format" => rules.format = JsonValue::read(&entry, &rules.format)?,
                "base" => rules.base = entry.text()?.to_owned().into(),
                _ => rules.should_retry = bool::read(&entry, &rules.should_retry)?,
            }
        }
        Ok(rules)
    }

    fn write(&self) -> Value {
        let codes: serde_json::Map<_, _> = self
            .codes
            .iter()
            .map(|(code, name)| (code.to_string(), Value::from(&**name)))
            .collect();
        json!({
            "format": self.format.as_str(),
            "base": self.base,
            "codes": codes,
            "should_retry": self.should_retry,
        })
    }
}

impl JsonValue for Vec<Secret> {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        given.list(read_secret)
    }

    fn write(&self) -> Value {
        self.iter().map(|secret| json!({ "id": secret.id() })).collect()
    }
}

impl JsonValue for Option<Secret> {
    fn read(given: &Given<'_>, _: &Self) -> Result<Self, ConfigError> {
        if matches!(given.node, Node::Null) { Ok(None) } else { read_secret(given).map(Some) }
    }

    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, |secret| json!({ "id": secret.id() }))
    }
}

fn read_secret(given: &Given<'_>) -> Result<Secret, ConfigError> {
    let (mut id, mut material) = (None, None);
    for (name, entry) in given.entries(&["id", "secret"])? {
        if name == "id" {
            id = Some(entry.number::<u8>().map_err(|_| entry.wrong("give 0 to 255"))?);
        } else {
            material = Some(entry.text()?);
        }
    }
    let (Some(id), Some(material)) = (id, material) else {
        return Err(given.wrong("write each as {\"id\": 0 to 255, \"secret\": \"…\"}"));
    };
    Secret::new(id, material.as_bytes()).map_err(|weak| given.wrong(weak.to_string()))
}

fn texts<T: ToString>(list: &[T]) -> Value {
    list.iter().map(T::to_string).collect()
}
