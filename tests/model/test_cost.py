"""Operations of a step by formula, against torch's counter on the steps that training makes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.config import ModelConfig
from mimcl.model.cost import gflop_per_draw
from mimcl.model.mae import build, reconstruction_loss

DRAWS = 3


@pytest.mark.parametrize("side", [64, 24])
@pytest.mark.parametrize("ratio", [0.75, 0.4])
@pytest.mark.parametrize(("decoder", "share"), [("self", 1.0), ("self", 0.5), ("cross", 1.0), ("cross", 0.25)])
def test_operations_are_those_that_torch_counts(side, ratio, decoder, share):
    config = ModelConfig("vit_tiny", 8, decoder_width=96, decoder_depth=2, decoder=decoder, predict_share=share)
    model = build(config, 64, seed=0)
    model.add_grids([3])
    patches = (side // 8) ** 2
    masker = RandomMasker(patches, ratio)
    keys = torch.arange(DRAWS)
    mask = masker.propose(torch.empty(0), keys, model, torch.zeros(()))
    ids = masker.predicted(mask, keys, share)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not know the fused one
        output = model(torch.randn(DRAWS, patches, 192), mask, ids)
        reconstruction_loss(output, mask.mask).sum().backward()
    assert gflop_per_draw(config, patches, ratio) == pytest.approx(counter.get_total_flops() / DRAWS / 1e9, rel=1e-6)
