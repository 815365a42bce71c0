"""The one path of the evaluators that judge features: encoder, features of both splits, a judge, a result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import console
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.feature_store import RowParts
from mimcl.cli.encoders.lock import alone
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import fill, open_decoder
from mimcl.cli.errors import ConfigError
from mimcl.cli.evaluate.feature_cache import feature_cache
from mimcl.cli.evaluate.labelled import Labelled
from mimcl.cli.evaluate.results import Result, record
from mimcl.model.digest import weights_digest
from mimcl.model.distributed import World, barrier, connected, gather
from mimcl.model.mae import SIZES
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_PATIENCE = 3600.0  # seconds that a process waits for another: for its share, and for rank 0, which judges alone


@dataclass(frozen=True)
class FeatureOptions:
    """How the features are made. `cache`: they stay for the next evaluation."""

    pool: Literal["mean", "cls"] = "mean"  # of the patch tokens, or the CLS token
    decoder: str = "auto"
    cache: bool = True

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "cls"):
            raise ConfigError(f"--pool is {self.pool!r}; choose mean or cls")


class Judged(NamedTuple):
    """What a judge gets: features (N, D) and (M, D), float32, labels (N,) and (M,), -1 = none, and where to compute."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int32]
    val: NDArray[np.float32]
    val_labels: NDArray[np.int32]
    device: torch.device


def evaluate(
    evaluation: str,
    path: Path,
    data: str | Path | None,
    settings: dict[str, Any],
    judge: Callable[[Judged], Iterable[tuple[str, float]]],
    check: Callable[[Labelled], None],
    options: FeatureOptions,
    world: World | None,
) -> Result:
    """What `judge` yields of the features of an encoder and of the same untrained, on central crops.

    `path` is a run, a checkpoint or a file of weights; `data` None takes the shards that it was trained on. `check`
    raises where the labels do not do, before an image is decoded. The ranks of `world` share the images; rank 0 judges
    and writes the result down beside the run, and all return it. Features lie in blocks under HOME/evaluation/features,
    from where an evaluation that was stopped goes on; those of other weights are removed, and without `options.cache`
    all are in the end. Raises DataError when the shards have no val split or cannot tell classes apart, CheckpointError
    when there is no encoder.
    """
    world = world or World()
    encoder = Encoder.load(path)
    if encoder.note and world.rank == 0:
        console.print(encoder.note)
    data = encoder.config.data.root if data is None else data
    splits = Labelled.load(data)
    check(splits)
    device = world.device()
    models = [encoder.model(trained=known) for known in (True, False)]
    digests = [weights_digest(model.state_dict()) for model in models]
    extractors = [
        MaeFeatures(str(path), model.to(device), encoder.config.trainer.precision, options.pool) for model in models
    ]
    opened = open_decoder(options.decoder, extractors[0].image_size, splits.train, splits.val, world=world)
    home = encoder.home / "evaluation" / "features"
    settings = settings | {"pool": options.pool}
    blank = Result(evaluation, encoder.path, splits.train.shown, *splits.counts, splits.classes, settings, {})
    with connected(world, device, _PATIENCE), alone(home.parent, world):
        caches = [
            [_cache(home / digest, index, encoder, opened, options) for digest in digests] for index in splits[:2]
        ]
        if world.rank == 0:
            _remove_others(home, caches)
        barrier()  # nobody writes before rank 0 is alone here
        for index, of_split in zip(splits, caches, strict=False):
            mine = range(world.rank, len(of_split[0].parts), world.size)
            fill(index, of_split, extractors, opened, mine, index.split if world.rank == 0 else None)
        barrier()
        result = None
        if world.rank == 0:
            (train, val) = (_read(i, c, extractors, opened) for i, c in zip(splits, caches, strict=False))
            found = [
                dict(judge(Judged(bank, splits.train.label, asked, splits.val.label, device)))
                for bank, asked in zip(train, val, strict=True)
            ]
            result = replace(blank, trained=found[0], untrained=found[1])
            record(encoder, result, splits.val)
            if options.cache:
                _say_what_stays(home)
            else:
                _remove_others(home, [])
        trained, untrained = json.loads(gather(json.dumps(found) if result else "")[0])
    return replace(blank, trained=trained, untrained=untrained)


def _cache(folder: Path, index: ShardIndex, encoder: Encoder, decoder: Decoder, options: FeatureOptions) -> RowParts:
    """In the folder of the weights, where the features of a split lie: one name for all else that they depend on."""
    config = encoder.config
    of_images = index.split, index.fingerprint, f"{config.data.image_size}px", decoder.name
    name = "-".join((*of_images, f"patch{config.model.patch_size}", config.trainer.precision, options.pool))
    return feature_cache(folder / name, index.samples, SIZES[config.model.name][0])


def _read(
    index: ShardIndex, caches: Sequence[RowParts], extractors: Sequence[MaeFeatures], decoder: Decoder
) -> list[NDArray[np.float32]]:
    """The features of all samples by each encoder; what other machines wrote elsewhere is computed again."""
    found = [[cache.read(block) for block in range(len(cache.parts))] for cache in caches]
    missing = [block for block in range(len(caches[0].parts)) if any(blocks[block] is None for blocks in found)]
    fill(index, caches, extractors, decoder, missing)
    for cache, blocks in zip(caches, found, strict=True):
        for block in missing:
            blocks[block] = cache.read(block)
            if blocks[block] is None:
                raise DataError(f"what was just written to {cache.folder} cannot be read back; check the disk")
    return [np.concatenate(blocks) for blocks in found]


def _remove_others(home: Path, caches: Sequence[Sequence[RowParts]]) -> None:
    """Removes the features of other checkpoints, of which nothing else would ever rid the disk."""
    home.mkdir(exist_ok=True)
    used = {cache.folder.parent for of_split in caches for cache in of_split}
    for folder in home.iterdir():
        if folder.is_dir() and folder not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _say_what_stays(home: Path) -> None:
    size = sum(path.stat().st_size for path in home.rglob("*.npy"))
    console.print(f"features: {size / 1e6:,.1f} MB stay in {home} for the next evaluation; --no-cache removes them")
