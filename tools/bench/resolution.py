"""Compare the time of a training step by the side of the images, and of whole runs with `efficient` resolution.

    OMP_NUM_THREADS=1 python tools/bench/resolution.py [--rounds 7] [--model vit_tiny] [--batch 16]
                                                       [--out tools/bench/resolution.txt]

Steps are those of masking.py, in bfloat16 on the CPU; the sides are those of `efficient` at 224 pixels with patches of
16, and 112. Each round times all sides in turn, every other round in reverse order; ratios to 224 pixels are taken
within a round and reported as minimum, median and maximum. Beside them are the operations by `mimcl.model.cost`. The
last line is the mean over the stages of `efficient`.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.curriculum.masking.masking_config import MaskingConfig
from mimcl.curriculum.resolution import EFFICIENT, resolution
from mimcl.model.config import ModelConfig
from mimcl.model.cost import gflop_per_draw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.masking import Sizes, our_steps, seconds
from bench.step_batch import random_images

FULL, HALF, PATCH, RATIO, STEPS = 224, 112, 16, 0.75, 2
GOAL = 0.35  # of the step at 112 pixels, vit_tiny
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    config = ModelConfig(options.model, PATCH)
    stages = resolution(EFFICIENT, FULL, PATCH, 100_000, 1).stages
    share = {stage.side: stage.draws / 100_000 for stage in stages}
    sides = sorted({HALF, *share})
    steps = {
        side: our_steps(
            Sizes(CPU, config, options.batch, STEPS, side),
            random_images(options.batch, side, CPU),
            MaskingConfig(),
            "bfloat16",
            None,
        )
        for side in sides
    }
    taken: dict[int, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds + 1):
        for side in sides if number % 2 else sides[::-1]:
            spent = seconds(steps[side], CPU)
            if number:  # the first round warms up
                taken[side].append(spent)
    ratios = {side: [a / b for a, b in zip(taken[side], taken[FULL], strict=True)] for side in sides}
    median = {side: statistics.median(found) for side, found in ratios.items()}
    gflop = {side: gflop_per_draw(config, (side // PATCH) ** 2, RATIO) for side in sides}
    lines = [
        f"{options.model}/{PATCH}, batches of {options.batch}, bfloat16, CPU, {torch.get_num_threads()} threads, "
        f"{options.rounds} rounds of {STEPS} steps",
        f"{'side':>9}{'ms':>9}   {'time / that at 224: min median max':36}{'operations':>11}",
    ]
    for side in sides:
        found = f"{min(ratios[side]):.2f}  {median[side]:.2f}  {max(ratios[side]):.2f}"
        is_goal = side == HALF and options.model == "vit_tiny"
        goal = f"   <= {GOAL} {'met' if median[side] <= GOAL else 'MISSED'}" if is_goal else ""
        cost = gflop[side] / gflop[FULL]
        lines.append(f"{side:>6} px{1e3 * statistics.median(taken[side]) / STEPS:9.1f}   {found:36}{cost:>11.2f}{goal}")
    spent, cost = (sum(share[side] * of[side] / of[FULL] for side in share) for of in (median, gflop))
    lines.append(f"{EFFICIENT:>9}{'':12}{spent:<36.2f}{cost:>11.2f}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
