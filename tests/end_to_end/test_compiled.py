"""Training with torch.compile works with every masking and never recompiles."""

from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.exhaustive import exhaustive

from mimcl.curriculum.masking.factory import make_masker
from mimcl.curriculum.masking.masking_config import HardPatchesConfig, LearnedMaskingConfig, MaskingConfig
from mimcl.curriculum.masking.schedule import MaskingSchedule
from mimcl.model.config import OptimConfig, TrainerConfig
from mimcl.model.cross_mae import CrossMaskedAutoencoder
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.trainer import Trainer
from mimcl.pipeline.augment import STREAM_MASK, hash64

pytestmark = pytest.mark.slow

BATCH, STEPS, SIDE, CUTS = 12, 7, 32, (0, 4, 12)  # micro-batches of 4 and of 8 draws


@pytest.fixture
def quick_compiler(monkeypatch):
    """Trace and differentiate as always, but generate no machine code, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batches(sides=(SIDE,) * STEPS):
    for step, side in enumerate(sides):
        pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, side, side), np.uint8)
        draws = np.arange(step * BATCH, (step + 1) * BATCH)
        keys = torch.from_numpy(hash64(0, draws, STREAM_MASK).view(np.int64))
        for start, stop in pairwise(CUTS):
            images = torch.from_numpy(pixels[start:stop])
            yield SimpleNamespace(images=images, keys=keys[start:stop], position=(step + 1) * BATCH, bad=())


@cache
def losses(
    masking: str,
    compile_unit: str | None,
    sides: tuple[int, ...] = (SIDE,) * STEPS,
    second_every: int = 2,
    share: float | None = None,
) -> list[float]:
    """Train; with `share` given, a cross-attention decoder predicts that share of the removed patches."""
    kind = MaskedAutoencoderViT if share is None else CrossMaskedAutoencoder
    sizes = dict(decoder_width=32, decoder_depth=1, decoder_heads=1, norm_pix_loss=True, predict_share=share or 1.0)
    model = kind(SIDE, 8, 32, 1, 2, **sizes)
    model.initialise(torch.Generator().manual_seed(0))
    model.add_grids(side // 8 for side in {*sides})
    masker = make_masker(
        MaskingConfig(masking),
        model,
        MaskingSchedule("step", STEPS, STEPS),
        hard_patches=HardPatchesConfig(),
        learned=LearnedMaskingConfig(depth=2, group_size=4, second_every=second_every),
        seed=0,
    )
    trainer = Trainer(
        model,
        masker,
        TrainerConfig(compile=compile_unit is not None, log_every_steps=1),
        OptimConfig(base_lr=0.01, warmup_epochs=0),
        samples=BATCH,
        draws=BATCH * STEPS,
        batch_size=BATCH,
        micro_batches=2,
        precision="bfloat16",
        compile_unit=compile_unit or "whole",
    )
    found = []

    try:
        for step in trainer.steps(batches(sides)):
            found.append(step.report.loss)
            # All sides, both sizes of micro-batches, with and without a second pass, have been compiled.
            if step.number == max(2, len({*sides})):
                torch._dynamo.config.error_on_recompile = compile_unit is not None
    finally:
        torch._dynamo.config.error_on_recompile = False
    # Evaluation uses the model itself, with batches of any size: it must not be compiled.
    assert all(module._compiled_call_impl is None for module in model.modules())
    return found


@pytest.mark.parametrize(
    ("masking", "compile_unit"),
    [
        ("random", "blocks"),
        ("hard-patches", "blocks"),
        ("grid", "whole"),
        *exhaustive(*((name, "whole") for name in ("random", "block", "hard-patches", "learned"))),
    ],
)
def test_compiled_training_has_the_losses_of_eager_training(quick_compiler, masking, compile_unit):
    np.testing.assert_allclose(losses(masking, compile_unit), losses(masking, None), rtol=2e-3)


@pytest.mark.parametrize(
    ("masking", "compile_unit"),
    [("random", "blocks"), *exhaustive(("hard-patches", "whole"), ("learned", "whole"))],
)
def test_a_cross_attention_decoder_is_compiled(quick_compiler, masking, compile_unit):
    compiled, eager = (losses(masking, unit, share=0.5) for unit in (compile_unit, None))
    np.testing.assert_allclose(compiled, eager, rtol=2e-3)


@pytest.mark.parametrize(
    ("masking", "compile_unit"),
    [("block", "blocks"), *exhaustive(("hard-patches", "whole"), ("learned", "whole"))],
)
def test_a_side_is_compiled_once(quick_compiler, masking, compile_unit):
    sides = (16, 32, 16, 32, 16, 32, 16)
    compiled, eager = (losses(masking, unit, sides, 1) for unit in (compile_unit, None))
    np.testing.assert_allclose(compiled, eager, rtol=2e-3)
