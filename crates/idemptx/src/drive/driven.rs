//! The ends of requests under a key.

use std::any::Any;

use idemptx_core::outcome::{Bypass, Outcome, Rejection};
use idemptx_core::response::StoredResponse;

use super::Work;

/// The end of a request under a key.
pub(crate) enum Driven<W: Work> {
    /// Pass: the caller runs the work without protection.
    Pass(Bypass, W),
    Reply(Reply<W::Product>),
}

/// The answer to a client.
pub(crate) enum Reply<P> {
    Own {
        product: P,
        attempt: u32,
        stored: bool,
    },
    Replay {
        response: Box<StoredResponse>,
        /// The attempt of this request's own execution, if that was fenced.
        fenced: Option<u32>,
    },
    Refuse {
        rejection: Box<Rejection>,
        /// The value of the work, if that broke down.
        product: Option<P>,
        /// The attempt of this request's own execution, if that was fenced.
        fenced: Option<u32>,
    },
    /// The work's own failure, as if there were no engine.
    Broken {
        failure: Failure<P>,
        attempt: u32,
    },
}

impl<P> Reply<P> {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Own { attempt, stored, .. } => {
                Outcome::Executed { attempt: *attempt, stored: *stored }
            }
            Self::Replay { fenced: Some(attempt), .. } => {
                Outcome::Fenced { attempt: *attempt, code: None }
            }
            Self::Replay { .. } => Outcome::Replayed,
            Self::Refuse { rejection, fenced: Some(attempt), .. } => {
                Outcome::Fenced { attempt: *attempt, code: Some(rejection.code) }
            }
            Self::Refuse { rejection, .. } => Outcome::Refused(rejection.code),
            Self::Broken { attempt, .. } => Outcome::Executed { attempt: *attempt, stored: false },
        }
    }

    pub(super) fn refuse(rejection: Rejection) -> Self {
        Self::Refuse { rejection: Box::new(rejection), product: None, fenced: None }
    }
}

/// The failure of a work.
pub(crate) enum Failure<P> {
    /// It ended with this value.
    Value(P),
    /// It panicked with this payload.
    Panic(PanicPayload),
}

pub(crate) type PanicPayload = Box<dyn Any + Send>;
