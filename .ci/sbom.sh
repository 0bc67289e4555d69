#!/usr/bin/env bash
# Usage: sbom.sh FOLDER
# Writes a CycloneDX bill of materials for each published crate into the folder. Needs
# cargo-cyclonedx. (Wheels carry theirs: maturin puts it there.)
set -euo pipefail

mkdir -p "$1"
# Writes a file beside the manifest of every member of the workspace.
cargo cyclonedx --format json --all-features --quiet
for package in idemptx-core idemptx idemptx-gateway; do
  mv "crates/$package/$package.cdx.json" "$1"
done
git ls-files --others --exclude-standard -z -- '*.cdx.json' ":(exclude)$1" | xargs -0 rm -f
