//! Giving a claim up, and keeping it.

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{ErrorKind, StoreError};

use super::command::{Command, Key};
use super::layout::{Layout, text};
use super::reply::Reply;
use super::scripts::{Form, RELEASE, RENEW, ScriptReply};
use super::stored::{Head, claim_of};
use super::{Decision, Next, Read, Step};

/// [`Store::release`](idemptx_core::store::Store::release).
#[derive(Clone, Debug)]
pub struct ReleaseStep {
    lease: Lease,
    form: Form,
}

impl ReleaseStep {
    /// Gives a lease up.
    #[must_use]
    pub const fn new(lease: Lease) -> Self {
        Self { lease, form: Form::Hash }
    }

    fn command(&self, layout: &Layout) -> Command {
        let id = &self.lease.id;
        let command = RELEASE.call(self.form, 1, 2, 0).key(layout, Key::Record(id));
        wakes(command, layout, id).joined(&claim_of(&self.lease))
    }
}

impl Step for ReleaseStep {
    type Verdict = ();

    fn begin(&mut self, layout: &Layout, _: u64) -> Command {
        self.form = Form::Hash;
        self.command(layout)
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<()> {
        match self.form.read(reply) {
            ScriptReply::Again => Next::Ask(self.command(layout)),
            ScriptReply::Refused(error) => Next::Done(Err(layout.refused(&error))),
            ScriptReply::Answer(reply) => Next::Done(if_in_force(layout, &reply)),
        }
    }

    fn decide(&self, layout: &Layout, read: Read) -> Decision<()> {
        let old = Head::of(read.record.as_ref());
        if old.is_absent() {
            return Decision::stands(Ok(()));
        }
        if !old.is_claim_of(&self.lease) || !old.is_running() {
            return Decision::stands(Err(ErrorKind::Fenced.into()));
        }
        let id = &self.lease.id;
        let delete = Command::of("DEL", 2, 0).key(layout, Key::Record(id));
        let wake = old.is_awaited().then(|| wake(layout, id));
        Decision { writes: [delete].into_iter().chain(wake).collect(), verdict: Ok(()) }
    }
}

/// [`Store::renew`](idemptx_core::store::Store::renew); the lease stays as it is.
#[derive(Clone, Debug)]
pub struct RenewStep {
    lease: Lease,
    form: Form,
}

impl RenewStep {
    /// Creates a step that restarts a lease's term.
    #[must_use]
    pub const fn new(lease: Lease) -> Self {
        Self { lease, form: Form::Hash }
    }

    fn command(&self, layout: &Layout) -> Command {
        RENEW
            .call(self.form, 1, 1, 0)
            .key(layout, Key::Record(&self.lease.id))
            .joined(&claim_of(&self.lease))
    }
}

impl Step for RenewStep {
    type Verdict = ();

    fn begin(&mut self, layout: &Layout, _: u64) -> Command {
        self.form = Form::Hash;
        self.command(layout)
    }

    fn answer(&mut self, layout: &Layout, reply: Reply) -> Next<()> {
        match self.form.read(reply) {
            ScriptReply::Again => Next::Ask(self.command(layout)),
            ScriptReply::Refused(error) => Next::Done(Err(layout.refused(&error))),
            ScriptReply::Answer(reply) => Next::Done(if_in_force(layout, &reply)),
        }
    }

    fn decide(&self, layout: &Layout, read: Read) -> Decision<()> {
        let old = Head::of(read.record.as_ref());
        match old.retention() {
            Some(retention) if old.is_claim_of(&self.lease) && old.is_running() => {
                let key = Key::Record(&self.lease.id);
                Decision { writes: vec![Command::expire(layout, key, retention)], verdict: Ok(()) }
            }
            _ => Decision::stands(Err(ErrorKind::Fenced.into())),
        }
    }
}

/// Reads what a script says that compares the claim: whether it was still in force.
pub(super) fn if_in_force(layout: &Layout, reply: &Reply) -> Result<(), StoreError> {
    match reply {
        Reply::Integer(1) => Ok(()),
        Reply::Integer(0) => Err(ErrorKind::Fenced.into()),
        _ => Err(layout.unexpected("EVALSHA")),
    }
}

/// Creates the command that notifies about the end of this claim.
pub(super) fn wake(layout: &Layout, id: &RecordId) -> Command {
    Command::of(layout.publish(), 3, 0).text(&layout.channel_of(id)).bytes(&text(id))
}

/// Adds the argument with which a script that ends a claim sends that command.
pub(super) fn wakes(command: Command, layout: &Layout, id: &RecordId) -> Command {
    let channel = layout.channel_of(id);
    command.joined(&[layout.publish().as_bytes(), b" ", channel.as_bytes()])
}
