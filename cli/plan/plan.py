"""`mimcl plan`: what a schedule will do, without training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimcl.cli import options

if TYPE_CHECKING:
    from mimcl.cli.config import Config
    from mimcl.curriculum.forecast import WindowForecast

_CURVE = 121  # points of the picture's lines


@dataclass(frozen=True)
class Planned:
    """A run as it would be, window by window: some of its windows, evenly spaced, with the first and the last."""

    name: str  # of the schedule
    config: Config
    samples: int
    draws: int
    window_length: int
    windows: int
    words: str  # what the curriculum is
    expected: list[WindowForecast]

    def rows(self, count: int) -> list[WindowForecast]:
        """`count` of them or fewer, evenly spaced, with the first and the last."""
        places = range(min(count, len(self.expected)))
        last = len(self.expected) - 1
        return [self.expected[round(place * last / max(len(places) - 1, 1))] for place in places]


def plan_command(
    recipe: options.Recipe = None,
    data: options.Data = None,
    curriculum: options.Curriculum = None,
    temp_schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="cosine, linear, exponential, step or constant; give it several times to compare. (default: cosine)"
        ),
    ] = None,
    r0: options.R0 = None,
    curriculum_share: options.CurriculumShare = None,
    temperature: options.Temperature = None,
    resampling: options.Resampling = None,
    order: options.Order = None,
    slice_epochs: options.Slice = None,
    epochs: options.Epochs = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    rows: Annotated[int, typer.Option(min=2, help="Windows in the table, evenly spaced.")] = 12,
    out: Annotated[Path, typer.Option(help="The picture, a PNG file.")] = Path("plan.png"),
) -> None:
    """Tell what `mimcl train` with the same flags would draw: temperature, distinct images, repeats."""
    from mimcl.cli.config import require_constant
    from mimcl.cli.console import console
    from mimcl.cli.plan.plan_picture import draw_picture
    from mimcl.cli.run.folder import new_config
    from mimcl.pipeline.files import DataError, atomic_file

    values = options.config_values(
        config,
        settings,
        data=data,
        curriculum=curriculum,
        r0=r0,
        curriculum_share=curriculum_share,
        temperature=temperature,
        resampling=resampling,
        order=order,
        slice_epochs=slice_epochs,
        epochs=epochs,
    )
    schedules = [{"curriculum.temp_schedule": name} for name in dict.fromkeys(temp_schedule or [])] or [{}]
    plans = [plan(new_config(recipe, values | schedule)) for schedule in schedules]
    if temperature is not None:
        require_constant(*(planned.config.curriculum for planned in plans))
    for planned in plans:
        for line in table(planned, rows):
            console.print(line)
    picture = draw_picture(plans)
    try:
        with atomic_file(out) as file:
            file.write(picture)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; give another --out") from None
    console.print(f"wrote {out}")


def plan(config: Config) -> Planned:
    """What a new run of this configuration would draw. Nothing is trained, decoded or written.

    Raises ConfigError for a learned temperature, PrototypeError without the set of prototypes, DataError.
    """
    from mimcl.cli.errors import ConfigError, usage_errors
    from mimcl.cli.run.summary import curriculum_line
    from mimcl.cli.run.training_data import TrainingData
    from mimcl.curriculum.forecast import forecast

    if config.curriculum.learns:
        raise ConfigError("--temp-schedule learned follows the losses: what it will do is known only by training")
    data = TrainingData.open(config)
    with usage_errors():
        found = data.plan(config)
    shown = sorted({round(place * (found.windows - 1) / (_CURVE - 1)) for place in range(_CURVE)})
    curriculum = config.curriculum
    name = "none" if curriculum.name == "none" else f"{curriculum.name}, {curriculum.temp_schedule}"
    sizes = found.samples, found.draws, found.window_length, found.windows
    return Planned(name, config, *sizes, curriculum_line(config, found), forecast(found, shown))


def table(planned: Planned, rows: int) -> list[str]:
    """Lines to print: what the run is, a row for each of `rows` windows, what the columns mean."""
    from mimcl.pipeline.remote.urls import shown

    config = planned.config
    lines = [
        f"{planned.samples:,} images in {shown(config.data.root)}, {config.trainer.epochs:g} epochs: "
        f"{planned.draws:,} draws in {planned.draws // config.data.batch_size:,} steps and {planned.windows:,} windows",
        planned.words,
        f"{'':39}{'mean':>9}   {'different images, expected':>28}   {'drawn most':>10}",
        f"{'epoch':>8}{'draw':>15}{'tau':>9}{'r':>7}{'distance':>9}   {'in the window':>13}{'so far':>15}"
        f"   {'times':>10}",
    ]
    for row in planned.rows(rows):
        distance = "" if math.isnan(row.distance) else f"{row.distance:.3f}"
        seen = f"{row.distinct:,.0f} {row.coverage:6.1%}"
        lines.append(
            f"{row.epoch:8,.1f}{row.draw:15,}{row.temperature:9.3g}{row.effective_fraction:7.3f}{distance:>9}   "
            f"{row.window_distinct:13,.0f}{seen:>15}   {row.max_repeats:10,}"
        )
    if config.curriculum.name != "none" and config.curriculum.resampling == "systematic":
        lines.append(
            "approximate, as windows are systematic: different images so far within 13% over 4 to 8 epochs, within 5% "
            "over 20 or more; times drawn most within 11% and 7%"
        )
    return lines
