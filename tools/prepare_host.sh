#!/bin/sh
# Installs what a bare Debian lacks for `make demo` and `make test`: venv support, the headers the engine compiles against,
# and (with "dev" as second argument) dtc for the tests of static systems. Says what to do where it may not. Without headers
# the engine still runs, interpreted; without dtc its tests are skipped.
set -eu
python=${1:-python3}
missing=""
"$python" -c 'import ensurepip' 2>/dev/null || missing="python3-venv"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
[ -e "$header" ] || missing="$missing python3-dev"
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
[ "${2:-}" != dev ] || command -v dtc >/dev/null || missing="$missing device-tree-compiler"
[ -n "$missing" ] || exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing:$missing"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    exit 0
fi
echo "please install:$missing    (Debian: sudo apt-get install$missing)" >&2
case "$missing" in *venv*) exit 1 ;; esac
echo "going on without: an engine that is not compiled works, slowly; tests without their tool are skipped" >&2
