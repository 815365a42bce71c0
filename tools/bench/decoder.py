"""Compare the speed of training steps by decoder: MAE's (self-attention) and CrossMAE's (cross-attention).

    python tools/bench/decoder.py [--rounds 5] [--batch 32] [--precision bfloat16] [--gpu]
                                  [--out tools/bench/decoder.txt]

ViT-B/16 with random masks, a decoder 512 wide. A step is forward, backward and optimizer on uint8 images in memory,
through the Trainer. Each round times all in turn, every other round in reverse order; ratios are taken within a round
and reported as minimum, median and maximum over the rounds. Before them, steps that are not timed fill the memory, and
those of a batch of one image count the floating-point operations of matrix products, attention included.

The goal is that of the recipe mae_b16_fast at 224 px, whose decoder is 12 blocks deep and predicts a quarter of the
removed patches, against mae_b16, whose decoder is 8 blocks deep and predicts all of them. The last line is the mean
over a run of mae_b16_fast, whose crops are small at first. A batch is smaller here than in a recipe, where the
optimizer, which costs the same for any batch, hardly counts.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mimcl.cli.recipes import mae_b16, mae_b16_fast
from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.curriculum.masking.masking_config import MaskingConfig
from mimcl.curriculum.resolution import EFFICIENT, resolution
from mimcl.model.config import ModelConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.masking import Sizes, operations, our_steps, seconds
from bench.step_batch import random_images

SIDE, DRAWS = 224, 10**6
BASE, FAST = mae_b16().model, mae_b16_fast().model
# Share of the run by side.
STAGES = {stage.side: stage.draws / DRAWS for stage in resolution(EFFICIENT, SIDE, BASE.patch_size, DRAWS, 1).stages}
Kind = tuple[ModelConfig, int]  # and the side of the images in pixels
MODELS: list[Kind] = [
    (BASE, SIDE),
    (ModelConfig(decoder="cross", decoder_depth=12), SIDE),
    *((FAST, side) for side in reversed(STAGES)),
]
GOAL = 0.65


def line(name: str, gflop: float, ratio: float, speed: float, ratios: list[float]) -> str:
    median = statistics.median(ratios)
    return f"{name:38} {gflop:11.1f} {ratio:6.3f} {speed:9.2f}   {min(ratios):6.3f} {median:6.3f} {max(ratios):6.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--batch", type=int, help="images in a step (default 32, on a GPU 128)")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="default bfloat16")
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU, 20 steps a round")
    parser.add_argument("--out", type=Path, help="file to write the output to as well")
    options = parser.parse_args()

    keep_freed_memory()  # as `mimcl train` does
    device, steps = torch.device("cuda" if options.gpu else "cpu"), 20 if options.gpu else 2
    batch = options.batch or (128 if options.gpu else 32)

    def work(kind: Kind, size: int) -> Callable[[], None]:
        model, side = kind
        sizes = Sizes(device, model, size, steps, side)
        return our_steps(sizes, random_images(size, side, device), MaskingConfig(), options.precision, None)

    gflop = {kind: operations(work(kind, 1)) / steps / 1e9 for kind in MODELS}
    works = {kind: work(kind, batch) for kind in MODELS}
    for warm_up in works.values():
        warm_up()
    times: dict[Kind, list[float]] = {kind: [] for kind in works}
    for number in range(options.rounds):
        for kind in reversed(works) if number % 2 else works:
            times[kind].append(seconds(works[kind], device))

    where = torch.cuda.get_device_name() if options.gpu else f"CPU, {torch.get_num_threads()} threads"
    base = MODELS[0]
    lines = [
        f"ViT-B/16, decoder 512 wide, {options.precision}, batches of {batch}, {where}, torch {torch.__version__}",
        f"{options.rounds} rounds of {steps} steps\n",
        f"{'':38} {'GFLOP/image':>11} {'ratio':>6} {'images/s':>9}   {'time of a step / the first':>20}",
        f"{'decoder, depth, share predicted, side':67}   {'min':>6} {'median':>6} {'max':>6}",
    ]
    ratios = {kind: [a / b for a, b in zip(taken, times[base], strict=True)] for kind, taken in times.items()}
    for kind, taken in times.items():
        model, side = kind
        name = f"{model.decoder}, {model.decoder_depth} blocks, {model.predict_share:g}, {side} px"
        speed = batch * steps / statistics.median(taken)
        row = line(name, gflop[kind], gflop[kind] / gflop[base], speed, ratios[kind])
        if kind == (FAST, SIDE):
            row += f"   <= {GOAL:g} {'met' if statistics.median(ratios[kind]) <= GOAL else 'MISSED'}"
        lines.append(row)

    def mean(values: dict[Kind, float]) -> float:
        return sum(share * values[FAST, side] for side, share in STAGES.items())

    cost = mean(gflop)
    by_round = [mean({kind: of_kind[number] for kind, of_kind in ratios.items()}) for number in range(options.rounds)]
    seconds_per_step = mean({kind: statistics.median(taken) / steps for kind, taken in times.items()})
    lines.append(line("mae_b16_fast, mean over its run", cost, cost / gflop[base], batch / seconds_per_step, by_round))
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
