#!/usr/bin/env bash
# Validates the manifests against the schemas of Kubernetes, which a package carries.
set -euo pipefail

environment=${CARGO_TARGET_DIR:-target}/kubernetes
program=$environment/bin/kubernetes-validate
if [ ! -x "$program" ]; then
  .ci/venv.sh "$environment" 'kubernetes-validate>=1.33,<2'
fi
manifests=()
for manifest in deploy/kubernetes/*.yaml; do
  # This one is for kubectl alone, and is not sent to a cluster.
  [ "$(basename "$manifest")" = kustomization.yaml ] || manifests+=("$manifest")
done
"$program" --strict --quiet -k 1.33 "${manifests[@]}"
