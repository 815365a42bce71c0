"""`--recipe auto`: the recipe for the images and the machine, with a batch, a micro-batch and a length that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mimcl.cli.config import Config, flatten, override
from mimcl.cli.console import format_bytes, format_epochs
from mimcl.cli.fitting import fitting_batch, fitting_epochs
from mimcl.cli.recipes import RECIPES, recipe
from mimcl.cli.run.device import Machine
from mimcl.pipeline.index import ShardIndex

_SMALL_SIDE = 40  # pixels
_FEW_IMAGES = 10_000  # too few for a ViT-B
_GPU_MEMORY = 8 << 30  # bytes that a ViT-B needs
# Bytes for weights, gradients and optimizer, and for what an image leaves for the backward pass in float32 (summed over
# the tensors that autograd saves).
_MEMORY = {"cifar_tiny": (90e6, 3.4e6), "cpu_small": (90e6, 3.4e6), "mae_b16": (1.8e9, 82e6)}
_MEMORY_SHARE = 0.5  # the rest is for the decoder, other processes and fragmentation


@dataclass(frozen=True)
class AutoRecipe:
    """A recipe with the values that were chosen in place of its own, and the line that says why."""

    name: str
    values: dict[str, Any]  # by dotted key
    line: str

    def config(self, values: Mapping[str, Any]) -> Config:
        """Return the configuration of a run with `values`, which win."""
        return override(recipe(self.name), {**self.values, **values})


def choose(
    samples: int,
    side: float,
    machine: Machine,
    given: Mapping[str, Any] = MappingProxyType({}),
    group: int = 1,
    processes: int = 1,
) -> AutoRecipe:
    """Choose for `samples` images whose shorter sides have a median of `side` pixels.

    Values that are `given`, by dotted key, stay as they are. `group` is how many draws the masker groups.
    """
    name, why = _name(samples, side, machine)
    own = RECIPES[name]()
    batch = given.get("data.batch_size") or fitting_batch(own.data.batch_size, samples, group, processes)
    epochs = given.get("trainer.epochs") or fitting_epochs(name, samples, batch, machine.cuda)
    micro_batch = max(min(_micro_batch(name, own.data.micro_batch_size, machine), batch), group)
    chosen = {"data.batch_size": batch, "data.micro_batch_size": micro_batch, "trainer.epochs": epochs}
    before = flatten(own)
    values = {key: value for key, value in chosen.items() if key not in given and value != before[key]}
    if values:
        values["chosen_by_auto"] = ",".join(values)
    steps = max(1, math.ceil(round(epochs * samples / batch, 6)))
    line = (
        f"recipe auto: {name}, because {why}; batch {batch:,}, {format_epochs(epochs)}: {steps:,} steps on "
        f"{samples:,} images"
    )
    return AutoRecipe(name, values, line)


def auto_recipe(
    values: Mapping[str, Any],
    processes: int = 1,
    arms: Iterable[Mapping[str, Any]] = ({},),
    index: ShardIndex | None = None,
) -> AutoRecipe:
    """Choose for the data in `values`, or those of `index`, and this machine, so that it suits runs of all `arms`.

    Raises ConfigError for unknown keys and invalid values, and DataError.
    """
    configs = [override(Config(), {**values, **arm}) for arm in arms]
    given = flatten(configs[0])
    index = index or ShardIndex.load(given["data.root"])
    group = max(config.group_size for config in configs)
    known = {key: given[key] for key in values}
    return choose(index.samples, short_side(index), Machine.this(), known, group, processes)


def short_side(index: ShardIndex) -> float:
    """Return the median of the images' shorter sides in pixels."""
    return float(np.median(np.minimum(index.width, index.height)))


def _name(samples: int, side: float, machine: Machine) -> tuple[str, str]:
    """Return the name of a recipe and why it is that one."""
    if side <= _SMALL_SIDE:
        return "cifar_tiny", f"the images are small ({side:g} px)"
    if not machine.cuda:
        return "cpu_small", "there is no GPU"
    if machine.memory < _GPU_MEMORY:
        return "cpu_small", f"the GPU has {format_bytes(machine.memory)}"
    if samples < _FEW_IMAGES:
        return "cpu_small", f"{samples:,} images are too few for a ViT-B"
    return "mae_b16", f"there is a GPU with {format_bytes(machine.memory)}, and the images have {side:g} px"


def _micro_batch(name: str, largest: int, machine: Machine) -> int:
    """Return the largest micro-batch that memory allows: the recipe's, or a smaller power of two."""
    fixed, per_image = _MEMORY[name]
    fits = int((_MEMORY_SHARE * machine.memory - fixed) / per_image)
    return min(largest, 1 << max(fits.bit_length() - 1, 0)) if fits > 0 else 1
