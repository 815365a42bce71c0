"""Compare the speed of training steps in float32, bfloat16 and bfloat16 with torch.compile, on random images.

    python tools/bench/precision.py [--recipe cpu_small] [--rounds 5]

The three alternate, so that changes of the machine's load affect all alike; look at the ratios. On a CPU with bfloat16
arithmetic the goals are 1.6 and 2.0 times float32.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from mimcl.cli.recipes import recipe
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.mae import build
from mimcl.model.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.step_batch import StepBatch, mask_keys, random_images

Precision = Literal["bfloat16", "float32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cpu_small", help="default cpu_small")
    parser.add_argument("--images", type=int, help="images in a batch (default: the recipe's micro-batch)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--steps", type=int, default=5, help="steps in a round (default 5)")
    options = parser.parse_args()

    config = recipe(options.recipe)
    size, count = config.data.image_size, options.images or config.data.micro_batch_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, keys = random_images(count, size, device), mask_keys(count, device)

    def make_trainer(precision: Precision, compiled: bool) -> Trainer[StepBatch]:
        model = build(config.model, size, seed=0).to(device)
        return Trainer(
            model,
            RandomMasker(model.num_patches, config.masking.mask_ratio),
            replace(config.trainer, compile=compiled, log_every_steps=10**9, max_nonfinite=10**9),
            config.optim,
            samples=count,
            draws=options.steps * count,
            batch_size=count,
            micro_batches=1,
            precision=precision,
        )

    def run(trainer: Trainer[StepBatch]) -> None:
        trainer.position = 0
        batches = (StepBatch(images, keys, (step + 1) * count) for step in range(options.steps))
        for _ in trainer.steps(batches):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()

    trainers = {
        "float32": make_trainer("float32", False),
        "bfloat16": make_trainer("bfloat16", False),
        "bfloat16 + compile": make_trainer("bfloat16", True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(options.rounds + 1):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            run(trainer)
            if number:  # the first round warms up and compiles
                speeds[name].append(options.steps * count / (time.perf_counter() - started))
    base = statistics.median(speeds["float32"])
    print(f"{options.recipe} on {device}, batches of {count}, median of {options.rounds} rounds")
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name:20} {median:8.0f} img/s   {median / base:4.2f} x float32")


if __name__ == "__main__":
    main()
