#!/bin/sh
# Set up on a machine with python3 (and its venv module) and a package registry, then run `mimcl demo`.
# Arguments go to `mimcl demo`: sh tools/demo.sh --fast --out /tmp/demo
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -x "$here/.venv/bin/mimcl" ]; then
    echo "installing mimcl with torch, DALI and faiss into $here/.venv; this takes a few minutes the first time"
    sh "$here/tools/install.sh"
fi
exec "$here/.venv/bin/mimcl" demo "$@"
