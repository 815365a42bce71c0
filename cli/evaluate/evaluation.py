"""Evaluates an encoder by a protocol of choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args, overload

from mimcl.cli.encoders.saved import trained_on
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.eval_options import (
    LIDAR_IMAGES,
    LIDAR_VIEWS,
    NEIGHBOURS,
    QUERIES,
    SEEDS,
    SHOTS,
    FeatureOptions,
    PoolName,
    SplitName,
)
from mimcl.cli.evaluate.labelled import LabelledSplits, require_neighbours, require_shots
from mimcl.model.world import World
from mimcl.pipeline.data_config import DecoderName
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

if TYPE_CHECKING:
    from mimcl.cli.evaluate.results import Result


class FeatureFlags(TypedDict, total=False):
    """How the features are extracted that knn, linear, few-shot and rank evaluate."""

    pool: PoolName
    decoder: DecoderName
    cache: bool
    max_bad: float


@overload
def evaluate(
    path: str | Path,
    protocol: Literal["knn"] = "knn",
    *,
    data: str | Path | None = None,
    k: int = NEIGHBOURS,
    **features: Unpack[FeatureFlags],
) -> Result: ...


@overload
def evaluate(
    path: str | Path,
    protocol: Literal["linear"],
    *,
    data: str | Path | None = None,
    recipe: Literal["fast", "mae"] = "fast",
    epochs: float | None = None,
    batch_size: int | None = None,
    base_lr: float | None = None,
    **features: Unpack[FeatureFlags],
) -> Result: ...


@overload
def evaluate(
    path: str | Path,
    protocol: Literal["attentive"],
    *,
    data: str | Path | None = None,
    recipe: Literal["fast", "mae"] = "fast",
    epochs: float | None = None,
    batch_size: int | None = None,
    base_lr: float | None = None,
    queries: int = QUERIES,
    decoder: DecoderName = "auto",
) -> Result: ...


@overload
def evaluate(
    path: str | Path,
    protocol: Literal["few-shot"],
    *,
    data: str | Path | None = None,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    **features: Unpack[FeatureFlags],
) -> Result: ...


@overload
def evaluate(
    path: str | Path,
    protocol: Literal["rank"],
    *,
    data: str | Path | None = None,
    split: SplitName = "train",
    images: int = LIDAR_IMAGES,
    views: int = LIDAR_VIEWS,
    **features: Unpack[FeatureFlags],
) -> Result: ...


@overload
def evaluate(
    path: str | Path,
    protocol: Literal["finetune"],
    *,
    data: str | Path | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    base_lr: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    seed: int | None = None,
    decoder: DecoderName = "auto",
    settings: Mapping[str, Any] | None = None,
) -> Result: ...


def evaluate(path: str | Path, protocol: str = "knn", *, data: str | Path | None = None, **options: Any) -> Result:
    """Evaluate a trained encoder, as `mimcl eval PROTOCOL` does, and record the result in the run's metrics.jsonl.

    Started by torchrun, all processes call it and return the result.

    Args:
        path: Run, one of its checkpoints, or a file of weights.
        protocol: "knn", "linear", "attentive", "few-shot", "finetune", or "rank", which needs no labels.
        data: Folder or URL of shards with labels and a val split; None is those that the run was trained on.
        **options: The other options of `mimcl eval PROTOCOL`, with _ for -: `k` for knn; `recipe`, `epochs`,
            `batch_size`, `base_lr` for linear and attentive, `queries` for attentive; `shots`, `seeds` for few-shot;
            `split`, `images`, `views` for rank; `pool`, `decoder`, `cache`, `max_bad` for all of these but attentive,
            which has `decoder`; for finetune `epochs`, `batch_size`, `micro_batch_size`, `base_lr`, `layer_decay`,
            `drop_path`, `seed`, `decoder` and `settings`.

    Returns:
        Values by name, `trained` and, where it was measured, `untrained`: accuracies in [0, 1], or for rank effective
        numbers of dimensions.

    Raises:
        ConfigError: Options do not go together.
        CheckpointError: There is no encoder, or it is damaged.
        DataError: The shards cannot be read, or have no labels.
    """
    if protocol not in _PROTOCOLS:
        raise ConfigError(f"protocol is {protocol!r}; choose one of {', '.join(_PROTOCOLS)}")
    return _PROTOCOLS[protocol](Path(path), data, **options)


def _splits(path: Path, data: str | Path | None) -> LabelledSplits:
    """Refuse missing encoders and data before a protocol imports torch, which takes seconds."""
    trained_data = trained_on(path)
    return LabelledSplits.load(trained_data if data is None else data)


def _knn(path: Path, data: str | Path | None, *, k: int = NEIGHBOURS, **features: Unpack[FeatureFlags]) -> Result:
    if k < 1:
        raise ConfigError(f"--k is {k}; it must be at least 1")
    options = FeatureOptions(**features)
    require_neighbours(_splits(path, data), k)
    from mimcl.cli.evaluate.knn import knn

    return knn(path, data, k, options, World.from_environment())


def _linear(
    path: Path,
    data: str | Path | None,
    *,
    recipe: Literal["fast", "mae"] = "fast",
    epochs: float | None = None,
    batch_size: int | None = None,
    base_lr: float | None = None,
    **features: Unpack[FeatureFlags],
) -> Result:
    if recipe not in ("fast", "mae"):
        raise ConfigError(f"--recipe is {recipe!r}; it must be fast or mae")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; it must be at least 1")
    if recipe == "fast" and base_lr is not None:
        raise ConfigError("--base-lr needs --recipe mae: the fast recipe tries 13 learning rates")
    chosen = FeatureOptions(**features)
    if recipe == "mae" and chosen != FeatureOptions(decoder=chosen.decoder):
        raise ConfigError(
            "--pool, --no-cache and --max-bad need --recipe fast: the mae recipe uses CLS tokens, uncached"
        )
    _splits(path, data)
    world = World.from_environment()
    if recipe == "mae":
        from mimcl.cli.evaluate.linear_mae import linear_mae

        return linear_mae(path, data, epochs, batch_size, chosen.decoder, world, base_lr)
    from mimcl.cli.evaluate.linear import linear

    return linear(path, data, epochs, batch_size, options=chosen, world=world)


def _attentive(
    path: Path,
    data: str | Path | None,
    *,
    recipe: Literal["fast", "mae"] = "fast",
    decoder: DecoderName = "auto",
    **values: Any,
) -> Result:
    if recipe not in ("fast", "mae"):
        raise ConfigError(f"--recipe is {recipe!r}; it must be fast or mae")
    _splits(path, data)
    from mimcl.cli.evaluate.attentive import attentive

    return attentive(path, data, recipe, values, decoder, World.from_environment())


def _few_shot(
    path: Path,
    data: str | Path | None,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    **features: Unpack[FeatureFlags],
) -> Result:
    options = FeatureOptions(**features)
    if not shots or min(shots) < 1 or seeds < 1:
        raise ConfigError(f"--shots and --seeds must be at least 1 (got {list(shots)} and {seeds})")
    require_shots(_splits(path, data), shots)
    from mimcl.cli.evaluate.few_shot import few_shot

    return few_shot(path, data, shots, seeds, options, World.from_environment())


def _rank(
    path: Path,
    data: str | Path | None,
    *,
    split: SplitName = "train",
    images: int = LIDAR_IMAGES,
    views: int = LIDAR_VIEWS,
    **features: Unpack[FeatureFlags],
) -> Result:
    options = FeatureOptions(**features)
    if split not in get_args(SplitName):
        raise ConfigError(f"--split is {split!r}; it must be train or val")
    if images < 2 or views < 2:
        raise ConfigError(f"--images and --views must be at least 2 (got {images} and {views}): LiDAR compares them")
    trained_data = trained_on(path)
    index = ShardIndex.load(trained_data if data is None else data, split)
    if index.samples < 2:
        raise DataError(f"{index.shown} has a single {split} image; LiDAR needs at least 2")
    from mimcl.cli.evaluate.rank import rank

    return rank(path, data, split, images, views, options, World.from_environment())


def _finetune(
    path: Path,
    data: str | Path | None,
    *,
    micro_batch_size: int | None = None,
    decoder: DecoderName = "auto",
    settings: Mapping[str, Any] | None = None,
    **flags: Any,
) -> Result:
    from mimcl.cli.config import replaced
    from mimcl.model.evaluate.finetune_config import FinetuneConfig

    values = {name: value for name, value in flags.items() if value is not None} | dict(settings or {})
    replaced(FinetuneConfig(), values)  # refuses what suits no encoder
    _splits(path, data)
    from mimcl.cli.evaluate.finetune import finetune

    return finetune(path, data, values, micro_batch_size, decoder, World.from_environment())


_PROTOCOLS: dict[str, Callable[..., Result]] = {
    "knn": _knn,
    "linear": _linear,
    "attentive": _attentive,
    "few-shot": _few_shot,
    "rank": _rank,
    "finetune": _finetune,
}
