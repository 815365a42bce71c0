#!/bin/sh
# Install this checkout into .venv, with the build of DALI for this machine's driver (see cuda_extra.sh).
#   sh tools/install.sh [EXTRAS]     for example: sh tools/install.sh hf,s3
# Needs python3 with its venv module and a package registry.
set -eu
cd "$(dirname "$0")/.."
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install.sh: python3 must be 3.11 or later ($(python3 -V 2>&1 | cut -d" " -f2)); install a newer Python" >&2
    exit 1
}
extra=$(sh tools/cuda_extra.sh)
install() { # without compiling to bytecode, which Python does for the few files that are imported
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile "$@"
}
if [ ! -x .venv/bin/pip ]; then
    python3 -m venv .venv
fi
if [ "$extra" = cuda12 ]; then # by default, torch is built for CUDA 13
    install torch torchvision --index-url https://download.pytorch.org/whl/cu126
fi
install --editable ".[${1:+$1,}$extra]"
