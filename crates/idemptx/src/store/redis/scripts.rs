//! The scripts, sent by their hash, and in full to a server that does not know them.
//!
//! Each is atomic, reads and compares before it writes, and may be sent twice.
//! They are not sent through the client library's own helper, which answers an unknown script with
//! a `SCRIPT LOAD` to every node of a cluster and needs every one of them up.

use redis::Cmd;

/// One script and its hash.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// Runs it on a server that has seen it.
    pub(super) fn by_hash(&self, keys: &[String], arguments: &[&[u8]]) -> Cmd {
        call("EVALSHA", &self.hash, keys, arguments)
    }

    /// Runs it on any server, which knows it from then on.
    pub(super) fn by_code(&self, keys: &[String], arguments: &[&[u8]]) -> Cmd {
        call("EVAL", self.code, keys, arguments)
    }
}

/// All scripts of the store.
pub(super) struct Scripts {
    pub(super) claim: Script,
    pub(super) look: Script,
    pub(super) settle: Script,
    pub(super) release: Script,
    pub(super) renew: Script,
    pub(super) mark_awaited: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            claim: Script::new(CLAIM),
            look: Script::new(LOOK),
            settle: Script::new(SETTLE),
            release: Script::new(RELEASE),
            renew: Script::new(RENEW),
            mark_awaited: Script::new(AWAIT),
        }
    }
}

fn call(verb: &str, script: &str, keys: &[String], arguments: &[&[u8]]) -> Cmd {
    let mut command = redis::cmd(verb);
    command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
    command
}

// Without a shebang a script may read while memory is exhausted, and only its writes fail: a new
// claim is refused, a settled record is still replayed.
const CLAIM: &str = concat!(
    include_str!("lua/record.lua"),
    include_str!("lua/see.lua"),
    include_str!("lua/claim.lua")
);
const LOOK: &str = concat!(
    include_str!("lua/record.lua"),
    include_str!("lua/see.lua"),
    include_str!("lua/look.lua")
);

// What concerns a claim already granted gets through under exhausted memory: a result that was
// paid for must be kept, and the memory of a claim is only ever given back by these.
const SETTLE: &str = concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/record.lua"),
    include_str!("lua/wake.lua"),
    include_str!("lua/settle.lua"),
);
const RELEASE: &str = concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/record.lua"),
    include_str!("lua/wake.lua"),
    include_str!("lua/release.lua"),
);
const RENEW: &str = concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/record.lua"),
    include_str!("lua/renew.lua")
);
const AWAIT: &str = concat!(
    "#!lua flags=allow-oom\n",
    include_str!("lua/record.lua"),
    include_str!("lua/await.lua")
);
