//! Pages of the stores that walk their records in the order of the ids.

use idemptx_core::key::RecordId;
use idemptx_core::store::{
    Cursor, ErrorKind, Page, Query, RecordStatuses, RecordSummary, StoreError,
};

/// A page under construction.
#[derive(Debug)]
pub(super) struct Listing<'q> {
    query: &'q Query,
    page: Page,
    last: Option<RecordId>,
}

impl<'q> Listing<'q> {
    pub(super) fn of(query: &'q Query) -> Self {
        Self { query, page: Page::default(), last: None }
    }

    /// The first and the last id that are still to be walked; `None` if there is none.
    pub(super) fn range(&self) -> Result<Option<(RecordId, RecordId)>, StoreError> {
        let (first, last) = self.query.bounds();
        let Some(cursor) = &self.query.after else { return Ok(Some((first, last))) };
        let after: RecordId = cursor
            .as_str()
            .parse()
            .map_err(|error| StoreError::with_source(ErrorKind::Invalid, error))?;
        Ok(successor(&after).map(|next| (next.max(first), last)).filter(|(from, to)| from <= to))
    }

    /// Returns the maximum number of records to read for this page.
    pub(super) fn walk_max(&self) -> usize {
        let is_plain = self.query.statuses == RecordStatuses::ALL && self.query.idle_min.is_zero();
        if is_plain { self.query.page_max() } else { WALK_MAX }
    }

    /// Takes the next of them, and says whether the page has room for another.
    pub(super) fn take(&mut self, id: RecordId, walked: Walked) -> bool {
        self.last = Some(id);
        match walked {
            Walked::Record(entry) if self.query.admits(&entry) => self.page.entries.push(entry),
            Walked::Record(_) | Walked::Expired => {}
            Walked::Unreadable => self.page.unreadable.push(id),
        }
        self.page.entries.len() < self.query.page_max()
    }

    /// The page, once it is full or the walk has come to its end.
    pub(super) fn end(mut self, is_complete: bool) -> Page {
        let (_, end) = self.query.bounds();
        self.page.next = self.last.filter(|last| !is_complete && *last < end).and_then(cursor);
        self.page
    }
}

/// State of an id in the store.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for one row, and most rows are records")]
pub(super) enum Walked {
    Record(RecordSummary),
    /// Nothing, as far as anybody is concerned.
    Expired,
    Unreadable,
}

fn cursor(id: RecordId) -> Option<Cursor> {
    id.to_string().parse().ok()
}

/// The next id in order; `None` after the last one.
fn successor(id: &RecordId) -> Option<RecordId> {
    let mut bytes = *id.as_bytes();
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(RecordId::from_bytes(bytes));
        }
    }
    None
}

/// Maximum number of records that are read for a filtered page.
const WALK_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_each_other_to_the_last() {
        let mut bytes = [0; RecordId::BYTES];
        assert!(successor(&RecordId::from_bytes(bytes)).unwrap().as_bytes().ends_with(&[0, 1]));
        bytes[30..].fill(255);
        assert!(successor(&RecordId::from_bytes(bytes)).unwrap().as_bytes().ends_with(&[1, 0, 0]));
        assert_eq!(successor(&RecordId::from_bytes([255; RecordId::BYTES])), None);
    }
}
