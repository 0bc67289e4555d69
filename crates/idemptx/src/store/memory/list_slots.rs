//! Listing of the records in memory, for operators.

use idemptx_core::key::RecordId;
use idemptx_core::store::{Cursor, ErrorKind, Inventory, ListFilter, Page, Query, StoreError};

use super::{MemoryStore, SHARDS};

/// Lists one shard after the other, in the order of the ids within each.
///
/// A page is made of as many shards as it takes to fill it, or to look at some thousand records;
/// each is held up for as long as it takes to go over its records once.
impl Inventory for MemoryStore {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let mut page = Page::default();
        if let ListFilter::Record(id) = query.filter {
            let shard = self.0.shard(&id);
            page.entries.extend(self.0.step(shard, |shard, now| shard.entry(&id, now)));
            page.entries.retain(|entry| query.admits(entry));
            return Ok(page);
        }
        let mut place = match &query.after {
            Some(cursor) => ShardPosition::read(cursor).ok_or(ErrorKind::Invalid)?,
            None => ShardPosition { shard: 0, after: None },
        };
        let mut walked = 0;
        while let Some(shard) = self.0.shards.get(place.shard) {
            let room = query.page_max() - page.entries.len();
            if room == 0 || walked >= WALK_MAX {
                page.next = place.cursor();
                break;
            }
            let mut found = self.0.step(shard, |shard, now| {
                walked += shard.len();
                shard.list(query, place.after, now, room + 1)
            });
            place = match found.len() > room {
                true => {
                    found.truncate(room);
                    ShardPosition { after: found.last().map(|entry| entry.id), ..place }
                }
                false => ShardPosition { shard: place.shard + 1, after: None },
            };
            page.entries.append(&mut found);
        }
        Ok(page)
    }
}

/// Position of a page's end: the shard, and its last listed record.
#[derive(Clone, Copy)]
struct ShardPosition {
    shard: usize,
    after: Option<RecordId>,
}

impl ShardPosition {
    fn read(cursor: &Cursor) -> Option<Self> {
        let (shard, after) = cursor.as_str().split_once('.')?;
        let shard = shard.parse().ok().filter(|shard| *shard < SHARDS)?;
        let after = if after.is_empty() { None } else { Some(after.parse().ok()?) };
        Some(Self { shard, after })
    }

    fn cursor(self) -> Option<Cursor> {
        let after = self.after.map(|id| id.to_string()).unwrap_or_default();
        format!("{}.{after}", self.shard).parse().ok()
    }
}

/// Number of records after which a page ends with the current shard.
const WALK_MAX: usize = 4_096;
