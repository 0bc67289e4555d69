//! Rights that a user needs to end what it has claimed.
//!
//! A claim is a native command, and what ends it is a script: a user who may run only the former
//! would be granted claims whose results are never kept, and their operations would run again.

use idemptx_core::key::RecordId;

use super::command::{Command, Key};
use super::layout::Layout;
use super::refusal::has_code;
use super::reply::Reply;
use super::scripts::{Form, RIGHTS};
use crate::store::{Finding, Severity};

/// Returns the commands that find out what the user may not run; they change nothing.
#[must_use]
pub fn questions(layout: &Layout) -> [Command; 2] {
    [Form::Hash, Form::Code]
        .map(|form| RIGHTS.call(form, 1, 0, 0).key(layout, Key::Record(&NOBODYS)))
}

/// Evaluates the replies to the [questions].
///
/// Any error but a refusal says nothing about the rights, and is no finding.
#[must_use]
pub fn finding(replies: &[Reply; 2]) -> Option<Finding> {
    replies.iter().find_map(finding_of)
}

fn finding_of(reply: &Reply) -> Option<Finding> {
    let lacking = match reply {
        Reply::Error(error) if has_code(error, "NOPERM") => {
            format!("it refuses a script: {}", String::from_utf8_lossy(error))
        }
        Reply::Array(commands) if !commands.is_empty() => {
            let name = |command: &Reply| match command {
                Reply::Bytes(name) => Some(String::from_utf8_lossy(name).to_lowercase()),
                _ => None,
            };
            let names: Vec<_> = commands.iter().filter_map(name).collect();
            format!("add +{}", names.join(" +"))
        }
        _ => return None,
    };
    let text = format!(
        "the user lacks rights without which no result is kept, so that its operation would run \
         again; {lacking}"
    );
    Some(Finding::new(Severity::Fatal, text))
}

/// Id of a record that no key leads to.
const NOBODYS: RecordId = RecordId::from_bytes([0; RecordId::BYTES]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_says_something_about_rights() {
        let error = |text: &'static str| Reply::Error(text.into());
        let lacking = Reply::Array(vec![Reply::Bytes("DEL".into()), Reply::Bytes("GET".into())]);
        for (reply, says) in [
            (lacking, Some("add +del +get")),
            (error("NOPERM User app has no permissions to run the 'eval' command"), Some("'eval'")),
            (Reply::Array(Vec::new()), None),
            (error("ERR unknown command 'EVAL'"), None),
            (error("OOM command not allowed when used memory > 'maxmemory'."), None),
            (Reply::Nil, None),
        ] {
            let finding = finding(&[error("NOSCRIPT No matching script."), reply.clone()]);
            assert_eq!(finding.is_some(), says.is_some(), "{reply:?}");
            if let (Some(finding), Some(says)) = (finding, says) {
                assert_eq!(finding.severity, Severity::Fatal);
                assert!(finding.text.contains(says), "{}", finding.text);
            }
        }
    }
}
