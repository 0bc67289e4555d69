//! The server's clock, which dates claims.

use super::command::Command;
use super::reply::Reply;

/// Asks for it.
#[must_use]
pub fn question() -> Command {
    Command::of("TIME", 1, 0)
}

/// Reads the reply to the [question](question()), in microseconds since the Unix epoch.
#[must_use]
pub fn micros(reply: &Reply) -> Option<u64> {
    let Reply::Array(parts) = reply else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    Some(number(seconds)?.saturating_mul(MICROS_PER_SECOND).saturating_add(number(micros)?))
}

fn number(reply: &Reply) -> Option<u64> {
    let Reply::Bytes(digits) = reply else { return None };
    std::str::from_utf8(digits).ok()?.parse().ok()
}

const MICROS_PER_SECOND: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_clock_is_read_to_the_microsecond() {
        let part = |digits: &'static str| Reply::Bytes(digits.into());
        let time = Reply::Array(vec![part("1700000000"), part("250000")]);
        assert_eq!(micros(&time), Some(1_700_000_000_250_000));
        for other in [part("1700000000"), Reply::Nil, Reply::Array(vec![part("1"), part("x")])] {
            assert_eq!(micros(&other), None);
        }
    }
}
