"""Extract the features of an encoder, trained and untrained, once, and evaluate them on rank 0."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from mimcl.cli.suggest import list_damage
from mimcl.model.config import SIZES
from mimcl.model.digest import weights_digest
from mimcl.model.distributed import barrier, connected, gather
from mimcl.model.world import World
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

_TIMEOUT_S = 3600.0  # for a process waiting for the others to extract features, or for rank 0 to evaluate them
ENCODERS = ("trained", "untrained")
Features = Sequence[NDArray[np.float32]]  # of each encoder, (N, D)


@dataclass(frozen=True)
class Source:
    """Images to extract features from: all of a split, or some, by their central crop or by random views of each."""

    index: ShardIndex
    sample_ids: NDArray[np.int64] | None = None  # None: all
    views: int = 0  # 0: the central crop

    @property
    def samples(self) -> int:
        return self.index.samples if self.sample_ids is None else len(self.sample_ids)

    @property
    def label(self) -> str:
        """What a progress bar says."""
        return f"{self.views} views of {self.index.split}" if self.views else self.index.split

    def good(self, features: NDArray[np.float32], max_bad: float) -> NDArray[np.bool_]:
        """Return which images have features (N,). Prints how many have none; raises DataError for too many."""
        bad = is_bad(features)
        if bad.any():
            BadImages(self.index, max_bad).require_few(bad)
            name, advice = self.index.split, list_damage(self.index.shown)
            console.print(f"{bad.sum():,} bad {name} images are skipped; {advice}")
        return ~bad


def load_encoder(path: Path, world: World) -> Encoder:
    """Load an encoder; rank 0 prints what there is to know about it. Raises CheckpointError."""
    encoder = Encoder.load(path)
    if encoder.note and world.rank == 0:
        console.print(encoder.note)
    return encoder


def on_cached_features(
    encoder: Encoder,
    sources: Sequence[Source],
    options: FeatureOptions,
    world: World,
    evaluate: Callable[[Sequence[Features], torch.device], dict[str, Any]],
) -> dict[str, Any]:
    """Return what `evaluate` finds, on every rank; it gets the features of each source by each of ENCODERS, on rank 0.

    The ranks of `world` share the images. Features are stored in chunks under HOME/evaluation/features, so that a
    stopped evaluation continues there; features of other weights are removed, and without `options.cache` all of them
    at the end.
    """
    device = world.device()
    models = [encoder.model(trained=name == "trained") for name in ENCODERS]
    digests = [weights_digest(model.state_dict()) for model in models]
    extractors = [MaeFeatures(str(encoder.path), model.to(device), encoder.precision, options.pool) for model in models]
    views = max(source.views for source in sources)
    indices = [source.index for source in sources]
    decoder = open_decoder(options.decoder, extractors[0].image_size, *indices, world=world, views=views)
    home = encoder.home / "evaluation" / "features"
    with connected(world, device, _TIMEOUT_S), lock(home.parent, world):
        caches = [_Cache(source, home, digests, extractors, encoder, decoder, options) for source in sources]
        if world.rank == 0:
            _remove_others(home, digests)
        barrier()  # no rank writes before rank 0 has the lock
        for cache in caches:
            cache.fill(range(world.rank, len(cache.stores[0].chunks), world.size), shown=world.rank == 0)
        barrier()
        found: dict[str, Any] = {}
        if world.rank == 0:
            found = evaluate([cache.read() for cache in caches], device)
            if options.cache:
                _report_cache(home)
            else:
                _remove_others(home, [])
        return json.loads(gather(json.dumps(found))[0])


class _Cache:
    """The features of a source by each encoder, on disk."""

    def __init__(
        self,
        source: Source,
        home: Path,
        digests: Sequence[str],
        extractors: Sequence[MaeFeatures],
        encoder: Encoder,
        decoder: Decoder,
        options: FeatureOptions,
    ) -> None:
        self._source, self._decoder, self._max_bad = source, decoder, options.max_bad
        self._measures = [on_images(extractor, source.views) for extractor in extractors]
        self.stores = [_store(home / digest, source, encoder, decoder, options) for digest in digests]

    def fill(self, chunks: Sequence[int], shown: bool) -> None:
        """Compute the missing ones of these chunks."""
        source = self._source
        bad = BadImages(source.index, self._max_bad)
        label = source.label if shown else None
        fill(
            source.index,
            self.stores,
            self._measures,
            self._decoder,
            chunks,
            label,
            bad,
            source.sample_ids,
            source.views,
        )

    def read(self) -> Features:
        """Read all features; chunks written on another machine are computed again."""
        read = [[store.read(chunk) for chunk in range(len(store.chunks))] for store in self.stores]
        missing = [number for number, chunks in enumerate(zip(*read, strict=True)) if any(c is None for c in chunks)]
        self.fill(missing, shown=False)
        features = []
        for store, chunks in zip(self.stores, read, strict=True):
            for number in missing:
                chunks[number] = store.read(number)
            present = [chunk for chunk in chunks if chunk is not None]
            if len(present) < len(chunks):
                raise DataError(f"cannot read back what was just written to {store.folder}; check the disk")
            features.append(np.concatenate(present))
        return features


def _store(folder: Path, source: Source, encoder: Encoder, decoder: Decoder, options: FeatureOptions) -> ChunkedArray:
    """The features of a source, below the folder of the weights; the name holds all else that they depend on."""
    config, index = encoder.config, source.index
    images = index.split, index.fingerprint, f"{config.data.image_size}px", decoder.name
    name = "-".join((*images, f"patch{config.model.patch_size}", encoder.precision, options.pool))
    if source.sample_ids is not None:
        name += f"-of{source.samples}"
    if source.views:
        name += f"-views{source.views}"
    return feature_store(folder / name, source.samples, SIZES[config.model.name][0] * max(1, source.views))


def _remove_others(home: Path, digests: Sequence[str]) -> None:
    """Remove the features of all other weights, so that the cache does not grow with every checkpoint."""
    home.mkdir(exist_ok=True)
    for folder in home.iterdir():
        if folder.is_dir() and folder.name not in digests:
            shutil.rmtree(folder, ignore_errors=True)


def _report_cache(home: Path) -> None:
    size = sum(path.stat().st_size for path in home.rglob("*.npy"))
    console.print(f"features: {size / 1e6:,.1f} MB cached in {home} for the next evaluation; --no-cache removes them")
