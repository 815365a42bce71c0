"""`mimcl plan`: forecast what a run will draw, without training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

from mimcl.cli import options

if TYPE_CHECKING:
    from mimcl.cli.config import Config
    from mimcl.cli.plan.planned_run import PlannedRun

_CURVE_POINTS = 121  # in the picture


def plan_command(
    context: typer.Context,
    recipe: options.Recipe = None,
    data: options.Data = None,
    curriculum: options.Curriculum = None,
    prototypes: options.Prototypes = None,
    temp_schedule: Annotated[
        list[options.TempSchedule] | None,
        typer.Option(help="Repeat it to compare schedules; learned cannot be planned.", show_default="cosine"),
    ] = None,
    r0: options.R0 = None,
    curriculum_share: options.CurriculumShare = None,
    temperature: options.Temperature = None,
    resampling: options.Resampling = None,
    balance: options.Balance = None,
    order: options.Order = None,
    slice_epochs: options.Slice = None,
    image_size: options.ImageSize = None,
    resolution: options.Resolution = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    rows: Annotated[int, typer.Option(min=2, help="Number of windows in the table, evenly spaced.")] = 12,
    out: Annotated[Path, typer.Option(help="PNG file for the picture.")] = Path("plan.png"),
) -> None:
    """Forecast what `mimcl train` with the same flags would draw: temperature, distinct images, repeats."""
    from mimcl.cli.config import parse_settings
    from mimcl.cli.console import console
    from mimcl.cli.run.batch_advice import batch_advice
    from mimcl.pipeline.files import DataError, atomic_file, remedy

    given = {name: value for name, value in context.params.items() if name not in ("rows", "out")}
    given["settings"] = parse_settings(settings or [])
    schedules: list[options.TempSchedule | None] = [*dict.fromkeys(temp_schedule or [])] or [None]
    plans = []
    for schedule in schedules:
        # Of several schedules --temperature is for the constant one.
        is_for_it = schedule is options.TempSchedule.CONSTANT or options.TempSchedule.CONSTANT not in schedules
        own = {"temp_schedule": schedule, "temperature": temperature if is_for_it else None}
        plans.append(plan(**given | own))
    if chosen := plans[0].chosen:
        console.print(chosen)
    for planned in plans:
        for line in table(planned, rows):
            console.print(line)
    if advice := batch_advice(plans[0].config, plans[0].samples):
        console.print(advice)

    from mimcl.cli.plan.plan_picture import draw_picture  # only now: it imports matplotlib

    picture = draw_picture(plans)
    try:
        with atomic_file(out) as file:
            file.write(picture)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); {remedy(error, 'give another --out')}") from None
    console.print(f"wrote {out}")


def plan(
    recipe: options.RecipeName | None = None,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **flags: Unpack[options.RunFlags],
) -> PlannedRun:
    """Forecast what `train` with the same arguments would draw. Nothing is trained, decoded, written or printed.

    Args:
        recipe: Recipe to start from; None is "auto".
        config: YAML file with settings.
        settings: Values of configuration keys, such as {"optim.betas": [0.9, 0.95]}.
        **flags: Options of `mimcl train`, with _ for -, such as curriculum="proto", epochs=5.

    Returns:
        The numbers of samples, draws and windows, and `forecasts`: for up to 121 windows the temperature, the effective
        fraction, and how many distinct images are expected.

    Raises:
        ConfigError: Values do not go together, or the temperature is learned, which cannot be predicted.
        PrototypeError: The prototype set is missing, or that of other data.
        DataError: The shards cannot be read.
    """
    from mimcl.cli.config import require_constant
    from mimcl.cli.run.folder import new_config

    chosen: list[str] = []
    run_config = new_config(recipe, options.config_values(flags, config, settings), chosen.append)
    if flags.get("temperature") is not None:
        require_constant(run_config.curriculum)
    return replace(forecast_run(run_config), chosen=" ".join(chosen))


def forecast_run(config: Config) -> PlannedRun:
    """Forecast a new run of this configuration, see `plan`."""
    from mimcl.cli.errors import ConfigError, usage_errors
    from mimcl.cli.plan.planned_run import PlannedRun
    from mimcl.cli.run.curriculum_line import curriculum_line
    from mimcl.cli.run.requests import request_lines
    from mimcl.cli.run.resolve import resolve_order
    from mimcl.cli.run.sides import resolution_line, resolution_of
    from mimcl.cli.run.training_data import TrainingData

    if config.curriculum.learns:
        raise ConfigError("--temp-schedule learned depends on the losses and cannot be planned; choose another one")
    order, config = config.curriculum.order, resolve_order(config)
    data = TrainingData.open(config)
    with usage_errors():
        found, sides = data.plan(config), resolution_of(config, data.draws)

    from mimcl.curriculum.forecast import forecast  # only now: it imports scipy

    shown = sorted({round(place * (found.windows - 1) / (_CURVE_POINTS - 1)) for place in range(_CURVE_POINTS)})
    curriculum = config.curriculum
    name = "none" if curriculum.name == "none" else f"{curriculum.name}, {curriculum.temp_schedule}"
    sizes = found.samples, found.draws, found.window_length, found.windows
    requests = request_lines(found, data.index, config.data.batch_size, order)
    described = resolution_line(config, sides) if sides.changes else ""
    forecasts = forecast(found, shown)
    return PlannedRun(name, config, *sizes, curriculum_line(config, found), requests, forecasts, sides, described)


def table(planned: PlannedRun, rows: int) -> list[str]:
    """Return the lines to print: a description of the run, and a row for each of `rows` windows."""
    from mimcl.cli.console import format_epochs
    from mimcl.pipeline.remote.urls import shown

    config = planned.config
    lines = [
        f"{planned.samples:,} images in {shown(config.data.root)}, {format_epochs(config.trainer.epochs)}: "
        f"{planned.draws:,} draws in {planned.draws // config.data.batch_size:,} steps and {planned.windows:,} windows",
        planned.curriculum,
        *([planned.resolution] if planned.resolution else []),
        *planned.requests,
        f"{'':39}{'mean':>9}   {'distinct images, expected':>28}   {'most draws':>10}",
        f"{'epoch':>8}{'draw':>15}{'tau':>9}{'r':>7}{'distance':>9}   {'in the window':>13}{'so far':>15}"
        f"   {'of one':>10}" + (f"{'side':>8}" if planned.sides.changes else ""),
    ]
    for row in planned.rows(rows):
        distance = "" if math.isnan(row.distance) else f"{row.distance:.3f}"
        seen = f"{row.distinct:,.0f} {row.coverage:6.1%}"
        lines.append(
            f"{row.epoch:8,.1f}{row.draw:15,}{row.temperature:9.3g}{row.effective_fraction:7.3f}{distance:>9}   "
            f"{row.window_distinct:13,.0f}{seen:>15}   {row.max_repeats:10,}"
            + (f"{planned.sides.side_at(row.draw):5} px" if planned.sides.changes else "")
        )
    if config.curriculum.name != "none" and config.curriculum.resampling == "systematic":
        lines.append(
            "approximate for systematic resampling: distinct images so far within 13% over 4 to 8 epochs and 5% over "
            "20 or more, most draws of one within 11% and 7%"
        )
    return lines
