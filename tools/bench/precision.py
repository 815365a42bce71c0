"""Speed of training steps in float32, in bfloat16, and in bfloat16 with torch.compile, on made-up images.

    python tools/bench/precision.py [--recipe cpu_small] [--rounds 5]

The three alternate, so that the machine's moods hit all alike; the ratios of medians are what counts. On a CPU with
bfloat16 arithmetic the design expects 1.6 and 2.0 times float32.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from mimcl.cli.recipes import recipe
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.mae import build
from mimcl.model.trainer import Trainer
from mimcl.pipeline.augment import STREAM_MASK, hash64


@dataclass
class Batch:
    images: torch.Tensor
    keys: torch.Tensor
    position: int
    bad: tuple[()] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cpu_small")
    parser.add_argument("--images", type=int, help="images in a batch; default: the recipe's micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps in a round")
    options = parser.parse_args()

    config = recipe(options.recipe)
    size, count = config.data.image_size, options.images or config.data.micro_batch_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bits = hash64(0, np.arange(count * 3 * size * size), 9)
    images = torch.from_numpy((bits >> np.uint64(56)).astype(np.uint8)).view(count, 3, size, size).to(device)
    keys = torch.from_numpy(hash64(0, np.arange(count), STREAM_MASK).view(np.int64)).to(device)

    def trainer(precision: str, compiled: bool) -> Trainer:
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

    def run(of: Trainer) -> None:
        of.position = 0
        of.run((Batch(images, keys, (step + 1) * count) for step in range(options.steps)), (), lambda *_: None)
        if device.type == "cuda":
            torch.cuda.synchronize()

    kinds = {"float32": ("float32", False), "bfloat16": ("bfloat16", False), "bfloat16 + compile": ("bfloat16", True)}
    trainers = {name: trainer(*kind) for name, kind in kinds.items()}
    speeds = {name: [] for name in kinds}
    for number in range(options.rounds + 1):
        for name, one in trainers.items():
            started = time.perf_counter()
            run(one)
            if number:  # the first round warms up and compiles
                speeds[name].append(options.steps * count / (time.perf_counter() - started))
    base = statistics.median(speeds["float32"])
    print(f"{options.recipe} on {device}, batches of {count}, median of {options.rounds} rounds")
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name:20} {median:8.0f} img/s   {median / base:4.2f} x float32")


if __name__ == "__main__":
    main()
