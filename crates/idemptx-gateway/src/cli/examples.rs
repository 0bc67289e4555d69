//! Examples in the help texts; a test parses each.

pub(super) const IDEMPTX: &str = "\
Examples:
  idemptx demo
  idemptx serve --upstream http://127.0.0.1:9000
  idemptx check --config gateway.toml
  idemptx keys --config gateway.toml list --state in-doubt

Documentation: https://github.com/idemptx/idemptx/tree/main/docs";
pub(super) const SERVE: &str = "\
Examples:
  idemptx serve --upstream http://127.0.0.1:9000
  idemptx serve --upstream unix:/run/app.sock --listen unix:/run/idemptx.sock
  idemptx serve --upstream http://127.0.0.1:9000 --store redis://127.0.0.1/ --admin 127.0.0.1:9901
  idemptx serve --upstream http://127.0.0.1:9000 --policy '{\"wait_ms\": 5000}'
  idemptx serve --config gateway.toml";
pub(super) const CHECK: &str = "\
Examples:
  idemptx check --config gateway.toml
  idemptx check --upstream http://127.0.0.1:9000 --profile payments --policy '{\"scope\": \"shared\"}'";
pub(super) const MIGRATE: &str = "\
Examples:
  idemptx migrate --config gateway.toml
  idemptx migrate --store 'postgres://owner@db/shop?schema=idemptx'";
pub(super) const OPENAPI: &str = "\
Examples:
  idemptx openapi --merge openapi.yaml --config gateway.toml --output openapi-with-keys.yaml
  idemptx openapi --merge openapi.json --profile stripe";
pub(super) const DEMO: &str = "\
Examples:
  idemptx demo
  idemptx demo --store redis://127.0.0.1/ --scene-only";
pub(super) const COMPLETIONS: &str = "\
Examples:
  idemptx completions bash > /etc/bash_completion.d/idemptx
  idemptx completions zsh > \"${fpath[1]}/_idemptx\"
  idemptx completions fish > ~/.config/fish/completions/idemptx.fish";
