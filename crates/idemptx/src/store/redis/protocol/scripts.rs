//! The scripts, sent by their hash, and in full to a server that does not know them.
//!
//! Each is atomic, reads and compares before it writes, and may be sent twice.

use bytes::Bytes;

use super::command::Command;
use super::refusal::has_code;
use super::reply::Reply;

/// A script and its hash.
#[derive(Debug)]
pub(super) struct Script {
    /// A first line for servers since 7.0, which others take for a fault.
    shebang: &'static str,
    code: &'static str,
    /// The SHA-1 of both in hexadecimal, which is what the server calls it.
    hash: &'static str,
}

impl Script {
    /// Begins to call it, with so many keys and other arguments, and about so many bytes of them.
    pub(super) fn call(&self, form: Form, keys: usize, arguments: usize, size: usize) -> Command {
        let count = 3 + keys + arguments;
        let size = size + 128;
        let full = size + self.shebang.len() + self.code.len();
        let begun = match form {
            Form::Hash => Command::of("EVALSHA", count, size).text(self.hash),
            Form::Code => Command::of("EVAL", count, full)
                .joined(&[self.shebang.as_bytes(), self.code.as_bytes()]),
            Form::Bare => Command::of("EVAL", count, full).text(self.code),
        };
        begun.number(keys as u64)
    }
}

/// Form in which a script is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// The hash, for a server that has seen the script.
    #[default]
    Hash,
    /// The code, which the server knows from then on.
    Code,
    /// The code without its first line, for servers before 7.0.
    Bare,
}

impl Form {
    /// Takes the reply to a script in this form; where that calls for another form, it is this one
    /// from then on.
    pub(super) fn read(&mut self, reply: Reply) -> ScriptReply {
        let Reply::Error(error) = reply else { return ScriptReply::Answer(reply) };
        *self = match self {
            Self::Hash if has_code(&error, "NOSCRIPT") => Self::Code,
            Self::Code if is_fault_of_script(&error) => Self::Bare,
            _ => return ScriptReply::Refused(error),
        };
        ScriptReply::Again
    }
}

/// Meaning of a reply to a script.
#[derive(Debug)]
pub(super) enum ScriptReply {
    /// The script must be sent again, in another form.
    Again,
    /// The server said no.
    Refused(Bytes),
    /// Return value of the script.
    Answer(Reply),
}

fn is_fault_of_script(error: &[u8]) -> bool {
    const FAULT: &[u8] = b"compiling script";
    error.windows(FAULT.len()).any(|window| window == FAULT)
}

// Without a shebang a script may read while memory is exhausted, and only its writes fail: a new
// claim is refused, a settled record is still replayed.
pub(super) const CLAIM: Script = Script {
    shebang: "",
    code: concat!(
        include_str!("lua/record.lua"),
        include_str!("lua/see.lua"),
        include_str!("lua/claim.lua")
    ),
    hash: "51a433c56ef1a6cb488b1b1c2478c1ebc3090c99",
};
pub(super) const LOOK: Script = Script {
    shebang: "",
    code: concat!(
        include_str!("lua/record.lua"),
        include_str!("lua/see.lua"),
        include_str!("lua/look.lua")
    ),
    hash: "1b532c991eb36ea732a55ba429778c335d08cc88",
};

pub(super) const RIGHTS: Script = Script {
    shebang: "",
    code: include_str!("lua/rights.lua"),
    hash: "6be2e5c66efbc36b6204cd89ef6a8ea99850ec0d",
};

pub(super) const LIST: Script = Script {
    shebang: "",
    code: include_str!("lua/list.lua"),
    hash: "723206d42b0ec135ce9579da1a0e7dfd716bdea8",
};

// What concerns a claim already granted gets through under exhausted memory: a result that was
// paid for must be kept, and the memory of a claim is only ever given back by these.
pub(super) const SETTLE: Script = Script {
    shebang: ALLOW_OOM,
    code: concat!(include_str!("lua/settle.lua"), include_str!("lua/wake.lua")),
    hash: "2355cb710dbad7e3ecf4b9d4d02ed05585b6781d",
};
pub(super) const RELEASE: Script = Script {
    shebang: ALLOW_OOM,
    code: concat!(include_str!("lua/release.lua"), include_str!("lua/wake.lua")),
    hash: "503f9753c1aff1d89181b96a1f3b195e60fae5c2",
};
pub(super) const RENEW: Script = Script {
    shebang: ALLOW_OOM,
    code: concat!(include_str!("lua/record.lua"), include_str!("lua/renew.lua")),
    hash: "64023b37451027d546d68b08be03f0f14164c1c8",
};
pub(super) const AWAIT: Script = Script {
    shebang: ALLOW_OOM,
    code: concat!(include_str!("lua/record.lua"), include_str!("lua/await.lua")),
    hash: "090fa5a5402a5f6210fb4d7db7f8010495e6392f",
};

const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    #[test]
    fn every_hash_is_that_of_its_script() {
        for script in [CLAIM, LOOK, RIGHTS, LIST, SETTLE, RELEASE, RENEW, AWAIT] {
            let text = [script.shebang, script.code].concat();
            assert_eq!(script.hash, redis::Script::new(&text).get_hash(), "{text}");
        }
    }
}
