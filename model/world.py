"""A process's place among those of torchrun; torch is imported only to select its device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DistributedError(Exception):
    """The processes lost their connection or do not agree; the message is one line."""


@dataclass(frozen=True)
class World:
    """A process's rank among `size` processes, and its local rank on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> World:
        """Read torchrun's RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without them, a single process.

        Raises DistributedError for values that torchrun does not set.
        """
        defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        values = {name: os.environ.get(name, default) for name, default in defaults.items()}
        if wrong := [f"{name}={value}" for name, value in values.items() if not (value.isascii() and value.isdigit())]:
            raise DistributedError(f"{wrong[0]} in the environment must be a number; unset it, or use torchrun")
        world = cls(*map(int, values.values()))
        if not world.rank < world.size:
            raise DistributedError(
                f"RANK={world.rank} in the environment must be below WORLD_SIZE={world.size}; use torchrun"
            )
        if world.size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise DistributedError(
                f"WORLD_SIZE={world.size} in the environment needs MASTER_ADDR and MASTER_PORT; use torchrun"
            )
        return world

    def device(self) -> torch.device:
        """Select this process's CUDA device, make it current and return it; the CPU if there is none.

        A launcher may expose all of the machine's devices to each process, or only one (srun --gpus-per-task=1).
        """
        import torch

        if not torch.cuda.is_available():
            return torch.device("cpu")
        number = self.local_rank % torch.cuda.device_count() if self.size > 1 else torch.cuda.current_device()
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        return device

    def inference_device(self) -> torch.device:
        """Return the device for forward passes: `device()`, or instead of the CPU an Apple GPU if MIMCL_MPS is 1.

        Not for training and the protocols of evaluation: they need float64, which an Apple GPU (MPS) does not have, and
        copy asynchronously. Nothing has run on one yet.
        """
        import torch

        device = self.device()
        asked = device.type == "cpu" and os.environ.get("MIMCL_MPS") == "1"
        return torch.device("mps") if asked and torch.backends.mps.is_available() else device
