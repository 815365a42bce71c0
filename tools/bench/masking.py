"""Compare the speed of training steps by masking, each with our own MAE, and our own MAE with a straightforward one.

    python tools/bench/masking.py [--rounds 9] [--maskings hard-patches,learned] [--out tools/bench/masking.txt]
    python tools/bench/masking.py --gpu

A step is forward, backward and optimizer on uint8 images in memory; ours go through the Trainer. Each round times all
of them in turn, every other round in reverse order, so that changes of the machine's load affect all alike. Ratios are
taken within a round and reported as minimum, median and maximum over the rounds. An extra first round compiles, with
empty caches; its time beyond an ordinary round is the compile time.

Ours are compiled as one graph ("compile"), as in a single process, and block by block ("compile blocks"), as in several
processes.

The goals hold for the default sizes on a CPU with bfloat16 arithmetic, with the second pass of `learned` in every step
and the loss predictor of `hard-patches` as deep and wide as the decoder.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.config import SIZES, ModelConfig, OptimConfig, TrainerConfig
from mimcl.model.forward_backward import CompileUnit
from mimcl.model.mae import build, sin_cos_positions
from mimcl.model.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.step_batch import StepBatch, mask_keys, random_images

Precision = Literal["bfloat16", "float32"]
PLAIN = "straightforward"  # a textbook implementation; takes the place of a masking's name
OURS = "random"
MASKING_GOALS = {"hard-patches": 2.1, "learned": 3.7}  # at most: time of a step / that of OURS, in the same mode
PLAIN_GOAL = 1.0  # at least: speed of OURS / that of PLAIN, in the same mode
EAGER_GOALS = {  # at least: ... / PLAIN's in float32
    "float32": 1.0,
    "float32 + compile": 1.15,
    "bfloat16 + compile": 1.9,
}
MODES: dict[str, tuple[Precision, CompileUnit | None]] = {
    "float32": ("float32", None),
    "float32 + compile": ("float32", "whole"),
    "float32 + compile blocks": ("float32", "blocks"),
    "bfloat16 + compile": ("bfloat16", "whole"),
    "bfloat16 + compile blocks": ("bfloat16", "blocks"),
}
PLAIN_MODES = [mode for mode, (_, unit) in MODES.items() if unit != "blocks"]
Times = dict[tuple[str, str], list[float]]  # seconds of each round, by masking or PLAIN, and mode


class PlainMAE(nn.Module):
    """He et al. (2022), written from the paper with timm's blocks."""

    def __init__(self, config: ModelConfig, image_size: int, ratio: float) -> None:
        super().__init__()
        width, depth, heads = SIZES[config.name]
        inner, side = config.decoder_width, image_size // config.patch_size
        self.patch_size, self.kept = config.patch_size, int(side * side * (1 - ratio))
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm annotates a class and takes any callable
        block = partial(Block, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)
        self.patch_embed = PatchEmbed(image_size, config.patch_size, 3, width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(sin_cos_positions(width, side), requires_grad=False)
        self.blocks = nn.ModuleList(block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, inner))
        self.decoder_pos_embed = nn.Parameter(sin_cos_positions(inner, side), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(block(inner, inner // 32) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(inner, eps=1e-6)
        self.decoder_pred = nn.Linear(inner, 3 * config.patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        b, count, width = x.shape
        order = torch.rand(b, count, device=x.device).argsort(dim=1)
        restore = order.argsort(dim=1)
        kept = order[:, : self.kept]
        mask = torch.ones(b, count, device=x.device)
        mask[:, : self.kept] = 0
        mask = mask.gather(1, restore)
        x = x.gather(1, kept[:, :, None].repeat(1, 1, width))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        full = torch.cat([x[:, 1:], self.mask_token.repeat(b, count - self.kept, 1)], dim=1)
        full = full.gather(1, restore[:, :, None].repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], full], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        pred = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        p, side = self.patch_size, math.isqrt(count)
        target = images.reshape(b, 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(b, count, -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        loss = ((pred - target) ** 2).mean(-1)
        return (loss * mask).sum() / mask.sum()


@dataclass(frozen=True)
class Sizes:
    device: torch.device
    model: ModelConfig
    batch: int  # images
    steps: int  # in a round
    image_size: int = 224
    ratio: float = 0.75


def plain_steps(
    sizes: Sizes, images: Tensor, precision: Precision, compile_unit: CompileUnit | None
) -> Callable[[], None]:
    """Return a function that trains the straightforward MAE for a round's steps, in a straightforward loop."""
    device = sizes.device
    model = PlainMAE(sizes.model, sizes.image_size, sizes.ratio).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05)
    forward = torch.compile(model) if compile_unit else model
    mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    def run() -> None:
        for _ in range(sizes.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = forward((images / 255 - mean) / deviation)
            if not math.isfinite(loss.item()):
                raise SystemExit("the straightforward MAE's loss is not finite")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def our_steps(
    sizes: Sizes, images: Tensor, masking: MaskingConfig, precision: Precision, compile_unit: CompileUnit | None
) -> Callable[[], None]:
    """Return a function that trains our MAE with a masker for a round's steps, through the Trainer."""
    model = build(sizes.model, sizes.image_size, seed=0).to(sizes.device)
    masker = make_masker(
        masking,
        model,
        MaskingSchedule("epoch", 1, 1),
        hard_patches=HardPatchesConfig(),
        learned=LearnedMaskingConfig(),
        seed=0,
    )
    trainer: Trainer[StepBatch] = Trainer(
        model,
        masker,
        TrainerConfig(compile=compile_unit is not None, log_every_steps=10**9, checkpoint_every_steps=10**9),
        OptimConfig(),
        samples=sizes.batch,
        draws=10**6 * sizes.batch,
        batch_size=sizes.batch,
        micro_batches=1,
        precision=precision,
        compile_unit=compile_unit or "whole",
    )
    keys = mask_keys(sizes.batch, sizes.device)

    def run() -> None:
        trainer.position = sizes.batch  # skip step 1, which is always logged: most steps are not
        batches = (StepBatch(images, keys, step * sizes.batch) for step in count(2))
        steps = count(2)
        for _ in trainer.steps(batches, stop=lambda: next(steps) >= sizes.steps):  # stops one step late
            pass

    return run


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the duration of `work`, including what it started on the device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(sizes: Sizes, maskings: list[MaskingConfig], rounds: int) -> tuple[Times, dict[tuple[str, str], float]]:
    """Return the times of the rounds, and of the extra first round, which compiles."""
    torch._inductor.config.force_disable_caches = True
    images = random_images(sizes.batch, sizes.image_size, sizes.device)
    torch._dynamo.config.recompile_limit = 64  # the compiled variants share the Trainer's code
    works: dict[tuple[str, str], Callable[[], None]] = {}
    for mode, how in MODES.items():
        if mode in PLAIN_MODES:
            works[PLAIN, mode] = plain_steps(sizes, images, *how)
        works.update({(masking.name, mode): our_steps(sizes, images, masking, *how) for masking in maskings})
    first = {kind: seconds(work, sizes.device) for kind, work in works.items()}
    times: Times = {kind: [] for kind in works}
    for number in range(rounds):
        for kind in reversed(works) if number % 2 else works:
            times[kind].append(seconds(works[kind], sizes.device))
    return times, first


def tables(sizes: Sizes, times: Times, first: dict[tuple[str, str], float], goals: bool) -> str:
    """Return tables of images/s, of the ratios, and of compile times."""
    images, maskings = sizes.batch * sizes.steps, dict.fromkeys(name for name, _ in times if name not in (PLAIN, OURS))
    lines = [_head("images/s")]
    lines += [_line(f"{name}, {mode}", [images / t for t in taken], "8.1f") for (name, mode), taken in times.items()]
    lines.append(_head(f"time of a step / {OURS}, same mode"))
    for name in maskings:
        goal = MASKING_GOALS.get(name) if goals else None
        lines += [
            _line(f"{name}, {mode}", _ratios(times, (name, mode), (OURS, mode)), "8.3f", most=goal) for mode in MODES
        ]
    lines.append(_head(f"speed of {OURS} / {PLAIN}"))
    least = PLAIN_GOAL if goals else None
    lines += [
        _line(f"same mode, {mode}", _ratios(times, (PLAIN, mode), (OURS, mode)), "8.3f", least) for mode in PLAIN_MODES
    ]
    for mode, goal in EAGER_GOALS.items():
        ratios = _ratios(times, (PLAIN, "float32"), (OURS, mode))
        lines.append(_line(f"its float32, {mode}", ratios, "8.3f", goal if goals else None))
    lines.append(_head("speed block by block / as one graph"))
    for precision, name in product(("float32", "bfloat16"), (OURS, *maskings)):
        as_one, by_blocks = ((name, f"{precision} + compile{kind}") for kind in ("", " blocks"))
        lines.append(_line(f"{name}, {precision}", _ratios(times, as_one, by_blocks), "8.3f"))
    lines.append(f"\n{'seconds to compile':38} {'one graph':>17} {'block by block':>17}")
    for precision, name in product(("float32", "bfloat16"), (OURS, *maskings)):
        kinds = [(name, f"{precision} + compile{kind}") for kind in ("", " blocks")]
        spent = [first[kind] - statistics.median(times[kind]) for kind in kinds]
        lines.append(f"{f'{name}, {precision}':38} {spent[0]:17.1f} {spent[1]:17.1f}")
    return "\n".join(lines) + "\n"


def _ratios(times: Times, above: tuple[str, str], below: tuple[str, str]) -> list[float]:
    return [a / b for a, b in zip(times[above], times[below], strict=True)]


def _head(title: str) -> str:
    return f"\n{title:38} {'min':>8} {'median':>8} {'max':>8}"


def _line(name: str, values: list[float], form: str, least: float | None = None, most: float | None = None) -> str:
    median = statistics.median(values)
    line = f"{name:38} {min(values):{form}} {median:{form}} {max(values):{form}}"
    if least is not None:
        return f"{line}   >= {least:g} {'met' if median >= least else 'MISSED'}"
    if most is not None:
        return f"{line}   <= {most:g} {'met' if median <= most else 'MISSED'}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--maskings", default="random,hard-patches,learned", help="comma-separated names; random is always included"
    )
    parser.add_argument("--rounds", type=int, default=9, help="default 9")
    parser.add_argument("--steps", type=int, help="steps in a round, at least 2 (default 2, on a GPU 20)")
    parser.add_argument("--batch", type=int, help="images in a step (default 32, on a GPU 128)")
    parser.add_argument("--gpu", action="store_true", help="measure ViT-B/16 with MAE's decoder on the GPU")
    parser.add_argument("--out", type=Path, help="file to write the output to as well")
    options = parser.parse_args()

    if options.gpu:
        model = ModelConfig()
        sizes = Sizes(torch.device("cuda"), model, options.batch or 128, options.steps or 20)
        where = torch.cuda.get_device_name()
    else:
        model = ModelConfig("vit_tiny", decoder_width=128, decoder_depth=4)
        sizes = Sizes(torch.device("cpu"), model, options.batch or 32, options.steps or 2)
        where = f"CPU, {torch.get_num_threads()} threads"
    keep_freed_memory()  # as `mimcl train` does
    maskings = [MaskingConfig(name, sizes.ratio) for name in dict.fromkeys([OURS, *options.maskings.split(",")])]
    times, first = measure(sizes, maskings, options.rounds)
    shape = f"{model.name}, decoder {model.decoder_width} x {model.decoder_depth}, {sizes.image_size} px"
    title = f"{shape}, batches of {sizes.batch}, {where}, torch {torch.__version__}\n"
    title += f"{options.rounds} rounds of {sizes.steps} steps\n"
    text = title + tables(sizes, times, first, goals=not options.gpu)
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
