"""The model half: training steps over batches on the device, without DALI and images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu.bench import Bench, Masking, step_flops
from gpu.lines import Line
from torch.nn.attention import SDPBackend, sdpa_kernel

from mimcl.model.forward_backward import CompileUnit

_PEAK = 790e12  # bfloat16 operations a second of an H200's matrix products, as measured elsewhere
_MFU_GOALS = {"H200": 50, "H100": 42}  # percent of the measured product, compiled
_UNITS = {None: "eager", "blocks": "compiled per block", "whole": "compiled whole"}
_ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def ceilings(bench: Bench) -> Iterator[Line]:
    side = bench.scale.matrix
    yield Line(f"ceiling: product of {side} x {side} matrices, bfloat16", _product(bench) / 1e12, "TFLOP/s")
    source = torch.empty(bench.scale.copied, dtype=torch.uint8, device=bench.scale.device).random_()
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source), repeats=5)
    yield Line("ceiling: copy within the device, read and written", 2 * source.numel() / seconds / 1e9, "GB/s")


def _product(bench: Bench) -> float:
    """Return the operations per second of a large matrix product on random data; measured once per process."""

    def measure() -> float:
        side, repeats = bench.scale.matrix, 20
        a, b = (torch.randn(side, side, device=bench.scale.device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        seconds = bench.seconds(lambda: [torch.mm(a, b, out=out) for _ in range(repeats)], repeats=5) / repeats
        return 2 * side**3 / seconds

    return bench.once("product", measure)


def eager(bench: Bench) -> Iterator[Line]:
    yield from _steps(bench, bench.scale.batch, None)
    yield from _steps(bench, bench.scale.large_batch, None)


def compiled_per_block(bench: Bench) -> Iterator[Line]:
    yield from _steps(bench, bench.scale.batch, "blocks")


def compiled_per_block_512(bench: Bench) -> Iterator[Line]:
    yield from _steps(bench, bench.scale.large_batch, "blocks")


def compiled_whole(bench: Bench) -> Iterator[Line]:
    yield from _steps(bench, bench.scale.batch, "whole")


def _steps(bench: Bench, size: int, unit: CompileUnit | None) -> Iterator[Line]:
    name = f"step of {size}, {_UNITS[unit]}"
    if unit:
        bench.once("compiler", lambda: _start_compiler(bench))
    steps = bench.train(size, unit)
    rate = size / steps.seconds
    operations = rate * step_flops(bench.once("model", bench.scale.make_model))
    share, goal, met = 100 * operations / _product(bench), "", None
    for device, least in _MFU_GOALS.items():
        if unit and size == 256 and not bench.rehearsal and device in torch.cuda.get_device_name():
            goal, met = f">= {least} %", share >= least
    yield Line(name, rate, "img/s")
    yield Line(f"{name}: MFU, of the measured product", share, "%", goal, met)
    yield Line(f"{name}: MFU, of {_PEAK / 1e12:g} TFLOP/s", 100 * operations / _PEAK, "%")
    if unit:
        yield Line(f"{name}: time to compile", steps.first - steps.seconds, "s")
    yield Line(f"{name}: peak memory of torch", steps.peak, "GiB")
    falls = steps.losses[-1] < 0.97 * steps.losses[0]
    losses = f"{steps.losses[0]:.3f} -> {steps.losses[-1]:.3f}"
    yield Line(f"{name}: loss", losses, "", "falls", falls, must=True)


def _start_compiler(bench: Bench) -> None:
    """Compile a small function, so that the compiler's start (imports, worker processes) is not timed."""
    torch.compile(lambda x: (x + 1).sum())(torch.ones(8, 8, device=bench.scale.device))


def attention(bench: Bench) -> Iterator[Line]:
    """Compare eager steps with each of torch's attention kernels with those of torch's choice."""
    size = bench.scale.batch
    default = bench.train(size, stretches=2)
    kernels = {"plain": SDPBackend.MATH} if bench.rehearsal else _ATTENTION
    for name, kernel in kernels.items():
        label = f"step of {size}, eager, {name} attention: time / torch's choice"
        try:
            with sdpa_kernel(kernel):
                steps = bench.train(size, stretches=2)
        except RuntimeError as error:  # the kernel does not support these shapes, or this GPU
            yield Line(label, f"not available: {' '.join(str(error).split())[:120]}")
        else:
            yield Line(label, steps.seconds / default.seconds)
    for name in [name for name in _ATTENTION if name not in kernels]:
        yield Line(f"step of {size}, eager, {name} attention: time / torch's choice", "not on the CPU")


def maskings(bench: Bench) -> Iterator[Line]:
    yield from _maskings(bench, None)


def maskings_compiled(bench: Bench) -> Iterator[Line]:
    yield from _maskings(bench, "blocks")


def _maskings(bench: Bench, unit: CompileUnit | None) -> Iterator[Line]:
    """Compare steps of the maskings that learn with those of random masks."""
    size = bench.scale.batch
    plain = bench.train(size, unit, stretches=2)
    learning: tuple[Masking, ...] = ("hard-patches", "learned")
    for masking in learning:
        steps = bench.train(size, unit, masking, stretches=2)
        name = f"step of {size}, {_UNITS[unit]}, {masking}"
        yield Line(f"{name}: time / random", steps.seconds / plain.seconds)
        yield Line(f"{name}: peak memory of torch", steps.peak, "GiB")
