"""What the trials come to: the slowest stage, how long a recipe will take, what would help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mimcl.cli.config import Config
from mimcl.cli.console import format_duration
from mimcl.cli.doctor.throughput import Rates
from mimcl.cli.run.resolve import draws_of
from mimcl.pipeline.cores import usable_cores

IMAGENET = 1_281_167  # train images of ImageNet-1K


@dataclass(frozen=True)
class Prediction:
    """How long one process with one GPU, or one CPU, would train."""

    what: str
    images: int
    epochs: float
    hours: float

    def line(self) -> str:
        return (
            f"{self.what}, {self.images:,} images, {self.epochs:g} epochs: about {format_duration(3600 * self.hours)}"
        )


@dataclass(frozen=True)
class Verdict:
    """`bottleneck` is read, decode or model, None where too little could be tried; `why` is a sentence about it."""

    bottleneck: str | None
    why: str
    predictions: list[Prediction]
    advice: list[str]


def verdict(rates: Rates, config: Config, images: int | None, cuda: bool) -> Verdict:
    """From images a second; `images` of the data given, None where they were generated."""
    stages = times_of_stages(rates)
    bottleneck = max(stages, key=stages.get) if len(stages) == 3 else None
    predictions = []
    if rates.end_to_end:
        for what, count in ((f"{config.recipe} on this data", images), (f"{config.recipe} on ImageNet-1K", IMAGENET)):
            if count:
                hours = draws_of(config, count) / rates.end_to_end / 3600
                predictions.append(Prediction(what, count, config.trainer.epochs, hours))
    advice = list(_advice(bottleneck, rates, config, cuda))
    return Verdict(bottleneck, _why(bottleneck, stages, cuda), predictions, advice)


def times_of_stages(rates: Rates) -> dict[str, float]:
    """Seconds of an image in each stage that was tried, as training would run it."""
    found = {"read": rates.read, "decode": _first(rates.decode), "model": _first(rates.model)}
    return {name: 1 / rate for name, rate in found.items() if rate}


def _first(rates: dict[str, float]) -> float | None:
    return next(iter(rates.values()), None)


def _why(bottleneck: str | None, stages: dict[str, float], cuda: bool) -> str:
    if bottleneck is None:
        return "not every stage could be tried, so the slowest is not known"
    each = ", ".join(f"{name} {1e3 * seconds:,.2f} ms" for name, seconds in stages.items())
    if cuda:
        return f"{bottleneck} takes longest for an image ({each}); the three overlap, so it sets the pace"
    share = stages[bottleneck] / sum(stages.values())
    return f"{bottleneck} takes {share:.0%} of an image's time ({each}); on a CPU the three share the cores"


def _advice(bottleneck: str | None, rates: Rates, config: Config, cuda: bool) -> Iterator[str]:
    if not cuda and config.recipe.startswith("mae_"):
        yield "without a GPU train a recipe of its size: --recipe cpu_small or cifar_tiny"
    if not cuda and rates.micro_batch and rates.micro_batch < config.data.micro_batch_size:
        yield (
            f"tried with micro-batches of {rates.micro_batch} instead of {config.data.micro_batch_size}, which would "
            "have taken too long; larger ones are faster, so take the hours for an upper bound"
        )
    if torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        yield f"tried on one GPU; with all {count} (torchrun) divide by as much, if the cores keep up"
    cores = int(usable_cores())
    if (config.data.decode_threads or 0) > cores >= 1:
        yield f"only {cores} cores may be used: --set data.decode_threads={cores}"
    if bottleneck == "read":
        yield "bring the shards to a faster disk, or to memory (/dev/shm) if they fit"
    if bottleneck == "decode":
        if not cuda or "dali-gpu" not in rates.decode:
            yield "pack smaller images: mimcl shard SRC --short-side 256 --out FOLDER"
        if cuda and "dali-gpu" not in rates.decode:
            yield "let the GPU decode: dali-gpu does not work here, see above"
    as_trained = rates.micro_batch == config.data.micro_batch_size  # in smaller ones arithmetic counts for less
    if as_trained and rates.model.get("bfloat16") and rates.model.get("float32", 0) > 1.05 * rates.model["bfloat16"]:
        yield "float32 is faster here: --set trainer.precision=float32"
    fastest = max(rates.model, key=rates.model.get, default="")
    if fastest.endswith("compiled") and rates.model[fastest] > 1.05 * (_first(rates.model) or 0):
        yield f"--compile gains {rates.model[fastest] / _first(rates.model) - 1:.0%}"
