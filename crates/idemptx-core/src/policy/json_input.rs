//! The values of a policy as they are written in JSON, with the errors that name them.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::ConfigError;

/// A JSON value as it was written: repeated names are kept, so that they can be refused.
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(u64),
    Negative,
    Fraction,
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

/// A value, with the name of the field for which it is given.
pub(super) struct Given<'a> {
    field: String,
    pub(super) node: &'a Node,
}

impl<'a> Given<'a> {
    pub(super) fn new(field: impl Into<String>, node: &'a Node) -> Self {
        Self { field: field.into(), node }
    }

    pub(super) fn text(&self) -> Result<&'a str, ConfigError> {
        match self.node {
            Node::Text(text) => Ok(text),
            _ => Err(self.wrong("write a text")),
        }
    }

    /// Returns the entries of an object, each with its short name, and refuses names that are not
    /// `known` or stand there twice.
    pub(super) fn entries<'n>(
        &self,
        known: &[&'n str],
    ) -> Result<Vec<(&'n str, Given<'a>)>, ConfigError> {
        let list = known.join("`, `");
        let Node::Object(object) = self.node else {
            return Err(self.wrong(format!("write an object with `{list}`")));
        };
        let mut entries: Vec<(&str, Given<'a>)> = Vec::with_capacity(object.len());
        for (name, node) in object {
            let entry = Given::new(format!("{}.{name}", self.field), node);
            let Some(name) = known.iter().find(|known| *known == name) else {
                return Err(entry.wrong(format!("no such field; there is `{list}`")));
            };
            if entries.iter().any(|(earlier, _)| earlier == name) {
                return Err(entry.repeated());
            }
            entries.push((name, entry));
        }
        Ok(entries)
    }

    pub(super) fn repeated(&self) -> ConfigError {
        self.wrong("it stands here twice; keep one")
    }

    pub(super) fn number<T: TryFrom<u64>>(&self) -> Result<T, ConfigError> {
        match self.node {
            Node::Number(number) => {
                T::try_from(*number).map_err(|_| self.wrong("the number is too large"))
            }
            Node::Negative => Err(self.wrong("it cannot be negative")),
            _ => Err(self.wrong("write a whole number")),
        }
    }

    pub(super) fn list<T>(
        &self,
        read: impl Fn(&Given<'a>) -> Result<T, ConfigError>,
    ) -> Result<Vec<T>, ConfigError> {
        let Node::List(items) = self.node else { return Err(self.wrong("write a list")) };
        items.iter().map(|item| read(&Given::new(self.field.as_str(), item))).collect()
    }

    pub(super) fn header(&self) -> Result<HeaderName, ConfigError> {
        let wrong = |_| self.wrong("write the name of a header, as `Idempotency-Key`");
        self.text()?.parse().map_err(wrong)
    }

    pub(super) fn texts(&self) -> Result<Vec<String>, ConfigError> {
        self.list(|item| item.text().map(str::to_owned))
    }

    pub(super) fn wrong(&self, advice: impl Into<Cow<'static, str>>) -> ConfigError {
        ConfigError::new(self.field.clone(), advice)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of policy fields")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Node, E> {
        Ok(Node::Bool(truth))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(u64::try_from(number).map_or(Node::Negative, Node::Number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(if number < 0.0 { Node::Negative } else { Node::Fraction })
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Object(entries))
    }
}
