"""mimcl for programs: what the commands do as functions, and the stream of images for any training loop.

    from mimcl.api import Loader, build_prototypes, shard

    shard("imagenet")
    build_prototypes()
    loader = Loader("shards", batch_size=256, epochs=100, curriculum="proto")
    for batch in loader:
        train(batch.images, batch.labels)

Nothing is imported until a name is used, and libraries that are slow to import only when they are needed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mimcl.cli.windows import NEEDS_WSL2

if sys.platform == "win32":
    raise ImportError(NEEDS_WSL2)

if TYPE_CHECKING:
    from mimcl.api.loader import Loader as Loader
    from mimcl.api.loader_batch import LoaderBatch as LoaderBatch
    from mimcl.cli.compare.children import ChildError as ChildError
    from mimcl.cli.compare.children import StoppedError as StoppedError
    from mimcl.cli.compare.compare import compare as compare
    from mimcl.cli.data.shard import shard as shard
    from mimcl.cli.errors import ConfigError as ConfigError
    from mimcl.cli.evaluate.evaluation import evaluate as evaluate
    from mimcl.cli.export.export import export as export
    from mimcl.cli.plan.plan import plan as plan
    from mimcl.cli.prototypes.build_command import build_prototypes as build_prototypes
    from mimcl.cli.prototypes.import_scores import import_scores as import_scores
    from mimcl.cli.report.report import report as report
    from mimcl.cli.train import train as train
    from mimcl.curriculum.config import CurriculumConfig
    from mimcl.curriculum.prototypes import PrototypeError as PrototypeError
    from mimcl.model.checkpoint_path import CheckpointError as CheckpointError
    from mimcl.model.training_error import TrainingError as TrainingError
    from mimcl.model.world import DistributedError as DistributedError
    from mimcl.pipeline.files import DataError as DataError

    Curriculum = CurriculumConfig

_HOMES = {  # by name: its module, with the name there where that is another
    "CheckpointError": "mimcl.model.checkpoint_path",
    "ChildError": "mimcl.cli.compare.children",
    "ConfigError": "mimcl.cli.errors",
    "Curriculum": "mimcl.curriculum.config:CurriculumConfig",
    "DataError": "mimcl.pipeline.files",
    "DistributedError": "mimcl.model.world",
    "Loader": "mimcl.api.loader",
    "LoaderBatch": "mimcl.api.loader_batch",
    "PrototypeError": "mimcl.curriculum.prototypes",
    "StoppedError": "mimcl.cli.compare.children",
    "TrainingError": "mimcl.model.training_error",
    "build_prototypes": "mimcl.cli.prototypes.build_command",
    "compare": "mimcl.cli.compare.compare",
    "evaluate": "mimcl.cli.evaluate.evaluation",
    "export": "mimcl.cli.export.export",
    "import_scores": "mimcl.cli.prototypes.import_scores",
    "plan": "mimcl.cli.plan.plan",
    "report": "mimcl.cli.report.report",
    "shard": "mimcl.cli.data.shard",
    "train": "mimcl.cli.train",
}
__all__ = sorted(_HOMES)  # a test compares it with the imports above


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, own = _HOMES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), own or name)
    return value


def __dir__() -> list[str]:
    return __all__
