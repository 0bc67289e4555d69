//! Sentinels: who the primary of a service is.

use super::command::Command;
use super::reply::Reply;

/// Channels on which a sentinel tells of promotions: those that it has heard of, and one that it
/// leads itself, which ends long after.
pub const PROMOTIONS: [&str; 2] = ["+switch-master", "+failover-state-reconf-slaves"];

/// Returns the command that asks a sentinel for the primary of a service.
#[must_use]
pub fn primary_of(service: &str) -> Command {
    Command::of("SENTINEL", 3, service.len()).text("GET-MASTER-ADDR-BY-NAME").text(service)
}

/// Reads the reply to [`primary_of`]; `None` if the sentinel knows no such service.
#[must_use]
pub fn address(reply: &Reply) -> Option<(String, u16)> {
    let Reply::Array(parts) = reply else { return None };
    let [Reply::Bytes(host), Reply::Bytes(port)] = parts.as_slice() else { return None };
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some((text(host)?.to_owned(), text(port)?.parse().ok()?))
}

/// Returns the command that asks a sentinel for all it knows of a service.
#[must_use]
pub fn knowledge_of(service: &str) -> Command {
    Command::of("SENTINEL", 3, service.len()).text("MASTER").text(service)
}

/// Reads the number of the last promotion from the reply to [`knowledge_of`]; zero if there is none.
///
/// Each promotion has a greater number, so of two sentinels that name different servers the one with
/// the greater number has heard of the later promotion.
#[must_use]
pub fn config_epoch(reply: &Reply) -> u64 {
    let Reply::Array(parts) = reply else { return 0 };
    let mut fields = parts.chunks_exact(2);
    let epoch = fields.find_map(|field| match field {
        [Reply::Bytes(name), Reply::Bytes(value)] if &**name == b"config-epoch" => Some(value),
        _ => None,
    });
    epoch.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0)
}

/// Returns the command that asks a server for its role.
#[must_use]
pub fn role() -> Command {
    Command::of("ROLE", 1, 0)
}

/// Reads the reply to [`role`].
#[must_use]
pub fn is_primary(reply: &Reply) -> bool {
    let Reply::Array(parts) = reply else { return false };
    matches!(parts.first(), Some(Reply::Bytes(role)) if &**role == b"master")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primarys_address_is_read_if_there_is_one() {
        let text = |text: &'static str| Reply::Bytes(text.into());
        let reply = Reply::Array(vec![text("10.0.0.1"), text("6379")]);
        assert_eq!(address(&reply), Some(("10.0.0.1".to_owned(), 6379)));
        for other in [Reply::Nil, Reply::Array(vec![text("10.0.0.1")]), text("10.0.0.1 6379")] {
            assert_eq!(address(&other), None);
        }
        let fields = ["name", "shop", "config-epoch", "17", "quorum", "2"];
        assert_eq!(config_epoch(&Reply::Array(fields.map(text).into())), 17);
        for other in [Reply::Nil, Reply::Array(vec![text("config-epoch")]), text("17")] {
            assert_eq!(config_epoch(&other), 0);
        }
        assert!(is_primary(&Reply::Array(vec![text("master"), Reply::Integer(1)])));
        assert!(!is_primary(&Reply::Array(vec![text("slave"), text("10.0.0.1")])));
        assert!(!is_primary(&Reply::Nil));
    }
}
