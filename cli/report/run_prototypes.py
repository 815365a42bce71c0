"""The prototype set that a run was trained with."""

from __future__ import annotations

from dataclasses import dataclass

from mimcl.cli.config import Config, override
from mimcl.cli.report.run_record import RunRecord
from mimcl.cli.run.training_data import fingerprints
from mimcl.curriculum.balance import Balance
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.verify_cache import check_once


@dataclass(frozen=True)
class RunPrototypes:
    """A prototype set with what the run's curriculum makes of it."""

    found: PrototypeSet
    curriculum: CurriculumConfig
    balance: Balance | None
    scores: str  # the name of the imported scores that the distances are; empty for distances to prototypes


def load_prototypes(run: RunRecord, index: ShardIndex) -> RunPrototypes:
    """Load the set of a run with a prototype curriculum.

    Raises PrototypeError, DataError if it has changed since, and ConfigError for a configuration of another version.
    """
    curriculum = override(Config(), run.config).curriculum
    folder = index.prototypes_folder(curriculum.prototypes)
    found = PrototypeSet.load(folder, index.fingerprint, check_once)
    balance = Balance.of(found.cluster, found.parents) if curriculum.balance else None
    expected = fingerprints(index, found.distance, balance)["prototypes"]
    if run.fingerprints.get("prototypes") not in (None, expected):
        raise DataError(f"{folder} has changed since this run was trained (it has another fingerprint)")
    return RunPrototypes(found, curriculum, balance, found.info["scores"]["name"] if "scores" in found.info else "")
