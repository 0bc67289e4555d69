//! Listing what there is.
//!
//! `SCAN` walks the server's keys and gives a handful at a time, more or fewer than asked for.
//! Where they are more than a page may hold, the next page asks for the same handful again, and
//! goes on in it after the last id that was listed; if the server has rearranged its keys meanwhile
//! (its cursor then leads elsewhere), it is listed all over: twice rather than never.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::record::Record;
use idemptx_core::store::{
    Cursor, ErrorKind, ListFilter, Page, Query, RecordStatus, RecordStatuses, RecordSummary,
    StoreError,
};

use super::clock;
use super::cluster::{SLOTS, slot_of};
use super::command::{Command, Key};
use super::layout::Layout;
use super::refusal::has_code;
use super::reply::Reply;
use super::scripts::{Form, LIST, ScriptReply};
use super::stored::remaining;

/// [`Inventory::list`](idemptx_core::store::Inventory::list): a dialogue of several commands at a
/// time, which may be begun again with another step of the same query.
#[derive(Clone, Debug)]
pub struct ListStep {
    query: Query,
    position: ScanPosition,
    stage: Stage,
    /// Ids of the current batch.
    ids: Vec<RecordId>,
    /// Cursor of the server after this batch.
    next: u64,
    form: Form,
    scans_left: u32,
    slots: Range<u16>,
}

/// Purpose of the last commands.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// A handful of keys.
    Scan,
    /// The letters of their states: most records are in none that operators ask for.
    Sift,
    /// Reads the summaries of the records.
    Read,
}

/// Continuation after the replies to a batch of commands.
#[derive(Debug)]
pub enum ListNext {
    /// Other commands, all at once; their replies are to come in the same order.
    Ask(Vec<Command>),
    /// The end of the dialogue.
    Done(Result<Page, StoreError>),
}

impl ListStep {
    /// Lists one page.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the query's cursor is of another store.
    pub fn new(query: Query) -> Result<Self, StoreError> {
        let position = match &query.after {
            Some(cursor) => ScanPosition::read(cursor).ok_or(ErrorKind::Invalid)?,
            None => ScanPosition { at: 0, rest: None },
        };
        let (stage, form, scans_left) = (Stage::Scan, Form::Hash, SCANS_MAX);
        let (ids, slots) = (Vec::new(), 0..SLOTS);
        Ok(Self { query, position, stage, ids, next: 0, form, scans_left, slots })
    }

    /// Leaves out what a node of a cluster has in other slots than these.
    #[must_use]
    pub const fn within(mut self, slots: Range<u16>) -> Self {
        self.slots = slots;
        self
    }

    /// Begins the dialogue.
    pub fn begin(&mut self, layout: &Layout) -> Vec<Command> {
        match self.query.filter {
            ListFilter::Record(id) => {
                self.ids = vec![id];
                self.read(layout)
            }
            _ => vec![self.scan(layout)],
        }
    }

    /// Takes the replies to the last commands.
    pub fn answer(&mut self, layout: &Layout, replies: Vec<Reply>) -> ListNext {
        let answered = match self.stage {
            Stage::Scan => self.found(layout, replies),
            Stage::Sift => self.sifted(layout, replies),
            Stage::Read => self.listed(layout, replies),
        };
        answered.unwrap_or_else(|error| ListNext::Done(Err(error)))
    }

    fn scan(&mut self, layout: &Layout) -> Command {
        self.stage = Stage::Scan;
        self.scans_left = self.scans_left.saturating_sub(1);
        let is_plain = self.query.statuses == RecordStatuses::ALL && self.query.idle_min.is_zero();
        let count = if is_plain { self.query.page_max() } else { WALK_MAX };
        Command::of("SCAN", 6, 0)
            .number(self.position.at)
            .text("MATCH")
            .bytes(&pattern(layout, &self.query))
            .text("COUNT")
            .number(count as u64)
    }

    fn sift(&mut self, layout: &Layout) -> Vec<Command> {
        self.stage = Stage::Sift;
        let letter = |id| {
            let get = Command::of("GETRANGE", 4, 0).key(layout, Key::Record(id));
            get.number(STATE_AT).number(STATE_AT)
        };
        self.ids.iter().map(letter).collect()
    }

    fn read(&mut self, layout: &Layout) -> Vec<Command> {
        self.stage = Stage::Read;
        let read = |id| {
            let call = LIST.call(self.form, 2, 0, 0);
            call.key(layout, Key::Record(id)).key(layout, Key::Response(id))
        };
        [clock::question()].into_iter().chain(self.ids.iter().map(read)).collect()
    }

