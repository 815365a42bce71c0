"""What a loader's draws depend on: a state is restored only where it is the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import xxhash

from mimcl.cli.errors import ConfigError
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.index import ShardIndex

FORMAT = "mimcl-loader/1"
_PROBES = 9  # places of the progress at which schedules are compared


def draws_depend_on(
    plan: Plan,
    index: ShardIndex,
    seed: int,
    batch_size: int,
    set_digest: str | None,
    functions: Sequence[Callable[[float], float]],
    moves: bool,
) -> dict[str, Any]:
    """Return all that draws depend on, apart from scores that move, as flat JSON values.

    Functions of the progress are compared at some places.
    """
    probed = [[float(function(place)) for place in np.linspace(0, 1, _PROBES).tolist()] for function in functions]
    knobs = {f"curriculum.{name}": value for name, value in asdict(plan.config).items() if name != "prototypes"}
    return {
        "data": index.fingerprint,
        "prototype set": set_digest,
        "seed": seed,
        "batch_size": batch_size,
        "draws": plan.draws,
        **knobs,
        "curriculum.window": plan.window_length,
        "schedule": probed,
        "scores": moves,
    }


def require_same(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the first that differs, unless a state's draws depend on what the loader's own do."""
    for name in own:
        if name not in saved or saved[name] != own[name]:
            theirs, ours = json.dumps(saved.get(name)), json.dumps(own[name])
            raise ConfigError(f"the state is that of another loader: its {name} is {theirs:.60}, here it is {ours:.60}")


def digest_of(depends_on: Mapping[str, Any]) -> str:
    """Return a digest of all that draws depend on, 32 hexadecimal digits."""
    return xxhash.xxh128_hexdigest(json.dumps(depends_on, sort_keys=True).encode())


def digest_of_arrays(*arrays: np.ndarray | None) -> str | None:
    """Return a digest of the arrays that are there; None without any."""
    there = [np.ascontiguousarray(array) for array in arrays if array is not None]
    if not there:
        return None
    digest = xxhash.xxh128()
    for array in there:
        digest.update(array.data)
    return digest.hexdigest()
