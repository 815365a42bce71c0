"""Conclusions from the trials: the slowest stage, the hours of a recipe, and advice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from mimcl.cli.config import Config
from mimcl.cli.console import format_epochs
from mimcl.cli.doctor.throughput import Rates
from mimcl.cli.estimate import Estimate
from mimcl.cli.recipes import recipe
from mimcl.cli.run.resolve import draws_of
from mimcl.cli.run.sides import resolution_of
from mimcl.pipeline.cores import usable_cores

IMAGENET = 1_281_167  # train images of ImageNet-1K
_SMALL_TARGET = 64  # pixels, up to which decoding at a smaller scale is faster
_GAIN = 1.05  # ratio of rates worth a change


@dataclass(frozen=True)
class Prediction:
    """Training time of one process with one GPU or CPU; `range_hours` at the fastest and the slowest steps' rates."""

    what: str
    images: int
    epochs: float
    hours: float
    range_hours: tuple[float, float]

    def line(self) -> str:
        time = Estimate(self.range_hours[0], self.hours, self.range_hours[1]) * 3600
        return f"{self.what}, {self.images:,} images, {format_epochs(self.epochs)}: {time}"


@dataclass(frozen=True)
class Verdict:
    """`bottleneck` is read, decode or model, or None if a trial was not possible; `why` explains it."""

    bottleneck: str | None
    why: str
    predictions: list[Prediction]
    advice: list[str]


def verdict(rates: Rates, config: Config, images: int | None, cuda: bool, shrink: str | None = None) -> Verdict:
    """Draw conclusions from measured rates; `images` is the size of the given data, None for generated images.

    `shrink` is the command that packs the data again with smaller images, None if they are small already.
    """
    stages = _seconds_per_image(rates)
    bottleneck = max(stages, key=stages.__getitem__) if len(stages) == 3 else None
    predictions = []
    if rates.end_to_end:
        # Values that --recipe auto chose for the given data are not those for ImageNet.
        for what, count, of in (("this data", images, config), ("ImageNet-1K", IMAGENET, _recipe_of(config))):
            if count:
                slowest, fastest = rates.end_to_end_range or (rates.end_to_end, rates.end_to_end)
                draws = _draws_at_full_size(rates, rates.end_to_end, of, count)
                at_rate = [draws / rate / 3600 for rate in (fastest, rates.end_to_end, slowest)]
                line = f"{config.recipe} on {what}", count, of.trainer.epochs
                predictions.append(Prediction(*line, at_rate[1], (at_rate[0], at_rate[2])))
    advice = list(_advice(bottleneck, rates, config, cuda, shrink))
    return Verdict(bottleneck, _explain(bottleneck, stages, cuda), predictions, advice)


def _seconds_per_image(rates: Rates) -> dict[str, float]:
    """Return seconds per image for each stage that was tried, with the decoder and precision that training uses."""
    found = {"read": rates.read, "decode": _first(rates.decode), "model": _first(rates.model)}
    return {name: 1 / rate for name, rate in found.items() if rate}


def _recipe_of(config: Config) -> Config:
    of = recipe(config.recipe)
    return replace(of, curriculum=replace(of.curriculum, resolution=config.curriculum.resolution))


def _draws_at_full_size(rates: Rates, full: float, config: Config, images: int) -> float:
    """Return the number of draws at full size, of which there are `full` a second, that take as long as the run."""
    stages = resolution_of(config, draws_of(config, images)).stages
    return sum(stage.draws * full / rates.end_to_end_by_side.get(stage.side, full) for stage in stages)


def _first(rates: dict[str, float]) -> float | None:
    return next(iter(rates.values()), None)


def _explain(bottleneck: str | None, stages: dict[str, float], cuda: bool) -> str:
    if bottleneck is None:
        return "unknown, because not every stage could be measured"
    each = ", ".join(f"{name} {1e3 * seconds:,.2f} ms" for name, seconds in stages.items())
    if cuda:
        return f"{bottleneck} takes longest per image ({each}) and sets the pace, because the three overlap"
    share = stages[bottleneck] / sum(stages.values())
    return f"{bottleneck} takes {share:.0%} of the time per image ({each}); on a CPU the three share the cores"


def _advice(bottleneck: str | None, rates: Rates, config: Config, cuda: bool, shrink: str | None) -> Iterator[str]:
    if not cuda and config.recipe.startswith("mae_"):
        yield "without a GPU, train a smaller recipe: --recipe cpu_small or cifar_tiny"
    if not cuda and rates.micro_batch and rates.micro_batch < config.data.micro_batch_size:
        yield (
            f"these hours are an upper bound: micro-batches of {config.data.micro_batch_size} would be faster, but "
            f"took too long to measure here; {rates.micro_batch} was used"
        )
    if (count := torch.cuda.device_count()) > 1:
        yield f"these hours are for one GPU; divide by {count} with torchrun, if the cores keep up"
    cores = int(usable_cores())
    if (config.data.decode_threads or 0) > cores >= 1:
        yield f"only {cores} cores are usable: --set data.decode_threads={cores}"
    if bottleneck == "read":
        yield "move the shards to a faster disk, or to memory (/dev/shm) if they fit"
    if bottleneck == "decode":
        if cuda and "dali-gpu" not in rates.decode:
            yield "decode on the GPU: dali-gpu does not work here, see above"
        if shrink:
            yield f"pack smaller images, which changes pixels a little: {shrink}"
        if "dali-gpu" not in rates.decode and config.data.image_size <= _SMALL_TARGET and not config.data.scaled_decode:
            yield "decode at a smaller scale, which changes pixels a little: --set data.scaled_decode=true"
    is_recipe_size = rates.micro_batch == config.data.micro_batch_size  # precision matters less for smaller ones
    bfloat16 = rates.model.get("bfloat16")
    if is_recipe_size and bfloat16 and rates.model.get("float32", 0) > _GAIN * bfloat16:
        yield "float32 is faster here: --set trainer.precision=float32"
    if first := _first(rates.model):
        fastest, rate = max(rates.model.items(), key=lambda item: item[1])
        if fastest.endswith("compiled") and rate > _GAIN * first:
            yield f"--compile is {rate / first - 1:.0%} faster"
