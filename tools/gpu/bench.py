"""Shared by all parts: sizes, models, batches on the device, and timed training steps."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from bench.step_batch import StepBatch, mask_keys
from torch import nn

from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.config import ModelConfig, OptimConfig, TrainerConfig
from mimcl.model.forward_backward import CompileUnit
from mimcl.model.mae import MaskedAutoencoderViT, build
from mimcl.model.trainer import Trainer
from mimcl.pipeline.cores import decode_threads

MASK_RATIO = 0.75
Masking = Literal["random", "hard-patches", "learned"]


@dataclass(frozen=True)
class Scale:
    """The sizes of the measurements, and the device."""

    device: str
    make_model: Callable[[], MaskedAutoencoderViT]
    batch: int  # images of a step, in one micro-batch
    stretch: int  # steps timed together
    matrix: int  # side of the matrices to multiply
    copied: int  # bytes to copy
    images: int  # in the generated data set
    batches: int  # to read and decode
    large_batch: int
    learned: LearnedMaskingConfig = field(default_factory=LearnedMaskingConfig)
    test_files: tuple[str, ...] | None = None  # None: all that have GPU tests


def _base_model() -> MaskedAutoencoderViT:
    model = build(ModelConfig(), 224, seed=0)
    assert isinstance(model, MaskedAutoencoderViT)
    return model


GPU = Scale(
    device="cuda",
    make_model=_base_model,
    batch=256,
    large_batch=512,
    stretch=10,
    matrix=8192,
    copied=4 << 30,
    images=1024,
    batches=40,
)


def _tiny_model() -> MaskedAutoencoderViT:
    model = MaskedAutoencoderViT(
        32, 8, 64, 2, 2, decoder_width=64, decoder_depth=1, decoder_heads=2, norm_pix_loss=True
    )
    model.initialise(torch.Generator().manual_seed(0))
    return model


REHEARSAL = Scale(
    device="cpu",
    make_model=_tiny_model,
    batch=32,
    large_batch=64,
    stretch=3,
    matrix=256,
    copied=1 << 20,
    images=24,
    batches=3,
    learned=LearnedMaskingConfig(depth=1),
    test_files=("tests/curriculum/masking/test_factory.py", "tests/pipeline/test_refused_images.py"),
)


@dataclass(frozen=True)
class Steps:
    """Timed training steps."""

    first: float  # seconds of the first step, including compilation
    seconds: float  # of a later step; median over stretches
    losses: list[float]  # mean of the first step, then of each stretch
    peak: float  # GiB of memory allocated by torch; 0 on the CPU


@dataclass
class Bench:
    """The state shared by the parts that run in one process."""

    scale: Scale
    folder: Path  # temporary
    artifacts: Path  # for files to keep
    deadline: float = 0.0  # of the current part, as time.monotonic()
    threads: int = field(default_factory=decode_threads)
    _kept: dict[str, Any] = field(default_factory=dict)

    @property
    def rehearsal(self) -> bool:
        return self.scale.device == "cpu"

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return `make()`, called only once per process and name."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def wait(self) -> None:
        if not self.rehearsal:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Return the median duration of `repeats` calls, including their work on the device, after one warm-up call."""
        taken = []
        for _ in range(repeats + 1):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[1:])

    def model(self) -> MaskedAutoencoderViT:
        """Return a new model, with the same weights every time."""
        on_host = self.once("model", self.scale.make_model)
        return copy.deepcopy(on_host).to(self.scale.device)

    def batches(self, size: int, image_size: int, steps: int) -> Iterator[StepBatch]:
        """Yield a batch per step, cycling through four on the device."""
        device = self.scale.device
        batches = [(_smooth_noise(size, image_size, seed, device), mask_keys(size, device, seed)) for seed in range(4)]
        for step, (images, keys) in enumerate(islice(cycle(batches), steps), 1):
            yield StepBatch(images, keys, step * size)

    def trainer(self, size: int, steps: int, unit: CompileUnit | None, masking: Masking = "random") -> Trainer:
        """Return a trainer that reports after each stretch; with a short warm-up, so that the loss falls quickly."""
        model = self.model()
        masker = make_masker(
            MaskingConfig(masking, MASK_RATIO),
            model,
            MaskingSchedule("epoch", 1, 1),
            hard_patches=HardPatchesConfig(),
            learned=self.scale.learned,
            seed=0,
        )
        return Trainer(
            model,
            masker,
            TrainerConfig(
                epochs=1,
                compile=unit is not None,
                log_every_steps=self.scale.stretch,
                checkpoint_every_steps=10**9,
            ),
            OptimConfig(base_lr=1e-3, warmup_epochs=0.1),
            samples=steps * size,
            draws=steps * size,
            batch_size=size,
            micro_batches=1,
            precision="bfloat16",
            compile_unit=unit or "whole",
        )

    def train(
        self, size: int, unit: CompileUnit | None = None, masking: Masking = "random", stretches: int = 4
    ) -> Steps:
        """Time steps over batches on the device: the first, a stretch to warm up, then `stretches`."""
        if not self.rehearsal:
            torch.cuda.reset_peak_memory_stats()
        steps = (1 + stretches) * self.scale.stretch
        trainer = self.trainer(size, steps, unit, masking)
        batches = list(self.batches(size, trainer.model.image_size, steps))
        return self.timed(trainer, batches)

    def timed(self, trainer: Trainer, batches: Iterable[Any], reports: list[Any] | None = None) -> Steps:
        """Run the trainer, which reports after each stretch, and time the stretches after the first."""
        times, losses = [], []

        self.wait()
        started = time.perf_counter()
        for step in trainer.steps(batches):
            if step.report:
                self.wait()
                times.append(time.perf_counter())
                losses.append(step.report.loss)
                if reports is not None:
                    reports.append(step.report)
        stretches = [after - before for before, after in pairwise(times[1:])]
        peak = 0.0 if self.rehearsal else torch.cuda.max_memory_allocated() / 2**30
        return Steps(times[0] - started, statistics.median(stretches) / self.scale.stretch, losses, peak)


