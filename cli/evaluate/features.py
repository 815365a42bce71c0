"""Evaluate the frozen features of an encoder, trained and untrained, and record the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.console import console
from mimcl.cli.encoders.bad_images import BadImages, is_bad
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.feature_store import ChunkedArray, feature_store
from mimcl.cli.encoders.lock import lock
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import fill, on_images, open_decoder
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.labelled import LabelledSplits, of_seen_classes
from mimcl.cli.evaluate.results import Result, record
from mimcl.cli.suggest import list_damage
from mimcl.model.config import SIZES
from mimcl.model.digest import weights_digest
from mimcl.model.distributed import barrier, connected, gather
from mimcl.model.world import World
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_TIMEOUT_S = 3600.0  # for a process waiting for the others to extract features, or for rank 0 to evaluate them


class Evaluator(Protocol):
    """Yields the results of an evaluation by name, given features (N, D) and (M, D), and labels (N,) and (M,)."""

    def __call__(
        self,
        train: NDArray[np.float32],
        train_labels: NDArray[np.int32],
        val: NDArray[np.float32],
        val_labels: NDArray[np.int32],
        /,
        *,
        device: torch.device,
    ) -> Iterable[tuple[str, float]]: ...


def evaluate_features(
    evaluation: str,
    path: Path,
    data: str | Path | None,
    settings: dict[str, Any],
    evaluator: Evaluator,
    check: Callable[[LabelledSplits], None],
    options: FeatureOptions,
    world: World | None,
) -> Result:
    """Apply `evaluator` to the features of an encoder and to those of the same encoder untrained, on central crops.

    `path` is a run, a checkpoint or a file of weights; `data` None means the shards that it was trained on. `check`
    raises before an image is decoded if the labels do not suffice. The ranks of `world` share the images; rank 0
    evaluates and records the result, and all ranks return it. Features are stored in chunks under
    HOME/evaluation/features, so that a stopped evaluation continues there; features of other weights are removed, and
    without `options.cache` all of them at the end. Raises DataError if the shards lack a val split or labels,
    CheckpointError if there is no encoder.
    """
    world = world or World()
    encoder = Encoder.load(path)
    if encoder.note and world.rank == 0:
        console.print(encoder.note)
    splits = LabelledSplits.load(encoder.config.data.root if data is None else data)
    check(splits)
    if splits.note and world.rank == 0:
        console.print(splits.note)
    device = world.device()
    models = [encoder.model(trained=trained) for trained in (True, False)]
    digests = [weights_digest(model.state_dict()) for model in models]
    extractors = [MaeFeatures(str(path), model.to(device), encoder.precision, options.pool) for model in models]
    decoder = open_decoder(options.decoder, extractors[0].image_size, splits.train, splits.val, world=world)
    home = encoder.home / "evaluation" / "features"
    settings = settings | {"pool": options.pool}
    result = Result(evaluation, encoder.path, splits.train.shown, *splits.counts, splits.classes, settings, {})
    with connected(world, device, _TIMEOUT_S), lock(home.parent, world):
        train_stores, val_stores = (
            [_store(home / digest, index, encoder, decoder, options) for digest in digests]
            for index in (splits.train, splits.val)
        )
        if world.rank == 0:
            _remove_others(home, [*train_stores, *val_stores])
        barrier()  # no rank writes before rank 0 has the lock
        for index, stores in ((splits.train, train_stores), (splits.val, val_stores)):
            own, bad = range(world.rank, len(stores[0].chunks), world.size), BadImages(index, options.max_bad)
            fill(
                index,
                stores,
                [*map(on_images, extractors)],
                decoder,
                own,
                index.split if world.rank == 0 else None,
                bad,
            )
        barrier()
        found: dict[str, Any] = {}  # fields of the result
        if world.rank == 0:
            train = _read(splits.train, train_stores, extractors, decoder, options.max_bad)
            val = _read(splits.val, val_stores, extractors, decoder, options.max_bad)
            labels = _without_bad(splits.train, splits.train.label, train[0], options.max_bad)
            truth = _without_bad(splits.val, splits.val_labels, val[0], options.max_bad)
            judged = of_seen_classes(truth, labels)  # all train images of a class may be bad
            for name, features, queries in zip(("trained", "untrained"), train, val, strict=True):
                found[name] = dict(evaluator(features, labels, queries, judged, device=device))
            found |= {"train": int((labels >= 0).sum()), "val": int((judged >= 0).sum())}
            found["unseen"] = splits.unseen + int((judged != truth).sum())
            record(encoder, replace(result, **found), splits.val)
            if options.cache:
                _report_cache(home)
            else:
                _remove_others(home, [])
        found = json.loads(gather(json.dumps(found))[0])
    return replace(result, **found)


def _without_bad(
    index: ShardIndex, labels: NDArray[np.int32], features: NDArray[np.float32], max_bad: float
) -> NDArray[np.int32]:
    """Return the labels with -1 for bad images, which have no features. Raises DataError for too many."""
    bad = is_bad(features)
    if not bad.any():
        return labels
    BadImages(index, max_bad).require_few(bad)
    console.print(f"{bad.sum():,} bad {index.split} images are left out; {list_damage(index.shown)}")
    return np.where(bad, np.int32(-1), labels)


def _store(
    folder: Path, index: ShardIndex, encoder: Encoder, decoder: Decoder, options: FeatureOptions
) -> ChunkedArray:
    """The features of a split, below the folder of the weights; the name holds all else that they depend on."""
    config = encoder.config
    images = index.split, index.fingerprint, f"{config.data.image_size}px", decoder.name
    name = "-".join((*images, f"patch{config.model.patch_size}", encoder.precision, options.pool))
    return feature_store(folder / name, index.samples, SIZES[config.model.name][0])


def _read(
    index: ShardIndex,
    stores: Sequence[ChunkedArray],
    extractors: Sequence[MaeFeatures],
    decoder: Decoder,
    max_bad: float,
) -> list[NDArray[np.float32]]:
    """Read the features of all samples by each encoder; chunks written on another machine are computed again."""
    read = [[store.read(chunk) for chunk in range(len(store.chunks))] for store in stores]
    missing = [number for number, chunks in enumerate(zip(*read, strict=True)) if any(c is None for c in chunks)]
    fill(index, stores, [*map(on_images, extractors)], decoder, missing, None, BadImages(index, max_bad))
    features = []
    for store, chunks in zip(stores, read, strict=True):
        for number in missing:
            chunks[number] = store.read(number)
        present = [chunk for chunk in chunks if chunk is not None]
        if len(present) < len(chunks):
            raise DataError(f"cannot read back what was just written to {store.folder}; check the disk")
        features.append(np.concatenate(present))
    return features


def _remove_others(home: Path, stores: Sequence[ChunkedArray]) -> None:
    """Remove the features of all other weights, so that the cache does not grow with every checkpoint."""
    home.mkdir(exist_ok=True)
    used = {store.folder.parent for store in stores}
    for folder in home.iterdir():
        if folder.is_dir() and folder not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _report_cache(home: Path) -> None:
    size = sum(path.stat().st_size for path in home.rglob("*.npy"))
    console.print(f"features: {size / 1e6:,.1f} MB cached in {home} for the next evaluation; --no-cache removes them")
