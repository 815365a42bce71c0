"""Compare the speed of training steps by masking, each with our own MAE and with a straightforward implementation.

    python tools/bench/masking.py [--rounds 9] [--maskings hard-patches,learned] [--modes float32,bfloat16]
                                  [--out tools/bench/masking.txt]
    python tools/bench/masking.py --gpu

A step is forward, backward and optimizer on uint8 images in memory; ours go through the Trainer. Each round times all
of them in turn, every other round in reverse order, so that changes of the machine's load affect all alike. Ratios are
taken within a round and reported as minimum, median and maximum over the rounds. An extra first round compiles, with
empty caches; its time beyond an ordinary round is the compile time. Where nothing is compiled, that round counts the
floating-point operations of matrix products, attention included.

The straightforward ones re-implement the structure of the published codes, which are not here: see published.py.

Ours are compiled as one graph ("compile"), as in a single process, and block by block ("compile blocks"), as in several
processes.

The goals hold for the default sizes on a CPU with bfloat16 arithmetic, with the second pass of `learned` in every step
and the loss predictor of `hard-patches` as deep and wide as the decoder.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mimcl.cli.run.malloc import keep_freed_memory
from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.config import ModelConfig, OptimConfig, TrainerConfig
from mimcl.model.forward_backward import CompileUnit
from mimcl.model.mae import build
from mimcl.model.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.published import Shape, cl_mae_step, hpm_step, mae_step
from bench.step_batch import StepBatch, mask_keys, random_images

Precision = Literal["bfloat16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
PEER = "straightforward"
PEERS = {"random": mae_step, "hard-patches": hpm_step, "learned": cl_mae_step}
OURS = "random"
Kind = tuple[str, str]  # a masking, with PEER before it that of its peer, and the mode
Goal = tuple[Literal["<=", ">="], float] | None
MASKING_GOALS: dict[str, Goal] = {"hard-patches": ("<=", 2.1), "learned": ("<=", 3.7), "green": ("<=", 1.02)}
PEER_GOALS: dict[str, Goal] = {"random": (">=", 1.15), "hard-patches": (">=", 1.3), "learned": (">=", 1.3)}
EAGER_GOALS: dict[str, Goal] = {
    "float32": (">=", 1.0),
    "float32 + compile": (">=", 1.15),
    "bfloat16 + compile": (">=", 1.9),
}
MODES: dict[str, tuple[Precision, CompileUnit | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "float32 + compile": ("float32", "whole"),
    "float32 + compile blocks": ("float32", "blocks"),
    "bfloat16 + compile": ("bfloat16", "whole"),
    "bfloat16 + compile blocks": ("bfloat16", "blocks"),
}
EAGER_MODES = [mode for mode, (_, unit) in MODES.items() if unit is None]
PEER_MODES = [mode for mode, (_, unit) in MODES.items() if unit != "blocks"]
Times = dict[Kind, list[float]]  # seconds of each round


@dataclass(frozen=True)
class Sizes:
    device: torch.device
    model: ModelConfig
    batch: int  # images
    steps: int  # in a round
    image_size: int = 224
    ratio: float = 0.75


def peer_steps(
    sizes: Sizes, images: Tensor, masking: str, precision: Precision, compile_unit: CompileUnit | None
) -> Callable[[], None]:
    """Return a function that trains the re-implemented peer of a masking for a round's steps."""
    shape = Shape(sizes.model, sizes.image_size, sizes.ratio)
    step = PEERS[masking](shape, images, precision == "bfloat16", compile_unit is not None)

    def run() -> None:
        for _ in range(sizes.steps):
            step()

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