    /// Takes a handful of keys.
    fn found(&mut self, layout: &Layout, replies: Vec<Reply>) -> Result<ListNext, StoreError> {
        let unexpected = || layout.unexpected("SCAN");
        let [next, keys] = match replies.into_iter().next() {
            Some(Reply::Array(parts)) => <[Reply; 2]>::try_from(parts).map_err(|_| unexpected())?,
            Some(Reply::Error(error)) => return Err(layout.refused(&error)),
            _ => return Err(unexpected()),
        };
        let (Reply::Bytes(next), Reply::Array(keys)) = (next, keys) else {
            return Err(unexpected());
        };
        self.next = number(&next).ok_or_else(unexpected)?;
        self.ids = keys.iter().filter_map(|key| id_of(layout, key)).collect();
        if self.slots != (0..SLOTS) {
            self.ids.retain(|id| self.slots.contains(&slot_of(id)));
        }
        self.ids.sort_unstable();
        self.ids.dedup();
        if let Some((next, after)) = self.position.rest
            && next == self.next
        {
            self.ids.retain(|id| *id > after);
        }
        if self.ids.is_empty() {
            return Ok(self.go_on(layout));
        }
        let is_sifted = self.query.statuses == RecordStatuses::ALL;
        Ok(ListNext::Ask(if is_sifted { self.read(layout) } else { self.sift(layout) }))
    }

    /// Takes the letters of states, and lets go of what is not asked for.
    fn sifted(&mut self, layout: &Layout, replies: Vec<Reply>) -> Result<ListNext, StoreError> {
        let mut ids = Vec::new();
        for (id, reply) in self.ids.iter().zip(replies) {
            let is_kept = match reply {
                Reply::Bytes(letter) => may_be(&letter, self.query.statuses),
                Reply::Error(error) if has_code(&error, "WRONGTYPE") => true,
                Reply::Error(error) => return Err(layout.refused(&error)),
                _ => return Err(layout.unexpected("GETRANGE")),
            };
            if is_kept {
                ids.push(*id);
            }
        }
        self.ids = ids;
        let asked =
            if self.ids.is_empty() { self.go_on(layout) } else { ListNext::Ask(self.read(layout)) };
        Ok(asked)
    }

    /// Goes on with the next handful, unless there is none, or enough has come to nothing.
    fn go_on(&mut self, layout: &Layout) -> ListNext {
        if self.next == 0 || self.scans_left == 0 {
            return ListNext::Done(Ok(self.end(Page::default(), None)));
        }
        self.position = ScanPosition { at: self.next, rest: None };
        ListNext::Ask(vec![self.scan(layout)])
    }

    /// Takes what stands under them.
    fn listed(&mut self, layout: &Layout, replies: Vec<Reply>) -> Result<ListNext, StoreError> {
        let mut replies = replies.into_iter();
        let micros = match replies.next() {
            Some(Reply::Error(error)) => return Err(layout.refused(&error)),
            time => time.as_ref().and_then(clock::micros),
        };
        let micros = micros.ok_or_else(|| layout.unexpected("TIME"))?;
        let (mut page, mut last) = (Page::default(), None);
        for (id, reply) in self.ids.iter().zip(replies) {
            let entry = match self.form.read(reply) {
                ScriptReply::Again => return Ok(ListNext::Ask(self.read(layout))),
                ScriptReply::Refused(error) if has_code(&error, "WRONGTYPE") => None,
                ScriptReply::Refused(error) => return Err(layout.refused(&error)),
                // It is gone since the scan.
                ScriptReply::Answer(Reply::Nil) => continue,
                ScriptReply::Answer(reply) => read(layout, id, reply, micros)?,
            };
            match entry {
                None => page.unreadable.push(*id),
                Some(entry) if !self.query.admits(&entry) => {}
                Some(_) if page.entries.len() == self.query.page_max() => {
                    return Ok(ListNext::Done(Ok(self.end(page, last))));
                }
                Some(entry) => page.entries.push(entry),
            }
            last = Some(*id);
        }
        Ok(ListNext::Done(Ok(self.end(page, None))))
    }

    /// The page, which may end within the handful, after an id.
    fn end(&self, mut page: Page, within: Option<RecordId>) -> Page {
        page.next = match within {
            Some(last) => {
                ScanPosition { at: self.position.at, rest: Some((self.next, last)) }.cursor()
            }
            None if self.next == 0 => None,
            None => ScanPosition { at: self.next, rest: None }.cursor(),
        };
        page
    }
}

/// Position of a page's end: the server's cursor where a batch begins and, if a part of it was
/// listed, the cursor where it ends with the last listed id.
#[derive(Clone, Copy, Debug)]
struct ScanPosition {
    at: u64,
    rest: Option<(u64, RecordId)>,
}

