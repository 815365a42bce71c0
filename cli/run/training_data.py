"""The data that a run trains on: the index of its images and their prototype distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.cli.config import Config
from mimcl.cli.errors import ConfigError, usage_errors
from mimcl.cli.plan.build_plan import build_plan
from mimcl.cli.run.resolve import draws_of, warmup_epochs
from mimcl.cli.suggest import prototypes_build
from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.curriculum.subset import subset_ranks
from mimcl.pipeline.augment import hash64
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
        distances, balance = load_difficulty(config.curriculum, index, config.seed)
        return cls(index, distances, draws_of(config, index.samples), balance)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """As `fingerprints`."""
        return fingerprints(self.index, self.distances, self.balance)

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


def load_difficulty(
    curriculum: CurriculumConfig, index: ShardIndex, seed: int
) -> tuple[NDArray[np.float32] | None, Balance | None]:
    """Load the prototype distance of each sample and the balance; None without a curriculum, or where it has none.

    The distances of a subset are its ranks, by the run's `seed`.

    Raises PrototypeError, DataError, and ConfigError for a balance that changes nothing.
    """
    if curriculum.name == "none":
        if curriculum.balance:
            raise ConfigError("--balance needs --curriculum proto or anti; without a curriculum it has no effect")
        return None, None
    if curriculum.name == "subset":
        return subset_ranks(index.samples, seed, hash64), None
    found = load_set(curriculum, index)
    return found.distance, balance_of(curriculum, found)


def load_set(curriculum: CurriculumConfig, index: ShardIndex) -> PrototypeSet:
    """Load the prototype set of a curriculum. Raises PrototypeError and DataError."""
    build = prototypes_build(index.shown, curriculum.prototypes)
    try:
        folder = index.prototypes_folder(curriculum.prototypes)
    except NoPrototypesError as error:
        raise DataError(f"{error}; run `{build}`") from None
    return PrototypeSet.load(folder, index.fingerprint, check_once, build)


def balance_of(curriculum: CurriculumConfig, found: PrototypeSet) -> Balance | None:
    """Return the balance of a set's clusters where the curriculum wants it.

    Raises ConfigError if the set has a single cluster.
    """
    if not curriculum.balance:
        return None
    with usage_errors():
        balance = Balance.of(found.cluster, found.parents)
    if balance.clusters < 2:
        raise ConfigError(
            f"--balance has no effect: prototype set {curriculum.prototypes} has a single cluster; leave it out, or "
            "give a set with several"
        )
    return balance


def fingerprints(
    index: ShardIndex, distances: NDArray[np.float32] | None, balance: Balance | None
) -> dict[str, str | None]:
    """Return what a checkpoint records of the data it was trained on: index, distances and balanced clusters."""
    if distances is None:
        return {"index": index.fingerprint, "prototypes": None}
    digest = xxhash.xxh128(np.ascontiguousarray(distances).data)
    if balance:
        digest.update(np.ascontiguousarray(balance.cluster).data)
        digest.update(balance.mass.data)
    return {"index": index.fingerprint, "prototypes": digest.hexdigest()}
