"""OpenMP's threads, on which torch computes on a CPU and faiss clusters: how many, and how they wait."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from mimcl.pipeline.cores import arithmetic_threads

# Turns of the loop in which a thread of GNU's OpenMP, the one in torch's wheels, waits for the others before it sleeps.
# Its default, 300,000, lasts 20 ms on a recent processor, at every end of a parallel loop at which another thread is
# late because a decoder or another program has its core. This is 0.1 to 0.7 ms: parallel loops follow one another
# faster than that, so that a quiet machine loses nothing. See tools/bench/threads.txt.
_SPIN_COUNT = 10_000
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def choose_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OpenMP's environment variables, except what the user set; call it before torch is imported, which reads them.

    The number of threads is that of the cores of this process, under a launcher its part of them. Decoding uses as many
    again: with threads that sleep while they wait, the two share the cores without further arrangement.
    """
    if not any(name in environment for name in _WAITING):
        environment["GOMP_SPINCOUNT"] = str(_SPIN_COUNT)
    if "OMP_NUM_THREADS" not in environment or _is_torchruns_choice(environment):
        local_size = environment.get("LOCAL_WORLD_SIZE", "")
        local_size = local_size if local_size.isascii() and local_size.isdigit() else "1"
        environment["OMP_NUM_THREADS"] = str(arithmetic_threads(max(1, int(local_size))))


def _is_torchruns_choice(environment: MutableMapping[str, str]) -> bool:
    """Whether OMP_NUM_THREADS is torchrun's: it starts several processes with 1 if its own environment has no value."""
    if environment["OMP_NUM_THREADS"] != "1" or "TORCHELASTIC_RUN_ID" not in environment:
        return False
    try:
        launched_with = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False
    return not any(line.startswith(b"OMP_NUM_THREADS=") for line in launched_with.split(b"\0"))
