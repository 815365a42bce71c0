"""Compare the speed of training steps by decoder: MAE's (self-attention) and CrossMAE's (cross-attention).

    python tools/bench/decoder.py [--rounds 5] [--batch 32] [--precision bfloat16] [--gpu]
                                  [--out tools/bench/decoder.txt]

ViT-B/16 at 224 px with random masks, a decoder 512 wide. A step is forward, backward and optimizer on uint8 images in
memory, through the Trainer. Each round times all decoders in turn, every other round in reverse order; ratios are taken
within a round and reported as minimum, median and maximum over the rounds. Before them, steps that are not timed fill
the memory, and those of a batch of one image count the floating-point operations of matrix products, attention
included.

The goal is that of the recipe mae_b16_fast, whose decoder is 12 blocks deep and predicts a quarter of the removed
patches, against mae_b16, whose decoder is 8 blocks deep and predicts all of them. A batch is smaller here than in a
recipe, where the optimizer, which costs the same for any batch, hardly counts: the larger the batch, the lower the
ratio.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.curriculum.masking.masking_config import MaskingConfig
from mimcl.model.config import ModelConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.masking import Sizes, operations, our_steps, seconds
from bench.step_batch import random_images

BASE = "self, 8 blocks, share 1"
MODELS = {
    BASE: ModelConfig(),
    "cross, 12 blocks, share 1": ModelConfig(decoder="cross", decoder_depth=12),
    "cross, 12 blocks, share 0.25": ModelConfig(decoder="cross", decoder_depth=12, predict_share=0.25),
}
GOALS = {"cross, 12 blocks, share 0.25": 0.65}


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
    images = random_images(batch, 224, device)

    def work(model: ModelConfig, size: int) -> Callable[[], None]:
        return our_steps(Sizes(device, model, size, steps), images[:size], MaskingConfig(), options.precision, None)

    counted = {name: operations(work(model, 1)) / steps / 1e9 for name, model in MODELS.items()}
    works = {name: work(model, batch) for name, model in MODELS.items()}
    for warm_up in works.values():
        warm_up()
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(options.rounds):
        for name in reversed(works) if number % 2 else works:
            times[name].append(seconds(works[name], device))

    where = torch.cuda.get_device_name() if options.gpu else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        f"ViT-B/16, 224 px, decoder 512 wide, {options.precision}, batches of {batch}, {where}, torch "
        f"{torch.__version__}\n{options.rounds} rounds of {steps} steps\n",
        f"{'decoder':32} {'GFLOP/image':>12} {'ratio':>6} {'images/s':>9}   time of a step / {BASE}",
        f"{'':61}   {'min':>6} {'median':>6} {'max':>6}",
    ]
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times[BASE], strict=True)]
        speed, median = batch * steps / statistics.median(taken), statistics.median(ratios)
        line = f"{name:32} {counted[name]:12.1f} {counted[name] / counted[BASE]:6.3f} {speed:9.2f}"
        line += f"   {min(ratios):6.3f} {median:6.3f} {max(ratios):6.3f}"
        goal = GOALS.get(name)
        lines.append(line if goal is None else f"{line}   <= {goal:g} {'met' if median <= goal else 'MISSED'}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
