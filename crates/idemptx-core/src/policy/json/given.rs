//! Reading one value of a policy: what it may be, and what to say when it is not.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};
use serde_json::Value;

use crate::fingerprint::{BodyRule, HeaderRule, QueryRule};
use crate::policy::statuses::STATUSES;
use crate::policy::{ConfigError, PolicyBuilder, ScopeRule, Statuses};
use crate::secret::Secret;

/// A value, with the name of the field it is given for.
pub(super) struct Given<'a> {
    field: String,
    value: &'a Value,
}

impl<'a> Given<'a> {
    pub(super) fn new(field: impl Into<String>, value: &'a Value) -> Self {
        Self { field: field.into(), value }
    }

    pub(super) fn truth(&self) -> Result<bool, ConfigError> {
        self.value.as_bool().ok_or_else(|| self.wrong("write true or false"))
    }

    pub(super) fn number<T: TryFrom<u64>>(&self) -> Result<T, ConfigError> {
        let number = self.value.as_u64().ok_or_else(|| match self.value.as_f64() {
            Some(number) if number < 0.0 => self.wrong("it cannot be negative"),
            _ => self.wrong("write a whole number"),
        })?;
        T::try_from(number).map_err(|_| self.wrong("the number is too large"))
    }

    pub(super) fn millis(&self) -> Result<Duration, ConfigError> {
        self.number().map(Duration::from_millis)
    }

    pub(super) fn limit(&self) -> Result<Option<u32>, ConfigError> {
        if self.value.is_null() { Ok(None) } else { self.number().map(Some) }
    }

    pub(super) fn status(&self) -> Result<StatusCode, ConfigError> {
        StatusCode::from_u16(self.number()?).map_err(|_| self.wrong("write an HTTP status"))
    }

    pub(super) fn statuses(&self) -> Result<Statuses, ConfigError> {
        let sets = self.list_of(|item| match item.value {
            Value::String(class) => match class.as_str() {
                "1xx" => Ok(Statuses::classes(&[1])),
                "2xx" => Ok(Statuses::classes(&[2])),
                "3xx" => Ok(Statuses::classes(&[3])),
                "4xx" => Ok(Statuses::classes(&[4])),
                "5xx" => Ok(Statuses::classes(&[5])),
                _ => Err(item.wrong(STATUS_ADVICE)),
            },
            _ => match item.number() {
                Ok(status) if STATUSES.contains(&status) => Ok(Statuses::of(&[status])),
                _ => Err(item.wrong(STATUS_ADVICE)),
            },
        })?;
        Ok(sets.into_iter().fold(Statuses::default(), Statuses::and))
    }

    pub(super) fn word<T: FromStr<Err = ConfigError>>(&self) -> Result<T, ConfigError> {
        self.value.as_str().unwrap_or_default().parse()
    }

    pub(super) fn method(&self) -> Result<Method, ConfigError> {
        let name = self.text()?;
        if name.contains(|character: char| character.is_ascii_lowercase()) {
            return Err(self.wrong("write methods in capitals, as `POST`"));
        }
        Method::from_str(name).map_err(|_| self.wrong("write a method, as `POST`"))
    }

    pub(super) fn header(&self) -> Result<HeaderName, ConfigError> {
        self.text()?
            .parse()
            .map_err(|_| self.wrong("write the name of a header, as `Idempotency-Key`"))
    }

    pub(super) fn header_names(&self) -> Result<Vec<HeaderName>, ConfigError> {
        if self.value.is_array() {
            self.list_of(Given::header)
        } else {
            Ok(vec![
                self.header().map_err(|_| self.wrong("write the name of a header, or a list"))?,
            ])
        }
    }

    pub(super) fn scope(&self) -> Result<ScopeRule, ConfigError> {
        match self.value {
            Value::String(word) if word == "shared" => Ok(ScopeRule::Shared),
            Value::String(word) if word == "custom" => {
                Err(self.wrong("a function cannot be written here; set the scope in code"))
            }
            Value::Object(_) => match self.entries(&["bind", "header"])?.as_slice() {
                [names] if names.field == "scope.bind" => {
                    names.list_of(Given::header).map(ScopeRule::Bind)
                }
                [name] => name.header().map(ScopeRule::Header),
                _ => Err(self.wrong(SCOPE_ADVICE)),
            },
            _ => Err(self.wrong(SCOPE_ADVICE)),
        }
    }

    pub(super) fn fingerprint(&self, policy: PolicyBuilder) -> Result<PolicyBuilder, ConfigError> {
        if self.value == &Value::Bool(false) {
            return Ok(policy.fingerprint(None));
        }
        if !self.value.is_object() {
            return Err(self.wrong("write an object, or false for no comparison"));
        }
        let kept = policy.policy.fingerprint.clone();
        let mut rule = kept.unwrap_or_default();
        for entry in self.entries(&["body", "query", "headers"])? {
            match entry.field.as_str() {
                "fingerprint.body" => rule.body = entry.body_rule()?,
                "fingerprint.query" => rule.query = entry.query_rule()?,
                _ => rule.headers = entry.header_rule()?,
            }
        }
        Ok(policy.fingerprint(rule))
    }

