//! What an operator may do about a record, and what will come of it: the same words on the page,
//! in the API and on the command line.

use idemptx::operator::RecordStatus;

use crate::recorder::event_log::Event;

/// Something to be done about one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperatorAction {
    /// The operation did not happen: give the key up.
    Release,
    /// The operation happened: store its answer.
    Answer,
    /// Remove a result.
    Forget,
}

impl OperatorAction {
    /// What may be done about a record in this state.
    ///
    /// Nothing about one whose owner is alive: it is about to settle.
    pub(crate) const fn for_state(status: RecordStatus) -> &'static [Self] {
        match status {
            RecordStatus::Orphaned | RecordStatus::Unknown => &[Self::Answer, Self::Release],
            RecordStatus::Completed
            | RecordStatus::NotReplayable
            | RecordStatus::ResponseExpired => &[Self::Forget],
            _ => &[],
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Answer => "answer",
            Self::Forget => "forget",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Release, Self::Answer, Self::Forget].into_iter().find(|it| it.as_str() == name)
    }

    /// As a button has it.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Release => "Release the key",
            Self::Answer => "Store an answer",
            Self::Forget => "Forget the record",
        }
    }

    /// What will happen.
    pub(crate) const fn consequence(self) -> &'static str {
        match self {
            Self::Release => {
                "The next request with this key executes the operation. Do it only if you know \
                 that it did not happen: otherwise it happens twice."
            }
            Self::Answer => {
                "Every retry gets the answer that you give, and nothing is executed. Do it if you \
                 know that the operation happened."
            }
            Self::Forget => {
                "The answer is lost, and a retry of the request executes the operation again, as \
                 if its key had never been used."
            }
        }
    }

    pub(super) const fn event(self) -> Event {
        match self {
            Self::Release => Event::OperatorReleased,
            Self::Answer => Event::OperatorAnswered,
            Self::Forget => Event::OperatorForgot,
        }
    }

    /// What has happened.
    pub(crate) const fn done(self) -> &'static str {
        match self {
            Self::Release => "Released: the next request with this key executes.",
            Self::Answer => "Stored: every retry with this key gets that answer.",
            Self::Forget => "Forgotten: the next request with this key executes.",
        }
    }
}
