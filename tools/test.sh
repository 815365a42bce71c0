#!/bin/sh
# Sets everything up on a machine with python3 (and its venv module) and a package registry, then runs the tests.
# Arguments go to pytest: sh tools/test.sh tests/pipeline -k webp
set -eu
cd "$(dirname "$0")/.."
# Installed anew only when the dependencies or the way of installing changed.
wanted=$(cksum pyproject.toml)
if [ ! -x .venv/bin/pip ]; then
    python3 -m venv .venv
fi
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
    printf '%s\n' "$wanted" >.venv/installed
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
