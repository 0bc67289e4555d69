//! The ends of requests under a key.

use std::any::Any;

use idemptx_core::outcome::{Bypass, Outcome, Rejection};
use idemptx_core::response::StoredResponse;

use super::Work;

/// The end of a request under a key.
pub(crate) enum Driven<W: Work> {
    /// Pass: the caller runs the work without protection.
    Pass(Bypass, W),
    Reply(Reply<W::Product>, Outcome),
}

impl<W: Work> Driven<W> {
    pub(super) fn refuse(rejection: Rejection) -> Self {
        let outcome = Outcome::Refused(rejection.code);
        Self::Reply(Reply::Refuse { rejection: Box::new(rejection), product: None }, outcome)
    }
}

/// The answer to a client.
pub(crate) enum Reply<P> {
    Own(P),
    Replay(Box<StoredResponse>),
    Refuse {
        rejection: Box<Rejection>,
        /// The value of the work, if that broke down.
        product: Option<P>,
    },
    /// The work's own failure, as if there were no engine.
    Broken(Failure<P>),
}

/// The failure of a work.
pub(crate) enum Failure<P> {
    /// It ended with this value.
    Value(P),
    /// It panicked with this payload.
    Panic(PanicPayload),
}

pub(crate) type PanicPayload = Box<dyn Any + Send>;
