//! Claiming a record.

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::{Record, State};
use idemptx_core::store::{Claim, ClaimRequest, Expected, RecordSnapshot};
use idemptx_core::time::millis;

use super::command::{Command, Key};
use super::layout::{Layout, kept};
use super::refusal::{has_code, is_unknown_syntax};
use super::reply::Reply;
use super::scripts::{CLAIM, Form, ScriptReply};
use super::stored::{RecordState, ScriptVerdict, decode, see};
use super::{Decision, Next, Read, Step};

/// [`Store::claim`](idemptx_core::store::Store::claim).
///
/// One native command where it finds no record, or a settled one whose response is part of it;
/// else a script.
#[derive(Clone, Debug)]
pub struct ClaimStep {
    id: RecordId,
    request: ClaimRequest,
    /// The server's clock as this process reads it: the least fence of a grant, so that fences of
    /// one process grow whether a command or a script, which reads the clock itself, grants them.
    fence_min: u64,
    asked: Asked,
    /// True if scripts are given the key of the response: it may be missing, and while a slot is
    /// migrated, a node of a cluster refuses several keys of which not all are there.
    is_apart: bool,
}

#[derive(Clone, Debug)]
enum Asked {
    /// `SET`, with the least fence.
    Plain,
    Script(Form),
}

impl ClaimStep {
    /// Claims a record for a claim request.
    #[must_use]
    pub fn new(id: RecordId, mut request: ClaimRequest) -> Self {
        request.retain = kept(request.retain);
        Self { id, request, fence_min: 0, asked: Asked::Script(Form::Hash), is_apart: false }
    }

    fn lease(&self, fence: u64, attempt: u32) -> Lease {
        Lease::granted(self.id, &self.request, fence, attempt)
    }

    /// Returns the command that claims a free record, and reads an existing one.
    fn set_new(&self, layout: &Layout) -> Command {
        Command::of("SET", 7, Record::HEAD_BYTES)
            .key(layout, Key::Record(&self.id))
            .bytes(&Record::running(&self.lease(self.fence_min, FIRST_ATTEMPT)).encode())
            .text("NX")
            .text("GET")
            .text("PX")
            .number(millis(self.request.retain))
    }

    fn by_script(&self, layout: &Layout, form: Form) -> Command {
        let (state, token): (&str, &[u8]) = match &self.request.expected {
            None => ("", b""),
            Some(Expected::Orphan(token)) => ("held", token.as_bytes()),
            Some(Expected::Settled(token)) => ("settled", token.as_bytes()),
        };
        let keys = if self.is_apart { 2 } else { 1 };
        let command =
            CLAIM.call(form, keys, 4, Record::HEAD_BYTES).key(layout, Key::Record(&self.id));
        let command = match self.is_apart {
            true => command.key(layout, Key::Response(&self.id)),
            false => command,
        };
        command
            .bytes(&Record::running(&self.lease(self.fence_min, FIRST_ATTEMPT)).encode())
            .number(millis(self.request.retain))
            .text(state)
            .bytes(token)
    }

    fn ask_script(&mut self, layout: &Layout, form: Form) -> Next<Claim> {
        self.asked = Asked::Script(form);
        Next::Ask(self.by_script(layout, form))
    }

    fn answer_to_set(&mut self, layout: &Layout, reply: Reply) -> Next<Claim> {
        let verdict = match reply {
            Reply::Nil => Ok(Claim::Granted(self.lease(self.fence_min, FIRST_ATTEMPT))),
            Reply::Bytes(record) => match decode(&self.id, &record) {
                // How old a claim is, and what is kept apart, only a script can tell.
                Ok(record) if record.state == State::Running || record.apart => {
                    self.is_apart = record.apart;
                    return self.ask_script(layout, Form::Hash);
                }
                record => record.map(|it| Claim::Found(RecordSnapshot::Settled(it))),
            },
            // A server without memory refuses `SET` even where it would write nothing; the script
            // still reads, so that a replay is answered and only a new claim is refused.
            // Before 7.0 a server does not know `NX` and `GET` together.
            Reply::Error(error) if is_unknown_syntax(&error) || has_code(&error, "OOM") => {
                return self.ask_script(layout, Form::Hash);
            }
            Reply::Error(error) => Err(layout.refused(&error)),
            _ => Err(layout.unexpected("SET")),
        };
        Next::Done(verdict)
    }

