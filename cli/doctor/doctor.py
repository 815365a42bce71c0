"""`mimcl doctor`: is everything here that training needs, and how fast will it be?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mimcl.cli.doctor.findings import Finding
    from mimcl.cli.doctor.throughput import Rates
    from mimcl.cli.doctor.verdict import Verdict


@dataclass(frozen=True)
class Diagnosis:
    """Findings by section, the rates of the trials in images a second, and what they come to."""

    sections: dict[str, list[Finding]]
    rates: Rates | None
    verdict: Verdict | None

    @property
    def sound(self) -> bool:
        """Whether nothing that training needs is broken."""
        return not any(finding.mark == "broken" for found in self.sections.values() for finding in found)


def doctor_command(
    data: Annotated[str | None, typer.Option(help="Folder or URL of shards. (default: generated images)")] = None,
    recipe: Annotated[
        str, typer.Option(help="What to predict: auto, mae_b16, mae_l16, mae_h14, cifar_tiny or cpu_small.")
    ] = "auto",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long a trial takes, about.")] = 5.0,
    compile: Annotated[bool, typer.Option("--compile", help="Try torch.compile as well; takes minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Check versions, machine and data, try every stage, name the bottleneck and predict the hours of a recipe.

    Exit code 1 when something that training needs is broken.
    """
    from mimcl.cli.console import console
    from mimcl.cli.doctor.findings import SIGNS
    from mimcl.cli.json_output import to_json

    found = doctor(data, recipe, seconds, compile)
    if as_json:
        typer.echo(to_json(found))
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
    if not found.sound:
        raise typer.Exit(1)


def doctor(
    data: str | Path | None = None, recipe: str = "auto", seconds: float = 5.0, compile: bool = False
) -> Diagnosis:
    """Looks at everything, about 9 times `seconds` long; a check that fails is a finding.

    Without `data` the trials take images made for them. Raises ConfigError for an unknown recipe, nothing else.
    """
    import tempfile

    from mimcl.cli.doctor.findings import Finding, found_by, reason
    from mimcl.cli.doctor.gpu import gpus
    from mimcl.cli.doctor.versions import versions

    sections = {"versions": versions(), "GPU": gpus()}
    try:
        from mimcl.cli.doctor.machine import cache, disk, machine
        from mimcl.cli.doctor.refused import refused
        from mimcl.cli.doctor.throughput import Trials
        from mimcl.cli.doctor.verdict import verdict
        from mimcl.cli.recipes import recipe as named
    except ImportError as error:
        sections["machine"] = [Finding("mimcl", f"cannot be loaded: {reason(error)}", "broken")]
        return Diagnosis(sections, None, None)
    import torch

    config = named(recipe)
    sections["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        try:
            index = _index(data, Path(folder))
        except Exception as error:
            sections["data"] = [Finding("shards", reason(error), "broken")]
            return Diagnosis(sections, None, None)
        images = None if data is None else index.samples
        about = f"{index.samples:,} images in {index.shown}" if data else f"{index.samples:,} generated ones"
        sections["data"] = [Finding("images", about, "ok" if data else "info")]
        if index.url is None:
            sections["data"] += found_by("disk", lambda: disk(index))
        else:
            sections["data"] += found_by("cache", cache)
        if data:
            sections["data"] += found_by("headers", lambda: refused(index, seconds))
        trials = Trials(index, config, seconds, compile)
        sections[f"trials of {config.recipe}"] = trials.findings()
    return Diagnosis(sections, trials.rates, verdict(trials.rates, config, images, torch.cuda.is_available()))


def _index(data: str | Path | None, folder: Path):  # noqa: ANN202 - a ShardIndex, whose module is heavy
    from mimcl.cli.doctor.generated_shards import generated_shards
    from mimcl.pipeline.index import ShardIndex

    return generated_shards(folder) if data is None else ShardIndex.load(data)
