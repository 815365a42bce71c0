"""The division of a batch among the processes of a run, and of each share into micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class BatchShares:
    """How a batch of `batch_size` draws is divided among `world_size` processes, as seen by one of them.

    Cuts are at multiples of `group_size`. Of B groups, rank r of R gets [floor(rB/R), floor((r+1)B/R)). Every rank has
    the same number of micro-batches of up to `micro_batch_size` draws, none of them empty. Raises ValueError where
    there is no such division.
    """

    batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    local_size: int = 1  # processes on each machine
    group_size: int = 1
    # This rank's: (start, stop) offsets in [0, batch_size).
    micro_batches: tuple[tuple[int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        group, per_micro_batch = self.group_size, self.micro_batch_size // self.group_size
        if self.batch_size % group:
            raise ValueError(f"data.batch_size {self.batch_size} must be a multiple of the masker's group size {group}")
        if not per_micro_batch:
            raise ValueError(
                f"data.micro_batch_size {self.micro_batch_size} must be at least the masker's group size {group}"
            )
        smallest = self._groups // self.world_size
        if not smallest:
            units = "draws" if group == 1 else f"groups of {group} draws"
            raise ValueError(
                f"data.batch_size {self.batch_size} has fewer {units} than the {self.world_size} processes; raise it"
            )
        largest = -(-self._groups // self.world_size)
        count = -(-largest // per_micro_batch)
        if count > smallest:
            raise ValueError(
                f"data.micro_batch_size {self.micro_batch_size} cannot divide {self.batch_size} draws evenly among "
                f"{self.world_size} processes; make it {2 * group} or more"
            )
        first, last = self._first_group(self.rank), self._first_group(self.rank + 1)
        bounds = [group * (first + number * (last - first) // count) for number in range(count + 1)]
        object.__setattr__(self, "micro_batches", tuple(pairwise(bounds)))

    @property
    def share_size(self) -> int:
        """Draws of a batch that this rank has."""
        return self.micro_batches[-1][1] - self.micro_batches[0][0]

    @property
    def longest(self) -> int:
        """Draws of this rank's longest micro-batch."""
        return max(stop - start for start, stop in self.micro_batches)

    @property
    def machine_share(self) -> tuple[int, int]:
        """(start, stop) offsets in a batch of the draws of all ranks on this rank's machine."""
        first = self.rank - self.rank % self.local_size
        stop = min(first + self.local_size, self.world_size)
        return self.group_size * self._first_group(first), self.group_size * self._first_group(stop)

    @property
    def _groups(self) -> int:
        return self.batch_size // self.group_size

    def _first_group(self, rank: int) -> int:
        return rank * self._groups // self.world_size