    fn read(&mut self, layout: &Layout, form: Form, reply: Reply) -> Next<Claim> {
        Next::Done(match ScriptVerdict::read(layout, &self.id, reply) {
            Ok(ScriptVerdict::Granted(lease)) => Ok(Claim::Granted(lease)),
            Ok(ScriptVerdict::RecordState(found)) => Ok(found.into()),
            Ok(ScriptVerdict::Apart) if !self.is_apart => {
                self.is_apart = true;
                return self.ask_script(layout, form);
            }
            Ok(ScriptVerdict::Apart) => Err(layout.unexpected("EVALSHA")),
            Err(error) => Err(error),
        })
    }

    fn may_replace(&self, found: &RecordState) -> bool {
        match (found, &self.request.expected) {
            (RecordState::Held(holder), Some(Expected::Orphan(token))) => {
                holder.is_orphan() && holder.token == *token
            }
            (RecordState::Settled(record), Some(Expected::Settled(token))) => {
                record.token == *token
            }
            _ => false,
        }
    }

    fn grant(&self, layout: &Layout, lease: Lease, awaited: bool) -> Decision<Claim> {
        let mut record = Record::running(&lease);
        record.awaited = awaited;
        let key = Key::Record(&self.id);
        let write = Command::set(layout, key, &[&record.encode()], lease.retain);
        Decision { writes: vec![write], verdict: Ok(Claim::Granted(lease)) }
    }
}

impl Step for ClaimStep {
    type Verdict = Claim;

    fn begin(&mut self, layout: &Layout, micros: u64) -> Command {
        self.fence_min = micros;
        self.is_apart = false;
        // What may be replaced is there, so the plain command would only say so.
        if self.request.expected.is_some() {
            self.asked = Asked::Script(Form::Hash);
            return self.by_script(layout, Form::Hash);
        }
        self.asked = Asked::Plain;
        self.set_new(layout)
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<Claim> {
        let form = match &mut self.asked {
            Asked::Plain => return self.answer_to_set(layout, reply),
            Asked::Script(form) => form,
        };
        match form.read(reply) {
            ScriptReply::Again => {
                let form = *form;
                self.ask_script(layout, form)
            }
            ScriptReply::Refused(error) => Next::Done(Err(layout.refused(&error))),
            ScriptReply::Answer(reply) => {
                let form = *form;
                self.read(layout, form, reply)
            }
        }
    }

    fn decide(&self, layout: &Layout, read: Read) -> Decision<Claim> {
        let Some(record) = read.record else {
            return self.grant(
                layout,
                self.lease(read.micros.max(self.fence_min).max(1), FIRST_ATTEMPT),
                false,
            );
        };
        let old = match decode(&self.id, &record) {
            Ok(record) => record,
            Err(error) => return Decision::stands(Err(error)),
        };
        if old.state == State::Running && old.token == self.request.token {
            let key = Key::Record(&self.id);
            let write = Command::expire(layout, key, millis(old.retain));
            return Decision { writes: vec![write], verdict: Ok(Claim::Granted(old.lease())) };
        }
        let fence = old.fence.saturating_add(1).max(read.micros).max(self.fence_min);
        let lease = self.lease(fence, old.attempt.saturating_add(1));
        let is_lengthened = old.state == State::Running && read.pttl > pttl_of(&old);
        let retain = millis(old.retain);
        // Whoever waits for an orphan waits for its successor.
        let awaited = old.state == State::Running && old.awaited;
        let found = see(old, read.pttl, read.response);
        if self.may_replace(&found) {
            self.grant(layout, lease, awaited)
        } else if is_lengthened {
            // The server's clock went back: the lease ends a term from now, not that much later.
            let write = Command::expire(layout, Key::Record(&self.id), retain);
            Decision { writes: vec![write], verdict: Ok(found.into()) }
        } else {
            Decision::stands(Ok(found.into()))
        }
    }
}

/// The time to live that a claim is written with.
fn pttl_of(record: &Record) -> i64 {
    i64::try_from(millis(record.retain)).unwrap_or(i64::MAX)
}

const FIRST_ATTEMPT: u32 = 1;
