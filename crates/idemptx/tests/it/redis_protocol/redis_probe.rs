//! A driver of steps on a plain connection, and what it sees around them.

use idemptx::store::redis::protocol::{Command, Layout, Next, Read, Reply, Step, clock};
use idemptx_core::key::RecordId;
use idemptx_core::store::StoreError;
use idemptx_testkit::RedisServer;
use redis::{Connection, ConnectionLike, Value};

/// A connection to a server of one's own.
pub(crate) struct RedisProbe {
    pub(crate) layout: Layout,
    connection: Connection,
    server: RedisServer,
}

/// The values of a record's two keys, and the `PTTL` of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) record: Option<Vec<u8>>,
    pub(crate) record_pttl: i64,
    pub(crate) response: Option<Vec<u8>>,
    pub(crate) response_pttl: i64,
}

impl RedisProbe {
    pub(crate) fn new() -> Self {
        // Nothing of it has to survive, so nothing waits for a disk.
        Self::of(RedisServer::start(&["appendonly no"]))
    }

    /// Does the same with a server that knows what Redis 7.0 does not.
    pub(crate) fn valkey() -> Self {
        Self::of(RedisServer::start_valkey(&["appendonly no"]))
    }

    fn of(server: RedisServer) -> Self {
        Self { layout: Layout::new("idem:"), connection: server.connection(), server }
    }

    /// Subscribes to the wake-ups of waiters.
    pub(crate) fn listener(&self) -> Connection {
        let mut listener = self.server.connection();
        redis::cmd("SUBSCRIBE").arg(self.layout.channel()).exec(&mut listener).unwrap();
        listener
    }

    /// Returns the messages that a listener has received since the last call.
    pub(crate) fn heard(&mut self, listener: &mut Connection) -> Vec<Vec<u8>> {
        let (channel, end) = (self.layout.channel().to_owned(), b"that was all".to_vec());
        redis::cmd("PUBLISH").arg(channel).arg(&end).exec(&mut self.connection).unwrap();
        let messages = std::iter::from_fn(|| match listener.recv_response().unwrap() {
            Value::Array(mut parts) => match parts.pop() {
                Some(Value::BulkString(message)) => Some(message),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        });
        messages.take_while(|message| *message != end).collect()
    }

    /// Makes the server's state be this one.
    pub(crate) fn set(&mut self, id: &RecordId, world: &World) {
        let [record, response] = self.layout.keys(id);
        redis::cmd("DEL").arg(&record).arg(&response).exec(&mut self.connection).unwrap();
        for (key, value, pttl) in [
            (record, &world.record, world.record_pttl),
            (response, &world.response, world.response_pttl),
        ] {
            let Some(value) = value else { continue };
            let mut set = redis::cmd("SET");
            set.arg(key).arg(value);
            if pttl >= 0 {
                set.arg("PX").arg(pttl);
            }
            set.exec(&mut self.connection).unwrap();
        }
    }

    pub(crate) fn world(&mut self, id: &RecordId) -> World {
        let [record, response] = self.layout.keys(id);
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("GET").arg(&record).cmd("PTTL").arg(&record);
        pipe.cmd("GET").arg(&response).cmd("PTTL").arg(&response);
        let (record, record_pttl, response, response_pttl) =
            pipe.query(&mut self.connection).unwrap();
        World { record, record_pttl, response, response_pttl }
    }

    /// Holds a step's dialogue; with the verdict comes what was there right before the last
    /// command.
    pub(crate) fn talk<S: Step>(
        &mut self,
        id: &RecordId,
        step: &mut S,
    ) -> (Result<S::Verdict, StoreError>, Read) {
        let micros = self.clock();
        let mut command = step.begin(&self.layout, micros);
        loop {
            let (read, reply) = self.read_and_ask(id, &command);
            match step.answer(&self.layout, reply) {
                Next::Ask(next) => command = next,
                Next::Done(verdict) => return (verdict, read),
            }
        }
    }

    /// Sends one command as it encodes itself.
    pub(crate) fn ask(&mut self, command: &Command) -> Reply {
        let mut packed = Vec::new();
        command.encode(&mut packed);
        reply(self.connection.req_packed_command(&packed).unwrap())
    }

    /// Executes the writes of a transaction.
    pub(crate) fn execute(&mut self, writes: &[Command]) {
        for reply in self.transaction(writes) {
            assert!(!matches!(reply, Reply::Error(_)), "{reply:?}");
        }
    }

    /// The server's clock, in microseconds since the Unix epoch.
    pub(crate) fn clock(&mut self) -> u64 {
        clock::micros(&self.ask(&clock::question())).unwrap()
    }

    /// Reads and asks in one transaction, so that the command finds what was read.
    fn read_and_ask(&mut self, id: &RecordId, command: &Command) -> (Read, Reply) {
        let questions = Read::questions(&self.layout, id);
        let mut replies = self.transaction(questions.iter().chain([command]));
        let reply = replies.pop().unwrap();
        let read = Read::of(&self.layout, replies.try_into().unwrap()).unwrap();
        (read, reply)
    }

    fn transaction<'a>(&mut self, commands: impl IntoIterator<Item = &'a Command>) -> Vec<Reply> {
        let (mut packed, mut count) = (MULTI.to_vec(), 0);
        for command in commands {
            command.encode(&mut packed);
            count += 1;
        }
        packed.extend_from_slice(EXEC);
        let replies = self.connection.req_packed_commands(&packed, count + 1, 1).unwrap();
        match <[Value; 1]>::try_from(replies).map(|[replies]| reply(replies)) {
            Ok(Reply::Array(replies)) => replies,
            other => panic!("{other:?}"),
        }
    }
}

/// Converts a reply of the client library to one of the protocol.
fn reply(value: Value) -> Reply {
    match value {
        Value::Nil => Reply::Nil,
        Value::Int(number) => Reply::Integer(number),
        Value::BulkString(bytes) => Reply::Bytes(bytes.into()),
        Value::SimpleString(text) => Reply::Bytes(text.into()),
        Value::Okay => Reply::Bytes("OK".into()),
        Value::Array(values) => Reply::Array(values.into_iter().map(reply).collect()),
        Value::ServerError(error) => {
            let details = error.details().unwrap_or_default();
            Reply::Error(format!("{} {details}", error.code()).into())
        }
        other => panic!("{other:?}"),
    }
}

const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";
