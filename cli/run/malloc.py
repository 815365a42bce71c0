"""How the process keeps its memory."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's names
_LARGEST_MMAP_THRESHOLD = 32 << 20  # that glibc takes
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """What is freed stays with the process for what comes next; does nothing where the C library is not glibc.

    Activations on a CPU come and go with each layer. By default the larger ones are given back to the kernel each time,
    which then has to clear their pages anew: a tenth of a step with masks that are learned.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
