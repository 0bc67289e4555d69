//! Reading a record.

use idemptx_core::key::RecordId;
use idemptx_core::store::RecordSnapshot;

use super::command::{Command, Key};
use super::layout::Layout;
use super::reply::Reply;
use super::scripts::{Form, LOOK, ScriptReply};
use super::stored::{ScriptVerdict, decode, see};
use super::{Decision, Next, Read, Step};

/// [`Store::lookup`](idemptx_core::store::Store::lookup).
#[derive(Clone, Debug)]
pub struct LookupStep {
    id: RecordId,
    form: Form,
    /// True if the key of the response is named.
    is_apart: bool,
}

impl LookupStep {
    /// Reads a record without claiming it.
    #[must_use]
    pub const fn new(id: RecordId) -> Self {
        Self { id, form: Form::Hash, is_apart: false }
    }

    fn command(&self, layout: &Layout) -> Command {
        let keys = if self.is_apart { 2 } else { 1 };
        let command = LOOK.call(self.form, keys, 1, 0).key(layout, Key::Record(&self.id));
        let command = match self.is_apart {
            true => command.key(layout, Key::Response(&self.id)),
            false => command,
        };
        command.bytes(self.id.as_bytes())
    }

    fn read(&mut self, layout: &Layout, reply: Reply) -> Next<Option<RecordSnapshot>> {
        if reply == Reply::Nil {
            return Next::Done(Ok(None));
        }
        Next::Done(match ScriptVerdict::read(layout, &self.id, reply) {
            Ok(ScriptVerdict::RecordState(found)) => Ok(Some(found.into())),
            Ok(ScriptVerdict::Apart) if !self.is_apart => {
                self.is_apart = true;
                return Next::Ask(self.command(layout));
            }
            Ok(_) => Err(layout.unexpected("EVALSHA")),
            Err(error) => Err(error),
        })
    }
}

impl Step for LookupStep {
    type Verdict = Option<RecordSnapshot>;

    fn begin(&mut self, layout: &Layout, _: u64) -> Command {
        self.form = Form::Hash;
        self.is_apart = false;
        self.command(layout)
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<Option<RecordSnapshot>> {
        match self.form.read(reply) {
            ScriptReply::Again => Next::Ask(self.command(layout)),
            ScriptReply::Refused(error) => Next::Done(Err(layout.refused(&error))),
            ScriptReply::Answer(reply) => self.read(layout, reply),
        }
    }

    fn decide(&self, _: &Layout, read: Read) -> Decision<Option<RecordSnapshot>> {
        let Some(record) = read.record else { return Decision::stands(Ok(None)) };
        let record = decode(&self.id, &record);
        Decision::stands(record.map(|record| Some(see(record, read.pttl, read.response).into())))
    }
}
