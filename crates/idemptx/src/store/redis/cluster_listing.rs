//! Listing the records of a cluster, run by run of its slots.
//!
//! A cursor names the run that is being walked and the primary that serves it, beside the cursor of
//! that server.
//! Where the run has gone to another primary meanwhile, in whole or in part, it is walked from its
//! beginning: twice rather than never.
//! What is in a slot that is being migrated at that moment may be left out.

use std::ops::Range;
use std::sync::Arc;

use idemptx_core::store::{Cursor, ErrorKind, ListFilter, Page, Query, StoreError};

use super::cluster_nodes::{Cluster, SlotRun};
use super::deployment::Deployment;
use super::node::Node;
use super::protocol::cluster::SLOTS;
use super::protocol::{Layout, ListNext, ListStep};

/// Lists one page of a cluster.
pub(super) async fn list(
    deployment: &Deployment,
    cluster: &Arc<Cluster>,
    layout: &Layout,
    query: &Query,
) -> Result<Page, StoreError> {
    if let ListFilter::Record(id) = query.filter {
        let (slot, node) = deployment.route(&id).await?.into_node();
        return page(deployment, layout, slot, &node, ListStep::new(query.clone())?).await;
    }
    let position = match &query.after {
        Some(cursor) => Position::read(cursor).ok_or(ErrorKind::Invalid)?,
        None => Position::begin(0),
    };
    let Some(run) = cluster.run_from(position.slots.start).await? else {
        return Ok(Page::default());
    };
    let after = position.within(&run);
    let step = ListStep::new(query.clone().after(after))?.within(run.slots.clone());
    let mut page = page(deployment, layout, run.slots.start, &run.node, step).await?;
    page.next = match page.next {
        Some(cursor) => Position::cursor(&run, &cursor),
        // What went elsewhere during the page is found where it is now.
        None if !is_as_it_was(cluster, &run).await? => Position::begin_cursor(run.slots.start),
        None if run.slots.end < SLOTS => Position::begin_cursor(run.slots.end),
        None => None,
    };
    Ok(page)
}

async fn is_as_it_was(cluster: &Arc<Cluster>, run: &SlotRun) -> Result<bool, StoreError> {
    let now = cluster.run_from(run.slots.start).await?;
    Ok(now.is_some_and(|now| now.slots == run.slots && now.mark == run.mark))
}

/// Lists one page of what a server has.
pub(super) async fn page(
    deployment: &Deployment,
    layout: &Layout,
    slot: u16,
    node: &Arc<Node>,
    mut step: ListStep,
) -> Result<Page, StoreError> {
    let mut commands = step.begin(layout);
    loop {
        let replies = deployment.ask_all(slot, node, &commands).await?;
        match step.answer(layout, replies) {
            ListNext::Ask(next) => commands = next,
            ListNext::Done(page) => return page,
        }
    }
}

/// Position in the slots: everything before is listed.
struct Position {
    slots: Range<u16>,
    /// The primary of the run, and its own cursor; nothing at the beginning of a run.
    rest: Option<(String, Cursor)>,
}

impl Position {
    const fn begin(slot: u16) -> Self {
        Self { slots: slot..slot, rest: None }
    }

    fn begin_cursor(slot: u16) -> Option<Cursor> {
        format!("{slot}").parse().ok()
    }

    fn cursor(run: &SlotRun, rest: &Cursor) -> Option<Cursor> {
        let Range { start, end } = run.slots;
        format!("{start}-{end}-{}.{}", run.mark, rest.as_str()).parse().ok()
    }

    fn read(cursor: &Cursor) -> Option<Self> {
        let Some((run, rest)) = cursor.as_str().split_once('.') else {
            return cursor.as_str().parse().ok().filter(|slot| *slot < SLOTS).map(Self::begin);
        };
        let mut parts = run.splitn(3, '-');
        let (start, end) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let rest = (parts.next()?.to_owned(), rest.parse().ok()?);
        (start < end && end <= SLOTS).then_some(Self { slots: start..end, rest: Some(rest) })
    }

    /// Returns the server's cursor, if the run is what it was.
    fn within(self, run: &SlotRun) -> Option<Cursor> {
        let (mark, rest) = self.rest?;
        (mark == run.mark && self.slots == run.slots).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_back() {
        let cursor: Cursor = "5461-10923-abcdef012345.7.9.x".parse().unwrap();
        let position = Position::read(&cursor).unwrap();
        assert_eq!(position.slots, 5461..10_923);
        let (mark, rest) = position.rest.unwrap();
        assert_eq!((&*mark, rest.as_str()), ("abcdef012345", "7.9.x"));
        assert_eq!(Position::read(&"10923".parse().unwrap()).unwrap().slots, 10_923..10_923);
        for other in ["16384", "x", "1-2.3", "2-1-a.3", "1-16385-a.3", "1-2-a"] {
            assert!(Position::read(&other.parse().unwrap()).is_none(), "{other}");
        }
    }
}
