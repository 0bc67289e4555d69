#!/usr/bin/env bash
# Usage: require.sh COMMAND PACKAGE [ARGUMENT…]
# Installs the Debian package when the command is missing, or fails with the arguments, if any;
# does not start its service.
set -euo pipefail

command=$1 package=$2
present() {
  command -v "$command" >/dev/null && { [ $# -eq 0 ] || "$command" "$@" >/dev/null 2>&1; }
}
if present "${@:3}"; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "$command is missing: install it (on Debian: the package $package) and try again" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo)
fi

# Debian asks this program before it starts a service; 101 means "do not".
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi

"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "$package"
