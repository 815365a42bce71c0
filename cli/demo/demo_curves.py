"""Curves of the demo's runs: which images they drew, and what they learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mimcl.cli.config import Config, override
from mimcl.cli.demo.demo_images import atypicality_of
from mimcl.cli.evaluate.results_file import UNTRAINED
from mimcl.cli.report.curves import Values, shorten
from mimcl.cli.report.read import read_run
from mimcl.cli.report.run_record import RunRecord
from mimcl.cli.run.training_data import TrainingData
from mimcl.pipeline.index import ShardIndex

_STYLES = (("#d98324", 3.2), ("#1f5f8b", 1.4))  # colour and width of the runs' lines; where equal, both show
_POINTS = 60  # of a curve


def draw_curves(axes: Sequence[Axes], runs: Mapping[str, Path], index: ShardIndex) -> None:
    """Draw each run's distinct images, mean atypicality of the drawn images, loss and nn over epochs, in four axes."""
    records = {name: read_run(run) for name, run in runs.items()}
    kinds = {
        "distinct images per epoch": _distinct,
        "atypicality of drawn images": lambda record: drawn_atypicality(record, index),
        "reconstruction loss": _loss,
        "nn accuracy on val": _nn,
    }
    for axis, (title, curve_of) in zip(axes, kinds.items(), strict=True):
        for (name, record), (colour, width) in zip(records.items(), _STYLES, strict=True):
            curve = shorten(*curve_of(record), _POINTS)
            axis.plot(curve.x / index.samples, curve.y, color=colour, linewidth=width, label=name)
        axis.margins(x=0.02)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8.5)
        axis.tick_params(labelsize=8.5)
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in (axes[0], axes[3]):
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylim(bottom=0)
    axes[2].legend(fontsize=8.5, frameon=False)
    mean = float(atypicality_of(index).mean())
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(low - (high - low) / 5)  # room for the legend
    line = axes[1].axhline(mean, color="#7a7a7a", linewidth=1, linestyle=":")
    axes[1].legend([line], ["all images"], fontsize=8.5, frameon=False, loc="lower right")


def _distinct(record: RunRecord) -> tuple[Values, Values]:
    return record.windows.draw.astype(np.float64), record.windows["effective_fraction"]


def drawn_atypicality(record: RunRecord, index: ShardIndex) -> tuple[Values, Values]:
    """Return the first draw of each window of a run, and the mean atypicality of the images drawn in it.

    Nothing records them: a plan depends on the run's configuration alone, so it is made again.
    """
    config = override(Config(), record.config)
    plan, atypicality = TrainingData.open(config).plan(config), atypicality_of(index)
    windows = [plan.window(number) for number in range(plan.windows)]
    means = [atypicality[window.sample_ids].mean() for window in windows]
    return np.array([window.first_draw for window in windows], np.float64), np.array(means)


def _loss(record: RunRecord) -> tuple[Values, Values]:
    return record.steps.draw.astype(np.float64), record.steps["loss"]


def _nn(record: RunRecord) -> tuple[Values, Values]:
    """Return the accuracies measured while training, after that of the untrained encoder."""
    untrained = [line.values[UNTRAINED + "nn"] for line in record.evaluations if line.key.name == "knn"]
    online = [line for line in record.evaluations if line.key.name == "online_knn"]
    draws, values = [line.draw for line in online], [line.values["nn"] for line in online]
    return np.array([0, *draws], np.float64), np.array([untrained[-1], *values])