def operations(work: Callable[[], None]) -> int:
    """Return the floating-point operations of the matrix products in `work`."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not count fused attention
        work()
    return counter.get_total_flops()


def measure(
    sizes: Sizes, maskings: list[MaskingConfig], modes: list[str], rounds: int
) -> tuple[Times, dict[Kind, float], dict[Kind, int]]:
    """Return the times of the rounds, and of the extra first round its times if it compiles, else its operations."""
    torch._inductor.config.force_disable_caches = True
    images = random_images(sizes.batch, sizes.image_size, sizes.device)
    torch._dynamo.config.recompile_limit = 64  # the compiled variants share the Trainer's code
    works: dict[Kind, Callable[[], None]] = {}
    for mode in modes:
        for masking in maskings:
            if masking.name in PEERS and mode in (PEER_MODES if masking.name == OURS else EAGER_MODES):
                works[f"{PEER} {masking.name}", mode] = peer_steps(sizes, images, masking.name, *MODES[mode])
            works[masking.name, mode] = our_steps(sizes, images, masking, *MODES[mode])
    first = {kind: seconds(work, sizes.device) for kind, work in works.items() if kind[1] not in EAGER_MODES}
    counted = {kind: operations(work) for kind, work in works.items() if kind[1] in EAGER_MODES}
    times: Times = {kind: [] for kind in works}
    for number in range(rounds):
        for kind in reversed(works) if number % 2 else works:
            times[kind].append(seconds(works[kind], sizes.device))
    return times, first, counted


def tables(sizes: Sizes, times: Times, first: dict[Kind, float], counted: dict[Kind, int], goals: bool) -> str:
    """Return tables of images/s, of the ratios, of compile times, and of operations."""
    images, names = sizes.batch * sizes.steps, dict.fromkeys(name for name, _ in times if not name.startswith(PEER))
    lines = [_head("images/s")]
    lines += [_line(f"{name}, {mode}", [images / t for t in taken], "8.1f") for (name, mode), taken in times.items()]

    def ratios(title: str, rows: Iterable[tuple[str, Kind, Kind, Goal]]) -> None:
        """Add a table of rows: a label, what is divided by what, and the goal."""
        measured = [row for row in rows if row[1] in times and row[2] in times]
        lines.extend([_head(title)] if measured else [])
        for label, above, below, goal in measured:
            quotients = [a / b for a, b in zip(times[above], times[below], strict=True)]
            lines.append(_line(label, quotients, "8.3f", goal if goals else None))

    ratios(
        f"time of a step / {OURS}, same mode",
        ((f"{n}, {m}", (n, m), (OURS, m), MASKING_GOALS.get(n)) for n in names if n != OURS for m in MODES),
    )
    ratios(
        f"speed / {PEER}'s, same mode",
        ((f"{n}, {m}", (f"{PEER} {n}", m), (n, m), PEER_GOALS.get(n)) for n in names for m in MODES),
    )
    ratios(
        f"speed of {OURS} / {PEER}'s float32",
        ((m, (f"{PEER} {OURS}", "float32"), (OURS, m), goal) for m, goal in EAGER_GOALS.items()),
    )
    kinds = [(f"{n}, {p}", (n, f"{p} + compile"), (n, f"{p} + compile blocks")) for p in PRECISIONS for n in names]
    ratios("speed block by block / as one graph", ((*kind, None) for kind in kinds))
    if compiled := [kind for kind in kinds if kind[1] in times and kind[2] in times]:
        lines.append(f"\n{'seconds to compile':38} {'one graph':>17} {'block by block':>17}")
        for label, *units in compiled:
            spent = [first[unit] - statistics.median(times[unit]) for unit in units]
            lines.append(f"{label:38} {spent[0]:17.1f} {spent[1]:17.1f}")
    if mode := next((mode for _, mode in counted), None):  # all modes have the same
        lines.append(f"\n{'matrix products of a step':38} {'GFLOP':>8} {f'/ {OURS}':>8} {PEER + ' / ours':>22}")
        for name in names:
            ours, base = (counted[kind, mode] for kind in (name, OURS))
            line = f"{name:38} {ours / sizes.steps / 1e9:8.1f} {ours / base:8.2f}"
            peers = counted.get((f"{PEER} {name}", mode))
            lines.append(f"{line} {peers / ours:22.2f}" if peers else line)
    return "\n".join(lines) + "\n"


def _head(title: str) -> str:
    return f"\n{title:38} {'min':>8} {'median':>8} {'max':>8}"


def _line(name: str, values: list[float], form: str, goal: Goal = None) -> str:
    median = statistics.median(values)
    line = f"{name:38} {min(values):{form}} {median:{form}} {max(values):{form}}"
    if goal is None:
        return line
    sign, limit = goal
    return f"{line}   {sign} {limit:g} {'met' if (median >= limit) == (sign == '>=') else 'MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--maskings", default="random,hard-patches,learned", help="comma-separated names; random is always included"
    )
    parser.add_argument("--modes", default=",".join(MODES), help=f"comma-separated; default {','.join(MODES)}")
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
    times, first, counted = measure(sizes, maskings, options.modes.split(","), options.rounds)
    shape = f"{model.name}, decoder {model.decoder_width} x {model.decoder_depth}, {sizes.image_size} px"
    title = f"{shape}, batches of {sizes.batch}, {where}, torch {torch.__version__}\n"
    title += f"{options.rounds} rounds of {sizes.steps} steps\n"
    text = title + tables(sizes, times, first, counted, goals=not options.gpu)
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
