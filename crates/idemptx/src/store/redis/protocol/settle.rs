//! Making a result final.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{ErrorKind, Settlement, StoreError};
use idemptx_core::time::millis;

use super::command::{Command, Key};
use super::layout::{Layout, kept};
use super::lease::{if_in_force, wake, wakes};
use super::refusal::{has_code, is_unknown_syntax};
use super::reply::Reply;
use super::scripts::{Form, SETTLE, ScriptReply};
use super::stored::Head;
use super::{Decision, Next, Read, Step};

/// [`Store::settle`](idemptx_core::store::Store::settle).
///
/// One native command where the server knows how to compare, unless the end is awaited; else a script.
#[derive(Clone, Debug)]
pub struct SettleStep {
    lease: Lease,
    /// Head of the record, followed by the payload unless that is stored separately.
    head: Vec<u8>,
    payload: Bytes,
    retain: Duration,
    key_retain: Duration,
    is_apart: bool,
    asked: Asked,
}

#[derive(Clone, Debug)]
enum Asked {
    /// `SET`, if the claim is as it was granted.
    Compared,
    Script(Form),
}

impl SettleStep {
    /// Settles a lease.
    #[must_use]
    pub fn new(lease: Lease, done: Settlement) -> Self {
        let (retain, key_retain) = (kept(done.retain), kept(done.key_retain.max(done.retain)));
        let mut record = Record::settled(&lease, &done);
        record.retain = key_retain;
        // Only a response that can be replayed ends before its key does.
        record.apart = record.state == State::Completed && retain < key_retain;
        record.payload = Bytes::new();
        Self {
            lease,
            head: record.encode(),
            payload: done.payload,
            retain,
            key_retain,
            is_apart: record.apart,
            asked: Asked::Script(Form::Hash),
        }
    }

    /// The parts of the record.
    fn record(&self) -> [&[u8]; 2] {
        [&self.head, if self.is_apart { b"" } else { &self.payload }]
    }

    /// Returns the command that settles a claim whose end is not awaited.
    fn set_compared(&self, layout: &Layout) -> Command {
        let claim = Record::running(&self.lease).encode();
        let size = claim.len() + self.head.len() + self.payload.len();
        Command::of("SET", 7, size)
            .key(layout, Key::Record(&self.lease.id))
            .joined(&self.record())
            .text("IFEQ")
            .bytes(&claim)
            .text("PX")
            .number(millis(self.key_retain))
    }

    fn by_script(&self, layout: &Layout, form: Form) -> Command {
        let id = &self.lease.id;
        // A key that may be missing is named only where it is needed: while a slot is migrated, a
        // node of a cluster refuses several keys of which not all are there.
        let (keys, arguments) = if self.is_apart { (2, 5) } else { (1, 3) };
        let size = self.head.len() + self.payload.len();
        let command = SETTLE.call(form, keys, arguments, size).key(layout, Key::Record(id));
        let command = if self.is_apart { command.key(layout, Key::Response(id)) } else { command };
        let command =
            wakes(command, layout, id).joined(&self.record()).number(millis(self.key_retain));
        if self.is_apart {
            command.bytes(&self.payload).number(millis(self.retain))
        } else {
            command
        }
    }

    /// Goes on with the script, unless the claim was as it was granted.
    fn answer_to_set(&mut self, layout: &Layout, reply: Reply) -> Next<()> {
        match reply {
            Reply::Bytes(_) => return Next::Done(Ok(())),
            // Awaited, settled before, or another's: the script tells which.
            Reply::Nil => {}
            Reply::Error(error) if is_unknown_syntax(&error) => layout.note_needs_scripts(),
            // A script may write what was paid for although there is no memory.
            Reply::Error(error) if has_code(&error, "OOM") => {}
            Reply::Error(error) => return Next::Done(Err(layout.refused(&error))),
            _ => return Next::Done(Err(layout.unexpected("SET"))),
        }
        self.asked = Asked::Script(Form::Hash);
        Next::Ask(self.by_script(layout, Form::Hash))
    }

    fn writes(&self, layout: &Layout, is_awaited: bool) -> Vec<Command> {
        let id = &self.lease.id;
        let response = self
            .is_apart
            .then(|| Command::set(layout, Key::Response(id), &[&self.payload], self.retain));
        // The record goes last: it is what makes the response count.
        let record = Command::set(layout, Key::Record(id), &self.record(), self.key_retain);
        let wake = is_awaited.then(|| wake(layout, id));
        response.into_iter().chain([record]).chain(wake).collect()
    }
}

impl Step for SettleStep {
    type Verdict = ();

    fn begin(&mut self, layout: &Layout, _: u64) -> Command {
        if layout.may_compare() && !self.is_apart {
            self.asked = Asked::Compared;
            return self.set_compared(layout);
        }
        self.asked = Asked::Script(Form::Hash);
        self.by_script(layout, Form::Hash)
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<()> {
        match &mut self.asked {
            Asked::Compared => self.answer_to_set(layout, reply),
            Asked::Script(form) => match form.read(reply) {
                ScriptReply::Again => {
                    let form = *form;
                    Next::Ask(self.by_script(layout, form))
                }
                ScriptReply::Refused(error) => Next::Done(Err(layout.refused(&error))),
                ScriptReply::Answer(reply) => Next::Done(if_in_force(layout, &reply)),
            },
        }
    }

    fn decide(&self, layout: &Layout, read: Read) -> Decision<()> {
        let old = Head::of(read.record.as_ref());
        if old.is_claim_of(&self.lease) && old.is_running() {
            return Decision { writes: self.writes(layout, old.is_awaited()), verdict: Ok(()) };
        }
        let is_settled_so =
            old.is_claim_of(&self.lease) && old.is_in_the_state_of(Head::new(&self.head));
        let fenced = || StoreError::new(ErrorKind::Fenced);
        Decision::stands(is_settled_so.then_some(()).ok_or_else(fenced))
    }
}
