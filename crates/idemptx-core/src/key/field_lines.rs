//! A few lines of a header.

use http::{HeaderName, HeaderValue};

/// Field lines of a header, of which there is mostly one.
#[derive(Default)]
pub(crate) struct FieldLines {
    /// Apart from the others, so that it needs no memory of its own.
    first: Option<FieldLine>,
    others: Vec<FieldLine>,
}

type FieldLine = (HeaderName, HeaderValue);

impl FieldLines {
    pub(crate) fn push(&mut self, name: HeaderName, value: HeaderValue) {
        let line = (name, value);
        match &self.first {
            None => self.first = Some(line),
            Some(_) => self.others.push(line),
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &FieldLine> {
        self.first.iter().chain(&self.others)
    }
}
