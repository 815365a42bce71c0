"""The demo's table, what it allows to conclude, where the results are, and the next commands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mimcl.cli.console import console, format_duration
from mimcl.cli.demo.demo_config import ARMS, CONTROL, CONTROL_IS, FAST, RECIPE, SETTINGS, STUDY, STUDY_SEEDS, DemoConfig
from mimcl.cli.demo.paired import Difference, paired_difference
from mimcl.cli.suggest import command

if TYPE_CHECKING:
    from mimcl.cli.demo.demo_evaluation import Correct


def settings() -> list[str]:
    """Return the demo's SETTINGS as values of --set."""
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else f'{value:g}'}" for key, value in SETTINGS.items()
    ]


def print_table(correct: Mapping[str, Correct], config: DemoConfig, shards: Path) -> None:
    """Print the accuracy of each encoder, and what follows from their difference and what does not."""
    console.print()
    images = f"the {len(correct['untrained']):,} val images"
    console.print(f"nn: share of {images} whose nearest train image has the same class, ± standard error")
    console.print(f"  {'':18}{'nn':>14}{'against untrained, paired':>29}")
    for name, of in correct.items():
        share = float(of.mean())
        accuracy = f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / len(of)):.1f} %"
        gain = "" if name == "untrained" else _points(paired_difference(of, correct["untrained"]))
        console.print(f"  {f'{name} encoder':18}{accuracy:>14}{gain:>29}".rstrip())
    console.print(CONTROL_IS)
    console.print()
    if config == FAST:
        console.print("--fast is too short to show anything: expect trained encoders below the untrained one.")
    else:
        console.print(conclusion(paired_difference(correct["proto"], correct[CONTROL])))
    compare = {"recipe": RECIPE, "arms": ",".join(ARMS), "seeds": STUDY_SEEDS, "epochs": f"{DemoConfig.epochs:g}"}
    console.print(f"One seed says nothing about another; {STUDY} has a study of {STUDY_SEEDS} seeds, made by")
    console.print(f"  {command('compare', **compare, data=shards, set=settings())}")


def conclusion(difference: Difference) -> str:
    """Return one sentence about proto minus the control that claims no more than the 95 % interval allows."""
    low, high = difference.interval
    measured = (
        f"proto - {CONTROL}: {_points(difference)}, 95 % interval {100 * low:+.1f} to {100 * high:+.1f} for the choice "
        "of the val images"
    )
    if low <= 0 <= high:
        return f"{measured}. It includes 0: these two runs do not show which of the two is better."
    better = "proto" if low > 0 else CONTROL
    return f"{measured}. It excludes 0: of these two encoders, that of {better} is better on such images."


def _points(difference: Difference) -> str:
    return f"{100 * difference.value:+.1f} ± {100 * difference.standard_error:.1f} points"


def print_files(out: Path, seconds: float) -> None:
    """Print where the results are, how long the demo took, and the next commands."""
    console.print()
    console.print(f"results (the demo took {format_duration(seconds)})")
    for name, content in (
        ("demo.png", "typical and atypical images, both runs' curves, crops with masks and reconstructions"),
        ("report.html", f"{CONTROL} and proto side by side"),
        ("images/", "SPLIT/CLASS/NUMBER_ATYPICALITY.jpg, the atypicality in percent"),
        ("shards/", "the images, packed; prototypes/default/gallery.png shows the clusters"),
        *((f"{arm}/", f"the run of {arm}: configuration, metrics, checkpoints, report.html") for arm in ARMS),
        *((f"{arm}.log", f"what training {arm} printed") for arm in ARMS),
    ):
        console.print(f"  {out / name!s:20}  {content}")
    console.print()
    console.print("next, with your own images")
    console.print(f"  {command('shard', 'YOUR_IMAGES/')}")
    console.print(f"  {command('prototypes build')}")
    console.print(f"  {command('train', curriculum='proto', temp_schedule='cosine')}")
