#!/usr/bin/env bash
# Usage: pytest.sh ENVIRONMENT FOLDER…
# Runs each folder's tests from within it, against the package that is installed.
# In CI what has failed is run once more, by itself: see CONTRIBUTING.md.
set -euo pipefail

# Most of the time the tests wait for servers and for leases, so that more run than there are cores.
workers=3
# A test that hangs is a finding: it fails after as many seconds.
test_seconds_max=120
python=$PWD/$1/bin/python
for folder in "${@:2}"; do
  echo "$folder in $1"
  if (cd "$folder" && "$python" -m pytest -n "$workers" --timeout "$test_seconds_max" --durations=10); then
    continue
  fi
  last=$folder/.pytest_cache/v/cache/lastfailed
  .ci/flaky.sh "$(grep -c '": true' "$last" || true)" "$(cat "$last" 2>/dev/null || true)"
  (cd "$folder" && "$python" -m pytest --timeout "$test_seconds_max" --last-failed --last-failed-no-failures none)
done
