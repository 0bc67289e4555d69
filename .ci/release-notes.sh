#!/usr/bin/env bash
# Usage: release-notes.sh TAG
# Prints the changelog's section for a release. Fails where the tag, the manifest and the changelog
# disagree, so that nothing is published under a wrong version or without a date.
set -euo pipefail

version=${1#v}
manifest=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml)
if [ "$1" != "v$manifest" ]; then
  echo "the tag is $1, but Cargo.toml has version $manifest" >&2
  exit 1
fi
if ! grep -qE "^## \[${version//./\\.}\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md; then
  echo "CHANGELOG.md has no dated section for $version" >&2
  exit 1
fi
awk -v heading="## [$version]" '
  index($0, "## [") == 1 { printing = index($0, heading) == 1; next }
  /^\[[^]]*\]: / { next }
  printing
' CHANGELOG.md
