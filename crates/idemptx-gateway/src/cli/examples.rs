//! Examples in the help texts; a test parses each.

pub(crate) const IDEMPTX: &str = "\
Examples:
  idemptx demo
  idemptx serve --upstream http://127.0.0.1:9000
  idemptx check --config gateway.toml
  idemptx keys --config gateway.toml list --state in-doubt

Documentation: https://github.com/idemptx/idemptx/tree/main/docs";
pub(crate) const SERVE: &str = "\
Examples:
  idemptx serve --upstream http://127.0.0.1:9000
  idemptx serve --upstream unix:/run/app.sock --listen unix:/run/idemptx.sock
  idemptx serve --upstream http://127.0.0.1:9000 --store redis://127.0.0.1/ --admin 127.0.0.1:9901
  idemptx serve --upstream http://127.0.0.1:9000 --policy '{\"wait_ms\": 5000}'
  idemptx serve --config gateway.toml";
pub(crate) const EXT_PROC: &str = "\
Examples:
  idemptx ext-proc --config envoy.toml";
pub(crate) const CHECK: &str = "\
Examples:
  idemptx check --config gateway.toml
  idemptx check --upstream http://127.0.0.1:9000 --profile payments --policy '{\"scope\": \"shared\"}'";
pub(crate) const MIGRATE: &str = "\
Examples:
  idemptx migrate --config gateway.toml
  idemptx migrate --store 'postgres://owner@db/shop?schema=idemptx'";
pub(crate) const OPENAPI: &str = "\
Examples:
  idemptx openapi --merge openapi.yaml --config gateway.toml --output openapi-with-keys.yaml
  idemptx openapi --merge openapi.json --profile stripe";
pub(crate) const DEMO: &str = "\
Examples:
  idemptx demo
  idemptx demo --store redis://127.0.0.1/ --scene-only";
pub(crate) const COMPLETIONS: &str = "\
Examples:
  idemptx completions bash > /etc/bash_completion.d/idemptx
  idemptx completions zsh > \"${fpath[1]}/_idemptx\"
  idemptx completions fish > ~/.config/fish/completions/idemptx.fish";
pub(crate) const KEYS: &str = "\
Examples:
  idemptx keys --config gateway.toml list --state in-doubt
  idemptx keys --store sqlite:idemptx.db show d7158234
  idemptx keys --store sqlite:idemptx.db resolve d7158234 --answer answer.json --status 201
  idemptx keys --store sqlite:idemptx.db purge --state completed --idle 30d";
pub(crate) const LIST: &str = "\
Examples:
  idemptx keys --config gateway.toml list
  idemptx keys --store sqlite:idemptx.db list --state in-doubt --idle 15m --json";
pub(crate) const SHOW: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db show d7158234 --body
  idemptx keys --config gateway.toml show --key \"$KEY\" --scope acme";
pub(crate) const EXPORT: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db export --state completed > records.jsonl";
pub(crate) const RESOLVE: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db resolve d7158234 --release --reason 'ticket 17'
  idemptx keys --store sqlite:idemptx.db resolve d7158234 --answer answer.json --status 201
  echo '{\"order\": 17}' | idemptx keys --config gateway.toml resolve d7158234 --answer -";
pub(crate) const FORGET: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db forget d7158234
  idemptx keys --store sqlite:idemptx.db forget d7158234 --yes --reason 'ticket 17'";
pub(crate) const PURGE: &str = "\
Examples:
  idemptx keys --store sqlite:idemptx.db purge --state completed --idle 30d
  idemptx keys --store sqlite:idemptx.db purge --state completed --idle 30d --yes";
