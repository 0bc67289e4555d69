//! The decisions of operators, with the texts that the page, the API and the command line share.

use idemptx::operator::{Intervention, RecordStatus};

/// A decision about one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperatorAction {
    /// The operation did not happen: release the key.
    Release,
    /// The operation happened: store its response.
    Answer,
    /// Remove a result.
    Forget,
}

impl OperatorAction {
    /// The decisions that a record's status allows.
    ///
    /// None while the owner's lease is in force: it is going to settle.
    pub(crate) const fn for_status(status: RecordStatus) -> &'static [Self] {
        match status.intervention() {
            Intervention::Resolve => &[Self::Answer, Self::Release],
            Intervention::Forget => &[Self::Forget],
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

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Release, Self::Answer, Self::Forget].into_iter().find(|it| it.as_str() == name)
    }

    /// The caption of a button.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Release => "Release the key",
            Self::Answer => "Store an answer",
            Self::Forget => "Forget the record",
        }
    }

    /// The consequence, to be confirmed.
    pub(crate) const fn consequence(self) -> &'static str {
        match self {
            Self::Release => {
                "The next request with this key executes the operation. Do it only if you know \
                 that it did not happen: otherwise it happens twice."
            }
            Self::Answer => {
                "Every retry gets the answer that you enter, and nothing is executed. Do it if you \
                 know that the operation happened."
            }
            Self::Forget => {
                "The response is lost, and a retry of the request executes the operation again, \
                 as if its key had never been used."
            }
        }
    }

    /// The confirmation.
    pub(crate) const fn done(self) -> &'static str {
        match self {
            Self::Release => "Released: the next request with this key executes.",
            Self::Answer => "Stored: every retry with this key gets that answer.",
            Self::Forget => "Forgotten: the next request with this key executes.",
        }
    }
}
