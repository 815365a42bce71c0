#!/bin/sh
# Set up on a machine with python3 (and its venv module) and a package registry; check style and types; run the tests.
#   sh tools/test.sh [--fast | --all] [PYTEST ARGUMENTS]
# Without an option it runs what must pass before a change is merged; --fast skips the tests marked `slow` as well as
# those marked `exhaustive`, and --all runs every test. CONTRIBUTING.md says how long each takes. Other arguments go to
# pytest: sh tools/test.sh tests/pipeline -k webp; with -n 0 all tests run in one process.
set -eu
cd "$(dirname "$0")/.."
case "${1-}" in
    --fast) shift; set -- -m 'not slow and not exhaustive' "$@" ;;
    --all) shift ;;
    *) set -- -m 'not exhaustive' "$@" ;;
esac
unset PYTHONDONTWRITEBYTECODE # the tests start hundreds of processes, which would compile the same files each
# Installed again only when the dependencies or the way of installing changed.
wanted=$(cksum pyproject.toml)
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]; then
    sh tools/install.sh test
    printf '%s\n' "$wanted" >.venv/installed
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy --num-workers auto
# One process more than cores, since some tests wait; each takes up to 2 GB. The tests of a file stay together because
# they share fixtures; files keep their order because the ones with the most tests do not take the longest.
workers=$(($(getconf _NPROCESSORS_ONLN) + 1))
exec .venv/bin/python -m pytest -n "$workers" --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
