//! The log, on stderr, as text or JSON.
//!
//! ```text
//! 2026-11-25T03:01:12.484063Z  INFO method=POST path=/orders status=201 outcome=executed
//! {"timestamp":"2026-11-25T03:01:12.484063Z","level":"INFO","method":"POST","path":"/orders"}
//! ```
//!
//! # Security
//!
//! Keys are identified by eight digits of their record's id; no line has queries, headers or
//! bodies, at any level.
//! Control characters are escaped, so that client input such as a path can neither end a line nor
//! move a terminal's cursor.

mod rate_limit;
mod writer;

use std::fmt;
use std::io::{self, IsTerminal as _};

use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub(crate) use self::rate_limit::LogRate;
pub(crate) use self::writer::{dropped, flush, stderr};
use crate::config::{Log, LogFormat, LogLevel};

/// Installs the log; a second call has no effect.
pub fn init(log: Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(stderr());
    // Fails only if a subscriber is installed already, which then stays in force.
    let _ = match log.format {
        LogFormat::Text => lines
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .fmt_fields(format::debug_fn(field).delimited(" "))
            .try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// Installs the log of a command: audit lines and warnings, on stderr.
pub(crate) fn init_audit(json: bool) {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let of_interest = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(crate::operators::AUDIT, LevelFilter::INFO);
    let registry = tracing_subscriber::registry().with(of_interest);
    // As in `init`.
    let _ = match json {
        true => registry.with(lines.json().flatten_event(true)).try_init(),
        false => {
            let lines = lines.with_target(false).with_ansi(io::stderr().is_terminal());
            let fields = format::debug_fn(field).delimited(" ");
            registry.with(lines.fmt_fields(fields)).try_init()
        }
    };
}

fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => write_escaped(writer, &text),
        name => {
            write!(writer, "{name}=")?;
            write_escaped(writer, unquoted(&text))
        }
    }
}

/// Returns a text in quotes, as `Debug` writes it, without them where it is unambiguous.
pub(crate) fn unquoted(text: &str) -> &str {
    let bare = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    // A value without spaces is unambiguous without quotes.
    bare.filter(|it| !it.is_empty() && !it.contains([' ', '"', '\\', '='])).unwrap_or(text)
}

fn write_escaped(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|character| match character.is_control() {
        true => write!(writer, "{}", character.escape_default()),
        false => writer.write_char(character),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut shown = String::new();
        write_escaped(&mut Writer::new(&mut shown), text).unwrap();
        shown
    }

    #[test]
    fn what_would_end_a_line_or_move_a_cursor_is_escaped() {
        assert_eq!(shown("a\r\nb\u{1b}[2Jc\u{9b}d"), r"a\r\nb\u{1b}[2Jc\u{9b}d");
        assert_eq!(shown("/Zürich"), "/Zürich");
    }
}
