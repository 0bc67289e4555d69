//! Commands and replies in the words of the client library.

use bytes::Bytes;
use redis::{Cmd, Pipeline, Value};

use super::protocol::{Command, Reply};
use super::redis_failure::error_text;

/// A command as the client library has it.
pub(super) fn packed(command: &Command) -> Cmd {
    let arguments = command.arguments();
    let mut packed = Cmd::with_capacity(arguments.len(), command.bytes_count());
    for argument in arguments {
        packed.arg(argument);
    }
    packed
}

/// Several, to be written at once.
pub(super) fn pipeline(commands: &[Command]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command(packed(command));
    }
    pipeline
}

/// An answer as the protocol has it, if it is one that a command of this store may get.
pub(super) fn reply(value: Value) -> Option<Reply> {
    Some(match value {
        Value::Nil => Reply::Nil,
        Value::Int(number) => Reply::Integer(number),
        Value::BulkString(bytes) => Reply::Bytes(bytes.into()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Reply::Bytes(text.into()),
        Value::Okay => Reply::Bytes(Bytes::from_static(b"OK")),
        Value::Array(values) => Reply::Array(values.into_iter().map(reply).collect::<Option<_>>()?),
        // What RESP3 has as a map is an array of its parts in RESP2.
        Value::Map(pairs) => {
            let parts = pairs.into_iter().flat_map(|(name, value)| [name, value]);
            Reply::Array(parts.map(reply).collect::<Option<_>>()?)
        }
        Value::ServerError(error) => Reply::Error(error_text(&error.into())?),
        _ => return None,
    })
}
