"""`mimcl doctor`: check the installation and predict the speed of training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimcl.cli.options import RecipeName, Resolution
from mimcl.cli.suggest import command

if TYPE_CHECKING:
    from mimcl.cli.doctor.findings import Finding
    from mimcl.cli.doctor.throughput import Rates
    from mimcl.cli.doctor.verdict import Verdict
    from mimcl.pipeline.index import ShardIndex

_SHORT_SIDE = 256  # pixels that images are shrunk to, enough for crops of 224
_WORTH_SHRINKING = 1.2  # ratio of the images' short side to that


@dataclass(frozen=True)
class Diagnosis:
    """Findings by section, measured rates, and conclusions from them."""

    sections: dict[str, list[Finding]]
    rates: Rates | None
    verdict: Verdict | None

    @property
    def is_broken(self) -> bool:
        """Whether something that training needs does not work."""
        return any(finding.mark == "broken" for findings in self.sections.values() for finding in findings)


def doctor_command(
    data: Annotated[str | None, typer.Option(help="Folder or URL of shards.", show_default="generated images")] = None,
    recipe: Annotated[RecipeName, typer.Option(help="Recipe to predict.")] = "auto",
    resolution: Resolution = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Approximate length of each trial.")] = 5.0,
    try_compile: Annotated[bool, typer.Option("--compile", help="Also try torch.compile; takes minutes.")] = False,
    json_format: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Check installation, machine and data, time each stage of training, and predict the hours of a recipe.

    Exits with code 1 if something that training needs is broken.
    """
    from mimcl.cli.console import console
    from mimcl.cli.doctor.findings import SIGNS
    from mimcl.cli.json_output import to_json

    found = doctor(data, recipe, seconds, try_compile, resolution)
    if json_format:
        print(to_json(found))
    else:
        for section, findings in found.sections.items():
            console.print(section)
            width = max((len(finding.name) for finding in findings), default=0) + 2
            for finding in findings:
                console.print(f"  {SIGNS[finding.mark]} {finding.name:{width}}{finding.text}")
        if found.verdict:
            console.print(f"bottleneck: {found.verdict.why}")
            for prediction in found.verdict.predictions:
                console.print(prediction.line())
            for advice in found.verdict.advice:
                console.print(f"advice: {advice}")
    if found.is_broken:
        raise typer.Exit(1)


def doctor(
    data: str | Path | None = None,
    recipe: str = "auto",
    seconds: float = 5.0,
    try_compile: bool = False,
    resolution: str | None = None,
) -> Diagnosis:
    """Run all checks and trials, which takes about 9 times `seconds`; a check that fails is a finding.

    `resolution` is that of `train`; each of its sides is tried as well. Without `data`, the trials use generated
    images. Raises DataError where `data` is not a data set, ConfigError for an unknown recipe, and RestartNeeded.
    """
    import tempfile

    from mimcl.pipeline.dataset_json import read_dataset

    if data is not None:
        read_dataset(data)  # first: torch takes seconds to import

    from mimcl.cli.doctor.environment import gpus, versions
    from mimcl.cli.doctor.findings import Finding, found_by, reason

    sections = {"versions": versions(), "GPU": gpus()}
    try:
        from mimcl.cli.auto_recipe import choose, short_side
        from mimcl.cli.config import override
        from mimcl.cli.doctor.headers import headers
        from mimcl.cli.doctor.machine import cache, decoded, disk, machine
        from mimcl.cli.doctor.throughput import Trials
        from mimcl.cli.doctor.verdict import IMAGENET, verdict
        from mimcl.cli.recipes import recipe as named
        from mimcl.cli.run.batch_advice import batch_advice
        from mimcl.cli.run.device import Machine
    except ImportError as error:
        sections["machine"] = [Finding("mimcl", f"cannot be imported: {reason(error)}", "broken")]
        return Diagnosis(sections, None, None)
    import torch

    if recipe != "auto":
        named(recipe)  # before anything takes time
    sections["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        try:
            index = _index(data, Path(folder))
        except Exception as error:
            sections["data"] = [Finding("shards", reason(error), "broken")]
            return Diagnosis(sections, None, None)
        images = None if data is None else index.samples
        values = {} if data is None else {"data.root": str(data)}
        if resolution is not None:
            values["curriculum.resolution"] = resolution
        source = f"images in {index.shown}" if data else "generated images"
        found = [Finding("images", f"{index.samples:,} {source}", "ok" if data else "info")]
        found += found_by("disk", lambda: disk(index)) if index.url is None else found_by("cache", cache)
        if recipe == "auto":
            chosen = choose(IMAGENET if images is None else images, short_side(index), Machine.this())
            config = chosen.config(values)
            found.append(Finding("recipe", chosen.line.removeprefix("recipe "), "info"))
        else:
            config = override(named(recipe), values)
        if images and (advice := batch_advice(config, images)):
            found.append(Finding("batch", advice, "warning"))
        if data:
            found += found_by("headers", lambda: headers(index, seconds))
            found += found_by("decoded images", lambda: decoded(index))
        sections["data"] = found
        trials = Trials(index, config, seconds, try_compile)
        sections[f"trials of {config.recipe}"] = trials.findings()
        of_any = command("shard", "SRC", short_side=_SHORT_SIDE, out="FOLDER")
        shrink = _shrink_command(index) if data else of_any
    conclusions = verdict(trials.rates, config, images, torch.cuda.is_available(), shrink)
    return Diagnosis(sections, trials.rates, conclusions)


def _shrink_command(index: ShardIndex) -> str | None:
    """Return the command that packs these shards again with smaller images; None if they are small or not here."""
    import numpy as np

    shortest = float(np.median(np.minimum(index.width, index.height)))
    if index.url is not None or shortest <= _WORTH_SHRINKING * _SHORT_SIDE:
        return None
    root = Path(os.path.normpath(index.root))
    return command("shard", root, short_side=_SHORT_SIDE, out=root.with_name(f"{root.name}-{_SHORT_SIDE}"))


def _index(data: str | Path | None, folder: Path) -> ShardIndex:
    from mimcl.cli.doctor.generated_shards import generated_shards
    from mimcl.pipeline.index import ShardIndex

    return generated_shards(folder) if data is None else ShardIndex.load(data)
