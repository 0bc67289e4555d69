//! The decisions that operators may make about records.

use super::RecordStatus;

/// The decision that an operator may make about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Intervention {
    /// None: the owner is alive, and is going to settle.
    None,
    /// The operation is in doubt: its result may be stored, or its key released.
    ///
    /// The record may be forgotten, too, as if its key had never been used.
    Resolve,
    /// The result is final: no resolution replaces it, and the record may be forgotten.
    Forget,
}

impl RecordStatus {
    /// Returns what an operator may decide about a record of this status.
    #[must_use]
    pub const fn intervention(self) -> Intervention {
        match self {
            Self::Running => Intervention::None,
            Self::Orphaned | Self::Unknown => Intervention::Resolve,
            Self::Completed | Self::NotReplayable | Self::ResponseExpired => Intervention::Forget,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RecordStatuses;
    use super::*;

    #[test]
    fn operators_decide_what_nobody_else_will() {
        let expected = |status| match status {
            RecordStatus::Running => Intervention::None,
            RecordStatus::Orphaned => Intervention::Resolve,
            RecordStatus::Completed => Intervention::Forget,
            RecordStatus::NotReplayable => Intervention::Forget,
            RecordStatus::Unknown => Intervention::Resolve,
            RecordStatus::ResponseExpired => Intervention::Forget,
        };
        for status in RecordStatus::ALL {
            assert_eq!(status.intervention(), expected(status), "{status}");
        }
        let doubts = |it: &RecordStatus| it.intervention() == Intervention::Resolve;
        let doubtful: RecordStatuses = RecordStatus::ALL.into_iter().filter(doubts).collect();
        assert_eq!(
            doubtful.iter().collect::<Vec<_>>(),
            RecordStatuses::IN_DOUBT.iter().collect::<Vec<_>>()
        );
    }
}
