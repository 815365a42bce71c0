#!/bin/sh
# Sets everything up on a machine with python3 (and its venv module) and a package registry, then runs the tests.
# Arguments go to pytest: sh tools/test.sh tests/pipeline -k webp; with -n 0 all tests run in one process.
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
# A process for each core, of which none takes more than about 2 GB. A file's tests stay together, for the fixtures that
# they share; files begin in their order, since the largest in number are not the longest.
exec .venv/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