    pub(super) fn replay(&self, policy: PolicyBuilder) -> Result<PolicyBuilder, ConfigError> {
        let mut rules = policy.policy.replay.clone();
        for entry in self.entries(&["allow", "deny", "set_cookie"])? {
            match entry.field.as_str() {
                "replay_headers.allow" if entry.value.is_null() => rules.allow = None,
                "replay_headers.allow" => rules.allow = Some(entry.list_of(Given::header)?),
                "replay_headers.deny" => rules.deny = entry.list_of(Given::header)?,
                _ => rules.set_cookie = entry.truth()?,
            }
        }
        Ok(policy.replay(rules))
    }

    pub(super) fn secret(&self) -> Result<Secret, ConfigError> {
        let (mut id, mut material) = (None, None);
        for entry in self.entries(&["id", "secret"])? {
            if entry.field.ends_with(".id") {
                id = Some(entry.number::<u8>().map_err(|_| entry.wrong("give 0 to 255"))?);
            } else {
                material = Some(entry.text()?);
            }
        }
        let (Some(id), Some(material)) = (id, material) else {
            return Err(self.wrong("write each as {\"id\": 0 to 255, \"secret\": \"…\"}"));
        };
        Secret::new(id, material.as_bytes()).map_err(|weak| self.wrong(weak.to_string()))
    }

    pub(super) fn optional_secret(&self) -> Result<Option<Secret>, ConfigError> {
        if self.value.is_null() { Ok(None) } else { self.secret().map(Some) }
    }

    pub(super) fn store_timeout(
        &self,
        mut policy: PolicyBuilder,
    ) -> Result<PolicyBuilder, ConfigError> {
        for entry in self.entries(&["claim", "settle"])? {
            let timeout = entry.millis()?;
            policy = match entry.field.as_str() {
                "store_timeout_ms.claim" => policy.claim_timeout(timeout),
                _ => policy.settle_timeout(timeout),
            };
        }
        Ok(policy)
    }

    pub(super) fn list_of<T>(
        &self,
        read: impl Fn(&Given<'a>) -> Result<T, ConfigError>,
    ) -> Result<Vec<T>, ConfigError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("write a list"))?;
        items.iter().map(|item| read(&Given::new(self.field.as_str(), item))).collect()
    }

    fn body_rule(&self) -> Result<BodyRule, ConfigError> {
        if self.value.is_object() {
            return match self.entries(&["fields"])?.as_slice() {
                [fields] => fields.list_of(Given::owned_text).map(BodyRule::Fields),
                _ => Err(self.wrong(BODY_ADVICE)),
            };
        }
        match self.value.as_str() {
            Some("raw") => Ok(BodyRule::Raw),
            Some("json") => Ok(BodyRule::Json),
            Some("form") => Ok(BodyRule::Form),
            Some("multipart") => Ok(BodyRule::Multipart),
            Some("none") => Ok(BodyRule::None),
            _ => Err(self.wrong(BODY_ADVICE)),
        }
    }

    fn query_rule(&self) -> Result<QueryRule, ConfigError> {
        match self.value {
            Value::Array(_) => self.list_of(Given::owned_text).map(QueryRule::Only),
            Value::String(word) if word == "raw" => Ok(QueryRule::Raw),
            Value::String(word) if word == "sorted" => Ok(QueryRule::Sorted),
            Value::String(word) if word == "none" => Ok(QueryRule::None),
            _ => Err(self.wrong("write `raw`, `sorted`, a list of names, or `none`")),
        }
    }

    fn header_rule(&self) -> Result<HeaderRule, ConfigError> {
        match self.value {
            Value::Array(_) => self.list_of(Given::header).map(HeaderRule::Only),
            Value::String(word) if word == "all" => Ok(HeaderRule::All),
            _ => Err(self.wrong("write a list of headers, or `all`")),
        }
    }

    fn text(&self) -> Result<&'a str, ConfigError> {
        self.value.as_str().ok_or_else(|| self.wrong("write a text"))
    }

    fn owned_text(&self) -> Result<String, ConfigError> {
        self.text().map(str::to_owned)
    }

    /// The entries of an object, each under its full name.
    fn entries(&self, known: &[&str]) -> Result<Vec<Given<'a>>, ConfigError> {
        let object = self
            .value
            .as_object()
            .ok_or_else(|| self.wrong(format!("write an object with `{}`", known.join("`, `"))))?;
        let entry = |(name, value): (&String, &'a Value)| {
            let entry = Given::new(format!("{}.{name}", self.field), value);
            if known.contains(&name.as_str()) {
                Ok(entry)
            } else {
                Err(entry.wrong(format!("no such field; there is `{}`", known.join("`, `"))))
            }
        };
        object.iter().map(entry).collect()
    }

    fn wrong(&self, advice: impl Into<std::borrow::Cow<'static, str>>) -> ConfigError {
        ConfigError::new(self.field.clone(), advice)
    }
}

const STATUS_ADVICE: &str = "list statuses from 100 to 599, or classes as `5xx`";
const SCOPE_ADVICE: &str =
    "write {\"bind\": [headers]}, {\"header\": name}, or `shared` (as a text)";
const BODY_ADVICE: &str =
    "write `raw`, `json`, `form`, `multipart`, {\"fields\": [JSON pointers]}, or `none`";
