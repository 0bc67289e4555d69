//! Examples in the help texts of `idemptx keys`; a test parses each.

pub(super) const KEYS: &str = "\
Examples:
  idemptx keys --config gateway.toml list --state in-doubt
  idemptx keys --store sqlite:idemptx.db show d7158234
  idemptx keys --store sqlite:idemptx.db resolve d7158234 --answer answer.json --status 201
  idemptx keys --store sqlite:idemptx.db purge --state completed --idle 30d";
pub(super) const LIST: &str = "\
Examples:
  idemptx keys --config gateway.toml list
  idemptx keys --store sqlite:idemptx.db list --state in-doubt --idle 15m --json";
pub(super) const SHOW: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db show d7158234 --body
  idemptx keys --config gateway.toml show --key \"$KEY\" --scope acme";
pub(super) const EXPORT: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db export --state completed > records.jsonl";
pub(super) const RESOLVE: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db resolve d7158234 --release --reason 'ticket 17'
  idemptx keys --store sqlite:idemptx.db resolve d7158234 --answer answer.json --status 201
  echo '{\"order\": 17}' | idemptx keys --config gateway.toml resolve d7158234 --answer -";
pub(super) const FORGET: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db forget d7158234
  idemptx keys --store sqlite:idemptx.db forget d7158234 --yes --reason 'ticket 17'";
pub(super) const PURGE: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db purge --state completed --idle 30d
  idemptx keys --store sqlite:idemptx.db purge --state completed --idle 30d --yes";
