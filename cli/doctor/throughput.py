"""Short trials of what training does with an image: read, decode, model, and all of it together."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import torch

from mimcl.cli.config import Config
from mimcl.cli.doctor.findings import Finding, found_by, reason
from mimcl.cli.doctor.machine import forget_shards
from mimcl.cli.plan.build_plan import build_plan
from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.cli.run.resolve import has_bfloat16
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.mae import build
from mimcl.model.trainer import Trainer
from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.decode import Decoded, Encoded
from mimcl.pipeline.decoder_choice import DECODERS, make_decoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.restart import RestartNeeded
from mimcl.pipeline.store import Defect
from mimcl.pipeline.stream import ReadOptions, Stream

_BATCH = 64  # images that are read or decoded at a time
_ENCODED = 256  # images kept in memory to be decoded over and over
_SMALLEST = 2  # images of a micro-batch
_SHARE = 6  # of the seconds of a trial that one pass may take on a CPU
_NO_END = 10**7  # steps


@dataclass
class Rates:
    """Images a second; what could not be tried is missing."""

    read: float | None = None
    decode: dict[str, float] = field(default_factory=dict)  # by decoder, the one that training takes first
    model: dict[str, float] = field(default_factory=dict)  # by arithmetic, the one that training takes first
    end_to_end: float | None = None
    data_wait: float | None = None  # share of the time of the end-to-end trial
    micro_batch: int | None = None


class Trials:
    """Of a recipe on a split. Each trial takes about `seconds`, on a slow machine longer."""

    def __init__(self, index: ShardIndex, config: Config, seconds: float, compile: bool) -> None:
        self.rates = Rates()
        self._index, self._config, self._seconds, self._compile = index, config, seconds, compile
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = None
        keep_freed_memory()  # as training does

    def findings(self) -> list[Finding]:
        """Runs them all."""
        checks = (("read", self.read), ("decode", self.decode), ("model", self.model), ("end to end", self.end_to_end))
        return [finding for name, check in checks for finding in found_by(name, check, "broken")]

    def read(self) -> Iterator[Finding]:
        """Random images, checksums compared; as in a first epoch not from the page cache."""
        store = open_store(self._index)

        def parts() -> Iterator[np.ndarray]:
            images = self._ids(self._index.samples, seed=1)
            while True:
                forget_shards(self._index)
                yield from (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))

        def some() -> int:
            found = store.read(next(cold))
            if bad := [data for data in found if isinstance(data, Defect)]:
                raise ValueError(f"sample {bad[0].key} of {bad[0].shard}: {bad[0].reason}; run mimcl verify")
            return len(found)

        cold = parts()
        self.rates.read = _rate(some, self._seconds / 3)
        yield Finding("read", f"{self.rates.read:,.0f} images/s, checksums compared, nothing cached")

    def decode(self) -> Iterator[Finding]:
        """Every decoder with boxes as in training, from bytes in memory."""
        data, ids = self._config.data, self._ids(_ENCODED)
        threads = decode_threads(configured=data.decode_threads)
        found = open_store(self._index).read(ids)
        good = np.array([not isinstance(data, Defect) for data in found])
        ids, found = ids[good], [data for data in found if not isinstance(data, Defect)]
        boxes, flips = random_crops(0)(np.arange(len(ids)), self._index.width[ids], self._index.height[ids])
        cuts = [slice(start, start + _BATCH) for start in range(0, len(ids), _BATCH)]
        batches = [Encoded(found[cut], boxes[cut], flips[cut]) for cut in cuts]
        for name in DECODERS:
            try:
                decoder, _ = make_decoder(name, data.image_size, _BATCH, threads, self._index.largest)
                decoded = decoder(cycle(batches))
                next(decoded)
                rate = _rate(lambda of=decoded: self._count(next(of)), self._seconds / 2)
                decoded.close()
            except RestartNeeded:
                raise
            except Exception as error:
                why = re.sub(r"no decoder works here \(\S+: (.*)\); try .*", r"\1", reason(error))
                yield Finding(f"decode, {name}", f"not here: {why}", "info")
                continue
            self.rates.decode[name] = rate
            on_threads = "" if name == "dali-gpu" else f", {threads} threads"
            yield Finding(f"decode, {name}", f"{rate:,.0f} images/s to {data.image_size} px{on_threads}")

    def model(self) -> Iterator[Finding]:
        """Forward and backward pass over a micro-batch that lies on the device."""
        used = "bfloat16" if has_bfloat16() else "float32"
        count = self.rates.micro_batch = self._micro_batch(used)
        for precision in (used, "float32" if used == "bfloat16" else "bfloat16"):
            if count / self.rates.model.get(used, math.inf) > self._seconds:
                yield Finding(f"model, {precision}", "not tried: it would take too long here", "info")
                continue
            for compiled in (False, True) if self._compile else (False,):
                name = precision + (", compiled" if compiled else "")
                try:
                    rate = count / min(_times(self._passes(precision, compiled, count), self._seconds / 2))
                except Exception as error:  # out of memory, no compiler
                    yield Finding(f"model, {name}", f"not possible: {reason(error)}", "warning")
                    continue
                self.rates.model[name] = rate
                yield Finding(f"model, {name}", f"{rate:,.1f} images/s, micro-batch {count}")

    def end_to_end(self) -> Iterator[Finding]:
        """Steps of the trainer over the stream, as training goes, with uniform draws."""
        config, micro = self._config, self.rates.micro_batch or _SMALLEST
        parts = max(1, min(4, config.data.batch_size // config.data.micro_batch_size))
        rate = next(iter(self.rates.model.values()), 1.0)
        parts = min(parts, max(1, int(self._seconds / 2 * rate / micro)))  # a step that leaves time for some
        batch, used = micro * parts, "bfloat16" if has_bfloat16() else "float32"
        draws = batch * _NO_END
        sizes = {"samples": self._index.samples, "draws": draws, "batch_size": batch}
        plan = build_plan(CurriculumConfig(), seed=0, **sizes)
        threads = decode_threads(configured=config.data.decode_threads)
        decoder, _ = make_decoder("auto", config.data.image_size, micro, threads, self._index.largest)
        stream = Stream(
            plan,
            self._index,
            decoder,
            random_crops(0),
            BatchShares(batch, micro),
            ReadOptions(config.data.prefetch),
            seed=0,
            device=self._device,
        )
        trainer = self._trainer(used, False, parts, **sizes)
        deadline = time.perf_counter() + 2 * self._seconds
        steps_made = trainer.steps(stream, stop=lambda: time.perf_counter() > deadline)
        reports = [step.report for step in steps_made if step.report]
        warm = reports[1:] or reports
        rate = len(warm) / sum(1 / report.images_per_second for report in warm)
        waited = float(np.mean([report.data_wait for report in warm]))
        self.rates.end_to_end, self.rates.data_wait = rate, waited
        steps = f"{len(reports)} steps of {batch}"
        text = f"{rate:,.1f} images/s, data-wait {waited:.0%}, {steps}, {decoder.name}, {used}"
        yield Finding("end to end", text, "warning" if waited > 0.1 else "ok")

    def _count(self, decoded: Decoded) -> int:
        if decoded.images.is_cuda:
            torch.cuda.synchronize()
        return len(decoded.images)

    def _ids(self, most: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).permutation(self._index.samples)[:most]

    def _micro_batch(self, precision: str) -> int:
        """The recipe's on a GPU; on a CPU, where that would take minutes, one that leaves time for some passes."""
        most = self._config.data.micro_batch_size
        if self._device.type == "cuda":
            return most
        count, room = min(_SMALLEST, most), self._seconds / _SHARE
        # Doubled, not extrapolated: of a small pass most is overhead. Twice: another process may have been in the way.
        while count < most:
            passes = self._passes(precision, False, count)
            if passes() > room and passes() > room:
                break
            count = min(2 * count, most)
        return count

    def _passes(self, precision: str, compiled: bool, count: int) -> Callable[[], float]:
        """The function that times the passes over `count` images, in seconds."""
        side = self._config.data.image_size
        trainer = self._trainer(precision, compiled, 1, samples=count, draws=count, batch_size=count)
        images = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
        keys = torch.from_numpy(hash64(0, np.arange(count), 0).view(np.int64))
        batch = SimpleNamespace(
            images=images.to(torch.uint8).to(self._device), keys=keys.to(self._device), position=count, bad=()
        )
        return lambda: trainer.time_of_micro_batch(batch)

    def _trainer(self, precision: str, compiled: bool, parts: int, **sizes: int) -> Trainer:
        config = self._config
        if self._model is None:
            self._model = build(config.model, config.data.image_size, 0).to(self._device)
        masker = RandomMasker(self._model.num_patches, config.masking.mask_ratio)
        settings = replace(config.trainer, compile=compiled, log_every_steps=1, checkpoint_every_steps=10**9)
        kind = {"micro_batches": parts, "precision": precision}
        return Trainer(self._model, masker, settings, config.optim, **kind, **sizes)


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Images a second of repeated `work`, which returns how many it did."""
    started, done = time.perf_counter(), 0
    while True:
        done += work()
        if (elapsed := time.perf_counter() - started) > seconds:
            return done / elapsed


def _times(passes: Callable[[], float], seconds: float) -> list[float]:
    started, times = time.perf_counter(), []
    while len(times) < 2 or time.perf_counter() - started < seconds:
        times.append(passes())
    return times
