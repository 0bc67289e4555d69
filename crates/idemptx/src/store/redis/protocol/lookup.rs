//! Reading a record.

use idemptx_core::key::RecordId;
use idemptx_core::store::{RecordSnapshot, StoreError};

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
}

impl LookupStep {
    /// Reads a record without claiming it.
    #[must_use]
    pub const fn new(id: RecordId) -> Self {
        Self { id, form: Form::Hash }
    }

    fn command(&self, layout: &Layout) -> Command {
        LOOK.call(self.form, 2, 1, 0)
            .key(layout, Key::Record(&self.id))
            .key(layout, Key::Response(&self.id))
            .bytes(self.id.as_bytes())
    }

    fn read(&self, layout: &Layout, reply: Reply) -> Result<Option<RecordSnapshot>, StoreError> {
        match reply {
            Reply::Nil => Ok(None),
            reply => match ScriptVerdict::read(layout, &self.id, reply)? {
                ScriptVerdict::RecordState(found) => Ok(Some(found.into())),
                ScriptVerdict::Granted(_) => Err(layout.unexpected("EVALSHA")),
            },
        }
    }
}

impl Step for LookupStep {
    type Verdict = Option<RecordSnapshot>;

    fn begin(&mut self, layout: &Layout, _: u64) -> Command {
        self.form = Form::Hash;
        self.command(layout)
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<Option<RecordSnapshot>> {
        match self.form.read(reply) {
            ScriptReply::Again => Next::Ask(self.command(layout)),
            ScriptReply::Refused(error) => Next::Done(Err(layout.refused(&error))),
            ScriptReply::Answer(reply) => Next::Done(self.read(layout, reply)),
        }
    }

    fn decide(&self, _: &Layout, read: Read) -> Decision<Option<RecordSnapshot>> {
        let Some(record) = read.record else { return Decision::stands(Ok(None)) };
        let record = decode(&self.id, &record);
        Decision::stands(record.map(|record| Some(see(record, read.pttl, read.response).into())))
    }
}
