"""The data that a run trains on: the index of its images and their prototype distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.cli.config import Config
from mimcl.cli.plan.build_plan import build_plan
from mimcl.cli.run.resolve import draws_of, warmup_epochs
from mimcl.cli.suggest import prototypes_build
from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.files import DataError, NoPrototypesError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.verify_cache import check_once


@dataclass(frozen=True)
class TrainingData:
    """The train images of a run, and how many draws it makes from them."""

    index: ShardIndex
    distances: NDArray[np.float32] | None  # (N,); None without a curriculum
    draws: int
    balance: Balance | None = None  # of the clusters, if the curriculum has it

    @classmethod
    def open(cls, config: Config) -> TrainingData:
        """Open what `config` names. Raises PrototypeError and DataError."""
        index = ShardIndex.load(config.data.root)
        draws = draws_of(config, index.samples)
        if config.curriculum.name == "none":
            return cls(index, None, draws)
        found = load_set(config.curriculum, index)
        return cls(index, found.distance, draws, balance_of(config.curriculum, found))

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """As `fingerprints`."""
        return fingerprints(self.index, self.distances)

    def plan(self, config: Config) -> Plan:
        """Return the plan of a run of `config` on these images. Raises ValueError for values that do not fit."""
        return build_plan(
            config.curriculum,
            samples=self.index.samples,
            draws=self.draws,
            batch_size=config.data.batch_size,
            seed=config.seed,
            distances=self.distances,
            shards=self.index.shard,
            warmup_draws=math.ceil(warmup_epochs(config) * self.index.samples),
            balance=self.balance,
        )


def load_distances(config: Config, index: ShardIndex) -> NDArray[np.float32] | None:
    """Load the prototype distance of each sample, None without a curriculum. Raises PrototypeError and DataError."""
    return None if config.curriculum.name == "none" else load_set(config.curriculum, index).distance


def load_set(curriculum: CurriculumConfig, index: ShardIndex) -> PrototypeSet:
    """Load the prototype set of a curriculum. Raises PrototypeError and DataError."""
    build = prototypes_build(index.shown, curriculum.prototypes)
    try:
        folder = index.prototypes_folder(curriculum.prototypes)
    except NoPrototypesError as error:
        raise DataError(f"{error}; run `{build}`") from None
    return PrototypeSet.load(folder, index.fingerprint, check_once, build)


def balance_of(curriculum: CurriculumConfig, found: PrototypeSet) -> Balance | None:
    """Return the balance of a set's clusters where the curriculum wants it."""
    return Balance.of(found.cluster, found.parents) if curriculum.balance else None


def fingerprints(index: ShardIndex, distances: NDArray[np.float32] | None) -> dict[str, str | None]:
    """Return what a checkpoint records of the data it was trained on."""
    of_distances = None if distances is None else xxhash.xxh128_hexdigest(np.ascontiguousarray(distances).data)
    return {"index": index.fingerprint, "prototypes": of_distances}
