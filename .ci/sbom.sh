#!/usr/bin/env bash
# Usage: sbom.sh FOLDER
# Writes a CycloneDX bill of materials for each published package into the folder. Needs
# cargo-cyclonedx.
set -euo pipefail

mkdir -p "$1"
for package in idemptx-core idemptx idemptx-gateway idemptx-py; do
  manifest=crates/$package/Cargo.toml
  cargo cyclonedx --manifest-path "$manifest" --format json --all-features --quiet
  mv "crates/$package/$package.cdx.json" "$1"
  # The tool writes one for each member of the workspace.
  find crates -name '*.cdx.json' -delete
done
