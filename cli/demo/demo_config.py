"""What the demo trains, on how many images and for how long."""

from __future__ import annotations

from dataclasses import dataclass

# The arm that proto is compared with, as tools/bench/demo_study.txt suggests, and what it is.
CONTROL = "subset"
CONTROL_IS = "subset is the control: it sees as many different images as proto, but chosen at random"
ARMS = (CONTROL, "proto")  # arms of `mimcl compare`
STUDY = "tools/bench/demo_study.txt"
STUDY_SEEDS = 5

RECIPE = "cpu_small"
# Changes to the recipe: patches of about one texture period, a fast start for a run of minutes, images decoded once.
SETTINGS = {"model.patch_size": 16, "optim.base_lr": 3e-3, "optim.warmup_epochs": 2, "data.keep_decoded": True}

EVALUATIONS = 3  # of each run by nn while it trains


@dataclass(frozen=True)
class DemoConfig:
    """Numbers of images, and the length of each run in epochs."""

    train: int = 2400
    val: int = 800
    epochs: float = 30.0
    seed: int = 0


FAST = DemoConfig(train=480, val=160, epochs=5.0)  # the same steps; too short to show anything
