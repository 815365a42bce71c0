"""Short trials of the stages of training: reading, decoding, the model, and all of them together."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mimcl.cli.config import Config
from mimcl.cli.doctor.findings import Finding, found_by, reason
from mimcl.cli.doctor.machine import CAN_FORGET, forget_shards
from mimcl.cli.estimate import estimate
from mimcl.cli.plan.build_plan import build_plan
from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.cli.run.resolve import draws_of, has_bfloat16
from mimcl.cli.run.sides import resolution_of
from mimcl.cli.suggest import command
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.mae import build
from mimcl.model.trainer import Batch, Trainer
from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.dali_builds import has_dali
from mimcl.pipeline.decode import Decoder, Encoded
from mimcl.pipeline.decoder_choice import DECODERS, make_decoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.restart import RestartNeeded
from mimcl.pipeline.store import Defect
from mimcl.pipeline.stream import ReadOptions, Stream

Precision = Literal["bfloat16", "float32"]

_BATCH = 64  # images read or decoded at a time
_ENCODED = 256  # images kept in memory for the decoding trials
_SMALLEST = 2  # images of a micro-batch
_PASSES = 6  # that fit into a trial on a CPU
_ENDLESS = 10**7  # steps


@dataclass
class Rates:
    """Images per second of each stage; None or missing where a trial was not possible."""

    read: float | None = None
    decode: dict[str, float] = field(default_factory=dict)  # by decoder; the one that training prefers comes first
    model: dict[str, float] = field(default_factory=dict)  # by precision; the one that training prefers comes first
    end_to_end: float | None = None  # the median of steps
    end_to_end_range: tuple[float, float] | None = None  # the 10th and 90th percentile of steps
    end_to_end_by_side: dict[int, float] = field(default_factory=dict)  # of the sides that a run has besides its last
    data_wait: float | None = None  # share of the time of the end-to-end trial
    micro_batch: int | None = None


class _MicroBatch(NamedTuple):
    images: torch.Tensor
    keys: torch.Tensor
    position: int
    bad: tuple[Any, ...] = ()


class Trials:
    """Trials of a recipe on a split; each takes about `seconds`, more on a slow machine."""

    def __init__(self, index: ShardIndex, config: Config, seconds: float, try_compile: bool) -> None:
        self.rates = Rates()
        self._index, self._config, self._seconds, self._compile = index, config, seconds, try_compile
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._precision: Precision = "bfloat16" if has_bfloat16() else "float32"  # as training chooses
        keep_freed_memory()  # as in training

    @cached_property
    def _model(self) -> MaskedAutoencoder:
        model = build(self._config.model, self._config.data.image_size, 0)
        model.add_grids(side // model.patch_size for side in self._smaller_sides())
        return model.to(self._device)

    def findings(self) -> list[Finding]:
        """Run all trials."""
        checks = (("read", self.read), ("decode", self.decode), ("model", self.model), ("end to end", self.end_to_end))
        return [finding for name, check in checks for finding in found_by(name, check, "broken")]

    def read(self) -> Iterator[Finding]:
        """Read random images and compare checksums, without the page cache."""
        store = open_store(self._index)

        def batches() -> Iterator[NDArray[np.int64]]:
            ids = self._ids(self._index.samples, seed=1)
            while True:
                forget_shards(self._index)
                yield from (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))

        def read_batch() -> int:
            found = store.read(next(remaining))
            if bad := [data for data in found if isinstance(data, Defect)]:
                verify = command("verify", self._index.shown)
                raise ValueError(f"sample {bad[0].key} of {bad[0].shard}: {bad[0].reason}; run `{verify}`")
            return len(found)

        remaining = batches()
        self.rates.read = _rate(read_batch, self._seconds / 3)
        yield Finding("read", f"{self.rates.read:,.0f} images/s, with checksums{', not cached' if CAN_FORGET else ''}")

    def decode(self) -> Iterator[Finding]:
        """Decode images in memory with every decoder, cropped as in training."""
        data, ids = self._config.data, self._ids(_ENCODED)
        threads = decode_threads(configured=data.decode_threads)
        good = [
            (row, image)
            for row, image in zip(ids, open_store(self._index).read(ids), strict=True)
            if not isinstance(image, Defect)
        ]
        ids, images = np.array([row for row, _ in good]), [image for _, image in good]
        boxes, flips = random_crops(0)(np.arange(len(ids)), self._index.width[ids], self._index.height[ids])
        cuts = [slice(start, start + _BATCH) for start in range(0, len(ids), _BATCH)]
        batches = [Encoded(images[cut], boxes[cut], flips[cut]) for cut in cuts]
        for name in DECODERS if has_dali() else ("reference",):
            try:
                decoder, _ = make_decoder(name, data.image_size, _BATCH, threads, self._index.largest)
                rate = _decode_rate(decoder, batches, self._seconds / 2)
            except RestartNeeded:
                raise
            except Exception as error:
                why = re.sub(r"no decoder works on this machine \(\S+: (.*)\); try .*", r"\1", reason(error))
                yield Finding(f"decode, {name}", f"not available: {why}", "info")
                continue
            self.rates.decode[name] = rate
            on_threads = "" if name == "dali-gpu" else f", {threads} threads"
            yield Finding(f"decode, {name}", f"{rate:,.0f} images/s to {data.image_size} px{on_threads}")

    def model(self) -> Iterator[Finding]:
        """Run forward and backward passes over a micro-batch on the device."""
        count = self.rates.micro_batch = self._micro_batch()
        other: Precision = "float32" if self._precision == "bfloat16" else "bfloat16"
        for precision in (self._precision, other):
            if count / self.rates.model.get(self._precision, math.inf) > self._seconds:
                yield Finding(f"model, {precision}", "skipped: too slow on this machine", "info")
                continue
            for compiled in (False, True) if self._compile else (False,):
                name = precision + (", compiled" if compiled else "")
                try:
                    seconds = _median(self._timed_pass(precision, compiled, count), self._seconds / 2)
                except Exception as error:  # for example out of memory, or no compiler
                    yield Finding(f"model, {name}", f"failed: {reason(error)}", "warning")
                    continue
                self.rates.model[name] = count / seconds
                yield Finding(f"model, {name}", f"{count / seconds:,.1f} images/s, micro-batch {count}")

    def end_to_end(self) -> Iterator[Finding]:
        """Train for some steps on uniform draws: at full size, and at the smaller sides of a resolution curriculum."""
        full = self._config.data.image_size
        rate, slowest, fastest, waited, how = self._end_to_end(full, 2 * self._seconds)
        self.rates.end_to_end, self.rates.end_to_end_range, self.rates.data_wait = rate, (slowest, fastest), waited
        varied = f" ({slowest:,.1f} to {fastest:,.1f})" if fastest > 2 * slowest else ""
        text = f"{rate:,.1f} images/s{varied}, data-wait {waited:.0%}, {how}"
        yield Finding("end to end", text, "warning" if waited > 0.1 or varied else "ok")
        for side in self._smaller_sides():
            rate, *_, waited, how = self._end_to_end(side, self._seconds)
            self.rates.end_to_end_by_side[side] = rate
            text = f"{rate:,.1f} images/s, data-wait {waited:.0%}, {how}"
            yield Finding(f"end to end, {side} px", text, "warning" if waited > 0.1 else "ok")

    def _smaller_sides(self) -> list[int]:
        sides = resolution_of(self._config, draws_of(self._config, self._index.samples)).sides
        return [side for side in sides if side != self._config.data.image_size]

    def _end_to_end(self, side: int, seconds: float) -> tuple[float, float, float, float, str]:
        """Train for so many seconds; return images per second (median, slowest, fastest), data-wait, and how."""
        config, micro_batch = self._config, self.rates.micro_batch or _SMALLEST
        parts = max(1, min(4, config.data.batch_size // config.data.micro_batch_size))
        rate = next(iter(self.rates.model.values()), 1.0)
        parts = min(parts, max(1, int(self._seconds / 4 * rate / micro_batch)))  # short enough for several steps
        batch = micro_batch * parts
        draws = batch * _ENDLESS
        trainer = self._trainer(self._precision, False, parts, batch, draws)
        samples, largest = self._index.samples, self._index.largest
        plan = build_plan(CurriculumConfig(), samples=samples, draws=draws, batch_size=batch, seed=0)
        threads = decode_threads(configured=config.data.decode_threads)
        decoder, _ = make_decoder("auto", config.data.image_size, micro_batch, threads, largest)
        shares, options = BatchShares(batch, micro_batch), ReadOptions(config.data.prefetch)
        stream = Stream(
            plan,
            self._index,
            decoder,
            random_crops(0),
            shares,
            options,
            seed=0,
            device=self._device,
            side_at=lambda draw: side,
        )
        deadline = time.perf_counter() + seconds
        waits, times = list[float](), list[float]()
        for step in trainer.steps(stream, stop=lambda: bool(estimate(times)) and time.perf_counter() > deadline):
            if step.report:
                times.append(1 / step.report.images_per_second)
                waits.append(step.report.data_wait)
        found = estimate(times)
        assert found, "the stream is endless"
        how = f"{len(times)} steps of {batch}, {decoder.name}, {self._precision}"
        return 1 / found.median, 1 / found.high, 1 / found.low, float(np.mean(waits[1:])), how

    def _ids(self, count: int, seed: int = 0) -> NDArray[np.int64]:
        return np.random.default_rng(seed).permutation(self._index.samples)[:count]

    def _micro_batch(self) -> int:
        """Return the recipe's micro-batch size on a GPU; on a CPU one that is small enough for several passes."""
        largest = self._config.data.micro_batch_size
        if self._device.type == "cuda":
            return largest
        count, limit = min(_SMALLEST, largest), self._seconds / _PASSES
        # Doubled, not extrapolated, because small passes are mostly overhead. Timed twice, in case of interference.
        while count < largest:
            timed_pass = self._timed_pass(self._precision, False, count)
            timed_pass()  # warm up
            if timed_pass() > limit and timed_pass() > limit:
                break
            count = min(2 * count, largest)
        return count

    def _timed_pass(self, precision: Precision, compiled: bool, count: int) -> Callable[[], float]:
        """Return a function that runs a forward and a backward pass over `count` images and returns its seconds."""
        side = self._config.data.image_size
        trainer = self._trainer(precision, compiled, 1, count, count)
        images = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
        keys = torch.from_numpy(hash64(0, np.arange(count), 0).view(np.int64))
        batch = _MicroBatch(images.to(torch.uint8).to(self._device), keys.to(self._device), count)
        return lambda: trainer.time_of_micro_batch(batch)

    def _trainer(self, precision: Precision, compiled: bool, parts: int, batch: int, draws: int) -> Trainer[Batch]:
        config = self._config
        return Trainer(
            self._model,
            make_masker(
                replace(config.masking, name="random"),
                self._model,
                MaskingSchedule("step", 1, 1),
                hard_patches=config.hard_patches,
                learned=config.learned_masking,
                seed=0,
            ),
            replace(config.trainer, compile=compiled, log_every_steps=1, checkpoint_every_steps=10**9),
            config.optim,
            samples=self._index.samples,
            draws=draws,
            batch_size=batch,
            micro_batches=parts,
            precision=precision,
        )


def _decode_rate(decoder: Decoder, batches: Sequence[Encoded], seconds: float) -> float:
    decoded = decoder(cycle(batches))

    def decode_batch() -> int:
        images = next(decoded).images
        if images.is_cuda:
            torch.cuda.synchronize()
        return len(images)

    return _rate(decode_batch, seconds)


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Repeat `work`, which returns the number of images it has processed; return images per second."""

    def seconds_per_image() -> float:
        started = time.perf_counter()
        done = work()
        return (time.perf_counter() - started) / done

    return 1 / _median(seconds_per_image, seconds)


def _median(timed: Callable[[], float], seconds: float) -> float:
    """Repeat `timed`, which returns the seconds it measures, for `seconds`; return the median without the first."""
    started, times = time.perf_counter(), list[float]()
    while (found := estimate(times)) is None or time.perf_counter() - started < seconds:
        times.append(timed())
    return found.median
