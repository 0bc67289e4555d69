//! Records in Redis: what is said and what an answer means, while Python has the connections.

mod channel;
mod client_commands;
mod conversation;
mod layout;
mod pubsub_reader;
mod reply_reader;
mod transaction;

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

pub(crate) use self::channel::Channel;
pub(crate) use self::client_commands::ClientCommands;
pub(crate) use self::layout::Layout;
pub(crate) use self::pubsub_reader::PubSubReader;
pub(crate) use self::transaction::Transaction;

create_exception!(
    idemptx._idemptx,
    RedisReplyError,
    PyException,
    "A reply that is an error; its text begins with the server's code, such as NOAUTH."
);

/// The exception for an error reply.
fn reply_error(error: &[u8]) -> PyErr {
    RedisReplyError::new_err(String::from_utf8_lossy(error).into_owned())
}
