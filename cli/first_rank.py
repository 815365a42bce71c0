"""What one process does for all."""

from __future__ import annotations

from collections.abc import Callable

from mimcl.curriculum.prototypes import PrototypeError
from mimcl.model.distributed import World, gather
from mimcl.pipeline.files import DataError


def on_first_rank(world: World, work: Callable[[], None]) -> None:
    """Rank 0 works while the others wait; what it cannot do is an error on all of them, in its words."""
    said = ""
    if world.rank == 0:
        try:
            work()
        except (PrototypeError, DataError, ValueError, OSError) as error:
            if world.size == 1:
                raise
            said = str(error) or type(error).__name__
    if said := gather(said)[0]:
        raise PrototypeError(said)
