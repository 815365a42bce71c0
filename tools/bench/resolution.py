"""Compare the time of a training step by the side of the images, and that of whole runs with `efficient` resolution.

    OMP_NUM_THREADS=1 python tools/bench/resolution.py [--rounds 7] [--model vit_tiny] [--batch 16]
                                                       [--out tools/bench/resolution.txt]

A step is forward, backward and optimizer on uint8 images in memory, by the Trainer, in bfloat16; the sides are those of
`efficient` at 224 pixels with patches of 16, and 112. Each round times all sides in turn, every other round in reverse
order; ratios to 224 pixels are taken within a round and reported as minimum, median and maximum. Times are CPU times,
since other programs disturb those less; with one thread they are the times of the steps. Beside them are the operations
by `mimcl.model.cost`. The last line is the mean over the stages of `efficient`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.curriculum.resolution import EFFICIENT, resolution
from mimcl.model.config import ModelConfig, OptimConfig, TrainerConfig
from mimcl.model.cost import gflop_per_draw
from mimcl.model.mae import build
from mimcl.model.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.step_batch import StepBatch, mask_keys, random_images

FULL, PATCH, RATIO, STEPS = 224, 16, 0.75, 2
GOAL = 0.35  # of the step at 112 pixels, vit_tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    stages = resolution(EFFICIENT, FULL, PATCH, 100_000, 1).stages
    sides = sorted({112, *(stage.side for stage in stages)})
    config = ModelConfig(options.model, PATCH)
    steps = {side: step_of(config, side, options.batch) for side in sides}
    taken: dict[int, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds + 1):
        for side in sides if number % 2 else sides[::-1]:
            started = time.process_time()
            steps[side]()
            if number:  # the first round warms up
                taken[side].append((time.process_time() - started) / STEPS)
        print(f"round {number}", file=sys.stderr)
    lines = [
        f"{options.model}/{PATCH}, batch {options.batch}, bfloat16, {torch.get_num_threads()} threads, "
        f"{options.rounds} rounds",
        f"{'side':>9}{'ms':>9}   {'ratio to 224: min median max':30}{'operations':>11}",
    ]
    full = gflop_per_draw(config, (FULL // PATCH) ** 2, RATIO)
    medians = {}
    for side in sides:
        ratios = [one / other for one, other in zip(taken[side], taken[FULL], strict=True)]
        medians[side] = statistics.median(ratios)
        cost = gflop_per_draw(config, (side // PATCH) ** 2, RATIO) / full
        found = f"{min(ratios):.2f}  {medians[side]:.2f}  {max(ratios):.2f}"
        goal = f"   goal {GOAL}" if side == 112 and options.model == "vit_tiny" else ""
        lines.append(f"{side:>6} px{1e3 * statistics.median(taken[side]):9.1f}   {found:30}{cost:>11.2f}{goal}")
    draws = sum(stage.draws for stage in stages)
    spent = sum(stage.draws * medians[stage.side] for stage in stages) / draws
    cost = sum(stage.draws * gflop_per_draw(config, (stage.side // PATCH) ** 2, RATIO) for stage in stages)
    lines.append(f"{'efficient':>9}{'':12}{spent:<30.2f}{cost / draws / full:>11.2f}")
    text = "\n".join(lines)
    print(text)
    if options.out:
        with options.out.open("a") as file:
            file.write(text + "\n\n")


def step_of(config: ModelConfig, side: int, batch: int):
    """Return a function that trains a model for full-size images on images of `side` pixels for some steps."""
    model = build(config, FULL, seed=0)
    model.add_grids([side // PATCH])
    masker = make_masker(
        MaskingConfig("random", RATIO),
        model,
        MaskingSchedule("epoch", 1, 1),
        hard_patches=HardPatchesConfig(),
        learned=LearnedMaskingConfig(),
        seed=0,
    )
    trainer: Trainer[StepBatch] = Trainer(
        model,
        masker,
        TrainerConfig(log_every_steps=10**9, checkpoint_every_steps=10**9),
        OptimConfig(),
        samples=batch,
        draws=10**6 * batch,
        batch_size=batch,
        micro_batches=1,
        precision="bfloat16",
    )
    images, keys = random_images(batch, side, torch.device("cpu")), mask_keys(batch, torch.device("cpu"))

    def run() -> None:
        trainer.position = batch  # step 1 is always logged
        batches = (StepBatch(images, keys, step * batch) for step in range(2, 2 + STEPS))
        for step in trainer.steps(batches):
            if step.number == 1 + STEPS:
                return

    return run


if __name__ == "__main__":
    main()
