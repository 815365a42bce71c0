"""Connect the processes that torchrun started to pack one data set together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimcl.pipeline.shards import Ranks

_TIMEOUT_S = 30 * 86400  # a rank that has finished waits for ranks that still pack


def default_workers() -> int:
    """Return the number of worker processes of a rank: one per core, shared among the ranks of this machine."""
    from mimcl.pipeline.cores import worker_count

    return worker_count(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def packing_ranks() -> Iterator[Ranks]:
    """Yield this process's rank among those started by torchrun; they stay connected inside the block."""
    from mimcl.pipeline.shards import SINGLE_PROCESS, Ranks

    if "WORLD_SIZE" not in os.environ:  # do not import torch, which takes seconds
        yield SINGLE_PROCESS
        return
    import torch

    from mimcl.model.distributed import agree, connected, gather
    from mimcl.model.world import DistributedError, World

    world = World.from_environment()

    def broadcast(text: str) -> str:
        try:
            return gather(text)[0]
        except DistributedError:
            raise DistributedError(
                "another packing process has died; start all of them again, finished shards are kept"
            ) from None

    with connected(world, torch.device("cpu"), _TIMEOUT_S):
        yield Ranks(world.rank, world.size, broadcast, agree)