def _smooth_noise(count: int, size: int, seed: int, device: str) -> torch.Tensor:
    """Return noise at several scales, the coarse strongest as in photographs, uint8 (count, 3, size, size)."""
    generator = torch.Generator(device).manual_seed(seed)
    images = torch.full((count, 3, size, size), 128.0, device=device)
    for side, strength in ((3, 45.0), (size // 16, 25.0), (size // 4, 12.0), (size, 4.0)):
        noise = strength * torch.randn(count, 3, side, side, generator=generator, device=device)
        images += F.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
    return images.clamp_(0, 255).to(torch.uint8)


def step_flops(model: MaskedAutoencoderViT, mask_ratio: float = MASK_RATIO) -> float:
    """Count the floating-point operations of a training step for one image: matrix products, forward and backward.

    A backward pass has twice the products of its forward pass, except that no gradient of the pixels is computed.
    """
    patches = model.num_patches
    kept = int(patches * (1 - mask_ratio))
    embedded = 2 * kept * model.patch_embed.proj.weight.numel()
    products = _blocks_flops(model.blocks, 1 + kept) + _blocks_flops(model.decoder_blocks, 1 + patches)
    products += 2 * (1 + kept) * model.decoder_embed.weight.numel() + 2 * patches * model.decoder_pred.weight.numel()
    return 3.0 * products + 2.0 * embedded


def _blocks_flops(blocks: nn.ModuleList, tokens: int) -> int:
    """Count the operations of a forward pass for one image: linear layers, and the two products of attention."""
    flops = 0
    for block in blocks:
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        flops += sum(2 * tokens * linear.weight.numel() for linear in linears)
        flops += 2 * 2 * tokens * tokens * linears[0].in_features  # the width
    return flops
