"""mimcl for programs: the stream of images for any training loop, and what the commands do as functions.

    from mimcl.api import Loader

    loader = Loader("shards", batch_size=256, epochs=100, curriculum="proto")
    for batch in loader:
        train(batch.images, batch.labels)

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimcl.api.loader import Loader as Loader
    from mimcl.api.loader_batch import LoaderBatch as LoaderBatch
    from mimcl.curriculum.config import CurriculumConfig as Curriculum

_HOMES = {  # module and name there
    "Curriculum": ("mimcl.curriculum.config", "CurriculumConfig"),
    "Loader": ("mimcl.api.loader", "Loader"),
    "LoaderBatch": ("mimcl.api.loader_batch", "LoaderBatch"),
}
__all__ = ["Curriculum", "Loader", "LoaderBatch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    module, own = _HOMES[name]
    value = globals()[name] = getattr(import_module(module), own)
    return value


def __dir__() -> list[str]:
    return __all__
