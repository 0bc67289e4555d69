//! Acknowledgement of a record by replicas, and by disks.

use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::time::millis;

use super::command::{Command, Key};
use super::layout::Layout;
use super::reply::Reply;
use super::wait_replicas::{ALL, WaitReplicas};
use crate::store::{Finding, Severity};

/// Condition for a claim or a result to count, after it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store::redis) struct Acknowledgement {
    pub(in crate::store::redis) replicas: WaitReplicas,
    /// True if it has to be in the append-only file, on the disk.
    pub(in crate::store::redis) is_on_disk: bool,
}

/// Answer to whether a record is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store::redis) enum Acknowledged {
    Yes,
    /// More replicas are connected than were waited for: wait for this many.
    AskAgain(u64),
    /// No, or not in time; with the error of the server, if there is one.
    No(Option<String>),
}

impl Acknowledgement {
    /// Returns true if something is waited for.
    pub(in crate::store::redis) fn is_needed(self) -> bool {
        self.is_on_disk || self.replicas != WaitReplicas::Count(0)
    }

    /// Returns the commands that wait until replicas and disks have a record as it is now.
    ///
    /// The first makes sure that there is something of this connection to wait for: a step that was
    /// taken before may have written nothing this time.
    pub(in crate::store::redis) fn commands(
        self,
        layout: &Layout,
        id: &RecordId,
        replicas: u64,
        limit: Duration,
    ) -> [Command; 2] {
        let touch = Command::of("EVAL", 5, TOUCH.len()).text(TOUCH).number(1);
        let counted = if self.replicas == WaitReplicas::All { ALL } else { "" };
        let wait = match self.is_on_disk {
            true => Command::of(WAITAOF, 4, 0).number(1),
            false => Command::of("WAIT", 3, 0),
        };
        let wait = wait.number(replicas).number(millis(limit).max(1));
        [touch.key(layout, Key::Record(id)).text(counted), wait]
    }

    /// Judges the replies to the commands that waited for so many replicas.
    pub(in crate::store::redis) fn judge(self, asked: u64, replies: &[Reply]) -> Acknowledged {
        let [Reply::Integer(connected), waited] = replies else {
            return Acknowledged::No(replies.iter().find_map(error_of));
        };
        let required = self.replicas.required(u64::try_from(*connected).unwrap_or(0));
        let (is_on_disk, replicas) = match waited {
            Reply::Integer(replicas) => (!self.is_on_disk, *replicas),
            Reply::Array(parts) => match parts.as_slice() {
                [Reply::Integer(local), Reply::Integer(replicas)] => (*local > 0, *replicas),
                _ => (false, 0),
            },
            other => return Acknowledged::No(error_of(other)),
        };
        let has_replicas = u64::try_from(replicas).is_ok_and(|replicas| replicas >= required);
        match is_on_disk && has_replicas {
            true => Acknowledged::Yes,
            false if is_on_disk && required > asked => Acknowledged::AskAgain(required),
            false => Acknowledged::No(None),
        }
    }
}

/// Returns the command that tells whether a server can wait for its append-only file.
pub(in crate::store::redis) fn disk_question() -> Command {
    Command::of(WAITAOF, 4, 0).number(1).number(0).number(1)
}

/// Reads the answer: the reason why a server cannot wait for its append-only file.
pub(in crate::store::redis) fn disk_finding(reply: &Reply) -> Option<Finding> {
    let error = error_of(reply)?;
    let text = format!(
        "`wait_aof` needs the command WAITAOF, which came with Redis 7.2, its permission, and \
         appendonly yes: upgrade the server, or leave the setting out; it says: {error}"
    );
    Some(Finding::new(Severity::Fatal, text))
}

fn error_of(reply: &Reply) -> Option<String> {
    let Reply::Error(error) = reply else { return None };
    Some(String::from_utf8_lossy(error).into_owned())
}

const TOUCH: &str = include_str!("lua/touch.lua");
const WAITAOF: &str = "WAITAOF";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_acknowledged_or_not() {
        let all = WaitReplicas::All;
        let disk =
            |local, replicas| Reply::Array(vec![Reply::Integer(local), Reply::Integer(replicas)]);
        for (replicas, is_on_disk, asked, connected, waited, expected) in [
            (1.into(), false, 1, 0, Reply::Integer(1), Acknowledged::Yes),
            (2.into(), false, 2, 0, Reply::Integer(1), Acknowledged::No(None)),
            (all, false, 1, 1, Reply::Integer(1), Acknowledged::Yes),
            // At least one, also where none is connected.
            (all, false, 1, 0, Reply::Integer(0), Acknowledged::No(None)),
            // One has left since the last time, one has come.
            (all, false, 2, 1, Reply::Integer(1), Acknowledged::Yes),
            (all, false, 1, 2, Reply::Integer(1), Acknowledged::AskAgain(2)),
            (all, false, 1, 2, Reply::Integer(2), Acknowledged::Yes),
            (0.into(), true, 0, 0, disk(1, 0), Acknowledged::Yes),
            (0.into(), true, 0, 0, disk(0, 0), Acknowledged::No(None)),
            (all, true, 1, 1, disk(1, 1), Acknowledged::Yes),
            (all, true, 1, 1, disk(1, 0), Acknowledged::No(None)),
            (all, true, 1, 2, disk(1, 1), Acknowledged::AskAgain(2)),
            (all, true, 1, 2, disk(0, 1), Acknowledged::No(None)),
            // A plain count where the disk was asked for is no answer.
            (0.into(), true, 0, 0, Reply::Integer(1), Acknowledged::No(None)),
        ] {
            let replies = [Reply::Integer(connected), waited];
            let judged = Acknowledgement { replicas, is_on_disk }.judge(asked, &replies);
            assert_eq!(judged, expected, "{replicas} of {replies:?}");
        }
    }

    #[test]
    fn an_error_is_no_acknowledgement_and_says_why() {
        let error = || Reply::Error("NOPERM no".into());
        let waiting = Acknowledgement { replicas: WaitReplicas::All, is_on_disk: false };
        let why = Acknowledged::No(Some("NOPERM no".to_owned()));
        assert_eq!(waiting.judge(1, &[error(), Reply::Integer(9)]), why);
        assert_eq!(waiting.judge(1, &[Reply::Integer(1), error()]), why);
        assert_eq!(waiting.judge(1, &[]), Acknowledged::No(None));
        assert!(disk_finding(&error()).unwrap().text.contains("7.2"));
        assert_eq!(disk_finding(&Reply::Array(vec![])), None);
    }
}
