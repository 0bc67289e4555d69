//! Step that subscribes to the end of a claim.

use idemptx_core::key::RecordId;
use idemptx_core::record::{Record, State};

use super::command::{Command, Key};
use super::layout::Layout;
use super::reply::Reply;
use super::scripts::{AWAIT, Form, ScriptReply};
use super::{Decision, Next, Read, Step};

/// Marks a claim as awaited, so that its end is published on the [channel](Layout::channel): the
/// part of [`Store::watch`](idemptx_core::store::Store::watch) that comes after subscribing.
///
/// The verdict is true if the record is claimed; otherwise there is no end to wait for.
#[derive(Clone, Debug)]
pub struct WatchStep {
    id: RecordId,
    form: Form,
}

impl WatchStep {
    /// Creates a step that marks the claim of a record.
    #[must_use]
    pub const fn new(id: RecordId) -> Self {
        Self { id, form: Form::Hash }
    }

    fn command(&self, layout: &Layout) -> Command {
        AWAIT.call(self.form, 1, 1, 0).key(layout, Key::Record(&self.id)).bytes(self.id.as_bytes())
    }

    fn mark(&self, layout: &Layout, mut record: Record) -> Command {
        record.awaited = true;
        let head = record.encode();
        let flags = head.get(Record::FLAGS_AT..).and_then(<[u8]>::first_chunk::<1>);
        Command::of("SETRANGE", 4, 0)
            .key(layout, Key::Record(&self.id))
            .number(Record::FLAGS_AT as u64)
            .bytes(flags.map_or(&[], |flags| flags))
    }
}

impl Step for WatchStep {
    type Verdict = bool;

    fn begin(&mut self, layout: &Layout, _: u64) -> Command {
        self.form = Form::Hash;
        self.command(layout)
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<bool> {
        match self.form.read(reply) {
            ScriptReply::Again => Next::Ask(self.command(layout)),
            ScriptReply::Refused(error) => Next::Done(Err(layout.refused(&error))),
            ScriptReply::Answer(Reply::Integer(is_claimed @ (0 | 1))) => {
                Next::Done(Ok(is_claimed == 1))
            }
            ScriptReply::Answer(_) => Next::Done(Err(layout.unexpected("EVALSHA"))),
        }
    }

    fn decide(&self, layout: &Layout, read: Read) -> Decision<bool> {
        let record = read.record.and_then(|record| Record::decode(&self.id, &record).ok());
        let Some(record) = record.filter(|record| record.state == State::Running) else {
            return Decision::stands(Ok(false));
        };
        let writes = if record.awaited { Vec::new() } else { vec![self.mark(layout, record)] };
        Decision { writes, verdict: Ok(true) }
    }
}