impl ScanPosition {
    fn read(cursor: &Cursor) -> Option<Self> {
        let mut parts = cursor.as_str().splitn(3, '.');
        let at = parts.next()?.parse().ok()?;
        let rest = match (parts.next(), parts.next()) {
            (None, _) => None,
            (Some(next), last) => Some((next.parse().ok()?, last?.parse().ok()?)),
        };
        Some(Self { at, rest })
    }

    fn cursor(self) -> Option<Cursor> {
        let text = match self.rest {
            Some((next, last)) => format!("{}.{next}.{last}", self.at),
            None => self.at.to_string(),
        };
        text.parse().ok()
    }
}

/// Returns the `MATCH` pattern of the records' keys, without those of separate responses.
fn pattern(layout: &Layout, query: &Query) -> Vec<u8> {
    let mut pattern = Vec::new();
    for byte in layout.prefix() {
        if b"*?[]^-\\".contains(byte) {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern.push(b'{');
    if let ListFilter::Scope(scope) = query.filter {
        scope.iter().for_each(|byte| pattern.extend(format!("{byte:02x}").bytes()));
        pattern.push(b':');
    }
    pattern.extend(b"*}");
    pattern
}

/// The record whose key this is, if it is one of ours.
fn id_of(layout: &Layout, key: &Reply) -> Option<RecordId> {
    let Reply::Bytes(key) = key else { return None };
    let id = key.strip_prefix(layout.prefix())?.strip_prefix(b"{")?.strip_suffix(b"}")?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// Returns true if a record with this letter may have one of these statuses, or is invalid.
fn may_be(letter: &[u8], statuses: RecordStatuses) -> bool {
    let any = |of: [RecordStatus; 2]| of.iter().any(|status| statuses.contains(*status));
    match letter {
        b"R" => any([RecordStatus::Running, RecordStatus::Orphaned]),
        b"D" | b"S" => any([RecordStatus::Completed, RecordStatus::ResponseExpired]),
        b"N" => statuses.contains(RecordStatus::NotReplayable),
        b"U" => statuses.contains(RecordStatus::Unknown),
        _ => true,
    }
}

/// Reads what the script says; `None` for what is no record.
fn read(
    layout: &Layout,
    id: &RecordId,
    reply: Reply,
    micros: u64,
) -> Result<Option<RecordSummary>, StoreError> {
    let unexpected = || layout.unexpected("EVALSHA");
    let Reply::Array(parts) = reply else { return Err(unexpected()) };
    let parts = <[Reply; 4]>::try_from(parts).map_err(|_| unexpected())?;
    let [Reply::Bytes(head), Reply::Integer(pttl), sizes @ ..] = parts else {
        return Err(unexpected());
    };
    let [Reply::Integer(size), Reply::Integer(apart)] = sizes else { return Err(unexpected()) };
    let Ok(record) = Record::decode(id, &head) else { return Ok(None) };
    let payload_bytes = if record.apart { apart } else { size - Record::HEAD_BYTES as i64 };
    let left = remaining(&record, pttl);
    let record = if record.apart && apart < 0 { record.with_response_expired() } else { record };
    // Without an expiry (after a PERSIST) it stays for ever.
    let expires_in = u64::try_from(pttl).map_or(Duration::MAX, Duration::from_millis);
    let age = Duration::from_micros(micros.saturating_sub(record.fence));
    let mut entry = RecordSummary::new(&record, left, expires_in, age);
    entry.payload_bytes = u64::try_from(payload_bytes).unwrap_or(0);
    Ok(Some(entry))
}

fn number(digits: &Bytes) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Offset of the state's letter in a record.
const STATE_AT: u64 = 1;
/// Number of keys that a scan for a filtered page reads.
const WALK_MAX: usize = 500;
/// Number of scans without a result after which a page ends empty.
const SCANS_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handful_that_is_too_large_for_a_page_is_gone_on_with_after_the_last_id() {
        let layout = Layout::new("idem:");
        let ids = [id(1), id(2), id(3)];
        let mut step = ListStep::new(Query::all().limit(2)).unwrap();
        let mut walked = Vec::new();
        for expected in [&ids[..2], &ids[2..]] {
            step.begin(&layout);
            let ListNext::Ask(reads) = step.answer(&layout, vec![scanned(&layout, 7, &ids)]) else {
                panic!("nothing is read")
            };
            let ListNext::Done(Ok(page)) = step.answer(&layout, records(&ids, reads.len())) else {
                panic!("no page")
            };
            let listed: Vec<_> = page.entries.iter().map(|entry| entry.id).collect();
            assert_eq!(listed, expected);
            walked.push(page.next.clone().unwrap().to_string());
            step = ListStep::new(Query::all().limit(2).after(page.next)).unwrap();
        }
        assert_eq!(walked, [format!("0.7.{}", id(2)), "7".to_owned()]);
    }

    #[test]
    fn a_handful_that_was_rearranged_is_listed_all_over() {
        let layout = Layout::new("idem:");
        let cursor = format!("0.7.{}", id(2)).parse().unwrap();
        let mut step = ListStep::new(Query::all().after(Some(cursor))).unwrap();
        step.begin(&layout);
        let ids = [id(1), id(2), id(3)];
        let ListNext::Ask(reads) = step.answer(&layout, vec![scanned(&layout, 5, &ids)]) else {
            panic!("nothing is read")
        };
        assert_eq!(reads.len(), 1 + ids.len());
    }

    #[test]
    fn only_keys_of_records_are_taken_for_such() {
        let layout = Layout::new("a*b:");
        let [record, response] = layout.keys(&id(1));
        let key = |text: String| id_of(&layout, &Reply::Bytes(text.into()));
        assert_eq!(key(record), Some(id(1)));
        for other in [response, format!("axb:{{{}}}", id(1)), "a*b:{x}".to_owned()] {
            assert_eq!(key(other), None);
        }
        assert!(pattern(&layout, &Query::all()).starts_with(b"a\\*b:{"));
    }

    #[test]
    fn what_is_not_asked_for_is_let_go_of_by_its_letter() {
        let layout = Layout::new("idem:");
        let mut step = ListStep::new(Query::in_doubt()).unwrap();
        step.begin(&layout);
        let ids = [id(1), id(2), id(3), id(4), id(5)];
        let ListNext::Ask(sifts) = step.answer(&layout, vec![scanned(&layout, 7, &ids)]) else {
            panic!("nothing is sifted")
        };
        assert_eq!(sifts.len(), ids.len());
        let letters = ["D", "U", "R", "", "?"].map(|letter| Reply::Bytes(letter.into()));
        let ListNext::Ask(reads) = step.answer(&layout, letters.into()) else {
            panic!("nothing is read")
        };
        assert_eq!(reads.len(), 1 + 4);
        let mut step = ListStep::new(Query::in_doubt()).unwrap();
        step.begin(&layout);
        step.answer(&layout, vec![scanned(&layout, 7, &ids[..1])]);
        let ListNext::Ask(scans) = step.answer(&layout, vec![Reply::Bytes("D".into())]) else {
            panic!("the walk has come to an end")
        };
        assert_eq!(scans[0].arguments().nth(1), Some(&b"7"[..]));
    }

    #[test]
    fn cursors_of_other_stores_are_refused() {
        for text in ["x", "1.2", "1.2.3", "-1", "1.2.x:y"] {
            let query = Query::all().after(Some(text.parse().unwrap()));
            assert_eq!(ListStep::new(query).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
    }

    fn id(number: u8) -> RecordId {
        RecordId::from_bytes([number; RecordId::BYTES])
    }

    fn scanned(layout: &Layout, next: u64, ids: &[RecordId]) -> Reply {
        let keys = ids.iter().map(|id| Reply::Bytes(layout.keys(id)[0].clone().into()));
        Reply::Array(vec![Reply::Bytes(next.to_string().into()), Reply::Array(keys.collect())])
    }

    /// Returns the server's time, and a record for each of the last `asked - 1` ids.
    fn records(ids: &[RecordId], asked: usize) -> Vec<Reply> {
        use idemptx_core::fingerprint::Fingerprint;
        use idemptx_core::lease::{Lease, Token};
        use idemptx_core::store::ClaimRequest;
        let part = |digits: &'static str| Reply::Bytes(digits.into());
        let time = Reply::Array(vec![part("1700000000"), part("250000")]);
        let fingerprint =
            Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
        let hour = Duration::from_secs(3600);
        let request = ClaimRequest::new(Token::from_bytes([1; 16]), fingerprint, hour, hour);
        let record = |id: &RecordId| {
            let record = Record::running(&Lease::granted(*id, &request, 1, 1)).encode();
            let size = Reply::Integer(record.len() as i64);
            let (pttl, apart) = (Reply::Integer(1_000), Reply::Integer(-1));
            Reply::Array(vec![Reply::Bytes(record.into()), pttl, size, apart])
        };
        let skipped = ids.len() + 1 - asked;
        [time].into_iter().chain(ids.iter().skip(skipped).map(record)).collect()
    }
}
