#!/bin/sh
# Set up on a machine with python3 (and its venv module) and a package registry, then run `mimcl demo`.
# Arguments go to `mimcl demo`: sh tools/demo.sh --out /tmp/demo
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -x "$here/.venv/bin/mimcl" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "demo.sh: python3 must be 3.11 or later ($(python3 -V 2>&1 | cut -d" " -f2)); install a newer Python" >&2
        exit 1
    }
    echo "installing mimcl with torch, DALI and faiss into $here/.venv; this takes a few minutes the first time"
    python3 -m venv "$here/.venv"
    "$here/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$here"
fi
exec "$here/.venv/bin/mimcl" demo "$@"
